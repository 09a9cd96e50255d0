"""python -m pytest tests/test_verify.py   (real Lean through the wheel; about a minute)"""

import itertools
import json
import os
import random
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
from test_filter import CHEATS, needs_lean, row  # noqa: E402

import lib.lean
import lib.lean_file
import lib.verdicts
import verify  # noqa: E402
from lib import wheel  # noqa: E402


def judge(rows, **keys):
    return [out["verdict"] for out in verify.verify_rows(rows, progress=False, **keys)]


PROOFS = [
    ("p → p", "\n  intro h\n  exact h"),
    ("p → p", " intro h; exact h"),
    ("p → p", "\n  exact fun h => h"),
    ("p → q → p", "\n  intros\n  assumption"),
    ("p ∧ q → q ∧ p", "\n  rintro ⟨a, b⟩\n  exact ⟨b, a⟩"),
    ("p ∧ q → q ∧ p", "\n  intro h\n  constructor\n  · exact h.2\n  · exact h.left"),
    ("p ∨ q → q ∨ p", "\n  intro h\n  cases h with\n  | inl a => exact Or.inr a\n  | inr b => exact .inl b"),
    ("p ∨ q → q ∨ p", "\n  rintro (a | b)\n  · right; exact a\n  · left; exact b"),
    ("p ∨ q → q ∨ p", "\n  intro h\n  rcases h with a | b\n  right\n  exact a\n  left\n  exact b"),
    ("p ∨ q → q ∨ p", "\n  intro h\n  exact h.elim Or.inr Or.inl"),
    ("(p ↔ q) → q → p", "\n  intro h\n  obtain ⟨f, g⟩ := h\n  exact g"),
    ("(p ↔ q) → q → p", "\n  exact fun h => h.mpr"),
    ("p → ¬p → q", "\n  intro a b\n  exact absurd a b"),
    ("p → ¬p → q", "\n  intro a b\n  contradiction"),
    ("p → ¬p → q", "\n  intro a b\n  exfalso\n  apply b\n  exact a"),
    ("False → p", "\n  exact fun h => h.elim"),
    ("True ∧ True", "\n  trivial"),
    ("True ∨ p", "\n  left\n  trivial"),
    ("p ∧ q ↔ q ∧ p", "\n  constructor <;> exact fun h => ⟨h.2, h.1⟩"),
    ("p ∧ q → p", "\n  intro h\n  have a : p := h.1\n  show p\n  exact a"),
    ("p → q → p ∧ q", "\n  intro a b\n  refine ⟨?_, ?_⟩\n  all_goals first | exact a | exact b"),
    ("p → p", "\n  intro h\n  try left\n  (exact h)"),
    ("p → p", "\n  set_option maxRecDepth 1000 in\n  exact fun h => h"),
    ("p → p", "\n  exact aux\nwhere\n  aux (h : p) : p := h"),
    ("p → p", "\n  intro h -- sorry, #eval, theorem\n  exact h /- end /- axiom -/ -/\n"),
    ("p → p", "\n  intro axiomatic\n  exact axiomatic"),
    ("p → p", "\n  intro «h 1»\n  exact «h 1»"),
    ("p → p", "\n  exact id\n```\n \n"),
]
WRONG = [
    ("p → q", "\n  intro h\n  exact h"),
    ("p → p", "\n  intro h"),
    ("p → p", ""),
    ("p → p", "\n  skip"),
    ("p → p", "\n  exact no_such_name"),
    ("p → p", "\nintro h\nexact h"),
    ("p → p", "\n  intro h\n    exact h"),
    ("p → p", "\n  intro h\n exact h"),
    ("p → p", "\n  exact (fun h => h"),
    ("p → p", "\n  intro h\n  exact h\n  exact h"),
    ("p → q", "\n  exact thm p q r"),
    ("p → q", "\n  exact thm"),
    ("p ∨ q → p", "\n  intro h\n  cases h\n  assumption"),
    ("p → p", "\n  exact id\n```\nSo it holds."),
    ("p → p", "\n  begin\n  intro h\n  exact h"),
    ("p → q", "\n  repeat' constructor"),
]


@needs_lean
def test_honest_and_wrong_proofs_side_by_side():
    rows = [row(*one) for pair in itertools.zip_longest(PROOFS, WRONG) for one in pair if one]
    expected = [
        "proved" if one in PROOFS else "rejected"
        for pair in itertools.zip_longest(PROOFS, WRONG)
        for one in pair
        if one
    ]
    assert judge(rows, batch=100) == expected
    assert judge(rows, batch=7) == expected


