"""Tests of sample.py: log-probabilities, seeds, shrinking, templates, readers, resume, bad input."""

import functools
import itertools
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lib.decode
import sample
from lib.decode import plan_batches
from lib.model import load_model
from sample import build_prompt, options, read_problems, sample_rows

SCRIPT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "sample.py")
PROBLEMS = [
    {"id": f"t{k}", "statement": f"theorem h{k} (p q : Prop)" + " (h1 : p)" * (k % 4) + " : p ∧ q := by"}
    for k in range(1, 6)
]


@pytest.fixture(scope="module")
def model_and_tokenizer(tiny_model_dir):
    torch.set_num_threads(1)
    return load_model(tiny_model_dir)


def rows_of(model_and_tokenizer, problems=PROBLEMS, num_samples=6, seed=0, model_name="", **flags):
    args = options("--max-new-tokens 30")
    vars(args).update(flags)
    return list(
        sample_rows(
            *model_and_tokenizer,
            problems,
            num_samples,
            args,
            seed=seed,
            model_name=model_name,
            progress=False,
        )
    )


def with_likely_eos(model, monkeypatch, share=0.1):
    """Gives end-of-text about this probability at every step, so that completions have all lengths."""

    def forward(*args, original=model.forward, **kwargs):
        output = original(*args, **kwargs)
        output.logits[..., 2] = output.logits.logsumexp(-1) + np.log(share)
        return output

    monkeypatch.setattr(model, "forward", forward)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_full_forward_pass(model_and_tokenizer, monkeypatch, temperature):
    model, tokenizer = model_and_tokenizer
    with_likely_eos(model, monkeypatch)
    rows = rows_of(model_and_tokenizer, temperature=temperature)
    assert (
        len({len(row["prompt_ids"]) for row in rows}) > 2
        and len({len(row["completion_ids"]) for row in rows}) > 5
    )
    for row in rows:
        prompt, ids = row["prompt_ids"], row["completion_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert np.allclose(row["logprobs"], expected, atol=1e-5)
        assert row["completion"] == "".join(
            tokenizer.convert_ids_to_tokens(ids[:-1] if ids[-1] == 2 else ids)
        )  # spaces too


def test_rows(model_and_tokenizer, monkeypatch):
    model, tokenizer = model_and_tokenizer
    with_likely_eos(model, monkeypatch, share=0.05)
    rows = rows_of(model_and_tokenizer, model_name="tiny")
    assert [(row["id"], row["sample"]) for row in rows] == [(p["id"], k) for p in PROBLEMS for k in range(6)]
    assert {row["finish_reason"] for row in rows} == {"stop", "length"}
    for row in rows:
        ids = row["completion_ids"]
        assert len(row["logprobs"]) == len(ids) and row["model"] == "tiny" and row["template"] == "bare"
        assert 2 not in ids[:-1] and (ids[-1] == 2) == (row["finish_reason"] == "stop")
        assert len(ids) == 30 or row["finish_reason"] == "stop"
        assert "</s>" not in row["completion"] and row["prompt_ids"] == tokenizer(row["statement"]).input_ids


def test_all_end_of_text_ids_stop_and_pad_may_be_one(model_and_tokenizer, monkeypatch):
    model, tokenizer = model_and_tokenizer
    monkeypatch.setattr(model.generation_config, "eos_token_id", [5, 6, 7, 8, 9, 0])
    rows = rows_of(model_and_tokenizer)
    stops = {row["completion_ids"][-1] for row in rows if row["finish_reason"] == "stop"}
    assert len(stops) > 2 and stops <= {0, 2, 5, 6, 7, 8, 9}
    assert all(not {0, 2, 5, 6, 7, 8, 9} & set(row["completion_ids"][:-1]) for row in rows)


def test_batch_size_changes_nothing_and_seed_does(model_and_tokenizer, monkeypatch):
    with_likely_eos(model_and_tokenizer[0], monkeypatch)
    rows = rows_of(model_and_tokenizer)
    completions = [row["completion_ids"] for row in rows]
    for batch_tokens in (1, 200, 1000):  # one sample, a part of a group, some groups at a time
        other = rows_of(model_and_tokenizer, batch_tokens=batch_tokens)
        assert [row["completion_ids"] for row in other] == completions
        assert all(np.allclose(a["logprobs"], b["logprobs"], atol=2e-6) for a, b in zip(rows, other))
    one = rows_of(model_and_tokenizer, PROBLEMS[3:4], num_samples=2)  # nor do the other problems, nor G
    assert [row["completion_ids"] for row in one] == completions[18:20]
    assert rows_of(model_and_tokenizer) == rows
    for seed in (1, "0/12"):
        assert [row["completion_ids"] for row in rows_of(model_and_tokenizer, seed=seed)] != completions
    assert len(set(map(tuple, completions))) > 20


def test_first_token_follows_the_softmax(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    n = 4000
    rows = rows_of(model_and_tokenizer, PROBLEMS[:1], n, max_new_tokens=1, temperature=0.5)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([rows[0]["prompt_ids"]])).logits[0, -1]
    expected = n * torch.softmax(logits / 0.5, -1).double().numpy()
    seen = np.bincount([row["completion_ids"][0] for row in rows], minlength=len(expected))
    common = expected > 5
    chi2 = ((seen - expected)[common] ** 2 / expected[common]).sum()
    assert common.sum() > 10 and chi2 < common.sum() + 4 * np.sqrt(2 * common.sum())


def test_finished_rows_leave(model_and_tokenizer, monkeypatch):
    """30 completions: a row leaves as soon as it has ended, or with some others."""
    model = model_and_tokenizer[0]
    with_likely_eos(model, monkeypatch)
    shapes = []

    def forward(*args, original=model.forward, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return original(*args, **kwargs)

    monkeypatch.setattr(model, "forward", forward)
    expected = rows_of(model_and_tokenizer)  # fewer rows than leave together: all stay
    longest = max(len(row["prompt_ids"]) for row in expected)
    lengths = [len(row["completion_ids"]) for row in expected]
    assert shapes == [(5, longest)] + [(30, 1)] * (max(lengths) - 1)
    for rows_at_once in (1, 4):
        shapes.clear()
        monkeypatch.setattr(lib.decode, "ROWS_AT_ONCE", rows_at_once)
        rows = rows_of(model_and_tokenizer)
        assert [row["completion_ids"] for row in rows] == [row["completion_ids"] for row in expected]
        assert all(np.allclose(a["logprobs"], b["logprobs"], atol=2e-6) for a, b in zip(rows, expected))
        batch = 30
        for t, (size, length) in enumerate(shapes[1:], 1):
            batch -= (batch - sum(n > t for n in lengths)) // rows_at_once * rows_at_once
            assert (size, length) == (batch, 1)
        assert len({size for size, _ in shapes[1:]}) > 5


@pytest.mark.parametrize("look_every", [3, 8, 1000])
def test_looking_less_often_changes_no_completion(model_and_tokenizer, monkeypatch, look_every):
    with_likely_eos(model_and_tokenizer[0], monkeypatch)
    expected = rows_of(model_and_tokenizer)
    seldom = functools.partial(lib.decode.sample_batch, look_every=look_every)
    monkeypatch.setattr(lib.decode, "sample_batch", seldom)
    for rows_at_once in (32, 1):
        monkeypatch.setattr(lib.decode, "ROWS_AT_ONCE", rows_at_once)
        rows = rows_of(model_and_tokenizer)
        for row, other in zip(rows, expected, strict=True):
            assert np.allclose(row.pop("logprobs"), other["logprobs"], atol=2e-6)
            assert row == {key: value for key, value in other.items() if key != "logprobs"}
    assert len({len(row["completion_ids"]) for row in rows}) > 5


class Shapes(TorchDispatchMode):
    """Counts the tensors whose shape depends on numbers, for which a GPU has to be waited for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        aten = torch.ops.aten
        self.count += function in (
            aten.nonzero.default,
            aten.masked_select.default,
            aten.repeat_interleave.Tensor,
        )
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("look_every", [1, 8])
@pytest.mark.parametrize("prompts", [1, 2])
def test_a_gpu_is_seldom_waited_for(model_and_tokenizer, monkeypatch, prompts, look_every):
    """At a look, for the log-probabilities at the end, and in transformers, which asks once a token (and once a prompt)
    whether the mask hides anything."""
    model, ids, asked = model_and_tokenizer[0], [[1, 5, 6, 7], [1, 8]][:prompts], Counter()
    draws = torch.rand(8, 64, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    args = (model, ids, draws, 1.0, set(), bool, look_every)
    with Shapes() as shapes:
        expected = lib.decode.sample_batch(*args)

    def asking(name, plain):
        def ask(tensor, *rest):
            asked[name] += 1
            return plain(tensor, *rest)

        return ask

    for name in "tolist item cpu numpy nonzero __bool__ __int__ __float__ __index__".split():
        monkeypatch.setattr(torch.Tensor, name, asking(name, getattr(torch.Tensor, name)))
    assert [tokens for tokens, _, _ in lib.decode.sample_batch(*args)] == [
        tokens for tokens, _, _ in expected
    ]
    assert shapes.count == 0 and asked.pop("tolist") == 64 // look_every + 1
    assert set(asked) <= {"__bool__"} and asked["__bool__"] <= 65
    assert [len(tokens) for tokens, _, _ in expected] == [64] * 8


def test_rows_in_lots_meet_few_shapes(model_and_tokenizer, monkeypatch):
    model = model_and_tokenizer[0]
    draws = torch.rand(128, 60, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    shapes = {}
    for rows_at_once in (1, 32):
        monkeypatch.setattr(lib.decode, "ROWS_AT_ONCE", rows_at_once)
        seen = shapes[rows_at_once] = set()
        hook = model.lm_head.register_forward_pre_hook(
            lambda module, given, seen=seen: seen.add(given[0].shape)
        )
        lib.decode.sample_batch(model, [[1, 5, 6]], draws, 1.0, {4, 5, 6}, bool)
        hook.remove()
    assert {shape[0] for shape in shapes[32]} == {1, 32, 64, 96, 128} and len(shapes[1]) > 4 * len(shapes[32])


HYBRIDS = {
    "gemma2": dict(sliding_window=8),
    "lfm2": dict(layer_types=["conv", "full_attention"], block_ff_dim=128, conv_L_cache=3),
    "qwen3_next": dict(
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        num_experts=0,
        mlp_only_layers=[0, 1],
    ),
}


@pytest.mark.parametrize("kind", HYBRIDS)
def test_windows_and_recurrent_states_follow_their_rows(kind, monkeypatch):
    """A row's sliding window, convolution and recurrent state move with it when others leave the batch."""
    from conftest import lean_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM

    monkeypatch.setattr(lib.decode, "ROWS_AT_ONCE", 1)
    torch.manual_seed(0)
    tokenizer = lean_tokenizer()
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.1,
        eos_token_id=2,
        pad_token_id=0,
        **HYBRIDS[kind],
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = [2, 5, 6, 7, 8, 9]
    rows = rows_of((model, tokenizer), max_new_tokens=25)
    assert len({len(row["completion_ids"]) for row in rows}) > 10
    for row in rows:
        prompt, ids = row["prompt_ids"], torch.tensor(row["completion_ids"])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids.tolist()]), use_cache=False).logits[
                0, len(prompt) - 1 : -1
            ]
        assert np.allclose(row["logprobs"], logits.log_softmax(-1).gather(1, ids[:, None])[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    "longest, num_samples, batch_tokens, expected",
    [
        (60, 4, 10**6, (4166, 4)),
        (60, 4, 480, (2, 4)),
        (60, 4, 479, (1, 4)),
        (60, 4, 240, (1, 4)),
        (60, 4, 239, (1, 3)),
        (60, 4, 120, (1, 2)),
        (60, 4, 1, (1, 1)),
    ],
)
def test_plan_batches(longest, num_samples, batch_tokens, expected):
    """(problems, samples of each): their product times 60 stays within the tokens, but for a single row."""
    assert plan_batches(longest, num_samples, batch_tokens) == expected


def test_skipped_groups_change_no_batch(model_and_tokenizer, monkeypatch):
    """A continued run computes the very batches, and so the very floats, of one that was not interrupted."""
    with_likely_eos(model_and_tokenizer[0], monkeypatch)
    args = options("--max-new-tokens 30 --batch-tokens 500")  # one group or two at a time
    whole = list(sample_rows(*model_and_tokenizer, PROBLEMS, 3, args, progress=False))
    for skip in range(6):
        rest = list(sample_rows(*model_and_tokenizer, PROBLEMS, 3, args, progress=False, skip=skip))
        assert rest == whole[3 * skip :]


def test_deepseek_prompt_and_fence(model_and_tokenizer, monkeypatch):
    problem = {"id": "x", "statement": "theorem x : True := by", "informal": "/-- Truth. -/\n"}
    expected = (
        "Complete the following Lean 4 code:\n\n```lean4\n"
        "import Mathlib\nimport Aesop\n\nset_option maxHeartbeats 400000\n\n"
        "open BigOperators Real Nat Topology Rat\n\n/-- Truth. -/\ntheorem x : True := by\n"
    )
    assert build_prompt(problem, "deepseek") == expected
    assert build_prompt({**problem, "informal": "Truth."}, "deepseek") == expected
    assert build_prompt(problem, "bare") == problem["statement"]
    assert build_prompt({"statement": "S := by", "header": "import A\n\n"}, "deepseek").endswith(
        "4\nimport A\n\nS := by\n"
    )

    model, tokenizer = model_and_tokenizer
    single, fence = tokenizer.convert_tokens_to_ids(["`", "```"])

    def forward(*args, original=model.forward, **kwargs):
        output = original(*args, **kwargs)
        output.logits[..., fence] = output.logits[..., single] = output.logits.logsumexp(-1) - 1
        return output

    monkeypatch.setattr(model, "forward", forward)
    # This vocabulary lacks the prompt's words.
    monkeypatch.setattr(sample, "check_prompts", lambda *args: None)
    rows = rows_of(model_and_tokenizer, template="deepseek")
    assert all(
        row["completion"].startswith("\n") for row in rows
    )  # the prompt's line break: statement + completion is Lean
    assert all("```" in row["completion"] for row in rows if row["finish_reason"] == "stop")
    assert sum(row["finish_reason"] == "stop" for row in rows) > 20
    assert all("```" not in tokenizer.decode(row["completion_ids"][:-1]) for row in rows)
    assert any(
        row["completion_ids"][-1] == single for row in rows
    )  # three backticks one by one are a fence too
    assert any(
        "```" in row["completion"][:-3] for row in rows_of(model_and_tokenizer)
    )  # bare does not stop there


def test_reader(tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text(
        '{"id": "a", "statement": "A : p :=\\n  by\\n"}\n{"id": "b", "statement": "B := by", "informal": "I"}\n'
    )
    assert read_problems(own) == [
        {"id": "a", "statement": "A : p := by"},
        {"id": "b", "statement": "B := by", "informal": "I"},
    ]
    assert [problem["id"] for problem in read_problems(own, limit=1)] == ["a"]
    own.write_text('{"id": "a", "statement": "3 + 4 ="}\n')  # for a verifier of one's own
    assert read_problems(own, lean=False) == [{"id": "a", "statement": "3 + 4 ="}]


def run(*arguments):
    environment = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, env=environment
    )


def call(monkeypatch, *arguments):
    """main() in this process: the exit code."""
    torch.set_num_threads(1)  # as run() has it: the same bits
    monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, arguments)])
    try:
        sample.main()
    except SystemExit as end:
        return end.code
    return 0


