"""Speed and memory of the update, and of the torch sampler, at the size of DeepSeek-Prover-V1.5 (random
weights).

    # one GPU: the most layers, up to 30, that fit with AdamW's state; all variants
    python bench/update_gpu.py
    python bench/update_gpu.py --variants copy+compile --again 0.5 --profile
    torchrun --nproc-per-node 8 bench/update_gpu.py         # FSDP2 over 8 of them
    python bench/update_gpu.py --small                      # a toy size, to see it run on a CPU

The update is train.update as it is: old log-probs (one forward pass), then forward and backward, clipping
and AdamW. Variants: "autocast" casts float32 weights at each use, as train.py did; "copy" computes with a
bfloat16 copy, as it does; "+compile" adds --compile. --again: shares of the blocks that backward computes
again (--gradient-checkpointing), each with the last variant too. Model FLOPs are those of the matrices and
of causal attention, for tokens that are no padding; what is computed again does not count.
"""

import argparse
import functools
import os
import sys
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

import lib.decode  # noqa: E402
import train  # noqa: E402
from lib import processes  # noqa: E402
from lib.build import compute_in_copy  # noqa: E402
from lib.logprobs import (  # noqa: E402  # noqa: E402
    completion_logprobs,
    make_batch,
    own_micro_batches,
    target_logprobs,
    token_logprobs,
)
from lib.model import float32_head  # noqa: E402
from lib.processes import shard, wrap_blocks  # noqa: E402

VARIANTS = ["autocast", "copy", "copy+compile"]


def model_flops(config, rows):
    """(forward, update) FLOPs of the rows: 2 a weight and token forward, twice that backward; the head sees
    completions only."""
    c, forward = config, 0
    head_size = c.hidden_size // c.num_attention_heads
    weights = (
        c.num_hidden_layers
        * c.hidden_size
        * (2 * c.hidden_size + 2 * c.num_key_value_heads * head_size + 3 * c.intermediate_size)
    )
    for row in rows:
        length = len(row["prompt_ids"]) + len(row["completion_ids"])
        forward += 2 * weights * length + 2 * c.hidden_size * c.vocab_size * len(row["completion_ids"])
        # scores and values, half of them masked
        forward += 2 * c.num_hidden_layers * c.hidden_size * length**2
    return forward, 4 * forward


def synchronize(args):
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def random_model(args, layers):
    """As load_model gives it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=args.hidden,
        num_hidden_layers=layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        intermediate_size=args.intermediate,
        vocab_size=args.vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    with torch.device("cpu" if torch.distributed.is_initialized() else args.device):
        model = LlamaForCausalLM(config).eval()
    model.lm_head.forward = functools.partial(float32_head, model.lm_head)
    return model


def in_dtype(model, dtype):
    """Not model.to(dtype), which would round the positions' frequencies too."""
    for weight in model.parameters():
        weight.data = weight.data.to(getattr(torch, dtype))
    return model


def build(args, layers, variant, again):
    """(model, optimizer) as train.py has them."""
    model = computes = random_model(args, layers)
    if torch.distributed.is_initialized():
        model = computes = shard(model, target_logprobs, args)
    elif args.dtype == "bfloat16" and variant != "autocast":
        computes = in_dtype(random_model(args, layers), args.dtype)
    wrap_blocks(computes, again, variant.endswith("compile"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.01, fused=args.device == "cuda")
    if computes is not model:
        compute_in_copy(model, computes, optimizer)
    return model, optimizer


def bench_update(model, optimizer, rows, args):
    """(seconds of the fastest update, of its first part, the old log-probs, and of the first update)."""
    update, forward = [], []
    for step in range(args.rounds + 1):  # the first warms up
        start = synchronize(args)
        completion_logprobs(model, rows, 1.0, args.micro_batch_tokens)
        middle = synchronize(args)
        train.update(model, None, optimizer, rows, args, step)
        forward.append(middle - start)
        update.append(synchronize(args) - middle)
    return min(update[1:]), min(forward[1:]), update[0] + forward[0]


def profile_table(model, rows, args, name):
    """Where the time of a micro-batch's forward and backward goes."""
    batch = make_batch(rows, own_micro_batches(model, rows, args.micro_batch_tokens)[0], model.device)
    on_gpu = args.device == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + on_gpu]
    with profile(activities=activities) as found:
        token_logprobs(model, batch).sum().backward()
        synchronize(args)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events)
    lines = [f"\n| {name}: a micro-batch, forward and backward | ms | share |", "|---|---|---|"]
    lines.append(f"| all | {total / 1e3:.1f} | |")
    for event in events[:12]:
        spent = getattr(event, key)
        lines.append(f"| {event.key[:70]} | {spent / 1e3:.1f} | {spent / total:.1%} |")
    return lines


def bench_sampler(model, args, some_end):
    """Tokens a second of sample.py's decoding, `samples` completions at once. some_end: at 1 token in 64."""
    draws = torch.rand(args.samples, args.sampled, dtype=torch.double, device=args.device)
    ends = set(range(0, args.vocabulary, 64)) if some_end else set()
    for tokens in (2, args.sampled):  # the first warms up
        start = synchronize(args)
        found = lib.decode.sample_batch(
            model, [list(range(args.prompt))], draws[:, :tokens], 1.0, ends, lambda ids: True
        )
        seconds = synchronize(args) - start
    return sum(len(ids) for ids, _, _ in found) / seconds, seconds