@needs_lean
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_an_error_without_a_place_is_its_own_proofs(batch):
    """Lean puts the error of this one on the first line of the file."""
    statement = "(p ∧ q → False) → (True ∨ r ∨ p) ∨ (p → r)"
    rows = [row(*one) for one in PROOFS[:20]]
    rows[7:7] = [
        row(statement, "\n  intro h1\n  apply Or.inl\n  .2.elim"),
        row(statement, "\n  intro h1\n  exact .inl (.inl trivial)"),
    ]
    found = verify.verify_rows(rows, progress=False, batch=batch)
    assert [one["verdict"] for one in found] == ["proved"] * 7 + ["rejected"] + ["proved"] * 14
    assert "unsolved goals" in found[7]["message"]


def test_an_error_without_a_place_is_looked_for_where_the_header_has_no_verdict_yet(monkeypatch):
    monkeypatch.setattr(
        verify, "judge_once", lambda batch, *rest: ({}, [(batch, False)])
    )  # it died: to be judged again
    keys = [("", "theorem t : True := by", f" trivial -- {k}") for k in range(5)]
    assert verify.judge_misplaced(keys, True, "error", None, 1, None) == (
        {},
        [(keys[:2], True), (keys[2:], True)],
    )
    assert verify.judge_misplaced(keys[:1], True, "error", None, 1, None) == (
        {keys[0]: ("rejected", "error", 0.0)},
        [],
    )


@needs_lean
def test_remembered_verdicts_are_those_of_lean_and_never_of_another_way_to_judge(tmp_path, monkeypatch):
    rows, asked = [row(*one) for one in PROOFS[:9] + WRONG[:9] + PROOFS[-3:]], []

    def counting(batch, *rest):
        asked.append(len(batch))
        return verify.judge_batch(batch, *rest)

    lean, path = lib.lean.find_lean(), str(tmp_path / "verdicts.sqlite")
    plain, *others = (
        [
            (one["verdict"], one["message"])
            for one in verify.verify_rows(some, lean, batch=5, progress=False, judge=judge)
        ]
        for some, judge in (
            (rows, verify.judge_batch),
            (rows[:7], lib.verdicts.cached(path, counting)),
            (rows, lib.verdicts.cached(path, counting)),
            (rows, lib.verdicts.cached(path, counting)),
        )
    )
    assert others == [plain[:7], plain, plain] and sum(asked) == len(rows)
    monkeypatch.setattr(
        counting, "__module__", "__main__"
    )  # verify.py as a command knows what train.py has noted
    verify.verify_rows(rows, lean, progress=False, judge=lib.verdicts.cached(path, counting))
    assert sum(asked) == len(rows)
    weaker = lean._replace(
        command=["-DmaxHeartbeats=200" if "Heartbeats" in word else word for word in lean.command]
    )
    verify.verify_rows(rows[:5], weaker, progress=False, judge=lib.verdicts.cached(path, counting))
    assert sum(asked) == len(rows) + 5
    broken = [True]

    def flaky(batch, *rest):
        return (
            {key: ("error", "no verdict", 0.0) for key in batch}
            if broken
            else verify.judge_batch(batch, *rest)
        )

    assert (
        judge(rows[:9], judge=lib.verdicts.cached(path, flaky)) == ["error"] * 9
    )  # nothing of what another judge has said
    broken.clear()
    assert judge(rows, judge=lib.verdicts.cached(path, flaky)) == [verdict for verdict, _ in plain]


def test_a_file_that_holds_no_verdicts_is_named(tmp_path, capsys):
    (tmp_path / "v.sqlite").write_text("no database, but long enough to be looked at " * 40)
    with pytest.raises(SystemExit):
        lib.verdicts.cached(str(tmp_path / "v.sqlite"), verify.judge_batch)
    assert "v.sqlite (" in capsys.readouterr().err and "long enough" in (tmp_path / "v.sqlite").read_text()
    for path in (tmp_path, tmp_path / "no" / "v.sqlite"):
        with pytest.raises(SystemExit):
            lib.verdicts.cached(str(path), verify.judge_batch)


@needs_lean
def test_cheats_do_not_reach_their_neighbours():
    rows = [
        one
        for cheat in CHEATS
        for one in (row("p → q", cheat), row("p → p", f"\n  intro h{len(cheat)}\n  exact h{len(cheat)}"))
    ]
    assert judge(rows, batch=500) == ["rejected", "proved"] * len(CHEATS)


