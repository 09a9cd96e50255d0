"""The tables, figures and CSV files of results/README.md, from the runs of results/run.sh.

    python results/report.py runs/results --out results

Reads base/ and NAME-seedS/: metrics.jsonl, checkpoints, val-STEPS/verified.jsonl, and, if they are there, tune-T
and val-T, the samples at temperature T. Fills the tables between the marks of README.md, draws pass_at_n.png,
uplift.png and curves.png, and writes tables.csv and a CSV file beside each figure. Intervals are 95 % of a
bootstrap that draws seeds and problems anew, in the table of the training the lowest and the highest seed.
"""

import argparse
import glob
import os
import re
import sys
from typing import Any

import numpy as np

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
from evaluate import pass_at_n, uplift
from lib.cli import fail, flags, number
from lib.figures import Panel, cells, curve_panels, draw, markdown, uplift_panels, uplift_table, write_csv
from lib.jsonl import read_jsonl
from lib.samples import correct_samples, load_counts, score

SETTINGS = ["default", "high-kl", "epochs-2", "epochs-3", "unlikeliness-1", "unlikeliness-2"]
MATCHED = ["high-kl - default", "epochs-2 - high-kl", "epochs-3 - epochs-2"]
MATCHED += ["unlikeliness-1 - high-kl", "unlikeliness-2 - epochs-2"]
ABLATION = ["epochs-2", "beta-0.1", "unlikeliness-2", "beta-0.5", "beta-1", "token-mean"]  # beta_rank 0 to 1
NS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
TEMPERATURES = ["0.8", "1.0", "1.25", "1.5"]
TRAINING = {  # row of the table: key of metrics.jsonl, its steps, what is taken of them, unit
    "optimizer steps": ("updates", slice(None), np.sum, 1),
    "problems solved a step": ("solved", slice(None), np.mean, 1),
    "distinct proofs a step, first 10": ("unique_proofs", slice(10), np.mean, 1),
    "distinct proofs a step, last 10": ("unique_proofs", slice(-10, None), np.mean, 1),
    "distinct completions, last 10, %": ("unique", slice(-10, None), np.mean, 100),
    "KL a token, last 10, thousandths": ("kl", slice(-10, None), np.mean, 1000),
    "tokens clipped, %": ("clip_fraction", slice(None), np.mean, 100),
}


def seeds_of(folder: str, name: str) -> list[str]:
    """The run folders of a setting, one a seed."""
    return [f"{folder}/base/"] if name == "base" else sorted(glob.glob(f"{folder}/{name}-seed*/"))


def passes(paths: list) -> np.ndarray:
    """pass@N [seeds, problems, Ns] of verified files with the same problems."""
    counts = [load_counts(path) for path in paths]
    if any(c["ids"] != counts[0]["ids"] for c in counts):
        fail(f"{paths[0]} and another seed's file have different problems; let run.sh make them anew")
    Ns = [N for N in NS if N <= min(c["n"].min() for c in counts)]
    return np.stack([[pass_at_n(c["n"], c["correct"], N) for N in Ns] for c in counts]).transpose(0, 2, 1)


def interval(values: np.ndarray, repeats: int = 4000) -> np.ndarray:
    """[3, K]: mean of values [S, P, K] and its 95 % interval from resampling seeds and problems."""
    rng, (S, P, _) = np.random.default_rng(0), values.shape
    seeds, problems = (rng.multinomial(n, np.full(n, 1 / n), repeats) / n for n in (S, P))  # [R, S], [R, P]
    means = np.stack([(seeds @ values[:, :, k] * problems).sum(1) for k in range(values.shape[2])], axis=1)
    return np.stack([values.mean((0, 1)), *np.quantile(means, [0.025, 0.975], axis=0)])


