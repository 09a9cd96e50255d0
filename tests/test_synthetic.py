"""results/synthetic.py and world.py: exact pass@N, the loss of its policy, the claim's signs, and the paper's mechanism on one group."""

import csv
import math
import os
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "results")]
import synthetic  # noqa: E402
import world  # noqa: E402

from lib.cli import parse_settings  # noqa: E402


def knobs(**changes):
    """The knobs of the world of the table, with changes."""
    return Namespace(**{name: default for name, (default, *_) in world.KNOBS.items()} | changes)


def setting(words):
    """What a setting's command line sets."""
    return parse_settings(world.add_flags, words)


# pass@N and uplift


def test_pass_at_n_by_hand():
    # one problem at 1/2, one at 1/4: 1 - (1/2 + 3/4) / 2 = 3/8; 1 - (1/4 + 9/16) / 2 = 19/32
    values = world.pass_at_n(np.array([0.5, 0.25]))
    assert values[:2].tolist() == [3 / 8, 19 / 32] and values[9] == pytest.approx(1, abs=1e-9)
    assert world.pass_at_n(np.array([0.0, 1.0])).tolist() == [0.5] * 10


def test_a_likelier_proof_raises_pass_at_n_most_near_one_in_n():
    """Section 3.4: what pass@N gains when the probability p of a right draw grows by a fifth."""

    def gain(p, k):
        return (world.pass_at_n(np.array([min(1, 1.2 * p)])) - world.pass_at_n(np.array([p])))[k]

    assert gain(0.5, 0) == pytest.approx(0.1)  # 0.6 - 0.5
    assert gain(0.1, 1) == pytest.approx(0.9**2 - 0.88**2)  # 0.0356
    assert gain(0.9, 2) == pytest.approx(0.1**4)  # 1.2 * 0.9 is more than 1
    p = np.logspace(-5, 0, 2000)
    for k in (3, 6, 9):  # N = 8, 64, 512
        assert 0.8 < 2**k * p[np.argmax([gain(one, k) for one in p])] < 1.05


def test_pass_at_n_of_a_tiny_world_against_drawing():
    base, (features, solves), _ = world.make_world(knobs(strategies=8, features=3, threshold=1.0), 0)
    probabilities = world.logprobs(base, features).exp()[:50]
    exact = world.pass_at_n((probabilities * solves[:50]).sum(1).numpy())
    generator = torch.Generator().manual_seed(0)
    draws = torch.multinomial(probabilities.repeat(400, 1), 4, replacement=True, generator=generator)
    right = solves[:50].repeat(400, 1).gather(1, draws)  # [20000, 4]
    assert right[:, 0].double().mean().item() == pytest.approx(exact[0], abs=0.015)
    assert right[:, :2].any(1).double().mean().item() == pytest.approx(exact[1], abs=0.015)
    assert right.any(1).double().mean().item() == pytest.approx(exact[2], abs=0.015)


def test_the_world_is_what_its_description_says():
    args = knobs(strategies=50, features=4, threshold=1.0, skill=2.0, noise=0.0, habit=1.5)
    base, (features, solves), (held_out, _) = world.make_world(args, 3)
    keys = base[0] / 2  # without noise
    assert torch.allclose(keys.norm(dim=1), torch.ones(50).double())
    assert torch.equal(solves, features @ keys.T > 1.0) and solves.any(1).all()
    assert len(features) == 2400 and len(held_out) == 500
    assert base[1][:3].tolist() == pytest.approx([0, -1.5 * math.log(2), -1.5 * math.log(3)])
    logits = features[0] @ base[0].T + base[1]
    assert torch.allclose(world.logprobs(base, features)[0].exp(), logits.exp() / logits.exp().sum())
    noisy = world.make_world(knobs(strategies=50, features=4, skill=2.0, noise=1.0), 3)[0][0]
    assert (noisy - base[0]).std().item() == pytest.approx(0.5, rel=0.2)  # noise / sqrt(d)


