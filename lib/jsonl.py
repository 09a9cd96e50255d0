"""JSONL in and out: checked rows, and files that appear under their name when they are complete."""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from lib.cli import cause, fail


def cannot_write(path: str, error: BaseException) -> NoReturn:
    """Ends the program where a file cannot be written; nothing is lost by that in any stage."""
    reason = getattr(error, "strerror", None) or cause(error)
    fail(
        f"cannot write {path} ({reason}); make room and give the same command again (train.py: with --resume), or choose another --out"
    )


def is_number(value: Any) -> bool:
    """Whether a value out of JSON is a number that a float can hold: not true, not 1e999, nothing of 400 digits."""
    return type(value) in (int, float) and abs(value) < 1e300


def is_ids(value: Any) -> bool:
    """Whether it can be the token ids of a text, of one token at least."""
    return isinstance(value, list) and bool(value) and all(type(i) is int and i >= 0 for i in value)


def check_out(out: str, *inputs: str | None) -> None:
    """Ends the program where a stage cannot write its output, or would write it over what it reads."""
    if os.path.isdir(out) or not os.path.isdir(os.path.dirname(out) or "."):
        fail(f"cannot write {out}: it is a folder or in none that exists; choose another --out")
    if os.path.realpath(out) in [os.path.realpath(path) for path in inputs if path]:
        fail(f"{out} is what is read; choose another --out")


def read_jsonl(path: str, *keys: str, lines: Iterable | None = None) -> Iterator[Any]:
    """Yields the rows of a JSONL file; ends the program where a line is broken or lacks one of the keys.
    lines: the file's lines, where they are still coming; a None among them is passed on."""
    number, decode = (
        0,
        json.JSONDecoder(parse_constant=int).decode,
    )  # int("NaN") is a ValueError: no JSON either
    try:
        with contextlib.nullcontext(lines) if lines else open(path, encoding="utf-8-sig") as lines:
            for line in lines:
                number += line is not None
                try:
                    row = line and decode(line)
                    if line and "\\u" in line:
                        json.dumps(
                            row, ensure_ascii=False
                        ).encode()  # a ValueError for half a surrogate pair, which no file can hold
                except (ValueError, RecursionError):
                    cut = (
                        ""
                        if line.endswith("\n")
                        else " (cut short: its writer was interrupted, run that stage again)"
                    )
                    fail(f"{path}, line {number}: not valid JSON{cut}; mend or delete the line")
                if line and (
                    not isinstance(row, dict) or (missing := [key for key in keys if key not in row])
                ):
                    what = (
                        f"the key '{missing[0]}' is missing" if isinstance(row, dict) else "not a JSON object"
                    )
                    fail(
                        f"{path}, line {number}: {what}; one object a line with {', '.join(keys) or 'its keys'} is expected"
                    )
                yield row
    except (OSError, UnicodeDecodeError) as error:
        fail(
            f"cannot read {path} ({getattr(error, 'strerror', '') or 'it is not UTF-8 text'}); give a JSONL file"
        )


KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {  # nothing else may come into a statistic or a loss
    "id": ("a text", lambda value: isinstance(value, str)),
    "completion": ("a text", lambda value: isinstance(value, str)),
    "sample": ("its number in the group", lambda value: type(value) is int and value >= 0),
    "prompt_ids": ("a list of token ids", is_ids),
    "completion_ids": ("a list of token ids", is_ids),
    "logprobs": ("a list of numbers", lambda value: isinstance(value, list) and all(map(is_number, value))),
    "advantage": ("a number or null", lambda value: value is None or is_number(value)),
}


def read_verified(path: str, *keys: str) -> Iterator[dict]:
    """Yields the rows of verify.py's JSONL, which have an id and the reward 1, 0 or null, and these keys."""
    kinds = [(key, *KINDS[key]) for key in ("id", *keys) if key in KINDS]
    for number, row in enumerate(read_jsonl(path, "id", "reward", *keys), 1):
        if row["reward"] not in (0, 1, None) or isinstance(row["reward"], bool):
            fail(
                f"{path}, line {number}: {row['id']} has the reward {row['reward']!r}; 1, 0 or null is expected, as verify.py writes it"
            )
        for key, what, fits in kinds:
            if not fits(row[key]):
                fail(f"{path}, line {number}: '{key}' is not {what}; give the rows as the stages write them")
        if "logprobs" in keys and len(row["logprobs"]) != len(row["completion_ids"]):
            fail(
                f"{path}, line {number}: not as many logprobs as completion_ids; give the rows as the stages write them"
            )
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


def tee_jsonl(path: str, rows: Iterable[dict]) -> Iterator[dict]:
    """Yields the rows, which may be a generator, and writes them to a file that appears under its name when it is complete."""
    part = f"{path}.part"
    try:
        with open(part, "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                yield row
        os.replace(part, path)
    except OSError as error:
        cannot_write(path, error)
    finally:
        with contextlib.suppress(OSError):  # there is none where all went well
            os.remove(part)


def write_jsonl(path: str, rows: Iterable[dict]) -> None:
    """Writes rows, which may be a generator, to a file that appears under its name when it is complete."""
    for _ in tee_jsonl(path, rows):
        pass
