"""python -m pytest tests/test_faults.py   (a verifier whose Lean dies, hangs, floods; one that is killed, followed, resumed)"""

import errno
import glob
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [HERE, os.path.join(HERE, "tests")]
from test_verify import needs_lean, row  # noqa: E402

import lib.jsonl
import lib.lean
import lib.lean_file
import lib.stream
import verify  # noqa: E402

# Runs the real Lean on what stands before the first candidate that asks for a fault, and then has the fault: a comment
# `-- fault KIND NAME`; a KIND that ends in -once happens only the first time, which a file NAME in the folder argv[1] remembers.
FAULTY_LEAN = r"""
import ctypes, os, re, runpy, sys, tempfile, time
folder, lean, flags = sys.argv[1], sys.argv[2], sys.argv[3:]
text = open(0, encoding="utf-8", closefd=False).read()
kind = None
for fault in re.finditer(r"-- fault (\S+) (\S+)", text):
    seen = os.path.join(folder, fault[2])
    if not (fault[1].endswith("-once") and os.path.exists(seen)):
        kind = fault[1].removesuffix("-once")
        open(seen, "w").close()
        text = text[:text.rindex("theorem ", 0, fault.start())]
        break
with tempfile.TemporaryFile() as file:
    file.write(text.encode())
    file.seek(0)
    os.dup2(file.fileno(), 0)
child = os.fork()
if not child:
    sys.argv = [lean, *flags]
    runpy.run_path(lean, run_name="__main__")
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
if kind == "dies": ctypes.string_at(0)
if kind == "hangs": time.sleep(600)
if kind == "panics": print("INTERNAL PANIC: out of memory", file=sys.stderr); sys.exit(1)
if kind == "aborts": sys.exit(134)
if kind == "quits": sys.exit(1)
while kind == "floods": print('{"severity": "warning", "data": "' + "x" * 100000 + '", "pos": {"line": 3}}')
sys.exit(code)
"""


def with_faults(lean, folder):
    """The wheel's Lean with FAULTY_LEAN in front."""
    place = lean.command.index(lib.wheel.__file__)
    return lean._replace(
        command=[*lean.command[:place], "-c", FAULTY_LEAN, str(folder), *lean.command[place:]]
    )


def judged(rows, lean, **keys):
    return [(one["verdict"], one["reward"]) for one in verify.verify_rows(rows, lean, progress=False, **keys)]


PROVED, REJECTED, TIMEOUT, ERROR = ("proved", 1.0), ("rejected", 0.0), ("timeout", 0.0), ("error", None)


