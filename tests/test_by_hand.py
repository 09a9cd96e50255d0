"""The README's loop of five lines: three steps by hand are the first three steps of train.py."""

import json
import os
import re
import subprocess
import sys

import pytest

from lib import wheel

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUDGET = "--num-samples 8 --max-new-tokens 80"  # smaller numbers than the README's, for both


def the_loop():
    with open(f"{ROOT}/README.md", encoding="utf-8") as file:
        (loop,) = re.findall(r"^```\n((?:model=.*\n)?for step in .*?)^```$", file.read(), re.M | re.S)
    return loop


def metrics(folder):
    with open(folder / "metrics.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [{key: row[key] for key in row if not key.startswith("seconds_")} for row in rows]


@pytest.mark.skipif(wheel.library() is None, reason="needs the wheel's Lean")
def test_three_steps_by_hand_are_three_steps_of_train(tmp_path):
    os.mkdir(tmp_path / "bin")
    python = tmp_path / "bin/python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for name in ("sample.py", "verify.py", "advantage.py", "train.py", "toy"):
        os.symlink(f"{ROOT}/{name}", tmp_path / name)
    env = dict(os.environ, OMP_NUM_THREADS="1", PATH=f"{tmp_path}/bin:{os.environ['PATH']}")

    def shell(text):
        command = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr

    loop = the_loop()
    (run,) = re.findall(r" run=(runs/\S+)", loop)
    whole = f"python train.py --unlikeliness 0.25 --ppo-epochs 2 --steps 3 --eval-samples 0 {BUDGET}"
    shell(f"{whole} --problems-per-step 8 --train-batch 1 --out {run}")
    small = loop.replace("--out samples.jsonl", f"{BUDGET} --out samples.jsonl")
    assert small != loop
    shell(small)
    by_hand, by_train = metrics(tmp_path / "runs/by-hand"), metrics(tmp_path / run)
    assert len(by_hand) == len(by_train) == 3
    for mine, theirs in zip(by_hand, by_train):
        assert mine.keys() == theirs.keys() and theirs["updates"] == 2 and theirs["loss"] is not None
        for key, value in theirs.items():
            assert mine[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    assert os.path.exists(tmp_path / "runs/by-hand/checkpoints/step_00003/trainer.pt")
