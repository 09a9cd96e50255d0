"""Figures, Markdown tables, and CSV files of the numbers in them.

A line of a figure is (x [K], curve [3, K]): a value at each x, and the low and the high end of its interval.
"""

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.cli import fail
from lib.jsonl import numbered_rows, writing

# Okabe and Ito's colours for the colour-blind, without black and yellow
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"]

Line = tuple[Any, np.ndarray]
LOOK = {  # of all figures
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


@dataclass
class Panel:
    title: str
    xlabel: str
    lines: dict[str, Line]
    log: bool = False  # of the x axis
    scale: float = 100  # 100 draws rates in percent


def styles(labels: Iterable[str]) -> dict[str, dict]:
    """Colours in the order of the labels, then again with dashes; the base model and stored runs are grey."""
    looks, others = {}, 0
    for label in labels:
        if label.startswith(("base", "stored")):
            looks[label] = {"color": "#444444" if label.startswith("base") else "#AAAAAA", "linestyle": "-"}
        else:
            dashes = ["-", "--", ":", "-."][others // len(COLORS) % 4]
            looks[label] = {"color": COLORS[others % len(COLORS)], "linestyle": dashes}
            others += 1
    return looks


def panels(*shape: int, height: float, **options: Any) -> tuple[Any, Any]:
    """(figure, axes), 8 inches wide: at 800 pixels its 11-point type is as large as a web page's text."""
    import matplotlib  # here, since it takes half a second

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(LOOK)  # type: ignore[arg-type]
    options |= {"figsize": (8, height), "layout": "constrained", "squeeze": False}
    figure, axes = pyplot.subplots(*shape, **options)
    return figure, axes.ravel()


def draw(parts: list[Panel], path: str, stored: str | None = None, bands: Iterable[str] = ()) -> None:
    """Draws the panels, two in a row under one legend, and writes their numbers to a CSV file beside it.
    stored: the CSV of another figure; its lines are added in grey, except its base model's. bands: whose
    intervals are drawn, by default all."""
    lines_of = read_csv(stored) if stored else {}
    rows = (len(parts) + 1) // 2
    figure, axes = panels(rows, min(2, len(parts)), height=max(4.4, 0.6 + 2.7 * rows))
    for part in parts:
        others = lines_of.get(part.title, {})
        part.lines |= {f"stored {label}": line for label, line in others.items() if label[:4] != "base"}
    look = styles(dict.fromkeys(label for part in parts for label in part.lines))
    for ax, part in zip(axes, parts):
        for label, (x, curve) in part.lines.items():
            value, low, high = part.scale * curve[:3]
            ax.plot(x, value, marker="o", markersize=3, label=label, **look[label])
            if not bands or label in bands:
                ax.fill_between(x, low, high, color=look[label]["color"], alpha=0.12, linewidth=0)
        largest = max(max(x, default=0) for x, _ in part.lines.values()) if part.log else 0
        if part.log and largest:  # nothing to draw if no sample is correct
            ticks = [2**i for i in range(int(largest).bit_length())]
            ticks = ticks[:: 1 + len(ticks) // 7]
            ax.set_xscale("log", base=2)
            ax.set_xticks(ticks, ticks)
        ax.set(title=part.title + (" (%)" if part.scale == 100 else ""), xlabel=part.xlabel)
    for ax in axes[len(parts) :]:
        ax.remove()
    shown = {name: line for ax in axes for line, name in zip(*ax.get_legend_handles_labels())}
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=3)
    save(figure, path)
    write_csv(f"{path.removesuffix('.png')}.csv", parts)


def save(figure: Any, path: str) -> None:
    from matplotlib import pyplot

    with writing(path):
        figure.savefig(path, dpi=200)
    pyplot.close(figure)


CURVES = {
    "reward": "reward, mean of all samples",
    "unique": "share of distinct completions",
    "kl": "KL to the base model, per token",
    "clip_fraction": "share of tokens clipped",
}


def curve_panels(runs: dict[str, str]) -> list[Panel]:
    """metrics.jsonl of {label: run folder}: means over at most 20 equal parts of the run."""
    parts = {key: Panel(title, "step", {}, scale=1) for key, title in CURVES.items()}
    for label, folder in runs.items():
        if not os.path.isdir(folder):
            fail(f"cannot read {folder}: there is no such folder; give a run folder of train.py")
        rows = [row for _, row in numbered_rows(f"{folder}/metrics.jsonl", "step", *CURVES)]
        if not rows:
            fail(f"{folder}/metrics.jsonl has no rows yet; let train.py finish a step first")
        for key, part in parts.items():
            points = [(row["step"], row[key]) for row in rows if row[key] is not None]  # null: no update
            pieces = np.array_split(points, min(20, len(points))) if points else []
            means = np.array([piece.mean(axis=0) for piece in pieces]).reshape(-1, 2)
            part.lines[label] = means[:, 0], np.stack([means[:, 1]] * 3)
    return list(parts.values())


def uplift_table(rates: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """{label: uplift(...)} as Markdown: a line per part of the relative rank."""
    first = next(iter(rates.values()))[0]
    bins = first.shape[1]
    columns = [["relative rank", *(f"{i / bins:.2f} to {(i + 1) / bins:.2f}" for i in range(bins))]]
    columns += [[f"{label}, % likelier", *cells(by_bin, bins)] for label, (by_bin, _) in rates.items()]
    return markdown([*columns, ["problems", *(f"{n:.0f}" for n in first[3])]])


def uplift_panels(rates: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[Panel]:
    """{label: uplift(...)}: by relative rank, and by rank for as long as 10 problems have a sample there."""
    relative, absolute = {}, {}
    for label, (by_bin, by_rank) in rates.items():
        reached = by_rank[3] >= min(10, by_rank[3].max())
        relative[label] = (np.arange(by_bin.shape[1]) + 0.5) / by_bin.shape[1], by_bin
        absolute[label] = np.arange(reached.sum()), by_rank[:, reached]
    title = "the base model's proofs made likelier"
    by_rank = Panel("the same by rank", "rank (0 = the problem's likeliest proof)", absolute)
    return [Panel(title, "relative rank (0 likeliest, 1 rarest)", relative), by_rank]


def write_csv(path: str, parts: list[Panel]) -> None:
    """A row a point: panel, label, x, value, low, high; rates as fractions, empty where there is none."""
    with writing(path), open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["panel", "label", "x", "value", "low", "high"])
        for part in parts:
            for label, (x, curve) in part.lines.items():
                for place, point in zip(x, curve[:3].T):
                    numbers = ["" if np.isnan(number) else f"{number:.6g}" for number in point]
                    name = place if isinstance(place, str) else f"{place:.6g}"
                    writer.writerow([part.title, label, name, *numbers])


def read_csv(path: str) -> dict[str, dict[str, Line]]:
    """{panel: {label: line}} of a file of write_csv."""
    points: dict[str, dict[str, list]] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            numbers = [float(row[key] or "nan") for key in ("x", "value", "low", "high")]
            points.setdefault(row["panel"], {}).setdefault(row["label"], []).append(numbers)
    return {
        panel: {label: (np.array(some)[:, 0], np.array(some)[:, 1:].T) for label, some in lines.items()}
        for panel, lines in points.items()
    }


def cells(curve: np.ndarray, length: int, form: str = ".1f", scale: float = 100) -> list[str]:
    """The cells of a [3, K] array: value [low, high], or a value alone; "-" if none, and up to the length."""
    texts = []
    for value, low, high in scale * curve[:3].T:
        interval = "" if np.isnan(low) else f" [{low:{form}}, {high:{form}}]"
        texts.append("-" if np.isnan(value) else f"{value:{form}}{interval}")
    return texts + ["-"] * (length - len(texts))


def markdown(columns: list[list]) -> str:
    """A Markdown table that is aligned as plain text too: first column left, the others right."""
    padded = []
    for i, (head, *body) in enumerate(columns):
        width = max(len(str(cell)) for cell in [head, *body])
        padded.append([f"{str(cell):{'>' if i else '<'}{width}}" for cell in [head, *body]])
        padded[-1].insert(1, "-" * (width - 1) + (":" if i else "-"))
    return "\n".join("| " + " | ".join(line) + " |" for line in zip(*padded))
