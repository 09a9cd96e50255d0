"""python -m pytest tests/test_dojo.py

lean-dojo's place is taken by a stand-in whose Dojo is the wheel's Lean; with lean-dojo installed, its own Dojo runs as well."""

import importlib.metadata
import importlib.util
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
import lib.lean  # noqa: E402
import lib.lexer  # noqa: E402
import verify  # noqa: E402
from lib import dojo  # noqa: E402
from tests.test_verify import PROOFS, WRONG, needs_lean, row  # noqa: E402

MANIFEST = {
    "version": 7,
    "packagesDir": ".lake/packages",
    "name": "own",
    "lakeDir": ".lake",
    "packages": [
        {
            "url": "https://github.com/leanprover-community/mathlib4",
            "type": "git",
            "subDir": None,
            "rev": "b" * 40,
            "name": "mathlib",
            "inputRev": "v4.9.0",
            "inherited": False,
        },
        {
            "url": "https://github.com/leanprover-community/batteries",
            "type": "git",
            "subDir": None,
            "rev": "c" * 40,
            "name": "batteries",
            "inputRev": "main",
            "inherited": True,
        },
    ],
}


def make_project(folder, toolchain="leanprover/lean4:v4.9.0", manifest=MANIFEST):
    os.makedirs(folder, exist_ok=True)
    for name, text in (("lean-toolchain", toolchain + "\n"), ("lake-manifest.json", json.dumps(manifest))):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)
    return str(folder)


# ---- the block that is sent ----


# fmt: off
@pytest.mark.parametrize("statement, proof, block", [
    ("theorem t : p := by", "\n  intro h\n  exact h\n", "(\n  intro h\n  exact h\n)"),
    ("theorem t : p := by", " intro h; exact h", "(" + 18 * " " + " intro h; exact h\n)"),
    ("theorem t :\n  p := by\n", "  intro h\n  exact h", "(\n  intro h\n  exact h\n)"),
    ("theorem t : p := by", "\r\n  exact h -- so", "(\n  exact h -- so\n)"),
    ("theorem t : p := by", "", "(\n)"),
    ("theorem t : p := by", "\n  exact aux\nwhere\n  aux := h", None),
    ("theorem t : p := by", "\n  exact f -- where", "(\n  exact f -- where\n)")])
def test_block_keeps_every_column(statement, proof, block):
    assert dojo.as_tactic(statement, proof) == block
    if block and proof.strip():
        words = [(word, column) for _, word, column in lib.lexer.tokens(block)][1:-1]
        text = statement + proof.replace("\r\n", "\n")
        assert words == [(word, column) for _, word, column in lib.lexer.tokens(text)][-len(words):]
# fmt: on


