"""Is each completion a proof? Lean 4 itself decides: one process per batch of completions, no REPL, no state.

    python verify.py samples.jsonl --out verified.jsonl --workers 2                             # Lean from the wheel, toy prelude
    python verify.py samples.jsonl --out verified.jsonl --follow                                # while sample.py is still writing
    python verify.py samples.jsonl --out verified.jsonl --lean "lake env lean" --project DIR --workers 32      # with Mathlib
    python tools/self_test.py --lean "lake env lean" --project DIR                              # is this installation sound?

Reads: statement (a theorem that ends with `:= by`), completion, and where present header (the file's first lines, default
       Mathlib's; the wheel has its own), finish_reason ("length" is a truncated proof), template ("deepseek": must close
       its ``` fence). What precedes a fence is the proof; text after the fence makes it wrong.
Adds:  verdict   "proved", "rejected", "timeout", or "error": the verifier or the problem is at fault, not the proof
       reward    1.0 for proved, 0.0 for rejected and timeout, null for error
       message   why not, in Lean's words where they are Lean's
       seconds   its share of the Lean process that decided

What is trusted is Lean's kernel and its list of axioms. What they cannot see, a lexical filter stops beforehand. A run that
was stopped is continued by the same command: what is verified already stands in OUT.part-HASH.
"""

import argparse
import bisect
import collections
import contextlib
import glob
import hashlib
import itertools
import json
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from tqdm import tqdm

from lib import dojo
from lib.cli import fail, flags, number, printable
from lib.jsonl import cannot_write, check_out, numbered_rows, open_jsonl
from lib.lean import Lean, find_lean, run_lean, words_of
from lib.lexer import forbidden, theorem_name
from lib.verdicts import Key, Verdict, cached

AXIOMS = {"propext", "Classical.choice", "Quot.sound"}  # Lean's own three: everything in Mathlib may use them
GAP = " sorry"  # as a proof it shows whether the statement is one

# ---- the lexical filter ----


def proof_or_verdict(row: dict) -> tuple[str, tuple[str, str] | None]:
    """(proof, None), or (text, (verdict, message)) where Lean need not be asked: the fence rule, the filter, the statement."""
    proof, fence, after = row["completion"].partition("```")
    if row.get("finish_reason") == "length":
        return proof, ("rejected", "truncated: the completion reached its length limit")
    if row.get("template") == "deepseek" and not fence:
        return proof, ("rejected", "no closing fence")
    if after.strip():
        return proof, ("rejected", "text after the closing fence")
    if re.match(r"[\w'!?.]", proof) and not row["statement"][-1:].isspace():
        return proof, ("rejected", "a blank is missing after 'by'")  # by + _elab is another word
    if reason := forbidden(proof):
        return proof, ("rejected", reason)
    try:
        theorem_name(row["statement"])
    except ValueError as error:
        return proof, ("error", f"bad statement: {error}")
    return proof, None


# ---- Lean ----


def region(statement: str, proof: str, space: str) -> str:
    """One candidate's lines: a namespace of its own, and Lean's list of the axioms that the theorem rests on.

    The name is random, so no neighbour can be named; it starts with an underscore, which hides it from library search."""
    return (
        f"namespace {space}\n{statement}{proof.rstrip()}\n\nend {space}\n"
        f"set_option pp.fullNames true in #print axioms {space}.{theorem_name(statement)}\n"
    )


def judge_batch(
    batch: list[Key], lean: Lean, timeout: float, stop: threading.Event | None = None
) -> dict[Key, Verdict]:
    """{key: (verdict, message, seconds)} for a list of keys (header, statement, proof) with one header."""
    verdicts, to_do = {}, [(batch, True)]
    while to_do and not (stop and stop.is_set()):
        decided, again = judge_once(*to_do.pop(), lean, timeout, stop)
        verdicts.update(decided)
        to_do += again
    return verdicts


