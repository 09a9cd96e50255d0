"""Samples G proofs for each problem from a causal language model, with the log-probability of every token.

    python sample.py --model runs/base --problems problems.jsonl --num-samples 32 --out samples.jsonl
    python sample.py --model deepseek-ai/DeepSeek-Prover-V1.5-SFT --problems minif2f-test.jsonl --num-samples 32 \\
        --out samples.jsonl --template deepseek --device cuda --dtype bfloat16
    python sample.py ... --engine vllm --dtype bfloat16     # vLLM on all GPUs: real/vllm_engine.py

Reads: problems as JSONL: id, statement, which ends with ":= by", and if wanted header, informal; real/problems.py makes such
       a file of the paper's release, miniF2F or Lean Workbook.
Adds:  sample          index in the group, 0 .. G-1; the rows of a group follow each other
       prompt_ids      the token ids of the prompt
       completion      the text after the prompt's ":= by": statement + completion is the whole theorem
       completion_ids  its token ids, the end-of-text token included
       logprobs        log-probability of each of these ids, at the temperature they were sampled with
       finish_reason   "stop" (end-of-text, or the closing fence of the deepseek template) or "length"
       model, template
A run that was stopped is continued by the same command. The same seed gives the same samples whatever the batch size
(but for a draw that falls within float noise of the border between two tokens), or, with vLLM, the number of engines.
"""
import argparse
import copy
import functools
import hashlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any, cast

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # before torch: its threads wait awake for a moment only, or a busy core stalls all

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from advantage import at_least, cannot_write, cause, check_out, fail, flags, read_jsonl
from verify import HEADER

KEYS = ("id", "statement", "header", "informal")


def read_problems(path: str, limit: int | None = None) -> list[dict]:
    """The problems of a JSONL file: dicts with id, statement and, where the file has them, header, informal."""
    problems, seen, convert = [], {}, f"make problems of it: python real/problems.py {path} --out problems.jsonl"
    if str(path).endswith(".parquet"):
        fail(f"{path} is parquet, not JSONL; {convert}")
    for number, row in enumerate(read_jsonl(path), 1):
        where = f"{path}, line {number}"
        if "statement" not in row and ("formal_statement" in row or "theorem_statement" in row):
            fail(f"{where}: these are another collection's columns; {convert}")
        for key in KEYS:
            if not isinstance(row.get(key, None if key in KEYS[:2] else ""), str):
                fail(f"{where}: '{key}' is missing or not text; give id and statement as text")
        if row["id"] in seen:
            fail(f"{where}: id {row['id']!r} is that of line {seen[row['id']]} too; give every problem an id of its own")
        seen[row["id"]] = number
        statement, ends_well = re.subn(r"\s*:=\s*by(\s+sorry)?\s*\Z", " := by", row["statement"])
        if not ends_well:
            fail(f"{where}: the statement does not end in ':= by'; cut it or complete it there, the proof is the model's")
        problems.append(dict(row, statement=statement))
    if not problems:
        fail(f"{path} has no problems; give at least one")
    return problems[:limit]


def build_prompt(problem: dict, template: str) -> str:
    """The text that the model continues: the statement alone ("bare"; the line break is the completion's), or, with its
    line break, in the prompt without chain of thought that DeepSeek-Prover-V1.5 was trained on ("deepseek")."""
    if template == "bare":
        return problem["statement"]
    header, informal = problem.get("header", HEADER).strip(), problem.get("informal", "").strip()
    if informal:
        informal = informal + "\n" if informal.startswith("/-") else f"/-- {informal} -/\n"
    return f"Complete the following Lean 4 code:\n\n```lean4\n{header}\n\n{informal}{problem['statement']}\n"


