"""Numbers that go wrong: each case works, or ends with one sentence, or its update is skipped and said; none trains on garbage.

python -m pytest tests/test_numbers.py
"""

import copy
import json
import os
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import lean_tokenizer, tiny_llama
from safetensors.torch import load_file, save_file
from test_train import settings

import advantage
import lib.lean
import lib.logprobs
import lib.metrics
import sample
import train
import verify
from advantage import add_advantages, options
from lib.build import compute_in_copy
from lib.jsonl import read_jsonl

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROBLEMS = [
    {"id": f"t{k}", "statement": f"theorem h{k} (p q : Prop)" + " (h1 : p)" * k + " : p ∧ q := by"}
    for k in (1, 2, 3)
]
ROWS = [
    {
        "id": "a",
        "sample": k,
        "prompt_ids": [5, 6],
        "completion": " x",
        "completion_ids": [7, 8 + k, 2],
        "logprobs": [-0.5, -1, -0.25],
        "finish_reason": "stop",
        "reward": 1.0 - k,
        "advantage": 0.7 - 1.4 * k,
    }
    for k in (0, 1)
]


def models(**changes):
    """(a tiny model with another config, a tokenizer with the same changes)."""
    torch.set_num_threads(1)
    tokenizer = lean_tokenizer()
    model = tiny_llama(tokenizer, hidden_size=32, layers=1)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return model, tokenizer


def with_vocabulary(size):
    """A tiny model with as many tokens."""
    model, tokenizer = models()
    torch.manual_seed(0)
    model.config.vocab_size = size
    return type(model)(model.config).eval(), tokenizer


def sampled(model, tokenizer, **options):
    args = sample.options(
        f"--max-new-tokens {options.pop('max_new_tokens', 20)} --temperature {options.pop('temperature', 1.0)}"
    )
    return list(sample.sample_rows(model, tokenizer, PROBLEMS, 4, args, progress=False, **options))


