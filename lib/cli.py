"""Command lines: one-sentence errors, checked numbers, --help with defaults, clean exits."""

import argparse
import ctypes
import difflib
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from typing import NoReturn


def printable(text: str) -> str:
    """The text with terminal escapes, control and invisible characters written out: \\x1b[2J."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )


def fail(message: str) -> NoReturn:
    """Ends the program with one sentence and exit code 2. For a worker thread, the main thread says it."""
    if threading.current_thread() is not threading.main_thread():
        raise SystemExit(message)
    sentence = re.sub(r"\s*\n\s*", " ", message.strip())  # it may quote lines of another program
    print(f"error: {printable(sentence)}", file=sys.stderr)
    sys.exit(2)


def cause(error: BaseException) -> str:
    """The first line of an exception's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]


def number(kind: type, low: float, exclusive: bool = False, high: float = 2**53) -> Callable[[str], float]:
    """An argparse type: a finite int or float, low <= number <= high (low < number if exclusive)."""

    def parse(text):
        number = kind(text)
        if not abs(number) < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        if number < low or (exclusive and number == low):
            raise argparse.ArgumentTypeError(f"{text} is not {'above' if exclusive else 'at least'} {low}")
        if number > high:
            raise argparse.ArgumentTypeError(f"{text} is more than {high}")
        return number

    parse.__name__ = kind.__name__  # argparse says "invalid int value"
    return parse


def suggestion(word: str, known: Iterable[str]) -> str:
    """ "; did you mean --unlikeliness?" if a known word is close to this one, else nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


class Defaults(argparse.HelpFormatter):
    """Adds the default to the help of each flag that has one."""

    def _get_help_string(self, action):
        has_none = any(action.default is none for none in (None, False, argparse.SUPPRESS))
        said = "" if has_none or "default:" in action.help else " (default: %(default)s)"
        return action.help + said


def flags(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser whose errors are one sentence, with the flag that was probably meant."""

    def error(message):
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        known = re.findall(r"--[\w-]+", parser.format_usage())
        fail(message + (suggestion(unknown[1], known) if unknown else ""))

    parser = argparse.ArgumentParser(
        prog, description=description, formatter_class=Defaults, allow_abbrev=False
    )
    parser.error = error  # type: ignore[method-assign,assignment]
    return parser


def parse_settings(add_flags: Callable, command_line: str = "") -> argparse.Namespace:
    """What a command line sets of a stage's flags, defaults included."""
    parser = flags("")
    add_flags(parser)
    return parser.parse_args(command_line.split())


def die_with_parent() -> None:
    """Lets Linux kill this process when the one that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def die_with_torchrun() -> None:
    """Ends this process with torchrun: a survivor would keep writing into the resumed run's folder."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()


def before_imports() -> None:
    """What a script does before it imports torch, which takes seconds."""
    die_with_torchrun()

    def quiet(kind, error, traceback):
        if issubclass(kind, KeyboardInterrupt):
            print("stopped", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, traceback)

    sys.excepthook = quiet  # Ctrl-C during the imports leaves no traceback
    # Limit OpenMP's busy-waiting: spinning threads starve each other.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def run(main: Callable[[], object]) -> None:
    """Runs a script's main; exits quietly if the reader of its output is gone (`| head`)."""
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        sys.exit(141)  # as SIGPIPE would end it
