"""The verifier behind `--verifier lean-dojo`: lean-dojo says which proofs may be right, the axiom check decides as always.

    pip install lean-dojo==2.2.0      (Python up to 3.12.0; also git, and elan from https://lean-lang.org)
    python verify.py samples.jsonl --out verified.jsonl --verifier lean-dojo --project FOLDER --lean "lake env lean"

Versions: lean-dojo 2.1.3 and 2.2.0 serve Lean up to 4.11 (DeepSeek-Prover-V1.5 uses 4.9). lean-dojo 4.20.0 cannot trace these,
and from Lean 4.12 on none of them runs tactics. FOLDER is a Lake project that requires Mathlib, with its lake-manifest.json.

1. Each problem becomes a file Problems/P00001.lean, its statement + ` sorry`, of a small git repo with FOLDER's packages.
2. lean-dojo clones, builds and traces the repo, once per set of problems; that needs GitHub and two copies of Mathlib on disk.
3. Each theorem gets a process of its own (a Dojo changes the working folder), which imports Mathlib once and tries every
   candidate on the initial state, as one tactic `( ... )`. What a Dojo cannot take (`where`, long lines) goes to 4 at once.
4. A Dojo lets sorryAx pass, so what it accepts still goes through verify.judge_batch: only that makes it "proved".

It is slower than the default verifier, and a Dojo has no heartbeat limit: where that would reject, it says "timeout".
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
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

LINE_BYTES = 4095  # lean-dojo talks to Lean through a terminal, which cuts longer lines
OPEN_SECONDS = 600  # for a Dojo to import Mathlib from a cold disk
TAKEN_OVER = "lean-toolchain", "lake-manifest.json"  # what FOLDER gives to the repo of the problems
LAKEFILE = """import Lake
open Lake DSL
package problems
%s
@[default_target]
lean_lib Problems where
  globs := #[.submodules `Problems]