def test_command_and_resume(tiny_model_dir, tmp_path, monkeypatch):
    problems, out = tmp_path / "problems.jsonl", tmp_path / "samples.jsonl"
    problems.write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))
    arguments = [
        "--model",
        tiny_model_dir,
        "--problems",
        problems,
        "--num-samples",
        3,
        "--out",
        out,
        "--max-new-tokens",
        20,
        "--batch-tokens",
        300,
    ]
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    whole = out.read_bytes()
    assert len(whole.splitlines()) == 15 and len(list(tmp_path.iterdir())) == 2
    # A run that is stopped after seven rows and a half.
    original, stop_after = sample.sample_rows, 7

    def stopped(*args, **kwargs):
        for k, row in enumerate(original(*args, **kwargs)):
            if k == stop_after:
                raise KeyboardInterrupt
            yield row

    out.unlink()
    monkeypatch.setattr(sample, "sample_rows", stopped)
    assert call(monkeypatch, *arguments) == 130
    [part] = tmp_path.glob("samples.jsonl.part-*")
    assert part.read_bytes() == b"".join(whole.splitlines(True)[:6]) and not out.exists()
    with open(part, "ab") as file:
        file.write(whole.splitlines(True)[7][:50])
    skipped = []
    monkeypatch.setattr(sample, "sample_rows", lambda *a, **k: skipped.append(k["skip"]) or original(*a, **k))
    assert call(monkeypatch, *arguments) == 0
    assert skipped == [2] and out.read_bytes() == whole and not part.exists()
    # Another seed does not continue it.
    part.write_bytes(b"")
    assert call(monkeypatch, *arguments, "--seed", 1) == 0 and part.exists() and out.read_bytes() != whole


