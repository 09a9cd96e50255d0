"""Samples G proofs for each problem from a causal language model, with the log-probability of every token.

    python sample.py --model runs/base --problems problems.jsonl --num-samples 32 --out samples.jsonl
    python sample.py --model deepseek-ai/DeepSeek-Prover-V1.5-SFT --problems minif2f.jsonl --num-samples 32 --out samples.jsonl \\
        --template deepseek --device cuda --dtype bfloat16

Reads: problems, in one of three forms: JSONL with id, statement (it ends with ":= by") and, if wanted, header and informal;
       JSONL as DeepSeek's miniF2F (name, formal_statement, informal_prefix, header); the paper's release's parquet.
Adds:  sample          index in the group, 0 .. G-1; a problem's rows follow each other
       prompt_ids      the token ids of the prompt
       completion      the text after the prompt: statement + completion is the whole theorem
       completion_ids  its token ids, the end-of-text token included
       logprobs        log-probability of each of these ids, at the temperature they were sampled with
       finish_reason   "stop" (end-of-text, or the closing fence of the deepseek template) or "length"
       model, template
A stopped run is continued by the same command. The same seed gives the same samples whatever the batch size, but for a
draw within float noise of the border between two tokens.
"""
import argparse
import copy
import hashlib
import json
import os
import re
import sys

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.cache_utils import DynamicLayer

from advantage import at_least, fail, read_jsonl

DEEPSEEK_HEADER = """import Mathlib
import Aesop

set_option maxHeartbeats 400000

open BigOperators Real Nat Topology Rat"""


# Problems and prompts.

def read_problems(path, limit=None):
    """The problems of a JSONL or parquet file: dicts with id, statement and, where the file has them, header, informal."""
    problems, seen = [], {}
    rows, unit = (read_parquet(path), "row") if str(path).endswith(".parquet") else (read_jsonl(path), "line")
    for number, row in enumerate(rows, 1):
        where = f"{path}, {unit} {number}"
        if "formal_statement" in row:  # DeepSeek's miniF2F
            row = {"id": row.get("name"), "statement": row["formal_statement"], "header": row.get("header"),
                   "informal": row.get("informal_prefix")}
        elif "theorem_statement" in row:  # the release; its src_context imports a module that only the release has
            row = {"id": row.get("theorem_full_name"), "statement": row["theorem_statement"], "header": DEEPSEEK_HEADER,
                   "informal": row.get("informal_statement")}
        row = {key: value for key, value in row.items() if value or key not in ("header", "informal")}
        for key in ("id", "statement", "header", "informal"):
            if not isinstance(row.get(key, "" if key in ("header", "informal") else None), str):
                fail(f"{where}: {key} is missing or not text; give id and statement (or name and formal_statement) as text")
        if row["id"] in seen:
            fail(f"{where}: the id {row['id']!r} is already that of {unit} {seen[row['id']]}; give every problem an id of its own")
        seen[row["id"]] = number
        statement, found = re.subn(r"\s*:=\s*by(\s+sorry)?\s*\Z", " := by", row["statement"])
        if not found:
            fail(f"{where}: the statement does not end with ':= by'; end it there, the proof is the model's task")
        problems.append(dict(row, statement=statement))
    if not problems:
        fail(f"{path} has no problems; give at least one")
    return problems[:limit]


def read_parquet(path):
    """The rows of the release's parquet files."""
    try:
        import pyarrow.parquet
    except ImportError:
        fail(f"reading {path} needs pyarrow; run: pip install pyarrow")
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        fail(f"cannot read {path} ({str(error).splitlines()[0]}); give a parquet file")


def build_prompt(problem, template):
    """The text that the model continues; it ends with ":= by", the completion brings the line break.
    "bare" is the statement alone, "deepseek" what DeepSeek-Prover-V1.5 knows as its prompt without chain of thought."""
    if template == "bare":
        return problem["statement"]
    header, informal = problem.get("header", DEEPSEEK_HEADER).strip(), problem.get("informal", "").strip()
    if informal and not informal.startswith("/-"):
        informal = f"/-- {informal} -/"
    theorem = f"{informal}\n{problem['statement']}" if informal else problem["statement"]
    return f"Complete the following Lean 4 code:\n\n```lean4\n{header}\n\n{theorem}"


# The sampler. Another engine would take the place of sample_rows and return the same rows.

