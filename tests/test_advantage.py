"""The advantages against numbers worked by hand and against a second implementation; the JSONL helpers; the command."""

import doctest
import itertools
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

import advantage
import lib.jsonl
from advantage import add_advantages, group_advantages, likelihood_rank, options, unlikeliness_reward
from lib.estimators import ESTIMATORS, dr_grpo, f_grpo, grpo, nsr, pass_at_k, raft, reinforce_rej, w_reinforce
from lib.jsonl import read_jsonl, write_jsonl

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def group(rewards, logprobs, name="p", ids=None):
    """Verified rows of one problem, one log-probability (or list of them) per completion; all completions differ."""
    logprobs = [lp if isinstance(lp, list) else [lp] for lp in logprobs]
    ids = ids or [[k] * len(lp) for k, lp in enumerate(logprobs)]
    return [
        dict(id=name, sample=k, completion_ids=ids[k], logprobs=logprobs[k], reward=reward)
        for k, reward in enumerate(rewards)
    ]


def column(rows, key):
    return [row[key] for row in rows]


# Ranks


def test_the_example_of_the_docstring():
    assert doctest.testmod(advantage) == (0, 1)


def test_rank_0_is_the_likeliest():
    assert likelihood_rank(["a", "b", "c", "d"], [-3.0, -1.0, -4.0, -2.0]).tolist() == [2, 0, 3, 1]


def test_identical_completions_share_the_mean_rank_of_their_block():
    # a stands on the ranks 1, 2, 3 behind b: (1 + 2 + 3) / 3 = 2
    assert likelihood_rank(["a", "b", "a", "c", "a"], [-2.0, -1.0, -2.0, -3.0, -2.0]).tolist() == [
        2,
        0,
        2,
        4,
        2,
    ]
    assert likelihood_rank(["a"] * 4, [-1.0] * 4).tolist() == [1.5] * 4  # (0 + 1 + 2 + 3) / 4
    assert likelihood_rank(["a", "b"], [-1.0, -1.0]).tolist() == [0.5, 0.5]  # different, yet equally likely
    assert likelihood_rank(["a"], [-1.0]).tolist() == [0]


def test_float_noise_does_not_order_identical_completions():
    rng = np.random.default_rng(0)
    for _ in range(20):
        noise = rng.normal(scale=1e-6, size=6)
        ranks = likelihood_rank(
            ["a", "b", "a", "a", "c", "b"], np.array([-2.0, -1.0, -2.0, -2.0, -3.0, -1.0]) + noise
        )
        assert ranks.tolist() == [3, 0.5, 3, 3, 5, 0.5]  # b on 0, 1; a on 2, 3, 4; c on 5


# Shaped rewards


def test_unlikeliness_reward_by_hand():
    # G = 4, beta = 0.25: a right sample loses 0.25 (4 - rank) / 4 = 1/4, 3/16, 1/8, 1/16; a wrong one stays at 0
    shaped = unlikeliness_reward(np.ones(4), np.arange(4.0), 0.25)
    assert shaped.tolist() == [3 / 4, 13 / 16, 7 / 8, 15 / 16]
    assert unlikeliness_reward(np.array([1.0, 0, 0, 1]), np.array([3.0, 0, 1, 2]), 0.25).tolist() == [
        15 / 16,
        0,
        0,
        7 / 8,
    ]
    assert unlikeliness_reward(np.array([1.0, 0]), np.array([0.0, 1]), 0).tolist() == [1, 0]


def test_the_release_penalises_less_by_beta_over_G():
    """The release counts a = 0 for the least likely .. G - 1 for the most likely and gives 1 - beta a / G."""
    for G, beta in [(4, 0.25), (32, 0.25), (7, 0.6)]:
        ranks = np.arange(G)
        release = 1 - beta * (G - 1 - ranks) / G
        np.testing.assert_allclose(
            release - unlikeliness_reward(np.ones(G), ranks, beta), beta / G, rtol=1e-12
        )


