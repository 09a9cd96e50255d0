"""`--verifier lean-dojo`: the package lean-dojo says which proofs may be right, the axiom check decides.

    pip install lean-dojo==2.2.0      (Python up to 3.12; also git, and elan from https://lean-lang.org)
    python verify.py ... --verifier lean-dojo --project FOLDER --lean "lake env lean"

FOLDER is a Lake project that requires Mathlib, with its lake-manifest.json. Releases 2.1.3 and 2.2.0 serve
Lean 4.3 to 4.11 (DeepSeek-Prover-V1.5 uses 4.9); 4.20.0 cannot trace these; none runs tactics from 4.12 on.

1. Each problem becomes a file Problems/P00001.lean, its statement + ` sorry`, in a repo with its packages.
2. lean-dojo clones, builds and traces the repo, once per set of problems: GitHub, and two copies of Mathlib.
3. Each theorem gets a process of its own, since a Dojo changes the working folder. It imports Mathlib once,
   tries every candidate on the first state, as one tactic `( ... )`. `where` and long lines skip this step.
4. A Dojo lets sorryAx pass, so what it accepts goes through judge_batch: only that makes it "proved".

It is slower than the default verifier. It has no heartbeat limit: where that rejects, it says "timeout".
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import queue
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from lib.cli import fail
from lib.lexer import theorem_name, tokens

LINE_BYTES = 4095  # lean-dojo talks to Lean through a terminal, which cuts longer lines
OPEN_SECONDS = 600  # for a Dojo to import Mathlib from a cold disk
SHARED = "lean-toolchain", "lake-manifest.json"  # files that the repo of the problems takes from FOLDER
LAKEFILE = """import Lake
open Lake DSL
package problems
%s
@[default_target]
lean_lib Problems where
  globs := #[.submodules `Problems]
