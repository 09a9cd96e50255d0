"""`--verifier lean-dojo`: the package lean-dojo says which proofs may be right, the axiom check decides.

    pip install lean-dojo==2.2.0      (Python up to 3.12; also git, and elan from https://lean-lang.org)
    python verify.py ... --verifier lean-dojo --project FOLDER --lean "lake env lean"

FOLDER is a Lake project that requires Mathlib, with its lake-manifest.json. The versions that work are in
check_dojo: lean-dojo 4.20.0 cannot trace a Lean before 4.12, and no release runs tactics from 4.12 on.

1. Each problem becomes a file Problems/P00001.lean, its statement + ` sorry`, in a repo with its packages.
2. lean-dojo clones, builds and traces the repo, once per set of problems: GitHub, and two copies of Mathlib.
3. Each batch gets a process of its own, since a Dojo changes the working folder. A theorem's Dojo imports
   Mathlib once and tries every candidate on the first state, as one tactic `( ... )`.
4. A Dojo only rejects. judge_batch decides on what it accepts, since it lets sorryAx pass, and on what it
   does not take: `where`, long lines, a proof that ends it by a timeout or a crash, and those after that one.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from lib.cli import die_with_parent, fail
from lib.lexer import theorem_name, tokens

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LINE_BYTES = 4095  # lean-dojo talks to Lean through a terminal, which cuts longer lines
OPEN_SECONDS = 600  # for a Dojo to import Mathlib from a cold disk
UNOPENED = "bad statement: lean-dojo cannot open it"
SHARED = "lean-toolchain", "lake-manifest.json"  # files that the repo of the problems takes from FOLDER
LAKEFILE = """import Lake
open Lake DSL
package problems
%s
@[default_target]
lean_lib Problems where
  globs := #[.submodules `Problems]
