"""Checks an installation of Lean: known proofs and cheats, the sandbox, the speed; prints a table.

python tools/self_test.py                                                     # the wheel's Lean
python tools/self_test.py --lean "lake env lean" --project DIR --workers 16   # a toolchain with Mathlib
"""

import os
import subprocess
import sys
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from lib.cli import fail, flags
from lib.lean import WITH_PARENT, find_lean, run_lean
from verify import REWARD, add_flags, judge_batch, verify_rows

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
PROBE = """echo $(ulimit -v) $(ulimit -t) $(ulimit -f) $( (ulimit -u || ulimit -p) 2>/dev/null) x
grep -c : /proc/net/dev; ls -d /proc/[0-9]* | grep -c .; echo "$TMPDIR"; [ -z "$(ls -A "$TMPDIR")" ] && echo empty"""


def row(statement: str, completion: str) -> dict:
    return {"statement": statement, "completion": completion}


def sandbox(lean):
    """[(what, whether it holds here)], asked of a shell in the place of Lean."""
    done = subprocess.run(
        [*lean.sandbox, "sh", "-c", PROBE],
        env=dict(lean.env, CPU_SECONDS="77"),
        capture_output=True,
        text=True,
    )
    limits, interfaces, processes, folder, empty = (done.stdout.splitlines() + [""] * 5)[:5]
    memory, cpu, size, number = (limits.split() + ["unlimited"] * 4)[:4]
    return [
        ("no network", interfaces == "1"),
        (
            "no other process in sight, all of them gone with the first",
            processes.isdigit() and int(processes) < 10,
        ),
        ("at most 256 processes (root is exempt)", number == "256" and os.getuid() != 0),
        ("address space limited", memory.isdigit()),
        ("CPU time limited", cpu == "77"),
        ("size of files limited", size.isdigit()),
        ("a private temporary folder, removed afterwards", empty == "empty" and not os.path.exists(folder)),
        ("gone when verify.py is killed", WITH_PARENT[0] in lean.sandbox),
    ]


def self_test(lean: Any, workers: int, batch: int) -> None:
    """Prints the table; ends the program with code 2 where a verdict is not what it must be."""
    start = time.monotonic()
    run_lean(lean.header.rstrip() + "\n", lean, 600)
    seconds = time.monotonic() - start
    print(f"Lean {lean.version}: {' '.join(lean.command)}\nstart and header: {seconds:.2f} s\n")
    checks = [
        ("an honest proof", TRUE, HONEST, "proved"),
        ("a wrong proof", FALSE, HONEST, "rejected"),
        ("an unfinished proof", TRUE, WRONG, "rejected"),
        ("a statement that is none", "theorem t : no such := by", HONEST, "error"),
        ("a truncated proof", TRUE, HONEST, "rejected"),
        ("a proof that never ends", TRUE, RUNAWAY, "timeout"),
    ]
    checks += [(name, FALSE, cheat, "rejected") for name, cheat in CHEATS.items()]
    rows = [row(statement, completion) for _, statement, completion, _ in checks]
    rows[4]["finish_reason"] = "length"
    neighbours = [row(TRUE, f"\n  intro h{number}\n  exact h{number}") for number in range(len(rows))]
    timeout = 3 + 3 * seconds
    out = verify_rows(
        [one for pair in zip(rows, neighbours) for one in pair],
        lean,
        progress=False,
        workers=workers,
        batch=2 * len(rows),
        timeout=timeout,
    )
    alone = [judge_batch([(lean.header, one["statement"], one["completion"])], lean, timeout) for one in rows]
    print(f"{'check':42s}{'must be':10s}{'is':10s}{'Lean alone':12s}why")
    bad = []
    for (name, _, _, expected), found, one in zip(checks, out[::2], alone):
        ((verdict, _, _),) = one.values()
        print(
            f"{name:42s}{expected:10s}{found['verdict']:10s}{verdict:12s}{' '.join(found['message'].split())[:60]}"
        )
        bad += [name] * (found["verdict"] != expected or found["reward"] != REWARD[expected])
    print(
        f"{'their neighbours, all honest':42s}{'proved':10s}{', '.join(sorted({one['verdict'] for one in out[1::2]}))}"
    )
    bad += ["their neighbours"] * any(one["verdict"] != "proved" for one in out[1::2])
    print("\nsandbox")
    for what, holds in sandbox(lean):
        print(f"{what:62s}{'yes' if holds else 'NO, not on this machine'}")
    for number in sorted({1, workers}):
        rows = [row(TRUE, f"\n  intro h{k}\n  exact h{k}") for k in range(batch * number)]
        start = time.monotonic()
        verify_rows(rows, lean, progress=False, workers=number, batch=batch)
        print(
            f"\n{number} worker{'s' * (number > 1)}, batches of {batch}: {len(rows) / (time.monotonic() - start):.0f} trivial proofs/s",
            end="",
        )
    print()
    if bad:
        fail(f"wrong verdicts for: {', '.join(bad)}; do not trust this installation")


def main():
    parser = flags("Check an installation of Lean.")
    add_flags(parser)
    args = parser.parse_args()
    lean = find_lean(args.lean, args.project, args.header, args.memory_gb, args.max_heartbeats)
    self_test(lean, args.workers, args.verify_batch)


if __name__ == "__main__":
    main()
