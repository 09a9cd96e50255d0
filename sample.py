"""Samples G completions of each problem from a language model, with the log-probability of each token.

    python sample.py --out samples.jsonl                        # the embedded prover and its problems
    python sample.py --model deepseek-ai/DeepSeek-Prover-V1.5-SFT --problems minif2f-test.jsonl \\
        --template deepseek --max-new-tokens 512 --dtype bfloat16 --out samples.jsonl
    python sample.py ... --engine vllm                          # on all GPUs: lib/vllm_engine.py

Reads: problems as JSONL: id, statement (ends with ":= by"), optional header and informal. tools/problems.py
       converts the paper's release, miniF2F and Lean Workbook.
Adds:  sample          index in the group, 0 .. G-1; the rows of a group follow each other
       prompt_ids      token ids of the prompt
       completion      the text after the prompt's ":= by": statement + completion is the whole theorem
       completion_ids  its token ids, end-of-text included
       logprobs        log-probability of each of these ids, at the temperature they were sampled with
       finish_reason   "stop" (end-of-text, or the closing fence of the deepseek template) or "length"
       model, template
The same command continues a run that was stopped. The same seed gives the same samples, whatever the batch
size or the number of engines (except for a draw within float noise of the border between two tokens).
"""

import argparse
import functools
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from lib.cli import before_imports, fail, flags, number, parse_settings, run

before_imports()

import numpy as np
import torch
from tqdm import tqdm

from lib.checks import check_prompts, check_sampler
from lib.decode import Completion, random_key, torch_completions
from lib.jsonl import check_out, check_row, numbered_rows, resume_jsonl
from lib.lean import HEADER
from lib.model import load_model, pick_device, position_limit, vocabulary_size
from lib.vllm_engine import start_engines, vllm_completions, vllm_is_installed

HERE = os.path.dirname(os.path.abspath(__file__))
KEYS = ("id", "statement", "header", "informal")  # of a problem; others pass through


def read_problems(path: str, limit: int | None = None, lean: bool = True) -> list[dict]:
    """The problems of a JSONL file. lean: each statement must end in ":= by"."""
    problems, seen = [], {}
    convert = f"convert it with: python tools/problems.py {path} --out problems.jsonl"
    if str(path).endswith(".parquet"):
        fail(f"{path} is parquet, not JSONL; {convert}")
    for where, row in numbered_rows(path):
        if "statement" not in row and ("formal_statement" in row or "theorem_statement" in row):
            fail(f"{where}: the columns of another collection; {convert}")
        check_row(where, row, KEYS[:2], optional=KEYS[2:])
        if row["id"] in seen:
            fail(f"{where}: {seen[row['id']]} has the id {row['id']!r} too; give every problem its own id")
        seen[row["id"]] = where
        if lean:
            statement, ends_well = re.subn(r"\s*:=\s*by(\s+sorry)?\s*\Z", " := by", row["statement"])
            if not ends_well:
                fail(f"{where}: the statement does not end in ':= by'; add that")
            row["statement"] = statement
        problems.append(row)
    if not problems:
        fail(f"{path} has no problems; give at least one")
    return problems[:limit]


def build_prompt(problem: dict, template: str) -> str:
    """The text that the model continues.

    "bare" is the statement alone. "deepseek" is DeepSeek-Prover-V1.5's prompt without chain of thought, which
    includes the line break after ":= by"."""
    if template == "bare":
        return problem["statement"]
    header, informal = problem.get("header", HEADER).strip(), problem.get("informal", "").strip()
    if informal:
        informal = informal + "\n" if informal.startswith("/-") else f"/-- {informal} -/\n"
    return f"Complete the following Lean 4 code:\n\n```lean4\n{header}\n\n{informal}{problem['statement']}\n"


