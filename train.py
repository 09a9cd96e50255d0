"""GRPO with the unlikeliness reward: sample, verify, advantages, update, and pass@N before and after (paper, section 4).

    python train.py --unlikeliness 0.25 --ppo-epochs 2                         # the embedded default: CPU, minutes
    python train.py --out runs/default                                         # the same with plain GRPO
    python train.py --advantages advantages.jsonl --out runs/by-hand           # one update on a file of advantage.py
    torchrun --nproc-per-node 8 train.py --model deepseek-ai/DeepSeek-Prover-V1.5-SFT --problems train.jsonl --template deepseek \\
        --engine vllm --dtype bfloat16 --gradient-checkpointing ...            # rank 0 does all but the update (real/vllm_engine.py)

Reads: problems (id, statement). Each step goes through the other stages' files, runs/NAME/step_00012/samples.jsonl,
verified.jsonl and advantages.jsonl, and adds a row to runs/NAME/metrics.jsonl; `--resume` continues a killed run from
its last checkpoint and from the files of the steps after it, on any number of processes. A checkpoint is a Hugging Face
folder with trainer.pt and optimizer/, AdamW's moments as safetensors.
Every random draw is keyed by (seed, step), so there is no generator state to save, and on a CPU a resumed run ends
with the same bits. At a step's first mini-batch the ratio is 1 and the loss says nothing: watch reward and pass@N.
"""
import argparse
import contextlib
import fcntl
import functools
import json
import math
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # before torch: its threads wait awake for a moment only, or a busy core stalls all

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import DTensor
from tqdm import tqdm
from transformers.utils import logging

from advantage import add_advantages, at_least, cannot_write, cause, fail, flags, read_jsonl, read_verified, write_jsonl, written
from evaluate import draw_curves, draw_passes, load_counts, pass_table
from sample import add_engine_flags, choose_engine, encode, load_model, read_problems, sample_rows
from real.ranks import checkpoint_blocks, full_state, ranks, shard, start_ranks, whole_tensor
from real.vllm_engine import rest, start_engines, sync, vllm_rows
from verify import find_lean, judge_batch, remembering, verify_stream

EVALUATION = 999_999  # stands for the step in an evaluation's sampler seed
LOGITS = 2**26  # float32 logits held at a time: 0.27 GB, several times that in backward
EMPTY = {"prompt_ids": [0], "completion_ids": [0], "advantage": 0.0}  # what a rank computes, and does not count, that has nothing left


def pack(rows: list[dict], token_budget: int) -> dict[tuple[int, ...], int]:
    """Returns a dict: a sequence, which is the indices of some rows of one prompt, to its length, the number of nodes of their tree. As
    many share a sequence as twice the longest row's length (or the budget, if less) holds; a row that is longer than the budget
    has one of its own. Sorted, a row has with the one before it all that it has in common with any before it."""
    texts = [row["prompt_ids"] + row["completion_ids"][:-1] for row in rows]
    longest, sequences = max(map(len, texts)), []  # type: int, list[tuple[tuple[int, ...], int]]
    width = max(longest, min(2 * longest, token_budget))
    for i in sorted(range(len(rows)), key=texts.__getitem__):
        if sequences and rows[i]["prompt_ids"] == rows[sequences[-1][0][-1]]["prompt_ids"]:
            sequence, length = sequences[-1]
            length += len(texts[i]) - len(os.path.commonprefix([texts[sequence[-1]], texts[i]]))
            if length <= width:
                sequences[-1] = sequence + (i,), length
                continue
        sequences.append(((i,), len(texts[i])))
    return dict(sequences)


def deal(rows: list[dict], token_budget: int, count: int) -> list[list[list[tuple[int, ...]]]]:
    """The micro-batches of each of `count` ranks: lists of sequences (see pack), none below 0.8 of the longest, whose padded size
    stays within the budget if they are more than one. The ranks have about equally many tokens, and equally many micro-batches, []
    where one has nothing left, since they go through them in step."""
    length, hands, tokens = pack(rows, token_budget), [[] for _ in range(count)], [0] * count
    for sequence in sorted(length, key=lambda sequence: -length[sequence]):
        least = tokens.index(min(tokens))
        first = length[hands[least][-1][0]] if hands[least] else math.inf
        if length[sequence] < 0.8 * first or (len(hands[least][-1]) + 1) * first > token_budget:
            hands[least].append([])
        hands[least][-1].append(sequence)
        tokens[least] += length[sequence]
    return [hand + [[]] * (max(map(len, hands)) - len(hand)) for hand in hands]


