"""Is the model better at N samples, which of its proofs did training favour, and how did training go?

    python evaluate.py runs/base/verified.jsonl runs/grpo/eval_00060/verified.jsonl --out figures/
    python evaluate.py uplift --before toy/base --after runs/grpo/checkpoints/step_00060 verified.jsonl
    python evaluate.py curves runs/grpo runs/unlikely

1. pass@N. Reads id, completion, finish_reason, reward; prints a Markdown table and draws pass_at_n.png. N runs over the
   powers of two up to the fewest samples that a problem has, and that number. Intervals: 95 %, bootstrap over problems.
2. uplift (paper, section 3.5). Reads id, prompt_ids, completion_ids, reward; prints a table and draws uplift.png. Each
   problem's distinct correct completions are sorted by log-probability under --before; the uplift rate is the share of
   problems whose sample at a rank is likelier under --after. If it falls with the rank, that is the paper's rank bias.
   The table and the left panel use the relative rank (0 = the problem's likeliest proof, 1 = its rarest, --bins equal
   parts, problems with two proofs or more): only easy problems, which have many proofs, reach the high absolute ranks
   of the right panel. Intervals: Wilson, n = problems, as the proofs of one problem are not independent.
3. curves. Reads runs/X/metrics.jsonl (step, reward, unique, kl, clip_fraction); draws curves.png.

A row whose reward is null (the verifier broke) is in no statistic. A run has one colour in all figures, see `styles`.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from lib.cli import fail, flags, number, printable
from lib.figures import cells, line, markdown, panels, save, styles
from lib.jsonl import is_number, read_jsonl, read_verified


def pass_at_n(n: Any, c: Any, N: int) -> np.ndarray:
    """Unbiased pass@N = 1 - C(n-c, N) / C(n, N) of n samples with c correct; n and c are numbers or arrays, N <= n.
    As a product of factors in [0, 1] nothing overflows and nothing cancels."""
    n, c = np.asarray(n, dtype=float), np.asarray(c, dtype=float)
    if not 1 <= N <= n.min():
        raise ValueError(f"pass@{N} needs 1 <= N <= n, the number of samples; here n = {n.min():g}")
    miss = np.ones(np.broadcast(n, c).shape)
    for i in range(N):  # N of the n samples are drawn without putting back, and all miss
        miss = miss * np.maximum(n - c - i, 0) / (n - i)
    return 1 - miss


def load_counts(path: str) -> dict[str, Any]:
    """What pass@N needs of verified rows: arrays with an entry per problem. A row is dropped when it is counted."""
    problems, unverified = {}, 0
    for row in read_verified(path, "completion", "finish_reason"):
        problem = problems.setdefault(row["id"], {"n": 0, "correct": 0, "truncated": 0, "proofs": set()})
        if row["reward"] is None:
            unverified += 1
            continue
        problem["n"] += 1
        problem["truncated"] += row["finish_reason"] == "length"
        if row["reward"] == 1:
            problem["correct"] += 1
            problem["proofs"].add(hash(row["completion"].strip()))
    total, problems = len(problems), {name: problem for name, problem in problems.items() if problem["n"]}
    if not problems:
        fail(f"{path} has no row with a verdict; run sample.py and verify.py first")
    counts = {
        key: np.array([problem[key] for problem in problems.values()])
        for key in ("n", "correct", "truncated")
    }
    unique = np.array([len(problem["proofs"]) for problem in problems.values()])
    return dict(
        counts, unique=unique, ids=list(problems), unverified=unverified, unjudged=total - len(problems)
    )


def sizes(results: dict[str, dict]) -> list[int]:
    """The Ns to report: powers of two and each file's smallest n. A file takes part up to its own smallest n."""
    smallest = {int(counts["n"].min()) for counts in results.values()}
    return sorted({2**i for i in range(max(smallest).bit_length())} | smallest)


def bootstrap_mean(values: np.ndarray, repeats: int = 2000, seed: int = 0) -> np.ndarray:
    """[3, K]: mean over the problems of values [problems, K] and its 95 % interval, low and high, from resampling them."""
    rng, problems = np.random.default_rng(seed), len(values)
    draws = [
        rng.multinomial(problems, np.full(problems, 1 / problems), size=min(100, repeats - done)) @ values
        for done in range(0, repeats, 100)
    ]  # 100 at a time, so that memory stays small with many problems
    return np.stack(
        [values.mean(axis=0), *np.quantile(np.concatenate(draws) / problems, [0.025, 0.975], axis=0)]
    )


