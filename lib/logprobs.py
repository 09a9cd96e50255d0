"""Log-probabilities of completion tokens, computed over prefix trees.

Completions of one prompt often begin alike. A tree computes every shared beginning once:

    prompt      completions           tree, a sequence of nodes        parent of each node

    a b c       x y z EOS             0 a                              -
                x y w EOS             1 b                              0
                v EOS                 2 c                              1
                                      3 x    6 v   <- two branches     2    2
                                      4 y                              3
                                      5 z    7 w   <- two branches     4    4

A node attends to its ancestors and itself only, and its position is the number of its ancestors, so each
completion is computed as in a sequence of its own. EOS is never a node: nothing comes after it. A batch holds
several trees, padded to the longest; micro-batches are shared out among the processes.
"""

import copy
import functools
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from lib import processes
from lib.model import vocabulary_size

LOGITS_AT_ONCE = 2**26  # float32 logits in memory at a time: 0.27 GB
DUMMY_ROW = dict(
    prompt_ids=[0],
    completion_ids=[0],
    advantage=0.0,
    old_logprobs=torch.zeros(1),
    ref_logprobs=torch.zeros(1),
)


class Batch(NamedTuple):
    """B prefix trees, and the N completion tokens, row after row, whose log-probabilities are wanted.

    D <= N of them are distinct, since shared prefixes are computed once."""

    ids: torch.Tensor  # [B, L] token of each node
    positions: torch.Tensor  # [B, L]
    mask: torch.Tensor  # [B, 1, L, L] True where a node (row) attends to another (column)
    nodes: torch.Tensor  # [D] a place in the flattened ids ...
    targets: torch.Tensor  # [D] ... and the token whose log-probability is asked for there
    expand: torch.Tensor  # [N] which of the D each completion token is
    rows: list[int]  # whose completion tokens these are
    weight: float  # of its loss: 0 for the dummy batch of an idle process
    advantages: Any = None  # [N]
    old_logprobs: Any = None  # [N]
    ref_logprobs: Any = None  # [N], or None without a KL term


def takes_trees(model: Any) -> bool:
    """False where check_logprobs has found that only plain rows give the model's own log-probabilities."""
    return getattr(model, "takes_trees", True)


def group_into_trees(
    rows: list[dict], token_budget: int, width: float = math.inf
) -> list[tuple[list[int], int]]:
    """Which rows share a tree: [(indices of rows, number of nodes), ...].

    Rows of one prompt share a tree until it is twice as long as the longest row (or as the budget). In sorted
    order, a row shares its longest prefix with the row before it. It joins if the nodes it shares save more
    than attention between branches costs, which is computed, then masked: a node takes 24 width**2 operations
    a block, a pair of nodes 4 width. With width 0, each row has its own tree.
    """
    texts = [row["prompt_ids"] + row["completion_ids"][:-1] for row in rows]
    longest = max(map(len, texts))
    limit = max(longest, min(2 * longest, token_budget))
    trees: list[tuple[list[int], int]] = []
    for i in sorted(range(len(rows)), key=texts.__getitem__):
        if trees:
            members, size = trees[-1]
            last = members[-1]
            shared = len(os.path.commonprefix([texts[last], texts[i]]))
            pays = 3 * width * shared > size * len(texts[i])
            size += len(texts[i]) - shared
            if pays and rows[i]["prompt_ids"] == rows[last]["prompt_ids"] and size <= limit:
                trees[-1] = members + [i], size
                continue
        trees.append(([i], len(texts[i])))
    return trees


def micro_batches_per_process(
    rows: list[dict], token_budget: int, count: int, width: float = math.inf
) -> list[list[list[list[int]]]]:
    """The micro-batches of each of `count` processes: lists of trees, which are lists of row indices.

    Processes get about equally many tokens. A micro-batch holds trees of similar size (at least 0.8 of its
    longest) and at most token_budget padded nodes, unless it is a single tree. Padded with empty batches so
    that every process runs the same number of forward passes.
    """
    dealt: list[list[list[list[int]]]] = [[] for _ in range(count)]
    longest = [0] * count  # of each process's last micro-batch
    load = [0] * count
    for members, size in sorted(group_into_trees(rows, token_budget, width), key=lambda tree: -tree[1]):
        process = load.index(min(load))
        batches = dealt[process]
        full = batches and (len(batches[-1]) + 1) * longest[process] > token_budget
        if not batches or full or size < 0.8 * longest[process]:
            batches.append([])
            longest[process] = size
        batches[-1].append(members)
        load[process] += size
    most = max(map(len, dealt))
    return [batches + [[]] * (most - len(batches)) for batches in dealt]