def fault_rows(count, faults, seed=0):
    """Rows of many groups, half of them right, with the verdicts they must get; `faults` (kind: how many) are strewn in."""
    rng, rows, expected = random.Random(seed), [], []
    for n in range(count):
        goal, proof, verdict = rng.choice(
            [("p → p", "exact h", PROVED), ("p → q", "exact h", REJECTED), ("p → p", "exact k", REJECTED)]
        )
        rows.append(row(goal, f"\n  intro h\n  {proof}\n  -- {n}", id=str(n // 16)))
        expected.append(verdict)
    places = iter(rng.sample(range(count), sum(faults.values())))
    for kind, number in faults.items():
        for n in (next(places) for _ in range(number)):
            rows[n]["completion"] += f"\n  -- fault {kind} f{n}"
            if not kind.endswith("-once"):
                expected[n] = TIMEOUT if kind == "hangs" else REJECTED
    return rows, expected


@needs_lean
def test_faults_in_a_tenth_of_the_rows_change_no_other_verdict(tmp_path, monkeypatch):
    """Lean killed, out of memory, flooding, hanging, now and again or every time: no row is lost, no verdict mixed up."""
    faults = {
        "dies": 30,
        "dies-once": 60,
        "panics": 20,
        "panics-once": 40,
        "aborts": 10,
        "aborts-once": 25,
        "floods": 5,
        "quits": 5,
        "hangs": 4,
    }
    rows, expected = fault_rows(2000, faults)
    monkeypatch.setattr(lib.lean, "OUTPUT_MB", 8)  # 64 on a busy machine would take the time limit
    lean = with_faults(lib.lean.find_lean(), tmp_path)
    assert (
        judged(rows, lean._replace(env=dict(lean.env, TMPDIR=str(tmp_path))), batch=64, timeout=8.0)
        == expected
    )
    assert not glob.glob(str(tmp_path / "tmp.*"))


@needs_lean
def test_a_flood_ends_at_64_mb(tmp_path):
    lean = with_faults(lib.lean.find_lean(), tmp_path)
    rows = [row("p → p", f"\n  exact fun h => h{flood}") for flood in ("", "\n  -- fault floods f")]
    honest, flood = verify.verify_rows(rows, lean, progress=False, timeout=120.0)
    assert honest["verdict"] == "proved" and flood["verdict"] == "rejected"
    assert "its output passed 64 MB" in flood["message"] and flood["seconds"] < 120


@needs_lean
def test_a_runaway_proof_costs_its_time_limit_once(monkeypatch):
    """Real Lean in a real loop: `maxHeartbeats 0` and a tactic that never ends, between 14 healthy neighbours."""
    runaway = "\n  set_option maxHeartbeats 0 in\n  repeat' (intro h; revert h)"
    rows = [row("p → p", f"\n  intro h{n}\n  exact h{n}") for n in range(14)]
    rows.insert(5, row("p → p", runaway))
    lean, ends, run_lean, start = lib.lean.find_lean(), [], lib.lean.run_lean, time.time()
    monkeypatch.setattr(
        lib.lean_file, "run_lean", lambda *words: ends.append(found := run_lean(*words)) or found
    )
    assert judged(rows, lean, workers=1, timeout=3.0) == [PROVED] * 5 + [TIMEOUT] + [PROVED] * 9
    assert time.time() - start > 3 and [trouble for _, trouble in ends].count("timeout") == 1


@needs_lean
def test_a_runaway_or_deadly_statement_is_the_problems_fault(tmp_path):
    lean = with_faults(lib.lean.find_lean(), tmp_path)
    for kind, words in (("hangs", "bad statement: timeout"), ("dies", "ended with code 139")):
        bad = {
            "statement": f"theorem thm (p : Prop) : p → p -- fault {kind} x\n  := by",
            "completion": " exact id",
        }
        out = verify.verify_rows(
            [
                row("p → p", "\n  exact id"),
                bad,
                dict(bad, completion=" intro h; exact h"),
                row("q → q", "\n  exact id"),
            ],
            lean,
            timeout=3.0,
            progress=False,
        )
        assert [one["verdict"] for one in out] == ["proved", "error", "error", "proved"] and words in out[1][
            "message"
        ]


@needs_lean
def test_a_lean_that_tells_nothing_until_its_end(tmp_path):
    """As before version 4.12: every proof is then judged alone, and its time limit is its own."""
    lean = with_faults(lib.lean.find_lean(), tmp_path)._replace(blind=True)
    rows, expected = fault_rows(12, {"dies": 1, "dies-once": 2, "hangs": 1})
    assert judged(rows, lean, timeout=3.0) == expected


@needs_lean
def test_signs_of_progress_from_an_old_lean(tmp_path, monkeypatch):
    """A stand-in for version 4.9: says so, refuses -Dweak, holds its messages back to the end, but signs of progress go to
    stderr at once. The culprit is found by them, those before it are judged again (their messages are lost)."""
    script = tmp_path / "lean"
    script.write_text(
        f"""#!{sys.executable}
import os, re, subprocess, sys, time
if "--version" in sys.argv: print("Lean (version 4.9.0, x86_64-unknown-linux-gnu, commit 8f9843a4a5fe, Release)"); sys.exit()
if any("weak" in one for one in sys.argv): sys.exit("invalid -D parameter, unknown configuration option")
text = open(0, encoding="utf-8", closefd=False).read()
for part in re.split("(#eval .*\\n)", text):
    if part.startswith("#eval"): print(part.split('"')[1], file=sys.stderr)
    if "-- fault hangs" in part: time.sleep(600)
sys.exit(subprocess.run([sys.executable, {lib.wheel.__file__!r}, *sys.argv[1:]], input=re.sub("#eval .*", "", text), text=True).returncode)
""",
        encoding="utf-8",
    )
    script.chmod(0o755)
    monkeypatch.setenv("LEAN_PATH", lib.wheel.compiled_prelude())
    lean = lib.lean.find_lean(str(script), header=lib.lean.TOY_HEADER)
    assert lean.sign and not lean.blind and lean.version == "4.9.0"
    rows, expected = fault_rows(20, {"hangs": 1})
    assert judged(rows, lean, workers=1, timeout=3.0) == expected
    monkeypatch.setattr(lib.lean, "SIGN", "-- nothing comes {}\n")
    assert lib.lean.find_lean(str(script), header=lib.lean.TOY_HEADER).blind


# The command: killed, followed, resumed.


def start(*words, **keys):
    return subprocess.Popen(
        [sys.executable, os.path.join(HERE, "verify.py"), *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        **keys,
    )


def write(path, rows):
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows), encoding="utf-8")


def verdicts(path):
    return [
        (one["verdict"], one["reward"])
        for one in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    ]


@needs_lean
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_and_continued(how, tmp_path):
    """Whatever ends verify.py, no process and no file of Lean's is left, and the same command verifies only what is missing."""
    rows, expected = fault_rows(600, {})
    write(tmp_path / "rows", rows)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    keys = {"env": dict(os.environ, TMPDIR=str(temporary)), "stdout": subprocess.DEVNULL}
    command = (tmp_path / "rows", "--out", tmp_path / "out", "--verify-batch", 20, "--workers", 2)
    process = start(*command, **keys)
    deadline = time.time() + 300
    while (
        not any(path.stat().st_size > 3000 for path in tmp_path.glob("out.part-*")) and time.time() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(how)
    process.wait()
    assert not (tmp_path / "out").exists() and "Traceback" not in process.stderr.read()
    (part,) = tmp_path.glob("out.part-*")
    deadline = time.time() + 60
    while (list(temporary.iterdir()) or str(temporary) in running()) and time.time() < deadline:
        time.sleep(0.05)
    assert not list(temporary.iterdir())
    assert str(temporary) not in running()
    done = part.read_bytes().count(b"\n")
    assert 0 < done < len(rows)
    with open(part, "a") as file:
        file.write('{"cut')
    before = part.read_bytes().rsplit(b"\n", 1)[0]
    process = start(*command, **keys)
    assert "Traceback" not in process.communicate()[1] and process.returncode == 0
    assert (tmp_path / "out").read_bytes().startswith(before) and verdicts(tmp_path / "out") == expected
    assert not list(tmp_path.glob("out.part-*")) and not list(temporary.iterdir())


def test_no_folder_stays_when_nobody_listens(tmp_path):
    """The shell around Lean is told to end before Lean is there, and the reader of its words is dead already."""
    (tmp_path / "bin").mkdir()
    slow = tmp_path / "bin" / "mkdir"
    slow.write_text(f'#!/bin/sh\n{shutil.which("mkdir")} "$@"; sleep 0.5\n', encoding="utf-8")
    slow.chmod(0o755)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    env = dict(
        os.environ, TMPDIR=str(temporary), CPU_SECONDS="60", PATH=f"{slow.parent}:{os.environ['PATH']}"
    )
    words = ["sh", "-c", lib.lean.GUARD, "sh", str(os.getpid()), str(2**22), "sleep", "60"]
    process = subprocess.Popen(
        words, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    process.stderr.close()
    while not list(temporary.iterdir()):
        time.sleep(0.01)
    process.terminate()
    process.wait(120)
    assert not list(temporary.iterdir())


def running():
    """The environments of all processes that can be read, as one text."""
    found = []
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as file:
                found.append(file.read().decode("utf-8", "replace"))
        except OSError:
            pass
    return "".join(found)


@needs_lean
@pytest.mark.parametrize("spoiled", [[{"completion": "other"}], [3], [{}], []])
def test_resume_takes_only_what_fits(spoiled, tmp_path):
    """Other samples or another time limit start anew; rows that are the same are kept as they are."""
    rows, expected = fault_rows(30, {})
    write(tmp_path / "rows", rows)
    assert start(tmp_path / "rows", "--out", tmp_path / "out", "--timeout", 50).wait() == 0
    out = (tmp_path / "out").read_bytes()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(one["verdict"], one["reward"]) for one in lines] == expected
    settings = next(iter(tmp_path.glob("out.part-*")), None)
    assert settings is None
    name = lib.jsonl.part_name(tmp_path / "out", ["auto", None, None, 50.0, 200000, "lean"])
    kept = [dict(one, message="kept", seconds=7.0) for one in lines]
    write(tmp_path / os.path.basename(name), kept[:10] + spoiled + kept[11:20])
    assert start(tmp_path / "rows", "--out", tmp_path / "out", "--timeout", 50).wait() == 0
    again = [json.loads(line) for line in (tmp_path / "out").read_text(encoding="utf-8").splitlines()]
    assert [one["message"] == "kept" for one in again] == [True] * 10 + [False] * 20 and verdicts(
        tmp_path / "out"
    ) == expected


@needs_lean
def test_follow_verifies_while_the_samples_are_written(tmp_path):
    """A writer as sample.py is one: OUT.part-HASH first, whole groups, pauses, a line cut in two, renamed at the end."""
    rows, expected = fault_rows(60, {})
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in rows]
    write(tmp_path / "rows.part-0123", [{"statement": "theorem old : False := by", "completion": " skip"}])
    os.utime(tmp_path / "rows.part-0123", (1, 1))  # an older one
    process = start(tmp_path / "rows", "--out", tmp_path / "out", "--follow", stdout=subprocess.PIPE)
    with open(tmp_path / "rows.part-4567", "w", encoding="utf-8") as file:
        file.write("".join(lines[:20]) + lines[20][:30])
        file.flush()
        deadline = time.time() + 300
        while (
            time.time() < deadline
            and sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("out.part-*")) < 20
        ):
            time.sleep(0.05)
        assert (
            sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("out.part-*")) == 20
        )  # verified before the rest is there
        file.write(lines[20][30:] + "".join(lines[21:]))
    os.rename(tmp_path / "rows.part-4567", tmp_path / "rows")
    assert (
        "60 rows" in process.communicate()[0]
        and process.returncode == 0
        and verdicts(tmp_path / "out") == expected
    )


