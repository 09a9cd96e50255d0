"""pass@N against enumeration, intervals, uplift, distinct proofs, figures, stories, and every command of evaluate.py."""

import doctest
import itertools
import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from math import comb
from types import SimpleNamespace

import numpy as np
import pytest

import evaluate
from lib import figures, samples, story

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(*arguments):
    command = [sys.executable, f"{ROOT}/evaluate.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def called(monkeypatch, capsys):
    """run() within this process, where torch is loaded already."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
        code = 0
        try:
            evaluate.main()
        except SystemExit as error:
            code = error.code
        return SimpleNamespace(returncode=code, stdout=(said := capsys.readouterr()).out, stderr=said.err)

    return call


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def verified(rewards):
    """Verified rows of {problem: rewards}; a problem's proofs alternate between two texts."""
    return [
        dict(
            id=name,
            statement=f"theorem {name} : True := by",
            sample=k,
            prompt_ids=[1, 5, 6],
            completion=f"\n  exact h{k % 2}",
            completion_ids=[7, 8 + k % 2, 2],
            finish_reason="stop",
            reward=reward,
        )
        for name, group in rewards.items()
        for k, reward in enumerate(group)
    ]


def is_png(path):
    return path.stat().st_size > 5000 and path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


# pass@N


def test_pass_at_n_is_the_share_of_subsets_with_a_correct_sample():
    for n in range(1, 8):
        for c in range(n + 1):
            for N in range(1, n + 1):
                subsets = list(itertools.combinations([k < c for k in range(n)], N))
                assert evaluate.pass_at_n(n, c, N) == pytest.approx(
                    np.mean([any(s) for s in subsets]), abs=1e-12
                ), (n, c, N)


def test_pass_at_n_edges():
    assert evaluate.pass_at_n(8, 0, 8) == 0  # exactly: nothing right
    assert evaluate.pass_at_n(8, 8, 1) == 1  # all right
    assert evaluate.pass_at_n(8, 1, 8) == 1  # N = n, so the right one is drawn
    assert evaluate.pass_at_n(8, 3, 6) == 1  # only 5 are wrong
    assert evaluate.pass_at_n(8, 3, 1) == pytest.approx(3 / 8)
    for n, N in [(8, 9), (0, 1), (8, 0)]:
        with pytest.raises(ValueError, match="1 <= N <= n"):
            evaluate.pass_at_n(n, 0, N)


def test_pass_at_n_of_many_samples_agrees_with_exact_integers():
    n = np.full(513, 512)
    c = np.arange(513)
    for N in (1, 2, 31, 256, 511, 512):
        exact = [1 - comb(512 - k, N) / comb(512, N) for k in range(513)]  # Python's integers are exact
        values = evaluate.pass_at_n(n, c, N)
        np.testing.assert_allclose(values, exact, atol=1e-12)
        assert (np.diff(values) >= -1e-15).all() and values[0] == 0 and values[-1] == 1
    assert evaluate.pass_at_n(10**6, 1, 10**4) == pytest.approx(0.01, rel=1e-9)


def test_pass_at_n_of_problems_with_different_n():
    np.testing.assert_allclose(evaluate.pass_at_n([4, 8], [1, 2], 2), [2 / 4, 1 - 6 * 5 / (8 * 7)])


def test_the_examples_of_the_docstrings():
    for module in (evaluate, samples):
        assert doctest.testmod(module).attempted and not doctest.testmod(module).failed


# Counting


def test_counts(tmp_path):
    rows = verified(
        {"a": [1.0, 0.0, None, 1.0], "b": [None, None], "c": [1, 1, 1, 0]}
    )  # a: proofs 0 and 1; c: 0, 1, 0
    rows[1]["finish_reason"] = rows[2]["finish_reason"] = "length"  # the second has no verdict
    counts = evaluate.load_counts(write(tmp_path / "v.jsonl", rows))
    assert counts["ids"] == ["a", "c"] and counts["unverified"] == 3 and counts["unjudged"] == 1
    assert {key: counts[key].tolist() for key in ("n", "correct", "truncated")} == {
        "n": [3, 4],
        "correct": [2, 3],
        "truncated": [1, 0],
    }
    assert counts["proofs"] == [{"exact h0": 1, "exact h1": 1}, {"exact h0": 2, "exact h1": 1}]
    assert counts["sequences"] == [{("exact",): 2}, {("exact",): 3}]


def test_a_reward_of_1_or_more_is_correct(tmp_path, monkeypatch):
    rows = [
        dict(row, reward=reward) for row, reward in zip(verified({"a": [1] * 6}), [0.5, 0.99, 1, 1.5, -2, 3])
    ]
    for reader in ("read_verified",):  # its own check of rewards is another test's
        monkeypatch.setattr(samples, reader, lambda path, *keys: iter(rows))
    assert evaluate.load_counts("v.jsonl")["correct"].tolist() == [3]
    assert len(evaluate.correct_samples("v.jsonl")) == 2  # two texts alternate


def test_unique_proofs_ignore_white_space_around_them(tmp_path):
    texts = ["\n  trivial", "\n  trivial\n", " trivial ", "\n  exact h"]
    rows = [dict(row, completion=text) for row, text in zip(verified({"a": [1] * 4}), texts)]
    assert [len(some) for some in evaluate.load_counts(write(tmp_path / "v.jsonl", rows))["proofs"]] == [2]


def counts_of(n, correct, ids=None):
    n, correct = np.array(n), np.array(correct)
    proofs = [Counter({"exact h": int(c)}) if c else Counter() for c in correct]
    return dict(
        n=n,
        correct=correct,
        proofs=proofs,
        sequences=proofs,
        truncated=0 * n,
        unverified=0,
        unjudged=0,
        ids=ids or [f"p{i}" for i in range(len(n))],
    )


# Intervals


def test_bootstrap_is_seeded_and_centred_on_the_mean():
    values = np.random.default_rng(1).random([50, 3])
    first = evaluate.bootstrap_mean(values, seed=3)
    np.testing.assert_array_equal(first, evaluate.bootstrap_mean(values, seed=3))
    assert (first != evaluate.bootstrap_mean(values, seed=4))[1:].all()
    np.testing.assert_allclose(first[0], values.mean(axis=0))
    assert (first[1] < first[0]).all() and (first[0] < first[2]).all()


def test_bootstrap_width_is_that_of_the_normal_approximation_and_shrinks():
    width = {}
    for problems in (100, 400):
        values = (np.arange(problems) % 2)[:, None].astype(float)  # mean 1/2, standard deviation 1/2
        _, low, high = evaluate.bootstrap_mean(values)[:, 0]
        width[problems] = high - low
        assert width[problems] == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(problems), rel=0.1)
    assert width[400] < 0.6 * width[100]