# Advantages


def test_grpo_by_hand():
    # mean 1/4; squared distances 9/16 + 3/16 = 3/4, over G - 1 = 3 is 1/4, so std = 1/2
    expected = [(3 / 4) / (1 / 2 + 1e-6)] + [(-1 / 4) / (1 / 2 + 1e-6)] * 3
    assert grpo(np.array([1.0, 0, 0, 0])).tolist() == pytest.approx(expected, rel=1e-12)


def test_two_right_of_four_with_unlikeliness_by_hand():
    # ranks 0 1 2 3, right are ranks 0 and 2: r = 3/4, 0, 7/8, 0; mean 13/32
    # squares of (11, -13, 15, -13) / 32: (121 + 169 + 225 + 169) / 1024 = 684 / 1024; / 3 = 228 / 1024; std = sqrt(228) / 32
    rows = add_advantages(
        group([1.0, 0.0, 1.0, 0.0], [-1.0, -2.0, -3.0, -4.0]), options("--unlikeliness 0.25")
    )
    assert column(rows, "rank") == [0, 1, 2, 3] and column(rows, "shaped_reward") == [3 / 4, 0, 7 / 8, 0]
    assert column(rows, "advantage") == pytest.approx(
        [x / math.sqrt(228) for x in (11, -13, 15, -13)], rel=1e-5
    )
    assert rows[2]["advantage"] > rows[0]["advantage"] > 0  # the rarer proof earns more


def test_plain_grpo_does_not_see_the_likelihoods():
    rewards = [1.0, 0.0, 0.0, 1.0, 1.0]
    one = add_advantages(group(rewards, [-1, -2, -3, -4, -5]), options())
    other = add_advantages(group(rewards, [-5, -3, -4, -1, -2]), options())
    assert column(one, "advantage") == column(other, "advantage") and column(one, "rank") != column(
        other, "rank"
    )
    assert column(one, "shaped_reward") == rewards


def test_identical_proofs_get_the_same_advantage():
    rows = group([1.0, 1.0, 1.0, 0.0], [-2.0, -2.0000001, -1.0, -3.0], ids=[[7], [7], [8], [9]])
    rows = add_advantages(rows, options("--unlikeliness 0.25"))
    assert column(rows, "rank") == [1.5, 1.5, 0, 3]
    assert rows[0]["advantage"] == rows[1]["advantage"] > rows[2]["advantage"]


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_uniform_group_is_dropped_before_shaping(reward):
    """Shaped first, an all-right group would have differences of beta / G, and the division by std makes them large."""
    rows = group([reward] * 4, [-1.0, -2.0, -3.0, -4.0])
    shaped = add_advantages(rows, options("--unlikeliness 0.25"))
    assert column(shaped, "advantage") == column(shaped, "shaped_reward") == [None] * 4 and column(
        shaped, "rank"
    ) == [0, 1, 2, 3]
    wrong_order = grpo(unlikeliness_reward(np.ones(4), np.arange(4.0), 0.25))
    assert abs(wrong_order).max() > 1  # what the filter keeps away


def test_null_rewards_are_in_no_statistic():
    rows = group([1.0, None, 0.0, 0.0, None, 0.0], [-2.0, -1.0, -3.0, -4.0, -9.0, -5.0])
    judged = [row for row in rows if row["reward"] is not None]
    with_nulls = add_advantages(rows, options("--unlikeliness 0.25"))
    assert [row for row in with_nulls if row["reward"] is not None] == add_advantages(
        judged, options("--unlikeliness 0.25")
    )
    assert with_nulls[0]["rank"] == 0 and with_nulls[0]["shaped_reward"] == 3 / 4  # G is 4, not 6
    for row in (with_nulls[1], with_nulls[4]):
        assert row["rank"] is row["shaped_reward"] is row["advantage"] is None


