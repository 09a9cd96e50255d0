"""lib/vllm_engine.py: what its processes do, with a stand-in for vllm, and the numbers, with vllm where it is installed."""

import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_sample import call

import lib.logprobs
import sample
from lib import vllm_engine
from lib.jsonl import read_jsonl
from lib.model import load_model
from lib.vllm_engine import engine_options, start_engines, stop, sync_weights
from sample import options, sample_rows

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BASE = f"{ROOT}/toy/base"
PROBLEMS = [
    {"id": f"t{k}", "statement": f"theorem h{k} (p q : Prop)" + " (h1 : p)" * (k % 4) + " : p ∧ q := by"}
    for k in range(1, 13)
]
needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm is not installed (requirements-gpu.txt)"
)

STAND_IN = '''
"""Answers a request with tokens that depend on its seeds alone, the newest request first; every call is in the file LOG."""
import json, os, random, time
from types import SimpleNamespace

EngineArgs = SamplingParams = SimpleNamespace


def log(*call):
    with open(os.environ["LOG"], "a") as file:
        file.write(json.dumps([os.getpid(), *call]) + "\\n")


class LLMEngine:
    def from_engine_args(args):
        log("load", vars(args), {name: os.environ.get(name) for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "RANK")})
        if os.environ.get("FAULT") == "load":
            raise ValueError("no such architecture\\nand a second line")
        engine = LLMEngine()
        engine.waiting, engine.steps = [], 0
        return engine

    def add_request(self, key, prompt, params):
        log("add", key)
        self.waiting.append((key, prompt["prompt_token_ids"], params))

    def has_unfinished_requests(self):
        return bool(self.waiting)

    def step(self):
        time.sleep(float(os.environ.get("SECONDS", "0.02")))
        self.steps += 1
        if os.environ.get("FAULT") == "die" and self.steps == 4:
            os.kill(os.getpid(), 9)
        (key, prompt, params), outputs = self.waiting.pop(-1), []
        for k in range(params.n):
            draw = random.Random(params.seed + k)
            ids = [draw.randrange(4, 60) for _ in range(draw.randrange(1, 9))] + params.stop_token_ids[:1]
            outputs.append(SimpleNamespace(token_ids=ids, finish_reason="abort" if os.environ.get("FAULT") == "abort" else "stop",
                                           logprobs=[{token: SimpleNamespace(logprob=-token / 8)} for token in ids]))
        return [SimpleNamespace(request_id=key, outputs=outputs)]

    def sleep(self, level):
        log("sleep", level)

    def wake_up(self, tags):
        log("wake_up", tags)

    def collective_rpc(self, method, kwargs):
        folder = kwargs["weights_path"]
        log(method, folder, sorted(os.listdir(folder)))

    def reset_prefix_cache(self):
        log("reset_prefix_cache")
        return os.environ.get("FAULT") != "cache"
'''


def settings(**changes):
    args = options()
    vars(args).update(changes)
    return args