def metric(runs: list[str], key: str, steps: slice, reduce: Any, unit: float) -> list[float]:
    """Mean, lowest and highest seed of what is taken of a number of metrics.jsonl."""
    rows = [[row[key] for row in list(read_jsonl(f"{run}/metrics.jsonl", key))[steps]] for run in runs]
    seeds = [
        unit * reduce([value for value in some if value is not None]) for some in rows
    ]  # null: no update
    return [np.mean(seeds), min(seeds), max(seeds)]


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    K = min(a.shape[2], b.shape[2])
    return a[:, :, :K] - b[:, :, :K]


def pass_panel(name: str, head: str, values: dict[str, np.ndarray]) -> Panel:
    """Lines of pass@N, or of its differences, from {label: [S, P, Ns]}."""
    return Panel(
        name, head, {label: (NS[: v.shape[2]], interval(v)) for label, v in values.items()}, log=True
    )


def table(panel: Panel) -> str:
    """A row for each x and a column for each line."""
    rows = max((x for x, _ in panel.lines.values()), key=len)
    form = "+.1f" if panel.xlabel.startswith("points") else ".1f"
    columns = [[label, *cells(c, len(rows), form, panel.scale)] for label, (_, c) in panel.lines.items()]
    return markdown([[panel.xlabel, *(f"pass@{x}" if panel.log else x for x in rows)], *columns])


def uplifts(names: list[str], steps: int, args: argparse.Namespace) -> dict:
    """{setting: uplift(...)} of the base model's correct training samples after so many steps of each seed."""
    rows = correct_samples(f"{args.folder}/base-train/verified.jsonl")
    before, rates = score(f"{HERE}/toy/base", rows, args), {}
    for name in names:
        checkpoints = [f"{run}/checkpoints/step_{steps:05d}" for run in seeds_of(args.folder, name)]
        after = [score(path, rows, args) for path in checkpoints if os.path.exists(path)]
        rates[name] = uplift([row["id"] for row in rows], before, after)
    return rates


def at_best_temperature(folder: str, name: str) -> tuple[np.ndarray, list[float]]:
    """pass@N [S, P, Ns] of a setting at the temperature that is best for N on the tuning problems, and which."""
    places = [[f"{run}/{{}}-{T}/verified.jsonl" for run in seeds_of(folder, name)] for T in TEMPERATURES]
    tune, val = (
        [passes([path.format(part) for path in some]) for some in places] for part in ("tune", "val")
    )
    K = min(values.shape[2] for values in tune + val)
    best = np.argmax([values[:, :, :K].mean((0, 1)) for values in tune], axis=0)  # [K]
    values = np.stack([val[t][:, :, k] for k, t in enumerate(best)], axis=2)
    return values, [float(TEMPERATURES[t]) for t in best]


