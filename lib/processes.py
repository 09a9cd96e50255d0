"""The processes that torchrun starts: the main one does all input and output, all share the update (FSDP2).

Unused without torchrun: then there is the main process alone, and broadcast returns what it is given.
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
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from lib.cli import cause, die_with_torchrun, fail


def index() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return index() == 0


def connect() -> Callable:
    """Joins torchrun's processes. Returns broadcast(value), which gives all of them the main one's value.

    The others wait in a broadcast while the main process samples, for days if need be. Any other exchange has
    to end within half an hour."""
    if not dist.is_torchelastic_launched():
        return lambda value: value
    die_with_torchrun()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))
    patient = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=14))
    if is_main():
        # torchrun sends SIGTERM when another process has died: stop Lean and say so, as at Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    else:
        sys.stdout = open(os.devnull, "w")

    def broadcast(value):
        box = [value]
        try:
            dist.broadcast_object_list(box, src=0, group=patient)
        except RuntimeError:
            sys.exit(1)  # the main process is gone and has said why
        return box[0]

    return broadcast


def disconnect() -> None:
    """From here on, every process is on its own."""
    if dist.is_initialized():
        dist.destroy_process_group()


def end_in_a_sentence(main: Callable) -> None:
    """Runs main. Ctrl-C, a full disk or a process that died end with one sentence instead of a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun may send it once more
        if is_main():
            print("stopped; the same command with --resume continues", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        fail(f"cannot go on ({error}); fix that, and the same command with --resume continues")
    except RuntimeError as error:
        if not dist.is_initialized():
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        message = f"process {index()} failed ({cause(error)}); the same command with --resume continues"
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)


def average_gradients(model: Any) -> None:
    """Averages the gradients over the processes, where FSDP has not done so in backward."""
    if count() == 1:
        return
    for weight in model.parameters():
        if weight.grad is not None and not isinstance(weight, DTensor):
            dist.all_reduce(weight.grad)
            weight.grad /= count()


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def shard(model: Any, forward: Callable, args: Any, trained: bool = True) -> Any:
    """Shards a model with FSDP2: its blocks one by one, and what is around them as the root.

    Each process keeps its part of every weight as loaded (float32) and gathers a block, in bfloat16 with
    --dtype bfloat16, when it is needed. Gradients are averaged over the processes in float32. FSDP gathers
    the root's weights around model.target_logprobs(...), which calls forward(model, ...) in place of
    model.forward."""
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
    """Gradient checkpointing: backward recomputes the activations of this share of the blocks.

    The first blocks are chosen, since backward reaches them when it has freed those of the last.
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


def full_state(model: Any) -> dict[str, Any]:
    """The full weights by name, on the CPU of the main process. All must call it; the others get {}."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