def print_sampler(model, args):
    print("\n| sampler | tokens/s | s |\n|---|---|---|")
    for ends, rows_at_once, name in (
        (False, 32, f"{args.samples} at a time, none ends"),
        (True, 32, "1 token in 64 ends, rows leave 32 at a time"),
        (True, 1, "1 token in 64 ends, rows leave one by one"),
        (True, 32, "32 at a time again"),
    ):
        lib.decode.ROWS_AT_ONCE = rows_at_once
        speed, seconds = bench_sampler(model, args, ends)
        print(f"| {name} | {speed:.0f} | {seconds:.2f} |", flush=True)


def parse():
    parser = argparse.ArgumentParser(description="The update and the torch sampler at full size.")
    add = parser.add_argument
    add("--small", action="store_true", help="hidden 256, 2 layers, 1024 words, 64-token completions")
    add("--layers", type=int, default=30, help="tried first; three fewer each time memory runs out")
    add("--rows", type=int, default=64, help="completions of the update")
    add("--prompt", type=int, default=128, help="tokens of a prompt")
    add("--completion", type=int, default=512, help="tokens of a completion")
    add("--samples", type=int, default=128, help="completions sampled at once")
    add("--sampled", type=int, default=256, help="tokens of a sampled completion; 0: no sampler")
    add("--micro-batch-tokens", type=int, default=8192, help="padded tokens a forward pass")
    add("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="see above")
    add("--again", type=float, nargs="+", default=[1.0], help="shares of the blocks computed again")
    add("--backend", default="inductor", help="of torch.compile")
    add("--profile", action="store_true", help="where a micro-batch's time goes, for each variant")
    add("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add(
        "--peak", type=float, default=989.0, help="TFLOP/s of the GPU, dense, in this dtype (H100, H200: 989)"
    )
    add("--rounds", type=int, default=2, help="measured updates; the fastest counts")
    args = parser.parse_args()
    args.hidden, args.intermediate, args.heads, args.vocabulary = 4096, 11008, 32, 102400
    if args.small:
        args.hidden, args.intermediate, args.heads, args.vocabulary, args.layers = 256, 688, 4, 1024, 2
        args.rows, args.prompt, args.completion, args.samples, args.micro_batch_tokens = 16, 16, 64, 64, 1024
        args.sampled = min(args.sampled, 64)
    args.temperature, args.clip, args.kl, args.seed, args.ppo_epochs = 1.0, 0.2, 0.0, 0, 1
    args.minibatch, args.grad_clip, args.grad_skip = args.rows, 1.0, 1e9
    return args


def random_rows(args):
    generator = torch.Generator().manual_seed(1)
    draw = lambda length: torch.randint(args.vocabulary, (length,), generator=generator).tolist()  # noqa: E731
    return [
        {
            "id": str(i),
            "prompt_ids": draw(args.prompt),
            "completion_ids": draw(args.completion),
            "advantage": (-1.0) ** i,
            "logprobs": [0.0] * args.completion,
        }
        for i in range(args.rows)
    ]


def row_of(args, layers, variant, again, profiles):
    """The table's row of a variant; adds its profile."""
    if args.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model, optimizer = build(args, layers, variant, again)
    rows, count = random_rows(args), processes.count()
    casts = variant == "autocast" and args.dtype == "bfloat16" and not torch.distributed.is_initialized()
    with torch.autocast(args.device, torch.bfloat16, enabled=casts):
        seconds, forward, first = bench_update(model, optimizer, rows, args)
        memory = torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else 0
        if args.profile:
            profiles += profile_table(model, rows, args, f"{variant}, {again:g} again")
    forward_flops, update_flops = model_flops(model.config, rows)
    tokens = sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)
    weights = sum(weight.numel() for weight in model.parameters()) / 1e9
    parts = [
        (update_flops, seconds),
        (forward_flops, forward),
        (update_flops - forward_flops, seconds - forward),
    ]
    shares = [f"{flops / spent / args.peak / 1e12 / count:.1%}" for flops, spent in parts]
    return (
        f"| {variant} | {again:g} | {weights:.3f} | {first:.1f} | {seconds:.2f} | {tokens / seconds:.0f} | "
        f"{update_flops / seconds / 1e12:.1f} | {' | '.join(shares)} | {memory:.1f} |"
    )


def main():
    args = parse()
    torch.compile = functools.partial(torch.compile, backend=args.backend)
    processes.connect()
    place = torch.cuda.get_device_name() if args.device == "cuda" else "the CPU"
    print(f"{processes.count()} process(es) on {place}, {args.dtype}, width {args.hidden}\n")
    print(
        "| variant | computed again | billion weights | first, s | update, s | tokens/s | TFLOP/s | MFU | "
        "of old log-probs | of forward and backward | GiB |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    runs = [(variant, args.again[0]) for variant in args.variants]
    runs += [(args.variants[-1], again) for again in args.again[1:]]
    layers, profiles = args.layers, []
    while runs:
        try:
            print(row_of(args, layers, *runs[0], profiles), flush=True)
            runs = runs[1:]
        except torch.OutOfMemoryError:
            if layers <= 3:
                raise
            layers -= 3
            print(
                f"| {runs[0][0]} | {runs[0][1]:g} | out of memory: {layers} layers from here on |", flush=True
            )
    print(*profiles, sep="\n")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    elif args.sampled:
        print_sampler(in_dtype(random_model(args, args.layers), args.dtype), args)


if __name__ == "__main__":
    main()
