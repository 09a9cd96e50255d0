"""Is each completion a proof? Lean 4 itself decides: one process for a batch, no REPL, no state.

    python verify.py samples.jsonl --out verified.jsonl                     # Lean from the wheel
    python verify.py samples.jsonl --out verified.jsonl --follow            # while sample.py is still writing
    python verify.py ... --lean "lake env lean" --project DIR --workers 32  # a toolchain with Mathlib
    python verify.py ... --verifier my_task:judge                           # rewards from a Python function

Reads: statement (ends with `:= by`), completion and, if there, header (first lines, default Mathlib's; the
       wheel has its own), finish_reason ("length": truncated, so wrong), template ("deepseek": must close its
       ``` fence). What precedes a fence is the proof; text after it makes the completion wrong.
Adds:  verdict   "proved", "rejected", "timeout", or "error": the fault is the problem's or the machine's
       reward    1.0 for proved, 0.0 for rejected and timeout, null for error
       message   why not, in Lean's words where they are Lean's
       seconds   its share of the Lean process that decided

Lean's kernel and its list of axioms are trusted. A lexical filter stops what they cannot see (lib/lexer.py).
The same command continues a run that was stopped.

MODULE:FUNCTION judges any other task: it gets a list of rows and returns a reward for each, a finite number
or None. The verdict is then "scored", or "error" for None; Lean is not needed.
"""

import argparse
import collections
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lib import dojo
from lib.cli import fail, flags, number, printable, run
from lib.jsonl import check_out, numbered_rows, read_jsonl, resume_jsonl
from lib.lean import KILLED, Lean, Stop, find_lean, header_of
from lib.lean_file import SORRY, Findings, bad_statements, run_batch, with_sorry
from lib.lexer import forbidden, single_theorem, theorem_name
from lib.stream import ADDED, Verifier, follow, python_verifier, verify_stream
from lib.verdicts import Key, Verdict, cached

AXIOMS = {"propext", "Classical.choice", "Quot.sound"}  # Lean's own three: everything in Mathlib may use them
REWARD = {"proved": 1.0, "rejected": 0.0, "timeout": 0.0, "error": None}

Verdicts = dict[Key, Verdict]  # (header, statement, proof): (verdict, message, seconds)
Again = list[tuple[list[Key], bool]]  # batches to judge again, each with: is it the first try?


def proof_or_verdict(row: dict) -> tuple[str, tuple[str, str] | None]:
    """(proof, None), or (proof, (verdict, message)) by the statement, the fence rule or the filter."""
    proof, fence, after = row["completion"].partition("```")
    try:
        theorem_name(row["statement"])
    except ValueError as error:
        return proof, ("error", f"bad statement: {error}")
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
    return proof, None


def judge_batch(batch: list[Key], lean: Lean, timeout: float, stop: Stop = None) -> Verdicts:
    """The verdicts on keys with one header.

    Plain theorems share a process. Any other statement may open a scope, declare, set an option or exit: it
    gets a process of its own, and so does each of its candidates."""
    shared = [key for key in batch if single_theorem(key[1])]
    verdicts = judge_in_turn(shared, lean, timeout, stop) if shared else {}
    for key in [key for key in batch if not single_theorem(key[1])]:
        stated = with_sorry(key)
        if stated not in verdicts:
            verdicts |= judge_in_turn([stated], lean, timeout, stop)
        if stated in verdicts and verdicts[stated][0] == "error":
            verdicts[key] = verdicts[stated]
        else:
            verdicts |= judge_in_turn([key], lean, timeout, stop)
    return {key: verdicts[key] for key in batch if key in verdicts}


def judge_in_turn(batch: list[Key], lean: Lean, timeout: float, stop: Stop) -> Verdicts:
    """Judges a batch in one process, then judges in further ones whatever that left undecided."""
    verdicts: Verdicts = {}
    to_do = [(batch, True)]
    while to_do and not (stop and stop.is_set()):
        decided, again = judge_once(*to_do.pop(), lean, timeout, stop)
        verdicts |= decided
        to_do += again
    return verdicts


def judge_once(
    batch: list[Key], first_try: bool, lean: Lean, timeout: float, stop: Stop
) -> tuple[Verdicts, Again]:
    """One Lean process for a batch: the file, Lean's findings, the decision."""
    found = run_batch(batch, lean, timeout, stop)
    if found.errors[0]:
        return judge_misplaced(batch, first_try, found.errors[0][0], lean, timeout, stop)
    return decide(batch, first_try, found, timeout)


