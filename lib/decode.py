"""The torch sampler: decoding with a KV cache. Each draw is keyed by seed, problem, sample and token."""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

ROWS_AT_ONCE = 32  # finished rows leave the batch this many at a time, so that a GPU sees few matrix shapes

Completion = tuple[list[int], list[float], str]  # completion_ids, logprobs, finish_reason


def random_key(*names: Any) -> int:
    """A 128-bit key that depends on these names alone: not on the batch, not on the order."""
    return int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:16], "little")


def uniforms(seed: int | str, problem_id: str, sample: int, count: int) -> np.ndarray:
    """Draws [count] from [0, 1), one for each token of a completion."""
    key = random_key(str(seed), problem_id, sample)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def plan_batches(longest: int, num_samples: int, batch_tokens: int) -> tuple[int, int]:
    """(problems, samples of each) at a time, so that the KV cache holds at most batch_tokens.

    Whole groups if one fits. longest: tokens of the longest prompt and completion."""
    rows = max(1, batch_tokens // longest)
    return max(1, rows // num_samples), min(rows, num_samples)


@torch.inference_mode()
def sample_batch(
    model: Any,
    prompts: list[list[int]],
    draws: torch.Tensor,
    temperature: float,
    last_ids: set[int],
    is_complete: Callable[[list[int]], bool],
    look_every: int | None = None,
) -> list[Completion]:
    """B completions of P prompts, B / P of each; the draws [B, T] decide their tokens.

    A completion ends at a token of last_ids if is_complete(its ids), or after T tokens. No top-p, no top-k:
    the policy we sample from is the one we train. look_every: tokens between two checks for finished rows,
    each of which stalls a GPU."""
    (B, T), P, L = draws.shape, len(prompts), max(map(len, prompts))
    cache: Any = DynamicCache(config=model.config)
    padding = [[0] * (L - len(prompt)) for prompt in prompts]
    ids = torch.tensor([left + prompt for left, prompt in zip(padding, prompts)], device=model.device)
    mask = torch.tensor([left + [1] * (L - len(left)) for left in padding], device=model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # padding on the left is not counted
    rows = torch.arange(B, device=ids.device)  # [R] the completion in each row of the batch
    rows_list = list(range(B))  # the same without asking the device
    tokens = torch.zeros(B, T, dtype=torch.long, device=ids.device)
    chosen = torch.zeros(B, T, device=ids.device)  # their log-probabilities
    texts, ended, seen = [[] for _ in range(B)], set(), 0  # seen: tokens that are in the texts
    look_every = look_every or (8 if ids.is_cuda else 1)
    for t in range(T):
        logits = model(
            input_ids=ids,  # [P, L], then [R, 1]
            attention_mask=mask,  # [P, L], then [R, L + t]
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if t == 0:  # from P prompts to B rows
            copies = rows // (B // P)
            cache.reorder_cache(copies)
            logits, mask = logits[copies], mask[copies]
        logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)  # [R, V]
        cdf = logprobs.double().exp().cumsum(dim=-1)
        draw = draws[rows, t, None] * cdf[:, -1:]  # [R, 1], below the last entry of its cdf
        token = torch.searchsorted(cdf, draw, right=True).clamp(max=cdf.shape[1] - 1)  # the clamp is for NaN
        tokens[rows, t], chosen[rows, t] = token[:, 0], logprobs.gather(1, token)[:, 0]
        if t + 1 == min(seen + look_every, T):
            for k, drawn in zip(rows_list, tokens[rows, seen : t + 1].tolist()):
                if k not in ended and append_until_end(texts[k], drawn, last_ids, is_complete):
                    ended.add(k)
            seen = t + 1
            if len(ended) == B:
                break
            finished = [r for r, k in enumerate(rows_list) if k in ended]
            leaving = set(finished[: len(finished) // ROWS_AT_ONCE * ROWS_AT_ONCE])
            if leaving:
                stay_list = [r for r in range(len(rows_list)) if r not in leaving]
                stay = torch.tensor(stay_list, device=ids.device)
                rows_list = [rows_list[r] for r in stay_list]
                cache.reorder_cache(stay)
                rows, token, mask = rows[stay], token[stay], mask[stay]
        ids, mask = token, torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = mask.sum(1, keepdim=True) - 1
    logprobs_lists = chosen.tolist()
    return [
        (text, logprobs_lists[k][: len(text)], "stop" if k in ended else "length")
        for k, text in enumerate(texts)
    ]


def append_until_end(
    text: list[int], drawn: list[int], last_ids: set[int], is_complete: Callable[[list[int]], bool]
) -> bool:
    """Appends the drawn ids to a completion, up to its end. Returns whether it has ended."""
    for token in drawn:
        text.append(token)
        if token in last_ids and is_complete(text):
            return True
    return False


def torch_completions(
    model: Any,
    tokenizer: Any,
    problems: list[dict],
    prompts: list[list[int]],
    num_samples: int,
    args: argparse.Namespace,
    seed: int | str,
    eos: set[int],
    skip: int,
) -> Iterator[list[Completion]]:
    """Yields the completions of each problem, without the first `skip` problems."""
    fenced = args.template == "deepseek"
    backticks = {token for piece, token in tokenizer.get_vocab().items() if "`" in piece} if fenced else set()

    def is_complete(ids):
        return ids[-1] in eos or (fenced and "```" in tokenizer.decode(ids))

    longest = max(map(len, prompts)) + args.max_new_tokens
    size, copies = plan_batches(longest, num_samples, args.batch_tokens)
    for first in range(skip // size * size, len(problems), size):  # the batches of an uninterrupted run
        batch = range(first, min(first + size, len(problems)))
        groups = [[] for _ in batch]
        for start in range(0, num_samples, copies):
            samples = range(start, min(start + copies, num_samples))
            draws = [
                uniforms(seed, problems[i]["id"], k, args.max_new_tokens) for i in batch for k in samples
            ]
            draws = torch.tensor(np.stack(draws), device=model.device)
            own = [prompts[i] for i in batch]
            found = sample_batch(model, own, draws, args.temperature, eos | backticks, is_complete)
            for k, group in enumerate(groups):
                group += found[k * len(samples) : (k + 1) * len(samples)]
        yield from groups[max(0, skip - first) :]