def rows_of(engines, model, tokenizer, problems, num_samples, seed=0, model_name="", skip=0, **flags):
    more = dict(seed=seed, model_name=model_name, engines=engines, skip=skip)
    return list(sample_rows(model, tokenizer, problems, num_samples, settings(**flags), **more))


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts the stand-in before vllm, for this process and those it starts; returns the calls so far as a function."""
    (tmp_path / "path/vllm").mkdir(parents=True)
    (tmp_path / "path/vllm/__init__.py").write_text(STAND_IN)
    (tmp_path / "path/vllm/sampling_params.py").write_text("class RequestOutputKind:\n    FINAL_ONLY = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    return lambda name: [call for call in read_jsonl_lists(tmp_path / "log") if call[1] == name]


def read_jsonl_lists(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids, seconds=60):
    """Whether all these processes end within the time."""
    end = time.time() + seconds
    while any(map(alive, pids)) and time.time() < end:
        time.sleep(0.1)
    return not any(map(alive, pids))


def run(script, *arguments, **environment):
    environment = os.environ | dict(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1") | environment
    return subprocess.run(
        [sys.executable, f"{ROOT}/{script}", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        env=environment,
    )


def the_error(done):
    """The one sentence on stderr of a run that failed."""
    lines = re.findall("error: .*", done.stderr)  # a progress bar may stand before it
    assert done.returncode == 2 and len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


def sample_arguments(tmp_path, count=12, **more):
    (tmp_path / "problems.jsonl").write_text(
        "".join(json.dumps(problem) + "\n" for problem in PROBLEMS[:count])
    )
    flags = dict(
        model=BASE,
        problems=tmp_path / "problems.jsonl",
        num_samples=3,
        max_new_tokens=20,
        engine="vllm",
        out=tmp_path / "out.jsonl",
    )
    return [word for name, value in (flags | more).items() for word in (f"--{name.replace('_', '-')}", value)]


# ---- the processes, with the stand-in ----


def test_rows_come_in_order_and_do_not_depend_on_the_dealing(stand_in, monkeypatch):
    monkeypatch.setattr(vllm_engine, "AT_ONCE", 6)  # two groups, and one more
    monkeypatch.setenv("RANK", "3")
    model, tokenizer = load_model(BASE, weights=False)
    engines = start_engines(BASE, settings(gpus=2))
    assert (
        os.environ["RANK"] == "3" and "VLLM_ENABLE_V1_MULTIPROCESSING" not in os.environ
    )  # the engines' is another
    assert all(call[3] == {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "RANK": None} for call in stand_in("load"))
    flags = dict(seed=5, max_new_tokens=20, model_name="m")
    rows = rows_of(engines, model, tokenizer, PROBLEMS, 3, **flags)
    assert [(row["id"], row["sample"]) for row in rows] == [(p["id"], k) for p in PROBLEMS for k in range(3)]
    dealt = [(call[0], int(call[2])) for call in stand_in("add")]
    assert {len([k for pid, k in dealt if pid == engine.process.pid]) for engine in engines} <= {
        4,
        5,
        6,
        7,
        8,
    }
    assert sorted(k for _, k in dealt) == list(range(12))
    torch_rows = rows_of(None, *load_model(BASE), PROBLEMS, 3, **flags)
    assert [(list(row), row["prompt_ids"], type(row["logprobs"][0])) for row in rows] == [
        (list(row), row["prompt_ids"], type(row["logprobs"][0])) for row in torch_rows
    ]
    for row in rows:
        assert row["completion_ids"][-1] == 2 and (row["finish_reason"], row["model"], row["template"]) == (
            "stop",
            "m",
            "bare",
        )
        assert row["logprobs"] == [-token / 8 for token in row["completion_ids"]]
        assert row["completion"] == tokenizer.decode(row["completion_ids"][:-1])
    assert len({tuple(row["completion_ids"]) for row in rows}) > 30  # seeds of their own
    assert rows_of(engines[:1], model, tokenizer, PROBLEMS, 3, **flags) == rows
    assert rows_of(engines, model, tokenizer, PROBLEMS, 3, skip=5, **flags) == rows[15:]
    fewer = [row for row in rows[21:27] if row["sample"] < 2]
    assert rows_of(engines, model, tokenizer, PROBLEMS[7:9], 2, **flags) == fewer
    assert rows_of(engines, model, tokenizer, PROBLEMS, 3, **flags | dict(seed=6)) != rows
    stop(engines)
    assert not any(alive(engine.process.pid) for engine in engines)


def test_weights_travel_through_a_folder_that_goes(stand_in, tiny_model_dir):
    model, _ = load_model(tiny_model_dir)
    engines = start_engines(tiny_model_dir, settings())
    for _ in range(2):
        sync_weights(engines, model, "bfloat16")
    sync_weights(engines, model, state={name: weight.clone() for name, weight in model.state_dict().items()})
    calls = stand_in("reload_weights")
    assert len({folder for _, _, folder, _ in calls}) == 3 and not any(
        os.path.exists(folder) for _, _, folder, _ in calls
    )
    assert all("model.safetensors" in names and "config.json" in names for *_, names in calls)
    assert len(stand_in("reset_prefix_cache")) == 3 and not stand_in("wake_up")
    stop(engines)


def test_sleep_wakes_the_weights_before_they_are_loaded_and_the_cache_after(stand_in, tmp_path):
    """start_engines refuses --sleep without a GPU, so the engine's process is spoken to directly."""
    pipe, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=vllm_engine.engine_main, args=(theirs, dict(os.environ), {"enable_sleep_mode": True})
    )
    process.start()
    theirs.close()
    assert pipe.recv() == ("done", None)
    for command in (("sleep", None), ("reload", str(tmp_path))):
        pipe.send(command)
        assert pipe.recv() == ("done", None)
    pipe.close()
    assert gone([process.pid])
    calls = [call[1:3] for call in read_jsonl_lists(tmp_path / "log") if call[1] != "load"]
    assert calls == [
        ["sleep", 2],
        ["wake_up", ["weights"]],
        ["reload_weights", str(tmp_path)],
        ["wake_up", ["kv_cache"]],
        ["reset_prefix_cache"],
    ]