def tree(prompt: list[int], completions: list[list[int]]) -> tuple[list[int], list[int], list[list[int]]]:
    """Completions of a prompt as a tree, in which those that begin alike are one branch until they part: the token of each node,
    its parent, and of each completion the nodes whose next token is one of its own, from the prompt's last to its last but one."""
    tokens, parents, child, paths = list(prompt), list(range(-1, len(prompt) - 1)), {}, []
    for completion in completions:
        path = [len(prompt) - 1]
        for token in completion[:-1]:
            node = child.setdefault((path[-1], token), len(tokens))
            if node == len(tokens):
                tokens.append(token)
                parents.append(path[-1])
            path.append(node)
        paths.append(path)
    return tokens, parents, paths


class Head(torch.autograd.Function):
    """Log-probabilities [N] of targets [N] by softmax((hidden W^T + bias) / temperature), hidden [N, H], W [V, H]. Where the
    vocabulary is large, logits take more memory than all else: they are made for `chunk` rows at a time, and once more in
    backward, where they become their own gradient in place."""
    @staticmethod
    def logits(hidden, weight, bias, temperature):
        return torch.nn.functional.linear(hidden, weight, bias).float().div_(temperature)  # [chunk, V]

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, temperature, chunk):
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.temperature, ctx.chunk = temperature, chunk
        return torch.cat([Head.logits(part, weight, bias, temperature).log_softmax(-1).gather(1, target[:, None])[:, 0]
                          for part, target in zip(hidden.split(chunk), targets.split(chunk))])

    @staticmethod
    def backward(ctx, gradient):
        hidden, weight, bias, targets = ctx.saved_tensors
        of_hidden, of_weight, of_bias = (None if x is None else torch.zeros_like(x) for x in (hidden, weight, bias))
        gradient = gradient[:, None] / ctx.temperature
        for k in range(0, len(targets), ctx.chunk):
            rows = slice(k, k + ctx.chunk)
            logits = Head.logits(hidden[rows], weight, bias, ctx.temperature)
            logits.sub_(logits.logsumexp(-1, keepdim=True)).exp_().mul_(-gradient[rows])  # d log p_t / d logits = 1[t] - p
            logits.scatter_add_(1, targets[rows, None], gradient[rows])
            logits = logits.to(weight.dtype)
            of_hidden[rows] = logits @ weight
            of_weight.addmm_(logits.T, hidden[rows])
            if bias is not None:
                of_bias += logits.sum(0)
        return of_hidden, of_weight, of_bias, None, None, None


def target_logprobs(model: Any, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, at: torch.Tensor, targets: torch.Tensor,
                    temperature: float, chunk: int) -> torch.Tensor:
    """Log-probabilities [N] of the targets [N] at the places `at` [N] of the flattened ids [B, L]; under FSDP it stands in for model.forward."""
    hidden = model.base_model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False).last_hidden_state  # [B, L, H]
    # not hidden[at]: its backward adds up what falls on one place in the order in which threads come
    hidden = hidden.flatten(0, 1).index_select(0, at)  # [N, H]
    head = model.get_output_embeddings()
    kind = torch.get_autocast_dtype(ids.device.type) if torch.is_autocast_enabled(ids.device.type) else head.weight.dtype
    return Head.apply(*(x if x is None else x.to(kind) for x in (hidden, head.weight, head.bias)), targets, temperature, chunk)