def test_groups_that_nulls_leave_uniform_or_alone():
    rows = (
        group([1.0, None, 1.0], [-1, -2, -3], "a")
        + group([1.0, None], [-1, -2], "b")
        + group([None, None], [-1, -2], "c")
    )
    rows = add_advantages(rows, options())
    assert column(rows, "advantage") == [None] * 7 and column(rows, "rank") == [
        0,
        None,
        1,
        0,
        None,
        None,
        None,
    ]


def test_rank_by_sequence_and_by_token_mean():
    # A: 2 tokens of -1, sum -2, mean -1; B: 8 tokens of -0.5, sum -4, mean -0.5; C: sum -9, mean -3
    rows = group([1.0, 1.0, 0.0], [[-1.0] * 2, [-0.5] * 8, [-3.0] * 3])
    assert column(add_advantages(rows, options()), "rank") == [0, 1, 2]
    assert column(add_advantages(rows, options("--rank-by token-mean")), "rank") == [1, 0, 2]


def test_groups_do_not_mix_and_rows_keep_their_order_and_keys():
    a, b = group([1.0, 0.0], [-1, -2], "a"), group([0.0, 1.0], [-30, -40], "b")
    mixed = add_advantages([a[0], b[0], b[1], a[1]], options("--unlikeliness 0.25"))
    alone = add_advantages(a, options("--unlikeliness 0.25")) + add_advantages(
        b, options("--unlikeliness 0.25")
    )
    assert mixed == [alone[0], alone[2], alone[3], alone[1]]
    assert "advantage" not in a[0]  # the input is left as it was
    assert add_advantages([], options()) == []


def test_random_groups_against_a_second_implementation():
    """Sorting instead of counting, torch instead of numpy, no ties."""
    rng = random.Random(0)
    for _ in range(50):
        G, beta = rng.randint(2, 32), rng.choice([0, 0.25, 0.7])
        rewards = [float(rng.random() < 0.5) for _ in range(G)]
        logprobs = [[-rng.random() for _ in range(rng.randint(1, 9))] for _ in range(G)]
        rows = add_advantages(group(rewards, logprobs), options(f"--unlikeliness {beta}"))
        if len(set(rewards)) == 1:
            assert column(rows, "advantage") == [None] * G
            continue
        scores = torch.tensor([math.fsum(lp) for lp in logprobs], dtype=torch.float64)
        ranks = torch.argsort(torch.argsort(scores, descending=True)).double()
        shaped = torch.tensor(rewards, dtype=torch.float64) * (1 - beta * (G - ranks) / G)
        advantages = (shaped - shaped.mean()) / (torch.std(shaped) + 1e-6)
        assert column(rows, "rank") == ranks.tolist()
        assert column(rows, "advantage") == pytest.approx(advantages.tolist(), rel=1e-9, abs=1e-12)
        assert sum(column(rows, "advantage")) == pytest.approx(0, abs=1e-9)


