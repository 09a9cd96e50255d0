"""pass@N, uplift, and runs side by side: did training only sharpen the model, and what became of rare proofs?

    python evaluate.py runs/base/verified.jsonl runs/grpo/eval_00060/verified.jsonl --labels base grpo
    python evaluate.py uplift --before toy/base --after runs/grpo/checkpoints/step_00060 verified.jsonl
    python evaluate.py curves runs/default runs/unlikely
    python evaluate.py compare runs/default runs/unlikely      # all of this and more, in one figure
    python evaluate.py show runs/unlikely t_00042              # a theorem's proofs, before and after

pass@N reads id, completion, finish_reason, reward. A sample is correct if its reward is at least 1; a null
reward (the verifier broke) is left out. N runs over powers of two up to the fewest samples of a problem.
Uplift (paper, section 3.5) sorts a problem's distinct correct completions by log-probability under --before.
The uplift rate is the share of problems whose sample at a rank is likelier under --after. If it falls with
the rank, that is the paper's rank bias. The relative rank is 0 for the likeliest proof and 1 for the rarest.
Distinct proofs are counted at equal numbers of correct samples, since more samples hold more of them. Texts
overstate diversity (hypothesis names differ), so distinct sequences of tactic names are counted too.
Intervals are 95 % bootstrap intervals over problems; where all problems agree, the width is 0.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from lib.cli import fail, flags, number, printable, run, suggestion
from lib.figures import Line, Panel, cells, curve_panels, draw, markdown, uplift_panels, uplift_table
from lib.jsonl import make_folder
from lib.samples import bootstrap_mean, correct_samples, load_counts, name_inputs, read_evaluations, score
from lib.story import examples, rank_bins, sentences, show


def pass_at_n(n: Any, c: Any, N: int) -> np.ndarray:
    """Unbiased pass@N = 1 - C(n-c, N) / C(n, N) of n samples with c correct; numbers or arrays, N <= n.
    Computed as a product of factors in [0, 1], so that nothing overflows or cancels."""
    n, c = np.asarray(n, dtype=float), np.asarray(c, dtype=float)
    if not 1 <= N <= n.min():
        raise ValueError(f"pass@{N} needs 1 <= N <= n, the number of samples; here n = {n.min():g}")
    miss = np.ones(np.broadcast(n, c).shape)
    for i in range(N):  # N of the n samples are drawn without replacement, and all miss
        miss = miss * np.maximum(n - c - i, 0) / (n - i)
    return 1 - miss


def uplift(ids: Sequence, before: Sequence, after: Sequence, bins: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Uplift rate by relative rank [4, bins] and by rank [4, R]: value, low, high, problems.

    ids, before and after have an entry per distinct correct sample, a problem's next to each other. Within a
    bin, each problem contributes its mean. after may be [S, n], a row for each of S runs: then a sample
    counts as the share of runs that made it likelier.

    >>> uplift(["p", "p", "q", "q"], [-1, -5, -2, -9], [-2, -4, -1, -8], bins=2)[0][0].tolist()
    [0.5, 1.0]
    """
    likelier = (np.atleast_2d(after) > np.array(before)).mean(0)  # [n]
    by_bin, by_rank = [], []
    for _, group in groupby(range(len(ids)), key=lambda i: ids[i]):
        ups = likelier[sorted(group, key=lambda i: -before[i])]  # likeliest first: the index is the rank
        by_rank.append(ups)
        if len(ups) > 1:  # a single proof has no relative rank
            part = rank_bins(len(ups), bins)
            by_bin.append([ups[part == b].mean() if b in part else np.nan for b in range(bins)])
    most = max(map(len, by_rank))
    by_rank = [np.pad(ups, (0, most - len(ups)), constant_values=np.nan) for ups in by_rank]
    tables = np.reshape(by_bin, [-1, bins]), np.array(by_rank)  # [problems, bins], [problems, R]
    by_bin, by_rank = (np.vstack([bootstrap_mean(table), (~np.isnan(table)).sum(0)]) for table in tables)
    return by_bin, by_rank


def distinct_in_draws(counts: Iterable[int], m: int) -> float:
    """Expected number of distinct proofs in m of n correct samples, drawn without replacement (rarefaction).
    A proof that occurs c times is drawn with probability 1 - C(n-c, m) / C(n, m), as in pass@m.

    >>> distinct_in_draws([3, 1], 2)  # of the 6 pairs 3 hold both proofs
    1.5
    """
    counts = np.array(list(counts))
    return float(pass_at_n(counts.sum(), counts, m).sum())


def sizes(results: dict[str, dict]) -> list[int]:
    """The Ns to report: powers of two, and each file's smallest n, the last N it can report."""
    smallest = {int(counts["n"].min()) for counts in results.values()}
    return sorted({2**i for i in range(max(smallest).bit_length())} | smallest)