def test_an_engine_that_dies_ends_the_run_and_the_same_command_continues_it(stand_in, tmp_path):
    error = the_error(run("sample.py", *sample_arguments(tmp_path, gpus=2), FAULT="die"))
    assert (
        "died while sampling (exit code -9)" in error and "is kept" in error and "VLLM_LOGGING_LEVEL" in error
    )
    assert gone({call[0] for call in stand_in("load")})
    [part] = tmp_path.glob("out.jsonl.part-*")
    done = part.read_bytes()
    assert len(done.splitlines()) % 3 == 0
    continued = run("sample.py", *sample_arguments(tmp_path, gpus=1))  # on another number of GPUs
    assert continued.returncode == 0, continued.stderr
    rows = list(read_jsonl(tmp_path / "out.jsonl"))
    assert [(row["id"], row["sample"]) for row in rows] == [(p["id"], k) for p in PROBLEMS for k in range(3)]
    assert (tmp_path / "out.jsonl").read_bytes().startswith(done) and not part.exists()


@pytest.mark.parametrize(
    "fault, words",
    [
        ("load", "engine 1 of 1 failed while loading {base} (no such architecture and a second line)"),
        ("abort", "engine 1 of 1 failed while sampling (a completion ended with 'abort')"),
    ],
)
def test_an_engine_that_fails_says_why(stand_in, tmp_path, monkeypatch, capsys, fault, words):
    monkeypatch.setenv("FAULT", fault)
    monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, sample_arguments(tmp_path))])
    with pytest.raises(SystemExit) as end:
        sample.main()
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("error: ") == 1 and words.format(base=BASE) in error
    assert gone({call[0] for call in stand_in("load")})


def test_a_prefix_cache_that_stays_ends_the_run(stand_in, tiny_model_dir, monkeypatch, capsys):
    monkeypatch.setenv("FAULT", "cache")
    engines = start_engines(tiny_model_dir, settings())
    with pytest.raises(SystemExit) as end:
        sync_weights(engines, load_model(tiny_model_dir)[0])
    assert end.value.code == 2 and "prefix cache" in capsys.readouterr().err
    assert gone([engines[0].process.pid])
    stop(engines)


@pytest.mark.parametrize("how, count", [(signal.SIGKILL, 2), (signal.SIGINT, 1)])
def test_engines_end_with_whoever_started_them(stand_in, tmp_path, how, count):
    process = subprocess.Popen(
        [sys.executable, f"{ROOT}/sample.py", *map(str, sample_arguments(tmp_path, gpus=count))],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | dict(SECONDS="1", OMP_NUM_THREADS="1"),
    )
    while process.poll() is None and not (os.path.exists(tmp_path / "log") and stand_in("add")):
        time.sleep(0.1)
    pids = {call[0] for call in stand_in("load")}
    assert len(pids) == count and all(map(alive, pids))
    os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()  # Ctrl-C reaches the whole group
    error = process.communicate(timeout=300)[1]
    assert gone(pids) and "Traceback" not in error
    assert process.returncode == (130 if how == signal.SIGINT else -how)