def test_smaller_batches_continue_what_ran_out_of_memory(tiny_model_dir, tmp_path, monkeypatch, capsys):
    problems, out = tmp_path / "problems.jsonl", tmp_path / "samples.jsonl"
    problems.write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))
    arguments = ["--model", tiny_model_dir, "--problems", problems, "--num-samples", 3, "--out", out]
    arguments += ["--max-new-tokens", 20, "--batch-tokens"]
    assert call(monkeypatch, *arguments, 300) == 0
    whole = [json.loads(line) for line in out.read_text().splitlines()]
    out.unlink()
    original, skipped = sample.sample_rows, []

    def out_of_memory(*args, **kwargs):
        yield from itertools.islice(original(*args, **kwargs), 7)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(sample, "sample_rows", out_of_memory)
    capsys.readouterr()
    assert call(monkeypatch, *arguments, 300) == 2
    said = "error: cpu ran out of memory; lower --batch-tokens 300, what is done so far is kept"
    assert capsys.readouterr().err.strip().endswith(said)
    monkeypatch.setattr(sample, "sample_rows", lambda *a, **k: skipped.append(k["skip"]) or original(*a, **k))
    assert call(monkeypatch, *arguments, 100) == 0
    assert skipped == [2] and not list(tmp_path.glob("*.part-*"))
    again = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["completion_ids"] for row in again] == [row["completion_ids"] for row in whole]


