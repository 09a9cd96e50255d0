"""The update on several processes, checkpoints for other numbers of them, what happens when one dies, chunks of logits.

    python -m pytest -q tests/test_distributed.py
    python tests/test_distributed.py 4                     # the largest differences of every case with 4 processes
"""
import json
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
import train  # noqa: E402
from advantage import read_jsonl, write_jsonl  # noqa: E402
from test_train import make_rows  # noqa: E402

# (rows, micro_batch_tokens, kl, tied embeddings, blocks recomputed, optimizer); 3 rows and 1 row do not divide by the ranks
CASES = [(12, 64, 0.1, False, False, "SGD"), (12, 1, 0.0, False, False, "SGD"), (12, 10**6, 0.1, True, False, "SGD"),
         (3, 40, 0.1, False, True, "SGD"), (1, 64, 0.0, False, False, "SGD"), (12, 64, 0.1, False, True, "AdamW"),
         (3, 64, 0.0, True, False, "AdamW")]


def tiny(tied=False, seed=0):
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=41, hidden_size=32, intermediate_size=50, num_hidden_layers=2, num_attention_heads=2,
                                        num_key_value_heads=1, tie_word_embeddings=tied, initializer_range=0.05 + 0.005 * seed)).eval()


def settings(**changes):
    return SimpleNamespace(**{**dict(temperature=1.0, micro_batch_tokens=64, dtype="float32", kl=0.1, clip=0.2, seed=0, minibatch=12,
                                     ppo_epochs=1, grad_clip=1.0, grad_skip=1e9, device="cpu", out=None), **changes})


def five_updates(case, mode, dtype="float32"):
    """Weights and gradients after 5 updates on five lots of rows, two copies among them, and the metrics of the last."""
    count, budget, kl, tied, recompute, name = case
    args = settings(micro_batch_tokens=budget, kl=kl, dtype=dtype)
    model, reference, sampler = tiny(tied), tiny(tied, seed=1) if kl else None, tiny(tied)
    lots = [make_rows(sampler, count, seed) for seed in range(5)]
    if recompute:
        train.checkpoint_blocks(model)
    if mode == "fsdp":
        model, reference = train.shard(model, args), reference and train.shard(reference, args, trained=False)
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.3 if name == "SGD" else 1e-3)
    tensors = {}
    optimizer.register_step_pre_hook(lambda *_: tensors.update(  # the last update's stay
        {f"grad {key}": train.whole_tensor(weight.grad).clone() for key, weight in model.named_parameters()}))
    for step, rows in enumerate(lots):
        metrics = train.update(model, reference, optimizer, rows + rows[:2] * (count > 3), args, step)
        assert metrics["skipped"] == 0 and (metrics["kl"] > 1e-4) == (kl > 0)
    return train.full_state(model) | tensors, metrics


def torchrun(count, *command, wait=True, limit=150, **options):
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")
    process = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *map(str, command)],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT, **options)
    if not wait:
        return process
    output = process.communicate(timeout=limit)[0]
    assert process.returncode == 0, output
    return output


def worker(folder):
    """What each process of torchrun does."""
    train.start_ranks()
    for mode in ("fsdp", "none"):
        for k, case in enumerate(CASES):
            result = five_updates(case, mode)
            if train.ranks()[0] == 0:
                torch.save(result, f"{folder}/{mode}-{k}.pt")
    bf16 = five_updates(CASES[0], "fsdp", "bfloat16")
    if train.ranks()[0] == 0:
        torch.save(bf16, f"{folder}/bfloat16.pt")
    args, model = settings(out=f"{folder}/run"), train.shard(tiny(), settings())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.config.architectures = ["LlamaForCausalLM"]
    train.update(model, None, optimizer, make_rows(tiny()), settings(kl=0.0), 0)
    train.save_checkpoint(model, SimpleNamespace(save_pretrained=lambda path: None), optimizer, 1, [], [{"step": 0}], args)
    train.dist.destroy_process_group()


def difference(mine, theirs):
    assert set(mine) == set(theirs)
    return max((mine[key] - theirs[key]).abs().max().item() for key in mine)


@pytest.fixture(scope="module")
def alone():
    return [five_updates(case, "none") for case in CASES]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torchrun(2, __file__, "worker", folder)
    return folder


def compare(folder, alone, k, mode):
    """Largest differences (weights, gradients, metrics) of a case from one process."""
    (mine, metrics), (theirs, expected) = torch.load(f"{folder}/{mode}-{k}.pt"), alone[k]
    assert set(mine) == set(theirs)
    parts = [[key for key in mine if key.startswith("grad ") == wanted] for wanted in (False, True)]
    return [*(difference({key: mine[key] for key in keys}, {key: theirs[key] for key in keys}) for keys in parts),
            max(abs(metrics[name] - expected[name]) for name in expected)]


@pytest.mark.parametrize("mode", ["fsdp", "none"])
@pytest.mark.parametrize("k", range(len(CASES)))
def test_two_processes_give_the_gradients_weights_and_metrics_of_one(two_ranks, alone, k, mode):
    weights, gradients, metrics = compare(two_ranks, alone, k, mode)
    assert weights < 2e-5 and gradients < 2e-5 and metrics < 2e-5


def main(count):
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        torchrun(count, __file__, "worker", folder)
        for mode in ("fsdp", "none"):
            for k, case in enumerate(CASES):
                weights, gradients, metrics = compare(folder, [five_updates(case, "none")] * (k + 1), k, mode)
                print(f"{count} processes  {mode:5s} {str(case):50s} weights {weights:.1e}  gradients {gradients:.1e}  metrics {metrics:.1e}")


if __name__ == "__main__":
    worker(sys.argv[2]) if sys.argv[1] == "worker" else main(int(sys.argv[1]))
