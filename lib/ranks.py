"""The processes that torchrun starts: rank 0 does all input and output, all ranks share the update (FSDP2).

Unused without torchrun: then rank is 0 of 1, and broadcast returns what it is given.
"""

import datetime
import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from lib.cli import cause, die_with_torchrun, fail


def ranks() -> tuple[int, int]:
    """(rank, number of processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def start_ranks() -> Callable:
    """Joins the processes of torchrun. Returns broadcast(value), which gives every rank the value of rank 0.

    The others wait in a broadcast while rank 0 samples, for days if need be. Any other exchange has to end
    within half an hour."""
    if not dist.is_torchelastic_launched():
        return lambda value: value
    die_with_torchrun()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))
    patient = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=14))
    if dist.get_rank() == 0:
        # torchrun sends SIGTERM when another rank has died: stop Lean and say so, as at Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    else:
        sys.stdout = open(os.devnull, "w")

    def broadcast(value):
        box = [value]
        try:
            dist.broadcast_object_list(box, src=0, group=patient)
        except RuntimeError:
            sys.exit(1)  # rank 0 is gone and has said why
        return box[0]

    return broadcast


def end_ranks() -> None:
    """From here on, every process is on its own."""
    if dist.is_initialized():
        dist.destroy_process_group()


def end_in_a_sentence(main: Callable) -> None:
    """Runs main. Ctrl-C, a full disk or a rank that died end with one sentence instead of a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun may send it once more
        if ranks()[0] == 0:
            print("stopped; the same command with --resume continues", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        fail(f"cannot go on ({error}); mend that, and the same command with --resume continues")
    except RuntimeError as error:
        if not dist.is_initialized():
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        message = f"rank {ranks()[0]} failed ({cause(error)}); the same command with --resume continues"
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)


def average_gradients(model: Any) -> None:
    """Averages the gradients over the ranks, where FSDP has not done so in backward."""
    _, count = ranks()
    if count == 1:
        return
    for weight in model.parameters():
        if weight.grad is not None and not isinstance(weight, DTensor):
            dist.all_reduce(weight.grad)
            weight.grad /= count


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def shard(model: Any, forward: Callable, args: Any, trained: bool = True) -> Any:
    """Shards a model with FSDP2: its blocks one by one, and what is around them as the root.

    Every rank keeps its part of each weight as loaded (float32) and gathers a block, in bfloat16 with --dtype
    bfloat16, when it is needed. Gradients are averaged over the ranks in float32. FSDP gathers the root's
    weights around model.target_logprobs(...), which calls forward(model, ...) in place of model.forward."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = dist.init_device_mesh(torch.device(args.device).type, (dist.get_world_size(),))
    options: dict[str, Any] = {"mesh": mesh}
    if args.dtype == "bfloat16":
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in blocks(model):
        fully_shard(block, **options)
    fully_shard(model, reshard_after_forward=not trained, **options)
    model.target_logprobs = functools.partial(forward, model)
    register_fsdp_forward_method(model, "target_logprobs")
    return model


def blocks(model: Any) -> torch.nn.ModuleList:
    """The transformer blocks."""
    return next(module for module in model.get_decoder().modules() if isinstance(module, torch.nn.ModuleList))


def wrap_blocks(model: Any, share: float, compiled: bool = False) -> None:
    """Backward computes the activations of this share of the blocks again instead of keeping them.

    The first blocks, since backward comes to them when it has freed those of the last.
    compiled: with torch.compile, a block at a time."""
    every = blocks(model)
    for k, block in enumerate(every):
        if compiled:
            block.forward = functools.partial(run_block, block.forward, torch.compile(block.forward))
        if k < round(share * len(every)):
            block.forward = functools.partial(
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
            )


def run_block(plain: Callable, compiled: Callable, *args: Any, **kwargs: Any) -> Any:
    """Not compiled in the sampler (inference mode), whose cache has another length at each token."""
    return (plain if torch.is_inference_mode_enabled() else compiled)(*args, **kwargs)


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state(model: Any) -> dict[str, torch.Tensor]:
    """The whole weights on the CPU by name, on rank 0; {} on the others, which have to call this too."""
    state = {}
    for name, value in model.state_dict().items():
        value = whole_tensor(value)
        if ranks()[0] == 0:
            state[name] = value.cpu()
    return state
