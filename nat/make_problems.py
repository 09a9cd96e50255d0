"""Makes theorems about natural numbers, and the proofs that a base prover learns from, all from one seed.

    python nat/make_problems.py --out nat --sft runs/nat-sft.jsonl --seed 0 --workers 2

A random equation, with or without hypotheses, is rewritten at random -> a randomised search finds proofs of
what it has become -> Lean, whose verdict alone counts. Writes train.jsonl and val.jsonl (id, statement, kind,
steps: those of the shortest proof found), and a file to learn from (statement, completion): other theorems,
rewritten less, so easier. No two theorems are equal up to renaming variables, the sides of = and the order of
hypotheses.

A term is a variable "a", a numeral "2" or a tuple ("+", A, B), with * and ^ likewise; an equation is
("=", A, B). A pattern is a term with variables "?n".
"""

import ast
import functools
import heapq
import itertools
import math
import os
import random
import re
import sys
from typing import NamedTuple

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
from lib.cli import flags, number  # noqa: E402
from lib.lean import find_lean  # noqa: E402
from lib.theorems import add_flags, find_theorems, write_theorems  # noqa: E402
from verify import verify_rows  # noqa: E402

VARIABLES = "abcd"
OPERATORS = {ast.Add: "+", ast.Mult: "*", ast.Pow: "^"}
# Lean's precedence of an operator, and the least precedence of its left and right side without parentheses.
PRECEDENCE = {"=": (50, 51, 51), "+": (65, 65, 66), "*": (70, 70, 71), "^": (75, 76, 75)}
KINDS = {"identity": 30, "hypothesis": 25, "cancel": 20, "power": 15}  # of theorems, and how often
# The habit: how often the search tries a rule, where any other lemma counts 1.
HABIT = """ih 20 h 8 add_comm 8 mul_comm 8 add_assoc 4 mul_assoc 4 add_zero 4 mul_one 4 zero_add 3 one_mul 3
    mul_add 2 pow_succ 2 add_right_comm .5 mul_right_comm .5 add_add_add_comm .3 mul_mul_mul_comm .3"""
WEIGHTS = dict(zip(HABIT.split()[::2], map(float, HABIT.split()[1::2])))
# A power theorem is an instance of a law. Most need induction, since they are no lemmas here.
LAWS = """a ^ (b + c) = a ^ b * a ^ c; (a * b) ^ c = a ^ c * b ^ c; (a ^ 2) ^ c = a ^ c * a ^ c; 1 ^ c = 1
(a * a) ^ b = a ^ (2 * b); a ^ (b + b) = (a * a) ^ b; 2 ^ (c + 1) = 2 ^ c + 2 ^ c
a ^ (b + 2) = a * (a * a ^ b)"""
# A lemma that draws the conclusion u = v from a hypothesis with w; what `apply` has to be told is w.
CANCEL = {
    "add_left_cancel (n := {})": "w + u = w + v",
    "add_right_cancel (m := {})": "u + w = v + w",
    "eq_zero_of_add_eq_zero_left (n := {})": "w + u = 0",
    "eq_zero_of_add_eq_zero_right (m := {})": "u + w = 0",
}


# ---- terms ----


def parse(text):
    """The equation that a text says."""

    def term(node):
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)], term(node.left), term(node.right)
        return ast.unparse(node)

    sides = text.replace("^", "**").split("=")
    return "=", *(term(ast.parse(side.strip(), mode="eval").body) for side in sides)


def show(t, least=0):
    """Lean's text of a term or equation, in parentheses only if its precedence is below `least`."""
    if isinstance(t, str):
        return t
    level, left, right = PRECEDENCE[t[0]]
    out = f"{show(t[1], left)} {t[0]} {show(t[2], right)}"
    return f"({out})" if level < least else out


def leaves(t):
    return [t] if isinstance(t, str) else leaves(t[1]) + leaves(t[2])


def variables(terms):
    """The variables of some terms, in the order of their first occurrence."""
    return list(dict.fromkeys(leaf for t in terms for leaf in leaves(t) if leaf.isalpha()))


def substitute(t, values):
    if isinstance(t, str):
        return values.get(t, t)
    return t[0], substitute(t[1], values), substitute(t[2], values)


