"""Verified samples: counted per problem, scored under a model, and found in a run folder of train.py."""

import argparse
import glob
import os
import re
from collections import Counter, defaultdict
from typing import Any

import numpy as np

from lib.cli import fail
from lib.jsonl import read_jsonl, read_verified


def bootstrap_mean(values: Any, repeats: int = 2000, seed: int = 0) -> np.ndarray:
    """[3, K]: mean over problems of values [problems, K] (nan: none) and its 95 % bootstrap interval."""
    values = np.asarray(values, dtype=float)
    there, problems = ~np.isnan(values), len(values)
    if not problems:
        return np.full([3, values.shape[1]], np.nan)
    filled = np.where(there, values, 0)
    mean = np.where(there.any(0), filled.sum(0) / np.maximum(there.sum(0), 1), np.nan)
    rng, draws = np.random.default_rng(seed), []
    for done in range(0, repeats, 100):  # 100 at a time, so that memory stays small with many problems
        times = rng.multinomial(problems, np.full(problems, 1 / problems), size=min(100, repeats - done))
        present = times @ there
        draws.append(np.where(present, times @ filled / np.maximum(present, 1), mean))
    return np.stack([mean, *np.quantile(np.concatenate(draws), [0.025, 0.975], axis=0)])


def tactic_names(proof: str) -> tuple[str, ...]:
    """The names of a proof's tactics: the first word of a line or a case arm, and the one after ; <;> and by.

    >>> tactic_names("intro h1 h2\\n  · cases h1 with\\n    | inl h => exact h\\n    | inr h => simp <;> rfl")
    ('intro', 'cases', 'exact', 'simp', 'rfl')
    """
    places = r"(?:^[\s·]*(?:(?:\||case\b).*?=>)?|<;>|;|\bby\b)"
    return tuple(re.findall(places + r"\s*([a-zA-Z_][\w.]*[!?]?)", proof, re.M))


def load_counts(path: str) -> dict[str, Any]:
    """Counts of verified rows, an entry per problem; correct: reward at least 1. proofs, sequences:
    how often each correct text, and each sequence of tactic names, occurs. Only these stay in memory."""
    unverified, n, truncated, proofs = 0, Counter(), Counter(), defaultdict(Counter)
    for row in read_verified(path, "completion", "finish_reason"):
        name = row["id"]
        n[name] += row["reward"] is not None
        if row["reward"] is None:
            unverified += 1
            continue
        truncated[name] += row["finish_reason"] == "length"
        if row["reward"] >= 1:
            proofs[name][row["completion"].strip()] += 1
    ids = [name for name in n if n[name]]
    if not ids:
        fail(f"{path} has no row with a verdict, every reward is null; see its messages, then verify again")
    sequences = defaultdict(Counter)
    for name in proofs:
        for proof, times in proofs[name].items():
            sequences[name][tactic_names(proof)] += times
    return {
        "ids": ids,
        "n": np.array([n[name] for name in ids]),
        "truncated": np.array([truncated[name] for name in ids]),
        "correct": np.array([proofs[name].total() for name in ids]),
        "proofs": [proofs[name] for name in ids],
        "sequences": [sequences[name] for name in ids],
        "unverified": unverified,
        "unjudged": len(n) - len(ids),
    }


def correct_samples(path: str) -> list[dict]:
    """The correct completions of verified rows, distinct in token ids, a problem's next to each other."""
    distinct: dict[str, dict] = {}
    for row in read_verified(path, "prompt_ids", "completion_ids"):
        if row["reward"] is not None and row["reward"] >= 1:
            keys = ("id", "statement", "completion", "prompt_ids", "completion_ids", "model")
            kept = {key: row.get(key) for key in keys}
            distinct.setdefault(row["id"], {})[tuple(row["completion_ids"])] = kept
    return [row for group in distinct.values() for row in group.values()]


def score(model_path: str, rows: list[dict], args: argparse.Namespace) -> list[float]:
    """Log-probability of each row's completion under a checkpoint, from the stored token ids."""
    from lib.checks import check_logprobs, check_tokens  # here, since pass@N needs none of these
    from lib.logprobs import completion_logprobs
    from lib.model import load_model

    model, _ = load_model(model_path, dtype=args.dtype, device=args.device)
    check_logprobs(model, check_tokens(rows, "correct samples", model, model_path))
    logprobs = completion_logprobs(model, rows, micro_batch_tokens=args.micro_batch_tokens)
    return [float(tokens.sum()) for tokens in logprobs]


def name_inputs(paths: list[str], labels: list[str] | None) -> dict[str, str]:
    """{label: path}; without labels the paths themselves, short of /verified.jsonl."""
    labels = labels or [path.rstrip("/").removesuffix(".jsonl").removesuffix("/verified") for path in paths]
    if len(labels) != len(paths) or len(set(labels)) < len(labels):
        fail(f"{len(paths)} inputs need as many different names, not {', '.join(labels)}; give --labels")
    return dict(zip(labels, paths))


def read_run(folder: str) -> tuple[tuple[str, str], list[str], list[str]]:
    """((base model, its fingerprint), verified files of the evaluations, checkpoints), in order of steps."""
    if not os.path.exists(f"{folder}/args.json"):
        fail(f"{folder} has no args.json; give a run folder of train.py")
    try:
        record = next(read_jsonl(f"{folder}/args.json"))
        model = record["settings"]["model"], record["files"]["model"]
    except (StopIteration, KeyError, TypeError):
        fail(f"{folder}/args.json names no model; give a run folder of today's train.py")
    place = glob.escape(folder)
    checkpoints = sorted(glob.glob(f"{place}/checkpoints/step_*"))
    if not checkpoints:
        fail(f"{folder} has no checkpoint yet; let train.py finish")
    return model, sorted(glob.glob(f"{place}/eval_*/verified.jsonl")), checkpoints


def read_evaluations(runs: dict[str, str]) -> tuple[str, dict[str, str]]:
    """(base model, {name: verified file} of it and of each trained one; empty if a lone run has none)."""
    models, evaluations, _ = zip(*(read_run(folder) for folder in runs.values()))
    if len({fingerprint for _, fingerprint in models}) > 1:
        paths = sorted({path for path, _ in models})
        fail(f"the runs began with different models ({', '.join(paths)}); compare runs of one base model")
    model = models[0][0]
    if all(len(paths) > 1 for paths in evaluations):
        base = max((paths[0] for paths in evaluations), key=os.path.getsize)  # the one with most samples
        return model, {"base model": base} | {name: paths[-1] for name, paths in zip(runs, evaluations)}
    if len(runs) > 1:
        fail("a run has no evaluation before and after training; it needs train.py's --eval-samples")
    return model, {}


def read_theorem(folder: str, name: str) -> dict[str, list[dict]]:
    """{step_00012 or eval_00000: rows} of every step and evaluation of a run that sampled the theorem."""
    found = {}
    for path in sorted(glob.glob(f"{glob.escape(folder)}/*/problems.jsonl")):
        place = os.path.dirname(path)
        files = [f"{place}/{stage}.jsonl" for stage in ("advantages", "verified")]
        files = [file for file in files if os.path.exists(file)]
        if files and name in [problem["id"] for problem in read_jsonl(path, "id")]:
            rows = read_verified(files[0], "completion", "prompt_ids", "completion_ids")
            found[os.path.basename(place)] = [row for row in rows if row["id"] == name]
    if not found:
        fail(f"{folder} has no samples of a theorem {name}; problems.jsonl in its steps name those it has")
    return found
