"""Makes the embedded default's theorems, and the proofs that its base prover learns from, all from one seed.

    python toy/make_problems.py --out toy --sft runs/sft.jsonl --seed 0 --workers 2

Random formulas of propositional logic -> truth tables, which reject most -> randomised proof search, which
rejects the rest -> random Lean text for each proof -> Lean, whose verdict alone counts. Writes train.jsonl
and val.jsonl (id, statement), and a file to learn from (statement, completion). No theorem in them is another
one with its atoms renamed.

A formula is an atom "p", or "True", "False", or a tuple ("→", A, B), ("¬", A), and so on with ∧, ∨, ↔.
A proof is a tuple (rule, ...) that holds the proofs of its premises; hypotheses are numbers:

    ("hyp", h)                   the goal is h         ("left" or "right", proof)      goal A ∨ B
    ("true",)                    the goal is True      ("both", h, a, b, proof)        h : A ∧ B or A ↔ B
    ("false", h)                 h is False            ("cases", h, a, proof, proof)   h : A ∨ B
    ("contra", h, a, is_false)   h : ¬A and a : A      ("apply", h, proof)             h : A → goal
    ("intro", a, proof)          goal A → B or ¬A      ("have", h, b, B, proof, proof) h : A → B
    ("split", proof, proof)      goal A ∧ B or A ↔ B   ("exfalso", h, proof)           h : ¬A
"""

import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from lib.cli import flags  # noqa: E402
from lib.theorems import add_flags, find_theorems, write_theorems  # noqa: E402
from verify import verify_rows  # noqa: E402

ATOMS = "pqrs"
# The 16 valuations of p, q, r, s as the bits of a number.
TRUTH = {"p": 0xAAAA, "q": 0xCCCC, "r": 0xF0F0, "s": 0xFF00, "True": 0xFFFF, "False": 0}
# Lean's precedence of a connective, and the least precedence of its left and right side without parentheses.
PRECEDENCE = {"→": (25, 26, 25), "∧": (35, 36, 35), "∨": (30, 31, 30), "↔": (20, 21, 21)}
SIZES = range(3, 10)  # connectives of a theorem


def random_formula(rng, size, atoms):
    """A formula with `size` connectives over the given atoms."""
    if size == 0:
        return rng.choice(("True", "False")) if rng.random() < 0.03 else rng.choice(atoms)
    op = rng.choices("→∧∨¬↔", (42, 22, 20, 11, 5))[0]
    if op == "¬":
        return op, random_formula(rng, size - 1, atoms)
    split = rng.randrange(size)
    left, right = random_formula(rng, split, atoms), random_formula(rng, size - 1 - split, atoms)
    return (op, left, right) if left != right else random_formula(rng, size, atoms)  # p ∧ p, p → p: dull


def truth(f):
    """The truth table of a formula: 16 bits, one for each valuation of p, q, r, s."""
    if isinstance(f, str):
        return TRUTH[f]
    a, b = truth(f[1]), truth(f[-1])
    return {"→": ~a | b, "∧": a & b, "∨": a | b, "↔": ~(a ^ b), "¬": ~a}[f[0]] & 0xFFFF


def canonical(f, names):
    """The formula with its atoms renamed p, q, r, s in the order of their first occurrence."""
    if isinstance(f, str):
        if len(f) == 1 and f not in names:
            names[f] = ATOMS[len(names)]
        return names.get(f, f)
    return (f[0], *(canonical(g, names) for g in f[1:]))


def text(f, least=0):
    """Lean's text of a formula, in parentheses only if its precedence is below `least`."""
    if isinstance(f, str):
        return f
    if f[0] == "¬":
        return "¬" + text(f[1], 40)
    level, left, right = PRECEDENCE[f[0]]
    out = f"{text(f[1], left)} {f[0]} {text(f[2], right)}"
    return f"({out})" if level < least else out