def test_bootstrap_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    intervals = [
        evaluate.bootstrap_mean(rng.random([80, 1]) < 0.3, repeats=300, seed=k)[1:, 0] for k in range(200)
    ]
    covered = [low <= 0.3 <= high for low, high in intervals]
    assert 0.89 < np.mean(covered) < 0.99


def test_any_number_of_resamplings_and_one_problem():
    assert evaluate.bootstrap_mean(np.ones([1, 2]), repeats=1).tolist() == [[1, 1]] * 3
    assert evaluate.bootstrap_mean(np.eye(3), repeats=101).shape == (3, 3)


def test_bootstrap_leaves_out_what_is_nan():
    nan = np.nan
    mean, low, high = evaluate.bootstrap_mean([[1, nan, nan], [0, 1, nan], [nan, 0, nan], [nan, nan, nan]])
    assert mean[:2].tolist() == [0.5, 0.5] and low[:2].tolist() == [0, 0] and high[:2].tolist() == [1, 1]
    assert np.isnan([mean[2], low[2], high[2]]).all()
    assert np.isnan(evaluate.bootstrap_mean(np.empty([0, 2]))).all()
    values = np.random.default_rng(2).random([60, 2])
    padded = np.concatenate(
        [values, np.full([60, 2], nan)]
    )  # half of the draws are empty rows: a wider interval
    np.testing.assert_allclose(evaluate.bootstrap_mean(padded)[0], values.mean(0))
    np.testing.assert_allclose(
        np.diff(evaluate.bootstrap_mean(padded)[1:], axis=0),
        np.diff(evaluate.bootstrap_mean(values)[1:], axis=0),
        rtol=0.15,
    )


def test_paired_difference_over_the_common_problems():
    first = counts_of([4, 4, 4], [0, 2, 4], ["a", "b", "c"])
    later = counts_of([4, 4, 4], [4, 1, 3], ["x", "c", "b"])  # b: 2 -> 3 of 4, c: 4 -> 1 of 4
    Ns, curve = evaluate.pass_curve(later, [1, 2, 4, 8], first)
    assert Ns == [1, 2, 4]
    assert curve[0].tolist() == pytest.approx([(1 / 4 - 3 / 4) / 2, ((1 - 5 / 6) + (3 / 6 - 1)) / 2, 0])
    # N = 2: b 1 - C(2,2)/C(4,2) = 5/6 -> 1 ; c 1 -> 1 - C(3,2)/C(4,2) = 3/6
    assert curve[1, 0] == pytest.approx(-0.75) and curve[2, 0] == pytest.approx(0.25)  # both drawn twice


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(0)
    easy = rng.integers(0, 30, 200)  # problems differ a lot, the two models little
    first, later = counts_of([32] * 200, easy), counts_of([32] * 200, easy + 1)
    width = lambda curve: curve[2, 0] - curve[1, 0]
    assert (
        width(evaluate.pass_curve(later, [1], first)[1])
        < 1e-12
        < 0.05
        < width(evaluate.pass_curve(later, [1])[1])
    )


# The table


