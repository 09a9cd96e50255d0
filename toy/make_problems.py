"""Makes the embedded default's theorems and the proofs its base prover learns from, all from one seed.

    python toy/make_problems.py --out toy --sft runs/sft.jsonl --seed 0 --workers 2

Random formulas of propositional logic -> truth table (throws out most) -> randomised proof search (throws out the
rest) -> random Lean text for each proof found -> Lean, whose verdict alone counts. Writes train.jsonl and val.jsonl
(id, statement), and the SFT file (statement, completion); no two theorems in any of them are equal up to renaming atoms.

A formula is an atom "p" | "True" | "False", or a tuple ("→", A, B), ("∧", A, B), ("∨", A, B), ("↔", A, B), ("¬", A).
A proof is a tree of tuples (rule, ...) over hypotheses with number names; `tactics` and `term` write it as Lean text.
"""

import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor

from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from lib.cli import flags, number  # noqa: E402
from lib.jsonl import write_jsonl  # noqa: E402
from verify import verify_rows  # noqa: E402

ATOMS = "pqrs"
TRUTH = {
    "p": 0xAAAA,
    "q": 0xCCCC,
    "r": 0xF0F0,
    "s": 0xFF00,
    "True": 0xFFFF,
    "False": 0,
}  # 16 valuations as bits


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
    """The truth table of a formula as 16 bits, one per valuation of p q r s."""
    if isinstance(f, str):
        return TRUTH[f]
    a, b = truth(f[1]), truth(f[-1])
    return {"→": ~a | b, "∧": a & b, "∨": a | b, "↔": ~(a ^ b), "¬": ~a}[f[0]] & 0xFFFF


def canonical(f, names):
    """The formula with its atoms renamed p, q, r, s in the order in which they occur first."""
    if isinstance(f, str):
        if len(f) == 1 and f not in names:
            names[f] = ATOMS[len(names)]
        return names.get(f, f)
    return (f[0], *(canonical(g, names) for g in f[1:]))


def text(f, above=0):
    """Lean's text of a formula, with no parenthesis that Lean's precedences do not need."""
    if isinstance(f, str):
        return f
    if f[0] == "¬":
        return "¬" + text(f[1], 40)
    level, left, right = {"→": (25, 26, 25), "∧": (35, 36, 35), "∨": (30, 31, 30), "↔": (20, 21, 21)}[f[0]]
    out = f"{text(f[1], left)} {f[0]} {text(f[2], right)}"
    return f"({out})" if level < above else out


def search(rng, hyps, goal, fresh, path, budget):
    """A random proof tree of `goal` from `hyps` ({number: formula}), or None. `fresh` is the next free number,
    `path` the sequents above this one (a repeated one is a loop), budget[0] the number of sequents left to open."""
    budget[0] -= 1
    have = {f: h for h, f in hyps.items()}
    state = (frozenset(have), goal)
    if budget[0] < 0 or state in path or len(path) > 24:
        return None
    if goal in have:
        return "hyp", have[goal]
    if goal == "True":
        return ("true",)
    if "False" in have:
        return "false", have["False"]
    for h, f in hyps.items():
        if f[0] == "¬" and f[1] in have:
            return "contra", h, have[f[1]], goal == "False"
    path = path | {state}

    def then(new, goal, drop=None):  # the sequent after a rule: hypothesis `drop` gone, formulas `new` added
        kept = {h: f for h, f in hyps.items() if h != drop}
        return search(
            rng, {**kept, **{fresh + i: f for i, f in enumerate(new)}}, goal, fresh + len(new), path, budget
        )

    moves = []  # (priority, rule, its arguments, its premises as arguments of `then`): the low ones are tried first
    if goal[0] in "→¬" and goal != "False":
        moves.append((1, "intro", (fresh,), [([goal[1]], goal[2] if goal[0] == "→" else "False")]))
    elif goal[0] == "∧":
        moves.append((2, "split", (), [([], goal[1]), ([], goal[2])]))
    elif goal[0] == "↔":
        moves.append((2, "split", (), [([], ("→", goal[1], goal[2])), ([], ("→", goal[2], goal[1]))]))
    elif goal[0] == "∨":
        moves += [(4, "left", (), [([], goal[1])]), (4, "right", (), [([], goal[2])])]
    for h, f in hyps.items():
        if f[0] == "∧":
            moves.append((1.5, "both", (h, fresh, fresh + 1), [([f[1], f[2]], goal, h)]))
        elif f[0] == "↔":
            moves.append(
                (2, "both", (h, fresh, fresh + 1), [([("→", f[1], f[2]), ("→", f[2], f[1])], goal, h)])
            )
        elif f[0] == "∨":
            moves.append((3, "cases", (h, fresh), [([f[1]], goal, h), ([f[2]], goal, h)]))
        elif f[0] == "→" and f[2] == goal:
            moves.append((3.5, "apply", (h,), [([], f[1])]))
        elif f[0] == "→" and f[2] not in have:
            moves.append(
                (2.5 if f[1] in have else 5.5, "have", (h, fresh, f[2]), [([], f[1]), ([f[2]], goal)])
            )
        elif f[0] == "¬" and goal == "False":
            moves.append((4, "apply", (h,), [([], f[1])]))
        elif f[0] == "¬":
            moves.append((5, "exfalso", (h,), [([], f[1])]))
    for move in sorted(moves, key=lambda m: m[0] + rng.gauss(0, 0.8)):
        premises = []
        for premise in move[3]:
            if (proof := then(*premise)) is None:
                break
            premises.append(proof)
        else:
            return (move[1], *move[2], *premises)
    return None