def engine_chosen(engine, **more):
    """The engine that --engine and these flags come to."""
    args = settings(engine=engine, **more)
    sample.settle_flags(args)
    return args.engine


def test_vllms_flags_need_vllm(capsys):
    for more in (
        {"gpus": 2},
        {"tensor_parallel": 2},
        {"gpu_memory_utilization": 0.5},
        {"max_model_len": 100},
    ):
        with pytest.raises(SystemExit):
            engine_chosen("torch", **more)
        assert "add --engine vllm" in capsys.readouterr().err


def test_flags(stand_in, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert engine_chosen("auto") == "torch" and engine_chosen("vllm") == "vllm"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert engine_chosen("auto") == "vllm" and engine_chosen("torch") == "torch"
    with pytest.raises(SystemExit):
        engine_chosen("vllm", temperature=0.001)
    assert "--temperature of 0.01 or more, not 0.001" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert engine_chosen("auto") == "torch"
    model, tokenizer = load_model(BASE, weights=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for wrong, words in [
        (lambda: engine_chosen("vllm"), ["not installed", "--engine torch"]),
        (
            lambda: start_engines(BASE, settings(gpus=3, tensor_parallel=2)),
            ["3 GPUs of 4", "--tensor-parallel"],
        ),
        (lambda: start_engines(BASE, settings(gpus=8)), ["8 GPUs of 4", "--gpus"]),
        (
            lambda: rows_of([None], model, tokenizer, PROBLEMS, 2, max_new_tokens=90, max_model_len=100),
            ["limit of 100"],
        ),
    ]:
        with pytest.raises(SystemExit) as end:
            wrong()
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.count("\n") == 1 and all(word in error for word in words), error


def test_sleep_needs_a_gpu(stand_in, capsys):
    with pytest.raises(SystemExit):
        start_engines(BASE, settings(), sleep=True)
    assert "--sleep" in capsys.readouterr().err


def test_each_engine_sees_its_own_gpus(stand_in, monkeypatch):
    seen = []

    class Context:
        Pipe = staticmethod(multiprocessing.Pipe)

        def Process(self, target, args):
            seen.append((args[1]["CUDA_VISIBLE_DEVICES"], args[2]["tensor_parallel_size"]))
            args[0].send(("done", None))
            return SimpleNamespace(start=lambda: None, join=lambda seconds: None, kill=lambda: None)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: Context())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,3,1")
    assert len(start_engines(BASE, settings(tensor_parallel=2))) == 2
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7,5,3,1"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert len(start_engines(BASE, settings(gpus=3))) == 3 and "CUDA_VISIBLE_DEVICES" not in os.environ
    assert seen == [("7,5", 2), ("3,1", 2), ("0", 1), ("1", 1), ("2", 1)]


# ---- vllm itself ----


@needs_vllm
@pytest.mark.parametrize("cuda", [False, True])
def test_calls_fit_vllms_signatures(monkeypatch, cuda):
    """Those for CUDA too, which no test here can run: names and defaults change from one vLLM to the next."""
    code = """
import inspect, json, sys
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.sampling_params import RequestOutputKind
fields, params = json.loads(sys.argv[1])
EngineArgs(**fields)
SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **params)
calls = [("add_request", ["0", {"prompt_token_ids": [5]}, None], {}), ("has_unfinished_requests", [], {}), ("step", [], {}),
         ("sleep", [], {"level": 2}), ("wake_up", [["weights"]], {}), ("reset_prefix_cache", [], {}),
         ("collective_rpc", ["reload_weights"], {"kwargs": {"weights_path": "folder"}})]
for name, positional, named in calls:
    inspect.signature(getattr(LLMEngine, name)).bind(None, *positional, **named)
inspect.signature(LLMEngine.from_engine_args).bind(None)
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
inspect.signature(GPUModelRunner.reload_weights).bind(None, weights_path="folder")
print("fits")
"""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    fields = engine_options(BASE, settings(gpu_memory_utilization=0.4, max_model_len=100), sleep=cuda)
    assert ("max_num_batched_tokens" in fields) == fields["enable_sleep_mode"] == cuda
    params = vllm_engine.sampling_params(settings(template="deepseek"), 8, {2}) | {"seed": 2**62 - 1}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([fields, params])], capture_output=True, text=True
    )
    assert done.stdout.endswith("fits\n"), done.stderr


