"""The torch sampler: samples of a prompt share a row of the batch until they part."""

import copy
from typing import Any

import torch
from tqdm import tqdm
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A cache layer with room [B, heads, L + T, head size] for all T tokens to come: DynamicLayer copies the past for each."""

    room = None

    def make_room(self, rows, length):
        """Room for `length` tokens of that many rows, of which the prefilled ones are the first."""
        prefilled = self.keys, self.values
        self.room = [past.new_empty(rows, past.shape[1], length, past.shape[3]) for past in prefilled]
        self.keys = self.keys[:, :, :0]
        self.update(*prefilled)

    def update(self, key_states, value_states, *args, **kwargs):
        if self.room is None:  # the prefill itself
            return super().update(key_states, value_states, *args, **kwargs)
        past, length = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        for room, new in zip(self.room, (key_states, value_states)):
            room[: len(new), :, past:length] = new
        self.keys, self.values = (room[: len(key_states), :, :length] for room in self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices):
        """Row k becomes what row indices[k] was; only rows that change are copied."""
        rows, length = len(indices), self.keys.shape[2]
        moved = (indices != torch.arange(rows, device=indices.device)).nonzero()[:, 0]
        for room in self.room if len(moved) else []:
            room[moved, :, :length] = room[indices[moved], :, :length]
        self.keys, self.values = (room[:rows, :, :length] for room in self.room)


def distinct(row: torch.Tensor, token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples that stood at `row` [S] of the batch drew `token` [S]. Returns, of the R rows that they make, the former row [R] and
    the token [R], and each sample's row [S]: rows 0, 0, 1 that drew 5, 7, 5 make rows that were 0, 1, 0 and go on with 5, 5, 7, and
    stand at 0, 2, 1. One continuation of a row stays at its place, if the new batch still has that, so that little is copied."""
    vocabulary = token.max() + 1
    pairs, row = torch.unique(row * vocabulary + token, return_inverse=True)  # sorted
    former, token, place = (
        pairs // vocabulary,
        pairs % vocabulary,
        torch.arange(len(pairs), device=row.device),
    )
    stays = former < len(pairs)
    stays[1:] &= former[1:] != former[:-1]
    free = torch.ones_like(stays)
    free[former[stays]] = False
    order = torch.empty_like(place)  # the pair of each row
    order[former[stays]], order[free] = place[stays], place[~stays]
    return former[order], token[order], order.argsort()[row]


def prefill(model: Any, prompts: list[list[int]]) -> tuple[torch.Tensor, Any, torch.Tensor]:
    """One pass over P left-padded prompts: the next token's logits [P, V], the cache, the attention mask [P, L]."""
    L = max(map(len, prompts))
    ids = torch.tensor([[0] * (L - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor(
        [[0] * (L - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device
    )
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return logits, cache, mask


def decode(
    model: Any,
    tokenizer: Any,
    prefilled: tuple,
    copies: int,
    draws: torch.Tensor,
    temperature: float,
    eos_ids: torch.Tensor,
    backtick_ids: torch.Tensor,
    bar: tqdm,
) -> list[tuple[list[int], list[float], str]]:
    """`copies` completions of each prompt, each until a token of eos_ids, a closing fence or its last draw (draws [B, T]).
    Samples of a prompt are one row of the model's batch until they part. Returns (ids, logprobs, finish_reason) for each of the B."""
    (logits, _, mask), cache = prefilled, copy.deepcopy(prefilled[1])  # [R, V], [R, L]
    (B, T), (R, L) = draws.shape, mask.shape
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer):
            layer.make_room(B, L + T)
    position = mask.sum(1)  # [R] of the next token, padding not counted
    mask = torch.cat([mask, mask.new_ones(R, T)], dim=1)
    tokens, chosen = torch.zeros_like(draws, dtype=torch.long), torch.zeros_like(draws, dtype=torch.float)
    live = torch.arange(B, device=mask.device)  # [S] samples that go on, prompt by prompt
    row, lengths = (
        live // copies,
        torch.zeros_like(live),
    )  # [S] where each stands in the batch, at first at its prompt; [B], 0 where nothing stops it
    for t in range(T):
        logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)  # [R, V]
        cdf = logprobs.double().exp().cumsum(dim=-1)[row]  # [S, V]
        draw = (
            draws[live, t, None] * cdf[:, -1:]
        )  # [S, 1], below the last entry, so that an entry above it exists
        token = torch.searchsorted(cdf, draw, right=True)[:, 0].clamp(
            max=cdf.shape[1] - 1
        )  # [S]; the clamp is for NaN
        tokens[live, t], chosen[live, t] = token, logprobs[row, token]
        done = torch.isin(token, eos_ids)
        if len(backtick_ids):
            for k in (
                torch.isin(token, backtick_ids).nonzero()[:, 0].tolist()
            ):  # few: text is read only for these
                done[k] |= "```" in tokenizer.decode(tokens[live[k], : t + 1].tolist())
        lengths[live[done]] = t + 1
        bar.update(done.sum().item())
        live, row, token = live[~done], row[~done], token[~done]
        if not len(live) or t == T - 1:
            break
        former, token, row = distinct(row, token)
        cache.batch_select_indices(former)
        mask, position = mask[former], position[former] + (t > 0)  # at first it is the new token's already
        logits = model(
            input_ids=token[:, None],
            attention_mask=mask[:, : L + t + 1],
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
    bar.update(len(live))
    return [
        (ids[: n or T], logprobs[: n or T], "stop" if n else "length")
        for ids, logprobs, n in zip(tokens.tolist(), chosen.tolist(), lengths.tolist())
    ]