def load_model(path: str, dtype: str = "float32", device: str = "cpu", weights: bool = True) -> tuple[Any, Any]:
    """(model in eval mode, tokenizer) of a local folder, or of the Hugging Face hub where nothing has that path. Without
    weights the model is only its config and generation_config: the weights are vLLM's then."""
    if os.path.isdir(path) and not os.path.exists(os.path.join(path, "config.json")):
        fail(f"{path} is no model folder: it has no config.json; give a checkpoint's folder")
    if not os.path.exists(path):
        if path.startswith((".", "/", "~")) or path.count("/") > 1 or os.path.isdir(path.partition("/")[0]):
            fail(f"there is no folder {path}; give a model folder or a model of the Hugging Face hub")
        print(f"there is no folder {path}: asking the Hugging Face hub for a model of that name", file=sys.stderr)
    options: dict[str, Any] = dict(local_files_only=os.path.exists(path), trust_remote_code=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        if not weights:
            model = SimpleNamespace(config=AutoConfig.from_pretrained(path, **options))
            try:
                model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=os.path.exists(path))
            except OSError:  # it has no such file
                model.generation_config = GenerationConfig.from_model_config(model.config)
            return model, tokenizer
        # train.py lets completions share a prompt by a mask of True and False, which another kind of attention would take for numbers
        options |= dict(dtype=getattr(torch, dtype), attn_implementation="sdpa", use_safetensors=True, output_loading_info=True)
        model, report = cast(tuple, AutoModelForCausalLM.from_pretrained(path, **options))
        model = model.to(device).eval()
    except Exception as error:  # a dozen kinds, and the user's mistake is one: no model there, or no such device
        fail(f"cannot load {path} on {device} ({cause(error)}); give a model folder or a model of the hub, and a device at hand")
    if report["missing_keys"]:  # transformers would only warn
        fail(f"{path} lacks {sorted(report['missing_keys'])[0]}, which would be random; give a complete model folder")
    return model, tokenizer


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
            room[:len(new), :, past:length] = new
        self.keys, self.values = (room[:len(key_states), :, :length] for room in self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices):
        """Row k becomes what row indices[k] was; only rows that change are copied."""
        rows, length = len(indices), self.keys.shape[2]
        moved = (indices != torch.arange(rows, device=indices.device)).nonzero()[:, 0]
        for room in self.room if len(moved) else []:
            room[moved, :, :length] = room[indices[moved], :, :length]
        self.keys, self.values = (room[:rows, :, :length] for room in self.room)


