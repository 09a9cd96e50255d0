"""Malformed files, flags and folders for all five stages: exit code 2, one sentence that names the culprit, nothing written.

    python -m pytest tests/test_bad_input.py

A case is (stage, arguments, {file to make: its content}, words of the sentence). Each runs in a folder of its own, where
good stands for a tiny model folder and problems.jsonl holds two problems; model() and run() make damaged models and runs of train.py.
"""

import functools
import gzip
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys

import pytest
import torch
from conftest import lean_tokenizer, tiny_llama

import advantage
import evaluate
import lib.lean
import sample
import train
import verify
from lib import wheel

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STAGES = {"sample": sample, "verify": verify, "advantage": advantage, "train": train, "evaluate": evaluate}

PROBLEM = {"id": "a", "statement": "theorem a (p : Prop) (h : p) : p := by"}
SAMPLE = {
    **PROBLEM,
    "sample": 0,
    "prompt_ids": [5, 6],
    "completion": "\n  exact h",
    "completion_ids": [7, 8, 2],
    "logprobs": [-0.5, -1, -0.25],
    "finish_reason": "stop",
}
VERIFIED = {**SAMPLE, "verdict": "proved", "reward": 1.0}
ADVANTAGE = {**VERIFIED, "rank": 0.0, "shaped_reward": 1.0, "advantage": 0.7}

# The arguments with which each stage reads in.jsonl, and a row that it takes.
READ = {
    "sample": ("--model good --num-samples 2 --max-new-tokens 4 --out out.jsonl --problems", PROBLEM),
    "verify": ("--out out.jsonl", SAMPLE),
    "advantage": ("--out out.jsonl", VERIFIED),
    "train": ("--model good --out run --advantages", ADVANTAGE),
    "evaluate": ("--out figures", VERIFIED),
    "evaluate uplift": ("--before good --after good --out figures", VERIFIED),
}
TRAIN = "--model good --problems problems.jsonl --steps 1 --problems-per-step 2 --num-samples 2 --max-new-tokens 4 --eval-samples 0 --workers 1 --out"
FOLDER = "a folder"


def lines(*rows):
    """The rows as JSONL; what is no dict stands there as it is."""
    return "".join((json.dumps(row) if isinstance(row, dict) else row) + "\n" for row in rows)


def damaged(folder, name, content):
    """Makes a copy of the folder with another content for one of its files; a number cuts it there, None takes it away."""

    def make(path, base):
        shutil.copytree(f"{base}/{folder}", path)
        file = f"{path}/{name}"
        if isinstance(content, int):
            os.truncate(file, content)
        elif content is not None:
            with open(file, "wb") as opened:
                opened.write(content)
        else:
            shutil.rmtree(file) if os.path.isdir(file) else os.remove(file)

    return make


def model(name, content=None):
    return damaged("good", name, content)


def run(name, content=None):
    return damaged("run", name, content)


def other_table(path, base):
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")  # else the first look at it would change that
        connection.execute("CREATE TABLE verdicts (something TEXT)")
    connection.close()