def test_longest_line_that_the_terminal_takes():
    def request(size):
        return "\n  exact " + "é" * (size // 2) + "h" * (size % 2)

    frame = len(json.dumps({"sid": 0, "cmd": "(\n  exact \n)"}))
    assert dojo.as_tactic("theorem t : p := by", request(4095 - frame)) is not None
    assert dojo.as_tactic("theorem t : p := by", request(4096 - frame)) is None


@needs_lean
def test_block_is_proved_wherever_the_plain_proof_is():
    lean = lib.lean.find_lean("auto")
    extra = [
        " intro h; exact h;",
        " exact (\n  fun h => h)",
        " intro h\n  exact h",
        "\n  exact id -- so",
        " have a : p → p := by\n    intro h\n    exact h\n" + 47 * " " + "exact a",
    ]
    plain, blocks = [], []
    for goal, proof in PROOFS + WRONG + [("p → p", proof) for proof in extra]:
        statement = row(goal, proof)["statement"]
        if "```" not in proof and (block := dojo.as_tactic(statement, proof)):
            plain.append((lean.header, statement, proof))
            moved = f"\n {block[0]}{block[2 if block[1] == ' ' else 1 :]}"  # in a file Lean takes no tactic at column 0
            blocks.append((lean.header, statement, moved))
    first, second = verify.judge_batch(plain, lean, 60), verify.judge_batch(blocks, lean, 60)
    pairs = [(first[one][0], second[other][0]) for one, other in zip(plain, blocks)]
    assert ("proved", "rejected") not in pairs and {one for pair in pairs for one in pair} == {
        "proved",
        "rejected",
    }
    differ = [key[2] for key, (one, other) in zip(plain, pairs) if one != other]
    assert all(
        "\nintro" in proof for proof in differ
    )  # at column 0; the main path then rejects what the Dojo took


# ---- the sentences of check_dojo ----


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """git, elan, lake and lean that do nothing, lean-dojo 2.2.0 on record, and a Python that is old enough."""
    os.makedirs(tmp_path / "bin")
    for name in ("git", "elan", "lake", "lean"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        os.chmod(tmp_path / "bin" / name, 0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "version_info", (3, 11, 7, "final", 0))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: object() if name == "lean_dojo" else find_spec(name, *rest),
    )
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.2.0")
    return tmp_path / "bin"


def sentence(capsys, project):
    with pytest.raises(SystemExit) as stop:
        dojo.check_dojo(project)
    assert stop.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


def test_check_passes_and_each_lack_has_its_sentence(commands, tmp_path, monkeypatch, capsys):
    project = make_project(tmp_path / "project")
    assert dojo.check_dojo(project) is None
    with monkeypatch.context() as one:
        one.setattr(sys, "version_info", (3, 13, 0, "final", 0))
        assert "Python 3.12 or older" in sentence(capsys, project)
    with monkeypatch.context() as one:
        one.setattr(importlib.util, "find_spec", lambda name: None)
        assert "pip install lean-dojo==2.2.0" in sentence(capsys, project)
    for name in ("lake", "elan"):
        os.rename(commands / name, commands / "gone")
        assert f"the command '{name}'" in sentence(capsys, project)
        os.rename(commands / "gone", commands / name)
    assert "lean-toolchain; --project is" in sentence(capsys, str(tmp_path))
    packages = [dict(MANIFEST["packages"][0], type="path", url=None, rev=None, dir="../mathlib4")]
    assert "git url and rev" in sentence(
        capsys, make_project(tmp_path / "local", manifest={"packages": packages})
    )
    for manifest in ([], "{", {"packages": 3}, {"packages": [{}]}):
        assert "lake update" in sentence(capsys, make_project(tmp_path / "broken", manifest=manifest))
    assert "must list mathlib" in sentence(capsys, make_project(tmp_path / "bare", manifest={"packages": []}))


# fmt: off
@pytest.mark.parametrize("toolchain, release, works", [
    ("leanprover/lean4:v4.9.0", "2.2.0", True), ("leanprover/lean4:4.11.0", "2.1.3", True), ("leanprover/lean4:v4.9.0-rc1", "2.2.0", True),
    ("leanprover/lean4:v4.3.0", "2.2.0", True), ("leanprover/lean4:v4.2.0", "2.2.0", False),
    ("leanprover/lean4:v4.9.0", "4.20.0", False), ("leanprover/lean4:v4.9.0", "2.1.0", False),
    ("leanprover/lean4:v4.12.0-rc1", "2.2.0", False), ("leanprover/lean4:v4.35.0", "4.20.0", False),
    ("leanprover/lean4:nightly-2024-06-01", "2.2.0", False), ("stable", "2.2.0", False)])
def test_versions_that_are_known_to_fail_are_refused(commands, tmp_path, monkeypatch, capsys, toolchain, release, works):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: release)
    project = make_project(tmp_path / "project", toolchain)
    if works:
        assert dojo.check_dojo(project) is None
    else:
        said = sentence(capsys, project)
        assert f"is on {toolchain}, and lean-dojo is {release}; Lean 4.3 to 4.11 with lean-dojo 2.1.3 or 2.2.0 works" in said
# fmt: on


# ---- a stand-in for lean-dojo whose Dojo is the wheel's Lean without the axiom check ----