def own_micro_batches(model: Any, rows: list[dict], token_budget: int) -> list[list[list[int]]]:
    """The micro-batches of this process, of trees or of plain rows as the model needs."""
    width = model.get_output_embeddings().weight.shape[1] if takes_trees(model) else 0
    return micro_batches_per_process(rows, token_budget, processes.count(), width)[processes.index()]


def prefix_tree(
    prompt: list[int], completions: list[list[int]]
) -> tuple[list[int], list[int], list[list[int]]]:
    """(tokens, parents, paths): the token and the parent of each node, and for each completion the nodes that
    predict its tokens, from the prompt's last node on."""
    tokens = list(prompt)
    parents = list(range(-1, len(prompt) - 1))
    children: dict[tuple[int, int], int] = {}  # (node, next token): node
    paths = []
    for completion in completions:
        path = [len(prompt) - 1]
        for token in completion[:-1]:
            node = children.setdefault((path[-1], token), len(tokens))
            if node == len(tokens):
                tokens.append(token)
                parents.append(path[-1])
            path.append(node)
        paths.append(path)
    return tokens, parents, paths


def make_batch(rows: list[dict], trees: Sequence[Sequence[int]], device: Any = "cpu") -> Batch:
    """A batch of these trees, lists of row indices. Rows may carry advantage, old_logprobs, ref_logprobs.

    Without trees it is the dummy batch of an idle process: FSDP needs its forward pass; its weight is 0."""
    weight = 1.0 if trees else 0.0
    if not trees:
        rows, trees = [DUMMY_ROW], [[0]]
    built = [prefix_tree(rows[t[0]]["prompt_ids"], [rows[i]["completion_ids"] for i in t]) for t in trees]
    B, L = len(built), max(len(tokens) for tokens, _, _ in built)
    ids, positions = np.zeros([B, L], dtype=np.int64), np.zeros([B, L], dtype=np.int64)
    mask = np.zeros([B, L, L], dtype=bool)
    mask[:] = np.eye(L, dtype=bool)  # padding attends to itself: a row without any True would give NaN
    distinct: dict[tuple[int, int], int] = {}
    expand: list[int] = []
    for b, (members, (tokens, parents, paths)) in enumerate(zip(trees, built)):
        ids[b, : len(tokens)] = tokens
        for node, parent in enumerate(parents[1:], 1):
            positions[b, node] = positions[b, parent] + 1
            mask[b, node] |= mask[b, parent]
        for i, path in zip(members, paths):
            for node, token in zip(path, rows[i]["completion_ids"]):
                expand.append(distinct.setdefault((b * L + node, token), len(distinct)))
    nodes, targets = zip(*distinct)
    order = [i for members in trees for i in members]
    own = [rows[i] for i in order]
    lengths = torch.tensor([len(row["completion_ids"]) for row in own])

    def per_token(key):
        if any(row.get(key) is None for row in own):
            return None
        return torch.cat([row[key] for row in own]).to(device)

    advantages = torch.tensor([row.get("advantage") or 0.0 for row in own]).repeat_interleave(lengths)

    def tensor(numbers):
        return torch.as_tensor(numbers, device=device)

    return Batch(
        ids=tensor(ids),
        positions=tensor(positions),
        mask=tensor(mask[:, None]),
        nodes=tensor(nodes),
        targets=tensor(targets),
        expand=tensor(expand),
        rows=order if weight else [],
        weight=weight,
        advantages=advantages.to(device),
        old_logprobs=per_token("old_logprobs"),
        ref_logprobs=per_token("ref_logprobs"),
    )


def text_model(model: Any) -> Any:
    """The transformer without its head; of a multimodal model, that of the text."""
    body = model.get_decoder()
    return model.model if body is model else body


