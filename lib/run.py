"""The run folder of train.py: its settings, checkpoints and resume."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from transformers.utils import logging

from lib import processes
from lib.cli import cause, fail, number
from lib.jsonl import cannot_write, read_verified
from lib.model import save_tokenizer
from lib.processes import full_state

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process needs none
# Settings that a resumed run may change. Files are compared by their content.
FREE = """advantages resume resume_from steps save_every keep out workers verify_batch verdicts device
    reference_device shard gradient_checkpointing compile gpus tensor_parallel gpu_memory_utilization
    max_model_len sleep stored_curve model problems eval_problems reference""".split()
FILES = "model problems eval_problems reference".split()
NAMED = "model problems reference estimator filter rank_by lr steps temperature".split()  # in the run's name
BUDGET = "steps problems_per_step num_samples eval_samples max_new_tokens".split()
SETTINGS = {  # the paper's Table 1: (PPO epochs, beta_KL, beta_rank)
    (1, 0.02, 0.0): "GRPO-Default",
    (1, 0.1, 0.0): "GRPO-High-KL",
    (2, 0.1, 0.0): "GRPO-Epochs-2",
    (3, 0.1, 0.0): "GRPO-Epochs-3",
    (1, 0.1, 0.25): "GRPO-Unlikeliness-1",
    (2, 0.1, 0.25): "GRPO-Unlikeliness-2",
}


def add_flags(parser: ArgumentParser) -> None:
    count = number(int, 1)
    add = parser.add_argument_group("run").add_argument
    add("--out", help="run folder (default: runs/ and a name made of the settings)")
    add("--resume", action="store_true", help="continue the run in --out")
    add("--resume-from", help="checkpoint to continue in a new --out: weights, optimizer, step")
    add("--steps", type=count, default=100, help="sampling steps [paper: about 600]")
    add("--save-every", type=count, default=10, help="steps between checkpoints")
    add("--keep", type=number(int, 0), default=0, help="newest checkpoints to keep; 0: all")


def run_name(args: Namespace, parser: ArgumentParser) -> str:
    """Such as unlikeliness-0.25_epochs-2_kl-0.1_seed-0, with whatever else is not its default."""
    parts = [f"unlikeliness-{args.unlikeliness:g}", f"epochs-{args.ppo_epochs}", f"kl-{args.kl:g}"]
    for name in NAMED:
        value = getattr(args, name)
        if value != parser.get_default(name):
            path = os.path.normpath(str(value)).removesuffix(".jsonl").strip("/")
            value = "-".join(path.split("/")[-2:])  # nat-base
            parts.append(f"{name.replace('_', '-')}-{value}")
    return "_".join([*parts, f"seed-{args.seed}"])


def stored_curve(args: Namespace, parser: ArgumentParser) -> str | None:
    """The CSV of GRPO-Default's pass@N in results/, if model, problems and budget are those of this run."""
    same = ["model", "problems", "eval_problems", *BUDGET]
    if any(getattr(args, name) != parser.get_default(name) for name in same):
        return None
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return os.path.join(root, "results", "default-curve.csv")


def announce(args: Namespace, problems: list, held_out: list, rows: list, checkpoint: str | None) -> None:
    """What the run is about to do. rows: those of --advantages."""
    used = [row["id"] for row in rows if row["advantage"] is not None]
    name = "none of the paper's settings"
    if args.estimator == "grpo" and args.filter == "raw":
        name = SETTINGS.get((args.ppo_epochs, args.kl, args.unlikeliness), name)
    update = f"PPO epochs {args.ppo_epochs}, KL {args.kl:g}"
    if args.advantages:
        print(f"one update on {len(used)} completions of {len(set(used))} problems: {update}")
    else:
        size = f"{args.problems_per_step} problems x {args.num_samples} completions"
        print(f"{name}: unlikeliness {args.unlikeliness:g}, {update}")
        print(f"{args.steps} steps of {size}, out of {len(problems)} problems")
        evaluation = f"pass@N of {len(held_out)} held-out problems before and after"
        print(evaluation if held_out else "no evaluation")
    print(f"model {args.model} on {args.device}; run folder {args.out}")
    if checkpoint:
        print(f"resuming from {checkpoint}")
    model = checkpoint or args.model
    for sampler in sorted({str(row["model"]) for row in rows if "model" in row}):
        # NAME@step_00001 stands for a step of a run, whose weights have no folder.
        if "@" not in sampler and os.path.realpath(sampler) != os.path.realpath(model):
            print(f"warning: stale samples: they are of {sampler}, the update is of {model}", file=sys.stderr)


