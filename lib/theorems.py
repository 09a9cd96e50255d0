"""The search for theorems over seeds, which toy/ and nat/ share."""

import argparse
from collections.abc import Callable, Hashable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tqdm import tqdm


def find_theorems(
    theorems: Callable[[range], list], count: int, chunk: int, args: argparse.Namespace
) -> dict[Hashable, Any]:
    """{form: the rest} of at least `count` theorems, in the order of their seeds.

    theorems: the [(form, the rest), ...] of a range of seeds; a process takes `chunk` seeds at a time. Of two
    theorems with one form the first stays. args: --seed and --workers."""
    found: dict[Hashable, Any] = {}
    start = args.seed * 10**9
    with ProcessPoolExecutor(args.workers) as pool, tqdm(total=count, desc="theorems") as bar:
        while len(found) < count:
            jobs = [range(start + i * chunk, start + (i + 1) * chunk) for i in range(4 * args.workers)]
            start += len(jobs) * chunk
            for results in pool.map(theorems, jobs):
                for form, rest in results:
                    found.setdefault(form, rest)
            bar.update(min(len(found), count) - bar.n)
    return found
