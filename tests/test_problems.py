"""Tests of tools/problems.py: every format, every reason to leave a row out, held-out files, headers, bad files."""

import json
import os
import random
import re
import subprocess
import sys
import time

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tools"))
import problems  # noqa: E402

from lib.lean import HEADER  # noqa: E402
from lib.lexer import forbidden, theorem_name  # noqa: E402
from sample import read_problems  # noqa: E402

RELEASE = {
    "data_source": "lean",
    "prompt": [{"content": "", "role": "user"}],
    "split": "train",
    "theorem_full_name": "r_1",
    "theorem_statement": "theorem r_1 (n : ℕ) : n = n   := by\n",
    "informal_statement": "/-- Equal. -/\n",
    "src_context": "import MiniF2F.Minif2fImport\n  open BigOperators Real Nat Topology\n",
    "extra_info": {"index": 0},
}
MINIF2F = {
    "name": "m_1",
    "split": "test",
    "informal_prefix": "/-- Sum. -/\n",
    "goal": "⊢ 1 + 1 = 2",
    "formal_statement": "theorem m_1 :\n  1 + 1 = 2 := by\n",
    "header": "import Mathlib\nset_option maxHeartbeats 0\n\n",
}
WORKBOOK = {
    "natural_language_statement": "Prove $a = a$",
    "answer": "",
    "tags": ["equality"],
    "split": "lean_workbook",
    "formal_statement": "theorem lean_workbook_0 (a : ℝ) : a = a  :=  by sorry",
    "proof": [],
}
STEPS = {
    "id": "lean_workbook_7",
    "status": "proved",
    "tactic": "rfl",
    "state_before": "⊢ 3 = 3",
    "state_after": "no goals",
    "natural_language_statement": "",
    "answer": "",
    "formal_statement": "theorem lean_workbook_7 : 3 = 3 := by sorry",
}
OWN = {"id": "o_1", "statement": "theorem o_1 (p : Prop) (h : p) : p := by", "level": 3}


def write(path, rows):
    """Rows as parquet, JSON list or JSONL, by the ending."""
    if path.suffix == ".parquet":
        pyarrow, _ = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(monkeypatch, *arguments):
    """main() in this process: the exit code."""
    monkeypatch.setattr(sys, "argv", ["problems.py", *map(str, arguments)])
    try:
        problems.main()
    except SystemExit as end:
        return end.code
    return 0