@needs_lean
def test_a_full_disk_is_said_once_whatever_the_number_of_workers(monkeypatch, capsys):
    lean = lib.lean.find_lean("auto")

    def full(**options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lib.lean.tempfile, "TemporaryFile", full)
    rows = [row("p → p", f"\n  exact fun h{n} => h{n}") for n in range(12)]
    with pytest.raises(SystemExit) as end:
        verify.verify_rows(rows, lean, workers=4, batch=3, progress=False)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    assert said.startswith("error: cannot start Lean on a file in ") and "No space left on device" in said


def test_follow_says_when_its_file_is_gone(tmp_path):
    (tmp_path / "rows.part-1").write_text("")
    lines = lib.stream.follow(str(tmp_path / "rows"))
    assert next(lines) is None
    os.remove(tmp_path / "rows.part-1")
    with pytest.raises(SystemExit):
        next(lines)


def test_a_batch_is_sent_off_before_the_rows_end():
    """The generator of rows sees that earlier ones were judged, by a judge that needs no Lean; memory stays bounded."""
    judged_before, longest = [], 0

    def judge(keys, lean, timeout, stop):
        return {key: ("proved", "", 0.0) for key in keys}

    def rows():
        nonlocal longest
        for n in range(3000):
            longest = max(longest, n - len(judged_before))
            yield row("p", f" {n}")

    lean = lib.lean.Lean([], [], {}, "", "", True, "", False, "")
    for one in verify.verify_stream(rows(), verify.lean_verifier(lean, judge, 2, 10), progress=False):
        judged_before.append(one["completion"])
    assert judged_before == [f" {n}" for n in range(3000)] and longest <= 8 * 2 * 10 + 1


def test_workers_share_what_is_left_evenly():
    sizes = []

    def judge(keys, lean, timeout, stop):
        sizes.append(len(keys))
        return {key: ("proved", "", 0.0) for key in keys}

    lean = lib.lean.Lean([], [], {}, "", "", True, "", False, "")
    verify.verify_rows(
        [row("p", f" {n}") for n in range(35)], lean, workers=4, batch=20, progress=False, judge=judge
    )
    assert sorted(sizes) == [3, 4, 4, 4, 20]
