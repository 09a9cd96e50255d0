"""The run folder of train.py: flags, checkpoints, resume."""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from lib.cli import cause, fail
from lib.jsonl import cannot_write, read_jsonl
from lib.ranks import full_state, ranks


def moments(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's two moments of every weight by name, the tensors themselves; where there was no step yet, as AdamW makes them."""
    tensors = {}
    for name, weight in model.named_parameters():
        state = optimizer.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device if optimizer.defaults["fused"] else "cpu")
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        tensors |= {f"{name}.{key}": state[key] for key in ("exp_avg", "exp_avg_sq")}
    return tensors


@contextlib.contextmanager
def writing(path: str, kinds: Any = Exception) -> Iterator[None]:
    """Ends the program with a sentence where that fails: on a full disk each library has an exception of its own."""
    try:
        yield
    except kinds as error:
        if ranks()[0] > 0:
            sys.exit(2)  # rank 0 hears of it and says so
        cannot_write(
            path,
            next(iter(error.failures.values()))[0] if isinstance(error, dcp.CheckpointException) else error,
        )


def save_checkpoint(
    model: Any,
    tokenizer: Any,
    optimizer: torch.optim.Optimizer,
    steps: int,
    buffer: list[dict],
    history: list[dict],
    args: argparse.Namespace,
) -> None:
    """runs/NAME/checkpoints/step_00010: a Hugging Face folder, trainer.pt and optimizer/, under its name only when complete;
    each rank writes its part of the moments. Older ones keep their weights and lose the rest (twice the size of the weights)."""
    rank, count = ranks()
    folder = f"{args.out}/checkpoints"
    final, part = f"{folder}/step_{steps:05d}", f"{folder}/part"
    weights, tensors = full_state(model), moments(model, optimizer)
    if rank == 0:
        with writing(part):
            shutil.rmtree(part, ignore_errors=True)
            os.makedirs(part)
            model.save_pretrained(part, state_dict=weights)
            tokenizer.save_pretrained(part)
    if count > 1:
        dist.all_reduce(torch.zeros(1))  # the folder is there
    with writing(f"{part}/optimizer", (OSError, dcp.CheckpointException)):
        writer = dcp.HuggingFaceStorageWriter(f"{part}/optimizer", save_distributed=True)
        dcp.save(tensors, storage_writer=writer, no_dist=not dist.is_initialized())
    if rank > 0:
        return
    taken = int(next(iter(optimizer.state.values()))["step"])
    with writing(f"{part}/trainer.pt"):
        torch.save({"optimizer": taken, "buffer": buffer, "history": history}, f"{part}/trainer.pt")
        shutil.rmtree(final, ignore_errors=True)  # a resumed run may make the same one again
        os.replace(part, final)
    lighten_others(final)


def lighten_others(checkpoint: str) -> None:
    """Takes from all other checkpoints of the run what only serves to resume."""
    for folder in {
        os.path.join(os.path.dirname(checkpoint), name) for name in os.listdir(os.path.dirname(checkpoint))
    } - {checkpoint}:
        with contextlib.suppress(OSError):
            os.remove(f"{folder}/trainer.pt")
        shutil.rmtree(f"{folder}/optimizer", ignore_errors=True)


def load_checkpoint(
    checkpoint: str, model: Any, optimizer: torch.optim.Optimizer
) -> tuple[list[dict], list[dict]]:
    """(buffer, history) of a checkpoint whose weights the model has; the optimizer gets its moments, on any number of ranks."""
    try:
        saved = torch.load(f"{checkpoint}/trainer.pt", weights_only=True)
        reader = dcp.HuggingFaceStorageReader(f"{checkpoint}/optimizer")
        dcp.load(
            moments(model, optimizer), storage_reader=reader, no_dist=not dist.is_initialized()
        )  # into these very tensors
        for state in optimizer.state.values():
            state["step"].fill_(saved["optimizer"])
        return saved["buffer"], saved["history"]
    except (Exception, dcp.CheckpointException) as error:  # a dozen kinds
        fail(
            f"cannot load trainer.pt and optimizer of {checkpoint} ({cause(error)}); delete that folder: the steps' files are used again"
        )


def last_checkpoint(out: str) -> str | None:
    """The newest checkpoint folder of a run that can be resumed from, or None."""
    names = sorted(os.listdir(f"{out}/checkpoints")) if os.path.isdir(f"{out}/checkpoints") else []
    names = [
        name
        for name in names
        if name.startswith("step_") and os.path.exists(f"{out}/checkpoints/{name}/trainer.pt")
    ]
    return f"{out}/checkpoints/{names[-1]}" if names else None


def open_run(args: argparse.Namespace) -> None:
    """Makes the run folder, or checks that the one to be resumed was made with the same flags (args.json, written by main)."""
    path, free = (
        f"{args.out}/args.json",
        (
            "resume",
            "steps",
            "save_every",
            "workers",
            "verdicts",
            "out",
            "tracker",
            "shard",
            "reference",
            "gradient_checkpointing",
            "gpus",
            "tensor_parallel",
            "gpu_memory_utilization",
            "max_model_len",
            "sleep",
        ),
    )
    if os.path.exists(path) and (args.advantages or not args.resume):
        fail(
            f"{args.out} already holds a run; {'' if args.advantages else 'add --resume to continue it or '}name another folder with --out"
        )
    try:
        os.makedirs(args.out, exist_ok=True)
        with contextlib.suppress(OSError):  # not every network file system knows locks
            try:
                fcntl.flock(
                    os.open(args.out, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB
                )  # until this process ends
            except BlockingIOError:
                fail(
                    f"another train.py is at work in {args.out}; wait for it or end it, or name another folder with --out"
                )
        if os.path.exists(path):
            before = next(read_jsonl(path), {})
            for name, value in vars(args).items():
                if name not in free and before.get(name) != value:
                    fail(
                        f"{args.out} was started with --{name.replace('_', '-')} {before.get(name)}, not {value}; "
                        "give the same flags to resume it or name another folder with --out"
                    )
    except OSError as error:
        fail(f"cannot use the run folder {args.out} ({error.strerror}); name another with --out")


def whole(path: str, count: int, key: str) -> list[dict] | None:
    """The rows of a stage's file if it is there and whole: `count` rows, the last of them with `key`; else None."""
    with contextlib.suppress(OSError, ValueError):
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        if len(rows) == count and key in rows[-1]:
            return rows
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return None
