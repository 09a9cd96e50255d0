"""Does a step cost the longer of sampling and verification, or their sum?

    python bench/overlap.py --rounds 3

The embedded prover samples 16 groups of 32, one group after another; a verifier that sleeps instead of
working takes as long as the sampler (as if Lean had cores of its own). In turn: first one, then the other;
and streamed, as train.py does it. Median [smallest, largest].
"""

import argparse
import os
import statistics
import sys
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
import lib.lean  # noqa: E402
import verify  # noqa: E402
from lib.model import load_model  # noqa: E402
from sample import options, read_problems, sample_rows  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description="Verification hidden behind sampling.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--workers", type=int, default=2, help="verifiers at a time")
    args = parser.parse_args()
    model, tokenizer = load_model(f"{HERE}/toy/base")
    problems = read_problems(f"{HERE}/toy/train.jsonl", 16)
    lean = lib.lean.Lean([], [], {}, "", "", True, "", False, "")

    def sampler():  # one group fits into so many tokens, two do not
        args = options("--batch-tokens 10000")
        return sample_rows(model, tokenizer, problems, 32, args, progress=False)

    def run(streamed, seconds):
        """(whole seconds, those of sampling), the verifier needing `seconds` in all."""
        start, sampled = time.perf_counter(), []

        def rows():
            yield from sampler()
            sampled.append(time.perf_counter() - start)

        def judge(keys, lean, timeout, stop):
            time.sleep(seconds * args.workers * len(keys) / distinct)
            return {key: ("proved", "", 0.0) for key in keys}

        source = rows() if streamed else list(rows())
        for _ in verify.verify_stream(
            source, verify.lean_verifier(lean, judge, args.workers, 16), progress=False
        ):
            pass
        return time.perf_counter() - start, sampled[0]

    distinct = len({(row["id"], row["completion"]) for row in sampler()})
    _, seconds = run(False, 0.0)
    results = {False: [], True: []}
    for _ in range(args.rounds):
        for streamed in results:
            whole, sampling = run(streamed, seconds)
            results[streamed].append(whole / max(sampling, seconds))
    print(
        f"sampling {seconds:.2f} s, {distinct} distinct completions\n\n| | whole time over the longer of the two |\n|---|---|"
    )
    for streamed, ratios in results.items():
        cell = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(f"| {'streamed' if streamed else 'one after the other'} | {cell} |")


if __name__ == "__main__":
    main()