STAND_IN = """
    import os, re, subprocess, sys, time, types
    from dataclasses import dataclass
    sys.path.insert(0, os.environ["PROJECT_ROOT"])
    import lib.lean
    import verify
    LOG, CACHE = os.environ["STAND_IN_LOG"], os.environ["CACHE_DIR"]
    class DojoInitError(Exception): pass
    class DojoCrashError(Exception): pass
    class DojoTacticTimeoutError(Exception): pass
    @dataclass
    class TacticState: pp: str
    @dataclass
    class ProofFinished: tactic_state_id: int
    @dataclass
    class ProofGivenUp: pass
    @dataclass
    class LeanError: error: str
    @dataclass
    class Theorem: repo: object; file_path: str; full_name: str

    def log(*words):
        with open(LOG, "a", encoding="utf-8") as file:
            print(*words, file=file)

    class LeanGitRepo:
        def __init__(self, url, commit):
            self.url, self.commit = url, commit
        @classmethod
        def from_path(cls, path):
            git = lambda *words: subprocess.run(["git", *words], cwd=path, capture_output=True, text=True, check=True).stdout
            assert git("status", "--porcelain") == ""
            return cls(path, git("rev-parse", "HEAD").strip())

    def is_available_in_cache(repo):
        return os.path.exists(os.path.join(CACHE, repo.commit))

    def trace(repo, dst_dir=None, build_deps=True):
        log("trace", repo.commit, "build_deps", build_deps, "cwd", os.getcwd(), "offline", os.environ.get("DISABLE_REMOTE_CACHE"))
        print("what lean-dojo prints")
        if os.environ.get("TRACE_FAILS"):
            raise RuntimeError("lake build")
        os.makedirs(CACHE, exist_ok=True)
        open(os.path.join(CACHE, repo.commit), "w").close()

    class Dojo:
        def __init__(self, entry, timeout=600, additional_imports=[], build_deps=True):
            self.entry, self.proc = entry, types.SimpleNamespace()
        def __enter__(self):
            print("what lean-dojo prints")
            text = open(os.path.join(self.entry.repo.url, self.entry.file_path), encoding="utf-8").read()
            log("open", self.entry.full_name, "pid", os.getpid(), "token", os.environ.get("GITHUB_ACCESS_TOKEN"))
            if "no_dojo" in self.entry.full_name:
                raise DojoInitError("Unexpected EOF")
            start = text.index("theorem ")
            self.header, self.statement = text[:start], re.sub(r" sorry\\n\\Z", "", text[start:])
            self.lean = lib.lean.find_lean("auto")
            os.chdir("/")
            return self, TacticState(self.statement)
        def __exit__(self, *error):
            pass
        def run_tac(self, state, tactic):
            log("run", repr(tactic))
            if "-- crash" in tactic:
                raise DojoCrashError("Unexpected EOF")
            if "-- die" in tactic:
                os._exit(9)
            if "-- hang" in tactic:
                time.sleep(self.proc.timeout)
                raise DojoTacticTimeoutError()
            if "given_up" in tactic:
                return ProofGivenUp()
            proof = "\\n (" + tactic[2 if tactic[1] == " " else 1:]
            verify.AXIOMS = verify.AXIOMS | {"sorryAx", "String"}  # lean-dojo does not look at axioms
            key = self.header, self.statement, proof
            verdict, message, _ = verify.judge_batch([key], self.lean, 60)[key]
            if verdict == "proved":
                log("accepted", repr(tactic))
                return ProofFinished(1)
            return TacticState(message) if message.startswith("unsolved goals") else LeanError(message)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Makes `import lean_dojo` in dojo.py's processes the stand-in; returns a function that reads its log."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "lean_dojo.py").write_text(textwrap.dedent(STAND_IN), encoding="utf-8")
    for name, value in (
        ("PYTHONPATH", tmp_path / "packages"),
        ("STAND_IN_LOG", tmp_path / "log"),
        ("PROJECT_ROOT", HERE),
        ("CACHE_DIR", tmp_path / "cache"),
        ("GITHUB_ACCESS_TOKEN", "secret"),
    ):
        monkeypatch.setenv(name, str(value))
    (tmp_path / "log").write_text("")
    log = tmp_path / "log"
    return lambda word: [
        line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith(word)
    ]


@pytest.fixture(scope="module")
def lean():
    return lib.lean.find_lean("auto")


def problem(name, goal="p → p"):
    return lib.lean.TOY_HEADER, f"theorem {name} (p q r : Prop) : {goal} := by"


def trace(keys, lean, tmp_path, toolchain="leanprover/lean4:v4.9.0"):
    """trace_problems for the wheel's Lean in the place of a project's."""
    project = make_project(tmp_path / "project", toolchain)
    return dojo.trace_problems(keys, lean._replace(folder=project), verify.judge_batch)


def judge(problem, proofs, lean, tmp_path, timeout=60):
    """[(verdict, message)] of proofs of one problem."""
    keys = [(*problem, proof) for proof in proofs]
    verdicts = dojo.judge_with(trace(keys, lean, tmp_path), verify.judge_batch)(keys, lean, timeout)
    assert list(verdicts[keys[0]])[2] >= 0 and set(verdicts) == set(keys)
    return [verdicts[key][:2] for key in keys]


@needs_lean
def test_verdicts_are_those_of_the_main_path(stand_in, lean, tmp_path):
    cheats = [
        "\n  sorry",
        "\n  exact sorryAx _ true",
        "\n  native_decide",
        "\n  skip\nend",
        "\n  exact id\n```\nSo it holds.",
    ]
    rows = [row(*one) for one in PROOFS + WRONG] + [row("p → q", proof) for proof in cheats]
    rows += [
        {"statement": statement, "completion": "\n  trivial"}
        for statement in ("theorem bad (p : Prop) : no_such p := by", "example : True := by")
    ]
    expected = verify.verify_rows(rows, progress=False)
    problems = {(lib.lean.TOY_HEADER, one["statement"]) for one in rows}
    theorems = trace(problems, lean, tmp_path)
    assert len(theorems) == len(problems) - 2  # `bad` and the one without a name are not traced
    found = verify.verify_rows(
        rows, lean, progress=False, judge=dojo.judge_with(theorems, verify.judge_batch)
    )
    for one, other in zip(found, expected):
        assert (one["verdict"], one["reward"]) == (other["verdict"], other["reward"]) and set(one) == set(
            other
        ), (one, other)
    assert not [line for line in stand_in("run") if "where" in line or "sorry'" in line]
    assert {line.split()[-1] for line in stand_in("open")} == {
        "None"
    }  # no GitHub token where nothing is fetched


@needs_lean
def test_the_command(stand_in, commands, tmp_path, monkeypatch, capsys):
    """verify.py --verifier lean-dojo from samples to verdicts, traced once for two runs; not with --follow."""
    rows = [row(*one) for one in PROOFS[:6] + WRONG[:6]] + [row("p → q", "\n  sorry")]
    (tmp_path / "rows").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    git = shutil.which("git", path=os.defpath)
    (commands / "git").write_text(f'#!/bin/sh\nexec {git} "$@"\n')
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}:{os.defpath}")
    project = make_project(tmp_path / "project")
    shutil.copy(f"{HERE}/toy/Prelude.lean", project)  # for the wheel's Lean, which stands in
    words = [str(tmp_path / "rows"), "--out", str(tmp_path / "out")]
    words += ["--verifier", "lean-dojo", "--project", project]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["verify.py", *words])
        verify.main()
        out = [json.loads(line) for line in (tmp_path / "out").read_text(encoding="utf-8").splitlines()]
        assert [one["verdict"] for one in out] == ["proved"] * 6 + ["rejected"] * 7
    accepted = [
        line for line in stand_in("accepted") if "sorry" not in line and r"(\nintro" not in line
    ]  # column 0: see above
    assert len(stand_in("trace")) == 1 and len(accepted) == 12
    monkeypatch.setattr(sys, "argv", ["verify.py", *words, "--follow"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        verify.main()
    assert "leave --follow" in capsys.readouterr().err


@needs_lean
def test_what_lean_dojo_accepts_without_an_axiom_check_is_not_proved(stand_in, lean, tmp_path):
    cheat, honest, given_up = "\n  exact sorry", "\n  exact id", "\n  given_up"
    verdicts = judge(problem("thm", "(p → p)"), [cheat, honest, given_up], lean, tmp_path)
    assert [verdict for verdict, _ in verdicts] == ["rejected", "proved", "rejected"]
    assert verdicts[0][1].startswith("axioms: ") and "sorry" in verdicts[2][1]
    assert [("sorry" in line, "id" in line) for line in stand_in("accepted")] == [
        (True, False),
        (False, True),
    ]


@needs_lean
@pytest.mark.parametrize("end", ["hang", "crash", "die"])
def test_what_ends_a_dojo_and_what_follows_is_decided_by_judge_batch(stand_in, lean, tmp_path, end):
    proofs = [
        "\n  exact id",
        "\n  skip",
        f"\n  exact id -- {end}",
        "\n  exact id -- after",
        "\n  skip -- after",
    ]
    started = time.monotonic()
    verdicts = judge(problem("thm"), proofs, lean, tmp_path, timeout=3 if end == "hang" else 60)
    assert [verdict for verdict, _ in verdicts] == ["proved", "rejected", "proved", "proved", "rejected"]
    assert time.monotonic() - started < 60
    (opened,) = stand_in("open")
    assert len(stand_in("run")) == 3 and "after" not in "".join(stand_in("run"))
    with pytest.raises(ProcessLookupError):
        os.kill(int(opened.split()[3]), 0)


@needs_lean
def test_a_run_that_is_stopped_does_not_wait_for_its_dojo(stand_in, lean, tmp_path):
    keys = [(*problem("a"), "\n  exact id -- hang"), (*problem("a"), "\n  exact id")]
    judge, stop = dojo.judge_with(trace(keys, lean, tmp_path), verify.judge_batch), threading.Event()
    timer = threading.Timer(2, stop.set)
    timer.start()
    started = time.monotonic()
    verdicts = judge(keys, lean, 100, stop)
    assert time.monotonic() - started < 60 and keys[1] not in verdicts


@needs_lean
def test_where_and_long_lines_take_the_main_path(stand_in, lean, tmp_path):
    proofs = ["\n  exact aux\nwhere\n  aux (h : p) : p := h", "\n  exact id -- " + "x" * 4096]
    assert [verdict for verdict, _ in judge(problem("thm"), proofs, lean, tmp_path)] == ["proved"] * 2
    assert not stand_in("run") and not stand_in("open")


@needs_lean
def test_a_dojo_that_does_not_open_is_an_error_and_not_zero_reward(stand_in, lean, tmp_path):
    proofs = ["\n  exact id", "\n  skip", "\n  exact f\nwhere\n  f (h : p) : p := h"]
    verdicts = judge(problem("no_dojo"), proofs, lean, tmp_path)
    assert [verdict for verdict, _ in verdicts] == ["error", "error", "proved"]
    assert verdicts[0][1].startswith("bad statement: ") and "DojoInitError: Unexpected EOF" in verdicts[0][1]
    assert len(stand_in("open")) == 1


@needs_lean
def test_problems_become_one_clean_repo_traced_once(stand_in, lean, tmp_path):
    keys = [(*problem(name), "\n  exact id") for name in ("b", "a", "b")]
    theorems = trace(keys, lean, tmp_path)
    assert trace(reversed(keys), lean, tmp_path) == theorems
    folder = theorems[problem("a")][0]
    assert sorted(theorems.values()) == [
        (folder, "Problems/P00001.lean", "a"),
        (folder, "Problems/P00002.lean", "b"),
    ]

    def git(*words, cwd=folder):
        return subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True, check=True).stdout

    assert git("status", "--porcelain") == "" and git("rev-list", "--count", "HEAD") == "1\n"
    assert git("ls-files").split() == [
        "Problems/P00001.lean",
        "Problems/P00002.lean",
        "lake-manifest.json",
        "lakefile.lean",
        "lean-toolchain",
    ]
    with open(os.path.join(folder, "Problems/P00002.lean"), encoding="utf-8") as file:
        assert file.read() == lib.lean.TOY_HEADER + "theorem b (p q r : Prop) : p → p := by sorry\n"
    with open(os.path.join(folder, "lakefile.lean"), encoding="utf-8") as file:
        lines = file.read().split("\n")
    assert [line for line in lines if line.startswith("require")] == [
        'require «mathlib» from git "https://github.com/leanprover-community/mathlib4" @ "v4.9.0"'
    ]
    work = tmp_path / "project" / ".lake" / "dojo"
    assert stand_in("trace") == [
        f"trace {git('rev-parse', 'HEAD').strip()} build_deps False cwd {work} offline 1"
    ]
    other = trace(keys, lean, tmp_path, "leanprover/lean4:v4.10.0")[problem("a")][0]
    assert other != folder and len(stand_in("trace")) == 2


@needs_lean
def test_a_trace_that_fails_ends_with_a_sentence(stand_in, lean, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TRACE_FAILS", "1")
    with pytest.raises(SystemExit) as stop:
        trace([(*problem("a"), "")], lean, tmp_path)
    assert stop.value.code == 2 and "error: lean-dojo could not trace" in capfd.readouterr().err


@needs_lean
def test_no_process_outlives_the_one_that_started_it(stand_in, lean, tmp_path):
    theorem, key = (
        trace([problem("a")], lean, tmp_path)[problem("a")],
        (*problem("a"), "\n  exact id -- hang"),
    )
    code = f"""import sys; sys.path.insert(0, {HERE!r})
