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
    theorem: Callable[[int], tuple[Hashable, Any] | None],
    chunk: int,
    args: argparse.Namespace,
    count: int,
    skip: int = 0,
    known: Container[Hashable] = (),
) -> list[tuple[Hashable, Any]]:
    """[(form, the rest)] of `count` theorems, in the order of their seeds, without the first `skip` seeds.

    theorem: the (form, the rest) of a seed, or None; a process takes `chunk` seeds at a time. Of theorems
    with equal forms the first is kept; forms in `known` are skipped."""
    make_folder(args.out)  # before the work, so that a bad folder costs no time
    make_folder(os.path.dirname(args.sft))
    found: dict[Hashable, Any] = {}
    start = args.seed * 10**9 + skip
    with ProcessPoolExecutor(args.workers) as pool, tqdm(total=count, desc="theorems") as bar:
        while len(found) < count:
            seeds = range(start, start + 4 * args.workers * chunk)
            start = seeds.stop
            for made in pool.map(theorem, seeds, chunksize=chunk):
                if made and made[0] not in known:
                    found.setdefault(*made)
            bar.update(min(len(found), count) - bar.n)
    return list(found.items())[:count]


def write_theorems(
    rows: list[dict], keys: tuple[str, ...], args: argparse.Namespace, lessons: Set[str] = frozenset()
) -> None:
    """Splits what Lean proved: val.jsonl and train.jsonl with these keys, other theorems' proofs for SFT.

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