def test_table_is_aligned_markdown_with_hand_worked_numbers():
    results = {"base": counts_of([4, 4], [1, 0]), "grpo": counts_of([4, 3], [4, 3])}
    text = evaluate.pass_table(results)
    assert text == evaluate.pass_table(results)
    for block in text.split("\n\n"):
        lines = block.split("\n")
        if lines[0].startswith("|"):
            assert len({len(line) for line in lines}) == 1 and len({line.count("|") for line in lines}) == 1
            assert set(lines[1]) <= set("|-: ")
    table = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for cells in (line.strip("| ").split("|") for line in text.split("\n\n")[0].split("\n"))
    }
    assert table["pass@1"][0].startswith("12.5 [") and table["pass@1"][1] == "100.0 [100.0, 100.0]"
    assert (
        table["pass@4"] == ["50.0 [0.0, 100.0]", "-"] and "pass@3" in table
    )  # grpo stops at its smallest n, 3
    assert table["problems solved"] == ["1 of 2", "2 of 2"] and table["samples per problem"] == [
        "4",
        "3 to 4",
    ]
    assert (
        table["distinct proofs in 1 correct"]
        == table["distinct sequences in 1 correct"]
        == ["1.0 [1.0, 1.0]"] * 2
    )
    assert "grpo - base" in text and "+87.5" in text
    assert "grpo: N stops at 3, all that p1 has; others have up to 4." in text


def test_files_without_a_common_problem_have_no_difference():
    text = evaluate.pass_table({"a": counts_of([2], [1], ["x"]), "b": counts_of([2], [1], ["y"])})
    assert [line for line in text.split("\n") if line.startswith("| problems in common")][0].split("|")[
        2
    ].strip() == "0"


def test_three_files_are_compared_with_the_first_and_with_the_second():
    text = evaluate.pass_table(
        {
            name: counts_of([4, 4], correct)
            for name, correct in (("base", [0, 4]), ("a", [1, 3]), ("b", [4, 2]))
        }
    )
    head, _, first, *_ = text.split("Paired differences")[1].split("\n\n")[1].split("\n")
    assert [cell.strip() for cell in head.split("|")[2:-1]] == ["a - base", "b - base", "b - a"]
    assert [cell.strip().split()[0] for cell in first.split("|")[2:-1]] == ["+0.0", "+25.0", "+25.0"]
    # pass@1: base (0, 1), a (1/4, 3/4), b (1, 1/2), so 0, (1 - 1/2) / 2 and (3/4 - 1/4) / 2


# Distinct proofs


def test_distinct_proofs_in_draws_by_hand():
    # of AAB: the pairs AA, AB, AB, so (1 + 2 + 2) / 3
    assert evaluate.distinct_in_draws([2, 1], 2) == pytest.approx(5 / 3)
    assert evaluate.distinct_in_draws([2, 1], 1) == 1 and evaluate.distinct_in_draws([2, 1], 3) == 2
    assert evaluate.distinct_in_draws([5], 3) == 1 and evaluate.distinct_in_draws(
        [1] * 6, 4
    ) == pytest.approx(4)


def test_distinct_proofs_in_draws_are_the_mean_over_all_subsets():
    for counts in ([3, 1, 1], [2, 2, 1], [4, 2], [1, 1, 1, 1, 2]):
        texts = [k for k, count in enumerate(counts) for _ in range(count)]
        for m in range(1, len(texts) + 1):
            subsets = list(itertools.combinations(texts, m))
            assert evaluate.distinct_in_draws(counts, m) == pytest.approx(
                np.mean([len(set(s)) for s in subsets])
            )


def test_distinct_proofs_are_counted_over_the_same_problems_at_equal_draws():
    def counts(**proofs):
        return {"ids": list(proofs), "proofs": [Counter(text) for text in proofs.values()]}

    results = {
        "base": counts(a="xxyy", b="xxxz", c="x", d=""),
        "tuned": counts(b="xxxxxxxx", a="xxxxy", c="xx", e="xxxx"),
    }
    # in common a, b, c; fewest correct samples 4, 4, 1, whose median is 4: so a and b at 1, 2, 4 draws
    lines = evaluate.distinct_curves(results, "proofs")
    assert lines["base"][0] == lines["tuned"][0] == [1, 2, 4]
    # base at 2: a of xxyy 4 of 6 pairs are mixed, b of xxxz 3 of 6; tuned at 2: a of xxxxy 4 of 10, b none
    assert lines["base"][1][0].tolist() == pytest.approx([1, (10 / 6 + 9 / 6) / 2, 2])
    assert lines["tuned"][1][0].tolist() == pytest.approx([1, (14 / 10 + 1) / 2, (1 + 4 / 5 + 1) / 2])
    apart = evaluate.distinct_curves({"base": counts(a="x"), "tuned": counts(b="x")}, "proofs")
    assert apart["base"][0] == [] and apart["base"][1].shape == (3, 0)


@pytest.mark.parametrize(
    "proof, names",
    [
        ("\n  intro h1 h2\n  exact h1", "intro exact"),
        ("\n  exact fun h1 h2 => ⟨fun h3 => h2, h1⟩", "exact"),
        (
            "\n  constructor\n  · intro h3; exact h3\n  · · simp [h] <;> rfl",
            "constructor intro exact simp rfl",
        ),
        (
            "\n  rcases h with h1 | h1\n  case inl => left; assumption\n  have h2 : p := by trivial\n  exact? ",
            "rcases left assumption have trivial exact?",
        ),
        ("", ""),
    ],
)
def test_names_of_tactics(proof, names):
    assert samples.tactic_names(proof) == tuple(names.split())