GOOD = '{"id": "a", "statement": "theorem a (p : Prop) : p := by"}\n'


# fmt: off
@pytest.mark.parametrize("text, extra, words", [
    ("", [], ["has no problems"]),
    (GOOD + GOOD, [], ["line 2", "'a'", "line 1"]),
    (GOOD + '{"id": "b", "statement": "theorem b : p"}\n', [], ["line 2", ":= by"]),
    (GOOD + '{"id": "b", ', [], ["line 2", "JSON"]),
    (GOOD + '{"id": "b"}\n', [], ["line 2", "statement"]),
    ('{"statement": "B := by"}\n', [], ["line 1", "'id'"]),
    ('{"name": "b", "formal_statement": "theorem b : p := by"}\n', [], ["line 1", "tools/problems.py", "problems.jsonl"]),
    ('{"theorem_full_name": "b", "theorem_statement": "theorem b : p := by"}\n', [], ["line 1", "tools/problems.py"]),
    (GOOD, ["--problems", "FOLDER/train.parquet"], ["parquet", "tools/problems.py FOLDER/train.parquet"]),
    ('{"id": 7, "statement": "B := by"}\n', [], ["line 1", "'id'", "text"]),
    (GOOD, ["--model", "FOLDER"], ["FOLDER", "model folder"]),
    (GOOD, ["--out", "FOLDER"], ["FOLDER", "--out"]),
    (GOOD, ["--out", "FOLDER/no/such.jsonl"], ["FOLDER", "--out"]),
    (GOOD, ["--num-samples", "0"], ["--num-samples"]),
    (GOOD, ["--temperature", "0"], ["--temperature"]),
    (GOOD, ["--template", "other"], ["--template"]),
    (GOOD, ["--device", "cuda:77"], ["cuda:77", "device"]),
    (GOOD, ["--max-new-tokens", "2000"], ["problem a", "1024", "--max-new-tokens"]),
    (GOOD, ["--problems", "FOLDER/none.jsonl"], ["none.jsonl", "cannot read"]),
])
# fmt: on
def test_bad_input(tiny_model_dir, tmp_path, monkeypatch, capsys, text, extra, words):
    (tmp_path / "folder").mkdir()
    (tmp_path / "problems.jsonl").write_text(text)
    extra, words = ([word.replace("FOLDER", str(tmp_path / "folder")) for word in group] for group in (extra, words))
    before = sorted(tmp_path.rglob("*"))
    assert call(monkeypatch, "--model", tiny_model_dir, "--problems", tmp_path / "problems.jsonl", "--num-samples", 2,
                "--out", tmp_path / "out.jsonl", *extra) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and all(word in errors[0] for word in words), errors
    assert sorted(tmp_path.rglob("*")) == before


