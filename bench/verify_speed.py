"""How many proofs a second, and how much does verify.py add to what Lean itself takes?

    python bench/verify_speed.py --rounds 3

The peer is Lean on the very same files, one process after another per worker, its output thrown away: no
filter, no sandbox, no verdicts. Proofs are samples of the embedded prover, right and wrong ones. Rounds
alternate; median [smallest, largest].
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
import lib.lean_file  # noqa: E402
import verify  # noqa: E402
from lib.model import load_model  # noqa: E402
from sample import options, read_problems, sample_rows  # noqa: E402


def lean_alone(sources, lean, workers):
    """Seconds that `workers` Leans at a time take for these files."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, source in enumerate(sources):
            paths.append(os.path.join(folder, f"{number}.lean"))
            with open(paths[-1], "w", encoding="utf-8") as file:
                file.write(source)
        command = [one for one in lean.command if one != "--stdin"]
        start = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            list(
                pool.map(
                    lambda path: subprocess.run([*command, path], env=lean.env, stdout=subprocess.DEVNULL),
                    paths,
                )
            )
        return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description="Proofs a second, and verify.py's overhead over Lean.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--problems", type=int, default=40, help="problems of toy/val.jsonl, 32 samples each")
    args = parser.parse_args()
    model, tokenizer = load_model(f"{HERE}/toy/base")
    problems = read_problems(f"{HERE}/toy/val.jsonl", args.problems)
    rows = list(
        {
            (row["statement"], row["completion"]): row
            for row in sample_rows(model, tokenizer, problems, 32, options(), progress=False)
        }.values()
    )
    lean, run_lean = verify.find_lean(), lib.lean_file.run_lean
    print(
        f"{len(rows)} distinct proofs\n\n| workers | batch | proofs/s | Lean alone, proofs/s | time over Lean's |\n|---|---|---|---|---|"
    )
    sources = []
    lib.lean_file.run_lean = lambda source, *rest: sources.append(source) or run_lean(source, *rest)
    for workers in (1, 2):
        for batch in (8, 32, 128, 256):
            ours, alone = [], []
            for _ in range(args.rounds):
                sources.clear()
                start = time.perf_counter()
                verify.verify_rows(rows, lean, progress=False, workers=workers, batch=batch)
                ours.append(time.perf_counter() - start)
                alone.append(lean_alone(sources, lean, workers))
            rate, peer = (
                [f"{len(rows) / f(times):.0f}" for f in (statistics.median, max, min)]
                for times in (ours, alone)
            )
            ratios = [a / b for a, b in zip(ours, alone)]
            print(
                f"| {workers} | {batch} | {rate[0]} [{rate[1]}, {rate[2]}] | {peer[0]} [{peer[1]}, {peer[2]}] | "
                f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] |",
                flush=True,
            )


if __name__ == "__main__":
    main()