def trained(model, rows, half=None, **changes):
    """(metrics, the model after an AdamW step) of an update on the rows, with advantages +1 and -1 in turn.

    half: the bfloat16 copy that computes it."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if half:
        compute_in_copy(model, half, optimizer)
    rows = [dict(row, advantage=(-1.0) ** k) for k, row in enumerate(rows)]
    return train.update(
        model,
        None,
        optimizer,
        rows,
        settings(kl=0.0, micro_batch_tokens=1000, **changes),
        0,
    ), model


def weights(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a tiny model and problems."""
    model, tokenizer = models()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "problems.jsonl").write_text(
        "".join(json.dumps(problem) + "\n" for problem in PROBLEMS), encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def judge_half(keys, lean, timeout, stop):
    """In the place of Lean: half of the proofs are right, whatever they say."""
    return {key: ("proved" if sum(key[2].encode()) % 2 else "rejected", "", 0.0) for key in keys}


def run(monkeypatch, capsys, stage, arguments):
    """(exit code, what was said on stderr) of a stage's main() in this process, with a verifier that needs no Lean."""
    monkeypatch.setattr(sys, "argv", [f"{stage.__name__}.py", *arguments.split()])
    monkeypatch.setattr(
        verify, "find_lean", lambda *args: lib.lean.Lean([], [], {}, "", "", True, "", False, "")
    )
    monkeypatch.setattr(verify, "judge_batch", judge_half)
    code = 0
    try:
        stage.main()
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().err


def write_rows(text):
    with open("rows.jsonl", "w", encoding="utf-8") as file:
        file.write(text)


BY_HAND = "--advantages rows.jsonl --model model --out run"
LOOP = "--model model --problems problems.jsonl --problems-per-step 3 --num-samples 4 --eval-samples 0 --workers 1 --out run"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e400"])
@pytest.mark.parametrize("old", ['"reward": 0.0', '"logprobs": [-0.5', '"advantage": 0.7'])
def test_a_number_that_is_none_in_a_file(folder, monkeypatch, capsys, old, number):
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    write_rows(text.replace(old, old[: old.rindex(old.split()[-1].strip("["))] + number, 1))
    for stage, arguments in ((train, BY_HAND), (advantage, "rows.jsonl --out out.jsonl"))[
        : 1 if "advantage" in old else 2
    ]:
        code, said = run(monkeypatch, capsys, stage, arguments)
        assert code == 2 and said.startswith("error: rows.jsonl, line ") and said.count("\n") == 1, said
    assert not list(folder.glob("run/*")) and not (folder / "out.jsonl").exists()


@pytest.mark.parametrize(
    "spoil",
    ["a weight that is NaN", "a weight that is infinite", "an advantage beyond float32", "a large advantage"],
)
def test_a_loss_or_gradient_that_is_no_number_is_skipped_and_said(folder, monkeypatch, capsys, spoil):
    rows = copy.deepcopy(ROWS)
    if "weight" in spoil:
        tensors = load_file("model/model.safetensors")
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan" if "NaN" in spoil else "inf")
        save_file(tensors, "model/model.safetensors", {"format": "pt"})
    else:
        rows[0]["advantage"] = 1e200 if "beyond" in spoil else 1e9
    write_rows("".join(json.dumps(row) + "\n" for row in rows))
    code, said = run(monkeypatch, capsys, train, BY_HAND)
    (metrics,) = read_jsonl("run/metrics.jsonl", "loss", "grad_norm")
    assert code == 0 and "warning: step 0: 1 of 1 updates skipped" in said and metrics["skipped"] == 1
    assert (metrics["grad_norm"] is None) == ("large" not in spoil)  # NaN is null in a file
    before, after = (
        load_file("model/model.safetensors"),
        load_file("run/checkpoints/step_00001/model.safetensors"),
    )
    assert all(
        torch.equal(before[name].view(torch.int32), after[name].view(torch.int32)) for name in before
    )  # bits, since NaN is not NaN
    state = torch.load("run/checkpoints/step_00001/trainer.pt", weights_only=True)
    assert state["adam_steps"] == 0
    for name in os.listdir("run/checkpoints/step_00001/optimizer"):
        assert not any(
            moment.any() for moment in load_file(f"run/checkpoints/step_00001/optimizer/{name}").values()
        )


def test_a_skipped_step_between_others_leaves_the_optimizer_alone():
    """Of two mini-batches one has a NaN: the result is that of the other alone, and the NaN is in the metrics whichever came first."""
    model, tokenizer = models()
    rows = [dict(row, advantage=1.0) for row in ROWS]
    rows[1]["completion_ids"] = [9, 10, 2]
    for bad in (0, 1):
        spoiled = [dict(row, advantage=float("nan") if k == bad else 1.0) for k, row in enumerate(rows)]
        results = []
        for some in (spoiled, [rows[1 - bad]]):
            one = copy.deepcopy(model)
            optimizer = torch.optim.AdamW(one.parameters(), lr=1e-3)
            metrics = train.update(
                one, None, optimizer, some, settings(kl=0.0, minibatch=1, micro_batch_tokens=1), 0
            )  # each row alone, so that the bits are the same
            results.append((weights(one), [state["exp_avg"] for state in optimizer.state.values()], metrics))
        assert torch.equal(results[0][0], results[1][0]) and all(
            map(torch.equal, results[0][1], results[1][1])
        )
        assert (results[0][2]["skipped"], results[0][2]["updates"]) == (1, 2) and np.isnan(
            results[0][2]["grad_norm"]
        )


def test_a_run_whose_every_update_is_skipped(folder, monkeypatch, capsys):
    """It says so at every step, ends, and its weights are the base model's; so with a gradient that is NaN."""
    loop = LOOP.replace("--model model", f"--model {ROOT}/toy/base")
    for steps, spoil in ((2, False), (1, True)):
        out = f"run{steps}"
        if spoil:
            monkeypatch.setattr(
                train,
                "token_losses",
                lambda *args, losses=train.token_losses: [value * float("nan") for value in losses(*args)],
            )
        code, said = run(
            monkeypatch,
            capsys,
            train,
            f"{loop.replace('run', out)} --steps {steps} --max-new-tokens 40 --train-batch 1 --grad-skip 1e-9",
        )
        assert code == 0 and said.count("updates skipped: grad norm") == steps, said
        before, after = (
            load_file(f"{ROOT}/toy/base/model.safetensors"),
            load_file(f"{out}/checkpoints/step_{steps:05d}/model.safetensors"),
        )
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert [row["skipped"] for row in read_jsonl(f"{out}/metrics.jsonl")] == [1] * steps
        assert [row["loss"] is None for row in read_jsonl(f"{out}/metrics.jsonl")] == [spoil] * steps


def test_a_model_that_is_nan_samples_nothing(folder, monkeypatch, capsys):
    model, tokenizer = models()
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    model.save_pretrained("model")
    for stage, arguments in (
        (train, f"{LOOP} --steps 1"),
        (sample, "--model model --problems problems.jsonl --num-samples 2 --out out.jsonl"),
    ):
        code, said = run(monkeypatch, capsys, stage, arguments + " --max-new-tokens 5")
        assert code == 2 and "error: problem t" in said and "not finite" in said
    assert not (folder / "out.jsonl").exists() and not (folder / "run/metrics.jsonl").read_text()


def test_a_temperature_that_divides_by_nothing(folder, monkeypatch, capsys):
    code, said = run(
        monkeypatch,
        capsys,
        sample,
        "--model model --problems problems.jsonl --num-samples 2 --max-new-tokens 5 --out out.jsonl --temperature 1e-320",
    )
    assert (
        code == 2 and "not finite" in said and "--temperature" in said and not (folder / "out.jsonl").exists()
    )


def test_a_group_of_one():
    """It has no spread: no advantage, and no 0 / 0 on the way. The same where the verifier left one of a group."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rewards in ([1.0], [0.0], [1.0, None], [None]):
            rows = add_advantages(
                [dict(ROWS[0], sample=k, reward=reward) for k, reward in enumerate(rewards)],
                options("--unlikeliness 0.25"),
            )
            assert all(row["advantage"] is None and row["shaped_reward"] is None for row in rows)
            assert [row["rank"] for row in rows] == [None if reward is None else 0.0 for reward in rewards]


def test_groups_of_one_would_train_nothing(folder, monkeypatch, capsys):
    code, said = run(
        monkeypatch,
        capsys,
        train,
        f"{LOOP.replace('--num-samples 4', '--num-samples 1')} --steps 3 --max-new-tokens 5 --train-batch 1",
    )
    assert code == 2 and "--num-samples 1 teaches nothing" in said and not os.path.exists("run")


def test_all_completions_empty(monkeypatch):
    """Nothing but the end of the text: rows that are judged, a group without a spread, an update that stays finite."""
    model, tokenizer = models()

    def forward(*args, original=model.forward, **kwargs):
        output = original(*args, **kwargs)
        output.logits[..., 2] = output.logits.logsumexp(-1) + 20
        return output

    monkeypatch.setattr(model, "forward", forward)
    rows = sampled(model, tokenizer)
    assert all(
        (row["completion"], row["completion_ids"], row["finish_reason"]) == ("", [2], "stop") for row in rows
    )
    assert all(-1e-6 < row["logprobs"][0] <= 0 for row in rows)
    lean = lib.lean.Lean([], [], {}, "", "", True, "", False, "")
    judged = verify.verify_rows(
        rows, lean, progress=False, judge=lambda keys, *rest: {key: ("rejected", "", 0.0) for key in keys}
    )
    judged = add_advantages(judged, options("--unlikeliness 0.25"))
    assert all(row["reward"] == 0 and row["advantage"] is None for row in judged)
    assert "no group was kept" in " ".join(
        lib.metrics.alarms([lib.metrics.step_metrics(k, judged) for k in range(3)])
    )
    monkeypatch.undo()
    metrics, after = trained(model, rows[:1])
    assert np.isfinite(metrics["loss"]) and metrics["tokens"] == 1 and torch.isfinite(weights(after)).all()


def test_all_completions_truncated(folder, monkeypatch, capsys):
    code, said = run(monkeypatch, capsys, train, f"{LOOP} --steps 3 --max-new-tokens 1 --train-batch 1")
    assert (
        code == 0
        and said.count("100% of the completions hit --max-new-tokens") == 3
        and "no group was kept for three steps" in said
    )
    before, after = (
        load_file("model/model.safetensors"),
        load_file("run/checkpoints/step_00003/model.safetensors"),
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_vocabulary_larger_than_the_tokenizer():
    """Ids that the tokenizer does not know have no text, but a probability: they are sampled and trained like any other."""
    model, tokenizer = with_vocabulary(len(lean_tokenizer()) + 60)
    rows = sampled(model, tokenizer)
    assert any(max(row["completion_ids"]) >= len(tokenizer) for row in rows)
    for row in rows:
        known = [k for k in row["completion_ids"] if k < len(tokenizer) and k != 2]
        assert row["completion"] == "".join(tokenizer.convert_ids_to_tokens(known))
    metrics, after = trained(model, rows)
    assert metrics["logprob_gap"] < 1e-4 and metrics["skipped"] == 0 and torch.isfinite(weights(after)).all()


def test_a_tokenizer_larger_than_the_vocabulary(capsys):
    model, tokenizer = with_vocabulary(20)
    with pytest.raises(SystemExit) as end:
        sampled(model, tokenizer)
    assert end.value.code == 2 and "error: problem t1: the tokenizer produces" in capsys.readouterr().err


def test_a_prompt_longer_than_the_limit(folder, monkeypatch, capsys):
    """It is told of before anything is sampled, in train.py too, wherever in the file the problem stands."""
    with open("problems.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "long", "statement": "theorem h9 : " + "p ∧ " * 300 + "p := by"}) + "\n")
    for stage, arguments in (
        (train, f"{LOOP} --steps 1"),
        (sample, "--model model --problems problems.jsonl --num-samples 2 --out out.jsonl"),
    ):
        code, said = run(monkeypatch, capsys, stage, arguments + " --max-new-tokens 20")
        assert (
            code == 2 and said.startswith("error: problem long: its 1") and "exceed the limit of 1024" in said
        ), said
    assert not list(folder.glob("run/*")) and not list(folder.glob("out*"))


def test_pad_and_end_of_text_are_the_same_token(monkeypatch):
    """Lengths alone say what is padding: the end is sampled, kept and trained, whatever its neighbours in the batch."""
    model, tokenizer = models(pad_token="</s>")
    model.config.pad_token_id = model.generation_config.pad_token_id = 2
    with torch.no_grad():
        model.lm_head.weight[2] *= 3  # so that completions end, each at another length
    rows = sampled(model, tokenizer, max_new_tokens=60)
    ended = [row for row in rows if row["finish_reason"] == "stop"]
    assert len({len(row["completion_ids"]) for row in ended}) > 2 and all(
        row["completion_ids"].index(2) == len(row["completion_ids"]) - 1 for row in ended
    )
    metrics, _ = trained(model, rows)
    assert metrics["logprob_gap"] < 1e-4 and metrics["tokens"] == sum(
        len(row["completion_ids"]) for row in rows
    )
    others = [row for row in rows if row is not ended[0]]
    (alone,) = lib.logprobs.completion_logprobs(model, ended[:1])
    assert torch.allclose(alone, lib.logprobs.completion_logprobs(model, others + ended[:1])[-1], atol=1e-5)


def test_a_tokenizer_without_a_first_token():
    model, tokenizer = models(bos_token=None)
    model.config.bos_token_id = model.generation_config.bos_token_id = None
    rows = sampled(model, tokenizer)
    for row in rows:
        assert tokenizer.convert_ids_to_tokens(row["prompt_ids"][:2]) == ["theorem", " "]
        assert row["completion"] == "".join(
            tokenizer.convert_ids_to_tokens([k for k in row["completion_ids"] if k != 2])
        )
    assert trained(model, rows)[0]["logprob_gap"] < 1e-4


def test_logits_in_bfloat16():
    """They go to float32 before the softmax: the log-probabilities are those of a float64 softmax of the same logits."""
    model, tokenizer = models()
    half = copy.deepcopy(model).to(torch.bfloat16)
    rows = sampled(half, tokenizer)
    for row in rows[::4]:
        with torch.no_grad():
            logits = half(torch.tensor([row["prompt_ids"] + row["completion_ids"]])).logits[
                0, len(row["prompt_ids"]) - 1 : -1
            ]
        assert logits.dtype == torch.bfloat16
        expected = (
            logits.double().log_softmax(-1).gather(1, torch.tensor(row["completion_ids"])[:, None])[:, 0]
        )
        assert (
            np.allclose(row["logprobs"], expected, atol=0.1) and max(row["logprobs"]) <= 0
        )  # the cache rounds elsewhere
    metrics, after = trained(model, rows, half)
    assert metrics["skipped"] == 0 and metrics["logprob_gap"] < 0.5 and np.isfinite(metrics["loss"])
    assert (
        weights(after).dtype == torch.float32
        and torch.isfinite(weights(after)).all()
        and not torch.equal(weights(after), weights(model))
    )


@pytest.mark.parametrize(
    "values, word",
    [
        ({"completion_ids": [], "logprobs": []}, "'completion_ids'"),
        ({"prompt_ids": []}, "'prompt_ids'"),
        ({"logprobs": [-0.5, -1]}, "logprobs"),
        ({"completion_ids": [7, -8, 2]}, "'completion_ids'"),
        ({"completion_ids": [7, 10**6, 2]}, "1000000"),
        ({"completion_ids": [7, 10**30, 2]}, str(10**30)),
    ],
)
def test_rows_that_cannot_be_trained_on(folder, monkeypatch, capsys, values, word):
    write_rows(json.dumps(ROWS[0]) + "\n" + json.dumps({**ROWS[1], **values}) + "\n")
    code, said = run(monkeypatch, capsys, train, BY_HAND)
    assert code == 2 and said.startswith("error: rows.jsonl") and word in said and said.count("\n") == 1
    assert not list(folder.glob("run/*"))
