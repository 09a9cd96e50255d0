"""The tables, figures and CSV files of results/README.md, from the runs of results/run.sh.

    python results/report.py runs/results --out results

Reads base/ and NAME-seedS/: metrics.jsonl, checkpoints, val/verified.jsonl, and, if there, short (ablation),
tune-T and val-T (samples at temperature T). Fills the tables between the marks of README.md, draws pass_at_n,
uplift, curves and temperature.png, and writes tables.csv, counts.csv (correct samples of each problem in each
run) and a CSV file beside each figure. Intervals are 95 % of a bootstrap that draws seeds and problems anew.
"""

import argparse
import functools
import glob
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
from evaluate import pass_at_n, uplift
from lib.cli import fail, flags, run
from lib.figures import Panel, cells, curve_panels, draw, markdown, uplift_panels, write_csv
from lib.jsonl import make_folder, read_jsonl, writing
from lib.samples import correct_samples, load_counts, score

SETTINGS = ["default", "high-kl", "epochs-2", "epochs-3", "unlikeliness-1", "unlikeliness-2"]
MATCHED = ["high-kl - default", "epochs-2 - high-kl", "epochs-3 - epochs-2"]
MATCHED += ["unlikeliness-1 - high-kl", "unlikeliness-2 - epochs-2"]
ABLATION = ["epochs-2", "beta-0.1", "unlikeliness-2", "beta-0.5", "beta-1", "token-mean"]  # beta_rank 0 to 1
BANDS = ["base", "default", "unlikeliness-2"]  # whose intervals are drawn
NS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
TEMPERATURES = [0.8, 1.0, 1.25, 1.5]
counts_of = functools.cache(load_counts)  # tables and counts.csv ask for the same files of 51,200 rows
TRAINING = {  # row of the table: key of metrics.jsonl, which steps, how to reduce them, unit
    "optimizer steps": ("updates", slice(None), np.sum, 1),
    "solved a step": ("solved", slice(None), np.mean, 1),
    "proofs, first 10": ("unique_proofs", slice(10), np.mean, 1),
    "proofs, last 10": ("unique_proofs", slice(-10, None), np.mean, 1),
    "unique, last 10, %": ("unique", slice(-10, None), np.mean, 100),
    "1000 KL, last 10": ("kl", slice(-10, None), np.mean, 1000),
    "1000 clipped": ("clip_fraction", slice(None), np.mean, 1000),
}


def seeds_of(folder: str, name: str) -> list[str]:
    """The run folders of a setting, one a seed; the base model has one."""
    paths = [f"{folder}/base"] if name == "base" else sorted(glob.glob(f"{folder}/{name}-seed*"))
    return [path for path in paths if os.path.isdir(path)]  # not the log beside it


def check_complete(folder: str, settings: list[str], short: list[str]) -> None:
    """Ends the program unless run.sh has finished: every setting needs every seed's files.
    short: the settings that only the ablation has."""
    needed = [f"{folder}/base/val/verified.jsonl", f"{folder}/base-train/verified.jsonl"]
    for names, own, part in ((settings, settings, "val"), (ABLATION if short else [], short, "short")):
        seeds = {path.rpartition("-seed")[2] for name in own for path in seeds_of(folder, name)}
        for path in (f"{folder}/{name}-seed{seed}" for seed in sorted(seeds) for name in names):
            needed += [f"{path}/{part}/verified.jsonl", f"{path}/metrics.jsonl", f"{path}/checkpoints/step_*"]
    tempered = sorted({os.path.dirname(path) for path in glob.glob(f"{folder}/*/tune-*")})
    for path in [f"{folder}/base", *tempered] if tempered else []:
        needed += [f"{path}/{part}-{T}/verified.jsonl" for part in ("tune", "val") for T in TEMPERATURES]
    if missing := [path for path in needed if not glob.glob(path)]:
        fail(f"there is no {missing[0]} yet; let results/run.sh finish")
    if not settings or tempered == [f"{folder}/base"]:
        what = "of a setting at other temperatures" if settings else "of a setting"
        fail(f"{folder} has no run {what} beside the base model yet; let results/run.sh finish")


