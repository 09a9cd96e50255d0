"""Checks at the start of a run: the tokenizer loses nothing, our log-probabilities are the model's own."""

import json
import re
import sys
from typing import Any, NoReturn

import torch

from lib import processes
from lib.cli import cause, fail
from lib.decode import sample_batch
from lib.logprobs import make_batch, token_logprobs
from lib.model import position_limit, vocabulary_size

PROOF = "\n  apply h1\n  exact h1"
WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size", "index_topk")
# How far a log-probability may be off: in float32 the worst (1e-5 as a rule), in bfloat16 and float16 the
# mean, since rounding alone gives 0.002 (the embedded prover) to 0.03 (24 random layers).
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1


def check_prompts(tokenizer: Any, problems: list[dict], texts: list[str], prompts: list[list[int]]) -> None:
    """Ends the program unless the token ids of the prompts, and of one proof, decode to their text."""
    special = set(tokenizer.all_special_ids)

    def decoded(ids):
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    for problem, text, ids in zip(problems, texts, prompts):
        name = f"problem {problem['id']}"
        if ids[-1] == tokenizer.eos_token_id:
            fault = f"the tokenizer ends the prompt with {decoded(ids[-1:])}, after which nothing follows"
            fail(f"{name}: {fault}; take it out of post_processor in the model's tokenizer.json")
        unknown = ids.count(tokenizer.unk_token_id)
        if unknown > len(ids) / 5:  # a name or two may be
            fault = f"the model does not know {unknown} of the {len(ids)} tokens of its prompt"
            mend = "give a --model trained on such problems (the embedded one knows propositional logic only)"
            fail(f"{name}: {fault} ({decoded(ids)[:200]}); {mend}")
        again = decoded([i for i in ids if i not in special or i == tokenizer.unk_token_id])
        known = again.strip(" ").split(tokenizer.unk_token) if unknown else [again.strip(" ")]
        if not re.fullmatch(".*".join(map(re.escape, known)), text.strip(" "), re.DOTALL):
            fault = f"the tokenizer turns the prompt {text[:80]!r} into {again[:80]!r}"
            fail(f"{name}: {fault}; give the tokenizer.json of this model")
    if not prompts:
        return
    settings = json.loads(getattr(tokenizer, "files", {}).get("tokenizer_config.json", "{}"))
    if settings.get("add_bos_token") and prompts[0][0] != tokenizer.bos_token_id:
        wish = f"tokenizer_config.json wants {tokenizer.bos_token} before every text"
        decides = "tokenizer.json, which decides, has a post_processor that adds none"
        print(f"warning: {wish}, but {decides}", file=sys.stderr)
    ids = tokenizer(PROOF, add_special_tokens=False).input_ids
    again = decoded(prompts[0] + ids)[len(decoded(prompts[0])) :]
    if again != PROOF:
        fail(f"the tokenizer turns the proof {PROOF!r} into {again!r}; give the tokenizer.json of this model")


def two_rows(model: Any, longest: int | None) -> list[dict]:
    """Two random completions of one prompt, of 16 and 12 tokens, the first 4 the same: longer than any window
    of the model, or as long as the longest text to come, if known."""
    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in WINDOWS]
    window = max((size for size in windows if isinstance(size, int)), default=0)
    length = max(18, min(longest or window + 40, window + 40))
    generator = torch.Generator().manual_seed(0)
    # Below 1000, because placeholders of images and the like come last.
    high = min(vocabulary_size(config), 1000)
    ids = torch.randint(3, high, (length + 8,), generator=generator).tolist()
    prompt, first, second = ids[: length - 16], ids[length - 16 : length], ids[length:]
    return [{"prompt_ids": prompt, "completion_ids": ids} for ids in (first, first[:4] + second)]


@torch.no_grad()
def plain_logprobs(model: Any, rows: list[dict]) -> torch.Tensor:
    """Log-probabilities [N] of the rows' completions by the model's forward alone: a row at a time, eager
    attention, no cache, no mask."""
    attention, logprobs = model.config._attn_implementation, []
    model.set_attn_implementation("eager")
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]], device=model.device)  # [1, L]
        start = len(row["prompt_ids"])
        logits = model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1]
        logprobs.append(logits.float().log_softmax(-1).gather(1, ids[0, start:, None])[:, 0])
    model.set_attn_implementation(attention)
    return torch.cat(logprobs)


