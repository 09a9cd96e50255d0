"""python -m pytest tests/test_isolation.py   (no row of a batch can touch another; nothing that a proof prints is believed)"""

import ast
import json
import os
import sys

import pytest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [HERE, os.path.join(HERE, "tests")]
from test_verify import needs_lean, row  # noqa: E402

import lib.lean  # noqa: E402
import lib.lean_file  # noqa: E402
import lib.verdicts  # noqa: E402
import verify  # noqa: E402
from lib.lexer import single_theorem  # noqa: E402

HONEST = row("p → q → p", "\n  intro a b\n  exact a")
FALSE = {"statement": "theorem t (p : Prop) : p := by", "completion": "\n  exact bad.elim"}
FREE = {"statement": "theorem t : p → p := by", "completion": "\n  exact fun h => h"}
OR = {"statement": "theorem t (p q : Prop) : p ∨ q → q ∨ p := by", "completion": "\n  exact symm"}
NEIGHBOURS = [HONEST, FALSE, FREE, OR, row("p → q", "\n  exact helper p q"), row("p → p", "\n  exact id")]
ALONE = ["proved", "rejected", "error", "rejected", "rejected", "proved"]
GOAL = "theorem s (p : Prop) : p → p := by"

# Statements that open, declare, set or leave something, and the verdict on `exact fun h => h` there.
STATEMENTS = [
    (f"section\nvariable (bad : False)\ninclude bad\n{GOAL}", "proved"),
    (f"section\nvariable (p q : Prop)\n{GOAL}", "proved"),
    (f"variable (p q : Prop) (bad : False)\n{GOAL}", "proved"),
    (f"section\nset_option maxRecDepth 2\n{GOAL}", "error"),
    (f"set_option maxHeartbeats 1\n{GOAL}", None),
    (f"namespace Or\n{GOAL}", "proved"),
    (f"open Or And Iff\n{GOAL}", "proved"),
    (f"open Or in\n{GOAL}", "proved"),
    (f"end\n{GOAL}", "error"),
    (f"end Or\n{GOAL}", "error"),
    (f"#exit\n{GOAL}", "error"),
    (f"universe u\n{GOAL}", "proved"),
    (f"theorem helper (p q : Prop) : p → q := sorry\n{GOAL}", "proved"),
    (f"axiom helper (p q : Prop) : p → q\n{GOAL}", "proved"),
    (f"axiom bad : False\n{GOAL}", "proved"),
    (f"def helper (p : Prop) : p → p := fun h => h\n{GOAL}", "proved"),
    (f"theorem id.helper (p q : Prop) (h : p) (k : q) : p := h\n{GOAL}", "proved"),
    (f"private theorem helper (p q : Prop) : p → p := fun h => h\n{GOAL}", "proved"),
    (f"attribute [local irreducible] Not\n{GOAL}", "proved"),
    (f"export Or (symm)\n{GOAL}", "proved"),
    (f"mutual\n{GOAL}", "error"),
    (f"private {GOAL}", "proved"),
    ("theorem _root_.s (p : Prop) : p → p := by", "proved"),
    ("theorem _root_.helper (p : Prop) : p → p := by", "proved"),
    ("theorem Or.symm2 (p : Prop) : p → p := by", "proved"),
    ("theorem «a name» (p : Prop) : p → p := by", "proved"),
    (f"/-- About s. -/\n{GOAL}", "proved"),
    (f"/- section -/\n{GOAL}", "proved"),
    ("theorem s (p : Prop) : p → /- := by", "error"),
    ("theorem s (p : Prop) : p → p -- := by", "error"),
    ("theorem s (p : Prop) (h : p := by", "error"),
    ("theorem s (p : Prop) : p → p) := by", "error"),
    ("theorem s (p : Prop) : p → p := fun h => h theorem u : True := by", None),
    ("theorem s (p : Prop) : p → nonsense := by", "error"),
]


@needs_lean
@pytest.mark.parametrize("batch", [1, 4, 128])
def test_whatever_a_statement_does_its_neighbours_have_the_verdict_that_they_have_alone(batch):
    rows, expected = [], []
    for statement, verdict in STATEMENTS:
        own = {"statement": statement, "completion": "\n  exact fun h => h"}
        rows += [NEIGHBOURS[0], own, *NEIGHBOURS[1:3], dict(own, completion="\n  skip"), *NEIGHBOURS[3:]]
        rejected = verdict if verdict in (None, "error") else "rejected"
        expected += [ALONE[0], verdict, *ALONE[1:3], rejected, *ALONE[3:]]
    found = [one["verdict"] for one in verify.verify_rows(rows, progress=False, batch=batch)]
    wrong = [
        (one["statement"], one["completion"], is_, must_be)
        for one, is_, must_be in zip(rows, found, expected)
        if must_be and is_ != must_be
    ]
    assert not wrong