def steps(proof):
    """The number of rules in a proof tree."""
    return 1 + sum(steps(part) for part in proof[1:] if isinstance(part, tuple) and part[0] in RULES)


RULES = "hyp true false contra intro split left right both cases apply have exfalso".split()


def atomic(t):
    """A term that can stand as an argument."""
    return t if " " not in t or (t[0] == "⟨" and t[-1] == "⟩" and t.count("⟨") == 1) else f"({t})"


def term(rng, proof, names, used):
    """The proof as a Lean term. names: hypothesis number -> its term; used: how many h1, h2, ... are taken."""
    rule, *a = proof
    go = lambda part, more=(), extra=0: term(rng, part, {**names, **dict(more)}, used + extra)  # noqa: E731
    if rule == "hyp":
        return names[a[0]]
    if rule == "true":
        return rng.choice(("trivial", "True.intro"))
    if rule == "false":
        return f"{atomic(names[a[0]])}.elim"
    if rule == "contra":
        not_a, proof_a = atomic(names[a[0]]), atomic(names[a[1]])
        return (
            f"{not_a} {proof_a}"
            if a[2]
            else rng.choice((f"absurd {proof_a} {not_a}", f"({not_a} {proof_a}).elim"))
        )
    if rule == "intro":
        body = go(a[1], {a[0]: f"h{used + 1}"}.items(), 1)
        return f"fun h{used + 1} {body[4:]}" if body.startswith("fun ") else f"fun h{used + 1} => {body}"
    if rule == "split":
        return f"⟨{go(a[0])}, {go(a[1])}⟩"
    if rule in ("left", "right"):
        return f"Or.{'inl' if rule == 'left' else 'inr'} {atomic(go(a[0]))}"
    if rule == "both":
        base = atomic(names[a[0]])
        return go(a[3], {a[1]: base + ".1", a[2]: base + ".2"}.items())
    if rule == "cases":
        arms = [f"(fun h{used + 1} => {go(part, {a[1]: f'h{used + 1}'}.items(), 1)})" for part in a[2:]]
        return f"{atomic(names[a[0]])}.elim {' '.join(arms)}"
    if rule == "have":
        return go(a[4], {a[1]: f"{names[a[0]]} {atomic(go(a[3]))}"}.items())
    applied = f"{names[a[0]]} {atomic(go(a[1]))}"
    return applied if rule == "apply" else f"({applied}).elim"