def search(rng, hyps, goal, fresh, path, budget):
    """A random proof of `goal` from `hyps` ({number: formula}), or None.

    fresh: the next unused number. path: the sequents on the way here, since a repeated one is a loop.
    budget: [number of sequents that the whole search may still open].
    """
    budget[0] -= 1
    number_of = {f: h for h, f in hyps.items()}
    sequent = (frozenset(number_of), goal)
    if budget[0] < 0 or sequent in path or len(path) > 24:
        return None
    if goal in number_of:
        return "hyp", number_of[goal]
    if goal == "True":
        return ("true",)
    if "False" in number_of:
        return "false", number_of["False"]
    for h, f in hyps.items():
        if f[0] == "¬" and f[1] in number_of:
            return "contra", h, number_of[f[1]], goal == "False"
    for _, rule, arguments, premises in sorted_moves(rng, hyps, goal, fresh, number_of):
        proofs = []
        for new, premise_goal, *used in premises:
            left = {h: f for h, f in hyps.items() if h not in used}
            left |= {fresh + i: f for i, f in enumerate(new)}
            proof = search(rng, left, premise_goal, fresh + len(new), path | {sequent}, budget)
            if proof is None:
                break
            proofs.append(proof)
        else:
            return (rule, *arguments, *proofs)
    return None


def sorted_moves(rng, hyps, goal, fresh, number_of):
    """The rules that fit a sequent, by priority and noise: (priority, rule, its arguments, its premises).
    A premise is (new hypotheses, goal), or also the hypothesis that it drops."""
    moves = []
    match goal:
        case "→", a, b:
            moves.append((1, "intro", [fresh], [([a], b)]))
        case "¬", a:
            moves.append((1, "intro", [fresh], [([a], "False")]))
        case "∧", a, b:
            moves.append((2, "split", [], [([], a), ([], b)]))
        case "↔", a, b:
            moves.append((2, "split", [], [([], ("→", a, b)), ([], ("→", b, a))]))
        case "∨", a, b:
            moves += [(4, "left", [], [([], a)]), (4, "right", [], [([], b)])]
    for h, f in hyps.items():
        match f:
            case "∧", a, b:
                moves.append((1.5, "both", [h, fresh, fresh + 1], [([a, b], goal, h)]))
            case "↔", a, b:
                moves.append((2, "both", [h, fresh, fresh + 1], [([("→", a, b), ("→", b, a)], goal, h)]))
            case "∨", a, b:
                moves.append((3, "cases", [h, fresh], [([a], goal, h), ([b], goal, h)]))
            case "→", a, b if b == goal:
                moves.append((3.5, "apply", [h], [([], a)]))
            case "→", a, b if b not in number_of:
                priority = 2.5 if a in number_of else 5.5
                moves.append((priority, "have", [h, fresh, b], [([], a), ([b], goal)]))
            case "¬", a if goal == "False":
                moves.append((4, "apply", [h], [([], a)]))
            case "¬", a:
                moves.append((5, "exfalso", [h], [([], a)]))
    return sorted(moves, key=lambda move: move[0] + rng.gauss(0, 0.8))


def steps(proof):
    """The number of rules in a proof; of the tuples in it, formulas start with a connective."""
    return 1 + sum(steps(part) for part in proof[1:] if isinstance(part, tuple) and part[0].isalpha())


def atomic(t):
    """A term as an argument of another: in parentheses if it needs them."""
    return t if " " not in t or (t[0] == "⟨" and t[-1] == "⟩" and t.count("⟨") == 1) else f"({t})"


