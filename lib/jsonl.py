"""JSONL in and out: checked rows, files that appear when they are complete, runs that can be continued."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from lib.cli import cause, fail


def is_text(value: Any) -> bool:
    """Whether a value is a string that UTF-8 can hold: JSON's escapes allow half a surrogate pair."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold: not true, not 1e999, not 400 digits."""
    return type(value) in (int, float) and abs(value) < 1e300


def is_number_or_null(value: Any) -> bool:
    return value is None or is_number(value)


def is_ids(value: Any) -> bool:
    """Whether a value is a list of token ids, at least one."""
    return isinstance(value, list) and bool(value) and all(type(i) is int and i >= 0 for i in value)


KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("id", "statement", "header", "informal", "completion"), ("text", is_text)),
    **dict.fromkeys(("prompt_ids", "completion_ids"), ("a list of token ids", is_ids)),
    "sample": ("its number in the group", lambda value: type(value) is int and value >= 0),
    "logprobs": ("a list of numbers", lambda value: isinstance(value, list) and all(map(is_number, value))),
    "step": ("a number", is_number),
    **dict.fromkeys(
        ("reward", "advantage", "unique", "kl", "clip_fraction"), ("a number or null", is_number_or_null)
    ),
}


def check_row(where: str, row: dict, keys: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Ends the program if the row lacks one of these keys, or has a value of another kind for it."""
    for key in keys:
        if key not in row:
            fail(f"{where}: the key '{key}' is missing; each row needs {', '.join(keys)}")
    for key in (*keys, *optional):
        kind, fits = KINDS.get(key, ("", lambda value: True))
        if key in row and not fits(row[key]):
            fail(f"{where}: '{key}' is {repr(row[key])[:60]}, not {kind}; mend it (README: the pipeline)")


# ---- reading ----


def parse_line(line: str, where: str) -> dict:
    """The JSON object of a line; ends the program with a sentence if there is none."""
    if line.lstrip().startswith("["):
        fail(f"{where}: a JSON list, not a JSON object a line; tools/problems.py converts lists of problems")
    try:
        row = json.loads(line, parse_constant=int)  # int("NaN") is a ValueError: NaN is not JSON
    except (ValueError, RecursionError):
        csv = "; if this is CSV, tools/problems.py converts problems" if "," in line else ""
        cut = "" if line.endswith("\n") else " (cut short: run the stage that wrote it again)"
        fail(f"{where}: not valid JSON{cut}; mend or delete the line{csv}")
    if not isinstance(row, dict):
        fail(f"{where}: not a JSON object; give one object a line")
    return row


def numbered_rows(
    path: str, *keys: str, optional: Iterable[str] = (), lines: Iterable[str | None] | None = None
) -> Iterator[tuple[str, Any]]:
    """Yields ("FILE, line 7", row) for each row of a JSONL file, checked by check_row; skips blank lines.

    lines: the lines of a file that is still being written; a None among them is passed on."""
    try:
        with contextlib.nullcontext(lines) if lines else open(path, encoding="utf-8-sig") as lines:
            number = 0
            for line in lines:
                number += line is not None
                where = f"{path}, line {number}"
                if line is None:
                    yield where, None
                elif line.strip():
                    row = parse_line(line, where)
                    check_row(where, row, keys, optional)
                    yield where, row
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        fail(f"cannot read {path} ({reason}); give a JSONL file")


def read_jsonl(path: str, *keys: str) -> Iterator[dict]:
    """Yields the rows of a JSONL file; ends the program if one lacks a key."""
    for _, row in numbered_rows(path, *keys):
        yield row


def read_verified(path: str, *keys: str) -> Iterator[dict]:
    """Yields the rows of verify.py's JSONL, which have an id, a reward and these keys."""
    for where, row in numbered_rows(path, "id", "reward", *keys):
        if "logprobs" in keys and len(row["logprobs"]) != len(row["completion_ids"]):
            fail(f"{where}: as many logprobs as completion_ids are expected; give the rows as sampled")
        yield row


def read_groups(path: str) -> Iterator[list[dict]]:
    """Yields the groups of a file of verified rows; holds one group at a time."""
    names: set[str] = set()
    rows = read_verified(path, "sample", "completion_ids", "logprobs")
    for name, members in itertools.groupby(rows, lambda row: row["id"]):
        group = list(members)
        if name in names:
            fail(f"{path}: {name} comes again after other groups; put the rows of a group next to each other")
        if len({row["sample"] for row in group}) < len(group):
            fail(f"{path}: {name} has a sample twice; give each one once")
        names.add(name)
        yield group
    if not names:
        fail(f"{path} has no rows; run verify.py first")


# ---- writing ----


def cannot_write(path: str, error: BaseException) -> NoReturn:
    """Ends the program because a file cannot be written; no stage loses anything by that."""
    reason = getattr(error, "strerror", None) or cause(error)
    full = getattr(error, "errno", None) in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    mend = "make room" if full else "allow writing there"
    again = "give the same command again (train.py: with --resume), or choose another --out"
    fail(f"cannot write {path} ({reason}); {mend} and {again}")


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Ends the program with a sentence if what is done here cannot write the path."""
    try:
        yield
    except OSError as error:
        cannot_write(path, error)


def make_folder(path: str) -> None:
    """Makes a folder unless it is there."""
    with writing(path):
        os.makedirs(path or ".", exist_ok=True)


def check_out(out: str, *inputs: str | None) -> None:
    """Ends the program if a stage cannot write its output, or would overwrite what it reads."""
    if not os.path.isdir(os.path.dirname(out) or "."):
        fail(f"cannot write {out}: its folder does not exist; make it or choose another --out")
    if os.path.realpath(out) in [os.path.realpath(path) for path in inputs if path]:
        fail(f"{out} is a file that this command reads; choose another --out")
    if os.path.islink(out) or os.path.exists(out) and not os.path.isfile(out):  # it would be replaced
        fail(f"cannot write {out}: it is a folder, a link or a device; choose another --out")


def open_jsonl(path: str, mode: str) -> Any:
    """Opens a file for rows; half a surrogate pair is written as JSON's escape, \\ud835."""
    return open(path, mode, encoding="utf-8", errors="backslashreplace")


def to_line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def tee_jsonl(path: str, rows: Iterable[dict]) -> Iterator[dict]:
    """Yields the rows and writes them to a file that appears under its name when it is complete."""
    part = f"{path}.part"
    try:
        with open_jsonl(part, "w") as file:
            for row in rows:
                file.write(to_line(row))
                yield row
        os.replace(part, path)
    except OSError as error:
        cannot_write(path, error)
    finally:
        with contextlib.suppress(OSError):  # there is none if all went well
            os.remove(part)


def write_jsonl(path: str, rows: Iterable[dict]) -> None:
    """Writes rows to a file that appears under its name when it is complete."""
    for _ in tee_jsonl(path, rows):
        pass


# ---- continuing ----


def part_name(out: str, settings: Any) -> str:
    """The name of an output that is not complete: another one for other settings."""
    return f"{out}.part-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]}"


def rows_done(part: str, inputs: Iterable[dict], group: int = 1) -> int:
    """How many rows of an interrupted output can be kept; truncates the file after them.

    They are whole groups, and output row k contains all of input row k, so it was made from that row."""
    kept, size, position, inputs = 0, 0, 0, iter(inputs)
    with open(part, "ab+") as file:
        file.seek(0)
        for number, line in enumerate(file, 1):
            source, row = next(inputs, None), None
            with contextlib.suppress(ValueError):
                row = json.loads(line)  # the last line may be half written
            same = source is not None and isinstance(row, dict) and source.items() <= row.items()
            if not same or not line.endswith(b"\n"):
                break
            position += len(line)
            if number % group == 0:
                kept, size = number, position
        file.truncate(size)
    return kept


def resume_jsonl(
    out: str,
    settings: Any,
    inputs: Iterable[dict],
    rows_after: Callable[[int], Iterable[dict]],
    group: int = 1,
) -> None:
    """Writes rows to OUT.part-HASH, in whole groups, and renames it at the end; continues a stopped run.

    inputs: the row that each output row is made from. rows_after(n): the output rows from number n on."""
    part = part_name(out, settings)
    try:
        rows = iter(rows_after(rows_done(part, inputs, group)))
        with open_jsonl(part, "a") as file:
            while some := list(itertools.islice(rows, group)):
                file.write("".join(map(to_line, some)))
                file.flush()
        os.replace(part, out)
    except OSError as error:
        cannot_write(out, error)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