def tactics(rng, proof, names, used, terms):
    """The proof as lines of a tactic block; `terms` is this proof's taste for `exact` with a term."""
    rule, *a = proof
    go = lambda part, more=(), extra=0: tactics(rng, part, {**names, **dict(more)}, used + extra, terms)  # noqa: E731
    bullet = lambda lines: ["· " + lines[0], *("  " + line for line in lines[1:])]  # noqa: E731
    new, next_ = f"h{used + 1}", f"h{used + 2}"
    size = steps(proof)
    if rule not in ("hyp", "true", "false", "contra") and size <= 9 and rng.random() < terms / size**0.5:
        return ["exact " + term(rng, proof, names, used)]
    if rule == "hyp":
        return ["assumption" if names[a[0]][1:].isdigit() and rng.random() < 0.15 else f"exact {names[a[0]]}"]
    if rule == "true":
        return [rng.choice(("trivial", "exact True.intro", "constructor"))]
    if rule == "false":
        return [
            "contradiction"
            if names[a[0]][1:].isdigit() and rng.random() < 0.5
            else f"exact {atomic(names[a[0]])}.elim"
        ]
    if rule == "contra":
        plain = (
            names[a[0]][1:].isdigit() and names[a[1]][1:].isdigit()
        )  # hypotheses that Lean's context has as such
        return ["contradiction" if plain and rng.random() < 0.3 else "exact " + term(rng, proof, names, used)]
    if rule == "intro":
        hyp, body = a
        if body[0] == "both" and body[1] == hyp and rng.random() < 0.5:
            return [f"rintro ⟨{new}, {next_}⟩", *go(body[4], {body[2]: new, body[3]: next_}.items(), 2)]
        if body[0] == "cases" and body[1] == hyp and rng.random() < 0.4:
            arms = [go(part, {body[2]: new}.items(), 1) for part in body[3:]]
            return [f"rintro ({new} | {new})", *bullet(arms[0]), *bullet(arms[1])]
        lines = go(body, {hyp: new}.items(), 1)
        if lines[0].startswith("intro ") and rng.random() < 0.7:
            return [f"intro {new} {lines[0][6:]}", *lines[1:]]
        return [f"intro {new}", *lines]
    if rule == "split":
        if steps(a[0]) <= 3 and rng.random() < 0.2:
            return [f"refine ⟨{term(rng, a[0], names, used)}, ?_⟩", *go(a[1])]
        return [
            rng.choice(("constructor", "constructor", "refine ⟨?_, ?_⟩")),
            *bullet(go(a[0])),
            *bullet(go(a[1])),
        ]
    if rule in ("left", "right"):
        side = "inl" if rule == "left" else "inr"
        return [rng.choice((rule, rule, f"apply Or.{side}", f"refine Or.{side} ?_")), *go(a[0])]
    if rule == "both":
        if rng.random() < 0.3 * terms:
            return go(a[3], {a[1]: atomic(names[a[0]]) + ".1", a[2]: atomic(names[a[0]]) + ".2"}.items())
        how = rng.choice(("obtain ⟨{}, {}⟩ := {}", "obtain ⟨{}, {}⟩ := {}", "rcases {2} with ⟨{0}, {1}⟩"))
        return [how.format(new, next_, names[a[0]]), *go(a[3], {a[1]: new, a[2]: next_}.items(), 2)]
    if rule == "cases":
        arms = [go(part, {a[1]: new}.items(), 1) for part in a[2:]]
        if rng.random() < 0.3:
            arms = [
                [f"| {side} {new} =>", *("  " + line for line in arm)]
                for side, arm in zip(("inl", "inr"), arms)
            ]
            return [f"cases {names[a[0]]} with", *arms[0], *arms[1]]
        how = rng.choice(
            (f"rcases {names[a[0]]} with {new} | {new}", f"obtain {new} | {new} := {names[a[0]]}")
        )
        return [how, *bullet(arms[0]), *bullet(arms[1])]
    if rule == "have":
        rest = go(a[4], {a[1]: new}.items(), 1)
        typed = rng.random() < 0.3 or a[3][0] != "hyp"
        if a[3][0] != "hyp" and rng.random() < 0.5:
            return [
                f"have {new} : {text(a[2])} := by",
                *("  " + line for line in [f"apply {names[a[0]]}", *go(a[3])]),
                *rest,
            ]
        value = f"{names[a[0]]} {atomic(term(rng, a[3], names, used))}"
        return [f"have {new}{' : ' + text(a[2]) if typed else ''} := {value}", *rest]
    lines = [
        rng.choice((f"apply {names[a[0]]}", f"apply {names[a[0]]}", f"refine {names[a[0]]} ?_")),
        *go(a[1]),
    ]
    return lines if rule == "apply" else ["exfalso", *lines]


