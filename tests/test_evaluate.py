"""pass@N against enumeration, intervals, uplift, colours, figures, and every command of evaluate.py with its bad inputs."""
import itertools
import json
import os
import subprocess
import sys
from argparse import Namespace
from math import comb

import numpy as np
import pytest

import evaluate
import lib.figures

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(*arguments):
    command = [sys.executable, f"{ROOT}/evaluate.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def verified(rewards):
    """Verified rows of {problem: rewards}; a problem's proofs alternate between two texts."""
    return [dict(id=name, sample=k, prompt_ids=[1, 5, 6], completion=f"\n  exact h{k % 2}", completion_ids=[7, 8 + k % 2, 2],
                 finish_reason="stop", reward=reward) for name, group in rewards.items() for k, reward in enumerate(group)]


def is_png(path):
    return path.stat().st_size > 5000 and path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


# pass@N

def test_pass_at_n_is_the_share_of_subsets_with_a_correct_sample():
    for n in range(1, 8):
        for c in range(n + 1):
            for N in range(1, n + 1):
                subsets = list(itertools.combinations([k < c for k in range(n)], N))
                assert evaluate.pass_at_n(n, c, N) == pytest.approx(np.mean([any(s) for s in subsets]), abs=1e-12), (n, c, N)


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


# Counting

def test_counts(tmp_path):
    rows = verified({"a": [1.0, 0.0, None, 1.0], "b": [None, None], "c": [1, 1, 1, 0]})  # a: proofs 0 and 1; c: 0, 1, 0
    rows[1]["finish_reason"] = rows[2]["finish_reason"] = "length"  # the second has no verdict
    counts = evaluate.load_counts(write(tmp_path / "v.jsonl", rows))
    assert counts["ids"] == ["a", "c"] and counts["unverified"] == 3 and counts["unjudged"] == 1
    assert {key: counts[key].tolist() for key in ("n", "correct", "unique", "truncated")} == {
        "n": [3, 4], "correct": [2, 3], "unique": [2, 2], "truncated": [1, 0]}


def test_unique_proofs_ignore_white_space_around_them(tmp_path):
    texts = ["\n  trivial", "\n  trivial\n", " trivial ", "\n  exact h"]
    rows = [dict(row, completion=text) for row, text in zip(verified({"a": [1] * 4}), texts)]
    assert evaluate.load_counts(write(tmp_path / "v.jsonl", rows))["unique"].tolist() == [2]


def counts_of(n, correct, ids=None):
    n, correct = np.array(n), np.array(correct)
    return dict(n=n, correct=correct, unique=np.minimum(correct, 1), truncated=0 * n, ids=ids or [f"p{i}" for i in range(len(n))],
                unverified=0, unjudged=0)


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
    intervals = [evaluate.bootstrap_mean(rng.random([80, 1]) < 0.3, repeats=300, seed=k)[1:, 0] for k in range(200)]
    covered = [low <= 0.3 <= high for low, high in intervals]
    assert 0.89 < np.mean(covered) < 0.99


def test_any_number_of_resamplings_and_one_problem():
    assert evaluate.bootstrap_mean(np.ones([1, 2]), repeats=1).tolist() == [[1, 1]] * 3
    assert evaluate.bootstrap_mean(np.eye(3), repeats=101).shape == (3, 3)


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
    assert width(evaluate.pass_curve(later, [1], first)[1]) < 1e-12 < 0.05 < width(evaluate.pass_curve(later, [1])[1])


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
    table = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in
             (line.strip("| ").split("|") for line in text.split("\n\n")[0].split("\n"))}
    assert table["pass@1"][0].startswith("12.5 [") and table["pass@1"][1] == "100.0 [100.0, 100.0]"
    assert table["pass@4"] == ["50.0 [0.0, 100.0]", "-"] and "pass@3" in table  # grpo stops at its smallest n, 3
    assert table["problems solved"] == ["1 of 2", "2 of 2"] and table["samples per problem"] == ["4", "3 to 4"]
    assert table["unique proofs"] == ["100.0 % of 1", "28.6 % of 7"]
    assert "Paired difference to base" in text and "+87.5" in text
    assert "grpo: N stops at 3, all that p1 has; others have up to 4." in text