def passes(paths: list) -> np.ndarray:
    """pass@N [seeds, problems, Ns] of verified files with the same problems."""
    counts = [counts_of(path) for path in paths]
    if any(c["ids"] != counts[0]["ids"] for c in counts):
        fail(f"{paths[0]} and another seed's file have different problems; let run.sh make them anew")
    Ns = [N for N in NS if N <= min(c["n"].min() for c in counts)]
    return np.stack([[pass_at_n(c["n"], c["correct"], N) for N in Ns] for c in counts]).transpose(0, 2, 1)


def sampled(folder: str, name: str, part: str) -> np.ndarray:
    """passes() of a setting, over the seeds that have such samples: one has all temperatures."""
    paths = [f"{path}/{part}/verified.jsonl" for path in seeds_of(folder, name)]
    return passes([path for path in paths if os.path.exists(path)])


def interval(values: np.ndarray, repeats: int = 4000) -> np.ndarray:
    """[3, K]: mean of values [S, P, K] and its 95 % interval from resampling seeds and problems."""
    rng, (S, P, _) = np.random.default_rng(0), values.shape
    seeds, problems = (rng.multinomial(n, np.full(n, 1 / n), repeats) / n for n in (S, P))  # [R, S], [R, P]
    means = np.stack([(seeds @ values[:, :, k] * problems).sum(1) for k in range(values.shape[2])], axis=1)
    return np.stack([values.mean((0, 1)), *np.quantile(means, [0.025, 0.975], axis=0)])


def pass_panel(title: str, head: str, rates: dict[str, np.ndarray]) -> Panel:
    """Lines of pass@N, or of its differences, from {label: [S, P, Ns]}."""
    lines = {label: (NS[: values.shape[2]], interval(values)) for label, values in rates.items()}
    return Panel(title, head, lines, log=True)


def paired(title: str, head: str, rates: dict[str, np.ndarray], pairs: list[str]) -> Panel:
    """Lines of the differences "a - b", over the same problems."""
    differences = {}
    for pair in pairs:
        a, b = (rates[name] for name in pair.split(" - "))
        K = min(a.shape[2], b.shape[2])
        differences[pair] = a[:, :, :K] - b[:, :, :K]
    return pass_panel(title, f"{head}, points [95 %]", differences)


def metric(paths: list[str], key: str, steps: slice, reduce: Any, unit: float) -> list[float]:
    """Mean, lowest and highest over seeds of a key of metrics.jsonl, reduced over steps."""
    rows = [[row[key] for row in list(read_jsonl(f"{path}/metrics.jsonl", key))[steps]] for path in paths]
    seeds = [unit * reduce([x for x in some if x is not None]) for some in rows]  # null: no update in it
    return [np.mean(seeds), min(seeds), max(seeds)]


def uplifts(folder: str, names: list[str], which: int) -> dict[str, Any]:
    """{setting: uplift(...)} of the base model's correct training samples at one checkpoint of each seed."""
    args = argparse.Namespace(dtype="float32", device="auto", micro_batch_tokens=16384)
    rows = correct_samples(f"{folder}/base-train/verified.jsonl")
    before, rates = score(os.path.join(HERE, rows[0]["model"]), rows, args), {}
    for name in names:
        checkpoints = [sorted(glob.glob(f"{path}/checkpoints/step_*")) for path in seeds_of(folder, name)]
        after = [score(paths[which], rows, args) for paths in checkpoints]  # [S, n]
        rates[name] = uplift([row["id"] for row in rows], before, after)
    return rates