def judge_misplaced(
    batch: list[Key], first_try: bool, error: str, lean: Lean, timeout: float, stop: threading.Event | None
) -> tuple[dict[Key, Verdict], list]:
    """As judge_once, for a batch with an error before its first statement. The header is at fault if a `sorry` behind it has that
    error too; else it is a proof's, which Lean cannot place (`apply Or.inl`, new line, `.2.elim`), and halving finds it."""
    alone = (*batch[0][:2], GAP)
    if batch == [alone] or judge_once([alone], first_try, lean, timeout, stop)[0].get(alone, ("", ""))[
        1
    ].startswith("bad header"):
        return {key: ("error", f"bad header: {error}", 0.0) for key in batch}, []
    if len(batch) == 1:
        return {batch[0]: ("rejected", error, 0.0)}, []
    return {}, [(batch[: len(batch) // 2], first_try), (batch[len(batch) // 2 :], first_try)]


def judge_once(
    batch: list[Key], first_try: bool, lean: Lean, timeout: float, stop: threading.Event | None
) -> tuple[dict[Key, Verdict], list]:
    """One Lean process for a batch: (verdicts, [(keys to judge again, whether that is their first try), ...]).

    First in the file stands each distinct statement with `sorry`: where that fails the problem is bad, not its proofs.
    A candidate without an error of its own that is not proved either, or that has an error on the line of its `namespace`
    (left over from its neighbour), is judged again alone. Where the process ran out of time or died, the first candidate
    that it had not finished is the culprit: those before it keep their verdicts, those after it are judged again."""
    started, tag = time.monotonic(), "_c" + secrets.token_hex(8)
    statements = list(dict.fromkeys(statement for _, statement, _ in batch))
    texts = [(statement.rstrip(), GAP) for statement in statements] + [
        (statement, proof) for _, statement, proof in batch
    ]
    header = batch[0][0].rstrip() + "\n"
    regions = [region(statement, proof, f"{tag}_{number}") for number, (statement, proof) in enumerate(texts)]
    first_lines = list(
        itertools.accumulate(
            (text.count("\n") + bool(lean.sign) for text in regions), initial=header.count("\n") + 1
        )
    )
    last_lines = [line - 1 - bool(lean.sign) for line in first_lines[1:]]  # those of `#print axioms`
    source = header + "".join(
        text + lean.sign.format(f"{tag}_{number}.") for number, text in enumerate(regions)
    )
    messages, trouble = run_lean(source, lean, timeout, tag, stop)

    axioms: list[set[str] | None] = [None] * len(texts)
    errors, spilled, finished = [[] for _ in texts], set(), -1
    for message in messages:
        line, said = message["pos"]["line"], message["data"]
        number = bisect.bisect_right(first_lines, line) - 1
        mine = f"{tag}_{number}."  # what nobody else can write
        data = re.sub(rf"{tag}_\d+\.?", "", said)
        if number < 0 and message["severity"] == "error":
            return judge_misplaced(batch, first_try, data, lean, timeout, stop)
        if number < 0 or number == len(texts) or line > last_lines[number]:
            sign = re.fullmatch(rf"{tag}_(\d+)\.", said)
            finished = max(finished, int(sign[1])) if sign else finished
            continue
        if line == last_lines[number]:
            finished = max(finished, number)
            found = re.match(
                r"'.*' (?:does not depend on any axioms|depends on axioms: \[(.*)\])", data, re.S
            )
            if message["severity"] == "information" and found and mine in said:
                axioms[number] = set(re.split(r",\s*", found[1])) if found[1] else set()
        if message["severity"] == "error":
            errors[number].append(data)
            if line == first_lines[number]:
                spilled.add(number)

    if not trouble and finished < len(texts) - 1:
        trouble = f"Lean did not come to the end of its file: {words_of(messages)}"
    culprit = finished + 1 if trouble else len(texts)
    lost = bool(trouble and lean.sign)  # the messages that wait for the end
    seconds = (time.monotonic() - started) / len(batch)
    verdicts, again, died, after = {}, [], [], []
    for number, key in enumerate(batch, len(statements)):
        _, statement, _ = key
        stated = statements.index(
            statement
        )  # the number of its statement's region, as `number` is that of its own
        if stated < culprit and not lost and (errors[stated] or axioms[stated] is None):
            verdicts[key] = (
                "error",
                f"bad statement: {(errors[stated] or ['Lean does not accept it'])[0]}",
                seconds,
            )
        elif culprit in (number, stated):
            if trouble == "timeout":
                verdicts[key] = (
                    ("timeout", "timeout", timeout)
                    if number == culprit
                    else ("error", "bad statement: timeout", seconds)
                )
            elif first_try or number == culprit and len(batch) > 1:
                died.append(key)
            else:
                verdicts[key] = "error", trouble or "", seconds
        elif number > culprit or lost:
            after.append(key)
        elif not errors[number] and (named := axioms[number]) is not None and named <= AXIOMS:
            verdicts[key] = "proved", "", seconds
        elif len(batch) > 1 and key[2] != GAP and (not errors[number] or number in spilled):
            again.append(([key], first_try))
        else:
            extra = ", ".join(sorted((axioms[number] or set()) - AXIOMS)) or "none: no theorem was added"
            verdicts[key] = "rejected", errors[number][0] if errors[number] else f"axioms: {extra}", seconds
    return verdicts, again + [(keys, first) for keys, first in ((died, False), (after, True)) if keys]


# ---- rows ----

ADDED = ("verdict", "reward", "message", "seconds")
REWARD = {"proved": 1.0, "rejected": 0.0, "timeout": 0.0, "error": None}


def header_of(row: dict, lean: Lean) -> str:
    """The first lines of the row's file."""
    return lean.header if lean.fixed else row.get("header", lean.header)


class Verifier(NamedTuple):
    """What judges the completions of a run: see start_verifier."""

    lean: Lean
    judge: Callable[..., dict[Key, Verdict]]
    workers: int
    batch: int
    timeout: float


def verify_stream(
    rows: Iterable[dict | None], verifier: Verifier, progress: bool = True, total: int | None = None
) -> Iterator[dict]:
    """Yields the rows, in order, with verdict, reward, message and seconds, while `rows` may still be in the making: a batch
    goes to Lean when it is full, and what there is of one when `rows` has no more, or none for the moment (it yields None).
    Equal proofs of equal statements are verified once."""
    lean, judge, workers, batch, timeout = verifier
    batch = 1 if lean.blind else batch
    queue, running = (
        collections.deque(),
        [],
    )  # (row, key, slot, early verdict) in order; slot: [], with Lean [its batch's future]
    slots, collected, told = {}, {}, False  # key: slot; header: {key: slot} of the batch in the making
    stop, pool, bar = (
        threading.Event(),
        ThreadPoolExecutor(workers),
        tqdm(total=total, desc="verify", unit="row", disable=not progress),
    )

    def submit(header, parts):
        keys = list(collected.pop(header).items())
        for k in range(parts):
            some = dict(keys[len(keys) * k // parts : len(keys) * (k + 1) // parts])
            if some:
                running.append(pool.submit(judge, list(some), lean, timeout, stop))
            for slot in some.values():
                slot.append(running[-1])

    def verified(longest):
        """Rows from the front of the queue that are ready; waits for the first one while more than `longest` are queued."""
        while queue and (len(queue) > longest or queue[0][2] and queue[0][2][0].done()):
            row, key, slot, early = queue.popleft()
            if not slot:
                submit(key[0], 1)
            verdict, message, seconds = slot[0].result()[key]
            if early and not message.startswith("bad "):
                (verdict, message), seconds = early, 0.0
            bar.update()
            yield dict(
                row, verdict=verdict, reward=REWARD[verdict], message=message[:300], seconds=round(seconds, 4)
            )

    try:
        for row in itertools.chain(rows, [None]):
            running[:] = [future for future in running if not future.done()]
            if row is None:
                idle = workers - len(running)
                for header in list(collected) if idle > 0 else ():
                    submit(header, idle)
            else:
                header = header_of(row, lean)
                if lean.fixed and "header" in row and not told:
                    told = (
                        tqdm.write(
                            "warning: the wheel's Lean puts its own header in the place of the rows'",
                            file=sys.stderr,
                        )
                        or True
                    )
                proof, early = proof_or_verdict(row)
                key = (
                    header,
                    row["statement"],
                    GAP if early else proof,
                )  # a statement that is none makes no proof a wrong one
                slot = slots.get(key)
                if early and early[0] == "error":  # there is nothing to ask Lean
                    slot = [Future()]
                    slot[0].set_result({key: (*early, 0.0)})
                elif slot is None:
                    slot = slots[key] = collected.setdefault(header, {})[key] = []
                    if len(slots) > 10**5:  # memory: what was so long ago is verified anew
                        del slots[next(iter(slots))]
                    if len(collected[header]) == batch:
                        submit(header, 1)
                queue.append((row, key, slot, early))
            yield from verified(8 * workers * batch)
        for header in list(collected):
            submit(header, workers)
        yield from verified(0)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        bar.close()


def verify_rows(
    rows: list[dict],
    lean: Lean | str = "auto",
    workers: int = 2,
    batch: int = 128,
    timeout: float = 60.0,
    progress: bool = True,
    judge: Callable[..., dict[Key, Verdict]] = judge_batch,
) -> list[dict]:
    """verify_stream for a list of rows, as a list. lean: --lean's text, or what find_lean returned for it."""
    lean = find_lean(lean) if isinstance(lean, str) else lean
    return list(verify_stream(rows, Verifier(lean, judge, workers, batch, timeout), progress, len(rows)))


def follow(path: str) -> Iterator[str | None]:
    """Yields the lines of a file that sample.py is writing, as they come, and None where there is none for the moment. Until
    it is complete the file is called PATH.part-HASH."""

    def complete():
        return os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(file.fileno()))

    while not (names := [path] * os.path.exists(path) + glob.glob(glob.escape(path) + ".part-*")):
        time.sleep(0.2)
        yield None
    name, rest = max(names, key=os.path.getmtime), b""
    print(f"following {name}, last written {time.time() - os.path.getmtime(name):.0f} s ago", file=sys.stderr)
    with open(name, "rb") as file:
        while True:
            last = complete()  # before the reading, so that nothing can come after it
            *lines, rest = (rest + (piece := file.read(1 << 20))).split(b"\n")
            yield from (line.decode() + "\n" for line in lines)
            if not piece and last:
                break
            if not piece:
                if not os.path.exists(name) and not complete():
                    fail(f"{name} was taken away while it was followed; run the same command again")
                time.sleep(0.2)
                yield None
    if rest:
        yield rest.decode()


def checked(path: str, lines: Iterable[str | None] | None = None) -> Iterator[Any]:
    """The rows of sample.py's file; ends the program with the line where one is not fit to be verified."""
    number = 0
    for where, row in numbered_rows(path, "statement", "completion", optional=["header"], lines=lines):
        number += row is not None
        if row and not re.search(r":=\s*by\s*\Z", row["statement"]):
            fail(f"{where}: the statement does not end in ':= by'; end it so")
        yield row
    if not number:
        fail(f"{path} has no rows; run sample.py first")


def part_name(out: str, settings: list) -> str:
    """The name of the output while it is not complete: another one for every other way to come to verdicts."""
    return f"{out}.part-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]}"


def resumed(part: str, rows: Iterator) -> tuple[list[str], Iterator]:
    """(verdicts that an interrupted run has left in `part`, the rest of rows). What does not fit the rows is cut off."""
    verdicts, length = [], 0
    with open(part, "ab+") as file:
        file.seek(0)
        for line in file:
            row, before = next((row for row in rows if row), {}), {}
            with contextlib.suppress(ValueError):
                before = json.loads(line)  # the last line may be half written
            same = (
                row
                and isinstance(before, dict)
                and all(name in before for name in ADDED)
                and line.endswith(b"\n")
            )
            if not same or dict(before, **dict.fromkeys(ADDED)) != dict(row, **dict.fromkeys(ADDED)):
                rows = itertools.chain([row] if row else [], rows)
                break
            verdicts.append(before["verdict"])
            length += len(line)
        file.truncate(length)
    return verdicts, rows


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags that train.py and tools/self_test.py share."""
    parser.add_argument(
        "--lean", default="auto", help="auto: the wheel's Lean, or a command such as 'lake env lean'"
    )
    parser.add_argument(
        "--verifier",
        choices=["lean", "lean-dojo"],
        default="lean",
        help="what asks Lean: this file, or the package lean-dojo",
    )
    parser.add_argument("--project", help="the Lake project where Lean runs (default: the working folder)")
    parser.add_argument(
        "--header",
        help="first lines for rows without a header of their own (default: Mathlib's; '' for none)",
    )
    parser.add_argument(
        "--verdicts", help="SQLite file that keeps what was proved or rejected, for other runs to share"
    )
    parser.add_argument(
        "--workers", type=number(int, 1, high=4096), default=os.cpu_count(), help="Lean processes at a time"
    )
    parser.add_argument(
        "--verify-batch", type=number(int, 1), default=128, help="completions per Lean process"
    )
    parser.add_argument(
        "--timeout", type=number(float, 0, exclusive=True), default=60.0, help="seconds for one proof"
    )
    parser.add_argument(
        "--max-heartbeats", type=number(int, 1), default=200000, help="Lean's own limit for one proof"
    )
    parser.add_argument(
        "--memory-gb",
        type=number(float, 0, exclusive=True),
        default=16.0,
        help="address space of one Lean process",
    )


def start_verifier(args: argparse.Namespace, problems: Iterable[dict]) -> Verifier:
    """The verifier that the flags ask for, tried out; problems: rows with all the statements that it will see."""
    judge = judge_batch
    if args.verifier == "lean-dojo":
        dojo.check_dojo(args.project or ".")
    if args.verdicts:
        cached(args.verdicts, judge)  # fails where the file is none of its own
    lean = find_lean(args.lean, args.project, args.header, args.memory_gb, args.max_heartbeats)
    if args.verifier == "lean-dojo":
        statements = {(header_of(row, lean), row["statement"]) for row in problems}
        judge = dojo.dojo_judge(statements, lean, judge_batch, args.timeout, args.workers)
    judge = cached(args.verdicts, judge) if args.verdicts else judge
    return Verifier(lean, judge, args.workers, args.verify_batch, args.timeout)


def main():
    parser = flags("Verify completions with Lean 4.")
    parser.add_argument("rows", help="JSONL from sample.py")
    parser.add_argument(
        "--out", required=True, help="JSONL to write; called OUT.part-HASH until it is complete"
    )
    parser.add_argument(
        "--follow", action="store_true", help="verify the rows while sample.py is still writing them"
    )
    add_flags(parser)
    args = parser.parse_args()
    check_out(args.out, args.rows, args.verdicts)
    total, errors = None, []
    if args.verifier == "lean-dojo" and args.follow:
        fail("lean-dojo needs all problems before it judges the first; leave --follow or --verifier out")
    if not args.follow:
        total = sum(1 for _ in checked(args.rows))  # a bad row is told of before hours of work
    verifier = start_verifier(args, () if args.follow else checked(args.rows))
    part = part_name(
        args.out, [args.lean, args.project, args.header, args.timeout, args.max_heartbeats, args.verifier]
    )
    try:
        verdicts, rows = resumed(part, checked(args.rows, follow(args.rows) if args.follow else None))
        with open_jsonl(part, "a") as file:
            for row in verify_stream(rows, verifier, total=total and total - len(verdicts)):
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                file.flush()
                verdicts.append(row["verdict"])
                errors += [row["message"]] * (row["verdict"] == "error")
        os.replace(part, args.out)
    except OSError as error:
        cannot_write(args.out, error)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    print(f"{len(verdicts)} rows:", ", ".join(f"{verdicts.count(one)} {one}" for one in REWARD))
    if errors:
        print(
            f"warning: no verdict on {len(errors)} rows (reward null); the first says: {printable(errors[0])}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