def test_ranks_are_those_counted_pair_by_pair():
    """As the definition says it: how many are likelier, and half of the others that are equal."""
    rng = random.Random(1)
    for G in (1, 2, 7, 40):
        completions = [rng.randrange(1 + G // 2) for _ in range(G)]
        scores = [-float(completion % 5) for completion in completions]  # some differ in text alone
        ranks = advantage.likelihood_rank(completions, scores)
        for score, rank in zip(scores, ranks):
            assert (
                rank
                == sum(other > score for other in scores) + (sum(other == score for other in scores) - 1) / 2
            )


# Estimators: every number worked by hand from the formula in its docstring

RIGHT_2_OF_4 = np.array([1.0, 0, 1, 0])
SHAPED = np.array([3 / 4, 0, 7 / 8, 0])  # the same with --unlikeliness 0.25 and ranks 0 1 2 3
GRADED = np.array([0.5, -0.5, 1.0, 0.0])  # as a Python verifier may give them

# fmt: off
BY_HAND = [
    # mean 1/2, squared distances 4 x 1/4 = 1, / 3, std = 1/sqrt(3)
    (grpo, RIGHT_2_OF_4, np.array([1, -1, 1, -1]) * math.sqrt(3) / 2),
    # mean 1/4; distances 1/4, -3/4, 3/4, -1/4; squares 1/16 + 9/16 + 9/16 + 1/16 = 5/4, / 3, std = sqrt(5/12)
    (grpo, GRADED, np.array([1, -3, 3, -1]) / 4 / math.sqrt(5 / 12)),
    (dr_grpo, RIGHT_2_OF_4, [1 / 2, -1 / 2, 1 / 2, -1 / 2]),
    (dr_grpo, SHAPED, [11 / 32, -13 / 32, 15 / 32, -13 / 32]),  # mean 13/32
    (dr_grpo, GRADED, [1 / 4, -3 / 4, 3 / 4, -1 / 4]),
    (raft, RIGHT_2_OF_4, [1, 0, 1, 0]), (raft, SHAPED, [3 / 4, 0, 7 / 8, 0]), (raft, GRADED, [0.5, 0, 1, 0]),
    (reinforce_rej, RIGHT_2_OF_4, [1, -1, 1, -1]), (reinforce_rej, SHAPED, [3 / 4, -1, 7 / 8, -1]),
    (reinforce_rej, GRADED, [0.5, -1, 1, -1]),
    (nsr, RIGHT_2_OF_4, [0, -1, 0, -1]), (nsr, SHAPED, [0, -1, 0, -1]), (nsr, GRADED, [0, -1, 0, -1]),
    (w_reinforce, RIGHT_2_OF_4, [0.1, -1, 0.1, -1]), (w_reinforce, SHAPED, [0.075, -1, 0.0875, -1]),
    (w_reinforce, GRADED, [0.05, -1, 0.1, -1]),
    # half are right: half of GRPO's
    (f_grpo, RIGHT_2_OF_4, np.array([1, -1, 1, -1]) * math.sqrt(3) / 4),
    (f_grpo, SHAPED, np.array([11, -13, 15, -13]) / math.sqrt(228) / 2),
    (f_grpo, GRADED, np.array([1, -3, 3, -1]) / 8 / math.sqrt(5 / 12)),
    # k = 8 is more than 4: the one set is the group, whose largest does not vary
    (pass_at_k, RIGHT_2_OF_4, [0, 0, 0, 0]),
]
# fmt: on


@pytest.mark.parametrize("estimator, rewards, expected", BY_HAND)
def test_estimators_by_hand(estimator, rewards, expected):
    assert estimator(rewards).tolist() == pytest.approx(list(expected), abs=1e-5)


def test_pass_at_k_by_hand():
    # 2 of 4 right, k = 2: of 6 pairs 1 is all wrong, R = 5/6, std = sqrt(5)/6. A right one is in right pairs only:
    # (1 - 5/6) / std = 1/sqrt(5). A wrong one is in 3 pairs, 2 of them right: (2/3 - 5/6) / std = -1/sqrt(5)
    expected = np.array([1, -1, 1, -1]) / math.sqrt(5)
    assert pass_at_k(RIGHT_2_OF_4, k=2).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    # 1 of 3 right, k = 2: R = 2/3, std = sqrt(2)/3; right (1 - 2/3) / std = 1/sqrt(2); wrong (1/2 - 2/3) / std
    expected = np.array([1, -1 / 2, -1 / 2]) / math.sqrt(2)
    assert pass_at_k(np.array([1.0, 0, 0]), k=2).tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_pass_at_k_is_the_closed_form_of_its_paper():
    """With 0/1 rewards, c of G right: R = 1 - C(G-c, k) / C(G, k), right (1 - R) / std and wrong
    (1 - R - C(G-c-1, k-1) / C(G-1, k-1)) / std, where std = sqrt(R (1 - R))."""
    for G, c, k in [(32, 1, 8), (32, 5, 8), (32, 24, 8), (8, 3, 1), (5, 2, 2), (6, 3, 4)]:
        rate = 1 - math.comb(G - c, k) / math.comb(G, k)
        std = math.sqrt(rate * (1 - rate))
        wrong = 1 - rate - math.comb(G - c - 1, k - 1) / math.comb(G - 1, k - 1)
        expected = [(1 - rate) / (std + 1e-6)] * c + [wrong / (std + 1e-6)] * (G - c) if std else [0.0] * G
        rewards = np.array([1.0] * c + [0.0] * (G - c))
        assert pass_at_k(rewards, k).tolist() == pytest.approx(expected, abs=1e-9)


def test_pass_at_k_of_any_rewards_against_all_subsets():
    rng = np.random.default_rng(0)
    for _ in range(40):
        G, k = rng.integers(1, 8), rng.integers(1, 6)
        rewards = rng.choice([-1.0, 0.0, 0.0, 0.5, 0.7, 1.0], G)
        subsets = list(itertools.combinations(range(G), min(k, G)))
        best = np.array([rewards[list(subset)].max() for subset in subsets])
        with_i = [best[[i in subset for subset in subsets]].mean() for i in range(G)]
        expected = (np.array(with_i) - best.mean()) / (best.std() + 1e-6)
        assert pass_at_k(rewards, k).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_composes_with_the_reward_and_the_filter(name):
    rows = group([1.0, 0.0, 1.0, 0.0], [-1.0, -2.0, -3.0, -4.0]) + group(
        [1.0, 1.0], [-1.0, -2.0], "all right"
    )
    shaped = add_advantages(rows, options(f"--unlikeliness 0.25 --estimator {name}"))
    assert column(shaped, "shaped_reward") == [*SHAPED, None, None]
    assert column(shaped, "advantage") == [*ESTIMATORS[name](SHAPED), None, None]
    kept = add_advantages(rows, options(f"--unlikeliness 0.25 --estimator {name} --filter shaped"))
    assert kept[:4] == shaped[:4]
    all_right = np.array([3 / 4, 7 / 8])  # 1 - 0.25 (2 - rank) / 2
    assert column(kept[4:], "shaped_reward") == all_right.tolist()
    assert column(kept[4:], "advantage") == ESTIMATORS[name](all_right).tolist()


def test_the_filter_after_the_shaping_by_hand():
    # all right, shaped 3/4 and 7/8: mean 13/16, std = sqrt(2)/16, advantages -1/sqrt(2) and 1/sqrt(2)
    rows = add_advantages(group([1.0, 1.0], [-1.0, -2.0]), options("--unlikeliness 0.25 --filter shaped"))
    assert column(rows, "advantage") == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)], rel=1e-4)
    same = group([1.0, 1.0], [-1.0, -1.0], ids=[[7], [7]])  # one proof twice: nothing in it is rarer
    for rows in (same, group([0.0, 0.0], [-1.0, -2.0])):
        rows = add_advantages(rows, options("--unlikeliness 0.25 --filter shaped"))
        assert column(rows, "advantage") == [None, None]
    plain = add_advantages(
        group([1.0, 1.0], [-1.0, -2.0]), options("--filter shaped")
    )  # no reward, no difference
    assert column(plain, "advantage") == [None, None]


