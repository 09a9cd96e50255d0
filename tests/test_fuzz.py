"""Attacks on the verifier: mutated proofs, proofs from a grammar, and statements that try to touch their neighbours.

    python -m pytest tests/test_fuzz.py                                # 20,000 rows
    python tests/test_fuzz.py --rows 1000000 --seed 1                   # as many as you like, with a count of what was seen
    python tests/test_fuzz.py --rows 400000 --seed 31                   # the rest of that run, stopped after "seed 30"

The judges: a prover for intuitionistic propositional logic of its own (no statement it refutes may have a proof), truth
tables, the same row alone in a Lean of its own (the batch must not matter), and the neighbours, whose verdict is known.
"""

import argparse
import collections
import contextlib
import functools
import json
import os
import random
import re
import sys
import traceback

import pytest

hypothesis = pytest.importorskip(
    "hypothesis", reason="the grammar is drawn by hypothesis: pip install hypothesis"
)
from hypothesis import strategies as st  # noqa: E402

sys.path[:0] = [
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    os.path.dirname(os.path.abspath(__file__)),
]
from test_verify import STEPS, needs_lean  # noqa: E402

import lib.lean
import lib.lean_file
import verify  # noqa: E402
from toy.make_problems import ATOMS, random_formula, search, statement, tactics, text, truth  # noqa: E402

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


# fmt: off
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
# fmt: on


# ---- mutations of honest proofs ----


def some_formula(rng, smallest, largest):
    """A random formula with at least one atom."""
    while True:
        f = random_formula(rng, rng.randint(smallest, largest), ATOMS[:3])
        if any(atom in repr(f) for atom in "'p' 'q' 'r'".split()):
            return f


# fmt: off
LOOK_ALIKES = {"h": "һ", "e": "е", "→": "⟶", "∧": "⋀", "¬": "﹁", ".": "․", "(": "（", "'": "’", " ": "\u00a0", "1": "₁", "p": "р"}
WORDS = ("sorry sorryAx axiom theorem end namespace open in set_option maxRecDepth 100 by fun => := : , ; ( ) ⟨ ⟩ [ ] { } | · <;> h h1 h2 p q r "
         "exact intro apply rcases obtain with True.intro trivial id «h» «sorry» 'a' \" -- /- -/ # @ ` _ ?_ ?x . .. .1 .2 ∧ ∨ → ¬ ↔ True False "
         "where have show from at Or.inl And.intro absurd False.elim h1.elim native_decide decide +kernel #print #eval macro notation "
         "t self_test Classical.em propext 0b1 1e5 0x r\" \\ ! $ % ^ & * 🙂 ∑' ⁻¹' λ").split()
# fmt: on


def mutate(rng, proof, others):
    """The proof with one of a dozen kinds of damage."""
    lines = proof.split("\n")
    k = rng.randrange(len(lines))
    place = rng.randrange(len(proof) + 1)
    kind = rng.randrange(14)
    if kind == 0:
        lines[k : k + 2] = lines[k : k + 2][::-1]
    elif kind == 1:
        del lines[k]
    elif kind == 2:
        lines.insert(k, lines[k])
    elif kind == 3:
        lines[k] = " " * rng.choice([0, 1, 3, 4, 6]) + lines[k].lstrip()
    elif kind == 4:
        other = rng.choice(others).split("\n")
        lines[k : k + 1] = other[rng.randrange(len(other)) :]
    elif kind == 5:
        old, new = (
            rng.choice(["h1", "h2", "h3", "exact", "intro", "left", ".1", "⟨"]),
            rng.choice(["h2", "h1", "sorry", "right", ".2", "(", "h9", "theorem"]),
        )
        return proof.replace(old, new, rng.choice([1, -1]))
    elif kind == 6:
        letter = rng.choice(list(LOOK_ALIKES))
        return proof.replace(letter, LOOK_ALIKES[letter], 1)
    elif kind == 7:
        return (
            proof[:place]
            + rng.choice([" ", "  ", "\n", "\n  ", "\t", "\r\n", "\u200b", "\x0c", ""])
            + proof[place:]
        )
    elif kind == 8:
        return (
            proof[:place]
            + rng.choice(["/- x -/", "-- x\n", "/- ", "-/", "--", "/-- x -/", "/-/- -/", '"', "'", "«", "»"])
            + proof[place:]
        )
    elif kind == 9:
        return proof[:place] + f" {rng.choice(WORDS)} " + proof[place:]
    elif kind == 10:
        return proof[:place] + proof[place + rng.randint(1, 4) :]
    elif kind == 11:
        return proof[:place] + rng.choice(WORDS) + proof[place:]
    elif kind == 12:
        lines.insert(k, "  " + rng.choice(STEPS))
    else:
        lines[k:] = []
    return "\n".join(lines)