def test_uplift_by_hand():
    # 1: right 0 (0.6, falls), 2 (0.1, rises); 2: right 2 (0.5, rises), 1 (0.3, rises), 0 (0.2, falls)
    before = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]]).log()
    after = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.4, 0.6]]).log()
    solves = torch.tensor([[True, False, True], [True, True, True]])
    assert world.uplift(before, after, solves).tolist() == [1 / 2, 1, 0]


def test_the_interval_is_over_seeds():
    values = np.random.default_rng(0).normal(5.0, 2.0, size=(40, 2))
    mean, low, high = synthetic.interval(values)
    assert np.allclose(mean, values.mean(0))
    assert np.allclose((high - low) / 2, 1.96 * values.std(0) / math.sqrt(40), rtol=0.1)
    assert np.allclose(synthetic.interval(np.ones((3, 2))), 1)


def test_the_page_shows_the_numbers_of_the_csv():
    with open(f"{ROOT}/results/README.md", encoding="utf-8") as file:
        text = file.read().split("<!-- synthetic -->\n")[1].split("<!-- end -->")[0]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()]
    rows = {label: cells for label, *cells in table[2:]}
    with open(f"{ROOT}/results/synthetic.csv", encoding="utf-8") as file:
        numbers = [row for row in csv.DictReader(file) if row["panel"].startswith("pass@N")]
    assert {row["label"] for row in numbers} == set(rows) and len(rows) > 20
    for row in numbers:
        if f"N = {row['x']}" in table[0]:
            value, low, high = (float(row[key]) for key in ("value", "low", "high"))
            plus = "" if row["label"] == "base model, %" else "+"
            cell = f"{value:{plus}.1f} [{low:{plus}.1f}, {high:{plus}.1f}]"
            assert rows[row["label"]][table[0].index(f"N = {row['x']}") - 1] == cell


# Training


def test_groups_hold_the_advantages_of_their_draws():
    base, (features, solves), _ = world.make_world(knobs(), 0)
    args = setting("--kl 0.1 --unlikeliness 0.25")
    generator = torch.Generator().manual_seed(1)
    groups = world.sample_groups(base, features[:16], solves[:16], args, generator)
    assert 0 < len(groups) < 16  # uniform ones are dropped
    for x, actions, advantages in groups:
        i = [k for k in range(16) if torch.equal(features[k], x)][0]
        right = solves[i][actions]
        scores = world.logprobs(base, x[None])[0][actions]
        ranks = torch.stack([(scores > s).sum() + ((scores == s).sum() - 1) / 2 for s in scores])
        shaped = right * (1 - 0.25 * (32 - ranks) / 32).double()
        assert torch.allclose(advantages, (shaped - shaped.mean()) / (shaped.std() + 1e-6), atol=1e-5)


def test_an_update_against_finite_differences():
    """The step of plain gradient descent is that of the clipped loss with k3, worked by numpy, token by token."""
    generator = torch.Generator().manual_seed(0)
    base, (features, solves), _ = world.make_world(knobs(strategies=8, features=3, threshold=1.0), 1)
    args = setting("--kl 0.1")
    policy = [(weights + 0.1).clone().requires_grad_() for weights in base]
    policy[0].data[0] += 0.3
    groups = world.sample_groups(policy, features[:8], solves[:8], args, generator)[:4]
    assert groups

    def log_p(weights, bias, x):
        logits = weights @ x + bias
        return logits - np.log(np.exp(logits).sum())

    start = [weights.detach().numpy().copy() for weights in policy]

    def loss(weights, bias):
        losses = []
        for x, actions, advantages in groups:
            new, old = log_p(weights, bias, x.numpy()), log_p(*start, x.numpy())
            d = log_p(base[0].numpy(), base[1].numpy(), x.numpy()) - new
            for action, a in zip(actions.tolist(), advantages.tolist()):
                ratio = math.exp(new[action] - old[action])
                surrogate = max(-a * ratio, -a * min(max(ratio, 0.8), 1.2))
                losses.append(surrogate + 0.1 * (math.exp(d[action]) - d[action] - 1))
        return np.mean(losses)

    optimizer = torch.optim.SGD(policy, lr=1.0)
    world.update(policy, base, optimizer, groups, args, generator)
    for part in (0, 1):
        gradient = np.zeros_like(start[part])
        for index in np.ndindex(gradient.shape):
            ends = []
            for h in (1e-5, -1e-5):
                moved = [values.copy() for values in start]
                moved[part][index] += h
                ends.append(loss(*moved))
            gradient[index] = (ends[0] - ends[1]) / 2e-5
        assert np.allclose(start[part] - policy[part].detach().numpy(), gradient, atol=1e-6)