def encode_prompts(
    model: Any, tokenizer: Any, problems: list[dict], args: argparse.Namespace
) -> list[list[int]]:
    """The token ids of each problem's prompt; ends the program if one does not fit the model."""
    texts = [build_prompt(problem, args.template) for problem in problems]
    prompts = [tokenizer(text).input_ids for text in texts]
    limit = min(args.max_model_len or math.inf, position_limit(model.config) or math.inf)
    for problem, prompt in zip(problems, prompts):
        name = f"problem {problem['id']}"
        if not prompt or max(prompt) >= vocabulary_size(model.config):
            fail(f"{name}: the tokenizer produces ids outside the model's vocabulary; use the model's own")
        if len(prompt) + args.max_new_tokens > limit:
            size = f"its {len(prompt)} tokens and {args.max_new_tokens} new ones"
            fail(f"{name}: {size} exceed the limit of {limit}; lower --max-new-tokens or leave it out")
    check_prompts(tokenizer, problems, texts, prompts)
    return prompts


# ---- rows ----


def make_rows(
    problem: dict,
    prompt: list[int],
    completions: Iterable[Completion],
    tokenizer: Any,
    eos: set[int],
    template: str,
    model_name: str,
) -> Iterator[dict]:
    """The rows of a group."""

    def text(ids):
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    anchor = prompt[-1:]  # on its own, a completion would lose its leading space with some tokenizers
    for sample, (ids, logprobs, finish_reason) in enumerate(completions):
        if not np.isfinite(logprobs).all():
            mend = "try --dtype float32 or another --temperature"
            fail(f"problem {problem['id']}: the model's logits are not finite; {mend}")
        completion = text(anchor + (ids[:-1] if ids[-1] in eos else ids))[len(text(anchor)) :]
        if template == "deepseek":
            completion = "\n" + completion  # the prompt's last line break: statement + completion is Lean
        yield dict(
            problem,
            sample=sample,
            prompt_ids=prompt,
            completion=completion,
            completion_ids=ids,
            logprobs=[round(logprob, 6) for logprob in logprobs],
            finish_reason=finish_reason,
            model=model_name,
            template=template,
        )


def sample_rows(
    model: Any,
    tokenizer: Any,
    problems: list[dict],
    num_samples: int,
    args: argparse.Namespace,
    *,
    seed: int | str = 0,
    model_name: str = "",
    engines: list | None = None,
    progress: bool = True,
    skip: int = 0,
) -> Iterator[dict]:
    """Yields rows, group by group in the order of the problems, without the first `skip` groups.

    args: the flags of add_flags. engines: vLLM's; without them torch samples. Both yield the list of a
    problem's Completions (lib/decode.py); another sampler would take their place here."""
    prompts = encode_prompts(model, tokenizer, problems, args)
    eos = model.generation_config.eos_token_id
    eos = {*(eos if isinstance(eos, list) else [eos]), tokenizer.eos_token_id} - {None}
    if engines:
        keys = [random_key(str(seed), problem["id"]) for problem in problems[skip:]]
        groups = vllm_completions(engines, prompts[skip:], keys, num_samples, args, eos)
    else:
        groups = torch_completions(model, tokenizer, problems, prompts, num_samples, args, seed, eos, skip)
    total, done = len(problems) * num_samples, skip * num_samples
    with tqdm(total=total, initial=done, unit="sample", disable=not progress) as bar:
        for problem, prompt, completions in zip(problems[skip:], prompts[skip:], groups):
            yield from make_rows(problem, prompt, completions, tokenizer, eos, args.template, model_name)
            bar.update(num_samples)


