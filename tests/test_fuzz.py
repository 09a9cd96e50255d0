"""Attacks on the verifier: mutated proofs and random text between honest neighbours, judged by what cannot be fooled.

    python -m pytest tests/test_fuzz.py                  # 4,000 rows
    python tests/test_fuzz.py --rows 1000000 --seed 1     # as many as you like, with a count of what was seen

The judges: a prover for intuitionistic propositional logic of its own (no statement it refutes may have a proof), the truth
tables behind it, the same row alone in a Lean of its own (the batch must not matter), and the neighbours, which are right.
"""
import argparse
import functools
import itertools
import os
import random
import sys

sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.abspath(__file__))), os.path.dirname(os.path.abspath(__file__))]
import verify  # noqa: E402
from test_verify import STEPS, needs_lean  # noqa: E402
from toy.make_problems import ATOMS, random_formula, search, statement, tactics, truth  # noqa: E402

# ---- an independent prover: Dyckhoff's contraction-free sequent calculus G4ip (J. Symb. Logic 57, 1992) ----


def implication(a, b):
    return ("→", a, b)


def expanded(f):
    """¬a as a → False, a ↔ b as two implications, True as False → False."""
    if isinstance(f, str):
        return implication("False", "False") if f == "True" else f
    parts = [expanded(part) for part in f[1:]]
    if f[0] == "¬":
        return implication(parts[0], "False")
    return ("∧", implication(*parts), implication(*parts[::-1])) if f[0] == "↔" else (f[0], *parts)


@functools.lru_cache(200000)
def provable(given, goal):
    """Whether the formula `goal` follows from the frozenset `given`; each rule makes the sequent smaller."""
    if goal in given or "False" in given:
        return True
    if goal[0] == "→":
        return provable(given | {goal[1]}, goal[2])
    if goal[0] == "∧":
        return provable(given, goal[1]) and provable(given, goal[2])
    for f in given:  # rules that lose nothing: the first that fits is enough
        rest = given - {f}
        if f[0] == "∧":
            return provable(rest | {f[1], f[2]}, goal)
        if f[0] == "∨":
            return provable(rest | {f[1]}, goal) and provable(rest | {f[2]}, goal)
        if f[0] == "→" and f[1] == "False":
            return provable(rest, goal)
        if f[0] == "→" and isinstance(f[1], str) and f[1] in given:
            return provable(rest | {f[2]}, goal)
        if f[0] == "→" and f[1][0] == "∧":
            return provable(rest | {implication(f[1][1], implication(f[1][2], f[2]))}, goal)
        if f[0] == "→" and f[1][0] == "∨":
            return provable(rest | {implication(f[1][1], f[2]), implication(f[1][2], f[2])}, goal)
    if goal[0] == "∨" and (provable(given, goal[1]) or provable(given, goal[2])):
        return True
    for f in given:  # (a → b) → c
        if f[0] == "→" and f[1][0] == "→":
            rest = given - {f}
            if provable(rest | {implication(f[1][2], f[2])}, f[1]) and provable(rest | {f[2]}, goal):
                return True
    return False


def theorem_holds(f):
    return provable(frozenset(), expanded(f))


def test_the_prover_itself():
    p, q = "p", "q"
    for f in [("→", p, p), ("¬", ("¬", ("∨", p, ("¬", p)))), ("→", ("¬", ("¬", ("¬", p))), ("¬", p)), ("↔", ("∧", p, q), ("∧", q, p)),
              ("→", ("¬", ("∨", p, q)), ("∧", ("¬", p), ("¬", q))), "True", ("→", "False", p), ("→", ("→", ("∨", p, ("→", p, q)), q), q)]:
        assert theorem_holds(f), f
    for f in [("∨", p, ("¬", p)), ("→", ("¬", ("¬", p)), p), ("→", ("→", ("→", p, q), p), p), ("→", ("¬", ("∧", p, q)), ("∨", ("¬", p), ("¬", q))),
              p, "False", ("∨", ("→", p, q), ("→", q, p)), ("→", ("→", p, q), ("∨", ("¬", p), q))]:
        assert not theorem_holds(f), f
    rng, classical = random.Random(0), 0
    for _ in range(3000):
        f = random_formula(rng, rng.randint(1, 8), ATOMS[:3])
        tautology = truth(f) == 0xFFFF
        assert theorem_holds(("¬", ("¬", f))) == tautology, f  # Glivenko: the double negation is provable where f is classically true
        assert tautology or not theorem_holds(f)
        classical += tautology and not theorem_holds(f)
    assert classical > 10  # true classically, not provable: those that a careless verifier would let pass


