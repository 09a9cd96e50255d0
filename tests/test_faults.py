"""python -m pytest tests/test_faults.py   (a verifier whose Lean dies, hangs, floods; one that is killed, followed, resumed)"""
import glob
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import pytest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [HERE, os.path.join(HERE, "tests")]
import verify  # noqa: E402
from test_verify import needs_lean, row  # noqa: E402

# Runs the real Lean on what stands before the first candidate that asks for a fault, and then has the fault: a comment
# `-- fault KIND NAME`; a KIND that ends in -once happens only the first time, which a file NAME in the folder argv[1] remembers.
FAULTY_LEAN = r'''
import os, re, signal, subprocess, sys, time
folder, lean, flags = sys.argv[1], sys.argv[2], sys.argv[3:]
text = open(0, encoding="utf-8").read()
kind = None
for fault in re.finditer(r"-- fault (\S+) (\S+)", text):
    seen = os.path.join(folder, fault[2])
    if not (fault[1].endswith("-once") and os.path.exists(seen)):
        kind = fault[1].removesuffix("-once")
        open(seen, "w").close()
        text = text[:text.rindex("namespace _c", 0, fault.start())]
        break
done = subprocess.run([sys.executable, lean, *flags], input=text, text=True, encoding="utf-8")
sys.stdout.flush()
if kind == "dies": os.kill(os.getpid(), signal.SIGKILL)
if kind == "hangs": time.sleep(600)
if kind == "panics": print("INTERNAL PANIC: out of memory", file=sys.stderr); sys.exit(1)
if kind == "aborts": sys.exit(134)
if kind == "eats": block = bytearray(1 << 50)
while kind == "floods": print('{"severity": "warning", "data": "' + "x" * 100000 + '", "pos": {"line": 3}}')
sys.exit(done.returncode)
'''


def with_faults(lean, folder):
    """The wheel's Lean with FAULTY_LEAN in front."""
    place = lean.command.index(verify.wheel.__file__)
    return lean._replace(command=[*lean.command[:place], "-c", FAULTY_LEAN, str(folder), *lean.command[place:]])


def leftovers():
    """Lean processes that are running, and files of theirs."""
    running = subprocess.run(["pgrep", "-f", "toy/lean.py --stdin"], capture_output=True, text=True).stdout.split()
    return running, glob.glob(os.path.join(tempfile.gettempdir(), "tmp.??????????"))