def test_files_without_a_common_problem_have_no_difference():
    text = evaluate.pass_table({"a": counts_of([2], [1], ["x"]), "b": counts_of([2], [1], ["y"])})
    assert [line for line in text.split("\n") if line.startswith("| problems in common")][0].split("|")[2].strip() == "0"


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
    runs = [-2.0, -4.0, -1.0, -8.0], [-2.0, -6.0, -1.0, -9.0]  # likelier: no, yes, yes, yes; no, no, yes, no (equal)
    by_bin, by_rank = evaluate.uplift(ids, before, runs, bins=2)
    assert by_bin[0].tolist() == by_rank[0].tolist() == [0.5, 0.5] and by_bin[3].tolist() == [2, 2]  # (0 + 1) / 2, (1/2 + 1/2) / 2


def test_uplift_ends_and_empty_bins():
    by_bin, by_rank = evaluate.uplift(["p"] * 3, [-1, -2, -3], [0, -3, 0], bins=4)  # relative rank 0, 1/2, 1
    assert by_bin[0, [0, 2, 3]].tolist() == [1, 0, 1] and np.isnan(by_bin[0, 1]) and by_bin[3].tolist() == [1, 0, 1, 1]
    assert "-" in evaluate.uplift_table({"m": (by_bin, by_rank)}).split("\n")[3]


def test_wilson_interval():
    rate, low, high, n = evaluate.wilson([[1] * 10, [1, 0] * 50, []])
    assert rate[:2].tolist() == [1, 0.5] and n.tolist() == [10, 100, 0] and np.isnan([rate[2], low[2], high[2]]).all()
    assert (low[0], high[0]) == (pytest.approx(0.7225, abs=1e-3), pytest.approx(1))  # n / (n + 1.96^2) = 10 / 13.84
    assert (low[1], high[1]) == (pytest.approx(0.4038, abs=1e-3), pytest.approx(0.5962, abs=1e-3))


def test_correct_samples_are_distinct_in_their_token_ids(tmp_path):
    rows = verified({"b": [1, 1, 1, 0], "a": [1, None], "c": [0]}) + verified({"b": [1]})
    found = evaluate.correct_samples(write(tmp_path / "v.jsonl", rows))
    assert [(row["id"], row["completion_ids"]) for row in found] == [("b", [7, 8, 2]), ("b", [7, 9, 2]), ("a", [7, 8, 2])]


def test_score_is_the_log_probability_of_the_stored_ids(tiny_model_dir):
    import torch

    from lib.model import load_model
    model, _ = load_model(tiny_model_dir)
    rows = [dict(prompt_ids=[1, 5, 6], completion_ids=[7, 8, 2]), dict(prompt_ids=[1, 9], completion_ids=[10, 2])]
    args = Namespace(dtype="float32", device="cpu", micro_batch_tokens=64)
    got = evaluate.score(tiny_model_dir, rows, args)
    for row, value in zip(rows, got):
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        assert value == pytest.approx(float(logps[len(row["prompt_ids"]) - 1:].sum()), abs=1e-4)
    with pytest.raises(SystemExit):
        evaluate.score(tiny_model_dir, [dict(prompt_ids=[1], completion_ids=[10**6])], args)


# Colours, names and figures

def test_a_run_has_one_colour_in_all_figures():
    both = lib.figures.styles(["base", "grpo/eval_00060", "unlikely/eval_00060", "unlikely/eval_00000"])
    alone = lib.figures.styles(["unlikely"])
    assert alone["unlikely"]["color"] == both["unlikely/eval_00060"]["color"] != both["grpo/eval_00060"]["color"]
    grey = both["base"]
    assert both["unlikely/eval_00000"]["color"] == grey["color"] and both["unlikely/eval_00000"]["linestyle"] != grey["linestyle"]
    assert lib.figures.styles(["unlikely/eval_00060", "base"])["base"]["color"] == grey["color"]
    assert lib.figures.styles(["b", "a"]) == {label: lib.figures.styles(["a", "b"])[label] for label in ("b", "a")}


def test_colours_differ_within_a_figure_while_there_are_enough():
    paper = ["default", "high-kl", "epochs-2", "epochs-3", "unlikeliness-1", "unlikeliness-2"]
    for name in paper:  # whatever else is in the figure
        assert lib.figures.styles([name])[name] == lib.figures.styles(paper)[name]
    for k in range(30):
        labels = [f"run{k}-{seed}" for seed in range(len(lib.figures.COLORS))]
        assert len({look["color"] for look in lib.figures.styles(labels).values()}) == len(labels)
    assert len(lib.figures.styles([f"run{k}" for k in range(20)])) == 20  # more runs than colours


