"""The paper's claim where every number is exact: a synthetic world, trained with the project's own code.

    python results/synthetic.py                           # every setting, 20 seeds: table and figure
    python results/synthetic.py --map                     # where the reward helps: habit against skill
    python results/synthetic.py --habit 3 --seeds 5 --out runs/world

world.py has the world and its training; here are the settings, tables and figures. pass@N is computed, not
estimated; intervals are over seeds, which are worlds.

Writes synthetic.png, synthetic.csv and the table in README.md; with --map synthetic-map.png and .csv.
"""

import os
import sys
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import numpy as np
from report import fill
from tqdm import tqdm
from world import KNOBS, NS, RANKS, train_settings

from lib.cli import flags, number, run
from lib.figures import Panel, cells, draw, markdown, panels, save, write_csv
from lib.jsonl import make_folder

DEFAULT, BEST = "GRPO-Default", "GRPO-Unlikeliness-2"
TWO_EPOCHS = "--kl 0.1 --ppo-epochs 2"
PAPER = {  # Table 1 of the paper, as flags of train.py
    DEFAULT: "--kl 0.02",
    "GRPO-High-KL": "--kl 0.1",
    "GRPO-Epochs-2": TWO_EPOCHS,
    "GRPO-Epochs-3": "--kl 0.1 --ppo-epochs 3",
    "GRPO-Unlikeliness-1": "--kl 0.1 --unlikeliness 0.25",
    BEST: f"{TWO_EPOCHS} --unlikeliness 0.25",
}
RIVALS = ["dr-grpo", "raft", "reinforce-rej", "nsr", "w-reinforce", "pass-at-k", "f-grpo"]
SETTINGS = {
    **PAPER,
    **{name: f"--kl 0.02 --estimator {name}" for name in RIVALS},
    **{f"{name}, 2 epochs": f"{TWO_EPOCHS} --estimator {name}" for name in RIVALS},
    **{f"{BEST}, {name}": f"{PAPER[BEST]} --estimator {name}" for name in ("w-reinforce", "f-grpo")},
    f"{BEST}, filter shaped": f"{PAPER[BEST]} --filter shaped",
}
PAIRS = [(BEST, DEFAULT), (BEST, "GRPO-Epochs-2"), ("GRPO-Unlikeliness-1", "GRPO-High-KL")]
NEAR_PAPER = {"strategies": 256, "features": 8, "threshold": 1.2, "noise": 1.0}
MAPS = {  # title: (changes of the world, habits, skills, the marked cell)
    "the world of the table": ({}, [0, 1, 2.1, 2.5, 3], [0, 0.5, 1, 2, 4], (2.1, 0.5)),
    "nearest the paper's base model": (NEAR_PAPER, [1, 2, 3, 4], [0, 1, 2, 4], (3, 4)),
}


def train_all(worlds: list[Namespace], settings: dict[str, str], seeds: int, workers: int) -> np.ndarray:
    """The results [worlds, settings, seeds, ...] of train_settings."""
    jobs = [(world, list(settings.values()), seed) for world in worlds for seed in range(seeds)]
    with ProcessPoolExecutor(workers) as pool:
        results = list(tqdm(pool.map(train_settings, jobs), total=len(jobs), desc="worlds"))
    return np.array(results).reshape(len(worlds), seeds, len(settings), -1).swapaxes(1, 2)


def interval(values: np.ndarray) -> np.ndarray:
    """[3, K]: the mean of values [S, K] over seeds, and its 95 % bootstrap interval."""
    chosen = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    return np.stack([values.mean(0), *np.percentile(values[chosen].mean(1), [2.5, 97.5], axis=0)])