def uniforms(seed: int, problem_id: str, sample: int, count: int) -> np.ndarray:
    """Draws [count] from [0, 1), one a token, that depend on nothing but these names: not on the batch, not on the order."""
    digest = hashlib.sha256(json.dumps([str(seed), problem_id, sample]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(count)


def prefill(model: Any, prompts: list[list[int]]) -> tuple[torch.Tensor, Any, torch.Tensor]:
    """One pass over P left-padded prompts: the next token's logits [P, V], the cache, the attention mask [P, L]."""
    L = max(map(len, prompts))
    ids = torch.tensor([[0] * (L - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (L - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    logits = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), past_key_values=cache,
                   use_cache=True, logits_to_keep=1).logits[:, -1]
    return logits, cache, mask


def distinct(row: torch.Tensor, token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples that stood at `row` [S] of the batch drew `token` [S]. Returns, of the R rows that they make, the former row [R] and
    the token [R], and each sample's row [S]: rows 0, 0, 1 that drew 5, 7, 5 make rows that were 0, 1, 0 and go on with 5, 5, 7, and
    stand at 0, 2, 1. One continuation of a row stays at its place, if the new batch still has that, so that little is copied."""
    vocabulary = token.max() + 1
    pairs, row = torch.unique(row * vocabulary + token, return_inverse=True)  # sorted
    former, token, place = pairs // vocabulary, pairs % vocabulary, torch.arange(len(pairs), device=row.device)
    stays = former < len(pairs)
    stays[1:] &= former[1:] != former[:-1]
    free = torch.ones_like(stays)
    free[former[stays]] = False
    order = torch.empty_like(place)  # the pair of each row
    order[former[stays]], order[free] = place[stays], place[~stays]
    return former[order], token[order], order.argsort()[row]


def decode(model: Any, tokenizer: Any, prefilled: tuple, copies: int, draws: torch.Tensor, temperature: float, eos_ids: torch.Tensor,
           backtick_ids: torch.Tensor, bar: tqdm) -> list[tuple[list[int], list[float], str]]:
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
    row, lengths = live // copies, torch.zeros_like(live)  # [S] where each stands in the batch, at first at its prompt; [B], 0 where nothing stops it
    for t in range(T):
        logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)  # [R, V]
        cdf = logprobs.double().exp().cumsum(dim=-1)[row]  # [S, V]
        draw = draws[live, t, None] * cdf[:, -1:]  # [S, 1], below the last entry, so that an entry above it exists
        token = torch.searchsorted(cdf, draw, right=True)[:, 0].clamp(max=cdf.shape[1] - 1)  # [S]; the clamp is for NaN
        tokens[live, t], chosen[live, t] = token, logprobs[row, token]
        done = torch.isin(token, eos_ids)
        if len(backtick_ids):
            for k in torch.isin(token, backtick_ids).nonzero()[:, 0].tolist():  # few: text is read only for these
                done[k] |= "```" in tokenizer.decode(tokens[live[k], :t + 1].tolist())
        lengths[live[done]] = t + 1
        bar.update(done.sum().item())
        live, row, token = live[~done], row[~done], token[~done]
        if not len(live) or t == T - 1:
            break
        former, token, row = distinct(row, token)
        cache.batch_select_indices(former)
        mask, position = mask[former], position[former] + (t > 0)  # at first it is the new token's already
        logits = model(input_ids=token[:, None], attention_mask=mask[:, :L + t + 1], position_ids=position[:, None],
                       past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
    bar.update(len(live))
    return [(ids[:n or T], logprobs[:n or T], "stop" if n else "length")
            for ids, logprobs, n in zip(tokens.tolist(), chosen.tolist(), lengths.tolist())]


def plan_batches(lengths: list[int], num_samples: int, max_new_tokens: int, batch_tokens: int) -> list[tuple[int, int, int]]:
    """Cuts the prompts, in order, into batches (first, end, samples at a time) of at most batch_tokens places in the cache.
    Only a group that is too large on its own is sampled in several goes."""
    batches, first = [], 0
    for end in range(1, len(lengths) + 1):
        too_many = (end + 1 - first) * num_samples * (max(lengths[first:end + 1]) + max_new_tokens) > batch_tokens
        if end == len(lengths) or too_many:
            fit = batch_tokens // ((end - first) * (max(lengths[first:end]) + max_new_tokens))
            batches.append((first, end, min(num_samples, max(1, fit))))
            first = end
    return batches


def encode(model: Any, tokenizer: Any, problems: list[dict], template: str, max_new_tokens: int,
           limit: int | None = None) -> tuple[list[list[int]], set[int]]:
    """(the token ids of each problem's prompt, the ids that end a text); ends the program where a prompt is too long."""
    prompts = [tokenizer(build_prompt(problem, template)).input_ids for problem in problems]
    limit = limit or getattr(model.config, "max_position_embeddings", None)
    for problem, prompt in zip(problems, prompts):
        if not prompt or max(prompt) >= model.config.vocab_size:
            fail(f"problem {problem['id']}: the tokenizer makes no ids of it that the model knows; give the tokenizer of this model")
        if limit and len(prompt) + max_new_tokens > limit:
            fail(f"problem {problem['id']}: its {len(prompt)} tokens and {max_new_tokens} new ones pass the model's limit of"
                 f" {limit}; lower --max-new-tokens or leave the problem out")
    eos = model.generation_config.eos_token_id
    return prompts, {*(eos if isinstance(eos, list) else [eos]), tokenizer.eos_token_id} - {None}


def group_rows(problem: dict, prompt: list[int], found: Iterable[tuple], tokenizer: Any, eos: set[int], template: str,
               model_name: str) -> Iterator[dict]:
    """Yields the rows of a group; found: (completion_ids, logprobs, finish_reason) of each sample."""
    text = functools.partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    anchor = prompt[-1:]  # on their own, some tokenizers drop a completion's leading space
    for sample, (ids, logprobs, reason) in enumerate(found):
        if not np.isfinite(logprobs).all():
            fail(f"problem {problem['id']}: the model's logits are not finite; try --dtype float32 or another --temperature")
        completion = text(anchor + (ids[:-1] if ids[-1] in eos else ids))[len(text(anchor)):]
        completion = "\n" + completion if template == "deepseek" else completion  # statement + completion is Lean
        yield dict(problem, sample=sample, prompt_ids=prompt, completion=completion, completion_ids=ids,
                   logprobs=[round(x, 6) for x in logprobs], finish_reason=reason, model=model_name, template=template)


def sample_rows(model: Any, tokenizer: Any, problems: list[dict], num_samples: int, *, temperature: float = 1.0,
                max_new_tokens: int = 512, template: str = "bare", seed: int = 0, batch_tokens: int = 131072,
                progress: bool = True, model_name: str = "", skip: int = 0) -> Iterator[dict]:
    """A generator of rows, group by group in the order of the problems, without the first `skip` groups. vllm_rows in
    real/vllm_engine.py yields rows of the same kind.
    No top-p, no top-k: the policy that samples is the policy that is trained."""
    prompts, eos = encode(model, tokenizer, problems, template, max_new_tokens)
    backticks = [k for piece, k in tokenizer.get_vocab().items() if "`" in piece and template == "deepseek"]
    stops = [torch.tensor(sorted(ids), dtype=torch.long, device=model.device) for ids in (eos, backticks)]
    batches = plan_batches([len(prompt) for prompt in prompts], num_samples, max_new_tokens, batch_tokens)

    def generate():
        bar = tqdm(total=len(problems) * num_samples, initial=skip * num_samples, unit="sample", disable=not progress)
        for first, end, at_once in batches:
            if end <= skip:  # batches stay what they were in the run that is continued, and with them the float noise
                continue
            groups = [[] for _ in range(first, end)]
            with torch.inference_mode():
                prefilled = prefill(model, prompts[first:end])
                for start in range(0, num_samples, at_once):
                    copies = min(at_once, num_samples - start)
                    draws = torch.tensor(np.stack([uniforms(seed, problem["id"], start + k, max_new_tokens)
                                                   for problem in problems[first:end] for k in range(copies)]))
                    found = decode(model, tokenizer, prefilled, copies, draws.to(model.device), temperature, *stops, bar)
                    for k, group in enumerate(groups):
                        group += found[k * copies:(k + 1) * copies]
            for k in range(max(first, skip), end):
                yield from group_rows(problems[k], prompts[k], groups[k - first], tokenizer, eos, template, model_name)
        bar.close()

    return generate()


def part_file(args: argparse.Namespace, problems: list[dict]) -> tuple[str, int]:
    """(name, number of complete groups) of the rows that an interrupted run with the same settings has left behind."""
    free = ("problems", "limit", "out", "gpus", "gpu_memory_utilization")  # what may be another one in the run that continues
    settings = {key: value for key, value in vars(args).items() if key not in free}
    files = sorted(os.scandir(args.model), key=lambda file: file.name) if os.path.isdir(args.model) else []
    depends_on = json.dumps([settings, problems, [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]])
    part = f"{args.out}.part-{hashlib.sha256(depends_on.encode()).hexdigest()[:12]}"
    if not os.path.exists(part):
        return part, 0
    groups, size, whole = 0, 0, 0
    with open(part, "rb+") as file:
        for number, line in enumerate(file, 1):  # the last line may be half written, and the last group
            size += len(line)
            if number % args.num_samples == 0 and line.endswith(b"\n"):
                groups, whole = groups + 1, size
        file.truncate(whole)
    return part, groups


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the sampler's engine, which train.py has too."""
    count = at_least(int, 1)
    parser.add_argument("--engine", choices=["torch", "vllm", "auto"], default="torch",
                        help="auto: vllm where it is installed and a GPU is there")
    parser.add_argument("--gpus", type=count, help="vllm: how many GPUs sample (default: all; on a CPU processes stand for them)")
    parser.add_argument("--tensor-parallel", type=count, default=1, help="vllm: GPUs that share one engine")
    parser.add_argument("--gpu-memory-utilization", type=at_least(float, 0, exclusive=True, high=1),
                        help="vllm: share of a GPU's memory that it takes (default: vLLM's)")
    parser.add_argument("--max-model-len", type=count, help="vllm: tokens of prompt and completion (default: the model's)")


def choose_engine(args: argparse.Namespace) -> str:
    """"torch" or "vllm" for --engine; vllm is not imported, it would lay hands on the GPUs."""
    found = importlib.util.find_spec("vllm") is not None
    if args.engine == "vllm" and not found:
        fail("vllm is not installed; pip install -r requirements-gpu.txt, or pass --engine torch")
    if args.engine == "torch" and (args.gpus or args.tensor_parallel > 1 or args.gpu_memory_utilization or args.max_model_len):
        fail("--gpus, --tensor-parallel, --gpu-memory-utilization and --max-model-len are vLLM's; add --engine vllm or leave them out")
    return args.engine if args.engine != "auto" else "vllm" if found and torch.cuda.is_available() else "torch"


def main():
    parser = flags("Samples proofs with the log-probability of every token.")
    parser.add_argument("--model", required=True, help="a model folder or a name on the Hugging Face hub")
    parser.add_argument("--problems", required=True, help="JSONL; real/problems.py makes it of other collections")
    parser.add_argument("--num-samples", type=at_least(int, 1), required=True, help="G, completions for each problem")
    parser.add_argument("--out", required=True, help="JSONL to write, in place of one that is there; called OUT.part-HASH until it is complete")
    parser.add_argument("--temperature", type=at_least(float, 0, exclusive=True), default=1.0, help="divides the logits")
    parser.add_argument("--max-new-tokens", type=at_least(int, 1), default=512, help="tokens of a completion at most")
    parser.add_argument("--template", choices=["bare", "deepseek"], default="bare", help="of the prompt")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same samples")
    parser.add_argument("--limit", type=at_least(int, 1), help="only the first N problems")
    parser.add_argument("--batch-tokens", type=at_least(int, 1), default=131072, help="places in the KV cache")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the model's weights")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    add_engine_flags(parser)
    args = parser.parse_args()
    args.engine = choose_engine(args)
    problems = read_problems(args.problems, args.limit)
    check_out(args.out, args.problems)
    model, tokenizer = load_model(args.model, args.dtype, args.device, weights=args.engine == "torch")
    try:
        part, complete = part_file(args, problems)
        options = dict(temperature=args.temperature, seed=args.seed, max_new_tokens=args.max_new_tokens, template=args.template,
                       model_name=args.model, skip=complete)
        if args.engine == "vllm":
            from real import vllm_engine  # here, not above: it imports this file
            options |= dict(limit=args.max_model_len)
            encode(model, tokenizer, problems, args.template, args.max_new_tokens, args.max_model_len)  # fails before the loading
            engines = vllm_engine.start_engines(args.model, args)
            rows = vllm_engine.vllm_rows(engines, model, tokenizer, problems, args.num_samples, **options)
        else:
            rows = sample_rows(model, tokenizer, problems, args.num_samples, batch_tokens=args.batch_tokens, **options)
        with open(part, "a", encoding="utf-8") as file:
            group = ""
            for row in rows:
                group += json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
                if row["sample"] == args.num_samples - 1:  # whole groups only, so that verify.py --follow never sees a row that goes again
                    file.write(group)
                    file.flush()
                    group = ""
        os.replace(part, args.out)
    except OSError as error:
        cannot_write(args.out, error)
    except torch.OutOfMemoryError:
        fail(f"{args.device} ran out of memory; lower --batch-tokens {args.batch_tokens}, what is done so far is kept")
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    print(f"{len(problems) * args.num_samples} samples of {len(problems)} problems in {args.out}")


if __name__ == "__main__":
    main()