from lib import dojo
dojo.ask_dojos({{{theorem!r}: {{{key!r}: "( exact id -- hang\\n)"}}}}, 60, None)"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while not stand_in("run") and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int(stand_in("open")[0].split()[3])
    os.kill(child, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
            with open(f"/proc/{child}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    break
        except OSError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the Dojo's process is still there")


# ---- against the installed lean-dojo ----


@pytest.fixture(scope="module")
def lean_dojo(tmp_path_factory):
    if importlib.util.find_spec("lean_dojo") is None:
        pytest.skip("lean-dojo is not installed")
    os.environ["CACHE_DIR"], os.environ["DISABLE_REMOTE_CACHE"] = (
        str(tmp_path_factory.mktemp("lean_dojo") / "cache"),
        "1",
    )
    try:
        return importlib.import_module("lean_dojo")
    finally:
        del os.environ["CACHE_DIR"], os.environ["DISABLE_REMOTE_CACHE"]


def test_every_call_binds(lean_dojo):
    inspect.signature(lean_dojo.trace).bind("repo", build_deps=False)
    inspect.signature(lean_dojo.is_available_in_cache).bind("repo")
    inspect.signature(lean_dojo.LeanGitRepo.from_path).bind("folder")
    inspect.signature(lean_dojo.Theorem).bind("repo", "Problems/P00001.lean", "name")
    inspect.signature(lean_dojo.Dojo).bind("theorem", timeout=600)
    inspect.signature(lean_dojo.Dojo.run_tac).bind("self", "state", "tactic")
    for name in ("DojoInitError", "DojoCrashError", "DojoTacticTimeoutError"):
        assert issubclass(getattr(lean_dojo, name), Exception)
    assert lean_dojo.LeanError("x").error == "x" and lean_dojo.TacticState("⊢ p", 0).pp == "⊢ p"
    assert {"DISABLE_REMOTE_CACHE", "CACHE_DIR", "TMP_DIR"} <= set(
        vars(importlib.import_module("lean_dojo.constants"))
    )
    source = inspect.getsource(importlib.import_module("lean_dojo.interaction.dojo"))
    assert (
        'json.dumps({"sid": tsid, "cmd": tactic}, ensure_ascii=False)' in source
        and "self.proc.sendline(req)" in source
    )


@needs_lean
def test_lean_dojo_reads_the_repo_of_the_problems(lean_dojo, stand_in, lean, tmp_path):
    folder, path, name = trace([problem("a")], lean, tmp_path)[problem("a")]
    repo = lean_dojo.LeanGitRepo.from_path(folder)
    assert repo.exists() and repo.lean_version == "v4.9.0" and not lean_dojo.is_available_in_cache(repo)
    assert [one["name"] for one in repo.get_config("lake-manifest.json")["packages"]] == [
        "mathlib",
        "batteries",
    ]
    assert str(repo.get_cache_dirname()) == f"gitpython-{os.path.basename(folder)}-{repo.commit}"
    assert lean_dojo.Theorem(repo, path, name).full_name == "a"


FAKE_LEAN = """
import json, os, sys
while True:
    text = json.loads(sys.stdin.readline())["cmd"]
    if "die" in text: os.kill(os.getpid(), 9)
    if "leave" in text: sys.exit(1)
    if "hang" in text: import time; time.sleep(100)
    answer = {"sid": 1, "tacticState": "no goals", "error": None}
    if "goal" in text: answer["tacticState"] = "case a\\np : Prop\\n⊢ p"
    if "odd" in text: answer["tacticState"] = "case a\\n⊢ ⊢ p"
    if "wrong" in text: answer = {"sid": None, "tacticState": None, "error": "unknown identifier"}
    if "given_up" in text: answer = {"sid": None, "tacticState": None, "error": "proof contains `sorry`"}
    if "size" in text: answer = {"sid": None, "tacticState": None, "error": str(len(text))}
    print("REPL>", json.dumps(answer), flush=True)
"""


# fmt: off
@pytest.mark.parametrize("text, message", [
    ("(\n  exact h\n)", None), ("goal", "unsolved goals\ncase a\np : Prop\n⊢ p"),
    ("wrong", "unknown identifier"), ("given_up", "the proof holds a sorry"),
    ("size".ljust(4095 - len('{"sid": 0, "cmd": ""}'), "x"), str(4095 - len('{"sid": 0, "cmd": ""}'))),
    ("die", Exception), ("leave", Exception), ("hang", Exception), ("odd", AssertionError)])
def test_lean_dojos_own_run_tac_gives_each_kind(lean_dojo, text, message):
    """lean-dojo's Dojo and its terminal, with a script in Lean's place that answers as Lean4Repl.lean does."""
    pexpect = pytest.importorskip("pexpect")
    one = object.__new__(lean_dojo.Dojo)
    one.proc = pexpect.spawn(sys.executable, ["-c", FAKE_LEAN], timeout=20, maxread=1, encoding="utf-8", echo=False)
    one.proc.timeout = 3 if text == "hang" else 20  # as lib/dojo.py sets it
    try:
        if isinstance(message, type):
            with pytest.raises(message):
                dojo.rejection(lean_dojo, one, lean_dojo.TacticState("⊢ p", 0), text)
        else:
            assert dojo.rejection(lean_dojo, one, lean_dojo.TacticState("⊢ p", 0), text) == message
    finally:
        one.proc.close(force=True)
# fmt: on


FAKE_LAKE = """#!{python}
import json, os, sys
sys.path.insert(0, {root!r})
import lib.lean
import lib.lexer
import verify
assert sys.argv[1:5] == ["env", "lean", "--threads=1", "--memory=16384"], sys.argv
with open(sys.argv[5], encoding="utf-8") as file:
    text = file.read()
assert text.startswith("import Lean4Repl\\n") and os.path.exists("Lean4Repl.lean")
before, _, statement = text.partition("set_option maxHeartbeats 0 in\\n")
statement, proof, _ = statement.partition("by\\n  lean_dojo_repl\\n  sorry\\n")
assert proof
lean = lib.lean.find_lean("auto")
verify.AXIOMS = verify.AXIOMS | {{"sorryAx", "String"}}
def say(**answer):
    print("REPL>", json.dumps({{"sid": None, "tacticState": None, "error": None, **answer}}, ensure_ascii=False), flush=True)
say(sid=0, tacticState="p q r : Prop\\n⊢ p → p")
while True:
    tactic = json.loads(sys.stdin.readline())["cmd"]
    if "-- die" in tactic: os._exit(137)
    if "-- hang" in tactic: import time; time.sleep(1000)
    key = lean.header, statement + "by", "\\n (" + tactic[2 if tactic[1] == " " else 1:]
    verdict, message, _ = verify.judge_batch([key], lean, 60)[key]
    if verdict == "proved": say(sid=1, tacticState="no goals")
    elif message.startswith("unsolved goals"): say(sid=2, tacticState="p q r : Prop\\n⊢ p → p")
    else: say(error=message)
"""


def syntax(kind, *args):
    return {"node": {"info": "none", "kind": kind, "args": list(args)}}


def trace_by_hand(folder, path, name, cache):
    """What `trace` would leave in lean-dojo's cache for one file: Lean's syntax tree of it, written by hand."""
    asked = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
    )
    commit = asked.stdout.strip()
    traced = os.path.join(cache, f"gitpython-{os.path.basename(folder)}-{commit}", os.path.basename(folder))
    shutil.copytree(folder, traced)
    with open(os.path.join(folder, path), encoding="utf-8") as file:
        text = file.read()

    def word(kind, part, **more):
        at = len(text[: text.rindex(part)].encode())
        info = {"original": {"leading": "", "pos": at, "trailing": " ", "endPos": at + len(part.encode())}}
        return {kind: {"info": info, "val": part, **more}}

    command, proof = (
        "Lean.Parser.Command.",
        syntax("Lean.Parser.Term.byTactic", word("atom", "by"), word("atom", "sorry")),
    )
    tree = syntax(
        command + "declaration",
        syntax(command + "declModifiers"),
        syntax(
            command + "theorem",
            word("atom", "theorem"),
            syntax(command + "declId", word("ident", name, rawVal=name, preresolved=[])),
            syntax(command + "declSig", word("atom", "(p q r : Prop) : p → p")),
            syntax(command + "declValSimple", word("atom", ":="), proof),
        ),
    )
    stem = os.path.join(traced, ".lake/build/ir", path[: -len(".lean")])
    os.makedirs(os.path.dirname(stem))
    with open(stem + ".ast.json", "w", encoding="utf-8") as file:
        json.dump(
            {"commandASTs": [syntax("Lean.Parser.Module.header"), tree], "tactics": [], "premises": []}, file
        )
    for empty in (stem + ".dep_paths", os.path.join(traced, "Lean4Repl.lean")):
        open(empty, "w").close()


@needs_lean
@pytest.mark.parametrize("end", ["hang", "die"])
def test_the_installed_lean_dojo_from_cache_to_verdict(lean_dojo, lean, tmp_path, monkeypatch, end):
    """lean-dojo's own Dojo: repo, cache, syntax tree, rewritten file, terminal. A script stands in for `lake env lean`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "lake").write_text(
        FAKE_LAKE.format(python=sys.executable, root=HERE), encoding="utf-8"
    )
    os.chmod(tmp_path / "bin" / "lake", 0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    with monkeypatch.context() as one:
        one.setattr(dojo, "start_child", lambda *words, **options: subprocess.Popen(["true"]))
        theorem = trace([problem("hello")], lean, tmp_path)[problem("hello")]
    trace_by_hand(*theorem, str(tmp_path / "cache"))
    assert trace([problem("hello")], lean, tmp_path) == {problem("hello"): theorem}  # from the cache
    proofs = {
        "\n  intro h\n  exact h": "proved",
        " intro h; exact h": "proved",
        "\n  intro h": "rejected",
        "\n  exact no_such": "rejected",
        "\n  exact sorry": "rejected",
        f"\n  exact id -- {end}": "proved",  # the Dojo ends with it, so that judge_batch decides
        "\n  exact id": "proved",
    }
    judge = dojo.judge_with({problem("hello"): theorem}, verify.judge_batch)
    verdicts = judge([(*problem("hello"), proof) for proof in proofs], lean, 4)
    assert {key[2]: verdict for key, (verdict, _, _) in verdicts.items()} == proofs, verdicts
    assert verdicts[(*problem("hello"), "\n  intro h")][1] == "unsolved goals\np q r : Prop\n⊢ p → p"
    key = *problem("hello"), "\n  exact id"
    nothing = dojo.ask_dojos({(*theorem[:2], "no_such_theorem"): {key: "exact id"}}, 4, None)
    assert nothing[key][0] == "error" and "Failed to locate the theorem" in nothing[key][1]
