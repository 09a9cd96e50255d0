"""The tables and figures of results/README.md, from the runs of results/run.sh.

    python results/report.py runs/results --out results

Reads: NAME-seedS/metrics.jsonl, NAME-seedS/val-STEPS/verified.jsonl and the checkpoints of each run, base/verified.jsonl,
base-train/verified.jsonl. Writes pass_at_n.png, uplift.png, curves.png, and fills the tables between the marks of README.md.
An interval is 95 % of a bootstrap that draws seeds and problems anew, both with replacement; with three seeds the part
that the seeds have in it is a rough one, and the seeds' own values stand beside it where there is room.
"""

import argparse
import glob
import os
import re
import sys
from collections.abc import Sequence

import numpy as np

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
from evaluate import correct_samples, draw_uplift, load_counts, pass_at_n, score, uplift, uplift_table  # noqa: E402
from lib.cli import fail, flags  # noqa: E402
from lib.figures import cells, line, markdown, panels, save, styles  # noqa: E402
from lib.jsonl import read_jsonl  # noqa: E402

SETTINGS = ["default", "high-kl", "epochs-2", "epochs-3", "unlikeliness-1", "unlikeliness-2"]
ABLATION = {
    "epochs-2": "beta_rank 0",
    "beta-0.1": "0.1",
    "unlikeliness-2": "0.25",
    "beta-0.5": "0.5",
    "beta-1": "1.0",
    "token-mean": "0.25, rank by token-mean",
}
NS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
PAPER = {
    "base": [52.5, 62.6, 68.3, 72.1, 75.4, 78.3, 81.2, 83.1, 84.7],  # the release's notebook, n = 512
    "default": [71.0, 74.3, 76.2, 77.4, 78.3, 79.1, 80.0, 81.1, 82.2],
    "unlikeliness-2": [65.5, 72.9, 76.4, 79.1, 81.7, 84.3, 86.8, 88.8, 90.2],
}
SOLVED = {
    "base": 7707,
    "default": 7860,
    "epochs-2": 8008,
    "epochs-3": 8006,
    "unlikeliness-1": 8023,
    "unlikeliness-2": 8065,
}  # of 9,600


def seeds_of(folder: str, name: str) -> list[str]:
    """The run folders of a setting, a seed each."""
    return sorted(glob.glob(f"{folder}/{name}-seed*/"))


def passes(paths: list) -> np.ndarray:
    """pass@N [seeds, problems, Ns] of verified files with the same problems."""
    counts = [load_counts(path) for path in paths]
    assert all(c["ids"] == counts[0]["ids"] for c in counts), "the files have different problems"
    return np.stack(
        [[pass_at_n(c["n"], c["correct"], N) for N in NS if N <= c["n"].min()] for c in counts]
    ).transpose(0, 2, 1)


def interval(values: np.ndarray, repeats: int = 4000) -> np.ndarray:
    """[3, K]: mean of values [S, P, K] and the 95 % interval of a bootstrap over seeds and problems, the same ones for all K."""
    rng, (S, P, _) = np.random.default_rng(0), values.shape
    seeds, problems = (rng.multinomial(n, np.full(n, 1 / n), repeats) / n for n in (S, P))  # [R, S], [R, P]
    means = np.stack([(seeds @ values[:, :, k] * problems).sum(1) for k in range(values.shape[2])], axis=1)
    return np.stack([values.mean((0, 1)), *np.quantile(means, [0.025, 0.975], axis=0)])


def metric(folders: list[str], key: str, part: slice = slice(None)) -> np.ndarray:
    """[seeds]: mean over the steps in `part` of a number in metrics.jsonl; steps without an update have none."""
    rows = [
        [row[key] for row in list(read_jsonl(f"{folder}/metrics.jsonl", key))[part]] for folder in folders
    ]
    return np.array([np.mean([value for value in values if value is not None]) for values in rows])


def spread(values: np.ndarray, digits: int) -> str:
    return f"{values.mean():.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def pass_columns(
    curves: dict[str, np.ndarray], sign: str = "", head: str = "%, mean of seeds [95 %]"
) -> list[list]:
    longest = max(curve.shape[1] for curve in curves.values())
    return [[head, *(f"pass@{N}" for N in NS[:longest])]] + [
        [label, *cells(c, longest, sign)] for label, c in curves.items()
    ]