def fingerprint(path: str | None) -> str | None:
    """A hash of the content of a file or model folder; files over 64 MB count by name and size only."""
    if path is None or not os.path.exists(path):
        return path  # a name on the Hugging Face hub
    files = [path]
    if os.path.isdir(path):
        files = sorted(entry.path for entry in os.scandir(path) if entry.is_file())
    digest = hashlib.sha256()
    for name in files:
        size = os.path.getsize(name)
        digest.update(f"{os.path.basename(name) if len(files) > 1 else ''} {size}\n".encode())
        if size < 2**26:
            with open(name, "rb") as file:
                digest.update(file.read())
    return digest.hexdigest()[:16]


def some_judged(rows: Iterable[dict], place: str) -> Iterator[dict]:
    """The rows; ends the program if none has a verdict, so that no run goes on without a verifier. One
    problem alone may be at fault itself."""
    problems, judged, message = set(), False, ""
    for row in rows:
        problems.add(row["id"])
        judged = judged or row["reward"] is not None
        message = message or row["message"]
        yield row
    if len(problems) > 1 and not judged:
        fail(f"no completion of {place} has a verdict ({message}); mend that, then --resume or another --out")


def open_run(args: Namespace) -> tuple[dict, str | None]:
    """Makes the run folder and locks it, or checks that the run in it can be resumed with these settings.

    Returns (what args.json is to hold: settings, fingerprints of model and problems; the checkpoint to
    continue, or None)."""
    if args.num_samples < 2 and not args.advantages:
        fail("--num-samples 1 teaches nothing: an advantage compares a group's completions; give 2 or more")
    path = f"{args.out}/args.json"
    taken = last_checkpoint(args.out) if args.advantages else os.path.exists(path)
    if taken and not args.resume:
        fail(f"{args.out} already holds a run; add --resume to continue it, or name another folder as --out")
    if args.resume and os.path.isdir(args.out) and os.listdir(args.out) and not os.path.exists(path):
        fail(f"{args.out} holds no run to resume (it has no args.json); check --out, or leave out --resume")
    if args.resume and not os.path.isdir(args.out):
        print(f"there is no run in {args.out} yet: starting one", file=sys.stderr)
    files = {name: fingerprint(getattr(args, name)) for name in FILES}
    record = {"settings": vars(args), "files": files}
    try:
        os.makedirs(args.out, exist_ok=True)
        lock(args.out)
        if args.resume and os.path.exists(path):
            check_settings(args, path, record)
    except OSError as error:
        fail(f"cannot use the run folder {args.out} ({error.strerror}); name another with --out")
    checkpoint = last_checkpoint(args.out)
    if checkpoint:
        prune_checkpoints(checkpoint, args.keep)  # the run may have been killed before it could
    return record, checkpoint or args.resume_from


def lock(folder: str) -> None:
    """Holds the folder until this process ends, so that no two runs write into it."""
    with contextlib.suppress(OSError):  # not every network file system knows locks
        try:
            fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"another train.py is at work in {folder}; wait for it, or name another folder with --out")


def check_settings(args: Namespace, path: str, record: dict) -> None:
    """Ends the program unless the settings match. Settings that the run's version lacked are not compared."""
    try:
        with open(path, encoding="utf-8") as file:
            before = json.load(file)
        old_settings, old_files = before["settings"], before["files"]
    except (ValueError, KeyError, TypeError, RecursionError):
        fail(f"{path} is damaged or of an older version and cannot be resumed; use another --out")
    changed = [
        f"--{name.replace('_', '-')} {old_settings[name]}, not {value}"
        for name, value in vars(args).items()
        if name not in FREE and name in old_settings and old_settings[name] != value
    ]
    changed += [
        f"different content in --{name.replace('_', '-')} than {getattr(args, name)} has now"
        for name, value in record["files"].items()
        if name in old_files and old_files[name] != value
    ]
    if changed:
        mend = "give the same settings to resume it, or name another folder with --out"
        fail(f"{args.out} was started with {changed[0]}; {mend}")


# Checkpoints


def last_checkpoint(out: str) -> str | None:
    """The newest checkpoint folder of a run that can be resumed from, or None."""
    folder = f"{out}/checkpoints"
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    complete = [name for name in names if os.path.exists(f"{folder}/{name}/trainer.pt") and name != "part"]
    return f"{folder}/{complete[-1]}" if complete else None


def moments(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's two moments of every weight by name, the tensors themselves; zeros before the first step."""
    tensors = {}
    for name, weight in model.named_parameters():
        state = optimizer.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device if optimizer.defaults["fused"] else "cpu")
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        tensors[f"{name}.exp_avg"] = state["exp_avg"]
        tensors[f"{name}.exp_avg_sq"] = state["exp_avg_sq"]
    return tensors


