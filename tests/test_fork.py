"""docs/fork.md, applied to a copy of the repository from its text, and its commands run."""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from lib import wheel

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = (
    "--steps 1 --problems-per-step 8 --num-samples 16 --max-new-tokens 60 --train-batch 1 --eval-samples 0"
)
BLOCK = re.compile(r"^```(\w*) ?([\w/.]*)\n(.*?)^```$", re.M | re.S)


def sections():
    """{title: [(kind, file, text), ...]} of the page."""
    with open(f"{ROOT}/docs/fork.md", encoding="utf-8") as file:
        parts = re.split(r"^## (.*)\n", file.read(), flags=re.M)
    return {title: BLOCK.findall(text) for title, text in zip(parts[1::2], parts[2::2])}


def apply(folder, kind, name, text):
    """Writes a new file, or makes the change of a diff, whose lines must be in the file exactly once."""
    path = f"{folder}/{name}"
    if kind == "python":
        assert not os.path.exists(path)
        result = text
    else:
        lines = text.splitlines(keepends=True)
        assert kind == "diff" and all(line[0] in " +-\n" for line in lines)
        old, new = ("".join(line[1:] or line for line in lines if line[0] != sign) for sign in "+-")
        with open(path, encoding="utf-8") as file:
            before = file.read()
        assert before.count(old) == 1, f"{name} does not hold, once:\n{old}"
        result = before.replace(old, new)
    with open(path, "w", encoding="utf-8") as file:
        file.write(result)


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """A copy of the repository with all changes of the page, and what its commands printed."""
    if wheel.library() is None:
        pytest.skip("needs the wheel's Lean")
    folder = tmp_path_factory.mktemp("fork") / "repository"
    shutil.copytree(
        ROOT, folder, ignore=shutil.ignore_patterns(".*", "runs", "figures", "__pycache__", "tests")
    )
    os.mkdir(folder / "runs")
    for blocks in sections().values():
        for kind, name, text in blocks:
            if name:
                apply(folder, kind, name, text)

    def run(sections):
        for command in "".join(
            text for blocks in sections for _, name, text in blocks if not name
        ).splitlines():
            words = command.split()
            assert words[0] == "python"
            small = SMALL.split() if words[1] == "train.py" else []
            done = subprocess.run(
                [sys.executable, *words[1:], *small],
                cwd=folder,
                env=dict(os.environ, OMP_NUM_THREADS="1"),
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    shaping, estimator, *others = sections().values()
    with ThreadPoolExecutor(2) as pool:  # a core each; the estimator's command reads what the shaping's wrote
        list(pool.map(run, [[shaping, estimator], others]))
    return folder


def rows_of(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_each_change_is_short():
    assert len(sections()) == 5
    for title, blocks in sections().items():
        changed = [line for _, name, text in blocks if name for line in text.splitlines()]
        assert changed and len(changed) < 25, title
        assert any(not name and text.startswith("python ") for _, name, text in blocks), title


def test_the_shaping_divides_a_reward_by_its_copies(fork):
    rows = rows_of(fork / "runs/share-copies/step_00000/advantages.jsonl")
    checked = 0
    for row in rows:
        if row["shaped_reward"] is not None:
            same = [other for other in rows if (other["id"], other["rank"]) == (row["id"], row["rank"])]
            assert row["shaped_reward"] == pytest.approx(row["reward"] / len(same))
            checked += len(same) > 1 and row["reward"] > 0
    assert checked


def test_the_estimator_compares_with_the_mean_of_the_others(fork):
    rows = [row for row in rows_of(fork / "runs/rloo.jsonl") if row["advantage"] is not None]
    assert rows
    for row in rows:
        others = [one["reward"] for one in rows if one["id"] == row["id"] and one["sample"] != row["sample"]]
        assert row["advantage"] == pytest.approx(row["reward"] - sum(others) / len(others))


def test_the_verifier_gives_the_rewards_of_training(fork):
    rows = rows_of(fork / "runs/my-task/step_00000/verified.jsonl")
    for row in rows:
        assert row["reward"] == float(re.fullmatch(r"\s*exact [^\n]*\s*", row["completion"]) is not None)
    assert {row["reward"] for row in rows} == {0.0, 1.0} and {row["verdict"] for row in rows} == {"scored"}
    assert rows_of(fork / "runs/my-task/metrics.jsonl")[0]["updates"] >= 1


def test_the_template_changes_the_prompt_and_not_the_statement(fork):
    rows = rows_of(fork / "runs/nameless-verified.jsonl")
    assert len({row["id"] for row in rows}) == 4 and any(row["reward"] for row in rows)
    assert all(row["template"] == "nameless" for row in rows)
    plain = {row["id"]: row["statement"] for row in rows}
    assert all(f"theorem {name} " in statement for name, statement in plain.items())
    starts = {tuple(row["prompt_ids"][:4]) for row in rows}
    assert len(starts) == 1  # theorem t_1, whatever the id


def test_the_model_samples(fork):
    rows = rows_of(fork / "runs/tiny.jsonl")
    assert len(rows) == 32 and {row["model"] for row in rows} == {"runs/tiny"}