"""


def check_dojo(project):
    """Ends the program with one sentence where --verifier lean-dojo lacks what it needs."""
    from lib.cli import fail

    if sys.version_info >= (3, 13):
        fail("lean-dojo needs Python 3.12 or older; use such a one, or leave --verifier out")
    if importlib.util.find_spec("lean_dojo") is None:
        fail("lean-dojo is missing; pip install lean-dojo==2.2.0, or leave --verifier out")
    if missing := [command for command in ("git", "elan", "lake", "lean") if not shutil.which(command)]:
        names = "', '".join(missing)
        fail(f"lean-dojo needs the command '{names}'; install git, and elan from https://lean-lang.org")
    text = {}
    for name in TAKEN_OVER:
        try:
            with open(os.path.join(project, name), encoding="utf-8") as file:
                text[name] = file.read().strip()
        except OSError:
            fail(
                f"{project} has no {name}; --project is the folder of a Lake project that was built with `lake build`"
            )
    try:
        packages = [dict(one, name=one["name"]) for one in json.loads(text["lake-manifest.json"])["packages"]]
    except (ValueError, KeyError, TypeError):
        fail(f"{project}/lake-manifest.json is not what Lake writes; make it again with `lake update`")
    if "mathlib" not in [one["name"] for one in packages] or not all(
        one.get("url") and one.get("rev") for one in packages
    ):
        fail(
            f"{project}/lake-manifest.json must list mathlib, and each package with its git url and rev; require them so"
        )
    toolchain, dojo = text["lean-toolchain"], importlib.metadata.version("lean-dojo")
    found = re.fullmatch(r"leanprover/lean4:v?(\d+)\.(\d+)\.\d+(-rc\d+)?", toolchain)
    if not found:
        fail(
            f"{project}/lean-toolchain says '{toolchain}'; lean-dojo reads releases such as leanprover/lean4:v4.9.0"
        )
    lean, release = tuple(map(int, found.group(1, 2))), tuple(map(int, re.findall(r"\d+", dojo)[:3]))
    if lean < (4, 3):
        fail(f"{project} is on {toolchain}, but lean-dojo begins at Lean 4.3; leave --verifier out")
    if lean >= (4, 12) and release <= (
        4,
        20,
        0,
    ):  # from here on Lean gives a running tactic an empty standard input
        fail(
            f"{project} is on {toolchain}, but lean-dojo {dojo} runs no tactics from Lean 4.12 on; leave --verifier out"
        )
    if lean < (4, 12) and not (2, 1, 3) <= release < (
        3,
        0,
        0,
    ):  # 4.20.0's ExtractData.lean calls what came after Lean 4.11
        fail(
            f"{project} is on {toolchain}, which lean-dojo {dojo} cannot trace; pip install lean-dojo==2.2.0"
        )


# ---- the problems as a repo that lean-dojo has traced ----


def write_repo(folder, problems, project, lean, timeout, workers):
    """A git repo with a file per problem. The same content gives the same commit, by which lean-dojo finds its trace again."""
    import verify

    verdicts, by_header = {}, {}
    for header, statement in problems:
        by_header.setdefault(header, []).append((header, statement, "\n  sorry"))
    batches = [group[at : at + 32] for group in by_header.values() for at in range(0, len(group), 32)]
    with ThreadPoolExecutor(workers) as pool:
        for part in pool.map(lambda batch: verify.judge_batch(batch, lean, timeout), batches):
            verdicts.update({key[:2]: verdict for key, (verdict, _, _) in part.items()})
    os.makedirs(os.path.join(folder, "Problems"))
    for number, (header, statement) in enumerate(problems, 1):
        if (
            verdicts[header, statement] == "rejected"
        ):  # a bad statement is an "error", and would fail the build of all
            with open(os.path.join(folder, f"Problems/P{number:05}.lean"), "w", encoding="utf-8") as file:
                file.write(f"{header.rstrip()}\n{statement} sorry\n")
    for name in TAKEN_OVER:
        shutil.copy(os.path.join(project, name), folder)
    with open(os.path.join(folder, "lake-manifest.json"), encoding="utf-8") as file:
        packages = [one for one in json.load(file)["packages"] if not one.get("inherited")]
    lines = [
        f'require «{one["name"]}» from git "{one["url"]}" @ "{one.get("inputRev") or one["rev"]}"'
        for one in packages
    ]
    with open(os.path.join(folder, "lakefile.lean"), "w", encoding="utf-8") as file:
        file.write(LAKEFILE % "\n".join(lines))
    fixed = {"NAME": "verify", "EMAIL": "verify@localhost", "DATE": "2000-01-01T00:00:00Z"}
    env = dict(
        os.environ, **{f"GIT_{who}_{what}": fixed[what] for who in ("AUTHOR", "COMMITTER") for what in fixed}
    )
    for words in ("init -q", "add -A -f", "-c commit.gpgsign=false commit -q --no-verify -m Problems"):
        subprocess.run(["git", *words.split()], cwd=folder, env=env, check=True)


def trace_problems(keys, project, work_dir, lean, timeout=120.0, workers=2):
    """{(header, statement): theorem} for keys (header, statement, ...); traces their repo unless lean-dojo has it.

    A theorem is (folder of the repo, file, name). Statements that Lean does not accept are left out."""
    from lib.cli import fail
    from lib.lexer import theorem_name

    problems, content, names = sorted({key[:2] for key in keys}), [LAKEFILE], {}
    for problem in problems:
        with contextlib.suppress(ValueError):
            names[problem] = theorem_name(problem[1])
    for name in TAKEN_OVER:
        with open(os.path.join(project, name), encoding="utf-8") as file:
            content.append(file.read())
    digest = hashlib.sha256(json.dumps([problems, content]).encode()).hexdigest()[:16]
    folder = os.path.join(os.path.abspath(work_dir), f"problems-{digest}")
    if not os.path.isdir(folder):
        os.makedirs(work_dir, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work_dir) as part:  # moved when complete: never half a repo
            write_repo(os.path.join(part, "repo"), list(names), project, lean, timeout, workers)
            os.rename(os.path.join(part, "repo"), folder)
    files = {problem: f"Problems/P{number:05}.lean" for number, problem in enumerate(names, 1)}
    theorems = {
        problem: (folder, path, names[problem])
        for problem, path in files.items()
        if os.path.exists(os.path.join(folder, path))
    }
    if theorems:
        child = start_child("trace", folder)
        try:
            code = child.wait()
        finally:
            stop_child(child)
        if code:
            fail(
                f"lean-dojo could not trace {folder}; mend what its messages above say, or leave --verifier out"
            )
    return theorems


# ---- the candidates of one theorem ----


def as_tactic(statement, proof):
    """The proof as one tactic `( ... )`, every column as in the file, or None where a Dojo cannot take it."""
    from lib.lexer import tokens

    proof = proof.replace("\r\n", "\n").rstrip()
    if {"where", "termination_by", "decreasing_by"}.intersection(word for _, word, _ in tokens(proof)):
        return None
    column = len(statement) - statement.rfind("\n") - 1  # the proof begins here, after `:= by`
    blanks = " " * (column - 1) if column else "\n"
    text = f"({blanks if proof.split(chr(10))[0].strip() else ''}{proof}\n)"  # a new line: a comment may end the proof
    line = json.dumps({"sid": 0, "cmd": text}, ensure_ascii=False)  # as lean-dojo will send it
    return text if len(line.encode()) <= LINE_BYTES else None


def start_child(task, folder, *words):
    """`python lib/dojo.py TASK FOLDER ...` in a process group of its own. The pipe to it tells it when we are gone."""
    home, judge = os.path.dirname(folder), task == "judge"
    defaults = {"CACHE_DIR": os.path.join(home, "lean_dojo"), "TMP_DIR": home, "TACTIC_MEMORY_LIMIT": "16g"}
    env = {**defaults, **os.environ, "DISABLE_REMOTE_CACHE": "1"}
    if judge:
        env.pop("GITHUB_ACCESS_TOKEN", None)  # with it, importing lean_dojo asks GitHub
    return subprocess.Popen(
        [sys.executable, os.path.abspath(__file__), task, folder, *map(str, words)],
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
    """The child's next line [kind, message]: its answer to text, or to having been started (None)."""
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