def load_model(path, dtype="float32", device="cpu"):
    """(model in eval mode, tokenizer) of a local folder, or of the Hugging Face hub where there is no such folder."""
    local = os.path.exists(path)
    try:
        options = dict(local_files_only=local, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        model, report = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), output_loading_info=True, **options)
        model = model.to(device).eval()
    except Exception as error:  # transformers raises a dozen kinds for one mistake: this is not a model
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        fail(f"cannot load the model {path} on {device} ({reason}); give a model folder"
             f"{'' if local else ' that exists or a name on the Hugging Face hub'}")
    if report["missing_keys"]:
        fail(f"the weights in {path} lack {sorted(report['missing_keys'])[0]}, which would be random; save the whole model")
    return model, tokenizer


class RoomyLayer(DynamicLayer):
    """A cache layer with room for all tokens to come. DynamicLayer copies the whole past for each new token."""

    def make_room(self, copies, length):
        """Every row of the prefilled [P, H, L, D] becomes `copies` rows of a [P * copies, H, length, D]."""
        self.room = []
        for past in (self.keys, self.values):
            room = past.new_empty(len(past) * copies, past.shape[1], length, past.shape[3])
            room[:, :, :past.shape[2]] = past.repeat_interleave(copies, dim=0)
            self.room.append(room)
        self.show(self.keys.shape[2])

    def show(self, length):
        self.keys, self.values = (room[:, :, :length] for room in self.room)

    def update(self, key_states, value_states, *args, **kwargs):
        if not hasattr(self, "room"):  # the prefill
            return super().update(key_states, value_states, *args, **kwargs)
        past, length = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        self.room[0][:, :, past:length] = key_states
        self.room[1][:, :, past:length] = value_states
        self.show(length)
        return self.keys, self.values

    def batch_select_indices(self, indices):
        """Row k becomes what row indices[k] was; only rows that change place are copied."""
        length, moved = self.keys.shape[2], (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
        for room in self.room:
            room[moved, :, :length] = room[indices[moved], :, :length]
        self.room = [room[:len(indices)] for room in self.room]
        self.show(length)


def uniforms(seed, problem_id, sample, count):
    """Uniform draws [count] that depend on nothing but these names, one for each token of one completion."""
    digest = hashlib.sha256(json.dumps([str(seed), problem_id, sample]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(count)


def prefill(model, prompts):
    """One forward pass over left-padded prompts. Returns logits of the next token [P, V], the cache and the mask [P, L]."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)  # [P, L]
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    logits = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), past_key_values=cache,
                   use_cache=True, logits_to_keep=1).logits[:, -1]
    return logits, cache, mask


def decode(model, logits, cache, mask, draws, temperature, is_eos, closes_fence, bar):
    """Continues every row until its end-of-text, its closing fence or the last draw; a finished row leaves the batch.

    logits [B, V], mask [B, L] and cache are those of the prompts, draws [B, T] the uniforms, is_eos [V] a table.
    Returns for each of the B sequences (ids, logprobs, finish_reason).
    """
    B, T = draws.shape
    tokens = torch.zeros(B, T, dtype=torch.long, device=draws.device)
    chosen = torch.zeros(B, T, device=draws.device)
    lengths = torch.full([B], T, device=draws.device)
    stopped = torch.zeros(B, dtype=torch.bool, device=draws.device)
    row = torch.arange(B, device=draws.device)  # which of the B sequences each row of the shrinking batch is
    prompt_length, position = mask.shape[1], mask.sum(1)  # position of the next token, padding not counted
    mask = torch.cat([mask, mask.new_ones(B, T)], dim=1)
    for t in range(T):
        logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)  # [B, V], B shrinks
        cdf = logprobs.double().exp().cumsum(dim=-1)
        draw = draws[row, t][:, None] * cdf[:, -1:]  # below the last entry, and the first entry above it has probability > 0
        token = torch.searchsorted(cdf, draw, right=True).clamp(max=cdf.shape[1] - 1)  # [B, 1]
        tokens[row, t] = token[:, 0]
        chosen[row, t] = logprobs.gather(1, token)[:, 0]
        done = is_eos[token[:, 0]] | closes_fence(token[:, 0], row, tokens[:, :t + 1])
        if done.any():
            lengths[row[done]], stopped[row[done]] = t + 1, True
            live = (~done).nonzero()[:, 0]
            bar.update(len(done) - len(live))
            keep = torch.arange(len(live), device=live.device)  # the last live rows move to the places of finished ones
            keep[done[:len(live)]] = live[live >= len(live)]
            if not len(keep):
                break
            row, token, mask, position = row[keep], token[keep], mask[keep], position[keep]
            cache.batch_select_indices(keep)
        if t + 1 < T:
            logits = model(input_ids=token, attention_mask=mask[:, :prompt_length + t + 1], position_ids=position[:, None],
                           past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            position = position + 1
    bar.update(len(row) if not done.all() else 0)
    return [(ids[:n], lps[:n], "stop" if stop else "length")
            for ids, lps, n, stop in zip(tokens.tolist(), chosen.tolist(), lengths.tolist(), stopped.tolist())]


def text_of(tokenizer, prompt_ids, ids):
    """The exact text of ids after the prompt: decoded behind the prompt's last token, as some tokenizers drop a leading space."""
    options = dict(skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return tokenizer.decode(prompt_ids[-1:] + ids, **options)[len(tokenizer.decode(prompt_ids[-1:], **options)):]


def plan_batches(lengths, num_samples, max_new_tokens, batch_tokens):
    """Splits prompts, in order, into batches (first, last + 1, samples at a time) of at most batch_tokens tokens of cache."""
    batches, first = [], 0
    while first < len(lengths):
        last = first + 1
        while last < len(lengths) and (last + 1 - first) * num_samples * (max(lengths[first:last + 1]) + max_new_tokens) <= batch_tokens:
            last += 1
        fits = batch_tokens // ((last - first) * (max(lengths[first:last]) + max_new_tokens))
        batches.append((first, last, max(1, min(num_samples, fits))))
        first = last
    return batches


def sample_rows(model, tokenizer, problems, num_samples, *, temperature=1.0, max_new_tokens=512, template="bare", seed=0,
                batch_tokens=131072, progress=True, model_name="", skip=0):
    """A generator of rows, in the order of the problems, a group at a time; the first `skip` groups are left out.
    No top-p and no top-k: what samples is the policy that is trained."""
    prompts = [tokenizer(build_prompt(problem, template)).input_ids for problem in problems]
    limit = getattr(model.config, "max_position_embeddings", None)
    for problem, ids in zip(problems, prompts):
        if limit and len(ids) + max_new_tokens > limit:
            fail(f"problem {problem['id']}: its prompt of {len(ids)} tokens and {max_new_tokens} new ones pass the model's limit"
                 f" of {limit}; lower --max-new-tokens or leave the problem out")
    eos = model.generation_config.eos_token_id
    eos = set(eos if isinstance(eos, list) else [eos]) | {tokenizer.eos_token_id}
    vocabulary = range(model.get_output_embeddings().weight.shape[0])
    is_eos = torch.tensor([k in eos for k in vocabulary], device=model.device)  # [V]
    batches = plan_batches([len(ids) for ids in prompts], num_samples, max_new_tokens, batch_tokens)

    def closes_fence(token, row, tokens):
        """[B] whether a sequence ends in the fence that closes the code."""
        closed = torch.zeros_like(token, dtype=torch.bool)
        if template == "deepseek":
            for k in backtick[token].nonzero()[:, 0].tolist():  # text is looked at only where a backtick has come
                closed[k] = "```" in tokenizer.decode(tokens[row[k]].tolist())
        return closed

    if template == "deepseek":
        pieces = tokenizer.convert_ids_to_tokens(list(range(min(len(vocabulary), len(tokenizer)))))
        backtick = torch.zeros(len(vocabulary), dtype=torch.bool)
        backtick[:len(pieces)] = torch.tensor(["`" in (piece or "") for piece in pieces])
        backtick = backtick.to(model.device)

    def generate():
        bar = tqdm(total=len(problems) * num_samples, unit="sample", disable=not progress)
        for first, last, at_once in batches:
            if last <= skip:  # batches stay what they were before the interruption, so that float noise does too
                bar.update((last - first) * num_samples)
                continue
            groups = [[] for _ in range(first, last)]
            with torch.inference_mode():
                logits, prefilled, mask = prefill(model, prompts[first:last])
                for start in range(0, num_samples, at_once):
                    copies = min(at_once, num_samples - start)
                    cache = copy.deepcopy(prefilled)
                    for layer in cache.layers:
                        if isinstance(layer, RoomyLayer):
                            layer.make_room(copies, mask.shape[1] + max_new_tokens)
                        else:
                            layer.batch_repeat_interleave(copies)
                    draws = np.stack([uniforms(seed, problem["id"], start + k, max_new_tokens)
                                      for problem in problems[first:last] for k in range(copies)])
                    found = decode(model, logits.repeat_interleave(copies, 0), cache, mask.repeat_interleave(copies, 0),
                                   torch.from_numpy(draws).to(model.device), temperature, is_eos, closes_fence, bar)
                    for k, group in enumerate(groups):
                        group += found[k * copies:(k + 1) * copies]
            for problem, prompt_ids, group in list(zip(problems[first:last], prompts[first:last], groups))[max(0, skip - first):]:
                for sample, (ids, logprobs, reason) in enumerate(group):
                    if not np.isfinite(logprobs).all():
                        fail(f"problem {problem['id']}: the model's logits are not finite; try --dtype float32")
                    yield dict(problem, sample=sample, prompt_ids=prompt_ids,
                               completion=text_of(tokenizer, prompt_ids, ids[:-1] if ids[-1] in eos else ids),
                               completion_ids=ids, logprobs=[round(x, 6) for x in logprobs], finish_reason=reason,
                               model=model_name, template=template)
        bar.close()

    return generate()


# The command.

def resume(part, num_samples):
    """Cuts a half-written line or group off the part file of an interrupted run; the number of groups that are left."""
    if not os.path.exists(part):
        return 0
    with open(part, "rb+") as file:
        lines = [line for line in file if line.endswith(b"\n")]
        groups = len(lines) // num_samples
        file.truncate(sum(map(len, lines[:groups * num_samples])))
    return groups


def settings_hash(args, problems):
    """Names the part file: a run is continued only where nothing differs that its rows depend on."""
    settings = {key: value for key, value in vars(args).items() if key not in ("problems", "limit", "out")}
    files = [os.stat(os.path.join(args.model, name)) for name in sorted(os.listdir(args.model))] if os.path.isdir(args.model) else []
    text = json.dumps([settings, problems, [(file.st_size, file.st_mtime_ns) for file in files]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def main():
    parser = argparse.ArgumentParser(description="Samples proofs with the log-probability of every token.")
    parser.error = fail
    parser.add_argument("--model", required=True, help="a model folder or a name on the Hugging Face hub")
    parser.add_argument("--problems", required=True, help="problems: JSONL, or the release's parquet")
    parser.add_argument("--num-samples", type=at_least(int, 1), required=True, help="G, completions for each problem")
    parser.add_argument("--out", required=True, help="JSONL to write; until it is complete it is called OUT.part-HASH")
    parser.add_argument("--temperature", type=at_least(float, 0, exclusive=True), default=1.0, help="divides the logits")
    parser.add_argument("--max-new-tokens", type=at_least(int, 1), default=512, help="tokens of a completion at most")
    parser.add_argument("--template", choices=["bare", "deepseek"], default="bare", help="the statement alone, or DeepSeek-Prover-V1.5's prompt")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same samples")
    parser.add_argument("--limit", type=at_least(int, 1), help="only the first N problems")
    parser.add_argument("--batch-tokens", type=at_least(int, 1), default=131072, help="cache positions a batch may use: lower it if memory runs out")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the model's weights")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    args = parser.parse_args()

    problems = read_problems(args.problems, args.limit)
    if os.path.isdir(args.out) or not os.path.isdir(os.path.dirname(args.out) or "."):
        fail(f"cannot write {args.out}: it is a folder or in none that exists; choose another --out")
    model, tokenizer = load_model(args.model, args.dtype, args.device)
    part = f"{args.out}.part-{settings_hash(args, problems)}"
    try:
        done = resume(part, args.num_samples)
        rows = sample_rows(model, tokenizer, problems, args.num_samples, temperature=args.temperature,
                           max_new_tokens=args.max_new_tokens, template=args.template, seed=args.seed,
                           batch_tokens=args.batch_tokens, model_name=args.model, skip=done)
        with open(part, "a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                if row["sample"] == args.num_samples - 1:
                    file.flush()
        os.replace(part, args.out)
    except OSError as error:
        fail(f"cannot write {args.out} ({error.strerror}); choose another --out")
    except torch.OutOfMemoryError:
        fail(f"{args.device} has too little memory for this batch; lower --batch-tokens ({args.batch_tokens})")
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    print(f"{len(problems) * args.num_samples} samples of {len(problems)} problems in {args.out}")


if __name__ == "__main__":
    main()