LONG = [
    {"id": f"l{p}", "statement": "theorem h (p q : Prop)" + " (h1 : p)" * 30 + f" (h2 : {p}) : p ∧ q := by"}
    for p in "pqrs"
]


@pytest.fixture(scope="module")
def engines(tiny_model_dir):
    torch.set_num_threads(1)
    engines = start_engines(tiny_model_dir, settings(gpus=2))
    yield engines
    stop(engines)


def widest_gap(rows, model, temperature=1.0):
    expected = lib.logprobs.completion_logprobs(model, rows, temperature)
    return max(
        (torch.tensor(row["logprobs"]) - logprobs).abs().max().item() for row, logprobs in zip(rows, expected)
    )


def perturbed(model, seed):
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.03 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))


@needs_vllm
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_trainers_before_and_after_updates(engines, tiny_model_dir, temperature):
    model, tokenizer = load_model(tiny_model_dir)
    sync_weights(engines, model)
    gaps, flags = [], dict(max_new_tokens=40, temperature=temperature)
    for seed in range(3):
        rows = rows_of(engines, model, tokenizer, PROBLEMS[:4] + LONG, 8, **flags)
        assert len(rows[-1]["prompt_ids"]) > 128
        gaps.append(widest_gap(rows, model, temperature))
        perturbed(model, seed)
        assert widest_gap(rows, model, temperature) > 0.1  # the update is one
        sync_weights(engines, model)
    print(f"temperature {temperature}: widest gap before and after two updates {gaps}")
    assert max(gaps) < 1e-4
    torch_rows = rows_of(None, model, tokenizer, PROBLEMS[:4] + LONG, 8, **flags)
    assert [(list(row), row["prompt_ids"]) for row in rows] == [
        (list(row), row["prompt_ids"]) for row in torch_rows
    ]


@needs_vllm
def test_the_dealing_changes_nothing_and_the_seed_does(engines, tiny_model_dir):
    model, tokenizer = load_model(tiny_model_dir)
    sync_weights(engines, model)
    rows, alone, other, few = (
        [
            row["completion_ids"]
            for row in rows_of(
                some, model, tokenizer, problems, count, seed=seed, max_new_tokens=40, progress=False
            )
        ]
        for some, problems, count, seed in (
            (engines, PROBLEMS, 8, 0),
            (engines[1:], PROBLEMS, 8, 0),
            (engines, PROBLEMS, 8, 1),
            (engines, PROBLEMS[3:4], 2, 0),
        )
    )
    assert rows == alone and few == rows[24:26] and rows != other
    assert len(set(map(tuple, rows))) > 90


@needs_vllm
def test_first_tokens_follow_the_softmax(engines, tiny_model_dir):
    model, tokenizer = load_model(tiny_model_dir)
    sync_weights(engines, model)
    problems = [dict(PROBLEMS[0], id=f"copy {k}") for k in range(8)]  # within groups and between them
    rows = rows_of(engines, model, tokenizer, problems, 500, max_new_tokens=1, temperature=0.5)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([rows[0]["prompt_ids"]])).logits[0, -1]
    expected = len(rows) * torch.softmax(logits / 0.5, -1).double().numpy()
    seen = np.bincount([row["completion_ids"][0] for row in rows], minlength=len(expected))
    common = expected > 5
    chi2 = ((seen - expected)[common] ** 2 / expected[common]).sum()
    assert common.sum() > 10 and chi2 < common.sum() + 4 * np.sqrt(2 * common.sum())