"""


def check_dojo(project):
    """Ends the program with one sentence if --verifier lean-dojo lacks something."""
    if sys.version_info >= (3, 13):
        fail("lean-dojo needs Python 3.12 or older; use such a one, or leave --verifier out")
    if importlib.util.find_spec("lean_dojo") is None:
        fail("lean-dojo is missing; pip install lean-dojo==2.2.0, or leave --verifier out")
    if missing := [command for command in ("git", "elan", "lake", "lean") if not shutil.which(command)]:
        fail(f"lean-dojo needs the command '{missing[0]}'; install git, and elan from https://lean-lang.org")
    try:
        toolchain, manifest = [open(os.path.join(project, name), encoding="utf-8").read() for name in SHARED]
    except OSError as error:
        name = os.path.basename(error.filename)
        fail(f"{project} has no {name}; --project is the folder of a Lake project built with `lake build`")
    try:
        packages = {
            one["name"]: one.get("url") and one.get("rev") for one in json.loads(manifest)["packages"]
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        fail(f"{project}/lake-manifest.json is not what Lake writes; make it again with `lake update`")
    if "mathlib" not in packages or not all(packages.values()):
        fail(f"{project}/lake-manifest.json must list mathlib, and each package with its git url and rev")
    toolchain, dojo = toolchain.strip(), importlib.metadata.version("lean-dojo")
    found = re.fullmatch(r"leanprover/lean4:v?(\d+)\.(\d+)\.\d+(-rc\d+)?", toolchain)
    if not found:
        fail(
            f"{project}/lean-toolchain says '{toolchain}'; lean-dojo reads releases: leanprover/lean4:v4.9.0"
        )
    lean, release = tuple(map(int, found.group(1, 2))), tuple(map(int, re.findall(r"\d+", dojo)[:3]))
    here = f"{project} is on {toolchain}"
    if lean < (4, 3):
        fail(f"{here}, but lean-dojo begins at Lean 4.3; leave --verifier out")
    if lean >= (4, 12) and release <= (
        4,
        20,
        0,
    ):  # from 4.12 on, a running tactic has an empty standard input
        fail(f"{here}, but lean-dojo {dojo} runs no tactics from Lean 4.12 on; leave --verifier out")
    if lean < (4, 12) and not (2, 1, 3) <= release < (3, 0, 0):  # 4.20.0 calls what came after Lean 4.11
        fail(f"{here}, which lean-dojo {dojo} cannot trace; pip install lean-dojo==2.2.0")


def dojo_judge(problems, lean, judge_batch, timeout, workers):
    """A `judge` in the place of judge_batch. problems: (header, statement) of all rows that will come.

    A problem that is not among them, or that lean-dojo cannot have, goes to judge_batch alone."""
    work_dir = os.path.join(lean.folder, ".lake", "dojo")
    theorems = trace_problems(problems, lean.folder, work_dir, lean, judge_batch, timeout, workers)
    return judge_with(theorems, judge_batch)


# ---- the problems as a repo that lean-dojo has traced ----


def statements_that_hold(problems, lean, judge_batch, timeout, workers):
    """Those that Lean accepts with a `sorry`: one bad statement would fail the build of all."""
    groups = [list(group) for _, group in itertools.groupby(sorted(problems), key=lambda problem: problem[0])]
    keys = [[(*problem, "\n  sorry") for problem in group] for group in groups]
    batches = [group[at : at + 32] for group in keys for at in range(0, len(group), 32)]
    with ThreadPoolExecutor(workers) as pool:
        judged = list(pool.map(lambda batch: judge_batch(batch, lean, timeout), batches))
    return {key[:2] for verdicts in judged for key, verdict in verdicts.items() if verdict[0] == "rejected"}


def write_repo(folder, files, project):
    """A git repo with these files {path: text}. The same content is the same commit, and finds its trace."""
    for name in SHARED:
        shutil.copy(os.path.join(project, name), folder)
    with open(os.path.join(folder, "lake-manifest.json"), encoding="utf-8") as file:
        packages = [one for one in json.load(file)["packages"] if not one.get("inherited")]
    require = 'require «{name}» from git "{url}" @ "{inputRev}"'
    required = [require.format(**one | {"inputRev": one.get("inputRev") or one["rev"]}) for one in packages]
    os.makedirs(os.path.join(folder, "Problems"))
    for path, text in {**files, "lakefile.lean": LAKEFILE % "\n".join(required)}.items():
        with open(os.path.join(folder, path), "w", encoding="utf-8") as file:
            file.write(text)
    fixed = {"NAME": "verify", "EMAIL": "verify@localhost", "DATE": "2000-01-01T00:00:00Z"}
    env = {f"GIT_{who}_{what}": fixed[what] for who in ("AUTHOR", "COMMITTER") for what in fixed}
    for words in ("init -q", "add -A -f", "-c commit.gpgsign=false commit -q --no-verify -m Problems"):
        subprocess.run(["git", *words.split()], cwd=folder, env={**os.environ, **env}, check=True)


def trace_problems(keys, project, work_dir, lean, judge_batch, timeout=60.0, workers=2):
    """{(header, statement): (repo, file, name)} for keys (header, statement, ...) that Lean accepts.

    Traces their repo, unless lean-dojo has it."""
    problems, content, names = sorted({key[:2] for key in keys}), [LAKEFILE], {}
    for problem in problems:
        with contextlib.suppress(ValueError):
            names[problem] = theorem_name(problem[1])
    for name in SHARED:
        with open(os.path.join(project, name), encoding="utf-8") as file:
            content.append(file.read())
    digest = hashlib.sha256(json.dumps([problems, content]).encode()).hexdigest()[:16]
    folder = os.path.join(os.path.abspath(work_dir), f"problems-{digest}")
    paths = {problem: f"Problems/P{number:05}.lean" for number, problem in enumerate(names, 1)}
    if not os.path.isdir(folder):
        good = statements_that_hold(names, lean, judge_batch, timeout, workers)
        files = {paths[one]: f"{one[0].rstrip()}\n{one[1]} sorry\n" for one in names if one in good}
        os.makedirs(work_dir, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work_dir) as part:  # moved when complete: never half a repo
            os.mkdir(os.path.join(part, "repo"))
            write_repo(os.path.join(part, "repo"), files, project)
            os.rename(os.path.join(part, "repo"), folder)
    theorems = {one: (folder, path, names[one]) for one, path in paths.items()}
    theorems = {one: found for one, found in theorems.items() if os.path.exists(os.path.join(*found[:2]))}
    if theorems:
        child = start_child("trace", folder)
        try:
            code = child.wait()
        finally:
            stop_child(child)
        if code:
            fail(f"lean-dojo could not trace {folder}; its messages above say why. Or leave --verifier out")
    return theorems


# ---- the candidates of one theorem ----


def as_tactic(statement, proof):
    """The proof as one tactic `( ... )`, every column as in the file, or None if a Dojo cannot take it."""
    proof = proof.replace("\r\n", "\n").rstrip()
    if {"where", "termination_by", "decreasing_by"}.intersection(word for _, word, _ in tokens(proof)):
        return None
    column = len(statement) - statement.rfind("\n") - 1  # the proof begins here, after `:= by`
    blanks = " " * (column - 1) if column else "\n"
    text = (
        f"({blanks if proof.split(chr(10))[0].strip() else ''}{proof}\n)"  # \n: a comment may end the proof
    )
    line = json.dumps({"sid": 0, "cmd": text}, ensure_ascii=False)  # as lean-dojo will send it
    return text if len(line.encode()) <= LINE_BYTES else None


def start_child(task, folder, *words):
    """`python -m lib.dojo TASK FOLDER ...` in a process group of its own. Its stdin ends with us."""
    home, judge = os.path.dirname(folder), task == "judge"
    env = {"CACHE_DIR": os.path.join(home, "lean_dojo"), "TMP_DIR": home, "TACTIC_MEMORY_LIMIT": "16g"}
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    env = {**env, **os.environ, "DISABLE_REMOTE_CACHE": "1", "PYTHONPATH": path}
    if judge:
        env.pop("GITHUB_ACCESS_TOKEN", None)  # with it, importing lean_dojo asks GitHub
    return subprocess.Popen(
        [sys.executable, "-m", "lib.dojo", task, folder, *map(str, words)],
        cwd=home,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if judge else 2,
        bufsize=0,
        stderr=subprocess.DEVNULL if judge else None,
        start_new_session=True,
    )


def stop_child(child):
    """Kills the process; Lean goes with it, because the terminal between them closes."""
    with child, contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def ask(child, text, seconds, stop):
    """The child's next line [kind, message]: its answer to text, or that the Dojo is open (text None)."""
    deadline = time.monotonic() + seconds
    try:
        if text is not None:
            child.stdin.write(json.dumps(text).encode() + b"\n")
        while not select.select([child.stdout], [], [], 0.2)[0]:
            if time.monotonic() > deadline or stop and stop.is_set():
                return ["timeout", f"no answer from lean-dojo within {seconds:g} s"]
        return json.loads(child.stdout.readline())
    except (OSError, ValueError):
        return ["crash", "its process ended"]