@needs_lean
@pytest.mark.parametrize(
    "proof",
    [
        "\n  sorry",
        "\n  exact sorryAx _ false",
        "\n  exact id\nend",
        "\n  exact id /- ",
        '\n  exact "',
        "\n  exact (id",
        "\n  exact id\n\ntheorem u : p := by sorry",
        "\n  exact fun",
        "\n  exact id)",
        "\n  exact ⟨",
        "\n  intro h\n  exact h\naxiom x : False",
        "\n  exact lcProof",
    ],
)
def test_without_the_filter_lean_itself_keeps_them_apart(proof, monkeypatch):
    """Second line of defence: the namespaces and the axiom list, with nothing stopped beforehand."""
    monkeypatch.setattr(verify, "forbidden", lambda text: None)
    honest = row("p → p", "\n  intro h\n  exact h")
    verdicts = judge([honest, row("p → q", proof), row("q → q", "\n  exact id")], batch=10)
    assert verdicts[1] != "proved" and verdicts[0] == "proved"


def formula(rng, depth):
    """A random formula as (Lean text, the truth function of p, q, r)."""
    if depth == 0 or rng.random() < 0.15:
        atom = rng.choice("pqr")
        return atom, lambda v: v[atom]
    kind = rng.choice("¬∧∨→→↔")
    left, f = formula(rng, depth - 1)
    right, g = formula(rng, depth - 1)
    if kind == "¬":
        return f"(¬{left})", lambda v: not f(v)
    value = {
        "∧": lambda v: f(v) and g(v),
        "∨": lambda v: f(v) or g(v),
        "→": lambda v: not f(v) or g(v),
        "↔": lambda v: f(v) == g(v),
    }[kind]
    return f"({left} {kind} {right})", value


def tautology(value):
    return all(value(dict(zip("pqr", bits))) for bits in itertools.product([False, True], repeat=3))


STEPS = """intro h|intro h k|intros|rintro ⟨h, k⟩|rintro (h | h)|exact h|exact k|exact h k|exact h.1|exact h.2|exact ⟨h, k⟩|exact id|exact thm|exact thm p q r
    apply h|apply k|constructor|left|right|exfalso|assumption|contradiction|trivial|obtain ⟨h, k⟩ := h|rcases h with h | k|cases h|refine ⟨?_, ?_⟩|skip
    all_goals assumption|try contradiction|constructor <;> intro h|exact Or.inl h|exact h.elim|exact absurd h k|· assumption|first | assumption | trivial|repeat' constructor
    have k := h|show p|exact fun h => h|exact fun h => h.1|exact False.elim h|intro h; exact h|exact (h|rfl|done|nofun""".replace(
    "\n    ", "|"
).split("|")
STEPS += [
    "repeat' (first | assumption | contradiction | intro h | constructor)",
    "intros <;> first | assumption | trivial | contradiction",
] * 3


@needs_lean
def test_no_false_statement_is_ever_proved():
    """5,000 random statements and proofs, the proofs partly mutations of honest ones; the truth table is the judge."""
    rng, rows, true = random.Random(0), [], []
    while len(rows) < 5000:
        goal, value = formula(rng, rng.choice([1, 1, 2, 2, 2, 3]))
        is_true = tautology(value)
        for _ in range(10):  # ten proofs of each
            lines = rng.choice(PROOFS)[1].split("\n")[1:] if rng.random() < 0.3 else []
            for _ in range(rng.randint(1, 4)):
                lines.insert(
                    rng.randint(0, len(lines)), " " * rng.choice([2] * 17 + [1, 3, 4]) + rng.choice(STEPS)
                )
            if rng.random() < 0.15:
                lines = ["  " + STEPS[-2]]
            rows.append(row(goal, "\n" + "\n".join(lines)))
            true.append(is_true)
    verdicts = judge(rows, batch=250)
    assert not [
        one for one, is_true, verdict in zip(rows, true, verdicts) if verdict == "proved" and not is_true
    ]
    assert set(verdicts) == {"proved", "rejected"} and verdicts.count("proved") > 20


@needs_lean
def test_classical_laws_are_not_provable_here():
    attempts = [
        "\n  exact Classical.em p",
        "\n  by_cases h : p",
        "\n  tauto",
        "\n  trivial",
        "\n  decide",
        "\n  exact em p",
        "\n  left\n  assumption",
        "\n  exact thm p q r",
        "\n  exact?",
        "\n  right\n  intro h\n  contradiction",
        "\n  intro h\n  apply h\n  intro k\n  exact absurd k h",
        "\n  exact propext",
        "\n  exact Classical.choice ⟨h⟩",
        "\n  classical\n  exact em p",
    ]
    assert set(
        judge([row(goal, proof) for goal in ("p ∨ ¬p", "((p → q) → p) → p", "¬¬p → p") for proof in attempts])
    ) == {"rejected"}