def subterms(t):
    """From the outside in, from left to right: the order in which rw looks for its pattern."""
    yield t
    if not isinstance(t, str):
        yield from subterms(t[1])
        yield from subterms(t[2])


def replace(t, old, new):
    """t with `new` in the place of every `old`, as rw does it."""
    if t == old:
        return new
    return t if isinstance(t, str) else (t[0], replace(t[1], old, new), replace(t[2], old, new))


def minus(t, count):
    """The term that gives t when a number is added to it, or None: to Lean, 2 and a + 2 are sums with 1."""
    if isinstance(t, str):
        return str(int(t) - count) if t.isdigit() and int(t) >= count else None
    rest = minus(t[2], count) if t[0] == "+" and isinstance(t[2], str) else None
    return t[1] if rest == "0" else rest and ("+", t[1], rest)


def match(pattern, t, bound):
    """Whether a term is an instance of a pattern; notes in `bound` what the pattern's variables stand for."""
    if isinstance(pattern, str):
        return bound.setdefault(pattern, t) == t if pattern[0] == "?" else pattern == t
    if pattern[0] == "+" and pattern[2] in ("0", "1"):
        rest = minus(t, int(pattern[2]))
        return rest is not None and match(pattern[1], rest, bound)
    return t[0] == pattern[0] and match(pattern[1], t[1], bound) and match(pattern[2], t[2], bound)


# ---- rules ----


class Rule(NamedTuple):
    """A lemma or hypothesis in one direction."""

    name: str
    told: tuple  # the variables of its explicit arguments
    arrow: str  # "← " from right to left
    left: object  # it rewrites this
    right: object


class Step(NamedTuple):
    """A rule for certain terms: it rewrites `old` into `new`."""

    old: object
    new: object
    rule: Rule
    bound: dict


def both_ways(name, told, equation):
    """An equation's rules, except what rw cannot do by itself, such as finding an n for 0 = n * 0."""
    _, left, right = equation
    rules = []
    for arrow, old, new in (("", left, right), ("← ", right, left)):
        complete = {leaf for leaf in leaves(new) if leaf[0] == "?"} <= set(leaves(old))
        if complete and not (isinstance(old, str) and (old[0] == "?" or old.isdigit())):
            rules.append(Rule(name, told, arrow, old, new))
    return rules


def read_rules():
    """The rules by the equations among the lemmas of Prelude.lean."""
    with open(f"{HERE}/Prelude.lean", encoding="utf-8") as file:
        prelude = file.read()
    found = re.findall(r"^theorem (Nat\.[\w']+) (.)([\w ]+) : Nat. : ([\w +*^=()]+) :=", prelude, re.M)
    rules = []
    for name, bracket, names, text in found:
        patterns = {word: "?" + word for word in names.split()}
        told = tuple(patterns.values()) if bracket == "(" else ()
        rules += both_ways(name, told, substitute(parse(text), patterns))
    return rules


RULES = read_rules()


@functools.lru_cache(50_000)
def steps_at(t):
    """The steps by the lemmas that rewrite a term as a whole."""
    found = []
    for rule in RULES:
        bound = {}
        if t[0] == rule.left[0] and match(rule.left, t, bound):
            found.append(Step(t, substitute(rule.right, bound), rule, bound))
    return found


def steps_from(t, rules=()):
    """All steps that rewrite something in a term, by the lemmas and by rules without variables."""
    inside = dict.fromkeys(subterms(t))
    found = [step for s in inside if not isinstance(s, str) for step in steps_at(s)]
    return found + [Step(rule.left, rule.right, rule, {}) for rule in rules if rule.left in inside]


def call(step, told):
    """The rule with its first `told` arguments."""
    return " ".join([step.rule.name, *(show(step.bound[v], 100) for v in step.rule.told[:told])])


def step_text(rng, step, goal):
    """The step as an argument of rw in this goal, or None. Mostly with all arguments: they fix the place."""
    most = len(step.rule.told)
    for told in [most] if rng.random() < 0.9 else range(most + 1):
        pattern = substitute(step.rule.left, {v: step.bound[v] for v in step.rule.told[:told]})
        fitting = (s for s in subterms(goal) if s == pattern or s[0] == pattern[0] and match(pattern, s, {}))
        if next(fitting, None) == step.old:
            return step.rule.arrow + call(step, told)
    return None