# Uplift


def test_uplift_by_hand():
    # p: likeliest -1, -3, -5, then after training lower, higher, lower; q: -2, -4: higher, lower; r has one proof: higher
    ids = ["p", "p", "p", "q", "q", "r"]
    before = [-5.0, -1.0, -3.0, -4.0, -2.0, -7.0]
    after = [-6.0, -1.5, -2.0, -4.0, -1.0, -6.0]  # q's -4 stays -4: not higher
    by_bin, by_rank = evaluate.uplift(ids, before, after, bins=2)
    assert by_rank[0].tolist() == pytest.approx([2 / 3, 1 / 2, 0]) and by_rank[3].tolist() == [3, 2, 1]
    # relative ranks of p 0, 1/2, 1: the middle one is in the upper bin, so p counts 0 and (1 + 0) / 2; q counts 1 and 0
    assert by_bin[0].tolist() == pytest.approx([1 / 2, 1 / 4]) and by_bin[3].tolist() == [2, 2]


def test_uplift_over_seeds_counts_the_share_of_runs():
    ids, before = ["p", "p", "q", "q"], [-1.0, -5.0, -2.0, -9.0]
    runs = (
        [-2.0, -4.0, -1.0, -8.0],
        [-2.0, -6.0, -1.0, -9.0],
    )  # likelier: no, yes, yes, yes; no, no, yes, no (equal)
    by_bin, by_rank = evaluate.uplift(ids, before, runs, bins=2)
    assert by_bin[0].tolist() == by_rank[0].tolist() == [0.5, 0.5] and by_bin[3].tolist() == [
        2,
        2,
    ]  # (0 + 1) / 2, (1/2 + 1/2) / 2


def test_uplift_ends_and_empty_bins():
    by_bin, by_rank = evaluate.uplift(["p"] * 3, [-1, -2, -3], [0, -3, 0], bins=4)  # relative rank 0, 1/2, 1
    assert (
        by_bin[0, [0, 2, 3]].tolist() == [1, 0, 1]
        and np.isnan(by_bin[0, 1])
        and by_bin[3].tolist() == [1, 0, 1, 1]
    )
    assert "-" in evaluate.uplift_table({"m": (by_bin, by_rank)}).split("\n")[3]


def test_the_interval_of_uplift_is_the_bootstrap_over_problems():
    ids, before = [f"p{k // 2}" for k in range(200)], [-1.0, -2.0] * 100
    after = [
        -0.5,
        -3.0,
        -1.5,
        -1.0,
    ] * 50  # likelier in every second problem: the likely one, then the rare one
    by_bin, _ = evaluate.uplift(ids, before, after, bins=2)
    values = np.tile([[1, 0], [0, 1]], [50, 1])
    np.testing.assert_array_equal(by_bin[:3], evaluate.bootstrap_mean(values))
    assert by_bin[2, 0] - by_bin[1, 0] == pytest.approx(
        2 * 1.96 * 0.5 / 10, rel=0.1
    )  # as of 100 problems, not of 200 proofs


def test_correct_samples_are_distinct_in_their_token_ids(tmp_path):
    rows = verified({"b": [1, 1, 1, 0], "a": [1, None], "c": [0]}) + verified({"b": [1]})
    found = evaluate.correct_samples(write(tmp_path / "v.jsonl", rows))
    assert [(row["id"], row["completion_ids"]) for row in found] == [
        ("b", [7, 8, 2]),
        ("b", [7, 9, 2]),
        ("a", [7, 8, 2]),
    ]


def test_score_is_the_log_probability_of_the_stored_ids(tiny_model_dir):
    import torch

    from lib.model import load_model

    model, _ = load_model(tiny_model_dir)
    rows = [
        dict(prompt_ids=[1, 5, 6], completion_ids=[7, 8, 2]),
        dict(prompt_ids=[1, 9], completion_ids=[10, 2]),
    ]
    args = Namespace(dtype="float32", device="cpu", micro_batch_tokens=64)
    got = evaluate.score(tiny_model_dir, rows, args)
    for row, value in zip(rows, got):
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        assert value == pytest.approx(float(logps[len(row["prompt_ids"]) - 1 :].sum()), abs=1e-4)
    with pytest.raises(SystemExit):
        evaluate.score(tiny_model_dir, [dict(prompt_ids=[1], completion_ids=[10**6])], args)


# Colours, names and figures


def test_the_base_model_is_grey_and_runs_have_different_colours():
    looks = figures.styles(["base", "a", "b", "stored c", "d"])
    assert len({look["color"] for look in looks.values()}) == 5
    assert figures.styles(["x", "base"])["base"] == looks["base"] and figures.styles(["x"])["x"] == looks["a"]
    many = figures.styles([f"run{k}" for k in range(20)])  # more runs than colours: then their dashes differ
    assert len({(look["color"], look["linestyle"]) for look in many.values()}) == 20