@needs_lean
def test_verdicts_do_not_depend_on_batch_or_neighbours():
    rows = (
        [row(*one) for one in PROOFS + WRONG]
        + [row("p → q", cheat) for cheat in CHEATS]
        + [row("p →", "\n  exact id")]
    )
    rows += [row("p → p", f"\n  intro x{n}\n  exact x{n % 7}") for n in range(60)]
    expected = judge(rows, batch=1000)
    assert {"proved", "rejected", "error"} == set(expected)
    for size in (1, 7, 64):
        order = random.Random(size).sample(range(len(rows)), len(rows) if size > 1 else 40)
        assert judge([rows[i] for i in order], batch=size) == [expected[i] for i in order]


@needs_lean
def test_duplicates_are_verified_once_and_order_is_kept(monkeypatch):
    sent = []
    run = lib.lean.run_lean
    monkeypatch.setattr(
        lib.lean_file, "run_lean", lambda source, *rest: sent.append(source) or run(source, *rest)
    )
    rows = [
        row("p → p", "\n  exact id", id=n) if n % 2 else row("p → q", "\n  exact id", id=n) for n in range(20)
    ]
    out = verify.verify_rows(rows, progress=False)
    assert [one["id"] for one in out] == list(range(20)) and [one["verdict"] for one in out] == [
        "rejected",
        "proved",
    ] * 10
    assert sum(source.count("exact id") for source in sent) == 2
    assert [one["reward"] for one in out[:2]] == [0.0, 1.0] and "_c" not in out[0]["message"]


@needs_lean
def test_one_process_for_a_batch_of_many_errors(monkeypatch):
    """A recent Lean would stop after 100 of them."""
    sources, run = [], lib.lean.run_lean
    lean = lib.lean.find_lean()
    monkeypatch.setattr(
        lib.lean_file, "run_lean", lambda source, *rest: sources.append(source) or run(source, *rest)
    )
    assert (
        judge([row("p → q", f"\n  intro h{n}\n  exact h{n}") for n in range(150)], lean=lean, batch=150)
        == ["rejected"] * 150
    )
    assert len(sources) == 1


@needs_lean
def test_a_statement_with_an_attribute_is_refused():
    """Its copies in a batch would prove each other, the one with sorry too."""
    out = verify.verify_rows(
        [{"statement": "@[simp] theorem thm (p : Prop) : p → p := by", "completion": " exact id"}],
        progress=False,
    )
    assert out[0]["verdict"] == "error" and "attribute" in out[0]["message"]


@needs_lean
def test_axioms_are_listed_by_their_full_names():
    """`open` must neither make a trusted axiom look unknown nor an unknown one trusted."""
    header = lib.lean.TOY_HEADER + "namespace Other\naxiom propext : False\nend Other\nopen Other\n"
    lean = lib.lean.find_lean()._replace(header=header)
    out = verify.verify_rows([row("p → q", "\n  exact propext.elim")], lean, progress=False)
    assert (out[0]["verdict"], out[0]["message"]) == ("rejected", "axioms: Other.propext")


@needs_lean
def test_a_bad_statement_is_no_wrong_proof():
    out = verify.verify_rows(
        [
            row("p → nonsense", "\n  exact id"),
            row("p → p", "\n  exact id"),
            row("(p", "\n  exact id"),
            {"statement": "example : True := by", "completion": " trivial"},
        ],
        progress=False,
    )
    assert [one["verdict"] for one in out] == ["error", "proved", "error", "error"]
    assert out[0]["reward"] is None and out[0]["message"].startswith("bad statement: ")


def test_fence_and_truncation(monkeypatch):
    assert verify.proof_or_verdict(row("p", "\n  trivial\n```\n")) == ("\n  trivial\n", None)
    assert verify.proof_or_verdict(row("p", "\n  trivial\n```\nmore"))[1] == (
        "rejected",
        "text after the closing fence",
    )
    assert verify.proof_or_verdict(row("p", "\n  trivial"))[1] is None
    assert verify.proof_or_verdict(row("p", "\n  trivial", template="deepseek"))[1] == (
        "rejected",
        "no closing fence",
    )
    assert "truncated" in verify.proof_or_verdict(row("p", "\n  trivial", finish_reason="length"))[1][1]