@needs_vllm
def test_ends_of_completions(engines, tiny_model_dir, monkeypatch):
    """End-of-text tokens, fences of one token and of three, and the length limit, as in the tests of sample_rows."""
    # This vocabulary lacks the words of the deepseek prompt.
    monkeypatch.setattr("sample.check_prompts", lambda *args: None)
    model, tokenizer = load_model(tiny_model_dir)
    single, fence = tokenizer.convert_tokens_to_ids(["`", "```"])
    with torch.no_grad():
        model.model.embed_tokens.weight += 0.3  # a direction that all hidden states share, ...
        model.lm_head.weight[[single, fence, 2]] = torch.tensor(
            [[0.07], [0.03], [0.03]]
        )  # ... and these tokens' logits like
    sync_weights(engines, model)
    for template in ("deepseek", "bare"):
        rows = rows_of(engines, model, tokenizer, PROBLEMS, 8, template=template, max_new_tokens=30)
        assert widest_gap(rows, model) < 1e-4
        stops, ends = (
            [row for row in rows if row["finish_reason"] == "stop"],
            {row["completion_ids"][-1] for row in rows},
        )
        for row in rows:
            ids, text = row["completion_ids"], "".join(tokenizer.convert_ids_to_tokens(row["completion_ids"]))
            assert 2 not in ids[:-1] and (len(ids) == 30 or row in stops) and len(ids) == len(row["logprobs"])
            assert row["completion"] == ("\n" if template == "deepseek" else "") + text.removesuffix("</s>")
            assert (row in stops) == (ids[-1] == 2 or template == "deepseek" and "```" in text)
            assert template == "bare" or "```" not in tokenizer.decode(ids[:-1])
        assert len(stops) > 20 and 2 in ends
        if template == "deepseek":
            assert {single, fence} <= ends
        else:
            assert any("```" in row["completion"][:-3] for row in rows) and len(stops) < len(rows)