def token_logprobs(model: Any, rows: list[dict], temperature: float = 1.0, dtype: str = "float32", chunk: int | None = None,
                   sequences: Sequence[Sequence[int]] | None = None) -> torch.Tensor:
    """Log-probabilities [N] of the rows' completion tokens, row after row (of all sequences, if given), with gradient where it is enabled.

    A sequence holds completions of one prompt as a tree: a token sees those on its way from the root, itself included, and its
    position is the number of those before it, as in a text of its own. Only where a completion's token is next are logits made, once for equal
    ones, never [B, L, V]. They go to float32 and are divided by the sampling temperature, as in the sampler, so that the policy
    that is trained is the policy that sampled. Lengths alone say what is a completion, its EOS included; padding sees itself.
    """
    device, sequences = model.get_output_embeddings().weight.device, sequences or [[i] for i in range(len(rows))]
    trees = [tree(rows[s[0]]["prompt_ids"], [rows[i]["completion_ids"] for i in s]) for s in sequences]
    shape = len(trees), max(len(tokens) for tokens, _, _ in trees)
    ids, positions, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64), np.zeros((*shape, shape[1]), dtype=bool)
    mask[:] = np.eye(shape[1], dtype=bool)
    asked, places = {}, []  # (place in the flattened ids, next token) and its number; the number for each token of the rows
    for b, (sequence, (tokens, parents, paths)) in enumerate(zip(sequences, trees)):
        ids[b, :len(tokens)] = tokens
        for node, parent in enumerate(parents[1:], 1):
            positions[b, node] = positions[b, parent] + 1
            mask[b, node] |= mask[b, parent]
        for i, path in zip(sequence, paths):
            places += [asked.setdefault((b * shape[1] + node, token), len(asked)) for node, token in zip(path, rows[i]["completion_ids"])]
    at, targets = (torch.tensor(numbers, device=device) for numbers in zip(*asked))  # [distinct tokens] each
    ids, positions, mask = (torch.from_numpy(array).to(device) for array in (ids, positions, mask[:, None]))  # [B, L], [B, 1, L, L]
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):  # the weights stay in float32
        logprobs = getattr(model, "target_logprobs", functools.partial(target_logprobs, model))  # its own where FSDP has to know
        values = logprobs(ids, positions, mask, at, targets, temperature, chunk or max(1, LOGITS // model.config.vocab_size))
        return values.index_select(0, torch.tensor(places, device=device))


@torch.no_grad()
def completion_logprobs(model: Any, rows: list[dict], temperature: float = 1.0, micro_batch_tokens: int = 16384,
                        dtype: str = "float32") -> Sequence[torch.Tensor]:
    """Tensors [C], one per row: the log-probabilities of its completion_ids given its prompt_ids. The ranks share the work."""
    rank, count = ranks()
    lengths = [len(row["completion_ids"]) for row in rows]
    together = torch.zeros(sum(lengths), device=model.get_output_embeddings().weight.device)
    result = together.split(lengths) if rows else []
    for batch in deal(rows, micro_batch_tokens, count)[rank] if rows else []:
        values = token_logprobs(model, rows if batch else [EMPTY], temperature, dtype, sequences=batch)
        order = [i for sequence in batch for i in sequence]
        for i, value in zip(order, values.split([lengths[i] for i in order] or 1)):
            result[i].copy_(value)
    if count > 1:
        dist.all_reduce(together)  # a sum of one value and zeros: the same bits on every rank
    return result


def token_losses(logprobs: torch.Tensor, old_logprobs: Any, ref_logprobs: torch.Tensor | None, advantages: torch.Tensor,
                 clip: float, kl: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss [N], KL estimate [N] and clipped [N] of tokens (paper, section 2); all arguments [N], ref_logprobs may be None.

    loss = max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)) + kl k3, with k3 = exp(d) - d - 1, d = ref - new; as in the
    release k3 is held within [-10, 10], so beyond 10 it has no gradient. clipped: the tokens where the clip takes the gradient away.
    """
    ratio = (logprobs - old_logprobs).exp()
    plain, held = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = torch.maximum(plain, held)
    if ref_logprobs is None:
        return loss, torch.zeros_like(loss), held > plain
    d = ref_logprobs - logprobs
    k3 = (d.exp() - d - 1).clamp(-10, 10)
    return loss + kl * k3, k3, held > plain


def update(model: Any, reference: Any, optimizer: torch.optim.Optimizer, rows: list[dict], args: argparse.Namespace, step: int) -> dict:
    """PPO epochs over the rows of the buffer in mini-batches; returns means over everything seen.

    The loss of a mini-batch is the mean over its completion tokens, whatever the micro-batches and the number of ranks.
    """
    (rank, count), device = ranks(), model.get_output_embeddings().weight.device
    minibatches = max(1, round(len(rows) / args.minibatch))
    old = completion_logprobs(model, rows, args.temperature, args.micro_batch_tokens, args.dtype)
    ref = None
    if args.kl:
        parked = reference.device  # the CPU for --reference cpu
        ref = completion_logprobs(reference.to(device), rows, args.temperature, args.micro_batch_tokens, args.dtype)
        reference.to(parked)
    gap = max((o.cpu() - torch.tensor(row["logprobs"])).abs().max().item() for o, row in zip(old, rows))
    total = {"loss": 0.0, "kl": 0.0, "clip_fraction": 0.0}
    grad_norms, skipped, tokens_seen = [], 0, 0
    for epoch in range(args.ppo_epochs):
        order = np.random.default_rng([args.seed, step, epoch]).permutation(len(rows))
        for part in np.array_split(order, minibatches):
            tokens = sum(len(rows[i]["completion_ids"]) for i in part)
            for batch in deal([rows[i] for i in part], args.micro_batch_tokens, count)[rank]:
                sequences = [[part[i] for i in sequence] for sequence in batch]
                places = [i for sequence in sequences for i in sequence]
                own = [rows[i] for i in places] or [EMPTY]
                lengths = torch.tensor([len(row["completion_ids"]) for row in own])
                advantages = torch.tensor([row["advantage"] for row in own]).repeat_interleave(lengths).to(device)  # [N]
                old_own, ref_own = (torch.cat([values[i] for i in places] or [torch.zeros(1, device=device)]) if values else None
                                    for values in (old, ref))
                losses, kl, clipped = token_losses(
                    token_logprobs(model, rows if batch else own, args.temperature, args.dtype, sequences=sequences),
                    old_own, ref_own, advantages, args.clip, args.kl)
                (losses.sum() * bool(batch) * count / tokens).backward()  # times count, since gradients are averaged over the ranks
                for name, value in (("loss", losses), ("kl", kl), ("clip_fraction", clipped)):
                    total[name] += value.detach().sum().item() * bool(batch)
            if count > 1:
                for weight in model.parameters():
                    if not isinstance(weight, DTensor):  # else FSDP has done this
                        dist.all_reduce(weight.grad)
                        weight.grad /= count
            norm = whole_tensor(torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)).item()
            if norm <= args.grad_skip:  # False for NaN too: such a step is skipped, as in the release
                optimizer.step()
            else:
                skipped += 1
            optimizer.zero_grad()
            grad_norms.append(norm)
            tokens_seen += tokens
    sums = torch.tensor(list(total.values()), dtype=torch.float64)
    if count > 1:
        dist.all_reduce(sums)
    return {**{name: value / tokens_seen for name, value in zip(total, sums.tolist())}, "grad_norm": float(np.max(grad_norms)),
            "skipped": skipped, "updates": len(grad_norms), "logprob_gap": gap, "tokens": tokens_seen // args.ppo_epochs}


def whole(path: str, count: int, key: str) -> list[dict] | None:
    """The rows of a stage's file if it is there and whole: `count` rows, the last of them with `key`; else None."""
    with contextlib.suppress(OSError, ValueError):
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        if len(rows) == count and key in rows[-1]:
            return rows
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return None


def sample_and_verify(model: Any, tokenizer: Any, lean: Any, judge: Callable, problems: list[dict], num_samples: int, folder: str,
                      seed: int, args: argparse.Namespace, progress: bool = False, engines: Any = None) -> tuple[list[dict], float, float]:
    """folder/samples.jsonl and folder/verified.jsonl, the second in the making while the first still is: Lean judges what is
    sampled already. Returns the verified rows, the seconds of sampling, and those of verifying after it."""
    count, start, sampled = len(problems) * num_samples, time.time(), []
    if not whole(f"{folder}/problems.jsonl", len(problems), "statement"):
        write_jsonl(f"{folder}/problems.jsonl", problems)

    def sampling():
        options = dict(temperature=args.temperature, seed=seed, max_new_tokens=args.max_new_tokens, template=args.template,
                       progress=progress, model_name=f"{args.out}@{os.path.basename(folder)}")
        if engines:
            yield from vllm_rows(engines, model, tokenizer, problems, num_samples, limit=args.max_model_len, **options)
        else:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=args.dtype == "bfloat16"):
                yield from sample_rows(model, tokenizer, problems, num_samples, batch_tokens=args.batch_tokens, **options)
        sampled.append(time.time())

    rows = whole(f"{folder}/verified.jsonl", count, "reward")
    if not rows:
        samples = whole(f"{folder}/samples.jsonl", count, "logprobs") or written(f"{folder}/samples.jsonl", sampling())
        verified = verify_stream(samples, lean, args.workers, args.verify_batch, args.timeout, progress, count, judge)
        rows = list(written(f"{folder}/verified.jsonl", verified))
    sampled = sampled[0] if sampled else start
    return rows, sampled - start, time.time() - sampled


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
        cannot_write(path, next(iter(error.failures.values()))[0] if isinstance(error, dcp.CheckpointException) else error)


