"""The verdict cache: an SQLite file of what was proved or rejected."""

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable

from lib.cli import fail

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

Key = tuple[str, str, str]  # header, statement, proof


Verdict = tuple[str, str, float]  # verdict, message, seconds


def cached(path: str, judge: Callable[..., dict[Key, Verdict]]) -> Callable[..., dict[Key, Verdict]]:
    """judge, but asks Lean only for what is not yet in the SQLite file `path`, where it notes what was proved or rejected: runs that
    sample the same problems share many completions. All that a verdict depends on is in its key, this file's text too, except
    the library of a Lake project: after a change there, delete the file."""
    verifier = hashlib.sha256()
    for name in (
        "verify.py",
        "lib/lean.py",
        "lib/lexer.py",
        "lib/dojo.py",
        "lib/verdicts.py",
        "toy/Prelude.lean",
    ):
        with open(os.path.join(ROOT, name), "rb") as file:
            verifier.update(file.read())
    verifier = verifier.hexdigest()

    @contextlib.contextmanager
    def store():  # a connection for each call: threads and other processes use the file too
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=600, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS verdicts (name BLOB PRIMARY KEY, verdict TEXT, message TEXT, seconds REAL)"
                )
                yield connection
        except sqlite3.Error as error:
            fail(f"cannot keep verdicts in {path} ({error}); make room or name another file with --verdicts")

    def remembered(batch, lean, timeout, stop=None):
        way = [verifier, judge.__qualname__, lean.version, lean.command, lean.env.get("LEAN_PATH")]
        name = {key: hashlib.sha256(json.dumps([*way, *key]).encode()).digest() for key in batch}
        with store() as known:
            found = {
                key: known.execute(
                    "SELECT verdict, message, seconds FROM verdicts WHERE name = ?", [name[key]]
                ).fetchone()
                for key in batch
            }
            new = (
                judge(unknown, lean, timeout, stop)
                if (unknown := [key for key in batch if not found[key]])
                else {}
            )
            known.execute("BEGIN IMMEDIATE")
            known.executemany(
                "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?)",
                [
                    (name[key], *verdict)
                    for key, verdict in new.items()
                    if verdict[0] in ("proved", "rejected")
                ],
            )
            known.execute("COMMIT")
        return {key: verdict for key, verdict in found.items() if verdict} | new

    with store() as known:  # fails before any work
        known.execute("SELECT name, verdict, message, seconds FROM verdicts LIMIT 0")
    return remembered