def test_names_of_inputs():
    paths = ["runs/a/eval_00000/verified.jsonl", "out/base.jsonl", "runs/a/checkpoints/step_00060", "runs/b/"]
    assert list(evaluate.name_inputs(paths, None)) == [
        "runs/a/eval_00000",
        "out/base",
        "runs/a/checkpoints/step_00060",
        "runs/b",
    ]
    assert evaluate.name_inputs(paths[1:3], ["x", "y"]) == {"x": paths[1], "y": paths[2]}


def test_the_numbers_of_a_figure_stand_beside_it_and_come_back(tmp_path):
    nan = np.nan
    lines = {
        "base": ([1, 2], np.array([[0.5, 0.75], [0.25, nan], [0.7, nan]])),
        'odd, "name"': ([0.1], np.array([[1 / 3]] * 3)),
    }
    parts = [
        figures.Panel("first", "x", lines),
        figures.Panel("second", "x", {"a": ([8], np.array([[3], [2], [4]]))}, log=True, scale=1),
    ]
    figures.draw(parts, str(tmp_path / "f.png"))
    assert is_png(tmp_path / "f.png")
    text = (tmp_path / "f.csv").read_text().split("\n")
    assert text[:3] == ["panel,label,x,value,low,high", "first,base,1,0.5,0.25,0.7", "first,base,2,0.75,,"]
    back = figures.read_csv(str(tmp_path / "f.csv"))
    assert list(back) == ["first", "second"] and list(back["first"]) == list(lines)
    for name, (x, curve) in lines.items():
        assert back["first"][name][0].tolist() == list(x)
        np.testing.assert_allclose(back["first"][name][1], curve, rtol=1e-5)


def test_a_stored_figure_is_drawn_in_grey_without_its_base_model(tmp_path, monkeypatch):
    line = [1, 2], np.array([[0.5, 0.6]] * 3)
    figures.draw(
        [
            figures.Panel("p", "x", {"base": line, "Default": line}),
            figures.Panel("gone", "x", {"Default": line}),
        ],
        str(tmp_path / "f.png"),
    )
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    parts = [figures.Panel("p", "x", {"base": line, "new": line})]
    figures.draw(parts, str(tmp_path / "g.png"), str(tmp_path / "f.csv"))
    assert {ax_line.get_label(): ax_line.get_color() for ax_line in drawn[0].axes[0].lines} == {
        "base": "#444444",
        "new": figures.COLORS[0],
        "stored Default": "#AAAAAA",
    }