def term(rng, proof, names, used):
    """The proof as a Lean term. names: the term of each hypothesis. used: h1 .. h<used> are taken."""
    new = f"h{used + 1}"

    def go(part, more=None, extra=0):
        return term(rng, part, names | (more or {}), used + extra)

    match proof:
        case "hyp", h:
            return names[h]
        case ("true",):
            return rng.choice(("trivial", "True.intro"))
        case "false", h:
            return f"{atomic(names[h])}.elim"
        case "contra", h, a, goal_is_false:
            not_a, a = atomic(names[h]), atomic(names[a])
            if goal_is_false:
                return f"{not_a} {a}"
            return rng.choice((f"absurd {a} {not_a}", f"({not_a} {a}).elim"))
        case "intro", h, body:
            inner = go(body, {h: new}, 1)
            return f"fun {new} {inner[4:]}" if inner.startswith("fun ") else f"fun {new} => {inner}"
        case "split", a, b:
            return f"⟨{go(a)}, {go(b)}⟩"
        case "left", a:
            return f"Or.inl {atomic(go(a))}"
        case "right", b:
            return f"Or.inr {atomic(go(b))}"
        case "both", h, a, b, rest:
            return go(rest, {a: atomic(names[h]) + ".1", b: atomic(names[h]) + ".2"})
        case "cases", h, a, left, right:
            arms = [f"(fun {new} => {go(arm, {a: new}, 1)})" for arm in (left, right)]
            return f"{atomic(names[h])}.elim {' '.join(arms)}"
        case "have", h, b, _, premise, rest:
            return go(rest, {b: f"{names[h]} {atomic(go(premise))}"})
        case "apply", h, premise:
            return f"{names[h]} {atomic(go(premise))}"
        case "exfalso", h, premise:
            return f"({names[h]} {atomic(go(premise))}).elim"


def indented(lines, first="  "):
    """The lines of a block as the body of the one above; first: "· " makes a bullet of them."""
    return [first + lines[0], *("  " + line for line in lines[1:])]


def tactics(rng, proof, names, used, taste):
    """The proof as lines of a tactic block. taste: how readily this proof uses `exact` with a term."""
    new, second = f"h{used + 1}", f"h{used + 2}"

    def go(part, more=None, extra=0):
        return tactics(rng, part, names | (more or {}), used + extra, taste)

    def exact():
        return "exact " + term(rng, proof, names, used)

    def named(h):  # whether it is h1, h2, ... of Lean's context, and not a longer term
        return names[h][1:].isdigit()

    size = steps(proof)
    short = proof[0] not in ("hyp", "true", "false", "contra") and size <= 9
    if short and rng.random() < taste / size**0.5:
        return [exact()]
    match proof:
        case "hyp", h:
            return ["assumption" if named(h) and rng.random() < 0.15 else f"exact {names[h]}"]
        case ("true",):
            return [rng.choice(("trivial", "exact True.intro", "constructor"))]
        case "false", h:
            return ["contradiction" if named(h) and rng.random() < 0.5 else exact()]
        case "contra", h, a, _:
            return ["contradiction" if named(h) and named(a) and rng.random() < 0.3 else exact()]
        case "intro", hyp, ("both", h, a, b, rest) if h == hyp and rng.random() < 0.5:
            return [f"rintro ⟨{new}, {second}⟩", *go(rest, {a: new, b: second}, 2)]
        case "intro", hyp, ("cases", h, a, *arms) if h == hyp and rng.random() < 0.4:
            left, right = [go(arm, {a: new}, 1) for arm in arms]
            return [f"rintro ({new} | {new})", *indented(left, "· "), *indented(right, "· ")]
        case "intro", h, body:
            lines = go(body, {h: new}, 1)
            if lines[0].startswith("intro ") and rng.random() < 0.7:
                return [f"intro {new} {lines[0][6:]}", *lines[1:]]
            return [f"intro {new}", *lines]
        case "split", a, b if steps(a) <= 3 and rng.random() < 0.2:
            return [f"refine ⟨{term(rng, a, names, used)}, ?_⟩", *go(b)]
        case "split", a, b:
            how = rng.choice(("constructor", "constructor", "refine ⟨?_, ?_⟩"))
            return [how, *indented(go(a), "· "), *indented(go(b), "· ")]
        case ("left" | "right") as rule, premise:
            side = "Or.inl" if rule == "left" else "Or.inr"
            return [rng.choice((rule, rule, f"apply {side}", f"refine {side} ?_")), *go(premise)]
        case "both", h, a, b, rest if rng.random() < 0.3 * taste:
            return go(rest, {a: atomic(names[h]) + ".1", b: atomic(names[h]) + ".2"})
        case "both", h, a, b, rest:
            obtain = f"obtain ⟨{new}, {second}⟩ := {names[h]}"
            how = rng.choice((obtain, obtain, f"rcases {names[h]} with ⟨{new}, {second}⟩"))
            return [how, *go(rest, {a: new, b: second}, 2)]
        case "cases", h, a, *arms:
            left, right = [go(arm, {a: new}, 1) for arm in arms]
            if rng.random() < 0.3:
                left, right = [f"| inl {new} =>", *indented(left)], [f"| inr {new} =>", *indented(right)]
                return [f"cases {names[h]} with", *left, *right]
            how = (f"rcases {names[h]} with {new} | {new}", f"obtain {new} | {new} := {names[h]}")
            return [rng.choice(how), *indented(left, "· "), *indented(right, "· ")]
        case "have", h, b, formula, premise, rest:
            after = go(rest, {b: new}, 1)
            typed = rng.random() < 0.3 or premise[0] != "hyp"
            if premise[0] != "hyp" and rng.random() < 0.5:
                block = [f"apply {names[h]}", *go(premise)]
                return [f"have {new} : {text(formula)} := by", *indented(block), *after]
            value = f"{names[h]} {atomic(term(rng, premise, names, used))}"
            return [f"have {new}{' : ' + text(formula) if typed else ''} := {value}", *after]
        case rule, h, premise:  # apply or exfalso
            apply = f"apply {names[h]}"
            lines = [rng.choice((apply, apply, f"refine {names[h]} ?_")), *go(premise)]
            return lines if rule == "apply" else ["exfalso", *lines]