def theorem(seed, args):
    """One theorem from one seed: (formula, steps of its shortest proof found, [completions]) or None."""
    rng = random.Random(seed)
    size = rng.choices(
        range(args.min_size, args.max_size + 1),
        [args.decay**n for n in range(args.max_size - args.min_size + 1)],
    )[0]
    f = canonical(random_formula(rng, size, ATOMS[: rng.choice((2, 3, 3, 4))]), {})
    if truth(f) != 0xFFFF or sum(c.isalpha() for c in text(f)) < 2:
        return None
    proofs = {search(rng, {}, f, 0, frozenset(), [400]) for _ in range(args.searches)} - {None}
    if len(proofs) == 0 or (least := min(map(steps, proofs))) < args.min_steps:
        return None
    shortest = sorted(proofs, key=lambda proof: (steps(proof), repr(proof)))[:2]
    completions = []
    for _ in range(args.proofs):
        lines = tactics(rng, rng.choice(shortest), {}, 0, rng.choice((0.0, 0.3, 1.0, 2.0)))
        completions.append("".join("\n  " + line for line in lines))
    return f, least, sorted(set(completions))


def seeds_to_theorems(seeds, args):
    return [found for seed in seeds if (found := theorem(seed, args))]


def statement(f, name):
    atoms = " ".join(a for a in ATOMS if a in text(f).replace("True", "").replace("False", ""))
    return f"theorem {name} ({atoms} : Prop) : {text(f)} := by"


def main():
    parser = flags("Theorems and proofs of the embedded default, from a seed.")
    parser.add_argument("--out", default="toy", help="folder for train.jsonl and val.jsonl")
    parser.add_argument("--sft", default="runs/sft.jsonl", help="JSONL to write the supervised proofs to")
    parser.add_argument("--train", type=number(int, 1), default=3200, help="training problems")
    parser.add_argument("--val", type=number(int, 1), default=200, help="held-out problems")
    parser.add_argument(
        "--sft-theorems", type=number(int, 1), default=40000, help="theorems for supervised training"
    )
    parser.add_argument("--proofs", type=number(int, 1), default=4, help="proofs of each of them, at most")
    parser.add_argument(
        "--searches",
        type=number(int, 1),
        default=4,
        help="random searches a theorem; the two shortest proofs are kept",
    )
    parser.add_argument("--min-size", type=number(int, 1), default=3, help="least number of connectives")
    parser.add_argument("--max-size", type=number(int, 1), default=9, help="largest number of connectives")
    parser.add_argument(
        "--decay",
        type=number(float, 0, exclusive=True),
        default=0.7,
        help="how much rarer a formula one connective larger is drawn",
    )
    parser.add_argument(
        "--min-steps",
        type=number(int, 3),
        default=3,
        help="least number of rules in the shortest proof found",
    )
    parser.add_argument("--seed", type=number(int, 0), default=0, help="one seed for everything")
    parser.add_argument(
        "--workers", type=number(int, 1), default=2, help="processes for the search and for Lean"
    )
    args = parser.parse_args()

    wanted, chunk, found = args.train + args.val + args.sft_theorems, 2000, {}
    with ProcessPoolExecutor(args.workers) as pool, tqdm(total=wanted, desc="theorems") as bar:
        start = args.seed * 10**9
        while len(found) < wanted:
            jobs = [range(start + i * chunk, start + (i + 1) * chunk) for i in range(4 * args.workers)]
            start += len(jobs) * chunk
            for theorems in pool.map(seeds_to_theorems, jobs, [args] * len(jobs)):
                for f, _, completions in theorems:
                    found.setdefault(f, completions)
            bar.update(min(len(found), wanted) - bar.n)

    rng = random.Random(args.seed)
    rows = [
        {"id": f"t_{n:05d}", "sample": i, "statement": statement(f, f"t_{n:05d}"), "completion": completion}
        for n, (f, completions) in enumerate(list(found.items())[:wanted])
        for i, completion in enumerate(completions)
    ]
    rows = [row for row in verify_rows(rows, workers=args.workers, batch=256) if row["verdict"] == "proved"]
    ids = sorted({row["id"] for row in rows})  # a theorem none of whose proofs Lean accepts is gone
    rng.shuffle(ids)
    val, train = ids[: args.val], ids[args.val : args.val + args.train]
    statements = {row["id"]: row["statement"] for row in rows}
    for name, part in (("val", val), ("train", train)):
        write_jsonl(f"{args.out}/{name}.jsonl", ({"id": i, "statement": statements[i]} for i in part))
    held = {*val, *train}
    sft = [
        {"statement": row["statement"], "completion": row["completion"]}
        for row in rows
        if row["id"] not in held
    ]
    write_jsonl(args.sft, sft)
    print(
        f"{len(val)} val, {len(train)} train, {len(ids) - len(held)} theorems with {len(sft)} proofs for supervised training"
    )


if __name__ == "__main__":
    main()
