"""train.py on several GPUs: one rank that speaks, FSDP2, weights gathered. Started alone, train.py goes through none of it.

torchrun --nproc-per-node 8 train.py ...
"""

import ctypes
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
from torch.utils.checkpoint import checkpoint as recomputed


def ranks() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) where it was not torchrun that started this one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def start_ranks() -> Callable:
    """Joins the processes that torchrun started. Returns `share`, which gives every rank what rank 0 calls it with: there the
    others wait while rank 0 samples, for days if need be; any other exchange must be over within half an hour."""
    if not dist.is_torchelastic_launched():
        return lambda value: value
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(
            1, signal.SIGKILL
        )  # PR_SET_PDEATHSIG: where torchrun is killed, no rank goes on alone
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=datetime.timedelta(minutes=30)
    )
    patient = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=14))
    if dist.get_rank() == 0:
        signal.signal(
            signal.SIGTERM, signal.default_int_handler
        )  # torchrun's word that another rank died: stop Lean, say so
    else:
        sys.stdout = open(os.devnull, "w")

    def share(value):
        box = [value]
        try:
            dist.broadcast_object_list(box, src=0, group=patient)
        except RuntimeError:
            sys.exit(1)  # rank 0 is gone and has said why, or torchrun will
        return box[0]

    return share


def shard(model: Any, forward: Callable, args: Any, trained: bool = True) -> Any:
    """FSDP2 over the transformer blocks and, as the root, over what is around them: every rank keeps its part of each weight in
    float32 (or as loaded) and gathers a block, in bfloat16 for --dtype bfloat16, when it is its turn; gradients are averaged over
    the ranks in float32. The root's weights come for forward(model, ...), called as
    model.target_logprobs(...), which stands in for the model's own."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    options: dict[str, Any] = {
        "mesh": dist.init_device_mesh(torch.device(args.device).type, (dist.get_world_size(),))
    }
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
    return next(module for module in model.base_model.modules() if isinstance(module, torch.nn.ModuleList))


def checkpoint_blocks(model: Any) -> None:
    """Backward computes each block's activations again instead of keeping them."""
    for block in blocks(model):
        block.forward = functools.partial(
            recomputed, block.forward, use_reentrant=False, preserve_rng_state=False
        )


def average_gradients(model: Any) -> None:
    """Averages the gradients over the ranks, where FSDP has not done so in backward."""
    rank, count = ranks()
    if count == 1:
        return
    for weight in model.parameters():
        if not isinstance(weight, DTensor):
            dist.all_reduce(weight.grad)
            weight.grad /= count


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state(model: Any) -> dict[str, torch.Tensor]:
    """The whole weights on the CPU by name, in float32, on rank 0; all ranks have to call this, the others get {}."""
    state = {}
    for name, value in model.state_dict().items():
        value = whole_tensor(value)
        if ranks()[0] == 0:
            state[name] = value.cpu()
    return state