def test_settings_are_flags_of_train():
    assert vars(setting(synthetic.PAPER[synthetic.BEST])) == {
        "unlikeliness": 0.25,
        "rank_by": "sequence",
        "filter": "raw",
        "estimator": "grpo",
        "kl": 0.1,
        "ppo_epochs": 2,
    }
    assert all(setting(words).kl in (0.02, 0.1) for words in synthetic.SETTINGS.values())


def test_the_claim():
    """At N = 1 both settings gain; at N = 512 GRPO-Default is below the base model, Unlikeliness-2 above it. Of the base
    model's right strategies, the reward raises more of the unlikely ones."""
    settings = [synthetic.PAPER[name] for name in (synthetic.DEFAULT, synthetic.BEST)]
    results = np.mean([world.train_settings((knobs(), settings, seed)) for seed in range(3)], axis=0)
    default, best = results[:, 10:20] - results[:, :10]
    assert default[0] > 10 and best[0] > 10 and default[9] < -1 and best[9] > 1
    by_rank = [result[20:] for result in results]
    assert by_rank[0][0] > 2 * by_rank[0][4] and by_rank[1][4] > by_rank[0][4] + 3


def test_a_seed_gives_the_same_bits():
    job = knobs(steps=12), [synthetic.PAPER[synthetic.BEST]]
    first, again, other = (world.train_settings((*job, seed))[0] for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()


# The mechanism on one group: a table of 64 strategies, every other one right, probabilities from 0.095 to 0.0002

TABLE = -0.1 * torch.arange(64.0, dtype=torch.float64)
RIGHT = torch.arange(64) % 2 == 0


def one_group(generator, unlikeliness=0.0, epochs=1, lr=2.0):
    """Log-probabilities [epochs, 64] after each plain gradient step on one group, and its draws; None if it is dropped."""
    args = setting(f"--kl 0 --unlikeliness {unlikeliness} --ppo-epochs {epochs}")
    base = [torch.zeros(64, 1).double(), TABLE]
    policy = [weights.clone().requires_grad_() for weights in base]
    groups = world.sample_groups(policy, torch.zeros(1, 1).double(), RIGHT[None], args, generator)
    if not groups:
        return None
    optimizer, history = torch.optim.SGD(policy, lr=lr), []
    optimizer.register_step_post_hook(lambda *rest: history.append(policy[1].detach().log_softmax(0)))
    world.update(policy, base, optimizer, groups, args, generator)
    return torch.stack(history), groups[0][1]


def test_one_group_through_the_loss_by_hand():
    """The first step of plain gradient descent from ratio 1: d loss / d logit_k = -(sum of A_i (1[i = k] - p_k)) / G."""
    after, drawn = one_group(torch.Generator().manual_seed(3))
    rewards = RIGHT[drawn].double()
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    p = TABLE.softmax(0)
    counts = torch.zeros(64).double().index_add_(0, drawn, advantages)
    logits = TABLE + 2.0 * (counts - p * advantages.sum()) / 32
    assert torch.allclose(after[0], logits.log_softmax(0), atol=1e-5)


def test_more_epochs_and_the_unlikeliness_reward_turn_to_the_rare_proofs(monkeypatch):
    """Section 4: the rank bias, less of it with each epoch, since the likely ones are past the clip by then."""
    losses, clips = world.token_losses, []

    def recorded(*arguments):
        result = losses(*arguments)
        clips.append(result[2])
        return result

    monkeypatch.setattr(world, "token_losses", recorded)
    monkeypatch.setattr(
        torch, "randperm", lambda n, generator: torch.arange(n)
    )  # clips in the order of the draws
    shares, past = {}, {}
    for unlikeliness in (0.0, 0.25):
        generator = torch.Generator().manual_seed(0)
        change, clipped = torch.zeros(3, 64).double(), torch.zeros(3, 64)
        seen, draws = torch.zeros(64), torch.zeros(64)
        for _ in range(600):
            if result := one_group(generator, unlikeliness, epochs=3):
                after, drawn = result
                there = torch.zeros(64, dtype=torch.bool).index_fill_(0, drawn, True)
                change += torch.where(there, after - TABLE.log_softmax(0), 0)
                seen += there
                clipped.index_add_(1, drawn, torch.stack(clips[-3:]).float())
                draws.index_add_(0, drawn, torch.ones(32))
        gained, share = (change / seen)[:, RIGHT], (clipped / draws)[:, RIGHT]
        shares[unlikeliness] = (gained[:, -10:].nanmean(1) / gained[:, :10].nanmean(1)).tolist()
        past[unlikeliness] = share[:, :10].nanmean(1).tolist(), share[:, -10:].nanmean(1).tolist()
    plain, unlikely = shares[0.0], shares[0.25]  # rare ones' gain over likely ones', by epoch
    assert 0.3 < plain[0] < 0.7 and plain[0] < plain[1] < plain[2]
    assert all(a < b for a, b in zip(plain, unlikely)) and unlikely[2] > 0.9
    likely, rare = past[0.0]  # past the clip before each epoch
    assert likely[0] == rare[0] == 0 and likely[1] > 0.1 and likely[2] > 0.4 and rare[1] < 0.05


# The command


def test_the_command_writes_figure_numbers_and_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(synthetic, "SETTINGS", synthetic.PAPER)
    (tmp_path / "README.md").write_text("<!-- synthetic -->\nold\n<!-- end -->\n")
    command = f"synthetic.py --seeds 2 --steps 8 --strategies 16 --features 4 --workers 2 --out {tmp_path}"
    monkeypatch.setattr(sys, "argv", command.split())
    synthetic.main()
    printed = capsys.readouterr().out
    table = (tmp_path / "README.md").read_text()
    assert "old" not in table and table.count("| GRPO-") == 6 + 3 and table.splitlines()[1] in printed
    assert (tmp_path / "synthetic.png").stat().st_size > 10_000
    numbers = (tmp_path / "synthetic.csv").read_text()
    assert numbers.count("GRPO-Epochs-3") == 10 + 8 and "base model, %" in numbers


def test_the_map_has_every_cell(tmp_path, monkeypatch, capsys):
    small = {"a": ({}, [0, 2], [0, 1, 4], (2, 1)), "b": ({"features": 3}, [1, 2], [0, 1], (1, 0))}
    monkeypatch.setattr(synthetic, "MAPS", small)
    command = f"synthetic.py --map --seeds 2 --steps 4 --strategies 16 --features 4 --out {tmp_path}/new"
    monkeypatch.setattr(sys, "argv", command.split())
    synthetic.main()
    assert (tmp_path / "new/synthetic-map.png").stat().st_size > 10_000
    assert len((tmp_path / "new/synthetic-map.csv").read_text().splitlines()) == 1 + 3 * (6 + 4)


@pytest.mark.parametrize(
    "words, message",
    [
        ("--habit -1", "at least 0"),
        ("--threshold 9", "more than 3"),
        ("--bogus", "unrecognized"),
        ("--out /proc/none", "cannot write /proc/none"),
    ],
)
def test_bad_flags_are_one_sentence(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["synthetic.py", *words.split()])
    monkeypatch.setattr(synthetic, "train_all", lambda *worlds: pytest.fail("trained before the check"))
    with pytest.raises(SystemExit) as ended:
        synthetic.main()
    assert ended.value.code == 2 and message in capsys.readouterr().err