def uplift_panel(title: str, rates: dict[str, Any]) -> Panel:
    fifths = ["0.0 to 0.2", "0.2 to 0.4", "0.4 to 0.6", "0.6 to 0.8", "0.8 to 1.0"]
    lines = {name: (fifths, by_bin) for name, (by_bin, _) in rates.items()}
    return Panel(title, "relative rank; % likelier [95 %]", lines)


def at_best_temperature(folder: str, name: str) -> tuple[np.ndarray, list[float]]:
    """pass@N [S, P, Ns] of a setting, at the best temperature for N on the tuning problems, and which."""
    tune, val = ([sampled(folder, name, f"{part}-{T}") for T in TEMPERATURES] for part in ("tune", "val"))
    K = min(values.shape[2] for values in tune + val)
    best = np.argmax([values[:, :, :K].mean((0, 1)) for values in tune], axis=0)  # [K]
    return np.stack([val[t][:, :, k] for k, t in enumerate(best)], axis=2), [TEMPERATURES[t] for t in best]


def temperature_panels(folder: str, names: list[str]) -> list[Panel]:
    """Above base at temperature 1, and with each at its best one; which these are; every temperature."""
    pairs = [f"{name} - base" for name in names[1:]]
    at_one = {name: sampled(folder, name, "val-1.0") for name in names}
    best, chosen, every = {}, {}, {}
    for name in names:
        every |= {f"{name} at {T}": sampled(folder, name, f"val-{T}") for T in TEMPERATURES}
        best[name], which = at_best_temperature(folder, name)
        chosen[name] = NS[: len(which)], np.array([which, [np.nan] * len(which), [np.nan] * len(which)])
    return [
        paired("temperature-1", "above base, all at temperature 1", at_one, pairs),
        paired("temperature-best", "above base, each at its best", best, pairs),
        Panel("temperature-chosen", "best temperature", chosen, log=True, scale=1),
        pass_panel("temperature-all", "%, held-out theorems [95 %]", every),
    ]


def above_base(title: str, panel: Panel) -> Panel:
    """The differences "NAME - base" for a figure."""
    shown = {pair.removesuffix(" - base"): line for pair, line in panel.lines.items() if " - base" in pair}
    return Panel(f"{title}, above base", "N, samples for each problem", shown, log=True)


def table(panel: Panel) -> str:
    """A row for each line; a column for each x, or for every second of many N."""
    xs = max((x for x, _ in panel.lines.values()), key=len)
    shown = slice(None, None, 2 if panel.log and len(xs) > 5 else 1)
    rows = []
    for label, (_, curve) in panel.lines.items():
        form = "+.1f" if " - " in label else ".2f" if panel.xlabel == "best temperature" else ".1f"
        rows.append([label, *cells(curve, len(xs), form, panel.scale)[shown]])
    heads = [panel.xlabel, *(f"N = {x}" if panel.log else x for x in xs[shown])]
    return markdown([list(column) for column in zip(heads, *rows)])


def write_counts(path: str, runs: list[str]) -> None:
    """Correct samples of each held-out problem, a column a run: any two can be compared anew."""
    counts = {os.path.basename(run): counts_of(f"{run}/val/verified.jsonl") for run in runs}
    columns = [[f"{run} of {c['n'].max()}", *c["correct"]] for run, c in counts.items()]
    with writing(path):
        np.savetxt(path, np.column_stack([["id", *counts["base"]["ids"]], *columns]), fmt="%s", delimiter=",")