@needs_lean
def test_a_comment_that_the_completion_closes_makes_no_statement():
    opened = {"statement": "theorem s (p : Prop) : p /- := by", "completion": " -/ → p := by\n  exact id"}
    closed = {
        "statement": "theorem s (p : Prop) (h : p := by",
        "completion": " trivial) : p := by\n  exact h",
    }
    out = verify.verify_rows([opened, closed, HONEST], progress=False)
    assert [one["verdict"] for one in out] == ["error", "error", "proved"]


@needs_lean
def test_candidates_of_one_statement_do_not_meet():
    statement = f"def helper (p : Prop) : p → p := fun h => h\nsection\nvariable (r : Prop)\n{GOAL}"
    proofs = ["\n  exact helper p", "\n  exact s p", "\n  skip", "\n  intro h\n  exact h"]
    rows = [{"statement": statement, "completion": proof} for proof in proofs]
    out = verify.verify_rows(rows + rows[::-1], progress=False)
    assert [one["verdict"] for one in out[:4]] == ["proved", "rejected", "rejected", "proved"]
    assert [one["verdict"] for one in out[4:]] == ["proved", "rejected", "rejected", "proved"]


@needs_lean
def test_names_mean_what_they_mean_at_the_top_level():
    rows = [
        {
            "statement": f"theorem {name} (p q : Prop) : p ∧ q → q ∧ p := by",
            "completion": "\n  intro h\n  exact symm h",
        }
        for name in ("And.foo", "And.foo.bar", "And.symm'", "foo", "Or.foo", "_root_.And.foo", "And.«a b»")
    ]
    out = verify.verify_rows(rows, progress=False)
    verdicts = ["proved"] * 3 + ["rejected"] * 3 + ["proved"]  # _root_.And.foo opens nothing
    assert [one["verdict"] for one in out] == verdicts
    assert not any("_c" in one["message"] for one in out)


@needs_lean
def test_plain_statements_share_one_process(monkeypatch):
    sources, run = [], lib.lean.run_lean
    monkeypatch.setattr(
        lib.lean_file, "run_lean", lambda source, *rest: sources.append(source) or run(source, *rest)
    )
    rows = [row(goal, f"\n  exact fun h => h -- {k}") for goal in ("p → p", "q → q") for k in range(5)]
    assert {one["verdict"] for one in verify.verify_rows(rows, progress=False, workers=1)} == {"proved"}
    assert len(sources) == 1 and sources[0].count("fun h => h") == 10
    assert single_theorem(rows[0]["statement"])


@needs_lean
def test_nothing_of_an_unclosed_scope_enters_the_cache(tmp_path):
    lean = lib.lean.find_lean()
    judge = lib.verdicts.cached(str(tmp_path / "v.sqlite"), verify.judge_batch)
    rows = [{"statement": STATEMENTS[0][0], "completion": "\n  exact fun h => h"}, FALSE]
    for some in (rows, rows[::-1], rows[1:]):
        found = {
            one["statement"]: one["verdict"]
            for one in verify.verify_rows(some, lean, progress=False, judge=judge)
        }
        assert found[FALSE["statement"]] == "rejected"


# ---- what a proof prints ----

# Stands in for a proof that gets hold of Lean's outputs: it writes on both, then goes on as the real Lean.
PRINTS = r"""
import json, os, re, runpy, sys
lean, flags = sys.argv[1], sys.argv[2:]
text = open(0, encoding="utf-8", closefd=False).read()
os.lseek(0, 0, os.SEEK_SET)
told = re.search("-- prints (.*)", text)
if told and "--version" not in flags:
    names = re.findall(r"#print axioms (\S+)", text)
    line = [k for k, one in enumerate(text.split("\n"), 1) if "#print axioms" in one]
    for name, at in zip(names, line):
        for path in ("<stdin>", "/dev/fd/0", "", "Main"):
            for severity, data in json.loads(told[1]):
                message = {"severity": severity, "data": data.replace("NAME", name), "pos": {"line": at, "column": 0},
                           "fileName": path, "caption": "", "kind": "[anonymous]", "keepFullRange": False}
                print(json.dumps(message), flush=True)
                print(json.dumps(message), file=sys.stderr, flush=True)
sys.argv = [lean, *flags]
runpy.run_path(lean, run_name="__main__")
"""


