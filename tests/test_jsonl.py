"""lib/jsonl.py and lib/cli.py: reading, writing, continuing, and the errors of a command line."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import nat.make_problems
import toy.make_problems
from lib.cli import fail, flags, number, printable, suggestion
from lib.jsonl import (
    cannot_write,
    make_folder,
    numbered_rows,
    part_name,
    read_jsonl,
    read_verified,
    resume_jsonl,
    rows_done,
    write_jsonl,
)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def failed(capsys, call):
    """The error that ends this call."""
    with pytest.raises(SystemExit) as end:
        call()
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    return error


def test_blank_lines_are_skipped_and_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"id": "a"}\n  \n\t\r\n{"id": "b"}\n\n')
    assert list(numbered_rows(path)) == [(f"{path}, line 2", {"id": "a"}), (f"{path}, line 5", {"id": "b"})]


def test_lines_still_being_written(tmp_path):
    lines = ['{"id": "a"}\n', None, "\n", None, '{"id": "b"}\n']
    rows = [row for _, row in numbered_rows("rows", "id", lines=lines)]
    assert rows == [{"id": "a"}, None, None, {"id": "b"}]


def test_half_a_surrogate_pair_survives_where_nobody_needs_it(tmp_path, capsys):
    path, copy = tmp_path / "rows.jsonl", tmp_path / "copy.jsonl"
    path.write_text('{"id": "a", "more": "x\\ud835y", "pair": "\\ud835\\udc9c"}\n')
    write_jsonl(copy, read_jsonl(path, "id"))
    assert copy.read_text() == '{"id": "a", "more": "x\\ud835y", "pair": "𝒜"}\n'
    assert list(read_jsonl(copy)) == list(read_jsonl(path))
    path.write_text('{"id": "a"}\n{"id": "x\\ud835"}\n')
    assert "line 2: 'id'" in failed(capsys, lambda: list(numbered_rows(path, "id")))


@pytest.mark.parametrize(
    "text, words",
    [
        ('[{"id": "a"}]\n', ["line 1", "JSON list", "tools/problems.py"]),
        ('[\n  {"id": "a"}\n]\n', ["line 1", "JSON list", "tools/problems.py"]),
        ("id,statement\na,theorem a : True := by\n", ["line 1", "CSV", "tools/problems.py"]),
        ('{"id": "a"}\n{"id": \n', ["line 2", "not valid JSON; mend or delete"]),
    ],
)
def test_other_formats(tmp_path, capsys, text, words):
    (tmp_path / "rows").write_text(text)
    error = failed(capsys, lambda: list(read_jsonl(tmp_path / "rows", "id")))
    assert all(word in error for word in words), error


def test_logprobs_are_as_many_as_tokens(tmp_path, capsys):
    row = {"id": "a", "reward": 1, "completion_ids": [1, 2], "logprobs": [-1.0]}
    (tmp_path / "rows").write_text(json.dumps(row) + "\n")
    assert list(read_verified(tmp_path / "rows")) == [row]
    error = failed(capsys, lambda: list(read_verified(tmp_path / "rows", "completion_ids", "logprobs")))
    assert "line 1: as many logprobs" in error


@pytest.mark.parametrize(
    "number, words, other",
    [
        (errno.ENOSPC, "make room", "allow"),
        (errno.EDQUOT, "make room", "allow"),
        (errno.EACCES, "allow writing there", "room"),
        (errno.EROFS, "allow writing there", "room"),
        (errno.ENAMETOOLONG, "choose another --out", "room"),
        (errno.EFBIG, "make room", "allow"),
    ],
)
def test_each_failed_write_names_its_mend(capsys, number, words, other):
    error = failed(capsys, lambda: cannot_write("out.jsonl", OSError(number, os.strerror(number))))
    assert os.strerror(number) in error and words in error and other not in error and "out.jsonl" in error


def test_a_folder_that_cannot_be_is_a_sentence_before_any_work(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    make_folder(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir()
    make_folder("")  # the folder of a bare file name
    assert "file/folder (Not a directory)" in failed(
        capsys, lambda: make_folder(tmp_path / "file" / "folder")
    )
    words = ["--out", f"{tmp_path}/file", "--sft", f"{tmp_path}/sft.jsonl"]
    for script in (toy.make_problems, nat.make_problems):
        monkeypatch.setattr(sys, "argv", [script.__file__, *words])
        error = failed(capsys, script.main)
        assert f"{tmp_path}/file (File exists)" in error and "choose another --out" in error


def test_a_message_that_quotes_lines_is_one_sentence_all_the_same(capsys):
    assert (
        failed(capsys, lambda: fail("Lean says:\n  no\n\n  such file\n"))
        == "error: Lean says: no such file\n"
    )


# ---- continuing ----

INPUTS = [{"id": name, "n": n} for n, name in enumerate("aabbcc")]
OUTPUTS = [dict(row, added=n) for n, row in enumerate(INPUTS)]


def as_text(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    "text, group, done",
    [
        ("", 1, 0),
        (as_text(OUTPUTS[:3]), 1, 3),
        (as_text(OUTPUTS[:3]), 2, 2),  # half a group
        (as_text(OUTPUTS[:3])[:-1], 1, 2),  # half a line: its line break is missing
        (as_text(OUTPUTS[:3])[:-9], 1, 2),
        (as_text(OUTPUTS[:2] + OUTPUTS[3:]), 1, 2),  # from here on made from another row
        (as_text(OUTPUTS[:2]) + "7\n" + as_text(OUTPUTS[2:]), 1, 2),
        (as_text(OUTPUTS[:2]) + "\n", 1, 2),
        (as_text(OUTPUTS), 2, 6),
        (as_text(OUTPUTS + OUTPUTS[:2]), 1, 6),  # more than there are inputs
    ],
)
def test_rows_done(tmp_path, text, group, done):
    part = tmp_path / "out.part"
    part.write_text(text)
    assert rows_done(part, INPUTS, group) == done
    assert part.read_text() == as_text(OUTPUTS[:done])


def test_a_stopped_run_is_continued_by_the_same_settings_only(tmp_path, capsys):
    out, asked = tmp_path / "out.jsonl", []

    def rows_after(done, stop=None):
        asked.append(done)
        for row in OUTPUTS[done:stop]:
            yield row
        if stop:
            raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        resume_jsonl(out, "settings", INPUTS, lambda done: rows_after(done, stop=5), group=2)
    assert end.value.code == 130 and capsys.readouterr().err == "stopped; the same command continues\n"
    [part] = tmp_path.iterdir()
    assert str(part) == part_name(out, "settings") and part.read_text() == as_text(OUTPUTS[:4])
    resume_jsonl(out, "others", INPUTS, rows_after, group=2)
    assert out.read_text() == as_text(OUTPUTS) and part.exists()
    resume_jsonl(out, "settings", INPUTS, rows_after, group=2)
    assert out.read_text() == as_text(OUTPUTS) and not part.exists() and asked == [0, 0, 4]


# ---- command lines ----


def test_a_mistyped_flag_is_suggested(capsys):
    parser = flags("A test.")
    parser.add_argument("--unlikeliness", type=float)
    parser.add_argument("--max-new-tokens", type=number(int, 1), default=200, help="tokens of a completion")
    for mistyped, words in [
        ("--unlikelyness", "--unlikelyness 3; did you mean --unlikeliness?"),
        ("--unlikelines", "--unlikelines 3; did you mean --unlikeliness?"),  # no abbreviation
        ("--max_new_tokens", "did you mean --max-new-tokens?"),
        ("--something", "--something"),
    ]:
        error = failed(capsys, lambda mistyped=mistyped: parser.parse_args([mistyped, "3"]))
        assert words in error and (mistyped == "--something") == ("did you mean" not in error), error
    assert "tokens of a completion (default: 200)" in parser.format_help()
    assert suggestion("uplft", ["uplift", "curves"]) == "; did you mean uplift?"
    assert suggestion("samples.jsonl", ["uplift", "curves"]) == ""


def test_printable():
    assert printable("a\x1b[2J\u202e∀\n") == "a\\x1b[2J\\u202e∀\n"


def script(tmp_path, text):
    (tmp_path / "script.py").write_text(
        f"import sys\nsys.path.insert(0, {ROOT!r})\nfrom lib.cli import before_imports, run\n{text}\n"
    )
    return [sys.executable, str(tmp_path / "script.py")]


@pytest.mark.parametrize(
    "body", ["[print('x' * 99) for _ in range(99999)]", "print('x')", "sys.exit(print('x'))"]
)
def test_output_piped_into_head(tmp_path, body):
    """A long output breaks while it is written, a short one when Python flushes it at exit."""
    command = script(tmp_path, f"def main():\n    {body}\nrun(main)")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 141


def test_ctrl_c_during_imports_is_quiet(tmp_path):
    (tmp_path / "slow.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    command = script(tmp_path, "before_imports()\nimport slow")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "importing\n"
    start = time.time()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "stopped\n" and time.time() - start < 30
    assert process.returncode in (1, 130, -signal.SIGINT)
