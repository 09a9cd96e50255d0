"""Builds what train.py trains and samples with, on one device or, under torchrun, sharded over the GPUs."""

import argparse
from typing import Any

import torch
import torch.distributed as dist

from lib.checks import check_logprobs, check_sampler
from lib.cli import number
from lib.logprobs import target_logprobs
from lib.model import load_model
from lib.ranks import checkpoint_blocks, full_state, shard
from lib.vllm_engine import sync_weights


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory and several GPUs")
    group.add_argument("--reference", help="model of the KL term (default: --model)")
    group.add_argument(
        "--reference-device",
        choices=["device", "cpu"],
        default="device",
        help="where it waits between updates",
    )
    group.add_argument(
        "--micro-batch-tokens", type=number(int, 1), default=2048, help="padded tokens a forward pass"
    )
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    group.add_argument(
        "--shard",
        choices=["fsdp", "none"],
        default="fsdp",
        help="under torchrun: split the weights or copy them",
    )
    group.add_argument("--sleep", action="store_true", help="vLLM frees its memory during an update")


def is_sharded(args: argparse.Namespace) -> bool:
    return dist.is_initialized() and args.shard == "fsdp"


def load_sampler(args: argparse.Namespace, path: str, weights: bool) -> tuple[Any, Any]:
    """(model, tokenizer) that rank 0 samples with: the trained model itself or, if that is sharded, a whole
    copy, without weights if vLLM has them."""
    if is_sharded(args):
        return load_model(path, args.dtype, args.device, weights=weights)
    return load_model(path, "float32", args.device)


def build(
    args: argparse.Namespace, checkpoint: str | None, sampler: Any, longest: int | None
) -> tuple[Any, Any, Any]:
    """(model, reference, optimizer) on this rank; sampler: rank 0's, None elsewhere. longest: tokens of the
    longest prompt and completion to come."""
    sharded = is_sharded(args)
    device = "cpu" if sharded else args.device
    model = sampler
    if sharded or sampler is None:
        model, _ = load_model(checkpoint or args.model, "float32", device)
    reference = None
    if args.kl:
        reference, _ = load_model(args.reference or args.model, args.dtype if sharded else "float32", device)
        reference.requires_grad_(False)
    if args.gradient_checkpointing:
        checkpoint_blocks(model)
    if sharded:
        model = shard(model, target_logprobs, args)
        reference = reference and shard(reference, target_logprobs, args, trained=False)
    if sampler is not None and args.engine == "torch" and not args.advantages:
        check_sampler(sampler, longest)
    for scored in filter(None, (model, reference)):
        check_logprobs(scored, longest, args.dtype if sharded else "float32")
        if sharded:
            scored.reshard()  # a forward pass leaves the root gathered; the optimizer needs its shards
    if reference and args.reference_device == "cpu":
        reference.to("cpu")
    fused = torch.device(args.device).type == "cuda"  # otherwise AdamW would hold another copy of the weights
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=fused)
    return model, reference, optimizer


def sync_sampler(sampler: Any, engines: list, model: Any, args: argparse.Namespace) -> None:
    """Gives the sampler the updated weights. All ranks call it, since sharded weights are gathered."""
    weights = full_state(model) if is_sharded(args) else None
    if engines:
        sync_weights(engines, model, args.dtype, weights)
    elif weights and sampler is not None:
        sampler.load_state_dict(weights)