@needs_lean
@pytest.mark.parametrize(
    "messages",
    [
        [("error", "bad statement: forged")],
        [("information", "'NAME' does not depend on any axioms")],
        [("information", "'NAME' depends on axioms: [sorryAx]"), ("error", "x")],
    ],
)
def test_what_is_written_beside_leans_messages_is_not_believed(messages):
    """Even with the secret names; Lean's messages carry the name of their file, which nothing inside can know."""
    lean = lib.lean.find_lean()
    place = lean.command.index(lib.lean.wheel.__file__)
    lean = lean._replace(command=[*lean.command[:place], "-c", PRINTS, *lean.command[place:]])
    prints = f"\n  -- prints {json.dumps(messages)}"
    rows = [
        row("p → p", "\n  exact id" + prints),
        row("p → q", "\n  exact id"),
        row("q → q", "\n  exact id"),
        FREE,
    ]
    out = verify.verify_rows(rows, lean, progress=False)
    assert [one["verdict"] for one in out] == ["proved", "rejected", "proved", "error"]


def test_a_second_list_of_axioms_is_an_error():
    batch = [("h", HONEST["statement"], HONEST["completion"])]
    lean = lib.lean.Lean([], [], {}, "", "", True, "", False, "")
    file = lib.lean_file.build_file(batch, lean)

    def said(place, text, line=None):
        name = f"{file.tag}_{place}.thm"
        return {"severity": "information", "data": f"'{name}' {text}", "line": line or file.ends[place]}

    mark = {"severity": "information", "data": f"{file.tag}_0.", "line": file.ends[0]}
    gap, clean = said(1, "depends on axioms: [sorryAx]"), said(2, "does not depend on any axioms")
    dirty = said(2, "depends on axioms: [propext,\n String]")
    cases = [
        ([mark, gap, clean], ("proved", "")),
        ([mark, gap, dirty], ("rejected", "axioms: String")),
        ([mark, gap, dirty, clean], ("rejected", "two lists of axioms")),
        ([mark, gap, clean, clean], ("rejected", "two lists of axioms")),
        ([mark, gap, said(2, "does not depend on any axioms", file.ends[2] - 2)], None),  # not on its line
        ([mark, gap, dict(clean, data=gap["data"])], ("rejected", "axioms: none: no theorem was added")),
        ([mark, gap, dict(clean, severity="warning")], ("rejected", "axioms: none: no theorem was added")),
    ]
    for messages, expected in cases:
        found = lib.lean_file.read_findings(messages, file, None, False, 0.0)
        verdicts, again = verify.decide(batch, True, found, 60.0)
        assert (verdicts[batch[0]][:2] if verdicts else None) == expected
        assert bool(again) == (expected is None)


def test_the_clock_is_set_back_by_lean_alone_and_once_a_region(tmp_path):
    """A proof that prints without end runs out of time all the same."""
    script = tmp_path / "lean"
    script.write_text(f"""#!{sys.executable}
import json, sys, time
path = sys.argv[-1]
while True:
    print(json.dumps(dict(severity="information", data="tag_1.", pos=dict(line=2), fileName=path)), flush=True)
    print('tag_1.', file=sys.stderr, flush=True)
    time.sleep(0.1)
""")
    script.chmod(0o755)
    lean = lib.lean.Lean([], [str(script)], dict(os.environ), str(tmp_path), "", True, "", False, "")
    messages, trouble = lib.lean.run_lean("x", lean, 2.0, [1, 2], "tag")
    assert trouble == "timeout" and 10 < len(messages) < 60


def test_messages_have_the_name_of_their_file():
    path = lib.lean.secret_path()
    assert os.path.samefile(path, "/dev/fd/0") and path != lib.lean.secret_path()
    good = {"fileName": path, "severity": "error", "data": "x", "pos": {"line": 3, "column": 0}}
    assert lib.lean.message_of(json.dumps(good).encode(), path) == {
        "severity": "error",
        "data": "x",
        "line": 3,
    }
    spoiled = [
        {"fileName": "/dev/fd/0"},
        {"severity": "output"},
        {"pos": 3},
        {"pos": {}},
        {"pos": {"line": "x"}},
    ]
    for change in spoiled:
        assert lib.lean.message_of(json.dumps({**good, **change}).encode(), path) is None
    for line in (b"", b"[" * 10**5, f'"{path}"'.encode(), json.dumps(good).encode()[:-1]):
        assert lib.lean.message_of(line, path) is None