def uplifts(
    runs: dict[str, list[str]], steps: int, args: argparse.Namespace
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{setting: uplift(...)} of the base model's correct training samples, scored under each seed's model after so many steps."""
    rows = correct_samples(f"{args.folder}/base-train/verified.jsonl")
    before = score(f"{HERE}/toy/base", rows, args)
    return {
        name: uplift(
            [row["id"] for row in rows],
            before,
            [score(f"{run}/checkpoints/step_{steps:05d}", rows, args) for run in folders],
        )
        for name, folders in runs.items()
    }


def by_difficulty(
    folder: str,
    steps: int,
    names: Sequence[str] = ("default", "high-kl", "unlikeliness-1"),
    bounds: Sequence[int] = (0, 1, 4, 16, 64, 192, 257),
) -> str:
    """Table: problems in bins of how many of the base model's first 256 samples are right; in each bin, of its other samples and of
    256 by each setting: the share that is right, problems with none right, distinct completions of a problem, their mean length."""

    def numbers(path, skip=0):  # {id: (share right, none right, distinct, tokens)}
        samples = {}
        for row in read_jsonl(path, "id", "sample", "reward", "completion", "completion_ids"):
            if row["sample"] >= skip:
                samples.setdefault(row["id"], []).append(
                    (row["reward"] or 0, row["completion"], len(row["completion_ids"]))
                )
        return {
            name: (
                100 * np.mean([s[0] for s in some]),
                not any(s[0] for s in some),
                len({s[1] for s in some}),
                np.mean([s[2] for s in some]),
            )
            for name, some in samples.items()
        }

    first = {}
    for row in read_jsonl(f"{folder}/base/verified.jsonl"):
        first[row["id"]] = first.get(row["id"], 0) + (row["sample"] < 256 and row["reward"] == 1)
    models = {"base": [numbers(f"{folder}/base/verified.jsonl", 256)]}
    models |= {
        name: [numbers(f"{run}/val-{steps}/verified.jsonl") for run in seeds_of(folder, name)]
        for name in names
    }
    rows = [
        [
            "right of base's first 256",
            "problems",
            *(
                f"{what}, {name}"
                for what in ("right %", "none right", "distinct", "tokens")
                for name in models
            ),
        ]
    ]
    for low, high in zip(bounds, bounds[1:]):
        ids = [name for name, count in first.items() if low <= count < high]
        means = {
            name: [
                [np.mean([seed[i][k] for i in ids]) if ids else np.nan for seed in seeds] for k in range(4)
            ]
            for name, seeds in models.items()
        }
        rows.append(
            [
                f"{low} to {high - 1}" if high > low + 1 else low,
                len(ids),
                *(f"{np.mean(means[name][0]):.1f}" for name in models),
                *(f"{len(ids) * np.mean(means[name][1]):.1f}" for name in models),
                *(f"{np.mean(means[name][k]):.0f}" for k in (2, 3) for name in models),
            ]
        )
    return markdown(rows)


def curves(folder: str, path: str) -> None:
    """Four numbers of a step against the step: mean of the seeds, running mean of 11 steps."""
    titles = {
        "unique_proofs": "distinct proofs in a step",
        "reward": "share of samples proved",
        "kl": "KL to the base model, per token",
        "clip_fraction": "share of tokens clipped",
    }
    figure, axes = panels(2, 2, height=5.6, sharex=True)
    look = styles(SETTINGS)
    for name in SETTINGS:
        for ax, key in zip(axes, titles):
            values = np.array(
                [
                    [
                        np.nan if row[key] is None else row[key]
                        for row in read_jsonl(f"{run}/metrics.jsonl", key)
                    ]
                    for run in seeds_of(folder, name)
                ]
            )  # [S, steps]
            mean = [np.nanmean(values[:, max(0, i - 5) : i + 6]) for i in range(values.shape[1])]
            ax.plot(mean, linewidth=2, label=name, **look[name])
    for ax, title in zip(axes, titles.values()):
        ax.set(title=title, xlabel="" if ax in axes[:2] else "step")
    axes[2].set_ylim(bottom=0)
    axes[3].set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    save(figure, path)


def draw_passes(base: np.ndarray, rates: dict[str, np.ndarray], path: str) -> None:
    """Left pass@N of base, Default and Unlikeliness-2, right every setting's difference to base."""
    figure, (left, right) = panels(1, 2, height=4.8)
    look = styles(["base", *SETTINGS])
    for name in ("base", "default", "unlikeliness-2"):
        curve = interval(base if name == "base" else rates[name])
        line(left, NS[: curve.shape[1]], curve, name, look[name])
    right.axhline(0, color=look["base"]["color"], linewidth=2, label="base")
    for name in SETTINGS:
        curve = interval(rates[name] - base)
        right.plot(
            NS[: curve.shape[1]],
            100 * curve[0],
            marker="o",
            markersize=4,
            linewidth=2,
            label=name,
            **look[name],
        )
        if name in ("default", "unlikeliness-2"):
            right.fill_between(
                NS[: curve.shape[1]],
                100 * curve[1],
                100 * curve[2],
                color=look[name]["color"],
                alpha=0.12,
                linewidth=0,
            )
    for ax, label in ((left, "problems solved, pass@N (%)"), (right, "points above the base model")):
        ax.set_xscale("log", base=2)
        ax.set_xticks(NS[::2], NS[::2])
        ax.set(xlabel="N, samples drawn for each problem", ylabel=label)
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    save(figure, path)


def fill(path: str, tables: dict[str, str]) -> None:
    """Puts each table between its marks, <!-- NAME --> and <!-- end -->, in a Markdown file, if it is there."""
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
    parser = flags("Tables and figures from the runs of results/run.sh.")
    parser.add_argument("folder", nargs="?", default="runs/results", help="where run.sh put its runs")
    parser.add_argument(
        "--out", default="results", help="folder for the figures, and of the README.md to fill"
    )
    parser.add_argument("--micro-batch-tokens", type=int, default=16384, help="lower it if memory runs out")
    parser.add_argument("--dtype", default="float32", help="of the computation")
    parser.add_argument("--device", default="cpu", help="torch device")
    args = parser.parse_args()
    if missing := [name for name in SETTINGS if not seeds_of(args.folder, name)]:
        fail(f"{args.folder} has no run of {missing[0]}; let results/run.sh finish")
    base = passes([f"{args.folder}/base/verified.jsonl"])
    steps = [
        int(path.split("-")[-1]) for path in glob.glob(f"{seeds_of(args.folder, 'unlikeliness-2')[0]}/val-*")
    ]
    rates = {
        name: passes([f"{run}/val-{max(steps)}/verified.jsonl" for run in seeds_of(args.folder, name)])
        for name in SETTINGS
    }
    base = base[
        :, :, : min(rate.shape[2] for rate in rates.values())
    ]  # of it there are twice as many samples
    tables = {}

    columns = pass_columns({"base": interval(base), **{name: interval(rates[name]) for name in SETTINGS}})
    tables["passes"] = markdown(columns)
    paper = [[f"{name} (paper)", *(f"{value:.1f}" for value in values)] for name, values in PAPER.items()]
    tables["paper"] = markdown([["%", *columns[0][1:10]], *paper])
    tables["to-base"] = markdown(
        pass_columns(
            {name: interval(rates[name] - base) for name in SETTINGS}, "+", "points above base [95 %]"
        )
    )
    others = {name: interval(rates[name] - rates["default"]) for name in SETTINGS[1:]}
    tables["to-default"] = markdown(pass_columns(others, "+", "points above default [95 %]"))
    pairs = [
        ("high-kl", "default"),
        ("epochs-2", "high-kl"),
        ("epochs-3", "epochs-2"),
        ("unlikeliness-1", "high-kl"),
        ("unlikeliness-2", "epochs-2"),
    ]
    matched = {f"{a} - {b}": interval(rates[a] - rates[b]) for a, b in pairs}
    tables["matched"] = markdown(pass_columns(matched, "+", "difference, points [95 %]"))
    some = [k for k in (0, 4, 6, 8) if k < base.shape[2]]
    tables["by-seed"] = markdown(
        [["points above base, seed by seed", *(f"pass@{NS[k]}" for k in some)]]
        + [
            [
                name,
                *(
                    ", ".join(f"{value:+.1f}" for value in 100 * (rates[name] - base).mean(1)[:, k])
                    for k in some
                ),
            ]
            for name in SETTINGS
        ]
    )
    front = pass_columns({"base": interval(base)})
    front += pass_columns(
        {
            name: interval(rates[name] - base)
            for name in ("default", "high-kl", "unlikeliness-1", "unlikeliness-2")
        },
        "+",
    )[1:]
    tables["front"] = markdown(front + paper)

    rows = [
        [
            "",
            "optimizer steps",
            "problems solved in the pass, % (seeds)",
            "paper, %",
            "distinct proofs a step, first 10",
            "last 10",
            "unique completions, last 10",
            "KL, last 10",
            "tokens clipped, %",
        ]
    ]
    last = slice(-10, None)
    for name in SETTINGS:
        runs = seeds_of(args.folder, name)
        solved = 100 * metric(runs, "solved") / 16
        updates = np.mean(
            [
                sum(row["updates"] or 0 for row in read_jsonl(f"{run}/metrics.jsonl", "updates"))
                for run in runs
            ]
        )
        rows.append(
            [
                name,
                f"{updates:.0f}",
                spread(solved, 1),
                f"{SOLVED[name] / 96:.1f}" if name in SOLVED else "-",
                f"{metric(runs, 'unique_proofs', slice(10)).mean():.0f}",
                spread(metric(runs, "unique_proofs", last), 0),
                spread(metric(runs, "unique", last), 2),
                spread(metric(runs, "kl", last), 3),
                spread(100 * metric(runs, "clip_fraction"), 2),
            ]
        )
    tables["training"] = markdown(list(map(list, zip(*rows))))

    if base.shape[2] == len(NS):
        tables["difficulty"] = by_difficulty(args.folder, max(steps))
    by_rank = uplifts({name: seeds_of(args.folder, name) for name in SETTINGS}, max(steps), args)
    tables["uplift"] = uplift_table(by_rank)
    seeds = [
        run[len(f"{args.folder}/token-mean") :]
        for run in seeds_of(args.folder, "token-mean")
        if os.path.exists(f"{run}/val-{min(steps)}/verified.jsonl")
    ]  # the last job of a seed
    changed = {name: [f"{args.folder}/{name}{seed}" for seed in seeds] for name in ABLATION}
    if seeds:
        few = {
            name: passes([f"{run}/val-{min(steps)}/verified.jsonl" for run in runs])
            for name, runs in changed.items()
        }
        short, last = uplifts(changed, min(steps), args), slice(max(0, min(steps) - 10), min(steps))
        at = [k for k in (0, 2, 4, 6) if k < min(few[name].shape[2] for name in ABLATION)]
        rows = [
            [
                "",
                *(f"pass@{NS[k]} above base" for k in at),
                "uplift, likeliest fifth, %",
                "rarest fifth, %",
                "distinct proofs, last 10",
                "KL, last 10",
            ]
        ]
        for name, label in ABLATION.items():
            curve, runs = interval(few[name] - base[:, :, : few[name].shape[2]]), changed[name]
            parts = cells(short[name][0][:3], 5)
            rows.append(
                [
                    label,
                    *(cells(curve, curve.shape[1], "+")[k] for k in at),
                    parts[0],
                    parts[-1],
                    spread(metric(runs, "unique_proofs", last), 0),
                    spread(metric(runs, "kl", last), 3),
                ]
            )
        tables["ablation"] = markdown(list(map(list, zip(*rows))))
        compare = {
            "beta_rank 0.25 - 0": ("unlikeliness-2", "epochs-2"),
            "beta_rank 1 - 0.25": ("beta-1", "unlikeliness-2"),
            "token-mean - sequence": ("token-mean", "unlikeliness-2"),
        }
        pairs = {label: interval(few[a] - few[b]) for label, (a, b) in compare.items()}
        tables["ablation-pairs"] = markdown(pass_columns(pairs, "+", "difference, points [95 %]"))

    draw_passes(base, rates, f"{args.out}/pass_at_n.png")
    draw_uplift(by_rank, f"{args.out}/uplift.png")
    curves(args.folder, f"{args.out}/curves.png")
    fill(f"{args.out}/README.md", tables)
    if os.path.samefile(args.out, f"{HERE}/results"):
        fill(f"{HERE}/README.md", {"front": tables["front"]})
    for name, table in tables.items():
        print(f"\n{name}\n\n{table}")


if __name__ == "__main__":
    main()
