"""The advantages of a group from its rewards: GRPO's estimator, which the paper uses, and seven rivals.

Each estimator takes the rewards [G] of one group, already shaped by the unlikeliness reward, and returns
advantages [G]. Before that, the group filter of advantage.py has dropped groups whose rewards are all equal.
Rewards need not be 0 or 1: "right" means above 0, and each docstring says what graded rewards do. (At
--unlikeliness 1 the single most likely completion has the reward 0 and counts as wrong.)
"""

import functools
from math import comb

import numpy as np


def grpo(rewards: np.ndarray) -> np.ndarray:
    """(r_i - mean(r)) / (std(r) + 1e-6), arXiv 2402.03300; std with ddof = 1 as in the paper's release.
    Takes any rewards; shifting or scaling them all changes nothing."""
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)


def dr_grpo(rewards: np.ndarray) -> np.ndarray:
    """r_i - mean(r), arXiv 2503.20783. Takes any rewards; their scale scales the gradient."""
    return rewards - rewards.mean()


def raft(rewards: np.ndarray) -> np.ndarray:
    """r_i if right, else 0, arXiv 2504.11343. Only right completions contribute, each by its reward."""
    return np.where(rewards > 0, rewards, 0.0)


def reinforce_rej(rewards: np.ndarray) -> np.ndarray:
    """r_i if right, else -1, arXiv 2504.11343; its "Rej" is the group filter. Wrong ones weigh the same."""
    return np.where(rewards > 0, rewards, -1.0)


def nsr(rewards: np.ndarray) -> np.ndarray:
    """0 if right, else -1, arXiv 2506.01347. Only wrong ones contribute; grades and shaping do nothing."""
    return np.where(rewards > 0, 0.0, -1.0)


def w_reinforce(rewards: np.ndarray) -> np.ndarray:
    """0.1 r_i if right, else -1, arXiv 2506.01347 with lambda = 0.1. Wrong ones weigh the same."""
    return np.where(rewards > 0, 0.1 * rewards, -1.0)


def f_grpo(rewards: np.ndarray) -> np.ndarray:
    """(1 - share of right completions) times GRPO's, arXiv 2602.06717 gamma = 1. Grades act through GRPO."""
    return (1 - (rewards > 0).mean()) * grpo(rewards)


def pass_at_k(rewards: np.ndarray, k: int = 8) -> np.ndarray:
    """(E[max_S r | i in S] - E[max_S r]) / (std(max_S r) + 1e-6) over the subsets S of k completions.
    With 0/1 rewards: the closed form of arXiv 2508.10751, 0 once every S has a right one. Graded: max@k."""
    ordered, shares = np.sort(rewards), best_of_k(len(rewards), k)
    best = shares @ ordered  # [G] E[max_S r | i in S]; its mean over i is E[max_S r]
    std = np.sqrt(np.mean(shares @ (ordered - best.mean()) ** 2))
    return ((best - best.mean()) / (std + 1e-6))[np.searchsorted(ordered, rewards)]


@functools.cache
def best_of_k(group_size: int, k: int) -> np.ndarray:
    """Shares [G, G]: of the subsets of k with the i-th smallest reward, those whose largest is the j-th."""
    k, shares = min(k, group_size), np.zeros((group_size, group_size))
    for i in range(group_size):
        shares[i, i] = comb(i, k - 1)  # the k - 1 others are smaller
        for j in range(i + 1, group_size if k > 1 else 0):
            shares[i, j] = comb(j - 1, k - 2)  # j is in S too; the k - 2 others are smaller
    return shares / comb(group_size - 1, k - 1)


ESTIMATORS = {
    "grpo": grpo,
    "dr-grpo": dr_grpo,
    "raft": raft,
    "reinforce-rej": reinforce_rej,
    "nsr": nsr,
    "w-reinforce": w_reinforce,
    "pass-at-k": pass_at_k,
    "f-grpo": f_grpo,
}
