"""What training did to the base model, in words: three sentences, two examples, one theorem's proofs."""

import argparse
from collections import Counter
from typing import Any

import numpy as np

from lib.cli import printable
from lib.samples import read_run, read_theorem, score


def change(difference: np.ndarray) -> str:
    """A paired difference of rates [3] in words: 8.4 points more than the base model [+6.6, +10.4]."""
    value, low, high = 100 * difference
    side = "more" if value >= 0 else "fewer"
    certain = "" if low > 0 or high < 0 else ", the interval includes 0"
    return f"{abs(value):.1f} points {side} than the base model [{low:+.1f}, {high:+.1f}]{certain}"


def sentences(name: str, problems: int, passes: Any, rates: Any, distinct: Any) -> str:
    """The story of a run in three sentences. passes: lines of pass@N and its difference to the base model;
    rates: uplift(...) or None; distinct: lines (before, after) of distinct proofs and tactic sequences."""
    rate, (Ns, difference) = 100 * passes[0][1][0], passes[1]
    told = f"- {name} proves {rate[0]:.1f} % of {problems} theorems at one try, {change(difference[:, 0])}"
    if len(Ns) > 1:
        told += f"; {rate[len(Ns) - 1]:.1f} % at {Ns[-1]} tries, {change(difference[:, -1])}"
    told += "."
    if rates is not None and rates[0][3].any():
        parts = 100 * rates[0][:3, rates[0][3] > 0]
        (likely, likely_low, likely_high), (rare, rare_low, rare_high) = parts[:, 0], parts[:, -1]
        reading = "no slope beyond the intervals"
        if likely_low > rare_high:
            reading = "it favours proofs that were likely anyway, the paper's rank bias"
        if rare_low > likely_high:
            reading = "it favours rare proofs, the rank bias reversed"
        told += f"\n- Of the base model's correct proofs it made {likely:.0f} % of the likeliest fifth"
        told += f" likelier and {rare:.0f} % of the rarest: {reading}."
    draws = distinct[0][0][0]
    if len(draws):
        before, after, coarse_before, coarse_after = (curve[0, -1] for pair in distinct for _, curve in pair)
        told += f"\n- {draws[-1]} correct samples of a theorem hold {after:.1f} distinct proofs,"
        told += f" {before:.1f} before; counted as sequences of tactic names {coarse_after:.1f},"
        told += f" {coarse_before:.1f} before."
    return told


def rank_bins(count: int, bins: int = 5) -> np.ndarray:
    """[count]: in which part of the relative rank, 0 to 1, each of a problem's samples is; two or more."""
    return np.minimum(np.arange(count) * bins // (count - 1), bins - 1)


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in printable(text).strip("\n").split("\n"))


def examples(results: dict[str, dict], rows: list[dict], before: list[float], after: list[float]) -> str:
    """One theorem with a proof before and after training, and a rare proof that gained. results: counts of
    the base model and the trained one; rows: the base model's distinct correct samples, with their scores."""
    first, last = (dict(zip(c["ids"], zip(c["correct"], c["n"], c["proofs"]))) for c in results.values())
    statements = {row["id"]: row["statement"] for row in rows}
    gain, told = {}, ""
    for name in [name for name in statements if name in last]:
        gain[name] = last[name][0] / last[name][1] - first[name][0] / first[name][1]
    best = max(gain, key=lambda name: gain[name], default=None)
    if best is not None and gain[best] > 0:
        told += f"\nThe theorem that gained most at one try:\n\n{indented(statements[best])}\n"
        for when, counts, old in (("Before", first[best], {}), ("After", last[best], first[best][2])):
            correct, n, proofs = counts
            proof = max(proofs, key=lambda text: proofs[text] - old.get(text, 0))  # whose count grew most
            said = f"{when}, {correct} of {n} samples are correct, {proofs[proof]} times with this proof"
            told += f"\n{said}:\n\n" + indented("  " + proof) + "\n"
    groups: dict[str, list[int]] = {}
    for i in sorted(range(len(rows)), key=lambda i: -before[i]):
        groups.setdefault(rows[i]["id"], []).append(i)
    several = [group for group in groups.values() if len(group) > 1]
    rare = [i for group in several for i, part in zip(group, rank_bins(len(group))) if part == 4]
    best = max(rare, key=lambda i: after[i] - before[i], default=None)
    if best is not None and after[best] > before[best]:
        gained, start = np.exp(after[best] - before[best]), np.exp(before[best])
        told += "\nThe proof in the rarest fifth of its theorem's that gained most,"
        told += f" to {gained:.3g} times the probability ({start:.2g} before):\n\n"
        told += indented(rows[best]["statement"]) + "\n" + indented("  " + rows[best]["completion"].strip())
    return told


def print_proofs(title: str, rows: list[dict], before: list[float], after: list[float]) -> None:
    """One theorem's distinct completions of a file, likeliest first."""
    texts = [tuple(row["completion_ids"]) for row in rows]
    times = Counter(texts)
    correct = sum(row["reward"] is not None and row["reward"] >= 1 for row in rows)
    print(f"\n{title}: {len(rows)} samples, {correct} correct, {len(times)} distinct")
    for i in sorted(range(len(rows)), key=lambda i: -before[i]):
        if not times[texts[i]]:  # printed already
            continue
        row, verdict = rows[i], rows[i].get("verdict") or "no verdict"
        known = [f"{key} {row[key]:.3g}" for key in ("rank", "advantage") if row.get(key) is not None]
        known.append(f"log-probability {before[i]:.2f} before, {after[i]:.2f} after")
        known.append(f"{times.pop(texts[i])} times")
        print(f"\n{verdict}, {', '.join(known)}\n{indented(row['completion'])}")


def show(folder: str, name: str, args: argparse.Namespace) -> None:
    """Prints a theorem's completions in every step and evaluation of a run that has them."""
    (model, _), _, checkpoints = read_run(folder)
    found = read_theorem(folder, name)
    print(printable(next(iter(found.values()))[0].get("statement", name)))
    for place, rows in found.items():
        before, after = score(model, rows, args), score(checkpoints[-1], rows, args)
        print_proofs(place, rows, before, after)
