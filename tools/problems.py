"""Theorem collections as problems: the paper's release, DeepSeek's miniF2F, Lean Workbook, or our own JSONL.

    python tools/problems.py mff-lwb-10k-seen.parquet --without minif2f_test.parquet --out train.jsonl
    python tools/problems.py minif2f.jsonl --split test --drop-defective --out minif2f-test.jsonl

Reads:  parquet, JSON lists, JSONL, joined in order; recognised by their first bytes and their columns.
Writes: id, statement (one theorem that ends with ":= by"), header, informal: for sample.py and train.py.
        OUT.skipped.jsonl has the rows left out, and remarks on others, each with its reason. See PROBLEMS.md.
"""

import itertools
import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from lib.cli import fail, flags, printable, run  # noqa: E402
from lib.jsonl import read_jsonl, write_jsonl  # noqa: E402
from lib.lean import HEADER  # noqa: E402
from lib.lexer import forbidden, theorem_name, tokens  # noqa: E402

COLUMNS = {  # ours, the release's, DeepSeek's miniF2F's, Lean Workbook's; the first that a row has counts
    "id": ("id", "theorem_full_name", "name"),
    "statement": ("statement", "theorem_statement", "formal_statement"),
    "header": ("header", "src_context"),
    "informal": ("informal", "informal_statement", "informal_prefix", "natural_language_statement"),
}
ALLOWED = re.compile(r"\b(?:theorem|lemma|def|abbrev|noncomputable)\b|(/--)")  # in statements, not in proofs
KNOWN_DEFECTS = {"mathd_algebra_314": "over ℕ, 1 / 4 is 0 and the statement is 0 = 0"}
BINDERS = {*"∑∏∀∃λ⋃⋂∫", "fun"}
BRACKETS = {**dict(zip("([{⟨⌊⌈|‖", ")]}⟩⌋⌉|‖")), "if": "then"}


def read_rows(path: str) -> list[tuple[str, int, dict]]:
    """(path, number, row) of a parquet, JSON or JSONL file; ends the program if it has no statements."""
    try:
        with open(path, "rb") as file:
            start = file.read(64).lstrip()
        if start.startswith(b"PAR1"):
            import pyarrow.parquet  # only some need it

            rows = pyarrow.parquet.read_table(path).to_pylist()
        elif start.startswith(b"["):
            with open(path, encoding="utf-8") as file:
                rows = json.load(file, parse_constant=int)  # int("NaN") is a ValueError: not JSON
        else:
            rows = list(read_jsonl(path))
    except (ImportError, OSError, ValueError) as error:  # ValueError: bad JSON, parquet or UTF-8
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        fail(f"cannot read {path} ({reason}); give JSON, JSONL, or parquet with: pip install pyarrow")
    rows = [row if isinstance(row, dict) else {} for row in rows]
    if not any(column in row for row in rows for column in COLUMNS["statement"]):
        found = ", ".join([*rows, {}][0]) or "nothing"
        fail(f"{path} has no column {' or '.join(COLUMNS['statement'])}, but {found}; see PROBLEMS.md")
    return [(path, number, row) for number, row in enumerate(rows, 1)]


def from_columns(row: dict, header: str | None) -> dict:
    """The row as a problem, its statement unchecked. A row of ours keeps its header and its other keys."""
    problem = {key: value for key, value in row.items() if "statement" in row and key not in COLUMNS}
    for ours, theirs in COLUMNS.items():
        texts = [row[column] for column in theirs if isinstance(row.get(column), str) and row[column].strip()]
        if texts:  # JSON can hold half a surrogate pair, UTF-8 cannot: it becomes the replacement character
            problem[ours] = texts[0].encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    if header not in (None, "keep"):
        problem["header"] = header
    elif "statement" not in row:
        problem["header"] = header and problem.get("header") or HEADER
    return problem


def without_proof(text: str) -> str:
    """The text up to `:= by`, if what follows is sorry or a proof."""
    if bare := re.fullmatch(r"(?s)(.*?)\s*:=\s*(by(\s+sorry)?|sorry)\s*", text):
        return bare[1] + " := by"
    statement, _, proof = text.partition(":=")
    balanced = all(statement.count(left) == statement.count(right) for left, right in ("()", "[]", "{}"))
    ends_here = balanced and re.match(r"(?s)\s*by\b(?!.*\b(theorem|lemma)\b)", proof)
    return statement.rstrip() + " := by" if ends_here else text


def check(text: str) -> tuple[str, str, list[str]]:
    """(statement, name, its words but for the name); ValueError says why proofs of it cannot be judged."""
    statement = without_proof(text)
    words = [word for _, word, _ in tokens(statement)]
    if sum(word in ("theorem", "lemma") for word in words) > 1:
        raise ValueError("it holds several theorems")
    name = theorem_name(statement)
    if name.startswith("_root_"):
        raise ValueError("its name starts with _root_: it would leave the verifier's namespace")
    # The filter is for proofs. It is not shown what declares the theorem, and a line may start at the margin.
    plain = ALLOWED.sub(lambda match: "/- " if match[1] else " ", f" {statement}").replace("\n", "\n ")
    if reason := forbidden(plain):
        raise ValueError(f"verify.py's filter: {reason}")
    place = words.index(name)
    return statement, name, words[: place - 1] + words[place + 1 :]


def names_until(words: list[str], *ends: str) -> set[str]:
    """The words before the first of `ends`."""
    return set(itertools.takewhile(lambda word: word not in ends, words))