# ---- crashes ----

CRASHES = r"""
import os, runpy, sys
lean, kind, log, flags = *sys.argv[1:4], sys.argv[4:]
text = open(0, encoding="utf-8", closefd=False).read()
os.lseek(0, 0, os.SEEK_SET)
open(log, "a").write("start\n")
if kind == "start":
    sys.exit(3)
if "-- crash" in text:
    child = os.fork()
    if not child:
        file = __import__("tempfile").TemporaryFile()
        file.write(text[:text.rindex("theorem ", 0, text.index("-- crash"))].encode())
        file.seek(0)
        os.dup2(file.fileno(), 0)
        sys.argv = [lean, *flags]
        runpy.run_path(lean, run_name="__main__")
    os.waitpid(child, 0)
    sys.exit(int(kind))
sys.argv = [lean, *flags]
runpy.run_path(lean, run_name="__main__")
"""


@needs_lean
@pytest.mark.parametrize(
    "kind, verdict, words, starts",
    [
        ("139", "rejected", "crash: ", 3),
        ("134", "rejected", "crash: ", 3),
        ("137", "error", "machine", 3),
        ("start", "error", "code 3", 2),
    ],
)
def test_a_crash_is_a_wrong_proof_unless_the_machine_is_at_fault(tmp_path, kind, verdict, words, starts):
    """It costs two more starts of Lean: the culprit alone, and those after it. Nothing of it is remembered."""
    lean, log = lib.lean.find_lean(), tmp_path / "log"
    place = lean.command.index(lib.lean.wheel.__file__)
    words_before = [*lean.command[:place], "-c", CRASHES, lean.command[place], kind, str(log)]
    lean = lean._replace(command=words_before + lean.command[place + 1 :])
    rows = [row("p → p", f"\n  exact id -- {k}") for k in range(6)]
    rows[3] = row("p → p", "\n  exact id -- crash")
    judge = lib.verdicts.cached(str(tmp_path / "v.sqlite"), verify.judge_batch)
    for _ in range(2):
        out = verify.verify_rows(rows, lean, progress=False, workers=1, judge=judge)
        others = "error" if kind == "start" else "proved"
        assert [one["verdict"] for one in out] == [others] * 3 + [verdict] + [others] * 2
        assert words in out[3]["message"] and out[3]["reward"] == verify.REWARD[verdict]
        assert log.read_text().count("start") == starts
        log.write_text("start\n" if kind != "start" else "")  # alone, twice: at first and again


# ---- the key of the verdict cache ----


def test_every_file_that_decides_is_in_the_key():
    """All of the project that verify.py imports, but for what moves rows and prints sentences."""
    plumbing = {"lib/cli.py", "lib/jsonl.py", "lib/stream.py"}
    seen, to_do = set(), ["verify.py"]
    while to_do:
        name = to_do.pop()
        seen.add(name)
        with open(os.path.join(HERE, name), encoding="utf-8") as file:
            for node in ast.walk(ast.parse(file.read())):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                for module in modules:
                    path = module.replace(".", "/") + ".py"
                    if os.path.exists(os.path.join(HERE, path)) and path not in seen:
                        to_do.append(path)
    assert seen - plumbing | {"toy/Prelude.lean"} == set(lib.verdicts.DECIDERS)


def test_a_changed_file_or_lean_dojo_forgets_all(tmp_path, monkeypatch):
    for name in lib.verdicts.DECIDERS:
        (tmp_path / os.path.dirname(name)).mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(lib.verdicts, "ROOT", str(tmp_path))
    seen = [lib.verdicts.deciders()]
    for name in lib.verdicts.DECIDERS:
        (tmp_path / name).write_text(name + " changed")
        seen.append(lib.verdicts.deciders())
    monkeypatch.setattr(lib.verdicts.importlib.metadata, "version", lambda name: "9.9")
    seen.append(lib.verdicts.deciders())
    assert len({str(one) for one in seen}) == len(lib.verdicts.DECIDERS) + 2