# ---- texts ----

def some_formula(rng, smallest, largest):
    """A random formula with at least one atom."""
    while True:
        f = random_formula(rng, rng.randint(smallest, largest), ATOMS[:3])
        if any(atom in repr(f) for atom in "'p' 'q' 'r'".split()):
            return f


LOOK_ALIKES = {"h": "һ", "e": "е", "→": "⟶", "∧": "⋀", "¬": "﹁", ".": "․", "(": "（", "'": "’", " ": "\u00a0", "1": "₁", "p": "р"}
WORDS = ("sorry sorryAx axiom theorem end namespace open in set_option maxRecDepth 100 by fun => := : , ; ( ) ⟨ ⟩ [ ] { } | · <;> h h1 h2 p q r "
         "exact intro apply rcases obtain with True.intro trivial id «h» «sorry» 'a' \" -- /- -/ # @ ` _ ?_ ?x . .. .1 .2 ∧ ∨ → ¬ ↔ True False "
         "where have show from at Or.inl And.intro absurd False.elim h1.elim native_decide decide +kernel #print #eval macro notation "
         "t self_test Classical.em propext 0b1 1e5 0x r\" \\ ! $ % ^ & * 🙂 ∑' ⁻¹' λ").split()


def mutate(rng, proof, others):
    """The proof with one of a dozen kinds of damage."""
    lines = proof.split("\n")
    k = rng.randrange(len(lines))
    place = rng.randrange(len(proof) + 1)
    kind = rng.randrange(14)
    if kind == 0:
        lines[k:k + 2] = lines[k:k + 2][::-1]
    elif kind == 1:
        del lines[k]
    elif kind == 2:
        lines.insert(k, lines[k])
    elif kind == 3:
        lines[k] = " " * rng.choice([0, 1, 3, 4, 6]) + lines[k].lstrip()
    elif kind == 4:
        other = rng.choice(others).split("\n")
        lines[k:k + 1] = other[rng.randrange(len(other)):]
    elif kind == 5:
        old, new = rng.choice(["h1", "h2", "h3", "exact", "intro", "left", ".1", "⟨"]), rng.choice(["h2", "h1", "sorry", "right", ".2", "(", "h9", "theorem"])
        return proof.replace(old, new, rng.choice([1, -1]))
    elif kind == 6:
        letter = rng.choice(list(LOOK_ALIKES))
        return proof.replace(letter, LOOK_ALIKES[letter], 1)
    elif kind == 7:
        return proof[:place] + rng.choice([" ", "  ", "\n", "\n  ", "\t", "\r\n", "\u200b", "\x0c", ""]) + proof[place:]
    elif kind == 8:
        return proof[:place] + rng.choice(["/- x -/", "-- x\n", "/- ", "-/", "--", "/-- x -/", "/-/- -/", "\"", "'", "«", "»"]) + proof[place:]
    elif kind == 9:
        return proof[:place] + f" {rng.choice(WORDS)} " + proof[place:]
    elif kind == 10:
        return proof[:place] + proof[place + rng.randint(1, 4):]
    elif kind == 11:
        return proof[:place] + rng.choice(WORDS) + proof[place:]
    elif kind == 12:
        lines.insert(k, "  " + rng.choice(STEPS))
    else:
        lines[k:] = []
    return "\n".join(lines)


