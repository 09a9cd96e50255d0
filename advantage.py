"""Rewards to advantages: the group filter, the unlikeliness reward and GRPO's normalisation (paper, sections 2 and 4.1).

    python advantage.py verified.jsonl --out advantages.jsonl --unlikeliness 0.25
    python advantage.py verified.jsonl --out advantages.jsonl --unlikeliness 0.25 --rank-by token-mean

Reads: id, sample, completion_ids, logprobs, reward (1.0, 0.0, or null where the verifier broke), group by group: the rows of a
       group follow each other, as sample.py and verify.py write them.
Adds:  rank           0 = most likely completion of its group under pi_old .. G-1 = least likely; equal ones share their mean rank
       shaped_reward  r_i = R_i (1 - beta_rank (G - rank_i) / G)
       advantage      A_i = (r_i - mean(r)) / (std(r) + 1e-6), one number for every token of the completion; std has ddof = 1
G is the number of the group's rows that have a reward. All three are null where the reward is; the last two are null in a group
that is all right or all wrong.
"""
import argparse
import contextlib
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np


def likelihood_rank(completions: Sequence[Hashable], scores: Sequence[float], ties: str = "shared") -> np.ndarray:
    """Ranks [G] by falling score: 0 = most likely. Equal completions get their block's mean rank, so that float noise
    in their log-probabilities cannot order them (neither the paper nor its release says what to do with ties).
    ties "broken" lets it, and sampling order where there is none, to compare."""
    if ties == "broken":
        return np.argsort(np.argsort(-np.array(scores), kind="stable"), kind="stable").astype(float)
    scores_of = {}
    for completion, score in zip(completions, scores):
        scores_of.setdefault(completion, []).append(score)
    mean_of = {completion: np.mean(some) for completion, some in scores_of.items()}
    falling = -np.array([mean_of[completion] for completion in completions])
    likelier, not_rarer = (np.searchsorted(np.sort(falling), falling, side) for side in ("left", "right"))  # [G] each
    return (likelier + not_rarer - 1) / 2


def unlikeliness_reward(rewards: np.ndarray, ranks: np.ndarray, beta_rank: float) -> np.ndarray:
    """Shaped rewards [G], paper section 4.1: of two proofs the rarer earns more; a wrong one stays at 0.
    The release has (G - 1 - rank) for (G - rank): its penalty is smaller by beta_rank / G."""
    group_size = len(rewards)
    return rewards * (1 - beta_rank * (group_size - ranks) / group_size)


def group_advantages(rewards: np.ndarray) -> np.ndarray:
    """GRPO advantages [G] of one group's rewards [G]; std with ddof = 1 as in the release."""
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)


def add_advantages(rows: Iterable[dict], unlikeliness: float = 0.0, rank_by: str = "sequence", ties: str = "shared") -> list[dict]:
    """The rows of any number of groups (same id = same group), each with rank, shaped_reward and advantage added.

    rank_by "sequence" orders by the completion's log-probability (the paper), "token-mean" by its mean over the
    tokens (the release). A group whose raw rewards are all equal is dropped *before* shaping: the unlikeliness
    reward would otherwise give an all-right group differences, and the division by std would blow them up.
    """
    rows = [dict(row, rank=None, shaped_reward=None, advantage=None) for row in rows]
    groups = {}
    for row in rows:
        if row["reward"] is not None:  # the verifier broke on a null: such a row is in no statistic
            groups.setdefault(row["id"], []).append(row)
    for group in groups.values():
        rewards = np.array([row["reward"] for row in group], dtype=float)
        reduce = np.sum if rank_by == "sequence" else np.mean
        scores = [reduce(row["logprobs"]) for row in group]
        ranks = likelihood_rank([tuple(row["completion_ids"]) for row in group], scores, ties)
        for row, rank in zip(group, ranks):
            row["rank"] = float(rank)
        if np.all(rewards == rewards[0]):
            continue
        shaped = unlikeliness_reward(rewards, ranks, unlikeliness)
        for row, reward, advantage in zip(group, shaped, group_advantages(shaped)):
            row["shaped_reward"], row["advantage"] = float(reward), float(advantage)
    return rows


# What every stage shares: one sentence for an error, checked numbers on the command line, JSONL in and out.

