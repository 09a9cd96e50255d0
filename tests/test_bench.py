"""bench/: what its docstrings promise is there, and the rows that growth.py makes. Nothing here is about time."""

import ast
import glob
import os
import re
import subprocess
import sys

import pytest

from advantage import add_advantages, options
from lib.jsonl import read_jsonl

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, f"{ROOT}/bench")
SCRIPTS = sorted(glob.glob(f"{ROOT}/bench/*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=os.path.basename)
def test_the_commands_of_the_docstring_are_the_scripts(path):
    with open(path, encoding="utf-8") as file:
        source = file.read()
    script = f"bench/{os.path.basename(path)}"
    commands = re.findall(
        rf"^    \S+.*?{script}(.*?)(?:#.*)?$", ast.get_docstring(ast.parse(source), clean=False), re.M
    )
    declared = re.findall(r'add(?:_argument)?\(\s*"(--[a-z-]+)"', source)
    assert commands and all(
        flag in declared for command in commands for flag in re.findall(r"--[a-z-]+", command)
    )
    with open(f"{ROOT}/bench/README.md", encoding="utf-8") as file:
        assert script in file.read()


def test_growths_rows_are_as_many_and_as_long_as_asked(tmp_path):
    import growth

    row = {
        "id": "@t",
        "sample": 0,
        "prompt_ids": [1, 2],
        "completion": '\n  intro "@h"\n  exact h',
        "completion_ids": [3, 4, 2],
        "logprobs": [-0.5, -1.0, -2.0],
        "reward": 1.0,
    }
    rows = [row, dict(row, sample=1, completion_ids=[3], logprobs=[-1.0], reward=0.0)]
    many = list(read_jsonl(growth.repeated(rows, 5, tmp_path / "many.jsonl")))
    assert [(one["id"], one["sample"]) for one in many] == [
        ("0@@t", 0),
        ("0@@t", 1),
        ("1@@t", 0),
        ("1@@t", 1),
        ("2@@t", 0),
    ]
    assert [one["completion"] for one in many] == [row["completion"]] * 5
    assert [one["rank"] for one in add_advantages(many[:4], options())] == [
        1.0,
        0.0,
    ] * 2  # ids apart: two groups of two
    long = growth.longer(row, 4)
    assert (
        long["logprobs"] == row["logprobs"] * 4
        and len(long["prompt_ids"]) == 8
        and len(long["completion_ids"]) == 12
    )
    assert (
        long["completion"].count("\n") == 8
        and long["completion"].endswith(row["completion"])
        and growth.longer(row, 1) == row
    )


def test_gpu_sh_runs_on_a_cpu_at_toy_size():
    """A part says what it measured, or that it is skipped and why; none of these fails. The others run the same scripts."""
    environment = os.environ | {
        "SIZE": "tiny",
        "DEVICE": "cpu",
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "ONLY": "Update|First",
    }
    done = subprocess.run(["bash", f"{ROOT}/bench/gpu.sh"], env=environment, capture_output=True, text=True)
    said = done.stdout
    assert done.returncode == 0 and "failed" not in said and "cut off" not in said, said + done.stderr
    parts = dict(re.findall(r"^## ([^(\n]+?)(?: \(\d+ s so far\))?\n(.*?)(?=^## |\Z)", said, re.M | re.S))
    assert {name for name, text in parts.items() if "skipped: " in text} >= {
        "What a GPU may change",
        "Two steps with vLLM",
    }
    rows = re.findall(
        r"^\| (autocast|copy|copy\+compile) \| (1|0.5) \| 0.00", parts["Update and sampler"], re.M
    )
    assert rows == [("autocast", "1"), ("copy", "1"), ("copy+compile", "1"), ("copy+compile", "0.5")]
    assert parts["Update and sampler"].count("rows leave") == 2
    assert re.search(r"first step over last: \d", parts["First step and tenth"])