def monster(rng):
    """Very long or very deep."""
    n = rng.choice([300, 3000])
    return rng.choice([
        "\n  exact " + "(" * n + "h" + ")" * n, "\n  exact " + "⟨" * n, "\n" + "  skip\n" * n, "\n  exact " + "fun h => " * (n // 30) + "h", "\n  exact " + "h" * n,
        "\n  exact h " + "-- x\n" * n, "\n  " + "/-" * n + "-/" * n + " trivial", "\n  " + "first | " * (n // 30) + "trivial", "\n  exact " + "h.1" * n,
        "\n  intro" + " h" * n, "\n  " + "(" * (n // 10) + "trivial" + ")" * (n // 10), "\n  exact \"" + "x" * n + "\""])


def make_rows(count, seed):
    """(rows, formulas; None for an honest neighbour), from proofs that `toy/make_problems.py` would keep."""
    rng, pool = random.Random(seed), []
    while len(pool) < min(600, count // 20 + 20):
        f = some_formula(rng, 2, 8)
        if truth(f) == 0xFFFF and (proof := search(rng, {}, f, 0, frozenset(), [200])):
            pool.append((f, "".join("\n  " + line for line in tactics(rng, proof, {}, 0, rng.choice([0.0, 0.3, 1.0])))))
    rows, formulas = [], []
    while len(rows) < count:
        f, proof = rng.choice(pool)
        for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3, 5])):
            proof = mutate(rng, proof, [other for _, other in pool])
        dice = rng.random()
        if dice < 0.35:
            f = some_formula(rng, 1, 6)
        elif dice < 0.45:
            f, _ = rng.choice(pool)
        elif dice < 0.65:
            proof = rng.choice(["\n  ", " "]) + " ".join(rng.choice(WORDS + ["\n ", "\n  "]) for _ in range(rng.randint(1, 12)))
        elif dice < 0.652:
            proof = monster(rng)
        if rng.random() < 0.1:
            n = len(rows)
            rows.append({"statement": "theorem t (p : Prop) : p → p := by", "completion": f"\n  intro h{n}\n  exact h{n}"})
            formulas.append(None)
        rows.append({"statement": statement(f, "t"), "completion": proof})
        formulas.append(f)
    return rows, formulas


def fuzz(count, seed, alone, batch=200, progress=False):
    """Verifies `count` rows and returns what was seen; AssertionError names the row where a judge disagrees."""
    rows, formulas = make_rows(count, seed)
    lean = verify.find_lean()
    out = verify.verify_rows(rows, lean, batch=batch, progress=progress)
    for row, f in zip(out, formulas):
        assert row["verdict"] in ("proved", "rejected"), row
        assert row["verdict"] == "proved" or f, row  # an honest neighbour
        assert row["verdict"] == "rejected" or not f or theorem_holds(f), row
    rng = random.Random(seed)
    asked = [row for row in out if verify.proof_or_verdict(row)[1] is None]
    for row in rng.sample(asked, min(alone, len(asked))):
        again, = verify.verify_rows([row], lean, progress=False)
        assert again["verdict"] == row["verdict"], (row, again)
    return {"rows": len(out), "stopped by the filter": len(out) - len(asked), "proved": sum(row["verdict"] == "proved" for row in out),
            "of statements without a proof": sum(bool(f) and not theorem_holds(f) for f in formulas)}


@needs_lean
def test_no_attack_succeeds():
    seen = fuzz(4000, 0, alone=40)
    assert seen["proved"] > 600 and seen["of statements without a proof"] > 600 and 400 < seen["stopped by the filter"] < 2400


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Attacks on the verifier.")
    parser.add_argument("--rows", type=int, default=1000000, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="of the first 20,000; the next 20,000 have the next")
    parser.add_argument("--batch", type=int, default=200, help="completions per Lean process")
    flags = parser.parse_args()
    total = {}
    for number in itertools.count():
        if total.get("rows", 0) >= flags.rows:
            break
        for name, value in fuzz(20000, flags.seed + number, alone=20, batch=flags.batch).items():
            total[name] = total.get(name, 0) + value
        print(total, flush=True)