# ---- search ----


def connect(rng, left, right, rules, budget, one_way=False):
    """A random way between two terms: (steps from the left one, steps from the right one) to the same term.

    The cheapest open term is expanded next, `budget` of them at most. A step costs what its rule does: less
    for a frequent rule (HABIT), plus noise drawn anew in each search. one_way: from the left only."""
    costs = {}

    def cost(rule):
        if rule not in costs:
            weight = WEIGHTS.get(rule.name.removeprefix("Nat.").rstrip("12"), 1) * (0.5 if rule.arrow else 1)
            costs[rule] = max(0.5, 4 - math.log(weight) + rng.gauss(0, 0.5))
        return costs[rule]

    def way(side, t):
        steps = []
        while sides[side][t]:
            t, step = sides[side][t]
            steps.append(step)
        return steps[::-1]

    sides = {left: None}, {right: None}  # each term that was reached: the term before it and the step
    heap, order = [(0, 0, 0, left), (0, 1, 1, right)][: 2 - one_way], itertools.count(2)
    longest = 4 + max(len(leaves(left)), len(leaves(right)))
    if left == right:
        return [], []
    while heap and budget:
        spent, _, side, t = heapq.heappop(heap)
        budget -= 1
        for step in steps_from(t, rules):
            new = replace(t, step.old, step.new)
            if new not in sides[side] and len(leaves(new)) <= longest:
                sides[side][new] = t, step
                heapq.heappush(heap, (spent + cost(step.rule), next(order), side, new))
            if new in sides[1 - side]:
                return way(0, new), way(1, new)
    return None


def rewrite(rng, goal, ways):
    """Both ways as rewrites of a goal: ([(goal before it, step, its text)], the last goal)."""
    chain, last_first = [], rng.random() < 0.3
    for step in [*ways[last_first], *ways[not last_first]]:
        said = step_text(rng, step, goal)
        if said is None or goal[1] == goal[2]:
            break
        chain.append((goal, step, said))
        goal = replace(goal, step.old, step.new)
    return chain, goal


# ---- proofs: (number of steps, lines) or None ----


def rw_lines(chain, place=""):
    return [f"rw [{', '.join(said for _, _, said in chain)}]{place}"] if chain else []


def by_rewriting(rng, goal, rules, budget):
    if goal[1] == goal[2] or rng.random() < (0.2 if "0" in leaves(goal) else 0.02):
        return 1, ["rfl"]  # a guess: Lean will tell
    ways = connect(rng, goal[1], goal[2], rules, budget)
    chain, last = rewrite(rng, goal, ways) if ways else ([], goal)
    if last[1] != last[2]:
        return None
    (_, left, right), step, _ = chain[-1]
    if {left, right} != {step.old, step.new} or rng.random() < 0.6:
        return len(chain), rw_lines(chain)
    rule = call(step, len(step.rule.told))
    if bool(step.rule.arrow) == (left == step.old):  # the goal is the rule with its sides exchanged
        end = f"exact ({rule}).symm" if " " in rule else f"exact {rule}.symm"
    else:
        end = rng.choice((f"exact {rule}", f"apply {step.rule.name}"))
    return len(chain), [*rw_lines(chain[:-1]), end]


