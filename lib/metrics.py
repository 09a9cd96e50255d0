"""What a step did: metrics, alarms, trackers."""

import argparse
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

from lib.cli import fail


def step_metrics(step: int, rows: list[dict]) -> dict:
    """What a step's verified rows with advantages say, as a dict for metrics.jsonl."""
    judged = [row for row in rows if row["reward"] is not None]
    proved = [row for row in judged if row["reward"] == 1]
    return {
        "step": step,
        "reward": len(proved) / max(1, len(judged)),
        "solved": len({row["id"] for row in proved}),
        "groups_kept": len({row["id"] for row in rows if row["advantage"] is not None}),
        "unique": len({(row["id"], row["completion"]) for row in rows}) / len(rows),
        "unique_proofs": len({(row["id"], row["completion"]) for row in proved}),
        "truncated": sum(row["finish_reason"] == "length" for row in rows) / len(rows),
        "verifier_errors": len(rows) - len(judged),
        **dict.fromkeys(
            ("loss", "kl", "clip_fraction", "grad_norm", "skipped", "updates", "logprob_gap", "tokens")
        ),
    }  # see update


def plain(metrics: dict) -> dict:
    """The metrics with null for NaN and infinity, which JSON does not know."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in metrics.items()
    }


def alarms(history: list[dict]) -> Iterator[str]:
    """Sentences about what would otherwise go wrong in silence; history: the metrics rows so far."""
    row = history[-1]
    if len(history) >= 3 and not any(r["groups_kept"] for r in history[-3:]):
        yield "no group was kept for three steps: the problems are all too easy or too hard, nothing is learned"
    if row["truncated"] > 0.5:
        yield f"{row['truncated']:.0%} of the completions hit --max-new-tokens, and a truncated proof is a wrong one"
    if row["verifier_errors"]:
        yield f"the verifier broke on {row['verifier_errors']} completions (reward null); see verified.jsonl for the messages"
    if row["skipped"]:
        yield f"{row['skipped']} of {row['updates']} updates skipped: grad norm {row['grad_norm']:.3g} (--grad-skip)"
    if (row["logprob_gap"] or 0) > 1:
        yield f"sampler and trainer disagree by {row['logprob_gap']:.2f} about a token's log-probability: are their weights the same?"


def open_log(args: argparse.Namespace) -> Callable[[dict], Any]:
    """A function that sends a metrics row to --tracker."""
    try:
        if args.tracker == "wandb":
            import wandb

            name = os.path.basename(os.path.normpath(args.out))
            run = wandb.init(dir=args.out, name=name, id=name, resume="allow", config=vars(args))
            return lambda row: run.log(row, step=row["step"])
        if args.tracker == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            board = SummaryWriter(f"{args.out}/tensorboard")
            return lambda row: [
                board.add_scalar(name, row[name], row["step"]) for name in row if row[name] is not None
            ]  # type: ignore
    except ImportError:
        fail(f"--tracker {args.tracker} needs its package: pip install {args.tracker}, or leave the flag out")
    return lambda row: None


def step_line(m: dict) -> str:
    """One line of what a step did; the README's glossary says what each number is."""
    line = (
        f"step {m['step']:4d}  reward {m['reward']:.2f}  solved {m['solved']:2d}  kept {m['groups_kept']:2d}  "
        f"unique {m['unique']:.2f}  trunc {m['truncated']:.2f}  "
    )
    if m["updates"]:
        line += f"clip {m['clip_fraction']:.3f}  kl {m['kl']:.4f}  grad {m['grad_norm']:.2f}  gap {m['logprob_gap']:.0e}  "
    return line + "  ".join(
        f"{stage} {m[f'seconds_{stage}']:.1f}s" for stage in ("sample", "verify", "update")
    )
