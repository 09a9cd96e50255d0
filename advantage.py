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

import itertools
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from lib.cli import fail, flags, number
from lib.jsonl import check_out, read_verified, tee_jsonl


def likelihood_rank(
    completions: Sequence[Hashable], scores: Sequence[float], ties: str = "shared"
) -> np.ndarray:
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
    likelier, not_rarer = (
        np.searchsorted(np.sort(falling), falling, side) for side in ("left", "right")
    )  # [G] each
    return (likelier + not_rarer - 1) / 2


def unlikeliness_reward(rewards: np.ndarray, ranks: np.ndarray, beta_rank: float) -> np.ndarray:
    """Shaped rewards [G], paper section 4.1: of two proofs the rarer earns more; a wrong one stays at 0.
    The release has (G - 1 - rank) for (G - rank): its penalty is smaller by beta_rank / G."""
    group_size = len(rewards)
    return rewards * (1 - beta_rank * (group_size - ranks) / group_size)


def group_advantages(rewards: np.ndarray) -> np.ndarray:
    """GRPO advantages [G] of one group's rewards [G]; std with ddof = 1 as in the release."""
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)


def add_advantages(
    rows: Iterable[dict], unlikeliness: float = 0.0, rank_by: str = "sequence", ties: str = "shared"
) -> list[dict]:
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


def main():
    parser = flags("Group filter, unlikeliness reward and GRPO advantages.")
    parser.add_argument("rows", help="JSONL from verify.py")
    parser.add_argument("--out", required=True, help="JSONL to write")
    parser.add_argument(
        "--unlikeliness",
        type=number(float, 0, high=1),
        default=0.0,
        help="beta_rank; the paper uses 0.25 (0: plain GRPO)",
    )
    parser.add_argument(
        "--rank-by",
        choices=["sequence", "token-mean"],
        default="sequence",
        help="the paper's ranking or its release's",
    )
    parser.add_argument(
        "--ties",
        choices=["shared", "broken"],
        default="shared",
        help="rank of equal completions: one, or by float noise",
    )
    args = parser.parse_args()
    check_out(args.out, args.rows)
    total, groups, kept = 0, set(), 0

    def group_by_group():
        for name, group in itertools.groupby(
            read_verified(args.rows, "sample", "completion_ids", "logprobs"), lambda row: row["id"]
        ):
            if name in groups:
                fail(
                    f"{args.rows}: {name} comes again after other groups; put the rows of a group next to each other"
                )
            groups.add(name)
            rows = list(group)
            if len({row["sample"] for row in rows}) < len(rows):
                fail(f"{args.rows}: {name} has a sample twice; give each one once")
            yield from add_advantages(rows, args.unlikeliness, args.rank_by, args.ties)
        if not groups:
            fail(f"{args.rows} has no rows; run verify.py first")

    for row in tee_jsonl(args.out, group_by_group()):
        total, kept = total + 1, kept + (row["advantage"] is not None)
    print(
        f"{total} rows, {len(groups)} groups, {kept} rows in groups that are neither all right nor all wrong"
    )


if __name__ == "__main__":
    main()