# fmt: off
def monster(rng):
    """Very long or very deep."""
    n = rng.choice([300, 3000])
    return rng.choice([
        "\n  exact " + "(" * n + "h" + ")" * n, "\n  exact " + "⟨" * n, "\n" + "  skip\n" * n, "\n  exact " + "fun h => " * (n // 30) + "h", "\n  exact " + "h" * n,
        "\n  exact h " + "-- x\n" * n, "\n  " + "/-" * n + "-/" * n + " trivial", "\n  " + "first | " * (n // 30) + "trivial", "\n  exact " + "h.1" * n,
        "\n  intro" + " h" * n, "\n  " + "(" * (n // 10) + "trivial" + ")" * (n // 10), "\n  exact \"" + "x" * n + "\""])
# fmt: on


def mutated_groups(rng):
    """Groups of rows, a statement each, from proofs that `toy/make_problems.py` would keep."""
    pool = []
    while len(pool) < 600:
        f = some_formula(rng, 2, 8)
        if truth(f) == 0xFFFF and (proof := search(rng, {}, f, 0, frozenset(), [200])):
            pool.append(
                (
                    f,
                    "".join(
                        "\n  " + line for line in tactics(rng, proof, {}, 0, rng.choice([0.0, 0.3, 1.0]))
                    ),
                )
            )
    proofs = [proof for _, proof in pool]
    while True:
        (f, proof), dice = rng.choice(pool), rng.random()
        if dice < 0.3:  # a proof of something else
            f = some_formula(rng, 1, 6)
        group = []
        for _ in range(rng.randint(1, 20)):
            dice = rng.random()
            completion = rng.choice(proofs) if dice < 0.1 else proof
            for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3, 5])):
                completion = mutate(rng, completion, proofs)
            if dice > 0.8:
                completion = rng.choice(["\n  ", " "]) + " ".join(
                    rng.choice([*WORDS, "\n ", "\n  "]) for _ in range(rng.randint(1, 12))
                )
            elif dice > 0.798:
                completion = monster(rng)
            group.append(
                {"statement": statement(f, "t"), "completion": completion, "formula": f, "from": "mutation"}
            )
        yield group


# ---- statements that try to touch their neighbours, and neighbours that would gain or lose by it ----

# fmt: off
BEFORE = """section
variable (bad : False)
include bad|section
variable (bad : False)|variable (bad : False) in|variable (bad : False)
include bad|section
variable (p q r : Prop)|noncomputable section|namespace Or|namespace And
theorem helper : True := trivial|section A|end|end A|end Or|section
end|section
set_option maxRecDepth 2|set_option maxRecDepth 2|set_option maxHeartbeats 1|set_option autoImplicit true|set_option autoImplicit true in|
set_option pp.all true|set_option maxErrors 1|open Or|open Or And in|open Or hiding inl|universe u|#exit|#print axioms Or.elim|#check trivial|
axiom bad : False|axiom bad (p : Prop) : p
|axiom _root_.bad : False|theorem bad : False := sorry|theorem bad : False := bad|theorem helper (p : Prop) : p → p := id|
theorem _root_.helper (p : Prop) : p → p := id|def p := True|def Or := And|abbrev p := True|instance : OfNat Prop 0 := ⟨True⟩|@[simp]|@[reducible]|
@[instance] axiom bad : False
|attribute [reducible] Not|private|protected|noncomputable|nonrec|mutual|local notation "q" => True|notation "q" => True|
macro "assumption" : tactic => `(tactic| trivial)|infixl:65 " ∧ " => Or|export Or (inl inr)|/- open|/-|/-- doc -/|/-! doc -/|-- line|-/|/--|example : True := by|
example : True := trivial|inductive Or : Prop|structure S where|class Bad : Prop where out : False
variable [Bad]|deriving instance X for Y|omit p|include p|import Prelude|prelude|)|(|⟩|"|«|'|`|\x0c|\ufeff|theorem|lemma|theorem t :|
theorem t (p : Prop) : p := by
  sorry
""".split("|")
ODD_NAMES = """And.foo _root_.t _root_.And.foo «t» «a b» t.t Or And.symm sorryAx _private.t t' id True.intro True False Not rfl trivial h1 p q r by fun
    theorem end section Eq.refl _ __ t✝ 1 t.1 t. .t t.{u} t.{u,v} t.{ xsection bad Lean.t IO.t π 𝔥 t!? _c0 T ¬ ∧ (t) [t] "t" `t""".split()
BY = ["by", "by ", "by\n", "by\n\n", "by -- x", "by /- x -/", "by /-", "by\n--", "by -- x\n", "by /-\n", "by\n/- -/", "by skip", "by (", "(by", "sorry\n  := by", "by exact by",
      "by\n#exit := by", "by\nend := by", "by\n  xsection\n  := by", "by\n  sorry\nsection := by"]
VICTIMS = [("theorem t (p : Prop) : p := by", "\n  exact bad.elim", "rejected"), ("theorem t (p : Prop) : p := by", "\n  exact bad p", "rejected"),
           ("theorem t (p : Prop) : p := by", "\n  assumption", "rejected"), ("theorem t (p : Prop) : p := by", "\n  contradiction", "rejected"),
           ("theorem t (p : Prop) : p := by", "\n  trivial", "rejected"), ("theorem t (p : Prop) : p → p := by", "\n  exact helper p", "rejected"),
           ("theorem t : p → p := by", "\n  exact fun h => h", "error"), ("theorem t (p : Prop) : p ∨ p → p := by", "\n  exact helper", "rejected"),
           ("theorem t (p q : Prop) : p → q → p := by", "\n  intro h k\n  exact h", "proved"), ("theorem t (p : Prop) : p ∨ p → p := by", "\n  rintro (h | h)\n  · exact h\n  exact h", "proved"),
           ("theorem t (p q r : Prop) : p ∧ q → q ∧ p := by", "\n  exact fun ⟨h, k⟩ => ⟨k, h⟩", "proved"), ("theorem t (p : Prop) : p → inl p := by", "\n  exact Or.inl", "error")]
STRANGE_PROOFS = ["\n  exact bad.elim", "\n  exact bad p", "\n  assumption", " -/ trivial", "-/\n  trivial", "\n  exact id", "\n  exact helper", "\n  exact helper p", "\n  trivial", "\n  sorry",
                  "\n  exact fun h => h", "\n  xend", "\n  exact t", "\n  exact symm", "\n  exact inl trivial", "", "\n  skip\n  -/", "\n  exact (", "\n  exact fun ⟨h, k⟩ => ⟨k, h⟩", "\n  intro h k\n  exact h", "\nexact id"]
# fmt: on


def strange_group(rng, number):
    """A statement with commands around it, an odd name or plain damage, some completions, and its victims on both sides."""
    f = rng.choice(
        [
            ("→", "p", "p"),
            ("→", ("∧", "p", "q"), ("∧", "q", "p")),
            ("→", "p", ("→", "q", "p")),
            "p",
            "True",
            "False",
        ]
    )
    made = (
        statement(f, rng.choice(ODD_NAMES) if rng.random() < 0.4 else "t")
        if rng.random() < 0.8
        else f"theorem t : {text(f)} := by"
    )
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        made = rng.choice(BEFORE) + rng.choice(["\n", "\n", " "]) + made
    if rng.random() < 0.3:
        made = made.removesuffix("by") + rng.choice(BY)
    if rng.random() < 0.3:
        made = mutate(rng, made, [made])
    if rng.random() < 0.5 and not re.search(r":=\s*by\s*\Z", made):
        made += " := by"
    rows = [
        {
            "statement": made,
            "completion": rng.choice(STRANGE_PROOFS) + f" -- {number}.{k}",
            "from": "statement",
        }
        for k in range(rng.randint(1, 3))
    ]
    victims = [
        {
            "statement": theorem,
            "completion": f"{proof} -- {number}.{k}",
            "from": "victim",
            "expected": verdict,
        }
        for k, (theorem, proof, verdict) in enumerate(rng.sample(VICTIMS, 3))
    ]
    return [*victims[:1], *rows, *victims[1:]]


# ---- the grammar: proofs that hypothesis draws, most of them nearly right, with whatever Lean's syntax has in odd places ----

INDEX = [None, *(st.integers(0, n) for n in range(200))]  # INDEX[n] draws one of n


def one_of(draw, options):
    """One of them; a failure shrinks towards the first, the simplest."""
    return options[draw(INDEX[len(options)])]


def drawn_formula(draw, size):
    op = one_of(draw, "pqr" if size < 1 else "p→∨∧¬q↔→∨rTF")
    if op in "pqrTF":
        return {"T": "True", "F": "False"}.get(op, op)
    return (op, *(drawn_formula(draw, size - 2) for _ in range(1 if op == "¬" else 2)))


# fmt: off
A, B, C = "ABC"
NOT_A, NOT_B = ("¬", A), ("¬", B)
CLASSICAL = [  # true in every row of the truth table, without a proof
    ("∨", A, NOT_A), ("→", ("¬", NOT_A), A), ("→", ("→", ("→", A, B), A), A), ("∨", ("→", A, B), ("→", B, A)), ("∨", NOT_A, ("¬", NOT_A)),
    ("→", ("¬", ("∧", A, B)), ("∨", NOT_A, NOT_B)), ("→", ("→", A, B), ("∨", NOT_A, B)), ("→", ("→", NOT_B, NOT_A), ("→", A, B)),
    ("→", ("→", NOT_A, A), A), ("→", ("→", A, ("∨", B, C)), ("∨", ("→", A, B), ("→", A, C))), ("↔", A, ("¬", NOT_A))]
PROVABLE = [
    ("→", A, A), ("→", ("∧", A, B), ("∧", B, A)), ("→", ("∨", A, B), ("∨", B, A)), ("→", A, ("¬", NOT_A)), ("→", A, ("→", NOT_A, B)),
    ("→", ("→", A, B), ("→", ("→", B, C), ("→", A, C))), ("¬", ("¬", ("∨", A, NOT_A))), ("→", ("¬", ("¬", NOT_A)), NOT_A), ("∧", "True", ("→", "False", A)),
    ("→", ("→", ("∨", A, B), C), ("∧", ("→", A, C), ("→", B, C))), ("↔", ("∧", A, B), ("∧", B, A)), ("→", ("∧", A, ("∨", B, C)), ("∨", ("∧", A, B), ("∧", A, C)))]
# fmt: on


def put(f, formulas):
    return formulas.get(f, f) if isinstance(f, str) else (f[0], *(put(part, formulas) for part in f[1:]))


def drawn_statement(draw):
    kind = draw(INDEX[8])
    if kind < 2:
        f = drawn_formula(draw, kind + 2)
    else:
        f = put(
            one_of(draw, CLASSICAL if kind < 4 else PROVABLE),
            {name: drawn_formula(draw, draw(INDEX[2])) for name in "ABC"},
        )
    return f if any(atom in text(f).replace("True", "") for atom in "pqr") else ("→", f, "p")


# fmt: off
NAMES = ["h", "k", "x", "h₁", "p", "t", "_", "h'", "«h 1»", "«theorem»", "this", "ﬁ", "һ", "hπ", "self", "a.b", "«p»", "Not", "_root_.h", "motive", "«»", "sorry'", "by", "𝔥", "h✝"]
LEAVES = ["_", "trivial", "id", "‹_›", "rfl", "?_", "?x", "(by assumption)", "(by trivial)", "absurd", "(fun h => h)", "⟨⟩", "t", "@t", "(·)", "this", "nofun", ".rfl",
          "Iff.rfl", "False.elim", "(nomatch ·)", "0", "1.5e3", "0x1F", "'a'", "\"s\"", "\"/-\"", "Prop", "Type", "sorry", "by sorry", "sorryAx _", "`x", "_root_.t", "_root_.id",
          "propext", "Classical.em _", "lcErased", "instOfNatNat 0", "Nat.zero", "t p q r", "#[]", "()", "(p)", "¬p", "∀ x, x", "Lean.Syntax", "And.rec", "Or.rec", "False.rec _",
          "@False.elim _", "(_ : False)", "Classical.choice ⟨_⟩", "Quot.sound", "Eq.refl _", "cast rfl", "unsafe t", "by_elab x", "eval% t", "String", "x✝", "« »"]
ODD_TERMS = """({t})|(show {g} from {t})|(by {s})|(show {g} by {s})|(have {n} : {g} := {t}; {n})|(have {n} := {t}; {u})|(let {n} := {t}; {n})|({t} : {g})|@id ({g}) ({t})|({t} |>.1)|
    ({t}).2|(match {h} with | {n} => {t})|(match {h} with | ⟨{n}, {m}⟩ => {t} | _ => {u})|(match {h}, {h} with | .inl {n}, _ => {t} | .inr {n}, {m} => {u})|(fun | {n} => {t})|
    (fun {n} {m} => {t})|(fun (⟨{n}, {m}⟩ : _ ∧ _) => {t})|({h} {t})|({h} ({t}) ({u}))|{h}.elim ({t}) ({u})|False.elim ({t})|absurd ({t}) ({u})|id <| {t}|{t} |> id|{h} $ {t}|
    (open Or And in {t})|(set_option maxRecDepth 50 in {t})|(calc {g} := {t})|(calc
      {g} := {t}
      _ := {u})|{ left := {t}, right := {u} }|{ {h} with left := {t} }|{ mp := {t}, mpr := {u} : _ ↔ _ }|{ mp {n} := {t}, mpr := {u} }|{t} /- {n} -/|({t} -- {n}
      )|(/- sorry -/ {t})|(if {h} then {t} else {u})|(do {t})|(let rec {n} : {g} := {t}; {n})|(let rec {n} : {g} := {n}; {n})|(suffices {n} : {f} from {t}; {u})|(suffices {n} : {f} by {s}; {u})|
    (nomatch {h})|{h} ▸ {t}|(‹{f}›)|(‹{g}›)|.intro ({t}) ({u})|⟨{t}, {u}⟩|⟨{t}, {t}, {u}⟩|(have : {f} := {t}
      {u})|(fun {n} : {f} => {t}) {h}|(by exact {t})|(by refine ?_; exact {t})|And.left ({t})|(And.intro ({t}) ({u})).1|@absurd _ _ ({t}) {h}|s!"{n}"|(t {p}).{n}|t (p := {f})|Or.elim (c := {f}) {h}|
    (fun {n} => by {s})|(@fun {n} => {t})|(have ⟨{n}, {m}⟩ := {h}; {t})|(show_term {t})|binop% {n} {t} {u}|({t}, {u})|(ofNat({t}))|{t}.{{n}}|@[simp] {t}|(let_fun {n} := {t}; {u})|no_index ({t})|
    type_of% {t}|(clear% {n}; {t})|inferInstance|inferInstanceAs ({g})|(fun.{t})|‹{t}›|(({t} :) : {g})|(assert! {t}; {u})|panic! "x"|(unreachable!)|(return {t})|(by_contra {t})|(try {t})""".replace("|\n    ", "|").split("|")
ODD_TACTICS = """exact {t}|refine {t}|apply {t}|show {g}|show {f}|change {g}|change {f}|have {n} : {f} := {t}|have {n} : {f} := by {s}|have {n} := {t}|have ⟨{n}, {m}⟩ := {h}|suffices {n} : {f} from {t}|
    suffices {f} by {s}|specialize {h} ({t})|revert {h}|clear {h}|assumption|contradiction|trivial|exfalso|done|skip|rfl|nofun|intros|intro {n} {m}|intro ⟨{n}, {m}⟩|intro|rintro ⟨{n}, {m}⟩|rintro ({n} | {m})|
    rintro ({n} : {f})|constructor|left|right|cases {h}|cases {h} with|obtain ⟨{n}, {m}⟩ := {h}|obtain {n} | {m} := {h}|obtain {n} : {f}|rcases {h} with ({n} | {m})|rcases {h} with -|rcases {t} with {n}|
    all_goals {s}|any_goals {s}|focus {s}|try {s}|first | {s} | {s}|first | skip | {s}|repeat' {s}|constructor <;> {s}|({s}; {s})|(({s}))|{s}; {s}|{s} <;> {s}|· {s}|. {s}|case {n} => {s}|case inl {n} => {s}|
    case left => {s}|case _ | _ => {s}|next => {s}|next {n} => {s}|match {h} with | {n} => {s}|match {h} with | .inl {n} => {s} | .inr {n} => {s}|match {h} with | ⟨{n}, {m}⟩ => {s}|nomatch {h}|
    open Or And in {s}|open Or hiding inl in {s}|open Classical in {s}|open scoped Lean in {s}|set_option maxRecDepth 40 in {s}|set_option maxHeartbeats 1 in {s}|set_option pp.all true in {s}|
    set_option autoImplicit true in {s}|let {n} := {t}|let rec {n} : {g} := {t}|letI := {t}|haveI : {g} := {t}|calc {g} := {t}|calc
      {g} := {t}
      _ := {u}|exact
      {t}|{s} -- {n}|/- {n} -/ {s}|{s} /- /- -/ -/|unfold Not|simp|decide|omega|aesop|tauto|sorry|admit|stop|native_decide|exact?|apply?|run_tac {t}|#print {n}|#eval {t}|iterate 3 {s}|repeat {s}|
    refine ⟨?_, ?_⟩|refine ⟨?a, ?b⟩ <;> {s}|refine ?_ ∧ ?_|refine Or.inl ?_|refine (?_ : {f} → {g}) {h}|refine_lift {t}|apply Or.inl|.2.elim|.elim|| {s}|{n}|{t}|by {s}|{ {s} }|{ {s}; {s} }|⟨{t}, {u}⟩|
    exact absurd ({t}) {h}|exact {h}.elim|apply {h}|exact {h}|eq_refl|apply_rfl|with_reducible {s}|classical {s}|by_cases {n} : {f}|by_contra {n}|push_neg|rename_i {n} {m}|rename {f} => {n}|subst {h}|
    generalize {h} = {n}|induction {h}|injection {h}|unhygienic {s}|sleep 1|dbg_trace "x"|trace "x"|trace_state|fail|fail_if_success {s}|symm|exists {t}|split|infer_instance|as_aux_lemma => {s}|
    checkpoint {s}|save|solve | {s}|nth_rw 1 [{t}]|rw [{t}]|conv => {s}|at {h}|· · {s}|·|exact ({t}|exact {t})|exact ⟨{t}|exact "{n}|exact «{n}""".replace("|\n    ", "|").split("|")
TRAILERS = """where {n} : {g} := {t}|where {n} : {f} := {t}|where {n} ({m} : {f}) : {g} := {t}|where\n  {n} : {g} := {n}|termination_by {h}|decreasing_by {s}|termination_by {n} => {t}\ndecreasing_by {s}|
    termination_by structural {h}|where finally {s}|partial_fixpoint|termination_by?|
    mutual\ntheorem {n} : {g} := {n}\nend|end|end {n}|namespace {n}|theorem {n} : {f} := {t}|axiom {n} : {g}|#print axioms t|#eval {t}|#exit|open Nat|attribute [simp] t|@[simp] theorem {n} : {f} := {t}|
    instance : {g} := {t}|set_option maxRecDepth 50|set_option autoImplicit true|macro "x" : tactic => `(tactic| {s})|notation "{n}" => {t}|/-- {n} -/|/-! {n} -/|-- {n}|/- {n}|-/|example : {g} := by {s}|
    variable ({n} : {g})|include {n}|private theorem t : {g} := {t}|deriving instance {n} for {m}|  #print t|  open Nat|  end|  theorem u : {g} := by {s}|)|⟩|| {s}|· {s}|<;> {s}|{s}|in {s}|instance|import {n}|
    universe u|export Or (inl)|local notation "⊢" => {t}|set_option pp.all true in #print axioms t|_root_.t|run_cmd {s}|hrun_cmd {s}|s!elab {n}|"#eval {n}"|h0x1axiom {n} : {g}""".replace("|\n    ", "|").split("|")
COMMENTS = ["/- x -/", "/- sorry -/", "/-- x -/", "-- x\n", "/-/- -/-/", "/-", "-/", "--", "-- end\n    ", "\n", "\n    ", "\n\n", "  ", "\t", "\u200b", "\u00a0", "\r\n  ", "/-!", "/--/"]
# fmt: on


def fill(draw, template, goal, given, depth):
    """The template with its {holes} filled: terms t u, steps s, names n m, hypotheses h, the goal g, another formula f."""
    fillings = {
        "t": lambda: term(draw, goal, given, depth - 1),
        "s": lambda: "; ".join(steps(draw, goal, given, depth - 2)),
        "n": lambda: one_of(draw, NAMES),
        "h": lambda: one_of(draw, [name for name, _ in given] or NAMES),
        "g": lambda: text(goal),
        "p": lambda: one_of(draw, "pqr"),
        "f": lambda: text(one_of(draw, [f for _, f in given] + ["False", "p", goal])),
        "u": lambda: term(draw, goal, given, depth - 2),
    }
    fillings["m"] = fillings["n"]
    return re.sub(r"\{(\w)\}", lambda hole: fillings[hole[1]](), template)


def new_name(draw, given):
    dice = draw(INDEX[12])
    return f"h{len(given)}" if dice < 11 else one_of(draw, NAMES)


# fmt: off
def uses(draw, goal, given, depth):
    """A term that takes a hypothesis apart, towards the goal, or None."""
    name, f = one_of(draw, given)
    if f == "False":
        return f"{name}.elim"
    if isinstance(f, str):
        return None
    if f[0] in "∧↔":
        parts = [("→", f[1], f[2]), ("→", f[2], f[1])] if f[0] == "↔" else f[1:]
        return term(draw, goal, ((f"{name}.1", parts[0]), (f"{name}.2", parts[1]), *given), depth - 1)
    if f[0] == "∨":
        x = new_name(draw, given)
        arms = [term(draw, goal, ((x, part), *given), depth - 1) for part in f[1:]]
        return one_of(draw, ["{n}.elim (fun {x} => {a}) (fun {x} => {b})", "(match {n} with | .inl {x} => {a} | Or.inr {x} => {b})",
                             "Or.elim {n} (λ {x} ↦ {a}) fun {x} => {b}", "Or.rec (fun {x} => {a}) (fun {x} => {b}) {n}"]).format(n=name, x=x, a=arms[0], b=arms[1])
    value = term(draw, f[1], given, depth - 1)
    if f[0] == "¬":
        return one_of(draw, ["({n} ({a})).elim", "absurd ({a}) {n}", "False.elim ({n} ({a}))", "{n} ({a})"]).format(n=name, a=value)
    return f"{name} ({value})" if f[2] == goal else term(draw, goal, ((f"({name} ({value}))", f[2]), *given), depth - 1)


def term(draw, goal, given, depth):
    """A term, rather a proof of the goal from what is given ((name, formula), ...)."""
    fitting, op = [name for name, f in given if f == goal], goal[0]
    if fitting and (depth < 1 or draw(INDEX[4]) < 3):
        return one_of(draw, fitting)
    dice = draw(INDEX[24])
    if goal == "True" and dice < 23:
        return "trivial"
    if dice == 23 or depth < 1:
        return one_of(draw, LEAVES)
    if dice > 20:
        return fill(draw, one_of(draw, ODD_TERMS), goal, given, depth)
    if given and (dice > 14 or isinstance(goal, str)) and (found := uses(draw, goal, given, depth)):
        return found
    if op in "→¬":
        x = new_name(draw, given)
        body = term(draw, goal[2] if op == "→" else "False", ((x, goal[1]), *given), depth - 1)
        return one_of(draw, ["(fun {x} => {b})", "fun ({x} : {a}) => {b}", "(λ {x} ↦ {b})", "(fun | {x} => {b})", "(by intro {x}; exact {b})", "(by rintro {x}; exact {b})"]).format(
            x=x, a=text(goal[1]), b=body)
    if op in "∧↔":
        goals = goal[1:] if op == "∧" else (("→", goal[1], goal[2]), ("→", goal[2], goal[1]))
        a, b = (term(draw, part, given, depth - 1) for part in goals)
        name, left, right = ("And", "left", "right") if op == "∧" else ("Iff", "mp", "mpr")
        return one_of(draw, [f"⟨{a}, {b}⟩", f"{name}.intro ({a}) ({b})", f"(.intro ({a}) ({b}))", f"{{ {left} := {a}, {right} := {b} }}", f"{{ {right} := {b}, {left} := {a} : {text(goal)} }}",
                             f"{name}.symm ⟨{b}, {a}⟩", f"by constructor; exact {a}; exact {b}", f"(by refine ⟨?_, {b}⟩; exact {a})"])
    if op == "∨":
        side = draw(INDEX[2])
        return one_of(draw, ["(.{} {})", "Or.{} ({})", "Or.symm (.in" + "rl"[side] + " {1})"]).format(("inl", "inr")[side], term(draw, goal[1 + side], given, depth - 1))
    return one_of(draw, [name for name, _ in given] or LEAVES)


def indented(lines, first="  "):
    return [(first if k == 0 else "  ") + line for k, line in enumerate(lines)]


def steps(draw, goal, given, depth):
    """Lines of tactics, rather a proof of the goal."""
    fitting, op, dice = [name for name, f in given if f == goal], goal[0], draw(INDEX[24])
    if depth < 1 or dice < 4 or fitting and dice < 8:
        return [one_of(draw, ["exact {}", "refine {}", "apply {}"]).format(term(draw, goal, given, depth - 1))] if depth > 0 or fitting or dice < 12 else ["assumption"]
    if dice > 20:
        lines = fill(draw, one_of(draw, ODD_TACTICS), goal, given, depth).split("\n")
        return lines + (steps(draw, goal, given, depth - 1) if draw(INDEX[2]) else [])
    if goal == "True":
        return ["trivial"]
    x = new_name(draw, given)
    if given and (dice > 14 or isinstance(goal, str)):
        name, f = one_of(draw, given)
        if f[0] == "∨":
            a, b = (steps(draw, goal, ((x, part), *given), depth - 1) for part in f[1:])
            return one_of(draw, [[f"cases {name} with", f"| inl {x} =>", *indented(a), f"| inr {x} =>", *indented(b)], [f"rcases {name} with {x} | {x}", *indented(a, "· "), *indented(b, "· ")],
                                 [f"obtain {x} | {x} := {name}", *a, *b], [f"cases {name}", f"case inl {x} =>", *indented(a), f"case inr {x} =>", *indented(b)],
                                 [f"match {name} with", f"| .inl {x} =>", *indented(a), f"| .inr {x} =>", *indented(b)]])
        if f[0] == "∧":
            return [one_of(draw, ["obtain ⟨{0}, {0}'⟩ := {1}", "rcases {1} with ⟨{0}, {0}'⟩", "have ⟨{0}, {0}'⟩ := {1}", "cases {1} with | intro {0} {0}' => ?_", "match {1} with | ⟨{0}, {0}'⟩ => skip"]).format(x, name),
                    *steps(draw, goal, ((x, f[1]), (x + "'", f[2]), *given), depth - 1)]
        if f[0] == "→" and f[2] != goal:
            return [f"have {x} : {text(f[2])} := {name} ({term(draw, f[1], given, depth - 2)})", *steps(draw, goal, ((x, f[2]), *given), depth - 1)]
        if f[0] == "→":
            return [f"apply {name}", *steps(draw, f[1], given, depth - 1)]
        if f[0] == "¬":
            return ["exfalso", f"apply {name}", *steps(draw, f[1], given, depth - 1)]
    if op in "→¬":
        return [one_of(draw, ["intro {}", "rintro {}", "intro ({} : _)", "show _ → _; intro {}"]).format(x), *steps(draw, goal[2] if op == "→" else "False", ((x, goal[1]), *given), depth - 1)]
    if op in "∧↔":
        a, b = (steps(draw, part, given, depth - 1) for part in (goal[1:] if op == "∧" else (("→", goal[1], goal[2]), ("→", goal[2], goal[1]))))
        return [one_of(draw, ["constructor", "refine ⟨?_, ?_⟩", "apply And.intro", "refine And.intro ?_ ?_"]),
                *one_of(draw, [[*indented(a, "· "), *indented(b, "· ")], a + b, ["case left =>", *indented(a), "case right =>", *indented(b)], ["all_goals first", *indented(a, "| "), *indented(b, "| ")]])]
    if op == "∨":
        side = draw(INDEX[2])
        return [one_of(draw, [("left", "right")[side], ("apply Or.inl", "apply Or.inr")[side]]), *steps(draw, goal[1 + side], given, depth - 1)]
    return [f"exact {term(draw, goal, given, depth - 1)}"]


@st.composite
def drawn_group(draw):
    """A statement and some completions."""
    f, rows = drawn_statement(draw), []
    for _ in range(1 + draw(INDEX[16])):
        depth, dice = 2 + draw(INDEX[6]), draw(INDEX[32])
        proof = "\n  exact " + term(draw, f, (), depth) if dice % 4 == 0 else "".join("\n  " + line for line in steps(draw, f, (), depth))
        if dice > 24:
            words = proof.split(" ")
            place = draw(st.integers(0, len(words)))
            proof = " ".join([*words[:place], one_of(draw, COMMENTS), *words[place:]])
        if dice in (23, 24):
            proof += "\n" + fill(draw, one_of(draw, TRAILERS), f, (), 3)
        row = {"statement": statement(f, "t"), "completion": proof, "formula": f, "from": "grammar"}
        if dice == 22:
            row.update(template="deepseek", completion=proof + one_of(draw, ["\n```", "\n```\n ", "", "\n``", "\n```\nend", "```lean\n```", "\n```\n```"]))
        rows.append(row)
    return rows
# fmt: on


def draw_rows(seed, check):
    """Gives `check` some ten lists of groups; where that raises, hypothesis shrinks the list, and its smallest one raises."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=10,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )  # after ten it would copy parts of what it drew
    @hypothesis.given(st.lists(drawn_group(), min_size=1, max_size=12))
    def run(groups):
        check(groups)

    run()


def drawn_groups(seed):
    for number in range(seed * 1000, (seed + 1) * 1000):
        lists = []
        draw_rows(number, lists.append)
        for groups in lists:
            yield from ([dict(row, seed=number) for row in group] for group in groups)


# ---- judges ----

BARE = ("→", "p", "q")


def make_rows(count, seed):
    """Half mutations, half from the grammar, and between them honest neighbours, strange statements and their victims; no two equal."""
    rng, made, seen = random.Random(seed), collections.Counter(), set()
    sources = {"mutation": mutated_groups(random.Random(f"mutation {seed}")), "grammar": drawn_groups(seed)}
    while made.total() < count:
        group = next(sources[min(sources, key=made.__getitem__)])
        if rng.random() < 0.3:
            n = made["neighbour"]
            group.append(
                {
                    "statement": "theorem t (p : Prop) : p → p := by",
                    "completion": f"\n  intro h{n}\n  exact h{n}",
                    "expected": "proved",
                    "from": "neighbour",
                }
            )
        if rng.random() < 0.05:
            group += strange_group(rng, made["statement"])
        for row in group:
            key = row["statement"], row["completion"], row.get("template")
            if key in seen or made.total() == count:
                continue
            seen.add(key)
            made[row["from"]] += 1
            row["stopped"] = (
                verify.proof_or_verdict(row)[1] is not None
            )  # Lean is then asked about the statement alone,
            yield (
                dict(row, statement=statement(BARE, "t"), formula=BARE)
                if row["stopped"] and row["from"] in sources
                else row
            )  # so let them share one


@functools.lru_cache(200000)
def holds(f):
    """Whether the formula has a proof, by both judges."""
    return truth(f) == 0xFFFF and theorem_holds(f)


def objection(row):
    """What a judge has against the row's verdict, or None."""
    verdict = row["verdict"]
    if "expected" in row:
        return (
            None
            if verdict == row["expected"]
            else f"{'an honest' if row['expected'] == 'proved' else 'a'} {row['from']} is {verdict}: {row['message']}"
        )
    if row["from"] == "statement":  # whatever it says, it has to say the same alone
        return None
    if verdict not in ("proved", "rejected"):
        return f"the verdict is {verdict}"
    if verdict == "proved" and not holds(row["formula"]):
        return "proved, and has no proof"
    return None


def fuzz(count, seed, alone, batch=250, timeout=120.0):
    """Verifies `count` rows and `alone` of them once more alone: (what was seen, the rows that a judge objects to)."""
    lean, rng, rows, seen = lib.lean.find_lean(), random.Random(seed), [], collections.Counter()
    verifier = verify.lean_verifier(lean, workers=2, batch=batch, timeout=timeout)
    for row in verify.verify_stream(make_rows(count, seed), verifier, progress=False):
        rows.append(dict(row, objection=objection(row)))
        kind = row["from"]
        seen.update(
            [kind, f"{kind}: {row['verdict']}"]
            + [f"{kind}: stopped by the filter"] * row["stopped"]
            + [f"{kind}: without a proof, asked of Lean"]
            * ("formula" in row and not row["stopped"] and not holds(row["formula"]))
        )
    asked = [row for row in rows if not row["stopped"] and "formula" in row]
    groups = {
        verdict: [row for row in asked if row["verdict"] == verdict] for verdict in ("proved", "rejected")
    }
    groups = {name: rng.sample(some, min(alone // 2, len(some))) for name, some in groups.items()}
    statements = [row for row in rows if row["from"] == "statement" and not row["stopped"]]
    groups["statement"] = rng.sample(statements, min(alone, len(statements)))
    for name, some in groups.items():
        seen[f"alone: {name}"] += len(some)
        for row, again in zip(
            some, verify.verify_rows(some, lean, workers=2, batch=1, timeout=timeout, progress=False)
        ):
            if again["verdict"] != row["verdict"]:
                row["objection"] = f"alone it is {again['verdict']}: {again['message']}"
    seen["rows"] = len(rows)
    return seen, [row for row in rows if row["objection"]]


def shrunk(row):
    """The smallest list of rows to which hypothesis can cut the list where it drew the row, with a judge still objecting."""
    known, smallest = {}, []

    def check(groups):
        rows = {repr(row): row for group in groups for row in group}
        new = {name: row for name, row in rows.items() if name not in known}
        known.update(zip(new, verify.verify_rows(list(new.values()), batch=250, progress=False)))
        if any(objection(known[name]) for name in rows):
            smallest[:] = map(known.get, rows)
            raise AssertionError("a judge objects")

    with contextlib.suppress(AssertionError):
        draw_rows(row["seed"], check)
    return smallest or [row]


@needs_lean
def test_no_attack_succeeds():
    seen, wrong = fuzz(20000, 0, alone=100)
    assert not wrong, shrunk(wrong[0]) if "seed" in wrong[0] else wrong[0]
    assert (
        seen["rows"] == 20000
        and seen["alone: proved"] == seen["alone: rejected"] == 50
        and seen["neighbour: proved"] > 500
    )
    assert seen["statement"] > 100 and seen["victim"] > 200 and seen["alone: statement"] > 50, seen
    for kind in (
        "mutation",
        "grammar",
    ):  # each kind reaches Lean, proves what can be proved, and tries what cannot
        assert (
            seen[kind] > 9000
            and seen[f"{kind}: proved"] > 400
            and seen[f"{kind}: without a proof, asked of Lean"] > 1500
        ), seen
        assert 1000 < seen[f"{kind}: stopped by the filter"] < 4500, seen


@needs_lean
def test_a_verifier_that_errs_is_found_out(monkeypatch):
    """In a batch, unsolved goals count as solved, and every other proof is lost."""
    right = verify.judge_once

    def erring(batch, *rest):
        verdicts, again = right(batch, *rest)
        for key, (verdict, message, seconds) in verdicts.items() if len(batch) > 1 else ():
            if "unsolved goals" in message or verdict == "proved" and len(key[2]) // 2 % 2:
                verdicts[key] = "rejected" if verdict == "proved" else "proved", "", seconds
        return verdicts, again

    monkeypatch.setattr(verify, "judge_once", erring)
    _, wrong = fuzz(600, 0, alone=40)
    found = {(row["from"], row["objection"].split(":")[0]) for row in wrong}
    assert {
        ("mutation", "proved, and has no proof"),
        ("grammar", "proved, and has no proof"),
        ("neighbour", "an honest neighbour is rejected"),
    } <= found
    assert any(words == "alone it is rejected" for _, words in found)


@needs_lean
def test_a_verifier_that_lets_statements_touch_is_found_out(monkeypatch):
    """All share a process, whatever they open, declare or set, and an error in a statement is nothing."""
    for module in (verify, lib.lean_file):
        monkeypatch.setattr(module, "single_theorem", lambda statement: True)
    monkeypatch.setattr(verify, "bad_statements", lambda found: {})
    found = set()
    for command in (
        "variable (bad : False)\ninclude bad",
        "set_option maxRecDepth 2",
        "variable (p q r : Prop)",
    ):
        rows = [
            {
                "statement": f"section\n{command}\ntheorem s (p : Prop) : p → p := by",
                "completion": "\n  exact id",
                "from": "statement",
            }
        ]
        rows += [
            {"statement": theorem, "completion": proof, "from": "victim", "expected": verdict}
            for theorem, proof, verdict in VICTIMS
        ]
        found |= {
            (row["expected"], row["verdict"])
            for row in verify.verify_rows(rows, progress=False)
            if objection(row)
        }
    assert ("rejected", "proved") in found and len(found) > 1, found


def test_a_finding_shrinks(monkeypatch):
    monkeypatch.setattr(
        verify,
        "verify_rows",
        lambda rows, **keys: [
            dict(row, verdict="proved" if re.search("exact.*sorry", row["completion"]) else "rejected")
            for row in rows
        ],
    )
    *_, smallest = shrunk({"seed": 1})
    assert smallest["statement"] == "theorem t (p : Prop) : p := by" and len(smallest["completion"]) < 25, (
        smallest
    )


def main():
    parser = argparse.ArgumentParser(description="Attacks on the verifier.")
    parser.add_argument("--rows", type=int, default=1000000, help="how many")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first 20,000; the next 20,000 have the next"
    )
    parser.add_argument(
        "--alone", type=int, default=40, help="how many of 20,000 are verified once more alone"
    )
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one proof")
    parser.add_argument(
        "--findings",
        default="fuzz_findings.jsonl",
        help="JSONL to which a row is added that a judge objects to",
    )
    flags = parser.parse_args()
    total, found, seed = collections.Counter(), 0, flags.seed
    while total["rows"] < flags.rows:
        count = min(20000, flags.rows - total["rows"])
        try:
            seen, wrong = fuzz(count, seed, flags.alone, timeout=flags.timeout)
        except Exception:  # the verifier itself fell: that is a finding as well
            seen, wrong = {"rows": count}, [{"seed": seed, "objection": traceback.format_exc()}]
        total.update(seen)
        found += len(wrong)
        with open(flags.findings, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=True) + "\n" for row in wrong)
        print(f"seed {seed}: {found} findings, in all", json.dumps(total, sort_keys=True), flush=True)
        seed += 1
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
