"""A step's metrics, the line it prints, warnings. The README says what each number means."""

import argparse
import contextlib
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm

from lib.cli import fail
from lib.jsonl import write_jsonl

OF_THE_UPDATE = "loss kl clip_fraction grad_norm skipped updates logprob_gap tokens".split()


def step_metrics(step: int, rows: list[dict]) -> dict:
    """The metrics of a step's rows; those of the update are null in a step without one."""
    judged = [row for row in rows if row["reward"] is not None]
    correct = [row for row in judged if row["reward"] >= 1]
    return {
        "step": step,
        "reward": sum(row["reward"] for row in judged) / len(judged) if judged else math.nan,
        "solved": len({row["id"] for row in correct}),
        "groups_kept": len({row["id"] for row in rows if row["advantage"] is not None}),
        "unique": len({(row["id"], row["completion"]) for row in rows}) / len(rows),
        "unique_proofs": len({(row["id"], row["completion"]) for row in correct}),
        "truncated": sum(row["finish_reason"] == "length" for row in rows) / len(rows),
        "verifier_errors": len(rows) - len(judged),
        **dict.fromkeys(OF_THE_UPDATE),
    }


def step_line(m: dict) -> str:
    """A step on one line."""
    line = (
        f"step {m['step']:4d}  reward {m['reward']:.2f}  solved {m['solved']:2d}  "
        f"kept {m['groups_kept']:2d}  unique {m['unique']:.2f}  trunc {m['truncated']:.2f}  "
    )
    if m["updates"]:
        line += f"clip {m['clip_fraction']:.3f}  kl {m['kl']:.4f}  grad {m['grad_norm']:.2f}  "
        line += f"gap {m['logprob_gap']:.0e}  "
    return line + "  ".join(f"{name[8:]} {m[name]:.1f}s" for name in m if name.startswith("seconds_"))


def alarms(history: list[dict]) -> Iterator[str]:
    """Warnings about what would otherwise go wrong in silence; history: the metrics rows so far."""
    row = history[-1]
    if len(history) >= 3 and not any(r["groups_kept"] for r in history[-3:]):
        yield "no group was kept for three steps: all problems are too easy, too hard or without a verdict"
    if row["truncated"] > 0.5:
        yield f"{row['truncated']:.0%} of the completions hit --max-new-tokens, and so are wrong"
    if row["verifier_errors"]:
        yield f"the verifier broke on {row['verifier_errors']} completions: see verified.jsonl"
    if row["skipped"]:
        norm = f"grad norm {row['grad_norm']:.3g} (--grad-skip)"
        yield f"{row['skipped']} of {row['updates']} updates skipped: {norm}"
    if (row["logprob_gap"] or 0) > 1:
        yield f"sampler and trainer disagree by {row['logprob_gap']:.2f} on a log-probability: stale weights?"


def read_metrics(args: argparse.Namespace, steps: int) -> list[dict]:
    """The rows of metrics.jsonl up to the checkpoint that is resumed; later steps are made again."""
    path, history = f"{args.out}/metrics.jsonl", []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(path, encoding="utf-8") as file:
        rows = map(json.loads, file)
        history.extend(itertools.takewhile(lambda row: row["step"] < steps, rows))
    if steps and not args.resume_from and (not history or history[-1]["step"] != steps - 1):
        fail(f"{path} lacks rows of the checkpoint's {steps} steps; restore it, or start anew elsewhere")
    return history


def start_report(args: argparse.Namespace, history: list[dict]) -> Callable[[dict], None]:
    """A function that records the metrics of a step: metrics.jsonl, a line, warnings."""
    path = f"{args.out}/metrics.jsonl"
    write_jsonl(path, history)

    def report(metrics: dict) -> None:
        row = {}
        for name, value in metrics.items():  # JSON knows neither NaN nor infinity
            row[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        history[:] = [*history[-2:], metrics]
        tqdm.write(step_line(metrics))
        for sentence in alarms(history):
            tqdm.write(f"warning: step {metrics['step']}: {sentence}", file=sys.stderr)

    return report