def attention_masks(model: Any, batch: Batch) -> Any:
    """The mask of the trees as the model takes it: layers with a sliding window see the ancestors within it,
    and a model with layers of both kinds takes a mask for each."""
    config = model.config.get_text_config()
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    masks = {"full_attention": batch.mask, "sliding_attention": batch.mask}
    if window:
        depth = batch.positions[:, None]  # [B, 1, L]
        masks["sliding_attention"] = batch.mask & (depth[:, :, :, None] - depth[:, :, None] < window)
    if model.config._attn_implementation == "eager":  # which adds the mask to the scores
        lowest = torch.finfo(torch.float32).min
        masks = {
            kind: torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, lowest)
            for kind, mask in masks.items()
        }
    return masks if kinds else masks["sliding_attention"]


def own_logits(model: Any, output: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits [n, V] of last hidden states [n, H], with the scales and softcaps of some architectures: by the
    model's own forward, in which the transformer just returns `output` with these hidden states."""
    body, given = text_model(model), copy.copy(output)
    given.last_hidden_state = hidden[None]
    body.forward = lambda *args, **kwargs: given
    try:
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        return model.forward(input_ids=ids, use_cache=False).logits[0]
    finally:
        del body.forward


def target_logprobs(model: Any, batch: Batch, temperature: float, chunk: int) -> torch.Tensor:
    """Log-probabilities [D] of the batch's targets; under FSDP it replaces model.forward.

    Logits are computed only for these, `chunk` rows at a time, and again in backward: [D, V] would take more
    memory than all else. They are divided by the sampling temperature in float32, as in the sampler, so that
    the policy that is trained is the policy that sampled.
    """
    where = {"position_ids": batch.positions, "attention_mask": attention_masks(model, batch)}
    if not takes_trees(model):
        where = {}  # one row a sequence, padded on the right, where causal attention never looks
    output = text_model(model)(input_ids=batch.ids, use_cache=False, **where)
    # Not hidden[nodes]: its backward accumulates duplicates in a nondeterministic order.
    hidden = output.last_hidden_state.flatten(0, 1).index_select(0, batch.nodes)  # [D, H]

    def head_logprobs(hidden, targets):
        logits = own_logits(model, output, hidden).float() / temperature  # [chunk, V]
        return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]

    chunks = list(zip(hidden.split(chunk), batch.targets.split(chunk)))
    if len(chunks) == 1:
        return head_logprobs(*chunks[0]).clone()  # FSDP needs a tensor that is not a view
    return torch.cat([checkpoint(head_logprobs, *part, use_reentrant=False) for part in chunks])


def token_logprobs(
    model: Any, batch: Batch, temperature: float = 1.0, chunk: int | None = None
) -> torch.Tensor:
    """Log-probabilities [N] of the batch's completion tokens, with gradient where it is enabled.

    Masks come from lengths, never from token values, so the first EOS is trained on and nothing after it.
    """
    chunk = chunk or max(1, LOGITS_AT_ONCE // vocabulary_size(model.config))
    # Set where FSDP gathers the weights around the call, or where a bfloat16 copy computes.
    compute = getattr(model, "target_logprobs", functools.partial(target_logprobs, model))
    return compute(batch, temperature, chunk).index_select(0, batch.expand)


@torch.no_grad()
def completion_logprobs(
    model: Any, rows: list[dict], temperature: float = 1.0, micro_batch_tokens: int = 16384
) -> Sequence[torch.Tensor]:
    """Tensors [T], one per row: the log-probabilities of its completion_ids. The processes share the work."""
    if not rows:
        return []
    device = model.device
    lengths = [len(row["completion_ids"]) for row in rows]
    together = torch.zeros(sum(lengths), device=device)
    result = together.split(lengths)
    for trees in own_micro_batches(model, rows, micro_batch_tokens):
        batch = make_batch(rows, trees, device)
        logprobs = token_logprobs(model, batch, temperature)
        for i, row_logprobs in zip(batch.rows, logprobs.split([lengths[i] for i in batch.rows] or 1)):
            result[i].copy_(row_logprobs)
    if processes.count() > 1:  # each number comes from one process, others add 0: the same bits everywhere
        dist.all_reduce(together)
    return result
