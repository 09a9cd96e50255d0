"""How far is the update from the arithmetic floor of this machine, and how much of it is padding, at what
--micro-batch-tokens?

    python bench/update_speed.py --rounds 5

One step of the embedded prover: 512 samples, the parity of a completion's bytes for a reward, so that all
of them are trained on; KL 0.02, one PPO epoch of two mini-batches (the defaults of train.py), float32, 2
threads. The floor is the time of nothing but the matrix products with the model's weights, for the tokens
that go through it and are no padding: once for a pass without gradient, three times with. It is measured
with torch.mm of the same shapes, a micro-batch of as many tokens at a time. Not in it: attention, softmax,
norms, the optimizer. The two take turns, the first round unmeasured. Median [smallest, largest].
"""

import argparse
import os
import statistics
import sys
import time
from types import SimpleNamespace

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
os.environ |= {"OMP_NUM_THREADS": "2"}
import torch  # noqa: E402

import advantage  # noqa: E402
import train  # noqa: E402, before torch, for its setting
from lib.model import load_model  # noqa: E402
from sample import options, read_problems, sample_rows  # noqa: E402


def product_seconds(model, tokens):
    """(seconds of a token's products with all weights of the blocks, forward alone; forward and backward),
    `tokens` at a time."""
    forward = both = 0.0
    for layer in model.base_model.modules():
        if isinstance(layer, torch.nn.Linear):
            x, weight, gradient = (
                torch.randn(tokens, layer.in_features),
                layer.weight.detach(),
                torch.randn(tokens, layer.out_features),
            )
            start = time.perf_counter()
            x @ weight.T
            middle = time.perf_counter()
            gradient @ weight, gradient.T @ x
            both += time.perf_counter() - start
            forward += middle - start
    return forward / tokens, both / tokens


def main():
    parser = argparse.ArgumentParser(description="The update against its matrix products.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument(
        "--budgets",
        type=int,
        nargs="+",
        default=[512, 1024, 2048, 4096, 8192, 16384],
        help="values of --micro-batch-tokens",
    )
    args = parser.parse_args()
    (model, tokenizer), (reference, _) = load_model(f"{HERE}/toy/base"), load_model(f"{HERE}/toy/base")
    reference.requires_grad_(False)
    problems = read_problems(f"{HERE}/toy/train.jsonl", 16)
    rows = sample_rows(model, tokenizer, problems, 32, options(), progress=False)
    rows = [dict(row, reward=float(sum(row["completion"].encode()) % 2)) for row in rows]
    rows = advantage.add_advantages(rows, advantage.options())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01)
    tokens = sum(len(row["completion_ids"]) for row in rows)
    flops = 2 * sum(
        layer.weight.numel() for layer in model.base_model.modules() if isinstance(layer, torch.nn.Linear)
    )
    seen = []  # (places, tokens that are no padding, with gradient) of each forward pass
    for one in (model, reference):
        one.get_input_embeddings().register_forward_pre_hook(
            lambda module, ids: seen.append(
                (
                    ids[0].numel(),
                    int((ids[0] != 0).sum()),
                    torch.is_grad_enabled() and module.weight.requires_grad,
                )
            )
        )  # 0 is the padding
    print(
        f"{len(rows)} completions of {tokens} tokens, with their prompts {tokens + sum(len(row['prompt_ids']) for row in rows)}\n\n"
        "| micro-batch tokens | through the model, one pass | padding | update, completion tokens/s | matrix products, GFLOP/s | "
        "update over floor |\n|---|---|---|---|---|---|"
    )
    for budget in args.budgets:
        settings = SimpleNamespace(
            temperature=1.0,
            clip=0.2,
            kl=0.02,
            seed=0,
            ppo_epochs=1,
            minibatch=256,
            micro_batch_tokens=budget,
            dtype="float32",
            grad_clip=1.0,
            grad_skip=1e9,
            reference_device="device",
        )
        speeds, rates, ratios = [], [], []
        for step in range(args.rounds + 1):
            seen.clear()
            start = time.perf_counter()
            train.update(model, reference, optimizer, rows, settings, 0)
            seconds = time.perf_counter() - start
            per_token = [
                statistics.mean(times)
                for times in zip(*(product_seconds(model, budget) for _ in range(max(1, 8192 // budget))))
            ]
            floor = sum(count * per_token[gradient] for _, count, gradient in seen)
            if step:
                speeds.append(tokens / seconds)
                rates.append(3 * flops / per_token[1] / 1e9)
                ratios.append(seconds / floor)
        places, real = (sum(one[k] for one in seen) for k in (0, 1))
        once = sum(count for _, count, gradient in seen if gradient)
        cells = [
            f"{statistics.median(x):.{d}f} [{min(x):.{d}f}, {max(x):.{d}f}]"
            for x, d in ((speeds, 0), (rates, 1), (ratios, 2))
        ]
        print(f"| {budget} | {once} | {100 * (1 - real / places):.1f} % | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
