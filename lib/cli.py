"""Command lines: one sentence for an error, checked numbers, flags with their defaults."""

import argparse
import math
import sys
from collections.abc import Callable
from typing import NoReturn


def printable(text: str) -> str:
    """The text with what could steer a terminal (escapes, other control and invisible characters) written out: \\x1b[2J."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )


def fail(message: str) -> NoReturn:
    """Ends the program with one sentence and exit code 2."""
    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(2)


def cause(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]


def number(kind: type, low: float, exclusive: bool = False, high: float = 2**53) -> Callable[[str], float]:
    """An argparse type: a finite int or float >= low (> low where exclusive) and <= high."""

    def parse(text):
        number = kind(text)
        if not abs(number) < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        if number < low or (exclusive and number == low):
            raise argparse.ArgumentTypeError(f"{text} is not {'above' if exclusive else 'at least'} {low}")
        if number > high:
            raise argparse.ArgumentTypeError(f"{text} is more than {high}")
        return number

    parse.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return parse


class Defaults(argparse.HelpFormatter):
    """--help with the default of each flag that has one, where its words do not say it."""

    def _get_help_string(self, action):
        said = (
            action.default is None
            or action.default is False
            or action.default == argparse.SUPPRESS
            or "default:" in action.help
        )
        return action.help if said else f"{action.help} (default: %(default)s)"


def flags(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser of flags; a bad one ends the program with a sentence."""
    parser = argparse.ArgumentParser(prog, description=description, formatter_class=Defaults)
    parser.error = fail  # type: ignore[method-assign,assignment]
    return parser
