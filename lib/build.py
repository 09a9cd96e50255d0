"""Builds what train.py trains and samples with, on one device or, under torchrun, sharded over the GPUs."""

import argparse
import functools
from typing import Any

import torch
import torch.distributed as dist

from lib.checks import check_logprobs, check_sampler
from lib.cli import number
from lib.logprobs import takes_trees, target_logprobs
from lib.model import load_model
from lib.processes import full_state, shard, wrap_blocks
from lib.vllm_engine import sync_weights


def add_flags(parser: argparse.ArgumentParser) -> None:
    share = number(float, 0, high=1)
    add = parser.add_argument_group("memory and several GPUs").add_argument
    add("--reference", help="model of the KL term (default: --model)")
    add("--reference-device", choices=["device", "cpu"], default="device", help="its place between updates")
    add("--micro-batch-tokens", type=number(int, 1), default=2048, help="padded tokens a forward pass")
    again = "share of the blocks to recompute in backward: less memory, up to a third more time"
    add("--gradient-checkpointing", type=share, nargs="?", const=1.0, default=0.0, help=again)
    add("--compile", action="store_true", help="torch.compile the blocks for the update")
    add("--shard", choices=["fsdp", "none"], default="fsdp", help="torchrun: shard or replicate the weights")
    add("--sleep", action="store_true", help="vLLM frees its memory during an update")


def is_sharded(args: argparse.Namespace) -> bool:
    return dist.is_initialized() and args.shard == "fsdp"


def load_sampler(args: argparse.Namespace, path: str, weights: bool) -> tuple[Any, Any]:
    """(model, tokenizer) that the main process samples with. The same model computes the update, unless that
    one is sharded: then this is a full copy, without weights if vLLM has them."""
    return load_model(path, args.dtype, args.device, weights=weights or not is_sharded(args))


def build(
    args: argparse.Namespace, checkpoint: str | None, sampler: Any, longest: int | None
) -> tuple[Any, Any, Any]:
    """(model, reference, optimizer) of this process; sampler: the main process's, None elsewhere. longest:
    tokens of the longest prompt and completion to come. The model's weights are float32 in any case."""
    sharded = is_sharded(args)

    def load(path, dtype):
        return load_model(path, dtype, "cpu" if sharded else args.device)[0]

    path = checkpoint or args.model
    model = computes = load(path, "float32") if sharded else sampler or load(path, args.dtype)
    reference = load(args.reference or args.model, args.dtype).requires_grad_(False) if args.kl else None
    if sharded:
        model = computes = shard(model, target_logprobs, args)
        reference = reference and shard(reference, target_logprobs, args, trained=False)
    elif args.dtype == "bfloat16":
        model = load(path, "float32")
    if sampler is not None and args.engine == "torch" and not args.advantages:
        check_sampler(sampler, longest)
    for scored in filter(None, (computes, reference)):
        check_logprobs(scored, longest, args.dtype)
        if sharded:
            scored.reshard()  # a forward pass leaves the root gathered; the optimizer needs its shards
    wrap_blocks(computes, args.gradient_checkpointing, args.compile)
    if reference and args.reference_device == "cpu":
        reference.to("cpu")
    fused = torch.device(args.device).type == "cuda"  # otherwise AdamW would hold another copy of the weights
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=fused)
    if model is not computes:
        compute_in_copy(model, computes, optimizer)
    return model, reference, optimizer


def compute_in_copy(model: Any, copy: Any, optimizer: torch.optim.Optimizer) -> None:
    """Has a bfloat16 copy compute log-probabilities and gradients; the model holds the float32 weights.

    Gradients accumulate in float32, in the model. Each optimizer step copies the new weights to the copy."""
    masters, weights = list(model.parameters()), list(copy.parameters())

    def move_gradient(weight, master):
        if master.grad is None:
            master.grad = weight.grad.float()
        else:
            master.grad += weight.grad
        weight.grad = None

    for master, weight in zip(masters, weights):
        weight.register_post_accumulate_grad_hook(functools.partial(move_gradient, master=master))

    @torch.no_grad()
    def refresh(*_):
        torch._foreach_copy_(weights, masters)

    optimizer.register_step_post_hook(refresh)
    model.target_logprobs = functools.partial(target_logprobs, copy)
    model.takes_trees = takes_trees(copy)


def sync_sampler(sampler: Any, engines: list, model: Any, args: argparse.Namespace) -> None:
    """Gives the sampler the updated weights. All processes call it, since sharded weights are gathered."""
    weights = full_state(model) if is_sharded(args) else None
    if engines:
        sync_weights(engines, model, args.dtype, weights)
    elif weights and sampler is not None:
        sampler.load_state_dict(weights)