def printable(text: str) -> str:
    """The text with what could steer a terminal (escapes, other control and invisible characters) written out: \\x1b[2J."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def fail(message: str) -> NoReturn:
    """Ends the program with one sentence and exit code 2."""
    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(2)


def cause(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]


def cannot_write(path: str, error: BaseException) -> NoReturn:
    """Ends the program where a file cannot be written; nothing is lost by that in any stage."""
    reason = getattr(error, "strerror", None) or cause(error)
    fail(f"cannot write {path} ({reason}); make room and give the same command again (train.py: with --resume), or choose another --out")


def at_least(kind: type, low: float, exclusive: bool = False, high: float = 2**53) -> Callable[[str], float]:
    """An argparse type: a finite int or float >= low (> low where exclusive) and <= high."""
    def parse(text):
        number = kind(text)
        if not abs(number) < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        if number < low or (exclusive and number == low):
            raise argparse.ArgumentTypeError(f"{text} is not {'above' if exclusive else 'at least'} {low}")
        if number > high:
            raise argparse.ArgumentTypeError(f"{text} is more than {high}")
        return number
    parse.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return parse


class Defaults(argparse.HelpFormatter):
    """--help with the default of each flag that has one, where its words do not say it."""
    def _get_help_string(self, action):
        said = action.default is None or action.default is False or action.default == argparse.SUPPRESS or "default:" in action.help
        return action.help if said else f"{action.help} (default: %(default)s)"


def flags(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser of flags; a bad one ends the program with a sentence."""
    parser = argparse.ArgumentParser(prog, description=description, formatter_class=Defaults)
    parser.error = fail  # type: ignore[method-assign,assignment]
    return parser


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
    number, decode = 0, json.JSONDecoder(parse_constant=int).decode  # int("NaN") is a ValueError: no JSON either
    try:
        with contextlib.nullcontext(lines) if lines else open(path, encoding="utf-8-sig") as lines:
            for line in lines:
                number += line is not None
                try:
                    row = line and decode(line)
                    if line and "\\u" in line:
                        json.dumps(row, ensure_ascii=False).encode()  # a ValueError for half a surrogate pair, which no file can hold
                except (ValueError, RecursionError):
                    cut = "" if line.endswith("\n") else " (cut short: its writer was interrupted, run that stage again)"
                    fail(f"{path}, line {number}: not valid JSON{cut}; mend or delete the line")
                if line and (not isinstance(row, dict) or (missing := [key for key in keys if key not in row])):
                    what = f"the key '{missing[0]}' is missing" if isinstance(row, dict) else "not a JSON object"
                    fail(f"{path}, line {number}: {what}; one object a line with {', '.join(keys) or 'its keys'} is expected")
                yield row
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read {path} ({getattr(error, 'strerror', '') or 'it is not UTF-8 text'}); give a JSONL file")


KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {  # nothing else may come into a statistic or a loss
    "id": ("a text", lambda value: isinstance(value, str)), "completion": ("a text", lambda value: isinstance(value, str)),
    "sample": ("its number in the group", lambda value: type(value) is int and value >= 0),
    "prompt_ids": ("a list of token ids", is_ids), "completion_ids": ("a list of token ids", is_ids),
    "logprobs": ("a list of numbers", lambda value: isinstance(value, list) and all(map(is_number, value))),
    "advantage": ("a number or null", lambda value: value is None or is_number(value))}


def read_verified(path: str, *keys: str) -> Iterator[dict]:
    """Yields the rows of verify.py's JSONL, which have an id and the reward 1, 0 or null, and these keys."""
    kinds = [(key, *KINDS[key]) for key in ("id", *keys) if key in KINDS]
    for number, row in enumerate(read_jsonl(path, "id", "reward", *keys), 1):
        if row["reward"] not in (0, 1, None) or isinstance(row["reward"], bool):
            fail(f"{path}, line {number}: {row['id']} has the reward {row['reward']!r}; 1, 0 or null is expected, as verify.py writes it")
        for key, what, fits in kinds:
            if not fits(row[key]):
                fail(f"{path}, line {number}: '{key}' is not {what}; give the rows as the stages write them")
        if "logprobs" in keys and len(row["logprobs"]) != len(row["completion_ids"]):
            fail(f"{path}, line {number}: not as many logprobs as completion_ids; give the rows as the stages write them")
        yield row


def written(path: str, rows: Iterable[dict]) -> Iterator[dict]:
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
    for _ in written(path, rows):
        pass


def main():
    parser = flags("Group filter, unlikeliness reward and GRPO advantages.")
    parser.add_argument("rows", help="JSONL from verify.py")
    parser.add_argument("--out", required=True, help="JSONL to write")
    parser.add_argument("--unlikeliness", type=at_least(float, 0, high=1), default=0.0,
                        help="beta_rank; the paper uses 0.25 (0: plain GRPO)")
    parser.add_argument("--rank-by", choices=["sequence", "token-mean"], default="sequence", help="the paper's ranking or its release's")
    parser.add_argument("--ties", choices=["shared", "broken"], default="shared", help="rank of equal completions: one, or by float noise")
    args = parser.parse_args()
    check_out(args.out, args.rows)
    total, groups, kept = 0, set(), 0

    def group_by_group():
        for name, group in itertools.groupby(read_verified(args.rows, "sample", "completion_ids", "logprobs"), lambda row: row["id"]):
            if name in groups:
                fail(f"{args.rows}: {name} comes again after other groups; put the rows of a group next to each other")
            groups.add(name)
            rows = list(group)
            if len({row["sample"] for row in rows}) < len(rows):
                fail(f"{args.rows}: {name} has a sample twice; give each one once")
            yield from add_advantages(rows, args.unlikeliness, args.rank_by, args.ties)
        if not groups:
            fail(f"{args.rows} has no rows; run verify.py first")

    for row in written(args.out, group_by_group()):
        total, kept = total + 1, kept + (row["advantage"] is not None)
    print(f"{total} rows, {len(groups)} groups, {kept} rows in groups that are neither all right nor all wrong")


if __name__ == "__main__":
    main()
