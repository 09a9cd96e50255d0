"""What a GPU may change, each check with a device as its argument. Here they run on the CPU, and once more on a GPU if
there is one, in a process of their own, since the other tests must not see it.

python -m pytest -q -m cuda -rP tests/test_cuda.py     # the GPU alone, with what each check measured
"""

import copy
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import advantage
import sample
import train
from lib.build import compute_in_copy
from lib.checks import check_logprobs, check_sampler
from lib.jsonl import read_jsonl, write_jsonl
from lib.logprobs import completion_logprobs, target_logprobs
from lib.model import load_model, pick_device
from lib.processes import connect, shard, whole_tensor, wrap_blocks
from lib.samples import score

BASE = f"{ROOT}/toy/base"


def sampled(device, dtype="float32", G=16):
    """(model, rows) of 4 problems, with the parity of a completion's bytes as its reward."""
    model, tokenizer = load_model(BASE, dtype, device)
    problems, args = sample.read_problems(f"{ROOT}/toy/train.jsonl", 4), sample.options("--max-new-tokens 80")
    rows = sample.sample_rows(model, tokenizer, problems, G, args, progress=False)
    rows = [dict(row, reward=float(sum(row["completion"].encode()) % 2)) for row in rows]
    return model, [
        row for row in advantage.add_advantages(rows, advantage.options()) if row["advantage"] is not None
    ]


def settings(device, **changes):
    defaults = dict(
        temperature=1.0, clip=0.2, kl=0.1, seed=0, ppo_epochs=1, minibatch=16, micro_batch_tokens=512
    )
    more = dict(dtype="float32", grad_clip=1.0, grad_skip=1e9, reference_device="device", device=device)
    return SimpleNamespace(**defaults | more | changes)