def save_checkpoint(model: Any, tokenizer: Any, optimizer: torch.optim.Optimizer, steps: int, buffer: list[dict],
                    history: list[dict], args: argparse.Namespace) -> None:
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
    for folder in {os.path.join(os.path.dirname(checkpoint), name) for name in os.listdir(os.path.dirname(checkpoint))} - {checkpoint}:
        with contextlib.suppress(OSError):
            os.remove(f"{folder}/trainer.pt")
        shutil.rmtree(f"{folder}/optimizer", ignore_errors=True)


def load_checkpoint(checkpoint: str, model: Any, optimizer: torch.optim.Optimizer) -> tuple[list[dict], list[dict]]:
    """(buffer, history) of a checkpoint whose weights the model has; the optimizer gets its moments, on any number of ranks."""
    try:
        saved = torch.load(f"{checkpoint}/trainer.pt", weights_only=True)
        reader = dcp.HuggingFaceStorageReader(f"{checkpoint}/optimizer")
        dcp.load(moments(model, optimizer), storage_reader=reader, no_dist=not dist.is_initialized())  # into these very tensors
        for state in optimizer.state.values():
            state["step"].fill_(saved["optimizer"])
        return saved["buffer"], saved["history"]
    except (Exception, dcp.CheckpointException) as error:  # a dozen kinds
        fail(f"cannot load trainer.pt and optimizer of {checkpoint} ({cause(error)}); delete that folder: the steps' files are used again")


