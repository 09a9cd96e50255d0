"""The verdict cache: an SQLite file of what was proved or rejected, for runs that share completions."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import sqlite3
from collections.abc import Callable

from lib.cli import fail

Key = tuple[str, str, str]  # header, statement, proof
Verdict = tuple[str, str, float]  # verdict, message, seconds

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Files that influence verdicts: changing any of them invalidates the cache.
DECIDERS = """verify.py toy/Prelude.lean lib/dojo.py lib/lean.py lib/lean_file.py lib/lexer.py
    lib/verdicts.py lib/wheel.py""".split()
TABLE = "CREATE TABLE IF NOT EXISTS verdicts (name BLOB PRIMARY KEY, verdict, message, seconds)"


def deciders() -> list[str]:
    """Hashes of the files that decide, and the version of lean-dojo."""
    files = [pathlib.Path(ROOT, name).read_bytes() for name in DECIDERS]
    found = [hashlib.sha256(content).hexdigest() for content in files]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found.append(importlib.metadata.version("lean-dojo"))
    return found


def cached(path: str, judge: Callable[..., dict[Key, Verdict]]) -> Callable[..., dict[Key, Verdict]]:
    """judge, but only for what is not in the file yet; what it proves or rejects is stored there.

    The key holds all that a verdict depends on, except the library of a Lake project: after a change there,
    delete the file."""
    verifier = [*deciders(), judge.__qualname__]

    @contextlib.contextmanager
    def store():  # a connection for each call: threads and other processes use the file too
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=600, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(TABLE)
                yield connection
        except sqlite3.Error as error:
            fail(f"cannot keep verdicts in {path} ({error}); make room or name another file with --verdicts")

    def judge_new(batch, lean, timeout, stop=None):
        way = [verifier, lean.version, lean.command, lean.env.get("LEAN_PATH")]
        names = {key: hashlib.sha256(json.dumps([way, key]).encode()).digest() for key in batch}
        ask = "SELECT verdict, message, seconds FROM verdicts WHERE name = ?"
        with store() as known:
            found = {key: known.execute(ask, [names[key]]).fetchone() for key in batch}
            unknown = [key for key in batch if not found[key]]
            new = judge(unknown, lean, timeout, stop) if unknown else {}
            # A crash may come from --memory-gb or the machine, so it is not noted.
            lasting = [key for key, (verdict, message, _) in new.items() if is_lasting(verdict, message)]
            known.execute("BEGIN IMMEDIATE")
            rows = [(names[key], *new[key]) for key in lasting]
            known.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?)", rows)
            known.execute("COMMIT")
        return {key: verdict for key, verdict in found.items() if verdict} | new

    with store() as known:  # fails before any work
        known.execute("SELECT name, verdict, message, seconds FROM verdicts LIMIT 0")
    return judge_new


def is_lasting(verdict: str, message: str) -> bool:
    return verdict == "proved" or verdict == "rejected" and not message.startswith("crash: ")