def escaped_indices(words: list[str]) -> set[str]:
    """Indices of a sum or product that the statement uses where nothing binds them.

    `∑ k in s, a + k` is `(∑ k in s, a) + k`, since + ends the body; the last k is then any number."""
    brackets: list[str] = []  # what closes those that are open
    scopes: list[tuple[int, bool, set[str]]] = []  # (brackets around it, whether an operator ends it, names)
    indices, escaped, parameters = set(), set(), True
    for place, word in enumerate(words):
        depth, following = len(brackets), words[place + 1 : place + 30]
        parameters = parameters and (word != ":" or depth > 0)
        if brackets and word == brackets[-1]:
            brackets.pop()
            scopes = [scope for scope in scopes if scope[0] < depth]
        elif word in BRACKETS and not (word == "|" and brackets[-1:] == ["}"]):
            brackets.append(BRACKETS[word])
            if word == "{" or parameters and depth == 0:  # {x | ...}, {x ∈ s | ...}, or (x y : ℕ)
                scopes.append((depth + (not parameters), False, names_until(following, *":|∈})]")))
        elif word in BINDERS:
            names = names_until(following, *",∈=↦:<>≤≥", "in") - set("({'")
            scopes.append((depth, word in "∑∏", names))
            indices |= names if word in "∑∏" else set()
        elif word in "+-=≠<>≤≥∣∧∨→↔≡":
            scopes = [scope for scope in scopes if not (scope[1] and scope[0] == depth)]
        elif word in indices and not any(word in names for _, _, names in scopes):
            escaped.add(word)
    return escaped


def convert(rows, header=None, held_out=(), drop_defective=False):
    """(problems, report) of (file, number, row)s; held_out: {words of a theorem to leave out: where}."""
    problems, report, words_of, id_of = [], [], {}, {}
    for path, number, row in rows:
        problem = from_columns(row, header)
        entry = {"file": path, "row": number, "id": problem.get("id"), "statement": problem.get("statement")}
        remarks = []
        try:
            if "statement" not in problem:
                raise ValueError("no statement")
            if row.get("status") == "disproved":
                raise ValueError("its status is disproved")
            problem["statement"], name, words_list = check(problem["statement"])
            words = " ".join(words_list)
            name = entry["id"] = problem.pop("id", name)
            if words in held_out:
                raise ValueError(f"held out: {held_out[words]}")
            if words_of.get(name) == words:
                raise ValueError("duplicate in id and statement")
            if indices := escaped_indices(words_list):
                what = "an index leaves its sum or product, put the body in brackets"
                remarks.append(f"{what}: {min(indices)}")
            if name in KNOWN_DEFECTS:
                remarks.append(f"known to be defective: {KNOWN_DEFECTS[name]}")
            if remarks and drop_defective:
                raise ValueError(remarks[0])
        except ValueError as error:
            report.append(dict(entry, kept=False, reason=str(error)))
            continue
        if words in id_of:
            remarks.append(f"same statement but for the name: {id_of[words]}")
        if name in words_of:
            name = next(f"{name}_{k}" for k in range(2, len(words_of) + 3) if f"{name}_{k}" not in words_of)
            remarks.append(f"another statement has its id, renamed: {name}")
        report += [dict(entry, kept=True, reason=remark) for remark in remarks]
        words_of[name] = words
        id_of.setdefault(words, name)
        problems.append({"id": name, **problem})
    return problems, report


def summary(report: list[dict]) -> list[str]:
    """A line for each kind of remark: how many rows, and the first ids."""
    ids_of = {}
    for entry in report:
        kind = ("kept" if entry["kept"] else "left out") + ", " + entry["reason"].split(": ")[0]
        ids_of.setdefault(kind, []).append(str(entry["id"]))
    first = {kind: ", ".join(ids[:3] + ["..."] * (len(ids) > 3)) for kind, ids in ids_of.items()}
    return [f"  {len(ids)} {kind}: {first[kind]}" for kind, ids in ids_of.items()]


def main():
    parser = flags("Theorem collections to problems for sample.py and train.py.")
    add = parser.add_argument
    add("files", nargs="+", help="parquet, JSON or JSONL files, joined in this order")
    add("--out", required=True, help="JSONL to write")
    add("--split", help="only rows with this value in the column split, such as test")
    add("--without", nargs="+", default=[], metavar="FILE", help="leave out theorems that are in FILE")
    add("--header", help="first lines of each Lean file, or keep: the rows' own (default: Mathlib's)")
    add("--drop-defective", action="store_true", help="leave out statements that do not say what was meant")
    args = parser.parse_args()
    if not re.match(r"keep\Z|\s*(import|prelude)\b", args.header or "keep"):
        fail(f'--header {args.header} is no header; give its text, such as "$(cat header.lean)", or keep')
    held_out = {}
    for path in args.without:
        for problem in convert(read_rows(path))[0]:
            held_out[" ".join(check(problem["statement"])[2])] = f"{problem['id']} of {path}"
    rows = [one for path in args.files for one in read_rows(path)]
    rows = [one for one in rows if args.split in (None, one[2].get("split"))]
    problems, report = convert(rows, args.header, held_out, args.drop_defective)
    skipped = f"{args.out.removesuffix('.jsonl')}.skipped.jsonl"
    write_jsonl(skipped, report)
    if not problems:
        of_split = f" with the split {args.split}" if args.split else ""
        fail(f"no problem is left of {len(rows)} rows{of_split}; {skipped} says why")
    write_jsonl(args.out, problems)
    details = f"; what follows is row by row in {skipped}" if report else ""
    print(f"{len(rows)} rows, {len(problems)} problems in {args.out}{details}")
    for line in summary(report):
        print(printable(line))


if __name__ == "__main__":
    run(main)