def test_a_figure_can_have_the_intervals_of_some_lines_alone(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    line = [1, 2], np.array([[0.5, 0.6], [0.4, 0.5], [0.6, 0.7]])
    for bands in ((), ("b",)):
        parts = [figures.Panel("p", "x", {"a": line, "b": line, "c": line})]
        figures.draw(parts, str(tmp_path / "f.png"), bands=bands)
    assert [len(figure.axes[0].collections) for figure in drawn] == [3, 1]
    assert (tmp_path / "f.csv").read_text().count(",0.4,0.6") == 3  # the numbers are all there


def test_curves_are_means_of_equal_parts_of_the_run(tmp_path):
    rows = [
        dict(step=k, reward=k / 100, unique=0.5, kl=None if k % 2 else 0.01 * k, clip_fraction=None)
        for k in range(40)
    ]
    write(tmp_path / "metrics.jsonl", rows)
    reward, unique, kl, clipped = (part.lines["a"] for part in figures.curve_panels({"a": str(tmp_path)}))
    assert reward[0].tolist() == [0.5 + 2 * k for k in range(20)]  # 40 steps, 2 a part
    assert reward[1][0].tolist() == pytest.approx([(0.5 + 2 * k) / 100 for k in range(20)])
    assert kl[0].tolist() == [2.0 * k for k in range(20)] and kl[1][0].tolist() == pytest.approx(
        [0.02 * k for k in range(20)]
    )
    assert clipped[0].shape == (0,) and clipped[1].shape == (3, 0)


def test_figures_of_functions(tmp_path):
    figures.draw(
        evaluate.pass_panels({"a": counts_of([1], [1]), "b": counts_of([7, 9], [0, 3])}),
        str(tmp_path / "p.png"),
    )
    figures.draw(
        evaluate.uplift_panels({"a": evaluate.uplift(["p"], [-1], [-2])}), str(tmp_path / "u.png")
    )  # no problem with two proofs
    assert is_png(tmp_path / "p.png") and is_png(tmp_path / "u.png")


# The story


def told(likely, rare, one=(0.06, 0.04, 0.08), many=(-0.03, -0.05, -0.01)):
    passes = [([1, 64], np.array([[0.571, 0.830]] * 3)), ([1, 64], np.array([one, many]).T)]
    rates = np.array([[*ends, 10.0] for ends in (likely, rare)]).T, None
    distinct = [
        [([1, 8], np.array([[1, before]] * 3)), ([1, 8], np.array([[1, after]] * 3))]
        for before, after in ((5.25, 4.0), (4.5, 3.0))
    ]
    return story.sentences("GRPO-Default", 200, passes, rates, distinct).split("\n")


def test_three_sentences_by_hand():
    assert told((0.55, 0.50, 0.60), (0.16, 0.12, 0.20)) == [
        "- GRPO-Default proves 57.1 % of 200 theorems at one try, 6.0 points more than the base model [+4.0, +8.0]; "
        "83.0 % at 64 tries, 3.0 points fewer than the base model [-5.0, -1.0].",
        "- Of the base model's correct proofs it made 55 % of the likeliest fifth likelier and 16 % of the rarest: "
        "it favours proofs that were likely anyway, the paper's rank bias.",
        "- 8 correct samples of a theorem hold 4.0 distinct proofs, 5.2 before; counted as sequences of tactic names 3.0, 4.5 before.",
    ]


def test_the_sentences_turn_with_the_numbers():
    assert "the rank bias reversed" in told((0.2, 0.15, 0.25), (0.6, 0.5, 0.7))[1]
    assert "no slope beyond the intervals" in told((0.5, 0.4, 0.6), (0.4, 0.3, 0.5))[1]
    first = told((0.5, 0.4, 0.6), (0.4, 0.3, 0.5), one=(-0.02, -0.03, -0.01), many=(0.01, -0.02, 0.04))[0]
    assert "2.0 points fewer than the base model [-3.0, -1.0];" in first
    assert first.endswith("1.0 points more than the base model [-2.0, +4.0], the interval includes 0.")


def test_sentences_of_a_run_without_a_correct_sample():
    passes = [([1], np.zeros([3, 1])), ([1], np.zeros([3, 1]))]
    nothing = ([], np.empty([3, 0]))
    text = story.sentences("a", 2, passes, None, [(nothing, nothing)] * 2)
    assert (
        text
        == "- a proves 0.0 % of 2 theorems at one try, 0.0 points more than the base model [+0.0, +0.0], the interval includes 0."
    )
    alone = evaluate.uplift(["p"], [-1], [-2])  # no theorem has two proofs
    assert story.sentences("a", 2, passes, alone, [(nothing, nothing)] * 2) == text


def test_examples_are_the_theorem_and_the_rare_proof_that_gained_most():
    def counts(n, **proofs):
        some = [Counter(text) for text in proofs.values()]
        return {
            "ids": list(proofs),
            "n": [n] * len(some),
            "correct": [c.total() for c in some],
            "proofs": some,
        }

    rows = [
        dict(id=name, statement=f"theorem {name}", completion=text)
        for name, texts in (("a", "uvwxyz"), ("b", "st"))
        for text in texts
    ]
    before, after = [-1, -2, -3, -4, -5, -6, -1, -2], [-0, -2, -1, -4, -5, -5, -0, -1.5]
    base, trained = counts(8, a="uvwxyz", b="st"), counts(8, b="ssst", a="uuuvwxy")
    text = story.examples({"base": base, "run": trained}, rows, before, after)
    assert (
        "theorem b\n\nBefore, 2 of 8 samples are correct, 1 times with this proof:\n\n      s" in text
    )  # +2 of 8, a +1 of 8
    assert "After, 4 of 8 samples are correct, 3 times with this proof:\n\n      s" in text
    assert "to 2.72 times the probability (0.0025 before)" in text and text.endswith(
        "theorem a\n      z"
    )  # z and t are rarest fifths
    assert story.examples({"base": base, "run": base}, rows, before, before) == ""


# The commands


@pytest.fixture
def files(tmp_path, tiny_model_dir):
    write(tmp_path / "runs/base/verified.jsonl", verified({"p": [1, 0, 0, 1], "q": [0, 0, 0, 0]}))
    write(
        tmp_path / "runs/unlikely/eval_00002/verified.jsonl",
        verified({"p": [1, 1, 0, 1], "q": [0, 1, 0, None]}),
    )
    write(
        tmp_path / "runs/unlikely/metrics.jsonl",
        [
            dict(step=k, reward=0.1 * k, unique=0.9, kl=None if k == 1 else 0.01, clip_fraction=0.0)
            for k in range(3)
        ],
    )
    write(
        tmp_path / "runs/grpo/metrics.jsonl",
        [dict(step=k, reward=0.5, unique=0.9, kl=None, clip_fraction=None) for k in range(90)],
    )
    write(tmp_path / "broken.jsonl", [])
    (tmp_path / "broken.jsonl").write_text('{"id": "p", "rew')
    write(tmp_path / "empty.jsonl", [])
    write(tmp_path / "unjudged.jsonl", verified({"p": [None]}))
    write(tmp_path / "wrong.jsonl", verified({"p": [0, 0]}))
    write(tmp_path / "no_reward.jsonl", [{"id": "p", "completion": "", "finish_reason": "stop"}])
    write(tmp_path / "text_reward.jsonl", verified({"p": ["right"]}))
    write(tmp_path / "runs/empty/metrics.jsonl", [])
    write(tmp_path / "runs/old/metrics.jsonl", [{"step": 1}])
    return tmp_path


def test_pass_command(files):
    done = run(
        files / "runs/base/verified.jsonl",
        files / "runs/unlikely/eval_00002/verified.jsonl",
        "--out",
        files / "figures",
    )
    assert done.returncode == 0 and not done.stderr
    assert (
        "unlikely/eval_00002 |" in done.stdout
        and "pass@3" in done.stdout
        and "Paired differences" in done.stdout
    )
    assert "1 samples without a verdict" in done.stdout and is_png(files / "figures/pass_at_n.png")


def test_curves_command(files):
    done = run(
        "curves",
        files / "runs/unlikely",
        files / "runs/grpo",
        "--out",
        files / "figures",
        "--labels",
        "ours",
        "theirs",
    )
    assert done.returncode == 0 and not done.stderr and is_png(files / "figures/curves.png")
    assert list(figures.read_csv(str(files / "figures/curves.csv"))["reward, mean of all samples"]) == [
        "ours",
        "theirs",
    ]


def test_uplift_command(files, called, tiny_model_dir):
    done = called(
        "uplift",
        "--before",
        tiny_model_dir,
        "--after",
        tiny_model_dir,
        files / "runs/unlikely/eval_00002/verified.jsonl",
        "--bins",
        4,
        "--out",
        files / "figures",
    )
    assert done.returncode == 0, done.stderr
    assert "3 distinct correct samples of 2 problems" in done.stdout and "0.75 to 1.00" in done.stdout
    assert " 0.0 [0.0, 0.0] |" in done.stdout  # the same model: no sample is likelier
    assert is_png(files / "figures/uplift.png")


def test_help():
    for command in ([], ["pass"], ["uplift"], ["curves"], ["compare"]):
        done = run(*command, "--help")
        assert done.returncode == 0 and ("--out" if command else "compare") in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("", "required"),
        ("none.jsonl", "cannot read"),
        ("broken.jsonl", "not valid JSON"),
        ("empty.jsonl", "no row with a verdict"),
        ("unjudged.jsonl", "no row with a verdict"),
        ("no_reward.jsonl", "'reward' is missing"),
        ("text_reward.jsonl", "'reward' is 'right', not a number or null"),
        ("runs", "cannot read"),
        ("uplft wrong.jsonl", "did you mean uplift?"),
        ("Compare runs/unlikely", "did you mean compare?"),
        ("pas wrong.jsonl", "did you mean pass?"),
        ("pass none.jsonl", "cannot read"),
        ("wrong.jsonl --what", "--what"),
        ("wrong.jsonl --labels a b", "--labels"),
        ("wrong.jsonl wrong.jsonl", "--labels"),
        ("wrong.jsonl --out empty.jsonl", "choose another --out"),
        ("wrong.jsonl --out empty.jsonl/figures", "choose another --out"),
        ("curves", "required"),
        ("curves runs/none", "cannot read"),
        ("curves runs/empty", "no rows yet"),
        ("curves runs/old", "is missing"),
        ("uplift wrong.jsonl", "--before"),
        ("uplift --before a wrong.jsonl", "--after"),
        ("uplift --before a --after b wrong.jsonl", "no correct sample"),
        ("uplift --before a --after b none.jsonl", "cannot read"),
        ("uplift --before a --after b wrong.jsonl --bins 1", "at least 2"),
        ("uplift --before a --after b wrong.jsonl wrong.jsonl", "unrecognized"),
        ("compare", "required"),
        ("compare runs/none", "give a run folder"),
        ("compare runs/unlikely --outt x", "did you mean --out?"),
        ("compare runs/unlikely", "args.json"),
        ("show runs/unlikely", "required"),
        ("show runs/none p", "give a run folder"),
    ],
)
def test_bad_input_is_one_sentence(files, monkeypatch, called, arguments, message):
    monkeypatch.chdir(files)
    done = called(*arguments.split())
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_folder_that_is_no_model(files, called):
    model = files / "runs"
    done = called(
        "uplift",
        "--before",
        model,
        "--after",
        model,
        files / "runs/base/verified.jsonl",
        "--out",
        files / "f",
    )
    assert done.returncode == 2 and "no model folder" in done.stderr.splitlines()[-1], done.stderr


