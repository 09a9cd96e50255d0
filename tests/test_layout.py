"""The shape of the repository: sizes of the stages, direction of the imports, width of the pages."""

import ast
import os
import subprocess

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUDGETS = {"advantage.py": 130, "sample.py": 280, "verify.py": 300, "train.py": 330, "evaluate.py": 280}
TOTAL = 7152
FLOORS = [
    ["lib"],
    ["advantage", "sample", "verify", "evaluate"],
    ["train"],
    ["tools", "toy", "nat", "results", "bench"],
]


def tracked(suffix):
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("needs a git checkout")
    return [
        name for name in listed.stdout.split() if name.endswith(suffix) and os.path.exists(f"{ROOT}/{name}")
    ]


def lines_of(name):
    with open(f"{ROOT}/{name}", encoding="utf-8") as file:
        return file.read().splitlines()


def module_of(name):
    return name.removesuffix(".py").replace("/", ".")


def imports_of(name, modules):
    """The project's own modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse("\n".join(lines_of(name)))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found & modules


def sources():
    return [name for name in tracked(".py") if not name.startswith("tests/")]


@pytest.mark.parametrize("name", BUDGETS)
def test_a_stage_stays_within_its_budget(name):
    assert len(lines_of(name)) <= BUDGETS[name]


def test_all_of_it_stays_within_the_budget():
    sizes = {name: len(lines_of(name)) for name in sources() if not name.startswith("bench/")}
    assert set(BUDGETS) <= set(sizes)
    assert sum(sizes.values()) <= TOTAL, sorted(sizes.items(), key=lambda item: -item[1])


def floor_of(module):
    return next(number for number, names in enumerate(FLOORS) if module.split(".")[0] in names)


def test_imports_point_one_way():
    """lib/ never imports a stage, stages do not import each other, nothing imports a tool."""
    files = {module_of(name): name for name in sources()}
    graph = {module: imports_of(name, set(files)) for module, name in files.items()}
    assert graph["train"] >= {"advantage", "sample", "verify", "evaluate"} and graph["lib.run"] >= {"lib.cli"}
    for module, imported in graph.items():
        for other in imported:
            inside_lib = floor_of(module) == floor_of(other) == 0
            assert inside_lib or floor_of(other) < floor_of(module), f"{module} imports {other}"


def test_imports_have_no_circle():
    files = {module_of(name): name for name in sources()}
    left = {module: imports_of(name, set(files)) - {module} for module, name in files.items()}
    while ready := [module for module, imported in left.items() if not imported & set(left)]:
        for module in ready:
            del left[module]
    assert not left


def test_pages_are_narrow_enough_to_read():
    pages = tracked(".md")
    assert "README.md" in pages
    wide = [
        f"{name}:{number}"
        for name in pages
        for number, line in enumerate(lines_of(name), 1)
        if len(line) > 200
    ]
    assert not wide
    assert len(lines_of("README.md")) <= 250