def updated(model, rows, args, copy=None):
    """copy: the bfloat16 copy that computes, if any. (metrics, gradients of the last mini-batch, weights after) of an update with SGD, on the CPU. AdamW would make a
    step as large of a gradient that is noise."""
    reference, gradients = load_model(BASE, "float32", args.device)[0].requires_grad_(False), {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if copy:
        compute_in_copy(model, copy, optimizer)

    def keep(*_):
        gradients.update((name, whole_tensor(weight.grad).cpu()) for name, weight in model.named_parameters())

    optimizer.register_step_pre_hook(keep)
    metrics = train.update(model, reference, optimizer, rows, args, 0)
    return (
        metrics,
        gradients,
        {name: whole_tensor(weight).detach().cpu() for name, weight in model.named_parameters()},
    )


def compiled_quickly(monkeypatch):
    """torch.compile without its code generator, which takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


def largest_difference(some, others):
    assert some.keys() == others.keys()
    return max((some[name] - others[name]).abs().max().item() for name in some)


# The checks. Each returns what it measured.


def sampler_and_trainer_agree(device):
    model, rows = sampled(device)
    gaps = [
        (logprobs.cpu() - torch.tensor(row["logprobs"])).abs().max().item()
        for row, logprobs in zip(rows, completion_logprobs(model, rows, micro_batch_tokens=512))
    ]
    assert model.device.type == device and len(gaps) >= 32 and max(gaps) < 1e-4
    check_sampler(model, 200)
    check_logprobs(model, 200)
    return f"largest gap of {len(gaps)} completions {max(gaps):.1e}"


def completions_are_the_cpus(device):
    (_, rows), (_, expected) = sampled(device), sampled("cpu")
    assert [row["completion_ids"] for row in rows] == [row["completion_ids"] for row in expected]
    distinct = {tuple(row["completion_ids"]) for row in rows}
    assert len(distinct) > 16
    return f"the same {len(rows)} completions, {len(distinct)} of them distinct"


def an_update_is_the_cpus(device):
    _, rows = sampled("cpu")
    results = [updated(load_model(BASE, "float32", one)[0], rows, settings(one)) for one in (device, "cpu")]
    (metrics, gradients, weights), (expected, *others) = results
    gaps = largest_difference(gradients, others[0]), largest_difference(weights, others[1])
    assert max(gaps) < 1e-4 and 0.01 < max(gradient.abs().max() for gradient in gradients.values())
    assert metrics == pytest.approx(expected, abs=1e-4)
    return f"largest difference of gradients {gaps[0]:.1e}, of weights {gaps[1]:.1e}"


def a_bfloat16_update_is_near(device):
    half, rows = sampled(device, "bfloat16")
    model = load_model(BASE, "float32", device)[0]
    metrics, gradients, _ = updated(copy.deepcopy(model), rows, settings(device), half)
    expected, exact, _ = updated(model, rows, settings(device))
    norm = sum(gradient.square().sum() for gradient in exact.values()) ** 0.5
    off = sum((gradients[name] - exact[name]).square().sum() for name in exact) ** 0.5 / norm
    gap = metrics["logprob_gap"]
    assert (
        1e-4 < gap < 0.5
        and off < 0.1
        and metrics["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.1)
    )
    return f"largest gap of sampler and trainer {gap:.3f}, gradient off by {off:.1%} of float32's"


def compiled_blocks_give_the_same_update(device):
    _, rows = sampled("cpu")
    results = []
    for compiled in (False, True):
        model = load_model(BASE, "float32", device)[0]
        with pytest.MonkeyPatch.context() as patch:
            if device == "cpu":
                compiled_quickly(patch)
            wrap_blocks(model, 0.5, compiled)
        results.append(updated(model, rows, settings(device)))
    (expected, *others), (metrics, gradients, weights) = results
    gaps = largest_difference(gradients, others[0]), largest_difference(weights, others[1])
    assert max(gaps) < 1e-4 and metrics == pytest.approx(expected, abs=1e-4)
    return f"largest difference of gradients {gaps[0]:.1e}, of weights {gaps[1]:.1e}"


def fsdp_in_one_process_changes_nothing(device):
    _, rows = sampled(device)
    args, model = settings(device), load_model(BASE, "float32", device)[0]
    expected = updated(copy.deepcopy(model), rows, args)
    with tempfile.TemporaryDirectory() as folder:
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/processes", rank=0, world_size=1)
        try:
            metrics, gradients, weights = updated(shard(model, target_logprobs, args), rows, args)
        finally:
            dist.destroy_process_group()
    gap = max(largest_difference(gradients, expected[1]), largest_difference(weights, expected[2]))
    assert metrics == pytest.approx(expected[0], abs=1e-5) and gap < 1e-5
    return f"largest difference {gap:.1e}"


def a_checkpoint_goes_on_on_the_other_device(device):
    """From the device to the CPU and back, and on the CPU alone."""
    _, rows = sampled("cpu")
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(f"{folder}/rows.jsonl", rows)
        for places in ([device, "cpu", device], ["cpu"] * 3):
            name, start = f"{folder}/{len(losses)}", ""
            for step, place in enumerate(places):
                words = f"--advantages {folder}/rows.jsonl --out {name}-{step} --device {place} --lr 1e-3 --kl 0.1"
                with mock.patch.object(sys, "argv", ["train.py", *words.split(), *start.split()]):
                    train.main()
                [metrics] = read_jsonl(f"{name}-{step}/metrics.jsonl")
                start = f"--resume-from {name}-{step}/checkpoints/step_{step + 1:05d}"
                losses.append([metrics[key] for key in ("loss", "kl", "grad_norm")])
    assert [metrics["step"]] == [2]
    off = (torch.tensor(losses[:3]) - torch.tensor(losses[3:])).abs().max().item()
    assert off < 1e-3 and abs(losses[2][0] - losses[0][0]) > 0.01
    return f"largest difference of loss, KL and gradient norm {off:.1e} over three steps"


CHECKS = [
    sampler_and_trainer_agree,
    completions_are_the_cpus,
    an_update_is_the_cpus,
    a_bfloat16_update_is_near,
    compiled_blocks_give_the_same_update,
    fsdp_in_one_process_changes_nothing,
    a_checkpoint_goes_on_on_the_other_device,
]


def main():
    """All checks on the GPU: {name: [passed, what it said]} as the last line."""
    results = {}
    for check in CHECKS if torch.cuda.is_available() else []:
        try:
            results[check.__name__] = [True, check("cuda")]
        except BaseException:
            results[check.__name__] = [False, traceback.format_exc()]
    print(f"\n{json.dumps(results)}")


@pytest.fixture(scope="module")
def on_cuda():
    from conftest import GPUS

    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    if GPUS is not None:
        environment["CUDA_VISIBLE_DEVICES"] = GPUS
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) or pytest.skip("there is no GPU here")


@pytest.mark.cuda
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_on_cuda(check, on_cuda):
    passed, said = on_cuda[check.__name__]
    assert passed, said
    print(said)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_on_the_cpu(check):
    assert re.search(r"\d", check("cpu"))


# Which device is taken


def test_tests_have_no_gpu():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and not torch.cuda.is_available()


def test_auto_takes_the_gpu_for_a_large_model_only(monkeypatch, tmp_path):
    (tmp_path / "large").mkdir()
    for k in range(2):
        with open(tmp_path / f"large/model-{k}.safetensors", "wb") as file:
            file.truncate(25 * 10**6)
    expected = {BASE: "cpu", str(tmp_path / "large"): "cuda", "deepseek-ai/DeepSeek-Prover-V1.5-SFT": "cuda"}
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        for path, device in expected.items():
            assert pick_device("auto", path) == (device if there else "cpu")
            assert pick_device("cuda:1", path) == "cuda:1" and pick_device("cpu", path) == "cpu"
            args = sample.options(f"--model {path}")
            sample.settle_flags(args)
            assert args.device == (device if there else "cpu")
            assert train.parse_args(["--model", path]).device == args.device
            assert train.parse_args(["--model", path, "--device", "cuda"]).device == "cuda"


def test_nothing_takes_a_gpu_by_itself(monkeypatch, tmp_path):
    """On a machine that seems to have one, where whatever took it would fail."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: pytest.fail("a GPU is taken"))
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("a GPU is taken"))
    model, rows = sampled("auto", G=4)
    assert model.device.type == "cpu"
    write_jsonl(tmp_path / "rows.jsonl", rows)
    problems = f"--problems {ROOT}/toy/train.jsonl --limit 2 --num-samples 2 --max-new-tokens 8"
    monkeypatch.setattr(
        sys, "argv", ["sample.py", *problems.split(), "--out", str(tmp_path / "samples.jsonl")]
    )
    sample.main()
    assert len(list(read_jsonl(tmp_path / "samples.jsonl"))) == 4
    words = ["train.py", "--advantages", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", words)
    trained = []  # instead of a checkpoint, for which torch itself would use the GPU
    monkeypatch.setattr(train.run, "save_checkpoint", lambda model, *rest: trained.append(model))
    train.main()
    assert trained[0].device.type == "cpu"
    args = SimpleNamespace(device="auto", dtype="float32", micro_batch_tokens=512)
    assert score(BASE, rows[:2], args) == pytest.approx([sum(row["logprobs"]) for row in rows[:2]], abs=1e-3)


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_share_a_gpu_if_there_are_too_few(monkeypatch, rank):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **more: None)
    monkeypatch.setattr(dist, "new_group", lambda **more: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr("signal.signal", lambda *args: None)
    monkeypatch.setattr("lib.processes.die_with_torchrun", lambda: None)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    connect()
    assert taken == [0]


if __name__ == "__main__":
    main()