def pass_curve(
    counts: dict, Ns: list[int], first: dict | None = None, repeats: int = 2000, seed: int = 0
) -> tuple[list[int], np.ndarray]:
    """bootstrap_mean of pass@N at those Ns that all problems reach; given `first`, of the paired difference to it."""
    Ns = [N for N in Ns if N <= min(counts["n"].min(), (first or counts)["n"].min())]
    values = np.stack([pass_at_n(counts["n"], counts["correct"], N) for N in Ns], axis=1)  # [problems, Ns]
    if first is not None:
        _, i, j = np.intersect1d(counts["ids"], first["ids"], return_indices=True)  # the common problems
        values = values[i] - np.stack([pass_at_n(first["n"], first["correct"], N) for N in Ns], axis=1)[j]
    return Ns, bootstrap_mean(values, repeats, seed) if len(values) else np.full([3, len(Ns)], np.nan)


def pass_table(results: dict[str, dict], repeats: int = 2000, seed: int = 0) -> str:
    """The report on {label: counts} as Markdown: a table, the paired differences to the first file, notes."""
    Ns, (base, *others), notes = sizes(results), results, []
    columns: list[list] = [
        [
            "% [95 % interval]",
            *(f"pass@{N}" for N in Ns),
            "samples per problem",
            "problems solved",
            "unique proofs",
            "truncated samples",
        ]
    ]
    for label, c in results.items():
        least, most = c["n"].min(), c["n"].max()
        columns.append(
            [
                label,
                *cells(pass_curve(c, Ns, None, repeats, seed)[1], len(Ns)),
                most if least == most else f"{least} to {most}",
                f"{(c['correct'] > 0).sum()} of {len(c['ids'])}",
                f"{100 * c['unique'].sum() / max(1, c['correct'].sum()):.1f} % of {c['correct'].sum()}",
                f"{100 * c['truncated'].sum() / c['n'].sum():.1f} %",
            ]
        )
        if c["unverified"]:
            notes.append(
                f"{label}: {c['unverified']} samples without a verdict are left out, and {c['unjudged']} problems"
                " that have no others."
            )
        if least < most:
            notes.append(
                f"{label}: N stops at {least}, all that {c['ids'][c['n'].argmin()]} has; others have up to {most}."
            )
    text = markdown(columns)
    if others:
        columns = [["points [95 % interval]", *(f"pass@{N}" for N in Ns), "problems in common"]]
        columns += [
            [
                label,
                *cells(pass_curve(results[label], Ns, results[base], repeats, seed)[1], len(Ns), "+"),
                len(set(results[label]["ids"]) & set(results[base]["ids"])),
            ]
            for label in others
        ]
        text += f"\n\nPaired difference to {base}:\n\n{markdown(columns)}"
    return "\n\n".join([text, *map(printable, notes)])  # they name problems of a file


def correct_samples(path: str) -> list[dict]:
    """The distinct correct completions of verified rows, a problem's next to each other; distinct in their token ids."""
    distinct = {}
    for row in read_verified(path, "prompt_ids", "completion_ids"):
        if row["reward"] == 1:
            kept = {key: row[key] for key in ("id", "prompt_ids", "completion_ids")}
            distinct.setdefault(row["id"], {})[tuple(row["completion_ids"])] = kept
    if not distinct:
        fail(f"{path} has no correct sample, so no uplift rate; sample and verify more")
    return [row for group in distinct.values() for row in group.values()]


def score(model_path: str, rows: list[dict], args: argparse.Namespace) -> list[float]:
    """Log-probability of each row's completion under a checkpoint, from the stored token ids."""
    from lib.logprobs import completion_logprobs  # here, because pass@N needs no torch
    from lib.model import load_model

    model, _ = load_model(model_path, dtype=args.dtype, device=args.device)
    largest, size = (
        max(max(row["prompt_ids"] + row["completion_ids"]) for row in rows),
        model.config.vocab_size,
    )
    if largest >= size:
        fail(
            f"the rows have a token {largest}, {model_path} has only {size}; give checkpoints of the model that sampled them"
        )
    return [
        float(logps.sum())
        for logps in completion_logprobs(model, rows, micro_batch_tokens=args.micro_batch_tokens)
    ]


