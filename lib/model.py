"""Loading a model, and the log-probabilities of completions in prefix trees."""

import functools
import math
import os
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lib.cli import cause, fail
from lib.ranks import ranks


def load_model(
    path: str, dtype: str = "float32", device: str = "cpu", weights: bool = True
) -> tuple[Any, Any]:
    """(model in eval mode, tokenizer) of a local folder, or of the Hugging Face hub where nothing has that path. Without
    weights the model is only its config and generation_config: the weights are vLLM's then."""
    if os.path.isdir(path) and not os.path.exists(os.path.join(path, "config.json")):
        fail(f"{path} is no model folder: it has no config.json; give a checkpoint's folder")
    if not os.path.exists(path):
        if path.startswith((".", "/", "~")) or path.count("/") > 1 or os.path.isdir(path.partition("/")[0]):
            fail(f"there is no folder {path}; give a model folder or a model of the Hugging Face hub")
        print(
            f"there is no folder {path}: asking the Hugging Face hub for a model of that name",
            file=sys.stderr,
        )
    options: dict[str, Any] = dict(local_files_only=os.path.exists(path), trust_remote_code=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        if not weights:
            model = SimpleNamespace(config=AutoConfig.from_pretrained(path, **options))
            try:
                model.generation_config = GenerationConfig.from_pretrained(
                    path, local_files_only=os.path.exists(path)
                )
            except OSError:  # it has no such file
                model.generation_config = GenerationConfig.from_model_config(model.config)
            return model, tokenizer
        # train.py lets completions share a prompt by a mask of True and False, which another kind of attention would take for numbers
        options |= dict(
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
        )
        model, report = cast(tuple, AutoModelForCausalLM.from_pretrained(path, **options))
        model = model.to(device).eval()
    except (
        Exception
    ) as error:  # a dozen kinds, and the user's mistake is one: no model there, or no such device
        fail(
            f"cannot load {path} on {device} ({cause(error)}); give a model folder or a model of the hub, and a device at hand"
        )
    if report["missing_keys"]:  # transformers would only warn
        fail(
            f"{path} lacks {sorted(report['missing_keys'])[0]}, which would be random; give a complete model folder"
        )
    return model, tokenizer


LOGITS = 2**26  # float32 logits held at a time: 0.27 GB, several times that in backward


EMPTY = {
    "prompt_ids": [0],
    "completion_ids": [0],
    "advantage": 0.0,
}  # what a rank computes, and does not count, that has nothing left


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
        return torch.cat(
            [
                Head.logits(part, weight, bias, temperature).log_softmax(-1).gather(1, target[:, None])[:, 0]
                for part, target in zip(hidden.split(chunk), targets.split(chunk))
            ]
        )

    @staticmethod
    def backward(ctx, gradient):
        hidden, weight, bias, targets = ctx.saved_tensors
        of_hidden, of_weight, of_bias = (
            None if x is None else torch.zeros_like(x) for x in (hidden, weight, bias)
        )
        gradient = gradient[:, None] / ctx.temperature
        for k in range(0, len(targets), ctx.chunk):
            rows = slice(k, k + ctx.chunk)
            logits = Head.logits(hidden[rows], weight, bias, ctx.temperature)
            logits.sub_(logits.logsumexp(-1, keepdim=True)).exp_().mul_(
                -gradient[rows]
            )  # d log p_t / d logits = 1[t] - p
            logits.scatter_add_(1, targets[rows, None], gradient[rows])
            logits = logits.to(weight.dtype)
            of_hidden[rows] = logits @ weight
            of_weight.addmm_(logits.T, hidden[rows])
            if bias is not None:
                of_bias += logits.sum(0)
        return of_hidden, of_weight, of_bias, None, None, None


def target_logprobs(
    model: Any,
    ids: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor,
    at: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    chunk: int,
) -> torch.Tensor:
    """Log-probabilities [N] of the targets [N] at the places `at` [N] of the flattened ids [B, L]; under FSDP it stands in for model.forward."""
    hidden = model.base_model(
        input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False
    ).last_hidden_state  # [B, L, H]
    # not hidden[at]: its backward adds up what falls on one place in the order in which threads come
    hidden = hidden.flatten(0, 1).index_select(0, at)  # [N, H]
    head = model.get_output_embeddings()
    kind = (
        torch.get_autocast_dtype(ids.device.type)
        if torch.is_autocast_enabled(ids.device.type)
        else head.weight.dtype
    )
    return Head.apply(
        *(x if x is None else x.to(kind) for x in (hidden, head.weight, head.bias)),
        targets,
        temperature,
        chunk,
    )


def token_logprobs(
    model: Any,
    rows: list[dict],
    temperature: float = 1.0,
    dtype: str = "float32",
    chunk: int | None = None,
    sequences: Sequence[Sequence[int]] | None = None,
) -> torch.Tensor:
    """Log-probabilities [N] of the rows' completion tokens, row after row (of all sequences, if given), with gradient where it is enabled.

    A sequence holds completions of one prompt as a tree: a token sees those on its way from the root, itself included, and its
    position is the number of those before it, as in a text of its own. Only where a completion's token is next are logits made, once for equal
    ones, never [B, L, V]. They go to float32 and are divided by the sampling temperature, as in the sampler, so that the policy
    that is trained is the policy that sampled. Lengths alone say what is a completion, its EOS included; padding sees itself.
    """
    device, sequences = (
        model.get_output_embeddings().weight.device,
        sequences or [[i] for i in range(len(rows))],
    )
    trees = [tree(rows[s[0]]["prompt_ids"], [rows[i]["completion_ids"] for i in s]) for s in sequences]
    shape = len(trees), max(len(tokens) for tokens, _, _ in trees)
    ids, positions, mask = (
        np.zeros(shape, dtype=np.int64),
        np.zeros(shape, dtype=np.int64),
        np.zeros((*shape, shape[1]), dtype=bool),
    )
    mask[:] = np.eye(shape[1], dtype=bool)
    asked, places = (
        {},
        [],
    )  # (place in the flattened ids, next token) and its number; the number for each token of the rows
    for b, (sequence, (tokens, parents, paths)) in enumerate(zip(sequences, trees)):
        ids[b, : len(tokens)] = tokens
        for node, parent in enumerate(parents[1:], 1):
            positions[b, node] = positions[b, parent] + 1
            mask[b, node] |= mask[b, parent]
        for i, path in zip(sequence, paths):
            places += [
                asked.setdefault((b * shape[1] + node, token), len(asked))
                for node, token in zip(path, rows[i]["completion_ids"])
            ]
    at, targets = (torch.tensor(numbers, device=device) for numbers in zip(*asked))  # [distinct tokens] each
    ids, positions, mask = (
        torch.from_numpy(array).to(device) for array in (ids, positions, mask[:, None])
    )  # [B, L], [B, 1, L, L]
    with torch.autocast(
        device.type, torch.bfloat16, enabled=dtype == "bfloat16"
    ):  # the weights stay in float32
        logprobs = getattr(
            model, "target_logprobs", functools.partial(target_logprobs, model)
        )  # its own where FSDP has to know
        values = logprobs(
            ids, positions, mask, at, targets, temperature, chunk or max(1, LOGITS // model.config.vocab_size)
        )
        return values.index_select(0, torch.tensor(places, device=device))


@torch.no_grad()
def completion_logprobs(
    model: Any,
    rows: list[dict],
    temperature: float = 1.0,
    micro_batch_tokens: int = 16384,
    dtype: str = "float32",
) -> Sequence[torch.Tensor]:
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
