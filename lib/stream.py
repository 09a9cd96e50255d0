"""Judging rows as they arrive: batches for threads, results in order, a file that is still being written."""

import collections
import glob
import importlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from tqdm import tqdm

from lib.cli import cause, fail

ADDED = "verdict", "reward", "message", "seconds"  # what a verifier adds to a row


class Verifier(NamedTuple):
    """What judges the rows of a run: verify.lean_verifier or python_verifier."""

    # For each row of a batch, the keys to add to it.
    judge: Callable[[list[dict], threading.Event], list[dict]]
    key: Callable[[dict], tuple]  # begins with the header; rows with the same key are judged once
    workers: int
    batch: int


def verify_stream(
    rows: Iterable[dict | None], verifier: Verifier, progress: bool = True, total: int | None = None
) -> Iterator[dict]:
    """Yields the rows, in order, with what the verifier adds, even while `rows` is still being produced.

    A batch is consecutive rows with one header. It is judged when it is full; a partial one is judged when
    `rows` ends or has nothing for the moment (it yields None)."""
    queue: collections.deque = collections.deque()  # (row, [future of its batch, its place there])
    batch: dict[tuple, tuple[dict, list]] = {}  # the distinct rows that are not yet with a worker
    running: list[Future] = []
    stop, pool = threading.Event(), ThreadPoolExecutor(verifier.workers)
    bar = tqdm(total=total, desc="verify", unit="row", disable=not progress)

    def submit(workers):
        waiting = list(batch.values())
        batch.clear()
        for k in range(workers):
            part = waiting[len(waiting) * k // workers : len(waiting) * (k + 1) // workers]
            if part:
                running.append(pool.submit(verifier.judge, [row for row, _ in part], stop))
            for place, (_, slot) in enumerate(part):
                slot += [running[-1], place]

    def verified(longest):
        """The rows at the front of the queue that are ready; waits while more than `longest` are queued."""
        while queue and (len(queue) > longest or queue[0][1] and queue[0][1][0].done()):
            row, slot = queue.popleft()
            if not slot:
                submit(1)
            future, place = slot
            try:
                added = future.result()[place]
            except SystemExit as error:  # fail() in a worker
                fail(f"{error}")
            bar.update()
            yield {**row, **added}

    try:
        for row in rows:
            running = [future for future in running if not future.done()]
            if row is None and len(running) < verifier.workers:
                submit(verifier.workers - len(running))
            if row is not None:
                key = verifier.key(row)
                if batch and key[0] != next(iter(batch))[0]:
                    submit(1)
                _, slot = batch.setdefault(key, (row, []))
                queue.append((row, slot))
                if len(batch) == verifier.batch:
                    submit(1)
            yield from verified(8 * verifier.workers * verifier.batch)
        submit(verifier.workers)
        yield from verified(0)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        bar.close()


def follow(path: str) -> Iterator[str | None]:
    """Yields the lines of a file that sample.py is writing, and None if there is none for the moment.

    Until the file is complete it is called PATH.part-HASH."""

    def complete():
        return os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(file.fileno()))

    while not (names := [path] * os.path.exists(path) + glob.glob(glob.escape(path) + ".part-*")):
        time.sleep(0.2)
        yield None
    name, rest = max(names, key=os.path.getmtime), b""
    print(f"following {name}, last written {time.time() - os.path.getmtime(name):.0f} s ago", file=sys.stderr)
    with open(name, "rb") as file:
        while True:
            last = complete()  # asked before reading, so that nothing can come after it
            rest += file.readline()
            if rest.endswith(b"\n"):
                yield rest.decode()
                rest = b""
            elif last:
                break
            else:
                if not os.path.exists(name) and not complete():
                    fail(f"{name} was removed while it was being followed; run the same command again")
                time.sleep(0.2)
                yield None
    if rest:
        yield rest.decode()


def python_verifier(name: str, batch: int) -> Verifier:
    """The verifier behind `--verifier MODULE:FUNCTION`, which gives each row of a list a reward, or None.

    It runs in one thread, beside the sampler, and sees copies of the rows, at most `batch` at a time."""
    module, _, function = name.partition(":")
    hint = "give lean, lean-dojo, or MODULE:FUNCTION with a module of the working folder"
    sys.path.append(os.getcwd())
    try:
        judge = getattr(importlib.import_module(module), function or "(a function)")
    except Exception as error:
        fail(f"cannot load --verifier {name} ({cause(error)}); {hint}")

    def judge_rows(rows, stop):
        start = time.monotonic()
        try:
            rewards = judge([dict(row) for row in rows])
            rewards = [None if reward is None else float(reward) for reward in rewards]
        except Exception as error:
            kind = type(error).__name__
            fail(f"--verifier {name} failed on {len(rows)} rows ({kind}: {cause(error)}); fix it")
        if len(rewards) != len(rows):
            fail(f"--verifier {name} gave {len(rewards)} rewards for {len(rows)} rows; give each row one")
        if bad := [reward for reward in rewards if reward is not None and not math.isfinite(reward)]:
            fail(f"--verifier {name} gave the reward {bad[0]}; give finite numbers, or None for no reward")
        seconds = round((time.monotonic() - start) / len(rows), 4)
        verdicts = ["error" if reward is None else "scored" for reward in rewards]
        return [dict(zip(ADDED, (*pair, "", seconds))) for pair in zip(verdicts, rewards)]

    return Verifier(judge_rows, lambda row: ("", id(row)), 1, batch)
