"""Theorem collections as our problems: the paper's release, DeepSeek's miniF2F, Lean Workbook, or our own JSONL, checked.

    python tools/problems.py mff-lwb-10k-seen.parquet --without minif2f_test.parquet --out train.jsonl
    python tools/problems.py minif2f.jsonl --split test --out minif2f-test.jsonl
    python tools/problems.py lean_workbook.json --without minif2f.jsonl --out workbook.jsonl

Reads:  parquet, JSON lists, JSONL, joined in order; what a file is, its first bytes and its columns say, not its name.
Writes: id, statement (one theorem that ends with ":= by"), header, informal: what sample.py and train.py read. Rows that cannot
        be used and ids that had to change go, with the reason, to OUT.skipped.jsonl. PROBLEMS.md has sources and counts.
"""

import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from lib.cli import fail, flags, printable  # noqa: E402
from lib.jsonl import read_jsonl, write_jsonl  # noqa: E402
from lib.lean import HEADER  # noqa: E402
from lib.lexer import forbidden, tokens  # noqa: E402

COLUMNS = {  # ours: ours again, the release's, DeepSeek's miniF2F's, Lean Workbook's; the first that a row has counts
    "id": ("id", "theorem_full_name", "name"),
    "statement": ("statement", "theorem_statement", "formal_statement"),
    "header": ("header", "src_context"),
    "informal": ("informal", "informal_statement", "informal_prefix", "natural_language_statement"),
}
ALLOWED = re.compile(
    r"\b(?:theorem|lemma|def|abbrev|noncomputable)\b|(/--)"
)  # right in a statement, refused in a proof


def read_rows(path: str) -> list[dict]:
    """The rows of a parquet, JSON or JSONL file as dicts; ends the program where it is none or has no statements."""
    try:
        with open(path, "rb") as file:
            start = file.read(64).lstrip()
        if start.startswith(b"PAR1"):
            import pyarrow.parquet

            rows = pyarrow.parquet.read_table(path).to_pylist()
        elif start.startswith(b"["):
            with open(path, encoding="utf-8") as file:
                rows = json.load(file, parse_constant=int)  # int("NaN") is a ValueError: not JSON
        else:
            rows = list(read_jsonl(path))
    except (
        ImportError,
        OSError,
        ValueError,
    ) as error:  # ValueError: json's and pyarrow's, and text that is not UTF-8
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        fail(f"cannot read {path} ({reason}); give JSON, JSONL, or parquet with: pip install pyarrow")
    rows = [row if isinstance(row, dict) else {} for row in rows]
    if not any(column in row for row in rows for column in COLUMNS["statement"]):
        found = ", ".join([*rows, {}][0]) or "nothing"
        fail(f"{path} has no column {' or '.join(COLUMNS['statement'])}, but {found}; see PROBLEMS.md")
    return rows


def from_columns(row: dict, header: str | None) -> dict:
    """The row as a problem, its statement not checked yet. A row of ours keeps its other keys and its header, if it has one."""
    problem = {key: value for key, value in row.items() if "statement" in row and key not in COLUMNS}
    for ours, theirs in COLUMNS.items():
        texts = [row[column] for column in theirs if isinstance(row.get(column), str) and row[column].strip()]
        if (
            texts
        ):  # half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes the character for that
            problem[ours] = texts[0].encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    if header not in (None, "keep"):
        problem["header"] = header
    elif "statement" not in row:
        problem["header"] = header and problem.get("header") or HEADER
    return problem


def without_proof(text: str) -> str:
    """The text up to `:= by`, where sorry or a proof that follows can be cut off."""
    if bare := re.fullmatch(r"(?s)(.*?)\s*:=\s*(by(\s+sorry)?|sorry)\s*", text):
        return bare[1] + " := by"
    statement, _, proof = text.partition(":=")
    balanced = all(statement.count(left) == statement.count(right) for left, right in ("()", "[]", "{}"))
    ends_here = balanced and re.match(r"(?s)\s*by\b(?!.*\b(theorem|lemma)\b)", proof)
    return statement.rstrip() + " := by" if ends_here else text