# ---- the command ----


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that train.py has too."""
    count, positive = number(int, 1), number(float, 0, exclusive=True)
    add = parser.add_argument_group("model and problems").add_argument
    add("--model", default=f"{HERE}/toy/base", help="folder or hub name [paper: DeepSeek-Prover-V1.5-SFT]")
    add("--problems", default=f"{HERE}/toy/train.jsonl", help="JSONL; tools/problems.py converts others")
    add("--template", choices=["bare", "deepseek"], default="bare", help="prompt; bare: the statement alone")
    add = parser.add_argument_group("sampling").add_argument
    add("--num-samples", type=count, default=32, help="G, completions of each problem [paper: 32]")
    add("--temperature", type=positive, default=1.0, help="divides the logits [paper: 1]")
    add("--max-new-tokens", type=count, default=200, help="longest completion, in tokens [paper: 512]")
    add("--seed", type=number(int, 0), default=0, help="the same seed gives the same samples")
    add = parser.add_argument_group("device and engine").add_argument
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: a GPU if the weights exceed 40 MB")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="precision of the forward pass")
    add("--batch-tokens", type=count, default=131072, help="torch: tokens in the KV cache at a time")
    add("--engine", choices=["torch", "vllm", "auto"], default="torch", help="auto: vllm, if here, on GPUs")
    add("--gpus", type=count, help="vllm: GPUs to sample on (default: all); on a CPU: processes")
    add("--tensor-parallel", type=count, default=1, help="vllm: GPUs per engine")
    share = number(float, 0, exclusive=True, high=1)
    add("--gpu-memory-utilization", type=share, help="vllm: share of a GPU's memory to use (default: vLLM's)")
    add("--max-model-len", type=count, help="vllm: longest prompt and completion (default: the model's)")


def settle_flags(args: argparse.Namespace) -> None:
    """Replaces "auto" and ends the program if flags contradict each other."""
    args.device = pick_device(args.device, args.model)
    if args.engine == "auto":
        args.engine = "vllm" if vllm_is_installed() and torch.cuda.is_available() else "torch"
    if args.engine == "vllm" and not vllm_is_installed():
        fail("vllm is not installed; pip install -r requirements-gpu.txt, or pass --engine torch")
    if args.engine == "vllm" and args.temperature < 0.01:
        fail(f"vLLM needs a --temperature of 0.01 or more, not {args.temperature:g}; raise it")
    of_vllm = args.gpus or args.tensor_parallel > 1 or args.gpu_memory_utilization or args.max_model_len
    if args.engine == "torch" and of_vllm:
        names = "--gpus, --tensor-parallel, --gpu-memory-utilization and --max-model-len"
        fail(f"{names} are for vLLM; add --engine vllm or leave them out")


options = functools.partial(parse_settings, add_flags)  # options("--max-new-tokens 80"), from Python


def main():
    parser = flags("Samples completions of each problem, with the log-probability of every token.")
    add = parser.add_argument
    add("--out", required=True, help="JSONL to write; called OUT.part-HASH until it is complete")
    add("--limit", type=number(int, 1), help="only the first N problems")
    add("--any-statement", action="store_true", help="accept statements without ':= by' at the end")
    add_flags(parser)
    args = parser.parse_args()
    settle_flags(args)
    problems = read_problems(args.problems, args.limit, lean=not args.any_statement)
    check_out(args.out, args.problems)
    model, tokenizer = load_model(args.model, args.dtype, args.device, weights=args.engine == "torch")
    prompts = encode_prompts(model, tokenizer, problems, args)  # checks them before vLLM is loaded
    if args.engine == "torch":
        check_sampler(model, max(map(len, prompts)) + args.max_new_tokens)
    engines = start_engines(args.model, args) if args.engine == "vllm" else []

    may_differ = "problems limit out any_statement gpus gpu_memory_utilization batch_tokens".split()
    settings = {name: value for name, value in vars(args).items() if name not in may_differ}
    files = sorted(os.scandir(args.model), key=lambda file: file.name) if os.path.isdir(args.model) else []
    stamps = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    def rows_after(done):
        skip, options = done // args.num_samples, dict(seed=args.seed, model_name=args.model, engines=engines)
        return sample_rows(model, tokenizer, problems, args.num_samples, args, skip=skip, **options)

    inputs = ({key: problem[key] for key in KEYS if key in problem} for problem in problems)
    inputs = itertools.chain.from_iterable(itertools.repeat(row, args.num_samples) for row in inputs)
    try:
        resume_jsonl(args.out, [settings, stamps], inputs, rows_after, group=args.num_samples)
    except torch.OutOfMemoryError:
        kept = "what is done so far is kept"
        fail(f"{args.device} ran out of memory; lower --batch-tokens {args.batch_tokens}, {kept}")
    print(f"{len(problems) * args.num_samples} samples of {len(problems)} problems in {args.out}")


if __name__ == "__main__":
    run(main)