def rows_of(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


@pytest.mark.parametrize("ending", ["parquet", "json", "jsonl"])
@pytest.mark.parametrize(
    "row, expected",
    [
        (
            RELEASE,
            {
                "id": "r_1",
                "statement": "theorem r_1 (n : ℕ) : n = n := by",
                "header": HEADER,
                "informal": "/-- Equal. -/\n",
            },
        ),
        (
            MINIF2F,
            {
                "id": "m_1",
                "statement": "theorem m_1 :\n  1 + 1 = 2 := by",
                "header": HEADER,
                "informal": "/-- Sum. -/\n",
            },
        ),
        (
            WORKBOOK,
            {
                "id": "lean_workbook_0",
                "statement": "theorem lean_workbook_0 (a : ℝ) : a = a := by",
                "header": HEADER,
                "informal": "Prove $a = a$",
            },
        ),
        (
            STEPS,
            {"id": "lean_workbook_7", "statement": "theorem lean_workbook_7 : 3 = 3 := by", "header": HEADER},
        ),
        (OWN, OWN),
    ],
)
def test_formats(tmp_path, monkeypatch, row, expected, ending):
    source = write(tmp_path / f"in.{ending}", [row]).rename(tmp_path / "some.file")  # its name says nothing
    assert run(monkeypatch, source, "--out", tmp_path / "out.jsonl") == 0
    assert rows_of(tmp_path / "out.jsonl") == [expected] == read_problems(tmp_path / "out.jsonl")
    assert rows_of(tmp_path / "out.skipped.jsonl") == []


def test_files_are_joined_and_split_chosen(tmp_path, monkeypatch, capsys):
    first = write(tmp_path / "a.jsonl", [MINIF2F, dict(MINIF2F, name="m_2", split="valid")])
    second = write(tmp_path / "b.json", [WORKBOOK, dict(RELEASE, split="test")])
    out = tmp_path / "out.jsonl"
    assert run(monkeypatch, first, second, "--out", out) == 0
    assert [row["id"] for row in rows_of(out)] == ["m_1", "m_2", "lean_workbook_0", "r_1"]
    assert run(monkeypatch, first, second, "--split", "test", "--out", out) == 0
    assert [row["id"] for row in rows_of(out)] == [
        "m_1",
        "r_1",
    ] and "2 rows, 2 problems" in capsys.readouterr().out
    assert run(monkeypatch, first, second, "--split", "none", "--out", out) == 2
    assert "0 rows with the split none" in capsys.readouterr().err


def test_header(tmp_path, monkeypatch):
    source, out = (
        write(tmp_path / "in.jsonl", [MINIF2F, WORKBOOK, OWN, dict(OWN, id="o_2", header="prelude")]),
        tmp_path / "out",
    )
    for arguments, expected in (
        ([], [HEADER, HEADER, None, "prelude"]),
        (["--header", "keep"], [MINIF2F["header"], HEADER, None, "prelude"]),
        (["--header", "import Mathlib\nopen Nat"], ["import Mathlib\nopen Nat"] * 4),
    ):
        assert run(monkeypatch, source, "--out", out, *arguments) == 0
        assert [row.get("header") for row in rows_of(out)] == expected
    opened = [set(re.search(r"open (.*)", header)[1].split()) for header in (RELEASE["src_context"], HEADER)]
    assert opened[0] <= opened[1]  # no name of the release's statements loses its namespace


REFUSED = "verify.py's filter: "


# fmt: off
@pytest.mark.parametrize("statement, reason", [
    (None, "no statement"),
    (" \n", "no statement"),
    (["theorem"], "no statement"),
    ("-- to do", "it does not end in ':= by'"),
    ("the last theorem", "it does not end in ':= by'"),
    ("theorem a : 1 = 1", "it does not end in ':= by'"),
    ("theorem a : 1 = 1 := rfl", "it does not end in ':= by'"),
    ("theorem a : 1 = 1 -- := by", "it does not end in ':= by'"),
    ("theorem a (h : 1 = 1 := by simp) : 1 = 1 := by simp", "it does not end in ':= by'"),  # the first := by is not the end
    ("theorem a : let x := 1; x = 1 := by simp", "it does not end in ':= by'"),
    ("example : 1 = 1 := by", "it holds no named theorem"),
    ("def a : 1 = 1 := by", "it holds no named theorem"),
    ("theorem (a : 1 = 1) : 1 = 1 := by", "it holds no named theorem"),
    ("lemma a : 1 = 1 := by simp\ntheorem b : 2 = 2 := by", "it holds several theorems"),
    ("theorem a : 1 = 1 := by simp\ntheorem b : 2 = 2 := by simp", "it holds several theorems"),
    ("theorem _root_.a : 1 = 1 := by", "its name starts with _root_: it would leave the verifier's namespace"),
    ("theorem a : 1 = 1 /- := by", "unterminated comment"),
    ('theorem a : "x = 1 := by', '" is never closed'),
    ("theorem a : «x = 1 := by", "« is never closed"),
    ("axiom x : False theorem a : 1 = 1 := by", REFUSED + "'axiom' begins a command"),
    ("def x : ℕ := sorry\ntheorem a : x = 1 := by", REFUSED + "'sorry' is not allowed"),
    ("open Nat\ntheorem a : 1 = 1 := by", REFUSED + "'open' without 'in' is a command"),
    ("set_option debug.skipKernelTC true in theorem a : 1 = 1 := by",
     REFUSED + "set_option is allowed for maxRecDepth, maxHeartbeats and their like, before a tactic"),
    ("@[simp] theorem a : 1 = 1 := by", "it carries an attribute; take that off"),
    ("#eval 1 theorem a : 1 = 1 := by", REFUSED + "# belongs to commands and metaprograms"),
    ("theorem a : Lean.ofReduceBool = 1 := by", REFUSED + "'Lean.ofReduceBool' is not allowed"),
    ("theorem a :\u200b 1 = 1 := by", REFUSED + "character U+200B is not allowed"),
    ("theorem a :\t1 = 1 := by", REFUSED + "character U+0009 is not allowed"),
])
def test_reasons(statement, reason):
    found, report = problems.convert([("f", 7, {"name": "a", "formal_statement": statement})])
    [entry] = report
    assert not found and entry["reason"] == reason and not entry["kept"]
    assert (entry["file"], entry["row"], entry["id"]) == ("f", 7, "a")
# fmt: on


# fmt: off
@pytest.mark.parametrize("statement, written", [
    ("theorem a : 1 = 1 := sorry", "theorem a : 1 = 1 := by"),
    ("theorem a : 1 = 1 :=\n by\n  sorry\n", "theorem a : 1 = 1 := by"),
    ("theorem a : 1 = 1 := by\n  have h : 1 = 1 := by simp\n  exact h", "theorem a : 1 = 1 := by"),
    ("theorem a (h : 1 = 1 := by simp) : 1 = 1 := by", None),
    ("/-- A theorem: see lemma b. -/\ntheorem a\n(n : ℕ) : n ! = 1 := by", None),  # a line at the margin is no command here
    ("theorem a (f : A → B) (C : Set B) : f ⁻¹' C = f⁻¹' C := by", None),
    ("def double (n : ℕ) : ℕ := n + n\n\ntheorem a : double 1 = 2 := by", None),
    ("theorem a : ∑ k : ℤ in Finset.Icc 1 12, k = 78 := by", None),  # old syntax stays
    ("theorem «a b» (sorry' : 1 = 1) : 1 = 1 := by", None),
])
def test_statements_that_stay(statement, written):
    [problem], report = problems.convert([("f", 1, {"formal_statement": statement})])
    assert not report and problem["statement"] == (written or statement)
    assert problem["id"] == theorem_name(problem["statement"])  # verify.py takes it
# fmt: on


def test_half_a_surrogate_pair(tmp_path, monkeypatch):
    rows = [
        OWN,
        dict(WORKBOOK, natural_language_statement="a \ud835 b"),
        dict(MINIF2F, formal_statement="theorem \ud835 : by"),
    ]
    assert (
        run(monkeypatch, write(tmp_path / "in.json", rows), "--out", tmp_path / "out.jsonl") == 0
    )  # json escapes it
    assert [row.get("informal") for row in rows_of(tmp_path / "out.jsonl")] == [
        None,
        "a \ufffd\ufffd\ufffd b",
    ]


def test_disproved():
    [entry] = problems.convert([("f", 1, dict(STEPS, status="disproved"))])[1]
    assert entry["reason"] == "its status is disproved"


def test_duplicates_and_ids(tmp_path, monkeypatch, capsys):
    rows = [
        {"id": name, "statement": f"theorem {name} : {statement} := by"}
        for name, statement in [
            ("a", "1 = 1"),
            ("a", "1  =\n 1 /- again -/"),
            ("a", "2 = 2"),
            ("b", "1 = 1"),
            ("a", "3 = 3"),
            ("a_2", "4 = 4"),
        ]
    ]
    assert run(monkeypatch, write(tmp_path / "in.json", rows), "--out", tmp_path / "out.jsonl") == 0
    found = rows_of(tmp_path / "out.jsonl")
    assert [(row["id"], row["statement"]) for row in found] == [
        ("a", "theorem a : 1 = 1 := by"),
        ("a_2", "theorem a : 2 = 2 := by"),
        ("b", "theorem b : 1 = 1 := by"),
        ("a_3", "theorem a : 3 = 3 := by"),
        ("a_2_2", "theorem a_2 : 4 = 4 := by"),
    ]
    assert [
        (entry["row"], entry["kept"], entry["reason"]) for entry in rows_of(tmp_path / "out.skipped.jsonl")
    ] == [
        (2, False, "duplicate in id and statement"),
        (3, True, "another statement has its id, renamed: a_2"),
        (4, True, "same statement but for the name: a"),
        (5, True, "another statement has its id, renamed: a_3"),
        (6, True, "another statement has its id, renamed: a_2_2"),
    ]
    assert read_problems(tmp_path / "out.jsonl") == found
    printed = capsys.readouterr().out.splitlines()
    assert (
        printed[0].startswith("6 rows, 5 problems")
        and "  1 left out, duplicate in id and statement: a" in printed
    )
    assert "  3 kept, another statement has its id, renamed: a, a, a_2" in printed


def test_without(tmp_path, monkeypatch):
    rows = [
        dict(WORKBOOK, formal_statement=f"theorem w_{k} (n : ℕ) : n + {k} = {k} + n := by sorry")
        for k in range(4)
    ]
    held_out = write(
        tmp_path / "val.jsonl",
        [
            {
                "name": "other",
                "formal_statement": "theorem other\n  (n : ℕ) :\n  n + 1 = 1 + n := by\n",
            },  # name and white space
            {"name": "w_2", "formal_statement": "theorem w_2 (m : ℕ) : m + 2 = 2 + m := by\n"},
        ],
    )  # another variable is another text
    more = write(
        tmp_path / "test.parquet",
        [dict(RELEASE, theorem_statement="lemma x (n : ℕ) : n + 3 = 3 + n := by\n")],
    )
    assert (
        run(
            monkeypatch,
            write(tmp_path / "in.json", rows),
            "--without",
            held_out,
            more,
            "--out",
            tmp_path / "out.jsonl",
        )
        == 0
    )
    assert [row["id"] for row in rows_of(tmp_path / "out.jsonl")] == ["w_0", "w_2"]
    assert [entry["reason"] for entry in rows_of(tmp_path / "out.skipped.jsonl")] == [
        f"held out: other of {held_out}",
        f"held out: r_1 of {more}",
    ]


def test_the_filter_is_asked_wherever_it_would_object(monkeypatch):
    """The shortcut past lib.lexer.forbidden hides nothing: random words, hostile ones among them."""
    rng = random.Random(0)
    words = [
        "n",
        "x₀",
        "ℝ",
        "f⁻¹",
        "h.1",
        "λ",
        "λsorry",
        "é'",
        "sorry",
        "Foo.sorryAx",
        "«sorry»",
        "stop!",
        "#",
        "`x",
        '"{x}"',
        "@[",
        "axiom",
        "local",
        "open",
        "set_option",
        "maxRecDepth",
        "in",
        "≤",
        "\u00a0",
        "\r",
        "\u202e",
        "¹'",
        "s.card",
        "/-! x -/",
    ]
    asked = []
    monkeypatch.setattr(problems, "forbidden", lambda text: asked.append(text))
    for _ in range(3000):
        statement = (
            f"theorem a : {' '.join(rng.choices(words[:9] if rng.random() < 0.5 else words, k=3))} := by"
        )
        asked.clear()
        try:
            statement = problems.check(statement)[0]
        except ValueError:
            continue
        assert asked or forbidden(statement.removeprefix("theorem ")) is None, statement


def test_many_rows_take_seconds():
    rows = [
        (
            "f",
            k,
            dict(
                WORKBOOK,
                formal_statement=f"theorem lean_workbook_{k} (a b c : ℝ) (ha : 0 < a) (hb : 0 < b) : "
                f"a ^ 2 + b ^ 2 + {k} ≥ 2 * a * b := by sorry",
            ),
        )
        for k in range(3000)
    ]
    started = time.process_time()
    assert len(problems.convert(rows)[0]) == 3000
    assert time.process_time() - started < 3  # 0.3 s here


# fmt: off
@pytest.mark.parametrize("content, words", [
    (None, ["cannot read", "No such file"]),
    ("FOLDER", ["cannot read", "directory"]),
    (b"", ["no column", "nothing"]),
    (b"[]", ["no column", "nothing"]),
    (b"{]", ["line 1", "JSON"]),
    (b'[{"formal_statement": "x"}, ', ["cannot read", "JSON"]),
    (b'[{"formal_statement": NaN}]', ["cannot read"]),
    (b"[1, 2]", ["no column"]),
    (b"\xff\xfe\x00", ["cannot read", "UTF-8"]),
    (b"[\xff]", ["cannot read", "utf-8"]),
    (b'{"theorem": "x", "name": "y"}\n', ["no column", "theorem, name", "PROBLEMS.md"]),
    (b'{"formal_statement": "example : 1 = 1 := by"}\n', ["no problem is left of 1 rows", "out.skipped.jsonl"]),
    (b"PAR1 and nothing", ["cannot read", "pip install pyarrow"]),
])
def test_bad_files(tmp_path, monkeypatch, capsys, content, words):
    source = tmp_path / "in.jsonl"
    if content == "FOLDER":
        source.mkdir()
    elif content is not None:
        source.write_bytes(content)
    assert run(monkeypatch, source, "--out", tmp_path / "out.jsonl") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and all(word in error for word in words)
    assert not (tmp_path / "out.jsonl").exists()
# fmt: on


def test_bad_arguments(tmp_path, monkeypatch, capsys):
    source = write(tmp_path / "in.jsonl", [MINIF2F])
    for arguments, words in (
        (["--out", tmp_path / "no" / "out.jsonl"], "cannot write"),
        ([], "--out"),
        (["--out", "x", "--header", "h.lean"], "cat"),
        (["--out", "x", "--without", tmp_path / "none.jsonl"], "none.jsonl"),
    ):
        assert run(monkeypatch, source, *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and words in error


def test_parquet_without_pyarrow(tmp_path, monkeypatch, capsys):
    source = write(tmp_path / "in.parquet", [RELEASE])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert run(monkeypatch, source, "--out", tmp_path / "out.jsonl") == 2
    assert "pip install pyarrow" in capsys.readouterr().err


def test_command(tmp_path):
    source = write(tmp_path / "in.jsonl", [MINIF2F])
    command = [
        sys.executable,
        os.path.join(ROOT, "tools", "problems.py"),
        source,
        "--out",
        tmp_path / "out.jsonl",
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0 and not result.stderr and "1 rows, 1 problems" in result.stdout


# ---- statements that do not say what was meant ----


def remark(statement, **keys):
    """What is said of one statement, or None."""
    problems_found, report = problems.convert([("f", 1, {"formal_statement": statement})], **keys)
    assert len(problems_found) + len([entry for entry in report if not entry["kept"]]) == 1
    return report[0]["reason"] if report else None


# fmt: off
@pytest.mark.parametrize("index, rest", [
    ("k", "(n : ℕ) : (∏ k in Icc 1 n, 1 + (1 : ℝ) / 2 ^ k) < 3"), ("k", "(a d : ℝ) (h : (∑ k in range 5, a + k * d) = 70) : a = 42"),
    ("k", ": (∏ k ∈ range 7, 2 ^ k + 3 ^ k) = 3"), ("i", "(x y : ℕ → ℕ) (h : ∑ i in range 5, x i ≥ y i) : y 0 ≤ 9"),
    ("k", "(s : ℝ) : ∃ c, ∑ k in range 9, c - (k : ℝ) = s"), ("i", ": ∑ i, ∑ j, f i j - f j i = 0"), ("x", "(a : ℕ) : |∑ x in range a, 2 * x + 1 + x| ≤ 3"),
    ("k", ": {n : ℕ | (∑ k in range n, 1 + k) = 3} = {2}"), ("k", "(h : ∀ n, (∑ k in range n, n + k) = f n) : f 2 = 1")])
def test_an_index_that_leaves_its_sum(index, rest):
    reason = f"an index leaves its sum or product, put the body in brackets: {index}"
    assert remark(f"theorem a {rest} := by") == reason
    assert problems.convert([("f", 1, {"formal_statement": f"theorem a {rest} := by"})], drop_defective=True)[0] == []
# fmt: on


# fmt: off
@pytest.mark.parametrize("rest", [
    "(n : ℕ) : (∏ k in Icc 1 n, (1 + (1 : ℝ) / 2 ^ k)) < 3", "(n k : ℕ) : ∑ k in range n, k + k = 3", "(n : ℕ) : (∑ k in range n, 2 * k) + 1 = n",
    "(n : ℕ) : ∑ k in range n, k = ∑ k in range n, k + 1", "(x : ℕ → ℝ) : ∑ i in range 9, |x i - 1| ≤ 3 ∧ ∑ i in range 9, ‖x i + 1‖ ≤ ⌊x 2⌋",
    "(x : ℕ → ℝ) : (∑ i, x i) ^ 2 ≤ 3 * ∑ i, x i ^ 2 ∧ ∀ i, x i ≤ 3 ∧ 2 = x i", "(n : ℕ) : ∑ i, (∏ j, if j ≠ i then x j else 0) ≤ 1",
    "(S : Finset ℕ) (h : ∀ n, n ∈ S ↔ ∃ m, (∑ p in m.divisors, p) = n) : ∑ k in S, k = ∑ k in S, k", "(n : ℕ) : ∑ k in {k ∈ range n | 2 < k}, f k = 3",
    "(n : ℕ) : ∑ i in range n, ∏ j in range i, (i + j) = ∑ x : Fin n, (fun j => j + x) 3", "(f : ℕ → ℕ) (h : f = fun k => ∑ i in range k, i + k) : f 0 = 0"])
def test_an_index_that_stays(rest):
    assert remark(f"theorem a {rest} := by") is None
# fmt: on


def test_defective_statements_are_kept_unless_asked(tmp_path, monkeypatch, capsys):
    escaped = {"id": "e", "statement": "theorem e : (∏ k in range 7, 2 ^ k + 3 ^ k) = 3 := by"}
    known = {
        "id": "mathd_algebra_314",
        "statement": "theorem mathd_algebra_314 (n : ℕ) : (1 / 4) ^ (n + 1) = 1 / 4 := by",
    }
    source, out = write(tmp_path / "in.json", [escaped, known, OWN]), tmp_path / "out.jsonl"
    assert run(monkeypatch, source, "--out", out) == 0 and rows_of(out) == [escaped, known, OWN]
    printed = capsys.readouterr().out
    assert "  1 kept, an index leaves its sum or product, put the body in brackets: e" in printed
    assert "  1 kept, known to be defective: mathd_algebra_314" in printed and "row by row" in printed
    assert run(monkeypatch, source, "--drop-defective", "--out", out) == 0 and rows_of(out) == [OWN]
    assert "  1 left out, known to be defective: mathd_algebra_314" in capsys.readouterr().out
    assert [entry["kept"] for entry in rows_of(tmp_path / "out.skipped.jsonl")] == [False, False]
    assert run(monkeypatch, write(tmp_path / "in.json", [OWN]), "--out", out) == 0
    assert capsys.readouterr().out == f"1 rows, 1 problems in {out}\n"
