"""Speed and memory of the update, and of the torch sampler, at the size of DeepSeek-Prover-V1.5 (random
weights).

    # one GPU: the most layers, up to 30, that fit with AdamW's state
    python bench/update_gpu.py
    torchrun --nproc-per-node 8 bench/update_gpu.py         # FSDP2 over 8 of them
    python bench/update_gpu.py --small                      # a toy size, to see it run on a CPU

The update is train.update as it is: old log-probs (one forward pass), then forward and backward, clipping
and AdamW. Model FLOPs are those of the matrices and of causal attention, for tokens that are no padding;
what is computed again does not count.
"""

import argparse
import os
import sys
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

import train  # noqa: E402
from lib.decode import sample_batch  # noqa: E402
from lib.logprobs import completion_logprobs, target_logprobs  # noqa: E402
from lib.ranks import checkpoint_blocks, ranks, shard, start_ranks  # noqa: E402


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
        forward += (
            2 * c.num_hidden_layers * c.hidden_size * length**2
        )  # scores and values, half of them masked
    return forward, 4 * forward


def synchronize(args):
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def build(args, layers):
    """(model, optimizer) as train.py has them."""
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
    sharded = torch.distributed.is_initialized()
    with torch.device("cpu" if sharded else args.device):
        model = LlamaForCausalLM(config).eval()
    if args.gradient_checkpointing:
        checkpoint_blocks(model)
    model = shard(model, target_logprobs, args) if sharded else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.01, fused=args.device == "cuda")
    return model, optimizer


def bench_update(model, optimizer, rows, args):
    """(seconds of the fastest update, seconds of its first part, the old log-probs)."""
    update, forward = [], []
    for step in range(args.rounds + 1):  # the first warms up
        start = synchronize(args)
        completion_logprobs(model, rows, 1.0, args.micro_batch_tokens, args.dtype)
        middle = synchronize(args)
        train.update(model, None, optimizer, rows, args, step)
        forward.append(middle - start)
        update.append(synchronize(args) - middle)
    return min(update[1:]), min(forward[1:])


def bench_sampler(model, args):
    """Tokens a second of sample.py's decoding, `samples` completions at once, none of which ends early."""
    none = torch.zeros(0, dtype=torch.long, device=args.device)
    draws = torch.rand(args.samples, args.completion, dtype=torch.double, device=args.device)
    with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
        for tokens in (2, args.completion):  # the first warms up
            start = synchronize(args)
            sample_batch(model, [list(range(args.prompt))], draws[:, :tokens], 1.0, none, lambda ids: False)
            seconds = synchronize(args) - start
    return args.samples * args.completion / seconds


def main():
    parser = argparse.ArgumentParser(description="The update and the torch sampler at full size.")
    parser.add_argument(
        "--small", action="store_true", help="hidden 256, 2 layers, 1024 words, 64-token completions"
    )
    parser.add_argument(
        "--layers", type=int, default=30, help="tried first; three fewer each time memory runs out"
    )
    parser.add_argument("--rows", type=int, default=64, help="completions of the update")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--completion", type=int, default=512, help="tokens of a completion")
    parser.add_argument("--samples", type=int, default=128, help="completions sampled at once")
    parser.add_argument("--micro-batch-tokens", type=int, default=8192, help="padded tokens a forward pass")
    parser.add_argument("--gradient-checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--peak", type=float, default=989.0, help="TFLOP/s of the GPU, dense, in this dtype (H100, H200: 989)"
    )
    parser.add_argument("--rounds", type=int, default=2, help="measured updates; the fastest counts")
    args = parser.parse_args()
    args.hidden, args.intermediate, args.heads, args.vocabulary = 4096, 11008, 32, 102400
    if args.small:
        args.hidden, args.intermediate, args.heads, args.vocabulary, args.layers = 256, 688, 4, 1024, 2
        args.rows, args.prompt, args.completion, args.samples, args.micro_batch_tokens = 16, 16, 64, 16, 1024
    args.temperature, args.clip, args.kl, args.seed, args.ppo_epochs, args.minibatch = (
        1.0,
        0.2,
        0.0,
        0,
        1,
        args.rows,
    )
    args.grad_clip, args.grad_skip = 1.0, 1e9
    start_ranks()
    (_, count), generator = ranks(), torch.Generator().manual_seed(1)
    draw = lambda length: torch.randint(args.vocabulary, (length,), generator=generator).tolist()  # noqa: E731
    rows = [
        {
            "id": str(i),
            "prompt_ids": draw(args.prompt),
            "completion_ids": draw(args.completion),
            "advantage": (-1.0) ** i,
            "logprobs": [0.0] * args.completion,
        }
        for i in range(args.rows)
    ]
    layers = args.layers
    while True:
        model = optimizer = None
        try:
            model, optimizer = build(args, layers)
            if args.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds, forward = bench_update(model, optimizer, rows, args)
            break
        except torch.OutOfMemoryError:
            if count > 1 or layers <= 3:
                raise
        model = optimizer = None  # out of the except clause, whose traceback holds tensors
        torch.cuda.empty_cache()
        layers -= 3
        print(f"out of memory; with {layers} layers", flush=True)
    config, tokens = model.config, sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)
    forward_flops, update_flops = model_flops(config, rows)
    share = 100 / (args.peak * 1e12 * count)
    place = torch.cuda.get_device_name() if args.device == "cuda" else "the CPU"
    print(
        f"{sum(weight.numel() for weight in model.parameters()) / 1e9:.3f} billion weights in {layers} layers, "
        f"{count} process(es) on {place}, {args.dtype}, blocks recomputed: {args.gradient_checkpointing}"
    )
    completion = len(rows) * args.completion
    for what, spent, flops in (
        ("update", seconds, update_flops),
        ("  log-probs before", forward, forward_flops),
        ("  forward and backward", seconds - forward, update_flops - forward_flops),
    ):
        print(
            f"{what:24s}{spent:7.2f} s  {tokens / spent:8.0f} tokens/s  {completion / spent:8.0f} completion tokens/s  "
            f"{flops / spent / 1e12:7.2f} TFLOP/s  MFU {flops / spent * share:.1f} %"
        )
    if args.device == "cuda":
        print(
            f"  peak memory           {torch.cuda.max_memory_allocated() / 2**30:7.1f} GiB allocated, "
            f"{torch.cuda.max_memory_reserved() / 2**30:.1f} GiB reserved"
        )
    if count == 1 and not torch.distributed.is_initialized():
        del optimizer
        model = model.to(getattr(torch, args.dtype))
        for weight in model.parameters():
            weight.grad = None
        speed = bench_sampler(model, args)
        print(f"sampler: {speed:.0f} tokens/s, {args.samples} at a time")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