@contextlib.contextmanager
def writing_checkpoint(path: str, kinds: Any = Exception) -> Iterator[None]:
    """Ends the program with a sentence if writing fails: each library has its own error for a full disk."""
    try:
        yield
    except kinds as error:
        if not processes.is_main():
            sys.exit(2)  # the main process is told, and prints the sentence
        if isinstance(error, dcp.CheckpointException):
            error = next(iter(error.failures.values()))[0]
        cannot_write(path, error)


def save_checkpoint(
    model: Any, tokenizer: Any, optimizer: Any, steps: int, buffer: list[dict], args: Namespace
) -> None:
    """Writes OUT/checkpoints/step_00010: a Hugging Face folder, trainer.pt, and Adam's moments in optimizer/.

    The folder gets its name when it is complete. Each process writes its part of the moments. Older
    checkpoints lose trainer.pt and optimizer/, which are twice the size of the weights."""
    logging.disable_progress_bar()
    folder = f"{args.out}/checkpoints"
    final, part = f"{folder}/step_{steps:05d}", f"{folder}/part"
    weights, tensors = full_state(model), moments(model, optimizer)
    if processes.is_main():
        with writing_checkpoint(part):
            shutil.rmtree(part, ignore_errors=True)
            os.makedirs(part)
            model.save_pretrained(part, state_dict=weights)
            save_tokenizer(tokenizer, part)
    if processes.count() > 1:
        dist.all_reduce(torch.zeros(1))  # wait until the main process has made the folder
    with writing_checkpoint(f"{part}/optimizer", (OSError, dcp.CheckpointException)):
        writer = dcp.HuggingFaceStorageWriter(f"{part}/optimizer", save_distributed=True)
        dcp.save(tensors, storage_writer=writer, no_dist=not dist.is_initialized())
    if not processes.is_main():
        return
    adam_steps = int(next(iter(optimizer.state.values()))["step"])
    state = {"steps": steps, "adam_steps": adam_steps, "buffer": buffer}
    with writing_checkpoint(f"{part}/trainer.pt"):
        torch.save(state, f"{part}/trainer.pt")
        shutil.rmtree(final, ignore_errors=True)  # a resumed run may make the same one again
        os.replace(part, final)
    prune_checkpoints(final, args.keep)


def prune_checkpoints(newest: str, keep: int) -> None:
    """Deletes what older checkpoints need only for resuming; keeps the `keep` newest (0: all)."""
    folder = os.path.dirname(newest)
    names = sorted(name for name in os.listdir(folder) if name.startswith("step_"))
    for name in names:
        if f"{folder}/{name}" != newest:
            with contextlib.suppress(OSError):
                os.remove(f"{folder}/{name}/trainer.pt")
            shutil.rmtree(f"{folder}/{name}/optimizer", ignore_errors=True)
    shutil.rmtree(f"{folder}/part", ignore_errors=True)
    for name in names[:-keep] if keep else []:
        shutil.rmtree(f"{folder}/{name}", ignore_errors=True)


def load_checkpoint(checkpoint: str, model: Any, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict]]:
    """(steps done, buffer) of a checkpoint whose weights the model has. The optimizer gets its moments."""
    try:
        saved = torch.load(f"{checkpoint}/trainer.pt", weights_only=True)
        steps, buffer, adam_steps = saved["steps"], saved["buffer"], saved["adam_steps"]
        reader = dcp.HuggingFaceStorageReader(f"{checkpoint}/optimizer")
        dcp.load(moments(model, optimizer), storage_reader=reader, no_dist=not dist.is_initialized())
        for state in optimizer.state.values():
            state["step"].fill_(adam_steps)
        return steps, buffer
    except (Exception, dcp.CheckpointException) as error:  # torch and safetensors raise a dozen kinds
        fail(
            f"cannot load trainer.pt and optimizer of {checkpoint} ({cause(error)}); it is damaged or of an"
            " older version: delete that folder to resume from the steps' files, or start anew elsewhere"
        )


def load_if_complete(path: str, count: int, key: str) -> list[dict] | None:
    """The rows of a stage's file if all `count` are there and the last one has `key`; else None."""
    with contextlib.suppress(OSError, ValueError):
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        if len(rows) == count and key in rows[-1]:
            return rows
    return None


def read_advantages(args: Namespace) -> list[dict]:
    """The rows of --advantages."""
    keys = ("prompt_ids", "completion", "completion_ids", "logprobs", "finish_reason", "advantage")
    rows = list(read_verified(args.advantages, *keys))
    if all(row["advantage"] is None for row in rows):
        fail(f"{args.advantages} has no row with an advantage: in every group, all rewards are equal")
    return rows
