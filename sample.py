"""Samples G proofs for each problem from a causal language model, with the log-probability of every token.

    python sample.py --model runs/base --problems problems.jsonl --num-samples 32 --out samples.jsonl
    python sample.py --model deepseek-ai/DeepSeek-Prover-V1.5-SFT --problems minif2f-test.jsonl --num-samples 32 \\
        --out samples.jsonl --template deepseek --device cuda --dtype bfloat16
    python sample.py ... --engine vllm --dtype bfloat16     # vLLM on all GPUs: lib/vllm_engine.py

Reads: problems as JSONL: id, statement, which ends with ":= by", and if wanted header, informal; tools/problems.py makes such
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
import functools
import hashlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

os.environ.setdefault(
    "GOMP_SPINCOUNT", "3000"
)  # before torch: its threads wait awake for a moment only, or a busy core stalls all

import numpy as np
import torch
from tqdm import tqdm

from lib.cli import fail, flags, number
from lib.decode import decode, prefill
from lib.jsonl import cannot_write, check_out, check_row, numbered_rows, open_jsonl
from lib.lean import HEADER
from lib.model import load_model

KEYS = ("id", "statement", "header", "informal")


def read_problems(path: str, limit: int | None = None) -> list[dict]:
    """The problems of a JSONL file: dicts with id, statement and, where the file has them, header, informal."""
    problems, seen, convert = (
        [],
        {},
        f"make problems of it: python tools/problems.py {path} --out problems.jsonl",
    )
    if str(path).endswith(".parquet"):
        fail(f"{path} is parquet, not JSONL; {convert}")
    for where, row in numbered_rows(path):
        if "statement" not in row and ("formal_statement" in row or "theorem_statement" in row):
            fail(f"{where}: these are another collection's columns; {convert}")
        check_row(where, row, KEYS[:2], KEYS[2:])
        if row["id"] in seen:
            fail(f"{where}: {seen[row['id']]} has the id {row['id']!r} too; give every problem its own id")
        seen[row["id"]] = where
        statement, ends_well = re.subn(r"\s*:=\s*by(\s+sorry)?\s*\Z", " := by", row["statement"])
        if not ends_well:
            fail(
                f"{where}: the statement does not end in ':= by'; cut it or complete it there, the proof is the model's"
            )
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


def uniforms(seed: int, problem_id: str, sample: int, count: int) -> np.ndarray:
    """Draws [count] from [0, 1), one a token, that depend on nothing but these names: not on the batch, not on the order."""
    digest = hashlib.sha256(json.dumps([str(seed), problem_id, sample]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(count)


def plan_batches(
    lengths: list[int], num_samples: int, max_new_tokens: int, batch_tokens: int
) -> list[tuple[int, int, int]]:
    """Cuts the prompts, in order, into batches (first, end, samples at a time) of at most batch_tokens places in the cache.
    Only a group that is too large on its own is sampled in several goes."""
    batches, first = [], 0
    for end in range(1, len(lengths) + 1):
        too_many = (end + 1 - first) * num_samples * (
            max(lengths[first : end + 1]) + max_new_tokens
        ) > batch_tokens
        if end == len(lengths) or too_many:
            fit = batch_tokens // ((end - first) * (max(lengths[first:end]) + max_new_tokens))
            batches.append((first, end, min(num_samples, max(1, fit))))
            first = end
    return batches


def encode(
    model: Any,
    tokenizer: Any,
    problems: list[dict],
    template: str,
    max_new_tokens: int,
    limit: int | None = None,
) -> tuple[list[list[int]], set[int]]:
    """(the token ids of each problem's prompt, the ids that end a text); ends the program where a prompt is too long."""
    prompts = [tokenizer(build_prompt(problem, template)).input_ids for problem in problems]
    limit = limit or getattr(model.config, "max_position_embeddings", None)
    for problem, prompt in zip(problems, prompts):
        if not prompt or max(prompt) >= model.config.vocab_size:
            fail(
                f"problem {problem['id']}: the tokenizer makes no ids of it that the model knows; give the tokenizer of this model"
            )
        if limit and len(prompt) + max_new_tokens > limit:
            fail(
                f"problem {problem['id']}: its {len(prompt)} tokens and {max_new_tokens} new ones pass the model's limit of"
                f" {limit}; lower --max-new-tokens or leave the problem out"
            )
    eos = model.generation_config.eos_token_id
    return prompts, {*(eos if isinstance(eos, list) else [eos]), tokenizer.eos_token_id} - {None}


def group_rows(
    problem: dict,
    prompt: list[int],
    found: Iterable[tuple],
    tokenizer: Any,
    eos: set[int],
    template: str,
    model_name: str,
) -> Iterator[dict]:
    """Yields the rows of a group; found: (completion_ids, logprobs, finish_reason) of each sample."""
    text = functools.partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    anchor = prompt[-1:]  # on their own, some tokenizers drop a completion's leading space
    for sample, (ids, logprobs, reason) in enumerate(found):
        if not np.isfinite(logprobs).all():
            fail(
                f"problem {problem['id']}: the model's logits are not finite; try --dtype float32 or another --temperature"
            )
        completion = text(anchor + (ids[:-1] if ids[-1] in eos else ids))[len(text(anchor)) :]
        completion = (
            "\n" + completion if template == "deepseek" else completion
        )  # statement + completion is Lean
        yield dict(
            problem,
            sample=sample,
            prompt_ids=prompt,
            completion=completion,
            completion_ids=ids,
            logprobs=[round(x, 6) for x in logprobs],
            finish_reason=reason,
            model=model_name,
            template=template,
        )


def sample_rows(
    model: Any,
    tokenizer: Any,
    problems: list[dict],
    num_samples: int,
    *,
    temperature: float = 1.0,
    max_new_tokens: int = 512,
    template: str = "bare",
    seed: int = 0,
    batch_tokens: int = 131072,
    progress: bool = True,
    model_name: str = "",
    skip: int = 0,
) -> Iterator[dict]:
    """A generator of rows, group by group in the order of the problems, without the first `skip` groups. vllm_rows in
    lib/vllm_engine.py yields rows of the same kind.
    No top-p, no top-k: the policy that samples is the policy that is trained."""
    prompts, eos = encode(model, tokenizer, problems, template, max_new_tokens)
    backticks = [k for piece, k in tokenizer.get_vocab().items() if "`" in piece and template == "deepseek"]
    stops = [torch.tensor(sorted(ids), dtype=torch.long, device=model.device) for ids in (eos, backticks)]
    batches = plan_batches([len(prompt) for prompt in prompts], num_samples, max_new_tokens, batch_tokens)

    def generate():
        bar = tqdm(
            total=len(problems) * num_samples, initial=skip * num_samples, unit="sample", disable=not progress
        )
        for first, end, at_once in batches:
            if (
                end <= skip
            ):  # batches stay what they were in the run that is continued, and with them the float noise
                continue
            groups = [[] for _ in range(first, end)]
            with torch.inference_mode():
                prefilled = prefill(model, prompts[first:end])
                for start in range(0, num_samples, at_once):
                    copies = min(at_once, num_samples - start)
                    draws = torch.tensor(
                        np.stack(
                            [
                                uniforms(seed, problem["id"], start + k, max_new_tokens)
                                for problem in problems[first:end]
                                for k in range(copies)
                            ]
                        )
                    )
                    found = decode(
                        model, tokenizer, prefilled, copies, draws.to(model.device), temperature, *stops, bar
                    )
                    for k, group in enumerate(groups):
                        group += found[k * copies : (k + 1) * copies]
            for k in range(max(first, skip), end):
                yield from group_rows(
                    problems[k], prompts[k], groups[k - first], tokenizer, eos, template, model_name
                )
        bar.close()

    return generate()


def part_file(args: argparse.Namespace, problems: list[dict]) -> tuple[str, int]:
    """(name, number of complete groups) of the rows that an interrupted run with the same settings has left behind."""
    free = (
        "problems",
        "limit",
        "out",
        "gpus",
        "gpu_memory_utilization",
    )  # what may be another one in the run that continues
    settings = {key: value for key, value in vars(args).items() if key not in free}
    files = sorted(os.scandir(args.model), key=lambda file: file.name) if os.path.isdir(args.model) else []
    depends_on = json.dumps(
        [settings, problems, [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]]
    )
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
    count = number(int, 1)
    parser.add_argument(
        "--engine",
        choices=["torch", "vllm", "auto"],
        default="torch",
        help="auto: vllm where it is installed and a GPU is there",
    )
    parser.add_argument(
        "--gpus",
        type=count,
        help="vllm: how many GPUs sample (default: all; on a CPU processes stand for them)",
    )
    parser.add_argument("--tensor-parallel", type=count, default=1, help="vllm: GPUs that share one engine")
    parser.add_argument(
        "--gpu-memory-utilization",
        type=number(float, 0, exclusive=True, high=1),
        help="vllm: share of a GPU's memory that it takes (default: vLLM's)",
    )
    parser.add_argument(
        "--max-model-len", type=count, help="vllm: tokens of prompt and completion (default: the model's)"
    )


def choose_engine(args: argparse.Namespace) -> str:
    """ "torch" or "vllm" for --engine; vllm is not imported, it would lay hands on the GPUs."""
    found = importlib.util.find_spec("vllm") is not None
    if args.engine == "vllm" and not found:
        fail("vllm is not installed; pip install -r requirements-gpu.txt, or pass --engine torch")
    if args.engine == "torch" and (
        args.gpus or args.tensor_parallel > 1 or args.gpu_memory_utilization or args.max_model_len
    ):
        fail(
            "--gpus, --tensor-parallel, --gpu-memory-utilization and --max-model-len are vLLM's; add --engine vllm or leave them out"
        )
    return (
        args.engine if args.engine != "auto" else "vllm" if found and torch.cuda.is_available() else "torch"
    )


def main():
    parser = flags("Samples proofs with the log-probability of every token.")
    parser.add_argument("--model", required=True, help="a model folder or a name on the Hugging Face hub")
    parser.add_argument(
        "--problems", required=True, help="JSONL; tools/problems.py makes it of other collections"
    )
    parser.add_argument(
        "--num-samples", type=number(int, 1), required=True, help="G, completions for each problem"
    )
    parser.add_argument(
        "--out",
        required=True,
        help="JSONL to write, in place of one that is there; called OUT.part-HASH until it is complete",
    )
    parser.add_argument(
        "--temperature", type=number(float, 0, exclusive=True), default=1.0, help="divides the logits"
    )
    parser.add_argument(
        "--max-new-tokens", type=number(int, 1), default=512, help="tokens of a completion at most"
    )
    parser.add_argument("--template", choices=["bare", "deepseek"], default="bare", help="of the prompt")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same samples")
    parser.add_argument("--limit", type=number(int, 1), help="only the first N problems")
    parser.add_argument("--batch-tokens", type=number(int, 1), default=131072, help="places in the KV cache")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="of the model's weights",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    add_engine_flags(parser)
    args = parser.parse_args()
    args.engine = choose_engine(args)
    problems = read_problems(args.problems, args.limit)
    check_out(args.out, args.problems)
    model, tokenizer = load_model(args.model, args.dtype, args.device, weights=args.engine == "torch")
    try:
        part, complete = part_file(args, problems)
        options = dict(
            temperature=args.temperature,
            seed=args.seed,
            max_new_tokens=args.max_new_tokens,
            template=args.template,
            model_name=args.model,
            skip=complete,
        )
        if args.engine == "vllm":
            from lib import vllm_engine  # here, not above: it imports this file

            options |= dict(limit=args.max_model_len)
            encode(
                model, tokenizer, problems, args.template, args.max_new_tokens, args.max_model_len
            )  # fails before the loading
            engines = vllm_engine.start_engines(args.model, args)
            rows = vllm_engine.vllm_rows(engines, model, tokenizer, problems, args.num_samples, **options)
        else:
            rows = sample_rows(
                model, tokenizer, problems, args.num_samples, batch_tokens=args.batch_tokens, **options
            )
        with open_jsonl(part, "a") as file:
            group = ""
            for row in rows:
                group += json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
                if (
                    row["sample"] == args.num_samples - 1
                ):  # whole groups only, so that verify.py --follow never sees a row that goes again
                    file.write(group)
                    file.flush()
                    group = ""
        os.replace(part, args.out)
    except OSError as error:
        cannot_write(args.out, error)
    except torch.OutOfMemoryError:
        fail(
            f"{args.device} ran out of memory; lower --batch-tokens {args.batch_tokens}, what is done so far is kept"
        )
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    print(f"{len(problems) * args.num_samples} samples of {len(problems)} problems in {args.out}")


if __name__ == "__main__":
    main()