def fill(path: str, tables: dict[str, str]) -> None:
    """Puts each table between its marks, <!-- NAME --> and <!-- end -->, in a Markdown file that has them."""
    if not os.path.exists(path):
        return
    text = Path(path).read_text(encoding="utf-8")
    for name, table in tables.items():
        before, *after = re.split(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", text, maxsplit=1, flags=re.S)
        text = f"{before}{table}\n{after[0]}" if after else before
    with writing(path):
        Path(path).write_text(text, encoding="utf-8")


def main():
    parser = flags("Tables, figures and CSV files from the runs of results/run.sh.")
    parser.add_argument("folder", nargs="?", default="runs/results", help="where run.sh put its runs")
    parser.add_argument("--out", default="results", help="folder of the figures and of the README.md to fill")
    args = parser.parse_args()
    make_folder(args.out)  # before the work, so that a bad folder costs no time
    folder = args.folder
    found = {path.split("/")[-2].rpartition("-seed")[0] for path in glob.glob(f"{folder}/*-seed*/")}
    short = sorted(found & {*ABLATION} - {*SETTINGS})
    rivals = sorted(found - {*SETTINGS} - {*ABLATION})
    settings = [*(name for name in SETTINGS if name in found), *rivals]
    check_complete(folder, settings, short)
    pairs = [*MATCHED, *(f"{a} - {b}" for b in ("epochs-2", "unlikeliness-2") for a in rivals)]
    pairs = [pair for pair in pairs if {*pair.split(" - ")} <= {*settings}]
    rates = {name: sampled(folder, name, "val") for name in ("base", *settings)}
    along = {}
    for name in settings:
        numbers = [metric(seeds_of(folder, name), *how) for how in TRAINING.values()]
        along[name] = list(TRAINING), np.array(numbers).T
    by_rank = uplifts(folder, settings, -1)
    to_default = [f"{name} - default" for name in settings if "default" in settings and name != "default"]
    to_base = paired("to-base", "above base", rates, [f"{name} - base" for name in settings])
    to_base.lines = {"base, %": pass_panel("", "", rates).lines["base"]} | to_base.lines
    panels = [
        pass_panel("passes", "%, mean of seeds [95 %]", rates),
        to_base,
        paired("to-default", "above default", rates, to_default),
        paired("matched", "difference", rates, pairs),
        uplift_panel("uplift", by_rank),
        Panel("training", "mean [lowest, highest seed]", along, scale=1),
    ]
    if short:
        ablated = {name: sampled(folder, name, "short") for name in ABLATION} | {"base": rates["base"]}
        panels.append(paired("ablation", "above base", ablated, [f"{name} - base" for name in ABLATION]))
        panels.append(uplift_panel("ablation-uplift", uplifts(folder, ABLATION, 0)))
    tempered = [name for name in rates if glob.glob(f"{seeds_of(folder, name)[0]}/tune-*")]
    if tempered:
        at_one, best, *others = temperature_panels(folder, tempered)
        panels += [at_one, best, *others]
        halves = [above_base("temperature 1", at_one), above_base("each at its best", best)]
        draw(halves, f"{args.out}/temperature.png", bands=BANDS)
    panels = [panel for panel in panels if panel.lines]  # nothing is matched with a lone setting
    tables = {panel.title: table(panel) for panel in panels}
    write_csv(f"{args.out}/tables.csv", panels)
    write_counts(f"{args.out}/counts.csv", [run for name in rates for run in seeds_of(folder, name)])
    plain = Panel("pass@N", "N, samples for each problem", {}, log=True)
    for name, line in panels[0].lines.items():  # an empty line keeps the colours of all figures the same
        plain.lines[name] = line if name in BANDS else ([], np.empty([3, 0]))
    draw([plain, above_base("pass@N", to_base)], f"{args.out}/pass_at_n.png", bands=BANDS)
    draw(uplift_panels(by_rank), f"{args.out}/uplift.png", bands=BANDS)
    draw(curve_panels({name: seeds_of(folder, name)[0] for name in settings}), f"{args.out}/curves.png")
    fill(f"{args.out}/README.md", tables)
    page = os.path.relpath(os.path.realpath(args.out), f"{HERE}/results")
    if page == ".":
        fill(f"{HERE}/README.md", tables)
    elif not page.startswith(".."):  # the page above has some of these tables too
        fill(f"{HERE}/results/README.md", {f"{page}/{name}": text for name, text in tables.items()})
    for name, text in tables.items():
        print(f"\n{name}\n\n{text}")


if __name__ == "__main__":
    run(main)
