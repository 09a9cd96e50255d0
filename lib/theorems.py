"""What toy/ and nat/ share: flags, the search for theorems over seeds, the files that come of it."""

import argparse
import os
import random
from collections.abc import Callable, Container, Hashable, Set
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tqdm import tqdm

from lib.cli import number
from lib.jsonl import make_folder, write_jsonl


def add_flags(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """The flags of a make_problems.py, with its own defaults."""
    add, count = parser.add_argument, number(int, 1)
    add("--out", help="folder for train.jsonl and val.jsonl")
    add("--sft", help="JSONL for the proofs of supervised training")
    add("--train", type=count, help="training problems")
    add("--val", type=count, help="held-out problems")
    add("--sft-theorems", type=count, default=40000, help="theorems for supervised training")
    add("--seed", type=number(int, 0), default=0, help="one seed for everything")
    add("--workers", type=count, default=2, help="processes for the search and for Lean")
    parser.set_defaults(**defaults)


def find_theorems(
    theorems: Callable[[range], list],
    chunk: int,
    args: argparse.Namespace,
    count: int,
    skip: int = 0,
    known: Container[Hashable] = (),
) -> list[tuple[Hashable, Any]]:
    """[(form, the rest)] of `count` theorems, in the order of their seeds, without the first `skip` seeds.

    theorems: the [(form, the rest), ...] of a range of seeds; a process takes `chunk` seeds at a time. Of two
    theorems with one form the first stays, and none with a form in `known`."""
    for path in (f"{args.out}/", args.sft):
        make_folder(os.path.dirname(path))
    found: dict[Hashable, Any] = {}
    start = args.seed * 10**9 + skip
    with ProcessPoolExecutor(args.workers) as pool, tqdm(total=count, desc="theorems") as bar:
        while len(found) < count:
            jobs = [range(start + i * chunk, start + (i + 1) * chunk) for i in range(4 * args.workers)]
            start += len(jobs) * chunk
            for results in pool.map(theorems, jobs):
                for form, rest in results:
                    if form not in known:
                        found.setdefault(form, rest)
            bar.update(min(len(found), count) - bar.n)
    return list(found.items())[:count]


def write_theorems(
    rows: list[dict], keys: tuple[str, ...], args: argparse.Namespace, lessons: Set[str] = frozenset()
) -> None:
    """Shares out what Lean proved: val.jsonl and train.jsonl with these keys, other theorems' proofs.

    lessons: the ids of those other theorems (default: all that are left over)."""
    proved = [row for row in rows if row["verdict"] == "proved"]
    problems = {row["id"]: {key: row[key] for key in keys} for row in proved}
    ids = sorted(problems.keys() - lessons)
    random.Random(args.seed).shuffle(ids)
    val, train = ids[: args.val], ids[args.val :][: args.train]
    for name, part in (("val", val), ("train", train)):
        write_jsonl(f"{args.out}/{name}.jsonl", (problems[i] for i in part))
    others = lessons or {*ids[args.val + args.train :]}
    sft = [{key: row[key] for key in ("statement", "completion")} for row in proved if row["id"] in others]
    write_jsonl(args.sft, sft)
    count = len({row["statement"] for row in sft})
    told = f"{len(val)} val, {len(train)} train, {count} theorems with {len(sft)} proofs to learn from"
    print(f"Lean accepts {len(proved)} of {len(rows)} proofs: {told}")