@needs_lean
def test_a_bad_statement_is_an_error_for_every_row_of_it():
    """Also for those that Lean would not have to be asked about: nobody's wrong proof, so no row of it counts."""
    bad = {"statement": "theorem bad (p : Prop) : 1 + 1 = p := by"}
    rows = [
        dict(bad, completion="\n  sorry"),
        dict(bad, completion=" trivial", finish_reason="length"),
        row("p → p", "\n  sorry"),
        dict(row("p → p", "\n  exact id"), finish_reason="length"),
    ]
    assert judge(rows) == ["error", "error", "rejected", "rejected"]


@needs_lean
def test_a_statement_may_begin_anywhere_in_its_line():
    proof = "\n" + " " * 10 + "intro h\n" + " " * 10 + "exact h"
    statements = [
        "  theorem thm (p : Prop) : p → p := by",
        "/- c -/ theorem thm (p : Prop) : p → p := by",
        "theorem thm (p : Prop) :\n    p → p := by\n",
    ]
    assert (
        judge([{"statement": statement, "completion": proof} for statement in statements]) == ["proved"] * 3
    )


def test_a_lean_that_cannot_run_is_refused(tmp_path):
    lean = tmp_path / "lean"
    lean.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "Lean (version 4.20.0)" && exit\necho boom: no library\nexit 1\n'
    )
    lean.chmod(0o755)
    (tmp_path / "in").write_text(GOOD, encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            os.path.join(HERE, "verify.py"),
            str(tmp_path / "in"),
            "--out",
            str(tmp_path / "out"),
            "--lean",
            str(lean),
            "--header",
            "",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "boom" in done.stderr and not (tmp_path / "out").exists()


@needs_lean
def test_what_the_verifier_could_not_judge_is_told(tmp_path):
    (tmp_path / "in").write_text(
        json.dumps(row("p → nonsense", "\n  exact id", header="import Mathlib")), encoding="utf-8"
    )
    done = subprocess.run(
        [
            sys.executable,
            os.path.join(HERE, "verify.py"),
            str(tmp_path / "in"),
            "--out",
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 0
        and "no verdict on 1 rows" in done.stderr
        and "bad statement" in done.stderr
        and "its own header" in done.stderr
    )


GOOD = json.dumps(row("p → p", "\n  exact id"))


@pytest.mark.parametrize(
    "content, flags, words",
    [
        (None, [], "cannot read"),
        ("", [], "no rows"),
        (GOOD + "\n{", [], "line 2"),
        ('{"statement": "x"}', [], "'completion' is missing"),
        ('{"statement": "theorem x : True", "completion": ""}', [], "line 1: the statement"),
        ('{"statement": "x := by", "completion": 3}', [], "line 1: 'completion'"),
        (GOOD, ["--workers", "0"], "at least 1"),
        (GOOD, ["--timeout", "nan"], "timeout"),
        (GOOD, ["--nonsense"], "nonsense"),
        (GOOD, ["--lean", "no-such-lean x"], "no-such-lean"),
        (GOOD, ["--lean", ""], "no command"),
        (GOOD, ["--out", "/no/such/folder/x"], "cannot write"),
        (GOOD, ["--out", "."], "cannot write"),
        (GOOD, ["--lean", "'x"], "quotation"),
        (GOOD, ["--header", "import Nothing"], "--header"),
        (GOOD, ["--timeout", "inf"], "finite"),
        (GOOD, ["--out", "{rows}"], "another --out"),
        (GOOD, ["--lean", "false"], "does not run"),
    ],
)
def test_bad_input_is_one_sentence(content, flags, words, tmp_path):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            os.path.join(HERE, "verify.py"),
            str(path),
            "--out",
            str(tmp_path / "out"),
            *[flag.format(rows=path) for flag in flags],
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_missing_wheel_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(wheel, "library", lambda: None)
    with pytest.raises(SystemExit) as stop:
        lib.lean.find_lean("auto")
    assert stop.value.code == 2 and "install" in capsys.readouterr().err


@needs_lean
def test_command_line(tmp_path):
    (tmp_path / "in").write_text(GOOD + "\n", encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            os.path.join(HERE, "verify.py"),
            str(tmp_path / "in"),
            "--out",
            str(tmp_path / "out"),
            "--workers",
            "1",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "1 proved" in done.stdout
    assert json.loads((tmp_path / "out").read_text())["reward"] == 1.0


@needs_lean
def test_a_statement_beyond_the_prelude_says_what_it_knows():
    row = {"statement": "theorem a (x : Nat) : x + 0 = x := by", "completion": "\n  rfl"}
    (out,) = verify.verify_rows([row], progress=False)
    assert out["verdict"] == "error" and out["message"].startswith("bad statement")
    assert out["message"].endswith("(the wheel's Lean knows only Prelude.lean: see --project, --lean)")