def uplift(
    ids: list[str], before: list[float], after: Sequence, bins: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Uplift by relative rank [4, bins] and by rank [4, R], both as rate, low, high, problems. ids, before and after have
    an entry per distinct correct sample, a problem's next to each other; in a bin a problem counts with its mean. after may
    have several rows, [S, n], of as many runs with other seeds: then a sample counts with the share of runs that made it likelier.

    >>> uplift(["p", "p", "q", "q"], [-1, -5, -2, -9], [-2, -4, -1, -8], bins=2)[0][0].tolist()  # likelier: no, yes, yes, yes
    [0.5, 1.0]
    """
    by_bin, by_rank = [[] for _ in range(bins)], [[] for _ in ids]
    ups = (np.atleast_2d(after) > np.array(before)).mean(0)  # [n]
    for _, group in groupby(range(len(ids)), key=lambda i: ids[i]):
        group = sorted(group, key=lambda i: -before[i])  # likeliest first
        likelier = [float(ups[i]) for i in group]
        part = np.minimum(np.arange(len(group)) * bins // max(1, len(group) - 1), bins - 1)
        for rank, up in enumerate(likelier):
            by_rank[rank].append(up)
        for b in set(part) if len(group) > 1 else ():
            by_bin[b].append(np.mean([up for up, p in zip(likelier, part) if p == b]))
    return wilson(by_bin), wilson([values for values in by_rank if values])


def wilson(lists: list[list[float]]) -> np.ndarray:
    """[4, K]: mean of each list of numbers in [0, 1], its 95 % Wilson interval, its length; nan for an empty list."""
    n, z = np.array([len(values) for values in lists]), 1.96
    n_or_nan, p = (
        np.where(n, n, np.nan),
        np.array([np.mean(values) if values else np.nan for values in lists]),
    )
    middle, half = p + z**2 / (2 * n_or_nan), z * np.sqrt(p * (1 - p) / n_or_nan + (z / (2 * n_or_nan)) ** 2)
    return np.stack([p, (middle - half) / (1 + z**2 / n_or_nan), (middle + half) / (1 + z**2 / n_or_nan), n])


def uplift_table(rates: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """{label: uplift(...)} as Markdown: a line per part of the relative rank."""
    bins = rates[next(iter(rates))][0].shape[1]
    columns = [["relative rank", *(f"{i / bins:.2f} to {(i + 1) / bins:.2f}" for i in range(bins))]]
    columns += [
        [f"{label}, % [95 % interval]", *cells(by_bin[:3], bins)] for label, (by_bin, _) in rates.items()
    ]
    return markdown([*columns, ["problems", *(f"{n:.0f}" for n in rates[next(iter(rates))][0][3])]])


def draw_passes(results: dict[str, dict], path: str, repeats: int = 2000, seed: int = 0) -> None:
    """pass@N of {label: counts} against N."""
    figure, (ax,) = panels(1, 1, height=4.6)
    look, Ns = styles(results), sizes(results)
    for label, counts in results.items():
        line(ax, *pass_curve(counts, Ns, None, repeats, seed), label, look[label])
    ax.set_xscale("log", base=2)
    ticks = [N for N in Ns if N & (N - 1) == 0]
    ax.set_xticks(ticks, ticks)
    ax.set(xlabel="N, samples drawn for each problem", ylabel="problems solved, pass@N (%)")
    ax.legend(loc="lower right")
    save(figure, path)


def draw_uplift(rates: dict[str, tuple[np.ndarray, np.ndarray]], path: str) -> None:
    """{label: uplift(...)}: left by relative rank, right by rank for as long as 10 problems have a sample there."""
    figure, (left, right) = panels(1, 2, height=4.2, sharey=True)
    look = styles(rates)
    for label, (by_bin, by_rank) in rates.items():
        held, reached = by_bin[3] > 0, by_rank[3] >= min(10, by_rank[3].max())
        line(left, ((np.arange(len(held)) + 0.5) / len(held))[held], by_bin[:, held], label, look[label])
        line(right, np.arange(reached.sum()), by_rank[:, reached], label, look[label])
    left.set(
        xlim=(0, 1),
        ylim=(0, 100),
        xlabel="relative rank (0 likeliest, 1 rarest)",
        ylabel="likelier after training (%)",
    )
    right.set(xlabel="rank (0 = the problem's likeliest proof)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    save(figure, path)


def draw_curves(runs: dict[str, str], path: str) -> None:
    """metrics.jsonl of {label: run folder}; with 40 steps or more a running mean over the faint raw values."""
    titles = {
        "reward": "reward, mean of all samples",
        "unique": "unique completions",
        "kl": "KL to the base model, per token",
        "clip_fraction": "share of tokens clipped",
    }
    figure, axes = panels(2, 2, height=5.6, sharex=True)
    look = styles(runs)
    for label, folder in runs.items():
        metrics = os.path.join(folder, "metrics.jsonl")
        rows = list(read_jsonl(metrics, "step", *titles))
        if not rows:
            fail(f"{metrics} has no rows yet; let train.py finish a step first")
        for line_number, row in enumerate(rows, 1):
            for key in ("step", *titles):
                if not (is_number(row[key]) or key != "step" and row[key] is None):
                    fail(f"{metrics}, line {line_number}: '{key}' is not a number; mend or delete the line")
        for ax, key in zip(axes, titles):
            pairs = [
                (row["step"], row[key]) for row in rows if row[key] is not None
            ]  # null: a step without an update
            steps, values = np.array(pairs, dtype=float).reshape(-1, 2).T
            reach = len(values) // 40
            mean = [values[max(0, i - reach) : i + reach + 1].mean() for i in range(len(values))]
            ax.plot(steps, values, linewidth=0.8, alpha=0.35, color=look[label]["color"])
            ax.plot(
                steps,
                mean,
                linewidth=2,
                marker="" if reach else "o",
                markersize=3,
                label=label,
                **look[label],
            )
    for ax, title in zip(axes, titles.values()):
        ax.set(title=title, xlabel="" if ax in axes[:2] else "step")
        ax.set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    save(figure, path)


def name_inputs(paths: list[str], labels: list[str] | None) -> dict[str, str]:
    """{label: path}; without labels, the last folder that is not just a checkpoint's or an evaluation's, and that one:
    runs/unlikely/eval_00060/verified.jsonl is unlikely/eval_00060, out/base.jsonl is base."""
    if not labels:
        labels = []
        for path in paths:
            parts = (
                os.path.abspath(path).removesuffix(".jsonl").removesuffix(f"{os.sep}verified").split(os.sep)
            )
            plain = [
                i
                for i, part in enumerate(parts)
                if not re.fullmatch(r"(eval|step|checkpoints?|model|final)[-_]?\d*", part)
            ]
            labels.append("/".join(parts[i] for i in sorted({plain[-1], len(parts) - 1})))
    if len(labels) != len(paths) or len(set(labels)) < len(labels):
        fail(f"{len(paths)} inputs need as many different names, not {', '.join(labels)}; give --labels")
    return dict(zip(labels, paths))


def main():
    command = sys.argv[1] if sys.argv[1:] and sys.argv[1] in ("uplift", "curves") else "pass@N"
    parser = flags(
        {
            "pass@N": "pass@N of verified samples. Two more: evaluate.py uplift --help, evaluate.py curves --help.",
            "uplift": "Which correct samples did training make likelier?",
            "curves": "Training curves.",
        }[command],
        prog="evaluate.py" if command == "pass@N" else f"evaluate.py {command}",
    )
    parser.add_argument(
        "inputs",
        nargs=1 if command == "uplift" else "+",
        help="run folders of train.py" if command == "curves" else "JSONL from verify.py",
    )
    parser.add_argument(
        "--labels", nargs="+", help="a name for each line, instead of the one from its path; give them last"
    )
    parser.add_argument("--out", default="figures", help="folder for the figure")
    if command == "pass@N":
        parser.add_argument(
            "--bootstrap",
            type=number(int, 1, high=10**6),
            default=2000,
            help="resamplings behind an interval",
        )
        parser.add_argument("--seed", type=number(int, 0), default=0, help="of the resampling")
    if command == "uplift":
        parser.add_argument(
            "--before", required=True, help="checkpoint that ranks the samples, usually the base model"
        )
        parser.add_argument(
            "--after", required=True, action="append", help="trained checkpoint; may be given several times"
        )
        parser.add_argument(
            "--bins", type=number(int, 2, high=1000), default=5, help="parts of the relative rank"
        )
        parser.add_argument(
            "--micro-batch-tokens", type=number(int, 1), default=16384, help="lower it if memory runs out"
        )
        parser.add_argument(
            "--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the weights"
        )
        parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    args = parser.parse_args(sys.argv[1:] if command == "pass@N" else sys.argv[2:])
    try:
        os.makedirs(args.out, exist_ok=True)  # before the work, so that a bad folder costs no time
    except OSError as error:
        fail(f"cannot make the folder {args.out} ({error.strerror}); choose another --out")
    named = name_inputs(args.after if command == "uplift" else args.inputs, args.labels)
    if command == "pass@N":
        figure, results = "pass_at_n.png", {label: load_counts(path) for label, path in named.items()}
        print(pass_table(results, args.bootstrap, args.seed))
        draw_passes(results, os.path.join(args.out, figure), args.bootstrap, args.seed)
    elif command == "uplift":
        figure, rows = "uplift.png", correct_samples(args.inputs[0])
        ids, before = [row["id"] for row in rows], score(args.before, rows, args)
        rates = {
            label: uplift(ids, before, score(path, rows, args), args.bins) for label, path in named.items()
        }
        print(f"{len(rows)} distinct correct samples of {len(set(ids))} problems\n\n{uplift_table(rates)}")
        draw_uplift(rates, os.path.join(args.out, figure))
    else:
        figure = "curves.png"
        draw_curves(named, os.path.join(args.out, figure))
    print(f"\nFigure: {os.path.join(args.out, figure)}")


if __name__ == "__main__":
    main()