@pytest.fixture
def run_folders(tmp_path, tiny_model_dir):
    """Two run folders as train.py leaves them, with the tiny model before and after; other.. began with another model."""
    base = verified({"p": [1, 1, 0, 1], "q": [0, 1, 0, 0]})
    for name, model, rewards in (
        ("a", tiny_model_dir, [1, 1, 1, 1]),
        ("b", tiny_model_dir, [1, 0, 0, None]),
        ("other", "elsewhere", [1]),
    ):
        folder = tmp_path / "runs" / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints/step_00002").symlink_to(tiny_model_dir)
        write(folder / "args.json", [{"settings": {"model": model}, "files": {"model": f"hash of {model}"}}])
        write(
            folder / "metrics.jsonl",
            [dict(step=k, reward=0.5, unique=0.9, kl=0.01, clip_fraction=None) for k in range(2)],
        )
        write(folder / "eval_00000/problems.jsonl", [{"id": "p"}, {"id": "q"}])
        write(folder / "eval_00000/verified.jsonl", base)
        write(
            folder / "eval_00002/verified.jsonl", verified({"p": rewards, "q": [0, 1, 0, 0][: len(rewards)]})
        )
        write(folder / "step_00001/problems.jsonl", [{"id": "t"}])
        write(
            folder / "step_00001/advantages.jsonl",
            [
                dict(row, verdict="proved" if row["reward"] else "rejected", rank=float(k), advantage=0.5 - k)
                for k, row in enumerate(verified({"t": [1, 0, 1]}))
            ],
        )
    return tmp_path