def pass_curve(counts: dict, Ns: list[int], first: dict | None = None) -> Line:
    """(Ns, [3, Ns]): pass@N as far as all problems have N samples, or its paired difference to `first`."""
    Ns = [N for N in Ns if N <= min(counts["n"].min(), (first or counts)["n"].min())]
    values = np.stack([pass_at_n(counts["n"], counts["correct"], N) for N in Ns], axis=1)  # [problems, Ns]
    if first is not None:
        _, i, j = np.intersect1d(counts["ids"], first["ids"], return_indices=True)  # the common problems
        values = values[i] - np.stack([pass_at_n(first["n"], first["correct"], N) for N in Ns], axis=1)[j]
    return Ns, bootstrap_mean(values)


def distinct_curves(results: dict[str, dict], kind: str) -> dict[str, Line]:
    """{label: (m, [3, m])}: distinct "proofs" or "sequences" in m = 1, 2, 4, .. correct samples, all over the
    same problems: those with the largest m in every file, at least half of those that every file solves."""
    found = [dict(zip(counts["ids"], counts[kind])) for counts in results.values()]
    common = sorted(set.intersection(*map(set, found)))
    fewest = np.array([min(sum(file[name].values()) for file in found) for name in common], dtype=int)
    solved = fewest[fewest > 0]
    draws = [2**i for i in range(int(np.median(solved)).bit_length())] if len(solved) else []
    chosen = [name for name, count in zip(common, fewest) if draws and count >= draws[-1]]
    lines = {}
    for label, file in zip(results, found):
        values = [[distinct_in_draws(file[name].values(), m) for m in draws] for name in chosen]
        lines[label] = draws, bootstrap_mean(np.reshape(values, [len(chosen), len(draws)]))
    return lines


def pass_table(results: dict[str, dict]) -> str:
    """{label: counts} as Markdown: a table, paired differences to the first two files, notes."""
    Ns, labels, notes = sizes(results), list(results), []
    diversity = {kind: distinct_curves(results, kind) for kind in ("proofs", "sequences")}
    draws = diversity["proofs"][labels[0]][0][-1:]
    columns: list[list] = [["% [95 % interval]", *(f"pass@{N}" for N in Ns)]]
    columns[0] += ["samples per problem", "problems solved", "truncated samples"]
    columns[0] += [f"distinct {kind} in {m} correct" for kind in diversity for m in draws]
    for label, c in results.items():
        least, most = c["n"].min(), c["n"].max()
        columns.append([label, *cells(pass_curve(c, Ns)[1], len(Ns))])
        columns[-1] += [most if least == most else f"{least} to {most}"]
        columns[-1] += [f"{(c['correct'] > 0).sum()} of {len(c['ids'])}"]
        columns[-1] += [f"{100 * c['truncated'].sum() / c['n'].sum():.1f} %"]
        columns[-1] += [cells(lines[label][1], 1, scale=1)[-1] for lines in diversity.values() if draws]
        if c["unverified"]:
            left_out = f"{c['unverified']} samples without a verdict are left out"
            notes.append(f"{label}: {left_out}; problems without any other: {c['unjudged']}.")
        if least < most:
            which = c["ids"][c["n"].argmin()]
            notes.append(f"{label}: N stops at {least}, all that {which} has; others have up to {most}.")
    text = markdown(columns)
    pairs = [(label, first) for first in labels[:2] for label in labels[labels.index(first) + 1 :]]
    columns = [["points [95 % interval]", *(f"pass@{N}" for N in Ns), "problems in common"]]
    for label, first in pairs:
        difference = cells(pass_curve(results[label], Ns, results[first])[1], len(Ns), "+.1f")
        common = set(results[label]["ids"]) & set(results[first]["ids"])
        columns.append([f"{label} - {first}", *difference, len(common)])
    if pairs:
        text += f"\n\nPaired differences, over the problems in common:\n\n{markdown(columns)}"
    return "\n\n".join([text, *map(printable, notes)])  # notes name problems of a file


def pass_panels(results: dict[str, dict]) -> list[Panel]:
    """pass@N of {label: counts}, and the points above the first of them."""
    Ns, (name, first) = sizes(results), next(iter(results.items()))
    plain = {label: pass_curve(counts, Ns) for label, counts in results.items()}
    above = {label: pass_curve(counts, Ns, first) for label, counts in results.items()}
    x = "N, samples for each problem"
    return [Panel("pass@N", x, plain, log=True), Panel(f"pass@N above {name}", x, above, log=True)]


def compare(runs: dict[str, str], figure: str, args: argparse.Namespace, stored: str | None = None) -> None:
    """What the runs {name: folder} did to their base model: tables, three sentences a run, one figure; of a
    lone run also two proofs. stored: CSV of another run's figure, to draw in grey. args: those of score."""
    model, files = read_evaluations(runs)
    parts = curve_panels(runs)
    if files:
        parts = compare_samples(files, model, args) + parts[:3]
    draw(parts, figure, stored)