def judge_with(theorems, judge_batch):
    """A `judge` in the place of judge_batch; theorems from trace_problems."""

    def judge(batch, lean, timeout, stop=None):
        verdicts = {}
        for problem in dict.fromkeys(key[:2] for key in batch):
            group = [key for key in batch if key[:2] == problem]
            verdicts |= judge_with_dojo(group, theorems.get(problem), judge_batch, timeout, lean, stop)
        return verdicts

    return judge


def judge_with_dojo(batch, theorem, judge_batch, timeout, lean, stop=None):
    """judge_batch's answer for keys (header, statement, proof) of one theorem: (repo, file, name) or None.

    After a timeout or a crash the next candidate gets a new Dojo. The one that crashed it is tried twice."""
    tactics = {key: theorem and as_tactic(key[1], key[2]) for key in batch}
    verdicts, spent, child, opened = {}, dict.fromkeys(tactics, 0.0), None, None
    try:
        for key in (key for key in tactics if tactics[key]):
            if stop and stop.is_set():
                return verdicts
            started = time.monotonic()
            for _ in (1, 2):
                if child is None:
                    child = start_child("judge", *theorem, max(OPEN_SECONDS, int(timeout) + 60))
                    opened = ask(child, None, OPEN_SECONDS + 60, stop)
                is_open = opened[0] == "open"
                kind, message = ask(child, tactics[key], timeout, stop) if is_open else ("closed", opened[1])
                if kind in ("timeout", "crash"):
                    stop_child(child)
                    child = None
                if kind != "crash":
                    break
            spent[key] = time.monotonic() - started
            if kind == "closed":
                kind, message = "error", f"bad statement: lean-dojo cannot open it: {message}"
            elif kind == "crash":
                kind, message = "error", f"the Dojo died twice: {message}"
            if kind != "accepted":
                verdicts[key] = kind, message, spent[key]
    finally:
        if child:
            stop_child(child)
    undecided = [key for key in tactics if key not in verdicts]
    judged = judge_batch(undecided, lean, timeout, stop) if undecided else {}
    for key, (verdict, message, seconds) in judged.items():
        verdicts[key] = verdict, message, spent[key] + seconds
    return verdicts