def judge_misplaced(
    batch: list[Key], first_try: bool, error: str, lean: Lean, timeout: float, stop: Stop
) -> tuple[Verdicts, Again]:
    """Handles an error that Lean reports at the header. If `sorry` has it too, the header is bad. If not, a
    proof made Lean lose its place (`apply Or.inl`, new line, `.2.elim`), and halving the batch finds it."""
    alone = with_sorry(batch[0])
    probe = {} if batch == [alone] else judge_once([alone], first_try, lean, timeout, stop)[0]
    if batch == [alone] or alone in probe and probe[alone][1].startswith("bad header"):
        return {key: ("error", f"bad header: {error}", 0.0) for key in batch}, []
    if len(batch) == 1:
        return {batch[0]: ("rejected", error, 0.0)}, []
    return {}, [(batch[: len(batch) // 2], first_try), (batch[len(batch) // 2 :], first_try)]


def decide(batch: list[Key], first_try: bool, found: Findings, timeout: float) -> tuple[Verdicts, Again]:
    """The first rule that fits a candidate decides:

    1. its statement has an error          error; but a batch of several statements is first split by them
    2. Lean ended there or in the header   that is at fault: once more, unless it timed out; then error
    3. Lean ran out of time in the proof   timeout
    4. Lean crashed in the proof           once more, alone; then rejected, or error if the machine killed it
    5. Lean reported nothing on the proof  again, without the one where it ended
    6. no error, no axioms but Lean's own  proved, if Lean came to the end of what stands before it
    7. not proved, no error of its own     again, alone: a neighbour may be at fault
    8. else                                rejected
    """
    bad = bad_statements(found)
    if bad and len({statement for _, statement, _ in batch}) > 1:
        parts = [[key for key in batch if key[1] == statement] for statement in bad]
        parts.append([key for key in batch if key[1] not in bad])
        return {}, [(part, first_try) for part in parts if part]
    places = {key: place for place, key in enumerate(found.keys, 1)}  # in the file; 0: the header
    verdicts: Verdicts = {}
    alone, once_more, after = [], [], []
    for key in batch:
        place, stated = places[key], places.get(with_sorry(key), 0)
        errors, axioms, seconds = found.errors[place], found.axioms[place], found.seconds
        undisturbed = place - 1 in found.reached  # else what stands before may have swallowed a part of it
        if key[1] in bad:  # rule 1
            verdicts[key] = "error", bad[key[1]], seconds
        elif found.ended in (0, stated) and first_try and found.trouble != "timeout":  # rule 2
            once_more.append(key)
        elif found.ended in (0, stated):
            what = "statement" if found.ended else "header"
            verdicts[key] = "error", f"bad {what}: {found.trouble}", seconds
        elif place == found.ended and found.trouble == "timeout":  # rule 3
            verdicts[key] = "timeout", "timeout", timeout
        elif place == found.ended and (first_try or len(batch) > 1):  # rule 4
            once_more.append(key)
        elif place == found.ended:
            verdict = "error" if f"{found.trouble}".startswith(KILLED) else "rejected"
            verdicts[key] = verdict, f"crash: {found.trouble}", seconds
        elif place > found.ended or found.lost:  # rule 5
            after.append(key)
        elif undisturbed and not errors and axioms is not None and axioms <= AXIOMS:  # rule 6
            verdicts[key] = "proved", "", seconds
        elif len(batch) > 1 and key[2] != SORRY and not (undisturbed and errors):  # rule 7
            alone.append(key)
        else:  # rule 8
            extra = ", ".join(sorted((axioms or set()) - AXIOMS)) or "none: no theorem was added"
            verdicts[key] = "rejected", errors[0] if errors else f"axioms: {extra}", seconds
    again = [([key], first_try) for key in alone]
    return verdicts, again + [(keys, first) for keys, first in ((once_more, False), (after, True)) if keys]


# ---- rows ----


def lean_verifier(
    lean: Lean, judge: Callable = judge_batch, workers: int = 2, batch: int = 128, timeout: float = 60.0
) -> Verifier:
    """The verifier of Lean proofs. judge: judge_batch or a replacement."""

    def row_key(row):
        flags = row.get("finish_reason"), row.get("template")
        return header_of(row, lean), row["statement"], row["completion"], *flags

    def judge_rows(rows, stop):
        early = [proof_or_verdict(row) for row in rows]
        # Lean checks the statement even if the filter stops the proof: if it is bad, the verdict is error.
        keys = [(*row_key(row)[:2], SORRY if known else proof) for row, (proof, known) in zip(rows, early)]
        asked = dict.fromkeys(key for key, (_, known) in zip(keys, early) if not known or known[0] != "error")
        judged = judge(list(asked), lean, timeout, stop) if asked else {}
        added = []
        for key, (_, known) in zip(keys, early):
            verdict, message, seconds = judged.get(key, ("error", "", 0.0))
            if known and not message.startswith("bad "):
                (verdict, message), seconds = known, 0.0
            elif lean.fixed and message.startswith("bad statement"):
                message = f"{message[:220]} (the wheel's Lean knows only Prelude.lean: see --project, --lean)"
            added.append(dict(zip(ADDED, (verdict, REWARD[verdict], message[:300], round(seconds, 4)))))
        return added

    return Verifier(judge_rows, row_key, workers, 1 if lean.blind else batch)


def verify_rows(
    rows: list[dict], lean: Lean | str = "auto", progress: bool = True, **options: Any
) -> list[dict]:
    """verify_stream for a list of rows. lean: a Lean, or the text of --lean; options: see lean_verifier."""
    verifier = lean_verifier(find_lean(lean) if isinstance(lean, str) else lean, **options)
    return list(verify_stream(rows, verifier, progress, len(rows)))


# ---- the command ----


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of the verifier, which train.py and tools/self_test.py have too."""
    add = parser.add_argument_group("verifier").add_argument
    positive, count = number(float, 0, exclusive=True), number(int, 1)
    add("--verifier", default="lean", help="lean, lean-dojo, or MODULE:FUNCTION, a Python function")
    add("--lean", default="auto", help="auto: the wheel's Lean; or a command such as 'lake env lean'")
    add("--project", help="the Lake project where Lean runs, or a folder with Prelude.lean for auto")
    add("--header", help="first lines for rows without a header (default: Mathlib's; '' for none)")
    add("--verdicts", help="SQLite file that caches the verdicts proved and rejected, shared between runs")
    add("--workers", type=number(int, 1, high=4096), default=os.cpu_count(), help="Lean processes at a time")
    add("--verify-batch", type=count, default=128, help="completions per Lean process")
    add("--timeout", type=positive, default=60.0, help="seconds for one proof")
    add("--max-heartbeats", type=count, default=200000, help="Lean's own limit for one proof")
    add("--memory-gb", type=positive, default=16.0, help="address space of one Lean process")


def asks_lean(args: argparse.Namespace) -> bool:
    """Whether statements are Lean theorems: not if the verifier is a Python function."""
    return args.verifier in ("lean", "lean-dojo")


def start_verifier(args: argparse.Namespace, problems: Iterable[dict]) -> Verifier:
    """The verifier that the flags ask for, tried out. problems: rows with every statement that will come."""
    if not asks_lean(args):
        return python_verifier(args.verifier, args.verify_batch)
    if args.verifier == "lean-dojo":
        dojo.check_dojo(args.project or ".")
    judge = judge_batch
    if args.verdicts:
        cached(args.verdicts, judge)  # fails at once if the file holds something else
    lean = find_lean(args.lean, args.project, args.header, args.memory_gb, args.max_heartbeats)
    if args.verifier == "lean-dojo":
        statements = [(header_of(row, lean), row["statement"]) for row in problems]
        judge = dojo.judge_with(dojo.trace_problems(statements, lean, judge_batch, args.timeout), judge_batch)
    elif lean.fixed and "header" in next(iter(problems), {}):
        print("warning: the wheel's Lean uses its own header instead of the rows'", file=sys.stderr)
    judge = cached(args.verdicts, judge) if args.verdicts else judge
    return lean_verifier(lean, judge, args.workers, args.verify_batch, args.timeout)


def samples(args: argparse.Namespace) -> Iterator[Any]:
    """sample.py's rows, and None while --follow waits; ends the program if one cannot be verified."""
    lines, where = follow(args.rows) if args.follow else None, None
    for where, row in numbered_rows(args.rows, "statement", "completion", optional=["header"], lines=lines):
        if row and asks_lean(args) and not re.search(r":=\s*by\s*\Z", row["statement"]):
            fail(f"{where}: the statement does not end in ':= by'; add that")
        yield row
    if not where:
        fail(f"{args.rows} has no rows; run sample.py first")


def main():
    parser = flags("Verify completions with Lean 4.")
    add = parser.add_argument
    add("rows", help="JSONL from sample.py")
    add("--out", required=True, help="JSONL to write; called OUT.part-HASH until it is complete")
    add("--follow", action="store_true", help="verify while sample.py is still writing the rows")
    add_flags(parser)
    args = parser.parse_args()
    check_out(args.out, args.rows, args.verdicts)
    if args.follow and args.verifier == "lean-dojo":
        fail("lean-dojo needs all problems before it judges the first; leave --follow or --verifier out")
    total = None if args.follow else sum(1 for _ in samples(args))  # tells of a bad row before hours of work
    verifier = start_verifier(args, [] if args.follow else samples(args))
    # The rows may have been verified before, by other means.
    inputs = ({key: row[key] for key in row if key not in ADDED} for row in samples(args) if row)

    def rows_after(done):
        rows = samples(args)
        for _ in range(done):
            next(row for row in rows if row is not None)
        return verify_stream(rows, verifier, total=total and total - done)

    settings = [args.lean, args.project, args.header, args.timeout, args.max_heartbeats, args.verifier]
    resume_jsonl(args.out, settings, inputs, rows_after)
    verdicts, messages = collections.Counter(), {}
    for row in read_jsonl(args.out):
        verdicts[row["verdict"]] += 1
        messages.setdefault(row["verdict"], row["message"])
    names = REWARD if asks_lean(args) else ("scored", "error")
    print(f"{verdicts.total()} rows:", ", ".join(f"{verdicts[name]} {name}" for name in names))
    if count := verdicts["error"]:
        said = printable(" ".join(messages["error"].split()))
        print(f"warning: no verdict on {count} rows (reward null): {said}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