def compare_samples(files: dict[str, str], model: str, args: argparse.Namespace) -> list[Panel]:
    """Prints what compare says of verified samples, those of the base model first; returns their panels."""
    results = {name: load_counts(path) for name, path in files.items()}
    (base, first), *runs = results.items()
    rows, after, rates = correct_samples(files[base]), {}, {}
    before = score(model, rows, args) if rows else []
    for name, _ in runs if rows else ():
        folder, evaluation = os.path.split(os.path.dirname(files[name]))
        after[name] = score(f"{folder}/checkpoints/{evaluation.replace('eval', 'step')}", rows, args)
        rates[name] = uplift([row["id"] for row in rows], before, after[name])
    print(f"\n{pass_table(results)}\n")
    if rates:
        print(f"Of the base model's distinct correct samples:\n\n{uplift_table(rates)}\n")
    kinds = {kind: distinct_curves(results, kind) for kind in ("proofs", "sequences")}
    for name, counts in runs:
        passes = [pass_curve(counts, sizes(results), other) for other in (None, first)]
        distinct = [(lines[base], lines[name]) for lines in kinds.values()]
        print(sentences(name, len(first["ids"]), passes, rates.get(name), distinct))
    if len(runs) == 1 and rates:
        print(examples(results, rows, before, after[runs[0][0]]))
    parts = pass_panels(results) + (uplift_panels(rates)[:1] if rates else [])
    for kind, title in (("proofs", "distinct proofs"), ("sequences", "distinct sequences of tactic names")):
        parts.append(Panel(title, "correct samples of a theorem", kinds[kind], log=True, scale=1))
    return parts


COMMANDS = {
    "pass": "pass@N of verified samples; the default command",
    "uplift": "which correct samples did training make likelier?",
    "curves": "training curves of runs of train.py",
    "compare": "runs of train.py and their base model: pass@N, uplift, distinct proofs, curves",
    "show": "the proofs of one theorem in a run of train.py",
}


def parse_args(words: list[str]) -> argparse.Namespace:
    if words and words[0] not in (*COMMANDS, "-h", "--help"):
        meant = suggestion(words[0], COMMANDS)
        if meant and not os.path.exists(words[0]):
            fail(f"there is no command and no file {words[0]}{meant}")
        words = ["pass", *words]
    parser = flags("What did training do? Each command has its own --help.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=flags)  # type: ignore[call-overload]
    for command, text in COMMANDS.items():
        add = commands.add_parser(command, help=text, description=text).add_argument
        if command == "show":
            add("run", help="run folder of train.py")
            add("id", help="id of a theorem")
        else:
            what = "JSONL from verify.py" if command in ("pass", "uplift") else "run folders of train.py"
            add("inputs", nargs=1 if command == "uplift" else "+", help=what)
            add("--labels", nargs="+", help="names in place of the paths; give them last")
            add("--out", default="figures", help="folder for the figure and its numbers")
        if command == "uplift":
            parts = number(int, 2, high=1000)
            add("--before", required=True, help="checkpoint that ranks the samples, such as toy/base")
            add("--after", required=True, action="append", help="trained checkpoint; may be repeated")
            add("--bins", type=parts, default=5, help="parts of the relative rank")
        if command in ("uplift", "compare", "show"):
            count = number(int, 1)
            add("--micro-batch-tokens", type=count, default=16384, help="padded tokens of a forward pass")
            add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
            add("--device", default="auto", help="as for sample.py")
    args, unknown = parser.parse_known_args(words)
    if unknown:  # told by the command's own parser, which can suggest its flags
        commands.choices[args.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def main():
    args = parse_args(sys.argv[1:])
    if args.command == "show":
        return show(args.run, args.id, args)
    make_folder(args.out)  # before the work, so that a bad folder costs no time
    named = name_inputs(args.after if args.command == "uplift" else args.inputs, args.labels)
    figure = f"{args.out}/{'pass_at_n' if args.command == 'pass' else args.command}.png"
    if args.command == "pass":
        results = {label: load_counts(path) for label, path in named.items()}
        print(pass_table(results))
        draw(pass_panels(results), figure)
    elif args.command == "uplift":
        rows = correct_samples(args.inputs[0])
        if not rows:
            fail(f"{args.inputs[0]} has no correct sample, so no uplift rate; sample and verify more")
        ids, before = [row["id"] for row in rows], score(args.before, rows, args)
        rates = {
            name: uplift(ids, before, score(path, rows, args), args.bins) for name, path in named.items()
        }
        print(f"{len(rows)} distinct correct samples of {len(set(ids))} problems\n\n{uplift_table(rates)}")
        draw(uplift_panels(rates), figure)
    elif args.command == "curves":
        draw(curve_panels(named), figure)
    else:
        compare(named, figure, args)
    print(f"\nFigure: {figure}, its numbers: {figure.removesuffix('.png')}.csv")


if __name__ == "__main__":
    run(main)
