"""What the README and the pages in docs/ say is there: functions, flags, links, metrics, numbers."""

import csv
import glob
import os
import re

import pytest

from lib.metrics import OF_THE_UPDATE, step_metrics

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGES = [
    "README.md",
    "PROBLEMS.md",
    "CHANGELOG.md",
    "bench/README.md",
    "nat/README.md",
    *sorted(glob.glob("results/**/README.md", root_dir=ROOT, recursive=True)),
    *sorted(glob.glob("docs/*.md", root_dir=ROOT)),
]
OTHERS = {  # flags of other programs, flags that are gone, and one that docs/fork.md adds
    *"--check --no-deps --index-url --depth --branch --local-dir --repo-type --nproc-per-node --version".split(),
    *"--self-test --batch --ties --tracker --share-copies".split(),
}


def read(name):
    with open(f"{ROOT}/{name}", encoding="utf-8") as file:
        return file.read()


def test_every_function_of_the_equation_table_is_there():
    rows = re.findall(r"^\| .* \| `([\w/.]+)`: `(\w+)` \|$", read("README.md"), re.M)
    assert len(rows) == 9
    for file, function in rows:
        assert re.search(rf"^def {function}\(", read(file), re.M), f"{file} has no {function}"


def test_every_metric_is_explained():
    row = {"id": "a", "completion": "x", "reward": 1.0, "advantage": None, "finish_reason": "stop"}
    logged = {*step_metrics(0, [row]), *OF_THE_UPDATE, "seconds_sample", "seconds_verify", "seconds_update"}
    section = read("README.md").split("## What a step prints")[1].split("\n## ")[0]
    told = {
        name
        for line in section.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert told == logged - {"step"}


@pytest.fixture(scope="module")
def flags():
    """The flags that the repository's scripts declare, at the start of a line or after an opening bracket."""
    places = (
        "*.py",
        "lib/*.py",
        "tools/*.py",
        "results/*.py",
        "toy/*.py",
        "nat/*.py",
        "bench/*.py",
        "tests/crash_hunt.py",
        "tests/test_fuzz.py",
    )
    files = [name for place in places for name in glob.glob(place, root_dir=ROOT)]
    knobs = re.findall(r'^    "(\w+)": \(', read("results/world.py"), re.M)  # of the synthetic world
    return {
        flag for name in files for flag in re.findall(r"""(?:\(|^\s*)"(--[a-z][\w-]*)\"""", read(name), re.M)
    } | {f"--{name}" for name in knobs}


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_of_a_page_exists(flags, page):
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", read(page)))
    assert not named - flags - OTHERS


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", read(page), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            path = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
            assert os.path.exists(f"{ROOT}/{path}"), target
            assert not anchor or anchor in anchors(path), target


def test_the_numbers_of_the_synthetic_setting_are_those_of_its_file():
    """Every number that README quotes from it, as "+3.5 [+2.3, +4.9]" or rounded without signs."""
    with open(f"{ROOT}/results/synthetic.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["panel"].startswith("pass@N")]
    numbers = {
        (row["label"], int(float(row["x"]))): [float(row[key]) for key in ("value", "low", "high")]
        for row in rows
    }
    text = " ".join(read("README.md").split())

    def told(pattern, label, N=512):
        found = re.search(pattern, text)
        assert found, pattern
        mine = [abs(float(number)) for number in found.groups()]
        value, low, high = (abs(number) for number in numbers[label, N])
        assert mine == pytest.approx([value, low, high][: len(mine)], abs=0.051), label

    three = r"([-+]?[\d.]+)(?: points)? \[([-+]?[\d.]+), ([-+]?[\d.]+)\]"
    told(rf"fewer at 512 tries \({three}", "GRPO-Default")
    told(rf"every number of tries \({three}", "GRPO-Unlikeliness-2")
    told(rf"the reward adds {three}", "GRPO-Unlikeliness-2 minus GRPO-Epochs-2")
    told(rf"F-GRPO with two epochs {three}", "f-grpo, 2 epochs")
    told(rf"pass@8 as the reward {three}", "pass-at-k")
    told(rf"W-REINFORCE with two epochs {three}", "w-reinforce, 2 epochs")
    told(r"correct draws only, loses ([\d.]+)\.", "raft")
    less = numbers["GRPO-Unlikeliness-2", 1][0] - numbers["pass-at-k", 1][0]
    assert f"(but {less:.0f} points below GRPO-Unlikeliness-2 at N = 1)" in text