def test_the_unlikeliness_reward_leaves_what_is_not_right():
    shaped = unlikeliness_reward(GRADED, np.array([0.0, 1, 2, 3]), 0.25)
    assert shaped.tolist() == [0.5 * 3 / 4, -0.5, 7 / 8, 0]  # a wrong one earns nothing by being rare


def test_options_are_the_flags():
    assert vars(options()) == {
        "unlikeliness": 0.0,
        "rank_by": "sequence",
        "filter": "raw",
        "estimator": "grpo",
    }
    assert options("--unlikeliness 0.25 --estimator nsr").estimator == "nsr"
    for wrong in ("--unlikelyness 0.25", "--unlikeliness 2", "--estimator ppo"):
        with pytest.raises(SystemExit):
            options(wrong)


def test_group_advantages_drops_or_shapes_and_estimates():
    ranks = np.arange(4.0)
    assert group_advantages(np.ones(4), ranks, options("--unlikeliness 0.25")) is None
    shaped, advantages = group_advantages(
        RIGHT_2_OF_4, ranks, options("--unlikeliness 0.25 --estimator dr-grpo")
    )
    assert shaped.tolist() == SHAPED.tolist() and (32 * advantages).tolist() == [11, -13, 15, -13]


# JSONL


def failed(capsys, call):
    """The sentence that `call` ends the program with."""
    with pytest.raises(SystemExit) as ended:
        call()
    message = capsys.readouterr().err
    assert ended.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1
    return message