def check(text: str) -> tuple[str, str, str]:
    """(statement, name, its words but for the name), if verify.py can judge proofs of it; ValueError says why it cannot."""
    statement = without_proof(text)
    kinds_and_words = [token[:2] for token in tokens(statement)]
    words = [word for _, word in kinds_and_words]
    theorems = [k for k, word in enumerate(words) if word in ("theorem", "lemma")]
    if len(theorems) > 1:
        raise ValueError("it holds several theorems")
    if words[-3:] != [":", "=", "by"]:
        raise ValueError("it does not end in ':= by'")
    if not theorems or kinds_and_words[theorems[0] + 1][0] != "name":
        raise ValueError("it holds no named theorem")
    place, name = theorems[0], words[theorems[0] + 1]
    if name.startswith("_root_"):
        raise ValueError("its name starts with _root_: it would leave the verifier's namespace")
    # verify.py's filter is for proofs: it is not shown what declares the theorem, and a line may start at the margin.
    if reason := forbidden(
        ALLOWED.sub(lambda match: "/- " if match[1] else " ", f" {statement}").replace("\n", "\n ")
    ):
        raise ValueError(f"verify.py's filter: {reason}")
    return statement, name, " ".join(words[:place] + words[place + 2 :])


def convert(rows, header=None, held_out=()):
    """(problems, report) of (file, number, row)s, without what is in held_out, {words: where} with check()'s words."""
    problems, report, words_of, id_of = [], [], {}, {}
    for path, number, row in rows:
        problem = from_columns(row, header)
        entry = {"file": path, "row": number, "id": problem.get("id"), "statement": problem.get("statement")}
        try:
            if "statement" not in problem:
                raise ValueError("no statement")
            if row.get("status") == "disproved":
                raise ValueError("its status is disproved")
            problem["statement"], name, words = check(problem["statement"])
            name = entry["id"] = problem.pop("id", name)
            if words in held_out:
                raise ValueError(f"held out: {held_out[words]}")
            if words_of.get(name) == words:
                raise ValueError("duplicate in id and statement")
        except ValueError as error:
            report.append(dict(entry, kept=False, reason=str(error)))
            continue
        if words in id_of:
            report.append(dict(entry, kept=True, reason=f"same statement but for the name: {id_of[words]}"))
        if name in words_of:
            name = next(f"{name}_{k}" for k in range(2, len(words_of) + 3) if f"{name}_{k}" not in words_of)
            report.append(dict(entry, kept=True, reason=f"another statement has its id, renamed: {name}"))
        words_of[name] = words
        id_of.setdefault(words, name)
        problems.append({"id": name, **problem})
    return problems, report


def main():
    parser = flags("Theorem collections to problems for sample.py and train.py.")
    parser.add_argument("files", nargs="+", help="parquet, JSON or JSONL files, joined in this order")
    parser.add_argument("--out", required=True, help="JSONL to write")
    parser.add_argument("--split", help="only rows whose column split is this, such as test")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="FILE", help="leave out what is a theorem here too"
    )
    parser.add_argument(
        "--header",
        help="text of the first lines of each Lean file, or keep: the rows' own (else verify.py's)",
    )
    args = parser.parse_args()
    if not re.match(r"keep\Z|\s*(import|prelude)\b", args.header or "keep"):
        fail(f'--header {args.header} is no header; give its text, such as "$(cat header.lean)", or keep')
    rows = {
        path: [(path, number, row) for number, row in enumerate(read_rows(path), 1)]
        for path in args.files + args.without
    }
    held_out = {
        check(problem["statement"])[2]: f"{problem['id']} of {path}"
        for path in args.without
        for problem in convert(rows[path])[0]
    }
    rows = [one for path in args.files for one in rows[path] if args.split in (None, one[2].get("split"))]
    problems, report = convert(rows, args.header, held_out)
    skipped = f"{args.out.removesuffix('.jsonl')}.skipped.jsonl"
    write_jsonl(skipped, report)
    if not problems:
        fail(
            f"no problem is left of {len(rows)} rows{f' with the split {args.split}' if args.split else ''}; {skipped} says why"
        )
    write_jsonl(args.out, problems)
    print(
        f"{len(rows)} rows, {len(problems)} problems in {args.out}; what follows is row by row in {skipped}"
    )
    kinds = [
        ("kept" if entry["kept"] else "left out") + ", " + entry["reason"].split(": ")[0] for entry in report
    ]
    for kind in dict.fromkeys(kinds):
        ids = [str(entry["id"]) for entry, other in zip(report, kinds) if other == kind]
        print(printable(f"  {len(ids)} {kind}: {', '.join(ids[:3])}{', ...' if ids[3:] else ''}"))


if __name__ == "__main__":
    main()