def fill(path: str, tables: dict[str, str]) -> None:
    """Puts each table between its marks, <!-- NAME --> and <!-- end -->, in a Markdown file that has them."""
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as file:
        text = file.read()
    for name, table in tables.items():
        before, *after = re.split(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", text, maxsplit=1, flags=re.S)
        text = f"{before}{table}\n{after[0]}" if after else before
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def main():
    parser = flags("Tables, figures and CSV files from the runs of results/run.sh.")
    parser.add_argument("folder", nargs="?", default="runs/results", help="where run.sh put its runs")
    parser.add_argument("--out", default="results", help="folder of the figures and of the README.md to fill")
    parser.add_argument("--micro-batch-tokens", type=number(int, 1), default=16384, help="of a batch")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: cuda if there is a GPU"
    )
    args = parser.parse_args()
    folder = args.folder
    if missing := [name for name in SETTINGS if not seeds_of(folder, name)]:
        fail(f"{folder} has no run of {missing[0]}; let results/run.sh finish")
    ends = [
        os.path.basename(path)[4:] for path in glob.glob(f"{seeds_of(folder, 'unlikeliness-2')[0]}/val-*")
    ]
    steps = sorted(int(end) for end in ends if end.isdigit())
    file = f"val-{steps[-1]}/verified.jsonl"
    found = {
        os.path.basename(run[:-1]).split("-seed")[0]
        for run in glob.glob(f"{folder}/*-seed*/")
        if os.path.exists(run + file)
    }
    settings = [*SETTINGS, *sorted(found - {*SETTINGS})]
    rates = {name: passes([run + file for run in seeds_of(folder, name)]) for name in settings}
    base = passes([f"{folder}/base/verified.jsonl"])
    base = base[:, :, : min(rate.shape[2] for rate in rates.values())]  # it has twice as many samples
    values = rates | {"base": base}

    def versus(name, head, pairs):
        return pass_panel(
            name, head, {label: difference(values[a], values[b]) for label, (a, b) in pairs.items()}
        )

    panels = [
        pass_panel("passes", "%, mean of seeds [95 %]", {"base": base} | rates),
        versus("to-base", "points above base [95 %]", {name: (name, "base") for name in settings}),
        versus(
            "to-default", "points above default [95 %]", {name: (name, "default") for name in settings[1:]}
        ),
        versus("matched", "points [95 %]", {pair: pair.split(" - ") for pair in MATCHED}),
    ]
    training = {
        name: [metric(seeds_of(folder, name), *how) for how in TRAINING.values()] for name in settings
    }
    lines = {name: (list(TRAINING), np.array(numbers).T) for name, numbers in training.items()}
    panels.append(Panel("training", "mean [lowest, highest seed]", lines, scale=1))
    by_rank = uplifts(settings, steps[-1], args)
    tables = {"uplift": uplift_table(by_rank)}
    file = f"val-{steps[0]}/verified.jsonl"
    changed = {
        name: [run + file for run in seeds_of(folder, name) if os.path.exists(run + file)]
        for name in ABLATION
    }
    if all(changed.values()) and len(steps) > 1:
        above = {name: difference(passes(paths), base) for name, paths in changed.items()}
        panels.append(pass_panel("ablation", "points above base [95 %]", above))
        tables["ablation-uplift"] = uplift_table(uplifts(ABLATION, steps[0], args))
    sampled = [
        name for name in ("base", *settings) if os.path.exists(f"{seeds_of(folder, name)[0]}/tune-0.8")
    ]
    if "base" in sampled:
        best = {name: at_best_temperature(folder, name) for name in sampled}
        values |= {f"best {name}": rate for name, (rate, _) in best.items()}
        panels.append(
            pass_panel("temperature", "%, at the best temperature", {k: v for k, (v, _) in best.items()})
        )
        pairs = {name: (f"best {name}", "best base") for name in sampled[1:]}
        panels.append(versus("temperature-to-base", "points above base, both at their best", pairs))
        chosen = [[name, *which] for name, (_, which) in best.items()]
        tables["temperature-chosen"] = markdown(
            [["temperature", *(f"pass@{N}" for N in NS[: len(chosen[0]) - 1])], *chosen]
        )

    tables |= {panel.title: table(panel) for panel in panels}
    write_csv(f"{args.out}/tables.csv", panels)
    x, (plain, above) = "N, samples for each problem", panels[:2]
    few = {name: plain.lines[name] for name in ("base", "default", "unlikeliness-2")}
    draw(
        [Panel("pass@N", x, few, log=True), Panel("above base", x, above.lines, log=True)],
        f"{args.out}/pass_at_n.png",
    )
    draw(uplift_panels(by_rank), f"{args.out}/uplift.png")
    draw(curve_panels({name: seeds_of(folder, name)[0] for name in settings}), f"{args.out}/curves.png")
    fill(f"{args.out}/README.md", tables)
    if os.path.samefile(args.out, f"{HERE}/results"):
        fill(f"{HERE}/README.md", tables)
    for name, text in tables.items():
        print(f"\n{name}\n\n{text}")


if __name__ == "__main__":
    main()
