"""python -m pytest tests/test_toolchain.py   (verify.py with a Lean of a Lake project: a stand-in here, a real one if on the PATH)"""

import json
import os
import shutil
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [HERE, os.path.join(HERE, "tests")]
from test_verify import PROOFS, WRONG, needs_lean, row  # noqa: E402

import lib.lean
import verify  # noqa: E402

ROWS = [row(*one) for one in PROOFS + WRONG] + [
    row("p → q", "\n  sorry"),
    row("p → nonsense", "\n  exact id"),
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A Lake project and its toolchain: a `lake` that says where both are, and a `lean` that is the wheel's and notes its calls."""
    library, tools, folder = (
        tmp_path / "project" / ".lake" / "build" / "lib",
        tmp_path / "tools",
        tmp_path / "project",
    )
    library.mkdir(parents=True)
    tools.mkdir()
    shutil.copy(os.path.join(lib.wheel.compiled_prelude(), "Prelude.olean"), library)
    scripts = {
        tools / "lake": f'echo "lake $*" >> "{tmp_path}/log"\n[ "$1" = env ] || exit 1\nshift\n'
        f'export LEAN="{tools}/real" LEAN_PATH=./.lake/build/lib LEAN_CC="two\nlines"\nexec "$@"\n',
        tools
        / "real": f'echo "lean $PWD $*" >> "{tmp_path}/log"\nexec "{sys.executable}" "{lib.wheel.__file__}" "$@"\n',
        tools / "lean": "exit 9  # elan's shim, which must not be asked\n",
    }
    for path, text in scripts.items():
        path.write_text("#!/bin/sh\n" + text, encoding="utf-8")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    (tmp_path / "rows").write_text("".join(json.dumps(one) + "\n" for one in ROWS), encoding="utf-8")
    return folder


def command(project, *flags):
    done = subprocess.run(
        [
            sys.executable,
            os.path.join(HERE, "verify.py"),
            str(project.parent / "rows"),
            "--out",
            str(project.parent / "out"),
            *flags,
        ],
        capture_output=True,
        text=True,
        cwd=project.parent,
    )
    assert "Traceback" not in done.stderr
    return done


@needs_lean
def test_a_project_gives_the_verdicts_of_the_wheel_and_lake_is_asked_once(project):
    done = command(
        project,
        "--lean",
        "lake env lean",
        "--project",
        str(project),
        "--header",
        lib.lean.TOY_HEADER,
        "--verify-batch",
        "5",
    )
    assert done.returncode == 0, done.stderr
    out = [json.loads(line) for line in (project.parent / "out").read_text(encoding="utf-8").splitlines()]
    expected = verify.verify_rows(ROWS, progress=False)
    hint = " (the wheel's Lean knows only Prelude.lean: see --project, --lean)"  # of no use to a toolchain
    assert [(one["verdict"], one["reward"], one["message"]) for one in out] == [
        (one["verdict"], one["reward"], one["message"].removesuffix(hint)) for one in expected
    ]
    log = (project.parent / "log").read_text().splitlines()
    assert [line for line in log if line.startswith("lake")] == ["lake env env -0"]
    assert len(log) > 9 and all(
        line.startswith(f"lean {project} ") for line in log if not line.startswith("lake")
    )


@needs_lean
def test_header_of_the_row_goes_before_the_default(project):
    rows = [
        row("p → p", "\n  exact id"),
        row("p → p", "\n  exact id", header="prelude\nimport Nothing"),
        row("p → p", "\n  exact id", header=lib.lean.TOY_HEADER + "axiom cheat : False"),
        row("p → q", "\n  exact cheat.elim", header=lib.lean.TOY_HEADER + "axiom cheat : False"),
    ]
    out = verify.verify_rows(
        rows, lib.lean.find_lean("lake env lean", str(project), lib.lean.TOY_HEADER), progress=False
    )
    assert [one["verdict"] for one in out] == ["proved", "error", "proved", "rejected"]
    assert "bad header" in out[1]["message"] and out[3]["message"] == "axioms: cheat"


@needs_lean
@pytest.mark.parametrize(
    "flags, words",
    [
        (["--lean", "lake env lean", "--project", "{project}"], "import Mathlib"),
        (["--lean", "lake env lean", "--project", "nowhere"], "no folder"),
        (["--lean", "lake env"], "lake env"),
        (["--lean", "lake build lean", "--header", ""], "does not run"),
        (["--lean", "lean", "--header", ""], "does not run"),
        (["--verifier", "lean-dojo", "--project", "{project}"], "lean-dojo"),
        (["--verifier", "nonsense"], "nonsense"),
        (["--memory-gb", "0.5"], "--memory-gb"),
    ],
)
def test_what_does_not_work_is_one_sentence(project, flags, words):
    done = command(project, *[flag.format(project=project) for flag in flags])
    assert (
        done.returncode == 2 and words in done.stderr.splitlines()[-1] and done.stderr.startswith("error: ")
    )
    assert not list(project.parent.glob("out*"))


@needs_lean
def test_self_test(project):
    flags = (
        "--workers",
        "1",
        "--verify-batch",
        "20",
        "--lean",
        "lake env lean",
        "--project",
        str(project),
        "--header",
        lib.lean.TOY_HEADER,
    )
    done = subprocess.run(
        [sys.executable, os.path.join(HERE, "tools", "self_test.py"), *flags], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for words in (
        "Lean 4.35.0",
        "an honest proof",
        "no network",
        "proofs/s",
        "a proof that never ends",
        "the kernel switched off",
    ):
        assert words in done.stdout
    # One that believes everything is found out.
    real = project.parent / "tools" / "real"
    real.write_text(real.read_text().replace('exec "', '[ "$1" = --version ] || exec cat >/dev/null\nexec "'))
    done = subprocess.run(
        [sys.executable, os.path.join(HERE, "tools", "self_test.py"), *flags], capture_output=True, text=True
    )
    assert done.returncode == 2 and "do not trust" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(not shutil.which("lean"), reason="no Lean toolchain on the PATH")
def test_a_real_toolchain_gives_the_verdicts_of_the_wheel():
    """With Lean's own library there is more to prove with: all that the wheel proves is proved, and what is false is not."""
    real = verify.verify_rows(ROWS, lib.lean.find_lean("lean", header=""), progress=False)
    wheel = verify.verify_rows(ROWS, progress=False)
    assert [one["verdict"] for one in real] == [one["verdict"] for one in wheel]