def test_compare_command(run_folders, called):
    done = called(
        "compare",
        run_folders / "runs/a",
        run_folders / "runs/b",
        "--labels",
        "a",
        "b",
        "--out",
        run_folders / "figures",
    )
    assert done.returncode == 0, done.stderr
    assert "a - base model" in done.stdout and "b - a" in done.stdout and "b, % likelier" in done.stdout
    assert (
        "- a proves 62.5 % of 2 theorems at one try, 12.5 points more" in done.stdout
    )  # (4/4 + 1/4) / 2, before (3/4 + 1/4) / 2
    assert "- b proves 29.2 % of 2 theorems" in done.stdout  # (1/3 + 1/4) / 2
    assert is_png(run_folders / "figures/compare.png")
    numbers = figures.read_csv(str(run_folders / "figures/compare.csv"))
    assert numbers["pass@N"]["a"][1][0].tolist() == [0.625, 0.75, 0.875, 1.0]  # q: 1/4, 1/2, 3/4, 1
    assert numbers["distinct proofs"]["base model"][0].tolist() == [
        1
    ]  # a problem with one correct sample is in it
    assert list(numbers) == [
        "pass@N",
        "pass@N above base model",
        "the base model's proofs made likelier",
        "distinct proofs",
        "distinct sequences of tactic names",
        "reward, mean of all samples",
        "share of distinct completions",
        "KL to the base model, per token",
    ]


def test_compare_tells_one_run_with_examples(run_folders, called):
    done = called("compare", run_folders / "runs/a", "--labels", "ours", "--out", run_folders / "figures")
    assert done.returncode == 0, done.stderr
    assert "The theorem that gained most" in done.stdout and "theorem p : True := by" in done.stdout
    assert (
        "3 of 4 samples are correct, 2 times with this proof:" in done.stdout
        and "4 of 4 samples are correct" in done.stdout
    )


@pytest.mark.parametrize("content", ["", "{}\n", '{"model": "toy/base"}\n', '{"settings": 3, "files": {}}\n'])
def test_a_run_folder_of_another_kind_is_told_of(run_folders, called, content):
    (run_folders / "runs/a/args.json").write_text(content)
    for arguments in (["compare", run_folders / "runs/a"], ["show", run_folders / "runs/a", "t"]):
        done = called(*arguments)
        assert done.returncode == 2 and "args.json names no model" in done.stderr


def test_the_base_model_is_compared_by_most_of_its_samples(run_folders):
    more = verified({"p": [1, 1, 0, 1, 0], "q": [0, 1, 0, 0, 0]})
    write(run_folders / "runs/b/eval_00000/verified.jsonl", more)
    runs = {name: str(run_folders / "runs" / name) for name in "ab"}
    files = evaluate.read_evaluations(runs)[1]
    assert files == {
        "base model": f"{runs['b']}/eval_00000/verified.jsonl",
        **{name: f"{run}/eval_00002/verified.jsonl" for name, run in runs.items()},
    }


def test_compare_wants_runs_that_compare(run_folders, called):
    done = called(
        "compare", run_folders / "runs/a", run_folders / "runs/other", "--out", run_folders / "figures"
    )
    assert (
        done.returncode == 2
        and "elsewhere" in done.stderr
        and done.stderr.splitlines()[-1].startswith("error: ")
    )
    for path in (run_folders / "runs/b").glob("eval_*/verified.jsonl"):
        path.unlink()
    done = called("compare", run_folders / "runs/a", run_folders / "runs/b", "--out", run_folders / "figures")
    assert done.returncode == 2 and "--eval-samples" in done.stderr
    done = called("compare", run_folders / "runs/b", "--out", run_folders / "figures")  # alone: its curves
    assert done.returncode == 0 and "pass@" not in done.stdout and is_png(run_folders / "figures/compare.png")


def test_show_command(run_folders, called):
    done = called("show", run_folders / "runs/a", "t")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("theorem t : True := by\n")
    assert "step_00001: 3 samples, 2 correct, 2 distinct" in done.stdout and "\033" not in done.stdout
    assert re.search(
        r"proved, rank 0, advantage 0.5, log-probability (-[\d.]+) before, \1 after, 2 times\n      exact h0",
        done.stdout,
    )
    assert "rejected, rank 1, advantage -0.5" in done.stdout
    evaluated = called("show", run_folders / "runs/a", "q")
    assert (
        "eval_00000: 4 samples, 1 correct, 2 distinct" in evaluated.stdout and "rank" not in evaluated.stdout
    )
    missing = called("show", run_folders / "runs/a", "nobody")
    assert missing.returncode == 2 and "no samples of a theorem nobody" in missing.stderr