def test_no_traceback(tmp_path):
    result = run("--model", tmp_path, "--problems", tmp_path / "none", "--num-samples", 2, "--out", tmp_path / "out.jsonl")
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")


def test_pickled_weights_are_not_loaded(tiny_model_dir, tmp_path, capsys):
    model, tokenizer = load_model(tiny_model_dir)
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(SystemExit):
        load_model(str(tmp_path))
    assert "cannot load" in (said := capsys.readouterr().err) and "safetensors" in said


def test_what_a_file_says_does_not_reach_the_terminal_raw(tiny_model_dir, tmp_path, monkeypatch, capsys):
    row = json.dumps({"id": "\x1b[2J\u202e", "statement": "theorem t : p := by"})
    (tmp_path / "problems.jsonl").write_text(f"{row}\n{row}\n")
    words = "--model", tiny_model_dir, "--problems", tmp_path / "problems.jsonl", "--num-samples", 2, "--out", tmp_path / "out.jsonl"
    capsys.readouterr()
    for more in ([], ["--limit", 1, "--max-new-tokens", 10**6]):
        assert call(monkeypatch, *words, *more) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.strip().isprintable(), said


def test_weights_that_are_not_there(tiny_model_dir, tmp_path, capsys):
    from safetensors.torch import load_file, save_file
    model, tokenizer = load_model(tiny_model_dir)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SystemExit):
        load_model(str(tmp_path))
    assert "lm_head.weight" in capsys.readouterr().err


def test_a_mistyped_model_name_is_looked_up_once(monkeypatch, capsys):
    """The hub's own client would retry for minutes."""
    asked = []

    def model_info(self, name, timeout):
        asked.append(name)
        raise OSError("404 Client Error")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    with pytest.raises(SystemExit) as end:
        load_model("nobody/no-such-model")
    said = capsys.readouterr().err
    assert end.value.code == 2 and asked == ["nobody/no-such-model"]
    assert "nobody/no-such-model is no folder here" in said and "404 Client Error" in said
