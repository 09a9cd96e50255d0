"""Figures and Markdown tables."""

import os
import re
from collections.abc import Iterable
from hashlib import md5
from typing import Any

import numpy as np

from lib.jsonl import cannot_write

COLORS = [
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
]  # Okabe and Ito's, without black and yellow


def styles(labels: Iterable[str]) -> dict[str, dict]:
    """Colour and dashes of each label. A run is the label up to its first "/", and the hash of its name picks its colour;
    of two runs in a figure that pick the same, the later in the alphabet takes the next free one. A second label of a
    run has its colour and other dashes. What is the base model (base*, */eval_00000) is grey."""
    runs = {
        label: "base" if re.match(r"base|.*/eval_0+$", label, re.I) else label.split("/")[0]
        for label in labels
    }
    colors = {"base": "#444444"}
    for run in sorted(set(runs.values()) - {"base"}):
        # with 14720 before them, the names of the paper's settings (default .. unlikeliness-2) pick six different colours
        wanted = int(md5(f"14720{run}".lower().encode()).hexdigest(), 16) % len(COLORS)
        turned = COLORS[wanted:] + COLORS[:wanted]
        colors[run] = next((color for color in turned if color not in colors.values()), turned[0])
    before = {label: list(runs.values())[:i].count(runs[label]) for i, label in enumerate(labels)}
    return {
        label: {"color": colors[runs[label]], "linestyle": ["-", "--", ":", "-."][before[label] % 4]}
        for label in labels
    }


def panels(*shape: int, height: float, **options: Any) -> tuple[Any, Any]:
    """A figure 8 inches wide: at 800 pixels its 11-point type is as large as a web page's text. Returns it and its panels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {
            "font.size": 11,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "text.parse_math": False,
        }
    )
    figure, axes = pyplot.subplots(
        *shape, figsize=(8, height), layout="constrained", squeeze=False, **options
    )
    return figure, axes.ravel()


def line(ax: Any, x: Any, curve: np.ndarray, label: str, look: dict) -> None:
    """A line of rates in percent and its band; curve is [3 or more, K]: rate, low, high."""
    ax.plot(
        x, 100 * curve[0], marker="o", markersize=4 if len(x) <= 12 else 2, linewidth=2, label=label, **look
    )
    ax.fill_between(x, 100 * curve[1], 100 * curve[2], color=look["color"], alpha=0.12, linewidth=0)


def save(figure: Any, path: str) -> None:
    from matplotlib import pyplot

    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        figure.savefig(path, dpi=200)
    except OSError as error:
        cannot_write(path, error)
    pyplot.close(figure)


def cells(curve: np.ndarray, length: int, sign: str = "") -> list[str]:
    """The cells of a [3, K] array of rates; "-" where there is none, and up to the length."""
    texts = [
        "-" if np.isnan(m) else f"{m:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
        for m, low, high in 100 * curve.T
    ]
    return texts + ["-"] * (length - len(texts))


def markdown(columns: list[list]) -> str:
    """A Markdown table that is aligned as plain text too: first column left, the others right."""
    padded = []
    for i, (head, *body) in enumerate(columns):
        width = max(len(str(cell)) for cell in [head, *body])
        padded.append([f"{str(cell):{'>' if i else '<'}{width}}" for cell in [head, *body]])
        padded[-1].insert(1, "-" * (width - 1) + (":" if i else "-"))
    return "\n".join("| " + " | ".join(line) + " |" for line in zip(*padded))
