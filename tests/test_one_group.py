"""docs/one-group.md shows what tools/one_group.py prints, and its numbers are those of the formulas."""

import math
import os
import re
import subprocess
import sys

import pytest

from lib import wheel
from tools import one_group

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
    shown = the_page().split("---\n\n")[1].removesuffix("\n")
    assert NUMBER.sub("", done.stdout) == NUMBER.sub("", shown)
    ours, theirs = (
        [float(x.replace(",", "")) for x in NUMBER.findall(text)] for text in (done.stdout, shown)
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
    assert f"mean r = {sum(shaped) / 8:.3f}, std r = {std:.3f}" in page
    assert "all 8" in page.lower()


def test_the_numbers_in_the_words_of_the_page():
    page = the_page()
    logprobs = [float(x) for x in re.findall(r"^ *\d +(-[\d.]+) ", page, re.M)]
    words = r"about ([\d,]+) times .* 8, e to the power of ([\d.]+) - ([\d.]+):"
    times, rare, likely = re.search(words, page).groups()
    assert [-float(likely), -float(rare)] == [logprobs[0], logprobs[7]]
    assert float(times.replace(",", "")) == pytest.approx(math.exp(logprobs[0] - logprobs[7]), rel=0.02)
    worked = re.findall(r"completion (\d) +1 - 0.25 x \(8 - (\d)\) / 8 = ([\d.]+)$", page, re.M)
    assert len(worked) == 2
    for number, rank, value in worked:
        row = next(line for line in page.splitlines() if line.startswith(f"| {number} |"))
        shaped = 1 - 0.25 * (8 - int(rank)) / 8
        assert float(value) == float(row.split("|")[4]) == pytest.approx(shaped, abs=0.0006)


def test_a_group_that_cannot_be_shown_ends_with_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["one_group.py", "--problem", "none"])
    with pytest.raises(SystemExit) as end:
        one_group.main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and "no problem none" in said
