"""What results/ computes: the mechanism in isolation, intervals over seeds and problems, tables put in their place."""
import json
import os
import sys

import numpy as np
import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "results")]
import mechanism  # noqa: E402
import report  # noqa: E402


def test_what_a_likelier_proof_adds_to_pass_at_n_by_hand():
    assert mechanism.gain(0.5, 1) == pytest.approx(0.1)  # 0.6 - 0.5
    assert mechanism.gain(0.1, 2) == pytest.approx(0.9**2 - 0.88**2)  # 0.0356
    assert mechanism.gain(0.9, 3) == pytest.approx(0.1**3)  # 1.2 * 0.9 is more than 1
    p = np.logspace(-5, 0, 2000)
    for N in (8, 64, 512, 4096):  # largest near 1/N
        assert 0.8 < N * p[mechanism.gain(p, N).argmax()] < 1.05


def test_the_figure_names_its_probabilities(monkeypatch):
    figures = []
    monkeypatch.setattr(mechanism, "save", lambda figure, path: figures.append(figure))
    monkeypatch.setattr(sys, "argv", ["mechanism.py", "--groups", "1000", "--out", os.devnull])
    monkeypatch.setattr(os, "makedirs", lambda *rest, **keys: None)
    mechanism.main()
    figures[0].canvas.draw()
    for ax in figures[0].axes:
        words = [label.get_text() for label in ax.get_xticklabels()]
        assert "0.01" in words and "0.1" in words and "$" not in "".join(words)


def test_one_group_through_the_loss_by_hand():
    """The first step of plain gradient descent from ratio 1: d loss / d logit_k = -(sum of A_i (1[i = k] - p_k)) / G."""
    generator = torch.Generator().manual_seed(3)
    history, drawn, clips = mechanism.epochs_of_one_group(0.0, 1, 2.0, generator)
    rewards = mechanism.CORRECT[drawn].double()
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    p = mechanism.policy().double().exp()
    counts = torch.zeros(64).double().index_add_(0, drawn, advantages)
    logits = mechanism.policy().double() + 2.0 * (counts - p * advantages.sum()) / 32
    assert torch.allclose(history[1].double(), logits.log_softmax(0), atol=1e-5) and not clips.any()


def test_more_epochs_and_the_unlikeliness_reward_turn_to_the_rare_proofs():
    shares, past = {}, {}
    for unlikeliness in (0.0, 0.25):
        change, clipped = mechanism.average(unlikeliness, 3, groups=600)
        change, clipped = change[:, mechanism.CORRECT], clipped[:, mechanism.CORRECT]
        shares[unlikeliness] = (change[:, -10:].nanmean(1) / change[:, :10].nanmean(1)).tolist()  # rare ones' gain over likely ones', by epoch
        past[unlikeliness] = clipped[:, :10].nanmean(1).tolist(), clipped[:, -10:].nanmean(1).tolist()
    plain, unlikely = shares[0.0], shares[0.25]
    assert 0.3 < plain[0] < 0.7 and plain[0] < plain[1] < plain[2]  # the rank bias, less of it with each epoch
    assert all(a < b for a, b in zip(plain, unlikely)) and unlikely[2] > 0.9
    likely, rare = past[0.0]
    assert likely[0] == rare[0] == 0 and likely[1] > 0.1 and likely[2] > 0.4 and rare[1] < 0.05  # who is past the clip before each epoch


def test_an_interval_over_seeds_and_problems():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1, 400, 2)) * [1.0, 3.0] + [0.0, 5.0]
    mean, low, high = report.interval(values)
    assert np.allclose(mean, values[0].mean(0))
    assert np.allclose((high - low) / 2, 1.96 * values[0].std(0) / 20, rtol=0.1)  # of one seed: that of a mean over problems
    alike = np.repeat(values, 3, axis=0)
    assert np.allclose(report.interval(alike)[:, 0], [mean[0], low[0], high[0]], atol=0.02)  # equal seeds add nothing
    apart = np.zeros((3, 50, 1)) + np.array([0.0, 1.0, 2.0])[:, None, None]  # problems add nothing: of three seeds drawn anew
    assert report.interval(apart)[:, 0].tolist() == pytest.approx([1, 0, 2])  # all three are the lowest in 1 of 27


def test_pass_at_n_of_seeds_side_by_side(tmp_path):
    for seed, rewards in enumerate(([1, 0, 0, 0], [1, 1, 0, 0])):
        rows = [{"id": name, "reward": reward if name == "a" else 0, "completion": f"{k}", "finish_reason": "stop"}
                for name in "ab" for k, reward in enumerate(rewards)]
        (tmp_path / f"{seed}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = report.passes([tmp_path / "0.jsonl", tmp_path / "1.jsonl"])
    # 1 - C(4 - c, N) / C(4, N) for c = 1, 2 and N = 1, 2, 4
    assert np.allclose(values[:, 0], [[1 / 4, 1 / 2, 1], [1 / 2, 5 / 6, 1]]) and not values[:, 1].any()


def test_a_table_takes_the_place_of_the_one_before_and_of_nothing_else(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("above\n<!-- one -->\nold\nlines\n<!-- end -->\nbetween\n<!-- two -->\n<!-- end -->\nbelow\n")
    report.fill(path, {"one": "| 1 |\n| \\1 |", "two": "| 2 |", "three": "| 3 |"})
    assert path.read_text() == "above\n<!-- one -->\n| 1 |\n| \\1 |\n<!-- end -->\nbetween\n<!-- two -->\n| 2 |\n<!-- end -->\nbelow\n"