def judge_with(theorems):
    """A `judge` for verify.verify_stream in the place of judge_batch; theorems from trace_problems."""

    def judge(batch, lean, timeout, stop=None):
        verdicts = {}
        for problem in dict.fromkeys(key[:2] for key in batch):
            group = [key for key in batch if key[:2] == problem]
            verdicts.update(judge_with_dojo(group, theorems.get(problem), timeout, lean, stop))
        return verdicts

    return judge


def judge_with_dojo(batch, theorem, timeout, lean, stop=None):
    """verify.judge_batch's answer for the keys (header, statement, proof) of one problem; theorem as in trace_problems, or None.

    After a timeout or a crash the next candidate gets a new Dojo. The one that crashed it is tried there once more."""
    import verify

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
                kind, message = (
                    ask(child, tactics[key], timeout, stop) if opened[0] == "open" else ("closed", opened[1])
                )
                if kind in ("timeout", "crash"):
                    stop_child(child)
                    child = None
                if kind != "crash":
                    break
            spent[key] = time.monotonic() - started
            if kind == "closed":
                verdicts[key] = "error", f"bad statement: lean-dojo cannot open it: {message}", spent[key]
            elif kind == "crash":
                verdicts[key] = "error", f"the Dojo died twice: {message}", spent[key]
            elif kind != "accepted":
                verdicts[key] = kind, message, spent[key]
    finally:
        if child:
            stop_child(child)
    rest = [key for key in tactics if key not in verdicts]
    for key, (verdict, message, seconds) in (
        verify.judge_batch(rest, lean, timeout, stop) if rest else {}
    ).items():
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
    """trace: the repo, unless it is in lean-dojo's cache. judge: prints "open" or "closed", then a line for every line read."""
    lines, out = queue.Queue(), os.dup(1)
    os.dup2(2, 1)  # what lean-dojo prints is not an answer

    def listen():
        for line in sys.stdin:
            lines.put(json.loads(line))
        os.kill(0, signal.SIGKILL)  # the parent is gone: so go we, the whole group

    def say(kind, message=""):
        os.write(out, json.dumps([kind, message[:300]]).encode() + b"\n")

    threading.Thread(target=listen, daemon=True).start()
    try:
        import lean_dojo

        repo = lean_dojo.LeanGitRepo.from_path(folder)
        traced = lean_dojo.is_available_in_cache(repo)
        if task == "trace":
            return traced or lean_dojo.trace(
                repo, build_deps=False
            )  # no dst_dir: no Dojo reads that third copy
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