def last_checkpoint(out: str) -> str | None:
    """The newest checkpoint folder of a run that can be resumed from, or None."""
    names = sorted(os.listdir(f"{out}/checkpoints")) if os.path.isdir(f"{out}/checkpoints") else []
    names = [name for name in names if name.startswith("step_") and os.path.exists(f"{out}/checkpoints/{name}/trainer.pt")]
    return f"{out}/checkpoints/{names[-1]}" if names else None


def open_run(args: argparse.Namespace) -> None:
    """Makes the run folder, or checks that the one to be resumed was made with the same flags (args.json, written by main)."""
    path, free = f"{args.out}/args.json", (
        "resume", "steps", "save_every", "workers", "verdicts", "out", "tracker", "shard", "reference", "gradient_checkpointing", "gpus",
        "tensor_parallel", "gpu_memory_utilization", "max_model_len", "sleep")
    if os.path.exists(path) and (args.advantages or not args.resume):
        fail(f"{args.out} already holds a run; {'' if args.advantages else 'add --resume to continue it or '}name another folder with --out")
    try:
        os.makedirs(args.out, exist_ok=True)
        with contextlib.suppress(OSError):  # not every network file system knows locks
            try:
                fcntl.flock(os.open(args.out, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
            except BlockingIOError:
                fail(f"another train.py is at work in {args.out}; wait for it or end it, or name another folder with --out")
        if os.path.exists(path):
            before = next(read_jsonl(path), {})
            for name, value in vars(args).items():
                if name not in free and before.get(name) != value:
                    fail(f"{args.out} was started with --{name.replace('_', '-')} {before.get(name)}, not {value}; "
                         "give the same flags to resume it or name another folder with --out")
    except OSError as error:
        fail(f"cannot use the run folder {args.out} ({error.strerror}); name another with --out")


def sampler_seed(args: argparse.Namespace, step: int) -> int:
    """The --seed of sample.py that gives a step's samples; every evaluation of a run has the same one."""
    return args.seed * 10**6 + step


def problems_of(step: int, problems: list[dict], args: argparse.Namespace) -> list[dict]:
    """The problems of a step: every pass over them has an order of its own, and its remainder is left out."""
    a_pass = max(1, len(problems) // args.problems_per_step)
    order = np.random.default_rng([args.seed, step // a_pass]).permutation(len(problems))
    return [problems[i] for i in order[step % a_pass * args.problems_per_step:][:args.problems_per_step]]


def step_metrics(step: int, rows: list[dict]) -> dict:
    """What a step's verified rows with advantages say, as a dict for metrics.jsonl."""
    judged = [row for row in rows if row["reward"] is not None]
    proved = [row for row in judged if row["reward"] == 1]
    return {
        "step": step, "reward": len(proved) / max(1, len(judged)), "solved": len({row["id"] for row in proved}),
        "groups_kept": len({row["id"] for row in rows if row["advantage"] is not None}),
        "unique": len({(row["id"], row["completion"]) for row in rows}) / len(rows),
        "unique_proofs": len({(row["id"], row["completion"]) for row in proved}),
        "truncated": sum(row["finish_reason"] == "length" for row in rows) / len(rows),
        "verifier_errors": len(rows) - len(judged),
        **dict.fromkeys(("loss", "kl", "clip_fraction", "grad_norm", "skipped", "updates", "logprob_gap", "tokens"))}  # see update


def plain(metrics: dict) -> dict:
    """The metrics with null for NaN and infinity, which JSON does not know."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in metrics.items()}


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


def parse_args() -> argparse.Namespace:
    parser = flags("GRPO for a Lean prover, with the unlikeliness reward.")
    count, positive, share = at_least(int, 1), at_least(float, 0, exclusive=True), at_least(float, 0)
    here = os.path.dirname(os.path.abspath(__file__))
    # what is trained on what
    parser.add_argument("--model", default=f"{here}/toy/base", help="Hugging Face folder or name (default: the embedded prover)")
    parser.add_argument("--problems", default=f"{here}/toy/train.jsonl", help="training problems (see sample.py for formats)")
    parser.add_argument("--template", choices=["bare", "deepseek"], default="bare", help="prompt of sample.py")
    parser.add_argument("--out", help="run folder (default: runs/ and a name made of the settings)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out where it was interrupted")
    parser.add_argument("--advantages", help="make one update on the rows of this file, and nothing else")
    # the algorithm (paper, Table 1)
    parser.add_argument("--unlikeliness", type=at_least(float, 0, high=1), default=0.0, help="beta_rank; the paper uses 0.25 (0: plain GRPO)")
    parser.add_argument("--rank-by", choices=["sequence", "token-mean"], default="sequence", help="likelihood that ranks a group")
    parser.add_argument("--ties", choices=["shared", "broken"], default="shared", help="rank of equal completions: one, or by float noise")
    parser.add_argument("--ppo-epochs", type=count, default=1, help="passes over the buffer per update; the paper tries 1 to 3")
    parser.add_argument("--kl", type=share, default=0.02, help="beta_KL; 0 leaves the reference model out altogether")
    parser.add_argument("--clip", type=positive, default=0.2, help="PPO clip epsilon")
    parser.add_argument("--steps", type=count, default=100, help="sampling steps")
    parser.add_argument("--problems-per-step", type=count, default=16, help="problems sampled a step, B")
    parser.add_argument("--num-samples", type=count, default=32, help="completions a problem, G")
    parser.add_argument("--train-batch", type=count, default=256, help="update once this many completions with an advantage wait")
    parser.add_argument("--minibatch", type=count, default=256, help="completions per optimizer step, about")
    parser.add_argument("--lr", type=at_least(float, 0, high=1), default=1e-4, help="AdamW learning rate, constant (paper's 7B model: 1e-6)")
    parser.add_argument("--weight-decay", type=at_least(float, 0, high=1), default=0.01, help="of AdamW")
    parser.add_argument("--grad-clip", type=positive, default=1.0, help="largest gradient norm")
    parser.add_argument("--grad-skip", type=positive, default=20.0, help="an update with a larger gradient norm is skipped")
    parser.add_argument("--temperature", type=positive, default=1.0, help="of sampling and of the trained distribution")
    parser.add_argument("--max-new-tokens", type=count, default=200, help="completion length limit (paper: 512)")
    # evaluation and checkpoints
    parser.add_argument("--eval-problems", default=f"{here}/toy/val.jsonl", help="held-out problems")
    parser.add_argument("--eval-samples", type=at_least(int, 0), default=64, help="completions a held-out problem (0: no evaluation)")
    parser.add_argument("--eval-every", type=at_least(int, 0), default=0, help="also evaluate every N steps (0: only before and after)")
    parser.add_argument("--save-every", type=count, default=10, help="steps between checkpoints")
    # the machine
    parser.add_argument("--lean", default="auto", help="auto: the wheel's Lean; or a command such as 'lake env lean'")
    parser.add_argument("--project", help="Lake project where Lean runs (default: the working folder)")
    parser.add_argument("--header", help="first lines for problems without a header of their own (default: Mathlib's; '' for none)")
    parser.add_argument("--memory-gb", type=positive, default=16.0, help="address space of one Lean process")
    parser.add_argument("--workers", type=at_least(int, 1, high=4096), default=os.cpu_count(), help="Lean processes")
    parser.add_argument("--verify-batch", type=count, default=128, help="completions per Lean process")
    parser.add_argument("--verdicts", help="SQLite file that keeps what was proved or rejected, for other runs to share")
    parser.add_argument("--timeout", type=positive, default=60.0, help="seconds for one proof")
    parser.add_argument("--max-heartbeats", type=count, default=200000, help="Lean's own limit for a proof")
    parser.add_argument("--batch-tokens", type=count, default=131072, help="sampler: sequences x length a batch")
    parser.add_argument("--micro-batch-tokens", type=count, default=2048, help="update: padded tokens a forward pass")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the computation; weights are float32")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory in the update for a third more time")
    parser.add_argument("--shard", choices=["fsdp", "none"], default="fsdp", help="under torchrun: weights split, or whole on every rank")
    parser.add_argument("--reference", choices=["device", "cpu"], default="device", help="where the initial model waits (--kl)")
    parser.add_argument("--tracker", choices=["wandb", "tensorboard"], help="send the metrics there too; needs that package")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    parser.add_argument("--seed", type=at_least(int, 0), default=0, help="of data order, samples and mini-batches")
    add_engine_flags(parser)
    parser.add_argument("--sleep", action="store_true", help="vllm: gives its memory back for the time of an update")
    args = parser.parse_args()
    args.engine = choose_engine(args)
    if args.advantages and (not args.out or args.unlikeliness or args.rank_by != "sequence" or args.ties != "shared"):
        fail("with --advantages give --out, and give --unlikeliness, --rank-by and --ties to advantage.py, which made the file")
    settings = f"unlikeliness-{args.unlikeliness:g}_epochs-{args.ppo_epochs}_kl-{args.kl:g}_seed-{args.seed}"
    args.out = args.out or f"runs/{settings}"
    return args


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
            return lambda row: [board.add_scalar(name, row[name], row["step"]) for name in row if row[name] is not None]  # type: ignore
    except ImportError:
        fail(f"--tracker {args.tracker} needs its package: pip install {args.tracker}, or leave the flag out")
    return lambda row: None


def main():
    share = start_ranks()
    rank = ranks()[0]
    warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a checkpoint of one process needs none
    args = checkpoint = tokenizer = sampler = None
    problems, held_out, buffer, history, engines = [], [], [], [], []
    logging.disable_progress_bar()
    if rank == 0:  # it alone samples, verifies, evaluates, writes and prints; what all ranks need goes through share
        args = parse_args()
        if dist.is_initialized() and ":" in args.device:
            fail(f"under torchrun each rank takes a GPU of its own; give --device {args.device.split(':')[0]}")
        lean = None  # else it says what to install before anything is computed
        if not args.advantages:
            lean = find_lean(args.lean, args.project, args.header, args.memory_gb, args.max_heartbeats)
        problems = read_problems(args.problems)
        held_out = read_problems(args.eval_problems) if args.eval_samples else []
        judge = remembering(args.verdicts) if args.verdicts else judge_batch
        open_run(args)
        log = open_log(args)
        checkpoint = None if args.advantages else last_checkpoint(args.out)
        sharded = dist.is_initialized() and args.shard == "fsdp"
        if args.engine == "vllm" and not args.advantages:  # first of all, since vLLM measures the free memory
            engines = start_engines(checkpoint or args.model, args, args.sleep)
        sampler, tokenizer = load_model(checkpoint or args.model, args.dtype if sharded else "float32", args.device,
                                        weights=not (sharded and engines))
        if not args.advantages:  # a prompt that is too long is told of now, not when its step comes
            encode(sampler, tokenizer, problems + held_out, args.template, args.max_new_tokens, args.max_model_len)
    args, checkpoint = share((args, checkpoint))
    sharded = dist.is_initialized() and args.shard == "fsdp"  # then rank 0 samples from a whole copy of the weights
    load = functools.partial(load_model, dtype="float32", device="cpu" if sharded else args.device)
    model = sampler if rank == 0 and not sharded else load(checkpoint or args.model)[0]
    reference = load(args.model, dtype=args.dtype if sharded else "float32")[0].requires_grad_(False) if args.kl else None
    if args.gradient_checkpointing:
        checkpoint_blocks(model)
    if sharded:
        model, reference = shard(model, target_logprobs, args), reference and shard(reference, target_logprobs, args, trained=False)
    if args.kl and args.reference == "cpu":
        reference.to("cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay,
                                  fused=torch.device(args.device).type == "cuda")  # else it holds another copy of the weights
    if args.advantages:
        if rank == 0:
            rows = list(read_verified(args.advantages, "prompt_ids", "completion", "completion_ids", "logprobs", "finish_reason", "advantage"))
            buffer = [row for row in rows if row["advantage"] is not None]
            if not buffer:
                fail(f"{args.advantages} has no row with an advantage; every group is all right or all wrong")
            if (largest := max(max(row["prompt_ids"] + row["completion_ids"]) for row in buffer)) >= model.config.vocab_size:
                fail(f"{args.advantages} has a token {largest}, which {args.model} does not know; give the model that sampled the rows")
        updated = update(model, reference, optimizer, share(buffer), args, 0)
        metrics = rank == 0 and step_metrics(0, rows) | updated
        save_checkpoint(model, tokenizer, optimizer, 1, [], [metrics], args)
        if rank == 0:
            write_jsonl(f"{args.out}/metrics.jsonl", [plain(metrics)])
            write_jsonl(f"{args.out}/args.json", [vars(args)])  # last: until then the same command may be given again
            for sentence in alarms([metrics]):
                print(f"warning: {sentence}", file=sys.stderr)
            print(f"{json.dumps(plain(metrics))}\nModel: {args.out}/checkpoints/step_00001")
        return
    if checkpoint:
        buffer, history = load_checkpoint(checkpoint, model, optimizer)
        if rank == 0 and len(history) > args.steps:
            fail(f"{args.out} already has {len(history)} steps; give --steps {len(history)} or more")
        if rank == 0:
            lighten_others(checkpoint)  # the run may have been killed before it could
        print(f"resuming {args.out} at step {len(history)}")
    first = len(history)
    if rank == 0:
        write_jsonl(f"{args.out}/args.json", [vars(args)])
        write_jsonl(f"{args.out}/metrics.jsonl", map(plain, history))  # without the rows after the checkpoint, which are made again

    def evaluate(step):
        if rank == 0 and held_out and (step in (0, args.steps) or (args.eval_every and step % args.eval_every == 0)):
            print(f"evaluating at step {step}: {len(held_out)} problems x {args.eval_samples} samples")
            sample_and_verify(sampler, tokenizer, lean, judge, held_out, args.eval_samples, f"{args.out}/eval_{step:05d}",
                              sampler_seed(args, EVALUATION), args, progress=True, engines=engines)

    evaluate(first)
    for step in tqdm(range(first, args.steps), initial=first, total=args.steps, desc="training", disable=rank > 0):
        if rank == 0:
            folder, batch = f"{args.out}/step_{step:05d}", problems_of(step, problems, args)
            rows, seconds_sample, seconds_verify = sample_and_verify(
                sampler, tokenizer, lean, judge, batch, args.num_samples, folder, sampler_seed(args, step), args, engines=engines)
            rows = list(written(f"{folder}/advantages.jsonl", add_advantages(rows, args.unlikeliness, args.rank_by, args.ties)))
            buffer += [row for row in rows if row["advantage"] is not None]
        start, updated = time.time(), {}
        if full := share(buffer if len(buffer) >= args.train_batch else []):
            if engines and args.sleep:
                rest(engines)
            updated, buffer = update(model, reference, optimizer, full, args, step), []
            weights = full_state(model) if sharded else None
            if engines:
                sync(engines, model, args.dtype, weights)
            elif sharded and rank == 0:
                sampler.load_state_dict(weights)
        if rank == 0:
            metrics = step_metrics(step, rows) | updated
            metrics |= {"seconds_sample": seconds_sample, "seconds_verify": seconds_verify, "seconds_update": time.time() - start}
            history.append(metrics)
            write_jsonl(f"{args.out}/metrics.jsonl", map(plain, history))
            log(metrics)
            tqdm.write(step_line(metrics))
            for sentence in alarms(history):
                tqdm.write(f"warning: step {step}: {sentence}", file=sys.stderr)
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            save_checkpoint(model, tokenizer, optimizer, step + 1, buffer, history, args)
        evaluate(step + 1)

    if rank > 0:
        return share(None)
    name = os.path.basename(os.path.normpath(args.out))
    if held_out:
        results = {"base model": load_counts(f"{args.out}/eval_00000/verified.jsonl"),
                   name: load_counts(f"{args.out}/eval_{args.steps:05d}/verified.jsonl")}
        print(f"\n{pass_table(results)}")
        draw_passes(results, f"{args.out}/figures/pass_at_n.png")
    draw_curves({name: args.out}, f"{args.out}/figures/curves.png")
    print(f"Figures: {args.out}/figures, model: {args.out}/checkpoints/step_{args.steps:05d}")
    share(None)


def step_line(m: dict) -> str:
    """One line of what a step did; the README's glossary says what each number is."""
    line = (f"step {m['step']:4d}  reward {m['reward']:.2f}  solved {m['solved']:2d}  kept {m['groups_kept']:2d}  "
            f"unique {m['unique']:.2f}  trunc {m['truncated']:.2f}  ")
    if m["updates"]:
        line += (f"clip {m['clip_fraction']:.3f}  kl {m['kl']:.4f}  grad {m['grad_norm']:.2f}  gap {m['logprob_gap']:.0e}  ")
    return line + "  ".join(f"{stage} {m[f'seconds_{stage}']:.1f}s" for stage in ("sample", "verify", "update"))


if __name__ == "__main__":
    try:
        main()
        if dist.is_initialized():
            dist.destroy_process_group()
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun may say it once more
        if ranks()[0] == 0:
            print("stopped; the same command with --resume continues", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        fail(f"cannot go on ({error}); make room or mend it, and the same command with --resume continues")
    except RuntimeError as error:
        if not dist.is_initialized():
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(f"error: a process of the run failed; the same command with --resume continues (rank {ranks()[0]}: {cause(error)})", file=sys.stderr)
        sys.exit(1)