def theorem(seed):
    """One theorem from one seed: (formula, [completions]) or None."""
    rng = random.Random(seed)
    size = rng.choices(SIZES, [0.7**n for n in range(len(SIZES))])[0]
    f = canonical(random_formula(rng, size, ATOMS[: rng.choice((2, 3, 3, 4))]), {})
    if truth(f) != 0xFFFF or sum(c.isalpha() for c in text(f)) < 2:
        return None
    proofs = {search(rng, {}, f, 0, frozenset(), [400]) for _ in range(4)} - {None}
    if not proofs or min(map(steps, proofs)) < 3:
        return None
    shortest = sorted(proofs, key=lambda proof: (steps(proof), repr(proof)))[:2]
    completions = set()
    for _ in range(4):
        lines = tactics(rng, rng.choice(shortest), {}, 0, rng.choice((0.0, 0.3, 1.0, 2.0)))
        completions.add("".join("\n  " + line for line in lines))
    return f, sorted(completions)


def statement(f, name):
    atoms = " ".join(a for a in ATOMS if a in text(f).replace("True", "").replace("False", ""))
    return f"theorem {name} ({atoms} : Prop) : {text(f)} := by"


def main():
    parser = flags("Theorems and proofs of the embedded default, from a seed.")
    add_flags(parser, out="toy", sft="runs/sft.jsonl", train=3200, val=200)
    args = parser.parse_args()
    found = find_theorems(theorem, 2000, args, args.train + args.val + args.sft_theorems)
    rows = [
        {"id": f"t_{n:05d}", "sample": i, "statement": statement(f, f"t_{n:05d}"), "completion": completion}
        for n, (f, completions) in enumerate(found)
        for i, completion in enumerate(completions)
    ]
    write_theorems(verify_rows(rows, workers=args.workers, batch=256), ("id", "statement"), args)


if __name__ == "__main__":
    main()
