"""Is the first step of a run as fast as the tenth, and is a tiny model faster on the CPU than on a GPU?

    python bench/toy_steps.py --device cuda --dtype bfloat16
    python bench/toy_steps.py --device cpu

Steps of the embedded prover without Lean: 16 problems, 32 completions, the parity of a completion's bytes
for a reward, one update of two mini-batches. A GPU that meets a new matrix shape looks for a kernel, which
would make the first steps slow. Other flags are train.py's. --rows-at-once 1: rows leave the sampler's batch one by one, as they end.
"""

import argparse
import os
import sys
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
import advantage  # noqa: E402
import lib.decode  # noqa: E402
import sample  # noqa: E402
import train  # noqa: E402
from lib import build  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description="The first steps of a run.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rows-at-once", type=int, default=lib.decode.ROWS_AT_ONCE)
    given, rest = parser.parse_known_args()
    lib.decode.ROWS_AT_ONCE = given.rows_at_once
    args = train.parse_args(["--device", given.device, "--dtype", given.dtype, "--kl", "0.02", *rest])
    sampler, tokenizer = build.load_sampler(args, args.model, weights=True)
    model, reference, optimizer = build.build(args, None, sampler, 400)
    problems = sample.read_problems(args.problems)
    spent = []
    for step in range(given.steps):
        some, start = train.problems_of(step, problems, args), time.perf_counter()
        rows = list(
            sample.sample_rows(sampler, tokenizer, some, args.num_samples, args, seed=step, progress=False)
        )
        middle = time.perf_counter()
        rows = [dict(row, reward=float(sum(row["completion"].encode()) % 2)) for row in rows]
        rows = [row for row in advantage.add_advantages(rows, args) if row["advantage"] is not None]
        metrics = train.update(model, reference, optimizer, rows, args, step)
        spent.append((middle - start, time.perf_counter() - middle))
    print(
        f"| {given.device}, {given.dtype} | " + " | ".join(f"step {k + 1}" for k in range(given.steps)) + " |"
    )
    print("|---|" + "---|" * given.steps)
    for name, seconds in zip(("sampling, s", "update, s"), zip(*spent)):
        print(f"| {name} | " + " | ".join(f"{one:.2f}" for one in seconds) + " |")
    first, last = sum(spent[0]), sum(spent[-1])
    print(
        f"\nfirst step over last: {first / last:.2f}; gap of sampler and trainer {metrics['logprob_gap']:.2g}\n"
    )


if __name__ == "__main__":
    main()