def test_jsonl_round_trip(tmp_path):
    rows = [{"id": "p", "text": "∀ x, «a»\n\t\u2028 end", "number": 0.1, "nothing": None}, {"id": "q"}]
    write_jsonl(tmp_path / "rows.jsonl", iter(rows))
    assert list(read_jsonl(tmp_path / "rows.jsonl", "id")) == rows and os.listdir(tmp_path) == ["rows.jsonl"]


def test_broken_jsonl_is_named_by_line(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    for text, message in [
        ('{"id": "1"}\n{"id": "2", "rew', "line 2: not valid JSON (cut short"),
        ('{"id": "1"}\n{]\n', "line 2: not valid JSON;"),
        ('{"id": NaN}\n', "line 1: not valid JSON"),
        ('{"id": "1", "logprobs": [-Infinity]}\n', "not valid JSON"),
        ('{"other": 1}\n', "the key 'id' is missing"),
        ("[1]\n", "not a JSON object"),
        ("tru\n", "not valid JSON"),
    ]:
        path.write_text(text)
        assert message in failed(capsys, lambda: list(read_jsonl(path, "id")))
    path.write_bytes(b'{"id": "\xff"}\n')
    assert "not UTF-8" in failed(capsys, lambda: list(read_jsonl(path)))
    assert "No such file" in failed(capsys, lambda: list(read_jsonl(tmp_path / "none.jsonl")))
    assert "cannot read" in failed(capsys, lambda: list(read_jsonl(tmp_path)))


def test_a_whole_last_line_needs_no_newline(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": "1"}\n{"id": "2"}')
    assert list(read_jsonl(tmp_path / "rows.jsonl", "id")) == [{"id": "1"}, {"id": "2"}]


def test_a_file_appears_only_when_it_is_complete(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text("old\n")

    def interrupted():
        yield {"id": "1"}
        assert path.read_text() == "old\n"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, interrupted())
    assert path.read_text() == "old\n"
    assert "cannot write" in failed(capsys, lambda: write_jsonl(tmp_path / "none" / "rows.jsonl", []))


def test_nan_is_never_written(tmp_path):
    for number in (math.nan, math.inf):
        with pytest.raises(ValueError):
            write_jsonl(tmp_path / "rows.jsonl", [{"advantage": number}])
    assert not (tmp_path / "rows.jsonl").exists()


# The command


def run(*arguments, cwd):
    command = [sys.executable, f"{ROOT}/advantage.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)


def test_command(tmp_path):
    rows = group([1.0, 0.0, 1.0, 0.0], [-1.0, -2.0, -3.0, -4.0], "a")
    rows += group([1.0, 1.0], [-1, -2], "b") + group([None], [-1], "c")
    write_jsonl(tmp_path / "verified.jsonl", rows)
    for flags, kept in [
        ("", 4),
        ("--unlikeliness 0.25", 4),
        ("--unlikeliness 0.25 --rank-by token-mean", 4),
        ("--unlikeliness 0.25 --filter shaped --estimator w-reinforce", 6),
    ]:
        done = run("verified.jsonl", "--out", "out.jsonl", *flags.split(), cwd=tmp_path)
        assert done.returncode == 0 and not done.stderr
        assert list(read_jsonl(tmp_path / "out.jsonl")) == add_advantages(rows, options(flags))
        assert done.stdout == f"7 rows, 3 groups, {kept} rows in groups that the filter keeps\n"
    helped = " ".join(run("--help", cwd=tmp_path).stdout.split())
    assert "see lib/estimators.py [paper: grpo] (default: grpo)" in helped and "None" not in helped


def test_command_holds_a_group_at_a_time(tmp_path, monkeypatch, capsys):
    """The rows of a group are written before the next group is read."""
    path, sizes, read = tmp_path / "verified.jsonl", [], []
    write_jsonl(
        path,
        group([1.0, 0.0], [-1, -2], "a") + group([0.0] * 3, [-1] * 3, "b") + group([1.0, 0.0], [-1, -2], "c"),
    )

    def counted(*arguments):
        for row in read_verified(*arguments):
            read.append(row["id"])
            yield row

    read_verified = lib.jsonl.read_verified
    monkeypatch.setattr(lib.jsonl, "read_verified", counted)
    monkeypatch.setattr(
        advantage,
        "tee_jsonl",
        lambda path, rows: (sizes.append((row["id"], len(read))) or row for row in rows),
    )
    monkeypatch.setattr(sys, "argv", ["advantage.py", str(path), "--out", "unused"])
    advantage.main()
    assert (
        sizes == [("a", 3)] * 2 + [("b", 6)] * 3 + [("c", 7)] * 2
    )  # one row ahead, which tells that a group is over
    assert capsys.readouterr().out == "7 rows, 3 groups, 4 rows in groups that the filter keeps\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("", "required"),
        (
            "torn.jsonl --out out.jsonl",
            "torn.jsonl: a comes again after other groups; put the rows of a group next to each other",
        ),
        ("verified.jsonl", "--out"),
        ("none.jsonl --out out.jsonl", "No such file"),
        (". --out out.jsonl", "cannot read"),
        ("empty.jsonl --out out.jsonl", "has no rows"),
        ("cut.jsonl --out out.jsonl", "cut short"),
        ("sampled.jsonl --out out.jsonl", "'reward' is missing"),
        ("text.jsonl --out out.jsonl", "'reward' is 'right', not a number or null"),
        ("verified.jsonl --out none/out.jsonl", "cannot write"),
        ("verified.jsonl --out out.jsonl --unlikeliness -1", "at least 0"),
        ("verified.jsonl --out out.jsonl --unlikeliness nan", "not a finite number"),
        ("verified.jsonl --out out.jsonl --unlikeliness much", "invalid float"),
        ("verified.jsonl --out out.jsonl --rank-by mood", "invalid choice"),
        ("verified.jsonl --out out.jsonl --estimator ppo", "invalid choice"),
        ("verified.jsonl --out out.jsonl --filter none", "invalid choice"),
        ("verified.jsonl --out out.jsonl --nonsense", "unrecognized"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, message):
    write_jsonl(tmp_path / "verified.jsonl", group([1.0, 0.0], [-1, -2]))
    write_jsonl(
        tmp_path / "sampled.jsonl",
        [{key: value for key, value in group([1.0], [-1])[0].items() if key != "reward"}],
    )
    write_jsonl(tmp_path / "text.jsonl", group(["right"], [-1]))
    write_jsonl(tmp_path / "torn.jsonl", [row for name in "aba" for row in group([1.0, 0.0], [-1, -2], name)])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "cut.jsonl").write_text((tmp_path / "verified.jsonl").read_text()[:-20])
    done = run(*arguments.split(), cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out.jsonl").exists()