"""


def read_project(project):
    """(lean-toolchain, lake-manifest.json, its packages); ends the program if they are not as needed."""
    try:
        toolchain, manifest = [open(os.path.join(project, name), encoding="utf-8").read() for name in SHARED]
        packages = json.loads(manifest)["packages"]
        has_mathlib = "mathlib" in [one["name"] for one in packages]
        fits = has_mathlib and all(one["url"] and one["rev"] for one in packages)
    except OSError as error:
        fail(f"cannot read {error.filename}; --project is a Lake project built with `lake build`")
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        needed = "list mathlib, and each package with its git url and rev, as `lake update` writes it"
        fail(f"{project}/lake-manifest.json must {needed}")
    return toolchain, manifest, packages


def check_dojo(project):
    """Ends the program with one sentence if --verifier lean-dojo lacks something."""
    if sys.version_info >= (3, 13) or importlib.util.find_spec("lean_dojo") is None:
        fail("lean-dojo is missing: with Python 3.12 or older, pip install lean-dojo==2.2.0")
    if missing := [command for command in ("git", "elan", "lake", "lean") if not shutil.which(command)]:
        fail(f"lean-dojo needs the command '{missing[0]}'; install git, and elan from https://lean-lang.org")
    toolchain, release = read_project(project)[0].strip(), importlib.metadata.version("lean-dojo")
    minor = re.match(r"leanprover/lean4:v?4\.(\d+)\.", toolchain)
    if not minor or not 3 <= int(minor[1]) <= 11 or release not in ("2.1.3", "2.2.0"):
        works = "Lean 4.3 to 4.11 with lean-dojo 2.1.3 or 2.2.0 works"
        fail(f"{project} is on {toolchain}, and lean-dojo is {release}; {works}, or no --verifier")


# ---- the problems as a repo that lean-dojo has traced ----


def statements_that_hold(keys, lean, judge_batch, timeout):
    """{(header, statement): name} of what Lean accepts with a `sorry`; another one would fail the build."""
    names = {}
    for key in sorted({key[:2] for key in keys}):
        with contextlib.suppress(ValueError):
            names[key] = theorem_name(key[1])
    for _, group in itertools.groupby(list(names), key=lambda problem: problem[0]):
        for key, verdict in judge_batch([(*one, "\n  sorry") for one in group], lean, timeout).items():
            if verdict[0] != "rejected":
                del names[key[:2]]
    return names


def write_repo(home, problems, project):
    """A git repo of the problems, with the project's Lean and packages, in a folder named by their hash.

    Returns (folder, paths of the problems)."""
    toolchain, manifest, packages = read_project(project)
    required = [
        f'require «{one["name"]}» from git "{one["url"]}" @ "{one.get("inputRev") or one["rev"]}"'
        for one in packages
        if not one.get("inherited")
    ]
    paths = [f"Problems/P{number:05}.lean" for number in range(1, len(problems) + 1)]
    files = {path: f"{one[0].rstrip()}\n{one[1]} sorry\n" for path, one in zip(paths, problems)}
    files |= {"lean-toolchain": toolchain, "lake-manifest.json": manifest}
    files["lakefile.lean"] = LAKEFILE % "\n".join(required)
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
    folder = os.path.join(home, f"problems-{digest}")
    if not os.path.isdir(f"{folder}/.git"):
        os.makedirs(f"{folder}/Problems", exist_ok=True)
        for path, text in files.items():
            with open(os.path.join(folder, path), "w", encoding="utf-8") as file:
                file.write(text)
        who = "-c user.name=verify -c user.email=verify@localhost -c commit.gpgsign=false"
        for words in ("init -q", "add -A -f", f"{who} commit -q --no-verify -m Problems"):
            subprocess.run(["git", *words.split()], cwd=folder, check=True)
    return folder, paths


def trace_problems(keys, lean, judge_batch, timeout=60.0):
    """{(header, statement): (repo, file, name)} for keys (header, statement, ...) that Lean accepts.

    Traces their repo, unless lean-dojo has it."""
    names = statements_that_hold(keys, lean, judge_batch, timeout)
    if not names:
        return {}
    folder, paths = write_repo(os.path.join(lean.folder, ".lake", "dojo"), names, lean.folder)
    with start_child(folder, stdout=2) as child:
        child.wait()
    if child.returncode:
        fail(f"lean-dojo could not trace {folder}; its messages above say why. Or leave --verifier out")
    return {key: (folder, path, name) for (key, name), path in zip(names.items(), paths)}


# ---- the candidates of a batch ----


def as_tactic(statement, proof):
    """The proof as one tactic `( ... )`, every column as in the file, or None if a Dojo cannot take it."""
    proof = proof.replace("\r\n", "\n").rstrip()
    if {"where", "termination_by", "decreasing_by"}.intersection(word for _, word, _ in tokens(proof)):
        return None
    column = len(statement) - statement.rfind("\n") - 1  # the proof begins here, after `:= by`
    blanks = " " * (column - 1) if column else "\n"
    begins_here = proof.split("\n")[0].strip()
    text = f"({blanks if begins_here else ''}{proof}\n)"  # \n: a comment may end the proof
    line = json.dumps({"sid": 0, "cmd": text}, ensure_ascii=False)  # as lean-dojo will send it
    return text if len(line.encode()) <= LINE_BYTES else None


@contextlib.contextmanager
def start_child(*words, **options):
    """`python -m lib.dojo FOLDER [TIMEOUT]`, which ends with us."""
    command = [sys.executable, "-m", "lib.dojo", *map(str, words)]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **options) as child:
        try:
            yield child
        finally:  # Lean goes with it, because the terminal between them closes
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def ask_dojos(tactics_of, timeout, stop):
    """Verdicts of Dojos on {(repo, file, name): {key: tactic}}: rejected or error; proved ones left out."""
    job = [[*theorem, list(tactics.values())] for theorem, tactics in tactics_of.items()]
    start, count = time.monotonic(), sum(map(len, tactics_of.values()))
    deadline = start + OPEN_SECONDS * len(job) + 2 * timeout * count
    with tempfile.TemporaryFile("w+", encoding="utf-8") as question, tempfile.TemporaryFile() as answers:
        json.dump(job, question)
        question.seek(0)
        options = {"stdin": question, "stdout": answers, "stderr": subprocess.DEVNULL}
        with start_child(job[0][0], timeout, **options) as child:
            while child.poll() is None and time.monotonic() < deadline and not (stop and stop.is_set()):
                time.sleep(0.1)
        answers.seek(0)
        found = [json.loads(line) for line in answers if line.endswith(b"\n")]
    verdicts, seconds = {}, (time.monotonic() - start) / count
    for tactics, reasons in zip(tactics_of.values(), found):
        for key, reason in zip(tactics, reasons):
            if reason is not None:
                verdicts[key] = "error" if reason.startswith(UNOPENED) else "rejected", reason, seconds
    return verdicts


def judge_with(theorems, judge_batch):
    """A `judge` in the place of judge_batch, with theorems from trace_problems."""

    def judge(batch, lean, timeout, stop=None):
        tactics_of = {}
        for key in batch:
            if key[:2] in theorems and (tactic := as_tactic(*key[1:])):
                tactics_of.setdefault(theorems[key[:2]], {})[key] = tactic
        verdicts = ask_dojos(tactics_of, timeout, stop) if tactics_of else {}
        undecided = [key for key in batch if key not in verdicts]
        return verdicts | (judge_batch(undecided, lean, timeout, stop) if undecided else {})

    return judge


# ---- inside the process of start_child: only here is lean_dojo imported ----


def rejection(lean_dojo, dojo, state, text):
    """Why the Dojo does not take a candidate, or None if it does."""
    result = dojo.run_tac(state, text)
    if isinstance(result, lean_dojo.ProofFinished):
        return None
    if isinstance(result, lean_dojo.TacticState):
        return f"unsolved goals\n{result.pp}"
    return result.error if isinstance(result, lean_dojo.LeanError) else "the proof holds a sorry"


def rejections(lean_dojo, theorem, tactics, timeout):
    """rejection() of each tactic, up to one that ends the Dojo: by a timeout, a crash, unreadable goals."""
    found = []
    try:
        with lean_dojo.Dojo(theorem, timeout=OPEN_SECONDS) as (dojo, state):
            dojo.proc.timeout = timeout  # from now on, for one answer
            with contextlib.suppress(Exception):
                for tactic in tactics:
                    found.append(rejection(lean_dojo, dojo, state, tactic))
        return found
    except Exception as error:
        return [f"{UNOPENED}: {type(error).__name__}: {error}"] * len(tactics)


def child_main(folder, timeout=None):
    """Traces the repo, unless lean-dojo has it. With a timeout: judges the candidates on standard input."""
    die_with_parent()
    home, out = os.path.dirname(folder), os.dup(1)
    os.dup2(2, 1)  # what lean-dojo prints is not an answer
    os.chdir(home)
    limits = {"CACHE_DIR": os.path.join(home, "lean_dojo"), "TMP_DIR": home, "TACTIC_MEMORY_LIMIT": "16g"}
    os.environ.update({**limits, **os.environ, "DISABLE_REMOTE_CACHE": "1"})
    if timeout:
        os.environ.pop("GITHUB_ACCESS_TOKEN", None)  # with it, importing lean_dojo asks GitHub
    import lean_dojo

    repo = lean_dojo.LeanGitRepo.from_path(folder)
    if not lean_dojo.is_available_in_cache(repo):
        lean_dojo.trace(repo, build_deps=False)  # no dst_dir: no Dojo reads that copy
    for _, path, name, tactics in json.load(sys.stdin) if timeout else ():
        found = rejections(lean_dojo, lean_dojo.Theorem(repo, path, name), tactics, float(timeout))
        os.write(out, json.dumps(found).encode() + b"\n")


if __name__ == "__main__":
    child_main(*sys.argv[1:])
