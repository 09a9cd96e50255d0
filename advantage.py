"""Rewards to advantages: unlikeliness reward, group filter, GRPO's normalisation (paper, sections 2 and 4.1).

    python advantage.py verified.jsonl --out advantages.jsonl --unlikeliness 0.25
    python advantage.py verified.jsonl --out advantages.jsonl --estimator w-reinforce  # lib/estimators.py

Reads: id, sample, completion_ids, logprobs, reward (null where the verifier broke). The rows of a group
       must be next to each other, as sample.py and verify.py write them.
Adds:  rank           0 = most likely completion of its group under pi_old .. G-1 = least likely
       shaped_reward  r_i = R_i (1 - beta_rank (G - rank_i) / G)
       advantage      of grpo: A_i = (r_i - mean(r)) / (std(r) + 1e-6), the same for every token
G counts the rows of a group that have a reward; the others get null for all three keys. A dropped group gets
null for shaped_reward and advantage.

To add a shaping: write a function, call it in `group_advantages`, add a flag in `add_flags`; nothing else.
"""

import argparse
import functools
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from lib.cli import flags, number, parse_settings, run
from lib.estimators import ESTIMATORS
from lib.jsonl import check_out, read_groups, tee_jsonl


def likelihood_rank(completions: Sequence[Hashable], scores: Sequence[float]) -> np.ndarray:
    """Ranks [G] by falling score, 0 = most likely. Tied completions share their mean rank, and identical ones
    always tie: float noise must not order them. (Neither the paper nor its release mentions ties.)

    >>> likelihood_rank(["rfl", "simp", "rfl"], [-5.0, -2.0, -5.1]).tolist()
    [1.5, 0.0, 1.5]
    """
    numbers: dict = {}
    texts = [numbers.setdefault(completion, len(numbers)) for completion in completions]  # [G] numbers
    mean_scores = np.bincount(texts, scores) / np.bincount(texts)  # one per distinct completion
    scores = mean_scores[texts]  # [G]
    likelier, tied = scores > scores[:, None], scores == scores[:, None]  # [G, G]
    return likelier.sum(1) + (tied.sum(1) - 1) / 2


def unlikeliness_reward(rewards: np.ndarray, ranks: np.ndarray, beta_rank: float) -> np.ndarray:
    """Shaped rewards [G] (section 4.1): of two right completions the less likely earns more; rewards of
    0 and less stay as they are.
    The release has (G - 1 - rank) for (G - rank): its penalty is smaller by beta_rank / G."""
    group_size = len(rewards)
    return np.where(rewards > 0, rewards * (1 - beta_rank * (group_size - ranks) / group_size), rewards)


def group_advantages(
    rewards: np.ndarray, ranks: np.ndarray, args: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray] | None:
    """Shaped rewards [G] and advantages [G] of one group, or None where the group filter drops it.

    The filter compares raw rewards. Shaped ones also differ within an all-right group, and dividing by their
    tiny std would make that weigh as much as right against wrong. --filter shaped keeps such a group, and its
    rarer proofs get the larger advantages.
    """
    shaped = unlikeliness_reward(rewards, ranks, args.unlikeliness)
    compared = rewards if args.filter == "raw" else shaped
    if np.all(compared == compared[0]):
        return None
    return shaped, ESTIMATORS[args.estimator](shaped)


def add_advantages(rows: Iterable[dict], args: argparse.Namespace) -> list[dict]:
    """The rows of any number of groups (same id, same group) with rank, shaped_reward, advantage added."""
    rows = [dict(row, rank=None, shaped_reward=None, advantage=None) for row in rows]
    groups: dict = {}
    for row in rows:
        if row["reward"] is not None:  # null: the verifier broke, so the row is in no statistic
            groups.setdefault(row["id"], []).append(row)
    for group in groups.values():
        reduce = np.sum if args.rank_by == "sequence" else np.mean
        scores = [reduce(row["logprobs"]) for row in group]
        ranks = likelihood_rank([tuple(row["completion_ids"]) for row in group], scores)
        for row, rank in zip(group, ranks):
            row["rank"] = float(rank)
        result = group_advantages(np.array([row["reward"] for row in group], dtype=float), ranks, args)
        if result:
            for row, shaped, advantage in zip(group, *result):
                row["shaped_reward"], row["advantage"] = float(shaped), float(advantage)
    return rows


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this stage, which train.py has too."""
    group = parser.add_argument_group("advantages")
    group.add_argument(
        "--unlikeliness", type=number(float, 0, high=1), default=0.0, help="beta_rank; 0: none [paper: 0.25]"
    )
    group.add_argument(
        "--rank-by",
        choices=["sequence", "token-mean"],
        default="sequence",
        help="rank by log-probability or by its mean per token [paper: sequence; its release: token-mean]",
    )
    group.add_argument(
        "--filter",
        choices=["raw", "shaped"],
        default="raw",
        help="drop a group if its raw, or its shaped, rewards are all equal [paper: raw]",
    )
    group.add_argument(
        "--estimator", choices=list(ESTIMATORS), default="grpo", help="see lib/estimators.py [paper: grpo]"
    )


options = functools.partial(parse_settings, add_flags)  # options("--unlikeliness 0.25"), from Python


def main():
    parser = flags("Group filter, unlikeliness reward and GRPO advantages.")
    parser.add_argument("rows", help="JSONL from verify.py")
    parser.add_argument("--out", required=True, help="JSONL to write")
    add_flags(parser)
    args = parser.parse_args()
    check_out(args.out, args.rows)
    total, kept, groups = 0, 0, set()
    rows = (row for group in read_groups(args.rows) for row in add_advantages(group, args))
    for row in tee_jsonl(args.out, rows):
        total += 1
        kept += row["advantage"] is not None
        groups.add(row["id"])
    print(f"{total} rows, {len(groups)} groups, {kept} rows in groups that the filter keeps")


if __name__ == "__main__":
    run(main)