def descendants(pid):
    """The processes below this one, the resource tracker of multiprocessing left out."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as file:
        children = [int(child) for child in file.read().split()]
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        tracker = b"resource_tracker" in file.read()
    return set() if tracker else {pid}.union(*map(descendants, children))


@needs_vllm
@pytest.mark.parametrize("victim, parallel", [("engine", 1), ("parent", 1), ("engine", 2), ("parent", 2)])
def test_a_killed_engine_ends_the_run_and_a_killed_run_its_engines(tmp_path, victim, parallel):
    arguments = sample_arguments(
        tmp_path, gpus=2, tensor_parallel=parallel, num_samples=400, max_new_tokens=800
    )
    process = subprocess.Popen(
        [sys.executable, f"{ROOT}/sample.py", *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stderr=subprocess.PIPE,
        env=os.environ | dict(OMP_NUM_THREADS="1"),
    )
    text = b""
    while process.poll() is None and b"0/4800" not in text:  # the engines are ready
        text += os.read(process.stderr.fileno(), 4096)
    engines = descendants(process.pid) - {process.pid}
    assert len(engines) >= 2, text
    os.kill(min(engines) if victim == "engine" else process.pid, signal.SIGKILL)
    error = process.communicate(timeout=300)[1]
    assert gone(engines) and "Traceback" not in error
    if victim == "engine":
        [sentence] = re.findall("error: .*", error)
        assert (
            process.returncode == 2
            and "died while sampling (exit code -9)" in sentence
            and "is kept" in sentence
        )


@needs_vllm
def test_tensor_parallel(tiny_model_dir):
    model, tokenizer = load_model(tiny_model_dir)
    engines = start_engines(tiny_model_dir, settings(tensor_parallel=2))
    for seed in range(2):
        rows = rows_of(engines, model, tokenizer, PROBLEMS[:4] + LONG, 4, max_new_tokens=20)
        assert len(engines) == 1 and widest_gap(rows, model) < 1e-4
        perturbed(model, seed)
        sync_weights(engines, model)
    stop(engines)


@needs_vllm
def test_an_interrupted_run_is_continued(tmp_path, monkeypatch):
    original = sample.sample_rows

    def stopped(*args, **kwargs):
        for k, row in enumerate(original(*args, **kwargs)):
            if k == 7:
                raise KeyboardInterrupt
            yield row

    arguments = sample_arguments(tmp_path)
    assert call(monkeypatch, *arguments) == 0
    whole = list(read_jsonl(tmp_path / "out.jsonl"))
    os.remove(tmp_path / "out.jsonl")
    monkeypatch.setattr(sample, "sample_rows", stopped)
    assert call(monkeypatch, *arguments) == 130
    [part] = tmp_path.glob("out.jsonl.part-*")
    assert len(part.read_bytes().splitlines()) == 6
    monkeypatch.setattr(sample, "sample_rows", original)
    assert call(monkeypatch, *arguments, "--gpus", 2) == 0
    for mine, theirs in zip(read_jsonl(tmp_path / "out.jsonl"), whole, strict=True):
        assert mine["completion_ids"] == theirs["completion_ids"] and np.allclose(
            mine["logprobs"], theirs["logprobs"], atol=1e-5
        )


@needs_vllm
def test_weights_that_cannot_be_loaded_end_the_run(tiny_model_dir, tmp_path, capsys):
    engines = start_engines(tiny_model_dir, settings())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(SystemExit) as end:
        vllm_engine.everywhere(engines, "reload", "loading the new weights", str(tmp_path))
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and "failed while loading the new weights" in error
    stop(engines)
    assert not alive(engines[0].process.pid)


@needs_vllm
def test_a_model_that_vllm_does_not_know(tmp_path, capsys):
    shutil.copytree(BASE, tmp_path / "model")
    with open(tmp_path / "model/config.json", "r+", encoding="utf-8") as file:
        config = json.load(file) | {"num_attention_heads": 3}
        file.seek(0)
        file.write(json.dumps(config))
        file.truncate()
    with pytest.raises(SystemExit) as end:
        start_engines(str(tmp_path / "model"), settings())
    error = capsys.readouterr().err
    assert (
        end.value.code == 2
        and error.count("\n") == 1
        and f"failed while loading {tmp_path / 'model'} (" in error
    )
    print(error)


@needs_vllm
def test_two_training_steps(tmp_path):
    done = run(
        "train.py",
        "--engine",
        "vllm",
        "--gpus",
        2,
        "--steps",
        2,
        "--problems-per-step",
        4,
        "--num-samples",
        16,
        "--train-batch",
        8,
        "--max-new-tokens",
        80,
        "--eval-samples",
        4,
        "--eval-problems",
        few(tmp_path),
        "--lr",
        "1e-3",
        "--out",
        tmp_path / "run",
    )
    assert done.returncode == 0, done.stderr
    metrics = list(read_jsonl(tmp_path / "run/metrics.jsonl"))
    print([row["logprob_gap"] for row in metrics], [row["kl"] for row in metrics])
    assert (
        len(metrics) == 2
        and metrics[1]["kl"] > 1e-4
        and all(0 < row["logprob_gap"] < 1e-3 for row in metrics)
    )
    model, _ = load_model(f"{tmp_path}/run/checkpoints/step_00002")
    assert (
        widest_gap(list(read_jsonl(tmp_path / "run/eval_00002/samples.jsonl")), model) < 1e-3
    )  # sampled with the last weights


def few(tmp_path):
    """A file of four held-out problems."""
    with open(f"{ROOT}/toy/val.jsonl", encoding="utf-8") as file:
        (tmp_path / "few.jsonl").write_text("".join(file.readlines()[:4]))
    return tmp_path / "few.jsonl"