# fmt: off
# What any of the stages may find in the place of its JSONL: (content of in.jsonl, or a function of a line; words).
FILES = {
    "missing": (None, "cannot read No such file"),
    "folder": (FOLDER, "cannot read directory"),
    "empty": ("", "in.jsonl has no"),
    "words": ("hello\n", "line 1 JSON"),
    "number": ("7\n", "line 1 object"),
    "text": ('"a"\n', "line 1 object"),
    "array": (lambda row: f"[{row}]\n", "line 1 object"),
    "null": ("null\n", "line 1 object"),
    "indented": (lambda row: json.dumps(json.loads(row), indent=1), "line 1 JSON"),
    "cut": (lambda row: row[:-9], "line 1 JSON 'cut short'"),
    "second": (lambda row: f"{row}\n{{]\n", "line 2 JSON"),
    "two": (lambda row: f"{row} {row}\n", "line 1 JSON"),
    "no keys": ("{}\n", "line 1 missing"),
    "single quotes": ("{'id': 'a'}\n", "line 1 JSON"),
    "NaN": (lambda row: row[:-1] + ', "more": NaN}\n', "line 1 JSON"),
    "Infinity": (lambda row: row[:-1] + ', "more": [-Infinity]}\n', "line 1 JSON"),
    "latin-1": (b'{"id": "\xe9"}\n', "in.jsonl UTF-8"),
    "utf-16": (lambda row: row.encode("utf-16"), "in.jsonl UTF-8"),
    "gzip": (lambda row: gzip.compress(row.encode()), "in.jsonl UTF-8"),
    "parquet": (b"PAR1\x15\x04\x15\xff\x80PAR1", "in.jsonl UTF-8"),
    "NUL": (lambda row: row[:-1] + ', "more": "\0"}\n', "line 1 JSON"),
    "deep": (lambda row: row[:-1] + ', "more": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "line 1 JSON"),
    "digits": (lambda row: row[:-1] + f', "more": {"9" * 5000}}}\n', "line 1 JSON"),
    "long": ("x" * 10**7, "line 1 JSON"),
}
# fmt: on

# fmt: off
# Values of a key that are none of its kind; the sentence names the line and the key.
TEXTS = (7, None, ["a"], {"a": "b"}, True)
IDS = (None, 7, "7", [], [1.5], [-1], ["1"], [None], [True], [[1]], {"1": 1})
NUMBERS = (None, -0.5, "x", [], [-0.5, -1], [-0.5, -1, "x"], [-0.5, -1, None], [-0.5, -1, True], [[-0.5], [-1], [0]], [-0.5, -1, 10**400])
VALUES = [("sample", "id", TEXTS), ("sample", "statement", TEXTS), ("sample", "header", TEXTS), ("sample", "informal", TEXTS),
          ("verify", "statement", TEXTS), ("verify", "completion", TEXTS), ("verify", "header", TEXTS),
          ("advantage", "id", TEXTS), ("advantage", "completion_ids", IDS), ("advantage", "logprobs", NUMBERS),
          ("advantage", "sample", (None, -1, 1.5, "0", True, [0])), ("advantage", "reward", ("1", True, 10**400, [1], {"a": 1})),
          ("evaluate", "id", TEXTS), ("evaluate", "completion", TEXTS), ("evaluate", "reward", ("1", True, [1])),
          ("evaluate uplift", "id", TEXTS), ("evaluate uplift", "prompt_ids", IDS), ("evaluate uplift", "completion_ids", IDS),
          ("train", "id", TEXTS), ("train", "completion", TEXTS), ("train", "prompt_ids", IDS), ("train", "completion_ids", IDS),
          ("train", "logprobs", NUMBERS), ("train", "reward", ("1", True, [1])), ("train", "advantage", ("1", [1], True, 10**400))]

GOOD = {"in.jsonl": lines(VERIFIED, {**VERIFIED, "sample": 1, "reward": 0.0})}
SAMPLES, ADVANTAGES = {"in.jsonl": lines(SAMPLE)}, {"in.jsonl": lines(ADVANTAGE)}
BEFORE = "--model good --num-samples 2 --max-new-tokens 4"  # what a command of sample.py has before its other flags

CASES = [
    # sample.py
    ("sample", "", {}, "--out required"),
    ("sample", f"{BEFORE} --problems problems.jsonl --out out.jsonl --max-new-tokns 5", {}, "'did you mean --max-new-tokens?'"),
    ("sample", f"{BEFORE} --problems problems.jsonl", {}, "--out required"),
    ("sample", f"{BEFORE} --problems problems.jsonl --out problems.jsonl", {}, "--out read"),
    ("sample", f"{BEFORE} --problems in.jsonl --out ./in.jsonl", {"in.jsonl": lines(PROBLEM)}, "in.jsonl read --out"),
    ("sample", f"{BEFORE} --problems problems.jsonl --out /proc/out", {}, "/proc/out --out"),
    ("sample", f"{BEFORE} --problems problems.jsonl --out {'a' * 300}", {}, "write --out"),
    ("sample", f"{BEFORE} --problems problems.jsonl --out out.jsonl --num-samples -2", {}, "--num-samples 'at least 1'"),
    ("sample", f"{BEFORE} --problems problems.jsonl --out out.jsonl --num-samples 2.5", {}, "--num-samples int"),
    ("sample", f"{BEFORE} --problems problems.jsonl --out out.jsonl --num-samples {'9' * 400}", {}, "--num-samples"),
    ("sample", f"{BEFORE} --problems problems.jsonl --out out.jsonl --num-samples {'9' * 5000}", {}, "--num-samples"),
    ("sample", f"{BEFORE} --problems problems.jsonl --out out.jsonl --temperature inf", {}, "--temperature finite"),
    ("sample", f"{BEFORE} --problems problems.jsonl --out out.jsonl --seed x", {}, "--seed int"),
    ("sample", f"{BEFORE} --problems problems.jsonl --out out.jsonl --limit 0", {}, "--limit 'at least 1'"),
    ("sample", f"{BEFORE} --problems problems.jsonl --out out.jsonl --dtype int8", {}, "--dtype choice"),
    ("sample", f"{BEFORE} --problems problems.jsonl --out out.jsonl --device cudo", {}, "cudo device"),
    ("sample", f"{BEFORE} --problems problems.jsonl --out out.jsonl --gpus 2", {}, "--gpus --engine"),
    ("sample", f"{BEFORE} --problems problems.jsonl --out out.jsonl --max-new-tokens {10**15}", {}, "limit --max-new-tokens"),
    ("sample", f"{BEFORE} --problems problems.jsonl --out out.jsonl --max-new-token 5 --nonsense", {}, "--nonsense"),
    ("sample", f"{BEFORE} --problems in.jsonl --out out.jsonl", {"in.jsonl": lines(PROBLEM, PROBLEM)}, "line 2 'line 1' id"),
    ("sample", f"{BEFORE} --problems in.jsonl --out out.jsonl", {"in.jsonl": lines({"id": "a", "statement": ""})}, "line 1 ':= by'"),
    ("sample", f"{BEFORE} --problems in.parquet --out out.jsonl", {"in.parquet": b"PAR1"}, "in.parquet tools/problems.py"),
    *[("sample", f"{BEFORE} --problems problems.jsonl --out out.jsonl --model bad", {"bad": make}, f"bad {words}") for make, words in [
        (FOLDER, "config.json"), ("a file", "load"), (model("config.json"), "config.json"), (model("config.json", b"{"), "config.json"),
        (model("config.json", b"[]"), "load"), (model("config.json", b'{"model_type": "nonsense"}'), "nonsense"), (model("config.json", b"{}"), "load"),
        (model("model.safetensors"), "safetensors"), (model("model.safetensors", 1000), "load"), (model("model.safetensors", b""), "load"),
        (model("model.safetensors", b"\x80\x02}q\x00."), "load"), (model("tokenizer.json"), "load"), (model("tokenizer.json", b"{"), "load"),
        (model("tokenizer.json", 500), "load"), (model("tokenizer_config.json", b"["), "load")]],
    # verify.py
    ("verify", "", {}, "--out rows"),
    ("verify", "in.jsonl", SAMPLES, "--out"),
    ("verify", "in.jsonl --out out.jsonl --lean no-such-lean", SAMPLES, "no-such-lean"),
    ("verify", "in.jsonl --out ./in.jsonl", SAMPLES, "in.jsonl read --out"),
    ("verify", "in.jsonl --out link.jsonl", SAMPLES | {"link.jsonl": lambda path, base: os.symlink("in.jsonl", path)}, "read --out"),
    ("verify", "in.jsonl --out no/out.jsonl", SAMPLES, "no/out.jsonl --out"),
    ("verify", "in.jsonl --out link.jsonl", SAMPLES | {"link.jsonl": lambda path, base: os.symlink("other.jsonl", path)}, "link.jsonl 'a link' --out"),
    ("verify", "in.jsonl --out pipe", SAMPLES | {"pipe": lambda path, base: os.mkfifo(path)}, "pipe 'a device' --out"),
    ("verify", "in.jsonl --out out.jsonl --project some", SAMPLES | {"some": FOLDER}, "some Prelude.lean --project"),
    ("verify", "in.jsonl --out out.jsonl --workers -1", SAMPLES, "--workers 'at least 1'"),
    ("verify", f"in.jsonl --out out.jsonl --workers {'9' * 400}", SAMPLES, "--workers"),
    ("verify", "in.jsonl --out out.jsonl --verify-batch 0", SAMPLES, "--verify-batch 'at least 1'"),
    ("verify", "in.jsonl --out out.jsonl --timeout -inf", SAMPLES, "--timeout"),
    ("verify", "in.jsonl --out out.jsonl --timeout 1e300", SAMPLES, "--timeout"),
    ("verify", "in.jsonl --out out.jsonl --memory-gb 0", SAMPLES, "--memory-gb above"),
    ("verify", "in.jsonl --out out.jsonl --memory-gb 1e308", SAMPLES, "--memory-gb"),
    ("verify", "in.jsonl --out out.jsonl --memory-gb 0.001", SAMPLES, "--memory-gb"),
    ("verify", f"in.jsonl --out out.jsonl --max-heartbeats {'9' * 30}", SAMPLES, "--max-heartbeats"),
    ("verify", "in.jsonl --out out.jsonl --max-heartbeats nan", SAMPLES, "--max-heartbeats int"),
    ("verify", "in.jsonl --out out.jsonl --verifier coq", SAMPLES, "--verifier coq MODULE:FUNCTION"),
    ("verify", "in.jsonl more.jsonl --out out.jsonl", SAMPLES, "more.jsonl"),
    ("verify", "in.jsonl --out out.jsonl --lean 'no-such-lean --x'", SAMPLES, "no-such-lean"),
    ("verify", "in.jsonl --out out.jsonl --lean in.jsonl", SAMPLES, "in.jsonl"),
    ("verify", "in.jsonl --out out.jsonl --lean 'echo Lean'", SAMPLES, "'does not run'"),
    ("verify", "in.jsonl --out out.jsonl --lean 'lake env'", SAMPLES, "lake"),
    ("verify", "in.jsonl --out out.jsonl --project nowhere", SAMPLES, "nowhere --project"),
    ("verify", "in.jsonl --out out.jsonl --project in.jsonl", SAMPLES, "in.jsonl --project"),
    ("verify", "in.jsonl --out out.jsonl --verdicts in.jsonl", SAMPLES, "in.jsonl --verdicts"),
    ("verify", "in.jsonl --out out.jsonl --verdicts .", SAMPLES, "--verdicts"),
    ("verify", "in.jsonl --out out.jsonl --verdicts no/store", SAMPLES, "no/store --verdicts"),
    ("verify", "in.jsonl --out out.jsonl --verdicts out.jsonl", SAMPLES, "out.jsonl --out"),
    ("verify", "in.jsonl --out out.jsonl --verdicts cut.sqlite", SAMPLES | {"cut.sqlite": b"SQLite format 3\0" + b"x" * 84}, "cut.sqlite --verdicts"),
    ("verify", "in.jsonl --out out.jsonl --verdicts other.sqlite", SAMPLES | {"other.sqlite": other_table}, "other.sqlite --verdicts"),
    ("verify", "in.jsonl --out out.jsonl", {"in.jsonl": lines({**SAMPLE, "statement": "theorem a : True"})}, "line 1 ':= by'"),
    # advantage.py
    ("advantage", "in.jsonl --out ./in.jsonl", GOOD, "in.jsonl read --out"),
    ("advantage", "in.jsonl --out .", GOOD, "write --out"),
    ("advantage", "in.jsonl --out /proc/out", GOOD, "/proc/out --out"),
    ("advantage", "in.jsonl --out in.jsonl/out", GOOD, "in.jsonl/out --out"),
    ("advantage", "in.jsonl --out out.jsonl --unlikeliness 1.5", GOOD, "--unlikeliness 'more than 1'"),
    ("advantage", "in.jsonl --out out.jsonl --unlikeliness -0.1", GOOD, "--unlikeliness"),
    ("advantage", "in.jsonl --out out.jsonl --unlikeliness infinity", GOOD, "--unlikeliness finite"),
    ("advantage", "in.jsonl --out out.jsonl --filter maybe", GOOD, "--filter choice"),
    ("advantage", "in.jsonl --out out.jsonl --estimator ppo", GOOD, "--estimator choice"),
    ("advantage", "in.jsonl --out out.jsonl --ties broken", GOOD, "unrecognized"),
    ("advantage", "in.jsonl in.jsonl --out out.jsonl", GOOD, "unrecognized"),
    ("advantage", "in.jsonl --out out.jsonl", {"in.jsonl": lines(SAMPLE)}, "line 1 'reward' missing"),
    ("advantage", "in.jsonl --out out.jsonl", {"in.jsonl": lines(VERIFIED, VERIFIED)}, "in.jsonl 'a has a sample twice'"),
    ("advantage", "in.jsonl --out out.jsonl", {"in.jsonl": lines(VERIFIED, {**VERIFIED, "id": "b"}, {**VERIFIED, "sample": 1})}, "in.jsonl 'a comes again' 'next to each other'"),
    ("advantage", "in.jsonl --out out.jsonl", {"in.jsonl": lines(VERIFIED, '{"id": "a", "sample": 1, "reward": 1}')}, "line 2 completion_ids missing"),
    ("advantage", "in.jsonl --out out.jsonl", {"in.jsonl": lines(VERIFIED).replace("-0.25", "-1e999")}, "line 1 logprobs"),
    # train.py
    ("train", "--advantages in.jsonl --model good --out in.jsonl", ADVANTAGES, "in.jsonl --out"),
    ("train", "--advantages in.jsonl --model good --out run --resume", ADVANTAGES | {"run": run("metrics.jsonl")}, "run --out"),
    ("train", "--advantages in.jsonl --model good --out run", {"in.jsonl": lines({**ADVANTAGE, "advantage": None})}, "in.jsonl advantage"),
    ("train", "--advantages in.jsonl --model good --out run", {"in.jsonl": lines(VERIFIED)}, "line 1 'advantage' missing"),
    ("train", "--advantages in.jsonl --model good --out run", {"in.jsonl": lines({**ADVANTAGE, "completion_ids": [7, 9999, 2]})}, "9999 good"),
    ("train", "--advantages in.jsonl --model good --out run", {"in.jsonl": lines({**ADVANTAGE, "prompt_ids": [10**30]})}, f"{10**30} good"),
    ("train", "--advantages in.jsonl --model good --out run", {"in.jsonl": lines(ADVANTAGE).replace("0.7", "1e999")}, "line 1 advantage"),
    ("train", "--advantages in.jsonl --model good --out run --unlikeliness 0.25", ADVANTAGES, "--unlikeliness advantage.py"),
    ("train", "--advantages in.jsonl --model good --out run --estimator nsr", ADVANTAGES, "--estimator advantage.py"),
    ("train", "--advantages in.jsonl --model good", ADVANTAGES, "--out"),
    ("train", "--advantages in.jsonl --model bad --out run", ADVANTAGES | {"bad": model("model.safetensors", 1000)}, "bad load"),
    *[("train", f"{TRAIN} run {flags}", {}, words) for flags, words in [
        ("--steps 0", "--steps 'at least 1'"), ("--seed -1", "--seed 'at least 0'"), ("--lr inf", "--lr finite"), ("--lr 1e300", "--lr 'more than'"),
        ("--weight-decay 1e300", "--weight-decay 'more than'"), ("--kl nan", "--kl finite"), ("--ppo-epochs 1.5", "--ppo-epochs int"),
        (f"--minibatch {'9' * 400}", "--minibatch"), ("--unlikeliness 2", "--unlikeliness 'more than 1'"),
        ("--device cuda:99", "cuda:99 device"), ("--gpus 2", "--engine"),
        ("--project nowhere", "nowhere --project"), ("--lean true", "'does not run' version"), ("--num-samples 1", "--num-samples group"), ("--verdicts problems.jsonl", "problems.jsonl --verdicts"), ("--header x", "--header"),
        ("--max-new-tokens 99999", "--max-new-tokens"), ("--eval-samples 2 --eval-problems nowhere.jsonl", "nowhere.jsonl"), ("--problems good", "cannot read"),
        ("--reference-device gpu", "--reference-device choice"), ("--memory-gb 1e308", "--memory-gb"), ("stray", "stray")]],
    ("train", f"{TRAIN} run", {"run": run("metrics.jsonl")}, "run --resume"),
    *[("train", f"{TRAIN} run --resume {flags}", {"run": make}, f"run {words}") for flags, make, words in [
        ("", run("metrics.jsonl", b"{\xff"), "metrics.jsonl lacks"), ("--lr 0.5", run("metrics.jsonl"), "--lr"), ("--num-samples 3", run("metrics.jsonl"), "--num-samples 3"),
        ("", run("args.json", b""), "args.json --out"), ("", run("args.json", b"{}"), "args.json --out"), ("", run("args.json", b"[]"), "args.json --out"),
        ("", run("args.json", b"7\n"), "args.json --out"), ("", run("args.json", 100), "args.json --out"), ("", run("args.json", b"[" * 10**5), "args.json --out"),
        ("", run("args.json", b'{"model": "\xff"}'), "args.json --out"),
        ("", run("checkpoints/step_00001/trainer.pt", 300), "trainer.pt"), ("", run("checkpoints/step_00001/trainer.pt", b""), "trainer.pt"),
        ("", run("checkpoints/step_00001/trainer.pt", b"\x80\x02}q\x00."), "trainer.pt"), ("", run("checkpoints/step_00001/optimizer"), "optimizer"),
        ("", run("checkpoints/step_00001/optimizer/shard-00001-model-00001-of-00001.safetensors", 5000), "optimizer"),
        ("", run("checkpoints/step_00001/optimizer/shard-00001-model-00001-of-00001.safetensors", b""), "optimizer"),
        ("", run("checkpoints/step_00001/model.safetensors", 1000), "step_00001"), ("", run("checkpoints/step_00001/config.json", b"{"), "step_00001"),
        ("", run("checkpoints/step_00001/tokenizer.json"), "step_00001")]],
    # evaluate.py
    ("evaluate", "in.jsonl nowhere.jsonl --out figures", GOOD, "nowhere.jsonl"),
    ("evaluate", "in.jsonl --out in.jsonl", GOOD, "in.jsonl --out"),
    ("evaluate", "in.jsonl --out /proc/figures", GOOD, "/proc/figures --out"),
    ("evaluate", "in.jsonl in.jsonl", GOOD, "--labels"),
    ("evaluate", "in.jsonl --labels", GOOD, "--labels"),
    ("evaluate", "curve in.jsonl", GOOD, "curve"),
    ("evaluate", "in.jsonl --out figures", {"in.jsonl": lines({**VERIFIED, "reward": None})}, "in.jsonl verdict"),
    ("evaluate", "uplift --before good --after nowhere in.jsonl --bins 0", GOOD, "--bins"),
    ("evaluate", "uplift --before good --after good/nowhere in.jsonl", GOOD, "no folder good/nowhere"),
    ("evaluate", "uplift --before good --after a/b/c in.jsonl", GOOD, "no folder a/b/c"),
    ("evaluate", f"uplift --before good --after good in.jsonl --bins {10**12}", GOOD, "--bins 'more than'"),
    ("evaluate", "uplift --before good --after bad in.jsonl --out figures", GOOD | {"bad": model("model.safetensors", 1000)}, "bad load"),
    ("evaluate", "uplift --before good --after good in.jsonl", {"in.jsonl": lines({**VERIFIED, "completion_ids": [999]})}, "999 good"),
    ("evaluate", "uplift --before good --after good in.jsonl", {"in.jsonl": lines({**VERIFIED, "reward": 0})}, "in.jsonl correct"),
    *[("evaluate", "curves run --out figures", {"run/metrics.jsonl": text}, f"metrics.jsonl {words}") for text, words in [
        (None, "read"), ("", "rows"), ("[]\n", "line 1"), ('{"step": 0}\n', "line 1 missing"),
        (lines({"step": 0, "reward": "x", "unique": 1, "kl": None, "clip_fraction": None}), "line 1 reward"),
        (lines({"step": None, "reward": 0, "unique": 1, "kl": None, "clip_fraction": None}), "line 1 step"),
        (lines({"step": 0, "reward": [1], "unique": 1, "kl": {}, "clip_fraction": None}), "line 1 reward")]],
]
# fmt: on


def command(stage, name="in.jsonl"):
    script, *rest = stage.split()
    return script, " ".join([*rest, READ[stage][0], name])


CASES += [
    (
        *command(stage),
        {"in.jsonl": content(json.dumps(READ[stage][1])) if callable(content) else content},
        f"in.jsonl {words}",
    )
    for stage in READ
    for content, words in FILES.values()
]
CASES += [
    (*command(stage), {"in.jsonl": lines({**READ[stage][1], key: value})}, f"in.jsonl line 1 {key}")
    for stage, key, values in VALUES
    for value in values
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with good, problems.jsonl and, where Lean is there, run."""
    folder = tmp_path_factory.mktemp("base")
    torch.set_num_threads(1)
    tokenizer = lean_tokenizer()
    tiny_llama(tokenizer, hidden_size=32, layers=1).save_pretrained(folder / "good")
    tokenizer.save_pretrained(folder / "good")
    (folder / "problems.jsonl").write_text(lines(PROBLEM, {**PROBLEM, "id": "b"}))
    if wheel.library():
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            assert called(patch, "train", f"{TRAIN} run") == 0
    return folder


def called(monkeypatch, stage, arguments):
    """A stage's main() in this process: its exit code."""
    monkeypatch.setattr(sys, "argv", [f"{stage}.py", *shlex.split(arguments)])
    monkeypatch.setattr(verify, "find_lean", FIND_LEAN)
    try:
        STAGES[stage].main()
    except SystemExit as end:
        return end.code
    return 0


FIND_LEAN = functools.cache(lib.lean.find_lean)  # trying Lean out takes longer than all else


def make(folder, files, base):
    """Fills the folder, which is the working folder, for a case."""
    os.symlink(base / "good", folder / "good")
    shutil.copy(base / "problems.jsonl", folder)
    for name, what in files.items():
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        if callable(what):
            what(name, base)
        elif what == FOLDER:
            os.mkdir(name)
        elif what is not None:
            with open(name, "wb") as file:
                file.write(what.encode() if isinstance(what, str) else what)


def content(folder):
    """{path: bytes} of every file below the folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "stage, arguments, files, words",
    CASES,
    ids=[
        f"{n}-{stage} {arguments[:60]} {words[:60]}" for n, (stage, arguments, _, words) in enumerate(CASES)
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys, base, stage, arguments, files, words):
    if stage in ("verify", "train") and not wheel.library():
        pytest.skip("needs the Lean wheel (Linux x86-64)")
    monkeypatch.chdir(tmp_path)
    make(tmp_path, files, base)
    before = content(tmp_path)
    capsys.readouterr()
    code = called(monkeypatch, stage, arguments)
    said = capsys.readouterr().err
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    assert not [word for word in shlex.split(words) if word not in said], said
    assert content(tmp_path) == before


# fmt: off
# What looks odd and must work: (stage, arguments, files, words of its output).
ODD = [  # lines of one file: a byte order mark, the line ends of Windows, blanks, escapes, long, wide, deep, any id, no end
    lambda row: "\ufeff" + row + "\n", lambda row: row + "\r\n", lambda row: f"  {row} \n",
    lambda row: row[:-1] + ', "more": "\\u2200 \\ud835\\udc9c \\u0000"}\n', lambda row: row[:-1] + f', "more": "{"x" * 2_000_000}"}}\n',
    lambda row: row[:-1] + ', "more": {' + ", ".join(f'"{k}": {k}' for k in range(20_000)) + "}}\n",
    lambda row: row[:-1] + ', "more": ' + "[" * 200 + "]" * 200 + "}\n", lambda row: row.replace('"id": "', '"id": "∀ 𝒜\u2028$x^') + "\n", lambda row: row,
    lambda row: "\n \n" + row + "\n\n", lambda row: row[:-1] + ', "more": "\\ud835"}\n', lambda row: row]
# fmt: on


def odd(row):
    return "".join(odd(json.dumps({**row, "id": f"a{k}"})) for k, odd in enumerate(ODD))


# fmt: off
OTHER = {**VERIFIED, "id": "b"}
WORKS = [(*command(stage), {"in.jsonl": odd(READ[stage][1])}, "") for stage in READ]
WORKS += [
    ("verify", "in.jsonl --out out.jsonl --timeout 1e15 --memory-gb 4096", SAMPLES, "1 rows"),
    ("verify", "in.jsonl --out out.jsonl --verdicts store", SAMPLES | {"store": b""}, "1 rows"),
    ("verify", "in.jsonl --out out.jsonl", {"in.jsonl": lines(SAMPLE), "out.jsonl": "old\n"}, "1 rows"),
    ("advantage", "in.jsonl --out out.jsonl", {"in.jsonl": lines(VERIFIED, {**VERIFIED, "sample": 1, "reward": 0}, OTHER)}, "3 rows, 2 groups, 2 rows in"),
    ("advantage", "in.jsonl --out out.jsonl", {"in.jsonl": lines({**VERIFIED, "reward": None}, {**VERIFIED, "sample": 7, "reward": None})}, "2 rows, 1 groups, 0 rows in"),
    ("evaluate", "in.jsonl more.jsonl --out figures", {"in.jsonl": lines(VERIFIED), "more.jsonl": lines(OTHER)}, "'problems in common'"),
    ("evaluate", "in.jsonl more.jsonl --out figures", {"in.jsonl": lines(*[VERIFIED] * 5, OTHER), "more.jsonl": lines(*[OTHER] * 3)}, "'N stops at 1'"),
    ("evaluate", "in.jsonl --out figures --labels '$x^{$'", {"in.jsonl": lines(VERIFIED)}, "'$x^{$'"),
    ("evaluate", "curves run --out figures --labels '$x^{$'", {"run/metrics.jsonl": lines({"step": 0, "reward": 1, "unique": 1, "kl": None, "clip_fraction": None})}, "curves.png"),
    ("train", f"{TRAIN} run --resume", {"run": run("checkpoints/step_00001/trainer.pt")}, "step_00001"),
    ("train", f"{TRAIN} run --resume", {"run": run("checkpoints")}, "step_00001"),
    ("train", f"{TRAIN} run --resume", {"run": run("step_00000/verified.jsonl", 50)}, "resuming"),
    ("train", f"{TRAIN} run --resume", {}, "step_00001"),
]
# fmt: on


@pytest.mark.parametrize(
    "stage, arguments, files, words",
    WORKS,
    ids=[f"{n}-{case[0]} {case[1][:60]}" for n, case in enumerate(WORKS)],
)
def test_odd_input_works(tmp_path, monkeypatch, capsys, base, stage, arguments, files, words):
    if stage in ("verify", "train") and not wheel.library():
        pytest.skip("needs the Lean wheel (Linux x86-64)")
    monkeypatch.chdir(tmp_path)
    make(tmp_path, files, base)
    code = called(monkeypatch, stage, arguments)
    said = capsys.readouterr()
    assert code == 0, said.err
    assert not [word for word in shlex.split(words) if word not in said.out], said.out


@pytest.mark.parametrize(
    "command, word",
    [
        ("verify.py in.jsonl --out in.jsonl", "--out"),
        ("advantage.py in.jsonl --out out.jsonl --unlikeliness 2", "--unlikeliness"),
        ("evaluate.py in.jsonl", "line 1"),
    ],
)
def test_the_command_itself(tmp_path, command, word):
    """What the cases above see in this process, seen from a shell."""
    (tmp_path / "in.jsonl").write_text("[" * 10**5)
    script, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, script), *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert (
        done.returncode == 2
        and not done.stdout
        and done.stderr.startswith("error: ")
        and done.stderr.count("\n") == 1
        and word in done.stderr
    )
    assert content(tmp_path) == {tmp_path / "in.jsonl": b"[" * 10**5}