def test_names_from_paths():
    paths = ["runs/unlikely/eval_00000/verified.jsonl", "out/base.jsonl", "runs/base/verified.jsonl",
             "runs/a/checkpoints/step_00060", "runs/b/", "runs/c/model"]
    names = ["unlikely/eval_00000", "base", "a/step_00060", "b", "c/model"]
    assert list(evaluate.name_inputs(paths[:2] + paths[3:], None)) == names
    assert list(evaluate.name_inputs(paths[2:3], None)) == ["base"]
    assert evaluate.name_inputs(paths[1:3], ["x", "y"]) == {"x": paths[1], "y": paths[2]}


def test_figures_of_functions(tmp_path):
    evaluate.draw_passes({"a": counts_of([1], [1]), "b": counts_of([7, 9], [0, 3])}, str(tmp_path / "new" / "p.png"))
    evaluate.draw_uplift({"a": evaluate.uplift(["p"], [-1], [-2])}, str(tmp_path / "u.png"))  # no problem with two proofs
    assert is_png(tmp_path / "new" / "p.png") and is_png(tmp_path / "u.png")


# The commands

@pytest.fixture
def files(tmp_path, tiny_model_dir):
    write(tmp_path / "runs/base/verified.jsonl", verified({"p": [1, 0, 0, 1], "q": [0, 0, 0, 0]}))
    write(tmp_path / "runs/unlikely/eval_00002/verified.jsonl", verified({"p": [1, 1, 0, 1], "q": [0, 1, 0, None]}))
    write(tmp_path / "runs/unlikely/metrics.jsonl", [
        dict(step=k, reward=0.1 * k, unique=0.9, kl=None if k == 1 else 0.01, clip_fraction=0.0) for k in range(3)])
    write(tmp_path / "runs/grpo/metrics.jsonl", [
        dict(step=k, reward=0.5, unique=0.9, kl=None, clip_fraction=None) for k in range(90)])
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
    done = run(files / "runs/base/verified.jsonl", files / "runs/unlikely/eval_00002/verified.jsonl", "--out", files / "figures",
               "--bootstrap", 50)
    assert done.returncode == 0 and not done.stderr
    assert " unlikely/eval_00002 |" in done.stdout and "pass@3" in done.stdout and "Paired difference to base" in done.stdout
    assert "1 samples without a verdict" in done.stdout and is_png(files / "figures/pass_at_n.png")


def test_curves_command(files):
    done = run("curves", files / "runs/unlikely", files / "runs/grpo", "--out", files / "figures", "--labels", "ours", "theirs")
    assert done.returncode == 0 and not done.stderr and is_png(files / "figures/curves.png")


def test_uplift_command(files, tiny_model_dir):
    done = run("uplift", "--before", tiny_model_dir, "--after", tiny_model_dir, files / "runs/unlikely/eval_00002/verified.jsonl",
               "--bins", 4, "--out", files / "figures")
    assert done.returncode == 0, done.stderr
    assert "3 distinct correct samples of 2 problems" in done.stdout and "0.75 to 1.00" in done.stdout
    assert " 0.0 [0.0, 79.3] |" in done.stdout  # the same model: no sample is likelier; z^2 / (1 + z^2) for one problem
    assert is_png(files / "figures/uplift.png")


def test_help():
    for command in ([], ["uplift"], ["curves"]):
        done = run(*command, "--help")
        assert done.returncode == 0 and "--out" in done.stdout


@pytest.mark.parametrize("arguments, message", [
    ("", "required"),
    ("none.jsonl", "cannot read"),
    ("broken.jsonl", "not valid JSON"),
    ("empty.jsonl", "no row with a verdict"),
    ("unjudged.jsonl", "no row with a verdict"),
    ("no_reward.jsonl", "'reward' is missing"),
    ("text_reward.jsonl", "has the reward 'right'"),
    ("runs", "cannot read"),
    ("wrong.jsonl --bootstrap 0", "at least 1"),
    ("wrong.jsonl --seed x", "invalid int"),
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
])
def test_bad_input_is_one_sentence(files, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    done = run(*arguments.split())
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_folder_that_is_no_model(files):
    model = files / "runs"
    done = run("uplift", "--before", model, "--after", model, files / "runs/base/verified.jsonl", "--out", files / "f")
    assert done.returncode == 2 and "no model folder" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
