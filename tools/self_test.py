"""Checks an installation of Lean: known proofs and cheats, the sandbox, the speed; prints a table.

    python tools/self_test.py                                                     # the wheel's Lean
    python tools/self_test.py --lean "lake env lean" --project DIR --workers 16   # a toolchain with Mathlib

Ends with code 2 if a verdict is wrong.
"""

import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from lib.cli import fail, flags
from lib.lean import WITH_PARENT, Lean, find_lean, run_lean
from verify import add_flags, verify_rows

TRUE, FALSE = ("theorem self_test (p q : Prop) : p → {} := by".format(goal) for goal in "pq")
HONEST, WRONG = "\n  intro h\n  exact h", "\n  intro h\n  skip"
CHEATS = {
    "sorry": "\n  sorry",
    "an axiom as a term": "\n  exact sorryAx _ false",
    "a command after the proof": "\n  skip\n\n#eval 1",
    "a declaration after the proof": "\n  skip\n\naxiom cheat (a : Prop) : a",
    "leaving its namespace": "\n  skip\nend\nnamespace self_test",
    "a comment that swallows its neighbours": "\n  skip /- ",
    "a string that swallows its neighbours": '\n  exact "',
    "a macro": "\n  skip\nmacro_rules | `(tactic| skip) => `(tactic| sorry)",
    "code that runs in Lean": '\n  run_tac Lean.logInfo ""',
    "compiled evaluation": "\n  native_decide",
    "the kernel switched off": "\n  set_option debug.skipKernelTC true in\n  decide",
    "an invisible character": "\n  so\u200brry",
}
RUNAWAY = "\n  set_option maxHeartbeats 0 in\n  repeat' (intro h; revert h)"
CHECKS = [
    ("an honest proof", TRUE, HONEST, "proved"),
    ("a wrong proof", FALSE, HONEST, "rejected"),
    ("an unfinished proof", TRUE, WRONG, "rejected"),
    ("a statement that is none", "theorem t : no such := by", HONEST, "error"),
    ("text after the fence", TRUE, HONEST + "\n```\nSo it holds.", "rejected"),
    ("a proof that never ends", TRUE, RUNAWAY, "timeout"),
    *((name, FALSE, cheat, "rejected") for name, cheat in CHEATS.items()),
]
PROBE = """echo $(ulimit -v) $(ulimit -t) $(ulimit -f) $( (ulimit -u || ulimit -p) 2>/dev/null) x
grep -c : /proc/net/dev; ls -d /proc/[0-9]* | grep -c .
echo "$TMPDIR"; [ -z "$(ls -A "$TMPDIR")" ] && echo empty"""


def honest_rows(count: int) -> list[dict]:
    return [{"statement": TRUE, "completion": f"\n  intro h{k}\n  exact h{k}"} for k in range(count)]


def wrong_verdicts(lean: Lean, workers: int, timeout: float) -> list[str]:
    """Prints what became of CHECKS, each beside an honest proof, and returns those that went wrong."""
    neighbours = honest_rows(len(CHECKS))
    rows = [{"statement": statement, "completion": completion} for _, statement, completion, _ in CHECKS]
    mixed = [row for pair in zip(rows, neighbours) for row in pair]
    judged = verify_rows(mixed, lean, False, workers=workers, batch=len(mixed), timeout=timeout)
    print(f"{'check':42s}{'must be':10s}{'is':10s}why")
    for (name, _, _, expected), row in zip(CHECKS, judged[::2]):
        print(f"{name:42s}{expected:10s}{row['verdict']:10s}{' '.join(row['message'].split())[:60]}")
    others = sorted({row["verdict"] for row in judged[1::2]})
    print(f"{'their neighbours, all honest':42s}{'proved':10s}{', '.join(others)}")
    wrong = [check[0] for check, row in zip(CHECKS, judged[::2]) if row["verdict"] != check[3]]
    return wrong if others == ["proved"] else [*wrong, "their neighbours"]


def sandbox(lean: Lean) -> dict[str, bool]:
    """What the sandbox holds off on this machine, asked of a shell in the place of Lean."""
    command, env = [*lean.sandbox, "sh", "-c", PROBE], dict(lean.env, CPU_SECONDS="77")
    said = subprocess.run(command, env=env, capture_output=True, text=True).stdout
    limits, interfaces, processes, folder, empty = (said.splitlines() + [""] * 5)[:5]
    memory, cpu, size, count = (limits.split() + ["unlimited"] * 4)[:4]
    return {
        "no network": interfaces == "1",
        "no other process in sight": processes.isdigit() and int(processes) < 10,
        "at most 256 processes (root is exempt)": count == "256" and os.getuid() != 0,
        "address space limited": memory.isdigit(),
        "CPU time limited": cpu == "77",
        "size of files limited": size.isdigit(),
        "a private temporary folder, removed afterwards": empty == "empty" and not os.path.exists(folder),
        "gone when verify.py is killed": WITH_PARENT[0] in lean.sandbox,
    }


def main():
    parser = flags("Check an installation of Lean.")
    add_flags(parser)
    args = parser.parse_args()
    lean = find_lean(args.lean, args.project, args.header, args.memory_gb, args.max_heartbeats)
    start = time.monotonic()
    run_lean(lean.header.rstrip() + "\n", lean, 600)
    seconds = time.monotonic() - start
    print(f"Lean {lean.version}: {' '.join(lean.command)}\nstart and header: {seconds:.2f} s\n")
    wrong = wrong_verdicts(lean, args.workers, 3 + 3 * seconds)
    print("\nsandbox")
    for what, holds in sandbox(lean).items():
        print(f"{what:52s}{'yes' if holds else 'NO, not on this machine'}")
    rows = honest_rows(args.verify_batch * args.workers)
    start = time.monotonic()
    verify_rows(rows, lean, progress=False, workers=args.workers, batch=args.verify_batch)
    speed = len(rows) / (time.monotonic() - start)
    print(f"\nworkers: {args.workers}, batches of {args.verify_batch}: {speed:.0f} trivial proofs/s")
    if wrong:
        fail(f"wrong verdicts for: {', '.join(wrong)}; do not trust this installation")


if __name__ == "__main__":
    main()