def by_cancelling(rng, goal, hypothesis, lemma, values, budget):
    """By a lemma of CANCEL, on the goal or on the rewritten hypothesis."""
    target = substitute(parse(CANCEL[lemma]), values)
    swapped = goal[1] != values["u"]
    if rng.random() < 0.3 and not swapped:
        found = by_rewriting(rng, target, both_ways("h", (), hypothesis), budget)
        return found and (1 + found[0], [f"apply Nat.{lemma}".format(show(values["w"])), *found[1]])
    ways = [connect(rng, hypothesis[side], target[side], (), budget // 2, one_way=True) for side in (1, 2)]
    chain, last = rewrite(rng, hypothesis, [way[0] for way in ways]) if all(ways) else ([], None)
    proof = f"Nat.{lemma.split()[0]} h"
    end = f"exact ({proof}).symm" if swapped else f"exact {proof}"
    return (1 + len(chain), [*rw_lines(chain, " at h"), end]) if last == target else None


def by_induction(rng, goal, rules, variable, budget):
    zero, successor = (substitute(goal, {variable: t}) for t in ("0", ("+", variable, "1")))
    base = by_rewriting(rng, zero, rules, budget)
    step = base and by_rewriting(rng, successor, rules + both_ways("ih", (), goal), budget)
    if not step:
        return None
    lines = [f"induction {variable} with"]
    for case, (_, block) in (("zero", base), (f"succ {variable} ih", step)):
        head = f"| {case} =>"
        lines += [f"{head} {block[0]}"] if len(block) == 1 else [head, *("  " + line for line in block)]
    return 1 + base[0] + step[0], lines


# ---- theorems ----


def random_term(rng, size, names):
    """A term with `size` leaves. Most variables leave the list `names`, so that few occur twice."""
    if size == 1:
        if rng.random() >= 0.85:
            return rng.choice("0112")
        name = rng.choice(names)
        if len(names) > 1 and rng.random() < 0.8:
            names.remove(name)
        return name
    op = rng.choices("+*^", (50, 42, 8))[0]
    if op == "^":
        return op, random_term(rng, size - 1, names), rng.choice([*names, "2"])
    split = rng.randrange(1, size)
    return op, random_term(rng, split, names), random_term(rng, size - split, names)


def walk(rng, t, most):
    """A term after some random steps, `most` or fewer: a random rule, then a random place for it."""
    seen = {t}
    for _ in range(rng.randint(0, most)):
        by_rule = {}
        for step in steps_from(t):
            new = replace(t, step.old, step.new)
            if new not in seen and len(leaves(new)) <= 10:
                by_rule.setdefault(step.rule, []).append(new)
        if by_rule:
            t = rng.choice(rng.choice(list(by_rule.values())))
            seen.add(t)
    return t


def random_theorem(rng, far):
    """(kind, hypotheses, goal, for by_cancelling: (lemma, values of u, v, w)) of a theorem that holds."""
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    names = VARIABLES[: rng.choice((3, 3, 4))]

    def term(*sizes):
        return random_term(rng, rng.choice(sizes), list(names))

    def walked(left, right):
        most = far // 3 if kind == "power" else far  # or the search finds no proof
        return "=", walk(rng, left, most), walk(rng, right, most)

    if kind == "cancel":
        lemma, form = rng.choice(list(CANCEL.items()))
        values = {v: term(1, 1, 2) for v in "uvw"} | ({"v": "0"} if "zero" in lemma else {})
        goal = ("=", values["u"], values["v"]) if rng.random() < 0.75 else ("=", values["v"], values["u"])
        return kind, [walked(*substitute(parse(form), values)[1:])], goal, (lemma, values)
    pairs, hypotheses = [], []
    if kind == "identity":
        pairs = [(t, t) for t in [term(2, 3, 3, 4, 5)]]
    if kind == "power":
        values = dict(zip("abc", rng.sample(VARIABLES[:3], 3)))
        values["a"] = random_term(rng, rng.choice((1, 1, 2)), [values["a"], "d"])
        pairs = [substitute(parse(rng.choice(re.split("[;\n]", LAWS))), values)[1:]]
    if kind == "hypothesis":
        pairs = [(term(1, 2, 3), term(1, 1, 2)) for _ in range(rng.choice((1, 1, 2)))]
        hypotheses = [("=", *pair) for pair in pairs]
    if kind == "hypothesis" or kind == "power" and rng.random() < 0.4:
        pairs.append((t := term(1, 1, 2), t))
    rng.shuffle(pairs)
    (left, right), *others = pairs
    for pair in others:
        op = "*" if kind == "power" else rng.choice("++*")
        left, right = (op, left, pair[0]), (op, right, pair[1])
    return kind, hypotheses, walked(left, right), None


def prove(rng, kind, hypotheses, goal, origin, budget):
    """A random proof: (steps, lines), or None. hypotheses: {name: equation}."""
    if origin:
        return by_cancelling(rng, goal, hypotheses["h"], *origin, budget)
    rules = [rule for name, equation in hypotheses.items() for rule in both_ways(name, (), equation)]
    places = [t[2] for t in subterms(goal) if t[0] == "^"] if kind == "power" else [goal]
    free = [v for v in variables(places) if v not in variables(hypotheses.values())]
    if free and rng.random() < (0.8 if kind == "power" else 0.1):
        return by_induction(rng, goal, rules, rng.choice(free), budget)
    return by_rewriting(rng, goal, rules, budget)


def canonical(hypotheses, goal):
    """One form for all theorems that are equal up to renaming, the sides of = and the order of hypotheses."""
    used, forms = variables([*hypotheses, goal]), []
    for order in itertools.permutations(VARIABLES, len(used)):
        names = dict(zip(used, order))
        *first, last = [sorted(show(substitute(s, names)) for s in e[1:]) for e in (*hypotheses, goal)]
        forms.append((sorted(first), last))
    return str(min(forms))


def theorem(seed, far, args):
    """(canonical form, (kind, statement without its name, [(completion, steps)])) from one seed, or None."""
    rng = random.Random(seed)
    kind, hypotheses, goal, origin = random_theorem(rng, far)
    equations = [*hypotheses, goal]
    names = dict(zip(variables(equations), VARIABLES))
    *hypotheses, goal = [substitute(e, names) for e in equations]
    if origin:
        origin = origin[0], {v: substitute(t, names) for v, t in origin[1].items()}
    dull = goal[1] == goal[2] or any(e[1] == e[2] or {*e} == {*goal} for e in hypotheses)
    if dull or not names:
        return None
    named = dict(zip(["h"] if len(hypotheses) == 1 else ["h1", "h2"], hypotheses))
    proofs = {}
    for tried in range(args.searches):
        found = prove(rng, kind, named, goal, origin, args.budget) if tried < 2 or proofs else None
        if found:
            proofs["".join("\n  " + line for line in found[1])] = found[0]
    if not proofs:
        return None
    binders = f"({' '.join(names.values())} : Nat)" + "".join(f" ({h} : {show(e)})" for h, e in named.items())
    chosen = rng.sample(sorted(proofs.items()), min(args.proofs, len(proofs)))
    return canonical(hypotheses, goal), (kind, f"{binders} : {show(goal)} := by", chosen)


def main():
    parser = flags("Theorems about natural numbers and proofs, from a seed.")
    count = number(int, 1)
    add_flags(parser, out="nat", sft="runs/nat-sft.jsonl", train=10000, val=400)
    parser.add_argument("--proofs", type=count, default=4, help="most proofs of a theorem")
    parser.add_argument("--searches", type=count, default=6, help="searches a theorem")
    parser.add_argument("--budget", type=count, default=400, help="terms that a search may open")
    parser.add_argument("--far", type=count, default=3, help="most random steps on each side of a problem")
    parser.add_argument("--near", type=count, default=2, help="the same for the theorems to learn from")
    args = parser.parse_args()

    near, far = (functools.partial(theorem, far=steps, args=args) for steps in (args.near, args.far))
    lessons = find_theorems(near, 20, args, args.sft_theorems)  # first: they do not depend on the problems
    enough = (args.train + args.val) * 11 // 10  # Lean rejects some
    problems = find_theorems(far, 20, args, enough, skip=5 * 10**8, known=dict(lessons))
    rows = []
    for n, (_, (kind, text, proofs)) in enumerate(lessons + problems):
        problem = {"id": f"n_{n:05d}", "statement": f"theorem n_{n:05d} {text}", "kind": kind}
        rows += [{**problem, "steps": steps, "completion": text} for text, steps in proofs]
    judged = verify_rows(rows, find_lean("auto", HERE), workers=args.workers, batch=256)
    judged.sort(key=lambda row: -row["steps"])  # so that a problem gets the steps of its shortest proof
    ids = {f"n_{n:05d}" for n in range(len(lessons))}
    write_theorems(judged, ("id", "statement", "kind", "steps"), args, lessons=ids)


if __name__ == "__main__":
    main()