def trained_logprobs(model: Any, rows: list[dict]) -> torch.Tensor:
    trees = [list(range(len(rows)))] if model.takes_trees else [[i] for i in range(len(rows))]
    with torch.no_grad():
        return token_logprobs(model, make_batch(rows, trees, model.device))


def differ(model: Any, found: torch.Tensor, expected: torch.Tensor, dtype: str = "float32") -> bool:
    gap = (found - expected).abs()
    half = dtype != "float32" or next(model.parameters()).dtype != torch.float32
    return not (gap.mean() <= HALF_TOLERANCE if half else gap.max() <= TOLERANCE)  # NaN differs


def check_logprobs(model: Any, longest: int | None, dtype: str = "float32") -> None:
    """Ends the program unless the trainer's log-probabilities are those of the model's plain forward.

    Prefix trees are tried first. Where they do not work (recurrent layers, no position_ids argument), plain
    rows are used from then on. longest: tokens of the longest prompt and completion to come.
    dtype: what FSDP computes in."""
    check_length(model, longest)
    rows = two_rows(model, longest)
    try:
        expected = plain_logprobs(model, rows)
    except Exception as error:
        refuse(model, f"needs more inputs than token ids ({cause(error)})")
    if not expected.isfinite().all():
        return  # a broken model, which the sampler names and the update skips
    for model.takes_trees in (True, False):
        try:
            if not differ(model, trained_logprobs(model, rows), expected, dtype):
                return
            said = "they differ"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of many types: masks or positions that it does not support
            said = cause(error)
    refuse(model, f"gives different log-probabilities in batches than alone ({said})")


def check_sampler(model: Any, longest: int | None) -> None:
    """Ends the program unless the torch sampler's log-probabilities are those of the model's plain forward.

    Two samples of 8 tokens from two prompts: one is longer than any window, the other grows past it."""
    check_length(model, longest)
    row = two_rows(model, longest)[0]
    prompts = [row["prompt_ids"], row["prompt_ids"][: max(1, len(row["prompt_ids"]) - 28)]]
    draws = torch.rand(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double).to(model.device)
    try:
        found = sample_batch(model, prompts, draws, 1.0, set(), bool)
        rows = [{"prompt_ids": prompts[k // 2], "completion_ids": ids} for k, (ids, _, _) in enumerate(found)]
        expected = plain_logprobs(model, rows)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of many types: caches that have no rows to reorder, or none at all
        why = f"cannot be sampled from by the torch engine ({cause(error)})"
        refuse(model, f"{why}; --engine vllm may support it")
    if not expected.isfinite().all():
        return  # see check_logprobs
    sampled = torch.tensor([logprobs for _, logprobs, _ in found], device=expected.device).flatten()
    if differ(model, sampled, expected):
        why = "gives different log-probabilities in the torch engine than alone"
        refuse(model, f"{why}; --engine vllm may support it")


def check_length(model: Any, longest: int | None) -> None:
    limit = position_limit(model.config)
    if limit and longest and longest > limit:
        refuse(model, f"takes at most {limit} tokens, and the longest text has {longest}; leave it out")


def refuse(model: Any, why: str) -> NoReturn:
    """Ends the program: every process calls it, the main one prints why."""
    if not processes.is_main():
        sys.exit(2)
    fail(f"this {model.config.model_type} model ({type(model).__name__}) {why}")


def check_tokens(rows: list[dict], source: str, model: Any, name: str) -> int:
    """The tokens of the longest row; ends the program if the model does not know them all."""
    texts = [row["prompt_ids"] + row["completion_ids"] for row in rows]
    largest = max(map(max, texts), default=0)
    if largest >= vocabulary_size(model.config):
        fail(f"{source}: the token {largest} is unknown to {name}; give the model that sampled them")
    return max(map(len, texts), default=0)