def compare(args: Namespace) -> None:
    """Every setting in one world: the figure, the table, and their numbers."""
    results = train_all([args], SETTINGS, args.seeds, args.workers)[0]  # [settings, S, ...]
    base, trained, rates = np.split(results, [len(NS), 2 * len(NS)], axis=-1)
    gains = dict(zip(SETTINGS, trained - base))  # paired: each seed's world is the same for all settings
    gains |= {f"{a} minus {b}": gains[a] - gains[b] for a, b in PAIRS}
    change = {name: (NS, interval(values)) for name, values in gains.items()}
    by_rank = {name: (RANKS, interval(values)) for name, values in zip(SETTINGS, rates)}
    left = Panel("pass@N above the base model, points", "N", change, log=True, scale=1)
    rank = "rank, 0 = the base model's favourite"
    right = Panel("right strategies made likelier, %", rank, by_rank, scale=1)
    path = os.path.join(args.out, "synthetic")
    zero = {"base model": (NS, np.zeros((3, len(NS))))}
    left.lines = zero | {name: change[name] for name in (DEFAULT, BEST)}
    right.lines = {name: by_rank[name] for name in (DEFAULT, BEST)}
    draw([left, right], f"{path}.png")
    left.lines, right.lines = {"base model, %": (NS, interval(base[0]))} | change, by_rank
    write_csv(f"{path}.csv", [left, right])
    shown = [0, 4, 7, 9]  # places in NS
    rows = [["points above base [95 %]", *(f"N = {NS[k]}" for k in shown)]]
    for name, (_, curve) in left.lines.items():
        form = ".1f" if name == "base model, %" else "+.1f"
        rows.append([name, *cells(curve[:, shown], len(shown), form, scale=1)])
    table = markdown([list(column) for column in zip(*rows)])
    fill(os.path.join(args.out, "README.md"), {"synthetic": table})
    print(f"{table}\n\nFigure: {path}.png, all numbers: {path}.csv")


def draw_map(args: Namespace) -> None:
    """Points at N = 512 by which Unlikeliness-2 is above Default and above Epochs-2, over habit and skill."""
    settings = {name: PAPER[name] for name in (DEFAULT, "GRPO-Epochs-2", BEST)}
    figure, axes = panels(1, len(MAPS), height=4.8)
    parts = []
    for ax, (title, (changes, habits, skills, mark)) in zip(axes, MAPS.items()):
        grid = [{"habit": habit, "skill": skill} for skill in skills for habit in habits]
        worlds = [Namespace(**{**vars(args), **changes, **cell}) for cell in grid]
        results = train_all(worlds, settings, args.seeds, args.workers)
        change = results[..., 2 * len(NS) - 1] - results[..., len(NS) - 1]  # [cells, 3, S] at N = 512
        change = change.reshape(len(skills), len(habits), 3, -1)
        shown = {
            "Default minus base": change[:, :, 0],
            "Unlikeliness-2 minus Default": change[:, :, 2] - change[:, :, 0],
            "Unlikeliness-2 minus Epochs-2": change[:, :, 2] - change[:, :, 1],
        }
        lead, reward = (shown[f"Unlikeliness-2 minus {name}"].mean(-1) for name in ("Default", "Epochs-2"))
        image = ax.imshow(lead, cmap="PuOr", vmin=-20, vmax=20, origin="lower", aspect="auto")
        for i, j in np.ndindex(lead.shape):
            weight = "bold" if (habits[j], skills[i]) == mark else "normal"
            words = f"{lead[i, j]:+.1f}\n({reward[i, j]:+.1f})"
            ink = "white" if abs(lead[i, j]) > 12 else "black"
            ax.text(j, i, words, ha="center", va="center", fontsize=8, weight=weight, color=ink)
        ax.grid(False)
        ax.set_xticks(range(len(habits)), habits)
        ax.set_yticks(range(len(skills)), skills)
        ax.set(title=title, xlabel="habit", ylabel="skill")
        for name, values in shown.items():
            lines = {f"skill {skill:g}": (habits, interval(row.T)) for skill, row in zip(skills, values)}
            parts.append(Panel(f"{title}: {name}, points at N = 512", "habit", lines, scale=1))
    figure.colorbar(image, ax=axes, label="Unlikeliness-2 minus Default, points at N = 512")
    path = os.path.join(args.out, "synthetic-map")
    save(figure, f"{path}.png")
    write_csv(f"{path}.csv", parts)
    print(f"Figure: {path}.png (in brackets: Unlikeliness-2 minus Epochs-2), numbers: {path}.csv")


def main() -> None:
    parser = flags("GRPO and its rivals in a synthetic world where pass@N is exact.")
    add, count = parser.add_argument, number(int, 1)
    add("--map", action="store_true", help="draw the map instead of the table and the figure")
    add("--seeds", type=count, help="worlds to train each setting in (default: 20; --map: 4)")
    add("--out", default="results", help="folder for the figures, and of the README.md to fill")
    add("--workers", type=count, default=os.cpu_count(), help="processes")
    group = parser.add_argument_group("the world and its training")
    for name, (default, low, high, words) in KNOBS.items():
        kind = number(type(default), low, high=high)
        group.add_argument(f"--{name}", type=kind, default=default, help=words)
    args = parser.parse_args()
    args.seeds = args.seeds or (4 if args.map else 20)
    make_folder(args.out)  # before the work, so that a bad folder costs no time
    if args.map:
        draw_map(args)
    else:
        compare(args)


if __name__ == "__main__":
    run(main)
