"""python -m pytest tests/test_judge.py   (a Python function for a verifier: other tasks than Lean)"""

import json
import os
import subprocess
import sys
import threading

import pytest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
import lib.stream  # noqa: E402
import verify  # noqa: E402
from lib.jsonl import read_jsonl  # noqa: E402

SUMS = '''
"""Small sums: what is before the first letter that is no digit must be the result; near misses earn a little."""
import re

CALLS = []


def judge(rows):
    CALLS.append(len(rows))
    rewards = []
    for row in rows:
        a, b = map(int, re.findall("[0-9]", row["statement"]))
        said = re.match("[0-9]*", row["completion"])[0]
        row["completion"] = "spoiled"  # a copy
        rewards.append(-0.5 if not said else 2.0 if int(said) == a + b else 1 / (1 + abs(int(said) - a - b)))
    return rewards


def first_only(rows):
    return [1]


def infinite(rows):
    return [float("inf")] * len(rows)


def words(rows):
    return ["good"] * len(rows)


def raises(rows):
    raise RuntimeError("no such table\\nline two")


def undecided(rows):
    return [None] * len(rows)


def exits(rows):
    raise KeyError("answer")


number = 3
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "sums.py").write_text(SUMS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "sums", raising=False)
    return tmp_path


def rows_of(*pairs):
    return [
        {"id": f"{k}", "statement": statement, "completion": said}
        for k, (statement, said) in enumerate(pairs)
    ]


def test_rewards_of_any_size_reach_their_rows(folder):
    verifier = lib.stream.python_verifier("sums:judge", 2)
    rows = rows_of(
        ("3 + 4 =", "7"), ("3 + 4 =", "7"), ("1 + 1 =", "4 or so"), ("2 + 2 =", "no"), ("3 + 4 =", "7 7")
    )
    out = list(verify.verify_stream(rows, verifier, progress=False))
    assert [one["reward"] for one in out] == [2.0, 2.0, 1 / 3, -0.5, 2.0]
    assert [one["verdict"] for one in out] == ["scored"] * 5 and [one["message"] for one in out] == [""] * 5
    assert [one["completion"] for one in out] == ["7", "7", "4 or so", "no", "7 7"]  # the judge saw copies
    assert sys.modules["sums"].CALLS == [2, 2, 1]  # equal rows too: a judge may look at more than the text


def test_no_reward_is_an_error_and_null(folder):
    out = list(
        verify.verify_stream(
            rows_of(("1", "1")), lib.stream.python_verifier("sums:undecided", 8), progress=False
        )
    )
    assert [(one["verdict"], one["reward"]) for one in out] == [("error", None)]


@pytest.mark.parametrize(
    "name, words",
    [
        ("sums:first_only", "1 rewards for 3 rows"),
        ("sums:infinite", "the reward inf"),
        ("sums:words", "ValueError"),
        ("sums:raises", "RuntimeError: no such table)"),
        ("sums:exits", "KeyError"),
        ("sums:number", "'int' object is not callable"),
        ("sums:nothing", "no attribute 'nothing'"),
        ("sums", "MODULE:FUNCTION"),
        ("nowhere:judge", "No module named 'nowhere'"),
        (":judge", "MODULE:FUNCTION"),
    ],
)
def test_a_judge_that_fails_ends_with_a_sentence(folder, capsys, name, words):
    with pytest.raises(SystemExit) as end:
        verifier = lib.stream.python_verifier(name, 8)
        list(
            verify.verify_stream(
                rows_of(("1 + 1 =", "2"), ("1 + 1 =", "3"), ("1 + 1 =", "4")), verifier, progress=False
            )
        )
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1 and words in said
    assert name in said


def test_the_command_asks_for_no_lean(folder):
    rows = rows_of(("3 + 4 =", "7"), ("3 + 4 =", "9"), ("3 + 4 =", ""))
    (folder / "rows").write_text("".join(json.dumps(one) + "\n" for one in rows))
    command = [
        sys.executable,
        os.path.join(HERE, "verify.py"),
        "rows",
        "--out",
        "out",
        "--verifier",
        "sums:judge",
    ]
    done = subprocess.run([*command, "--lean", "no-such-lean"], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0 and "3 rows: 3 scored, 0 error" in done.stdout, done.stderr
    assert [one["reward"] for one in read_jsonl("out")] == [2.0, 1 / 3, -0.5]
    for words in ("proof", "Lean"):
        assert words not in done.stdout + done.stderr


def test_ten_steps_of_training_on_sums(folder, tiny_model_dir):
    """From problems to figures, with rewards other than 0 and 1, and prompts that are no Lean."""
    problems = [{"id": f"{a}+{b}", "statement": f"{a} + {b} ="} for a in range(3) for b in range(3)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(one) + "\n" for one in problems))
    flags = f"""--model {tiny_model_dir} --problems problems.jsonl --eval-problems problems.jsonl --eval-samples 4 --out run
        --verifier sums:judge --steps 10 --problems-per-step 4 --num-samples 8 --train-batch 16 --minibatch 16
        --max-new-tokens 2 --unlikeliness 0.25 --lr 1e-3 --device cpu"""
    command = [sys.executable, os.path.join(HERE, "train.py"), *flags.split(), "--lean", "no-such-lean"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=600)
    assert done.returncode == 0, done.stderr
    metrics = list(read_jsonl("run/metrics.jsonl"))
    rows = list(read_jsonl("run/step_00003/advantages.jsonl"))
    assert len(metrics) == 10 and sum(bool(one["updates"]) for one in metrics) >= 5
    assert metrics[3]["reward"] == pytest.approx(sum(one["reward"] for one in rows) / len(rows))
    assert {-0.5} < {one["reward"] for one in rows} and {one["verdict"] for one in rows} == {"scored"}
    assert any(one["advantage"] for one in rows)


def test_rows_are_judged_one_batch_at_a_time():
    """A function that is not safe for threads is not asked twice at once."""
    busy, most = [], []

    def judge(rows, stop):
        busy.append(1)
        most.append(len(busy))
        threading.Event().wait(0.01)
        busy.pop()
        return [{"reward": 1.0}] * len(rows)

    verifier = lib.stream.Verifier(judge, lambda row: ("", id(row)), 1, 2)
    assert len(list(verify.verify_stream(rows_of(*[("1", "1")] * 9), verifier, progress=False))) == 9
    assert set(most) == {1}