# ---- inside the process of start_child: only here is lean_dojo imported ----


def try_tactic(lean_dojo, dojo, state, text):
    """(kind, message) for one candidate; kind is accepted, rejected, timeout or crash."""
    try:
        result = dojo.run_tac(state, text)
    except lean_dojo.DojoTacticTimeoutError:
        return "timeout", "lean-dojo's own time limit"
    except AssertionError:  # Lean was killed, or left goals that lean-dojo cannot read
        return ("rejected", "unsolved goals") if dojo.proc.isalive() else ("crash", "Lean was killed")
    except (lean_dojo.DojoCrashError, OSError) as error:
        return "crash", f"{error}"
    if isinstance(result, lean_dojo.ProofFinished):
        return "accepted", ""
    if isinstance(result, lean_dojo.TacticState):
        return "rejected", f"unsolved goals\n{result.pp}"
    return "rejected", result.error if isinstance(result, lean_dojo.LeanError) else "the proof holds a sorry"


def child_main(task, folder, path=None, name=None, seconds=OPEN_SECONDS):
    """trace: the repo, unless lean-dojo has it. judge: prints "open" or "closed", then an answer a line."""
    lines, out = queue.Queue(), os.dup(1)
    os.dup2(2, 1)  # what lean-dojo prints is not an answer

    def listen():
        for line in sys.stdin:
            lines.put(json.loads(line))
        os.kill(0, signal.SIGKILL)  # the parent is gone: the whole group ends

    def say(kind, message=""):
        os.write(out, json.dumps([kind, message[:300]]).encode() + b"\n")

    threading.Thread(target=listen, daemon=True).start()
    try:
        import lean_dojo

        repo = lean_dojo.LeanGitRepo.from_path(folder)
        traced = lean_dojo.is_available_in_cache(repo)
        if task == "trace":
            return traced or lean_dojo.trace(repo, build_deps=False)  # no dst_dir: no Dojo reads that copy
        if not traced:  # a Dojo would trace now, and all of Mathlib
            return say("closed", "its repo is not in lean-dojo's cache")
        with lean_dojo.Dojo(lean_dojo.Theorem(repo, path, name), timeout=int(seconds)) as (dojo, state):
            say("open")
            while True:
                say(*try_tactic(lean_dojo, dojo, state, lines.get()))
    except Exception as error:
        if task == "trace":
            raise
        say("closed", f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    child_main(*sys.argv[1:])
