"""docs/one-group.md is what tools/one_group.py prints, and its numbers are those of the formulas."""

import os
import re
import subprocess
import sys

import pytest

from lib import wheel

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


def the_page():
    with open(f"{ROOT}/docs/one-group.md", encoding="utf-8") as file:
        return file.read()


@pytest.mark.skipif(wheel.library() is None, reason="needs the wheel's Lean")
def test_the_page_is_what_the_command_prints():
    command = [sys.executable, "tools/one_group.py"]
    env = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    assert NUMBER.sub("", done.stdout) == NUMBER.sub("", the_page())
    ours, theirs = (
        [float(x.replace(",", "")) for x in NUMBER.findall(text)] for text in (done.stdout, the_page())
    )
    assert ours == pytest.approx(theirs, rel=0.02, abs=0.02)  # another machine rounds differently


def test_the_columns_of_the_page_follow_from_rank_and_reward():
    page = the_page()
    ranks = [float(rank) for rank in re.findall(r"^ *\d +-[\d.]+ +([\d.]+)  (?:proved|rejected)", page, re.M)]
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.splitlines()
        if line.startswith("| ")
    ][2:]
    rewards = [float(row[1]) for row in table]
    assert len(ranks) == len(rewards) == 8 and 0 < sum(rewards) < 8
    shaped = [R * (1 - 0.25 * (8 - rank) / 8) for R, rank in zip(rewards, ranks)]
    for values, column in ((rewards, 2), (shaped, 4)):
        mean = sum(values) / 8
        std = (sum((value - mean) ** 2 for value in values) / 7) ** 0.5
        assert [float(row[column]) for row in table] == pytest.approx(
            [(x - mean) / std for x in values], abs=0.006
        )
    assert [float(row[3]) for row in table] == pytest.approx(shaped, abs=0.0006)
    assert "all 8" in page.lower()


def test_a_group_that_cannot_be_shown_ends_with_a_sentence():
    command = [sys.executable, "tools/one_group.py", "--problem", "none"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "no problem none" in done.stderr and "Traceback" not in done.stderr
