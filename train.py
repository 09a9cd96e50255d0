"""GRPO with the unlikeliness reward: sample, verify, advantages, update (paper, section 4).

    python train.py --unlikeliness 0.25 --ppo-epochs 2      # GRPO-Unlikeliness-2 on the embedded default
    python train.py --kl 0.02                               # GRPO-Default
    python train.py --advantages advantages.jsonl --out runs/by-hand    # one update on a file
    torchrun --nproc-per-node 8 train.py --model deepseek-ai/DeepSeek-Prover-V1.5-SFT --template deepseek \\
        --engine vllm --dtype bfloat16 --gradient-checkpointing ...   # all processes update

Reads: problems (id, statement), or the rows of --advantages.
Writes to runs/NAME: step_00012/{problems,samples,verified,advantages}.jsonl, the files of the other stages;
       metrics.jsonl, a row a step; checkpoints/step_00010, a Hugging Face folder with the optimizer's state;
       eval_00000 and eval_00100, held-out completions before and after; figures.
--resume continues a run that was stopped. Every random draw is keyed by (seed, step), so there is no
generator state to save, and on a CPU a resumed run ends with the same bits.

At a step's first mini-batch the ratio is 1 and the loss says nothing about progress: watch reward and pass@N.
"""

import os
import time
from argparse import Namespace
from typing import Any, NamedTuple

from lib.cli import before_imports, fail, flags, number

before_imports()

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import advantage
import sample
import verify
from evaluate import compare
from lib import build, checks, processes, run
from lib.jsonl import make_folder, tee_jsonl, write_jsonl
from lib.logprobs import completion_logprobs, make_batch, own_micro_batches, token_logprobs
from lib.metrics import read_metrics, start_report, step_metrics
from lib.vllm_engine import sleep_engines, start_engines

EVALUATION = 999_999  # stands for the step number in an evaluation's sampling seed


# GRPO


def token_losses(
    logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Any, advantages: Tensor, clip: float, kl: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, KL estimate k3 and "is clipped", [N] each, of N tokens (paper, section 2). All arguments are [N].

    loss = max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)) + kl k3; k3 = exp(d) - d - 1, d = ref - new.
    As in the release, k3 is clamped to [-10, 10]. A clipped token has no policy gradient.
    """
    ratio = (logprobs - old_logprobs).exp()
    unclipped_loss = -advantages * ratio
    clipped_loss = -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = torch.maximum(unclipped_loss, clipped_loss)
    is_clipped = clipped_loss > unclipped_loss
    if ref_logprobs is None:
        return loss, torch.zeros_like(loss), is_clipped
    d = ref_logprobs - logprobs
    k3 = (d.exp() - d - 1).clamp(-10, 10)
    return loss + kl * k3, k3, is_clipped


def minibatches(rows: list[dict], args: Namespace, step: int, epoch: int) -> list[list[dict]]:
    """The buffer in a new order, cut into equal parts of about --minibatch rows."""
    order = np.random.default_rng([args.seed, step, epoch]).permutation(len(rows))
    count = max(1, round(len(rows) / args.minibatch))
    return [[rows[i] for i in part] for part in np.array_split(order, count)]


def add_logprobs(model: Any, rows: list[dict], key: str, args: Namespace) -> None:
    """Adds the log-probability of every completion token under a model, row[key] [T]."""
    logprobs = completion_logprobs(model, rows, args.temperature, args.micro_batch_tokens)
    for row, row_logprobs in zip(rows, logprobs):
        row[key] = row_logprobs


def update(model: Any, reference: Any, optimizer: Any, rows: list[dict], args: Namespace, step: int) -> dict:
    """PPO epochs over the rows of the buffer (paper, section 4.2). Returns metrics over all epochs.

    The loss of a mini-batch is the mean over its completion tokens, whatever the micro-batches and the number
    of processes."""
    count, device = processes.count(), model.device
    rows = [dict(row) for row in rows]
    # pi_old is recomputed by the trainer, in the first epoch's batches, so that the first ratio is exactly 1.
    for minibatch in minibatches(rows, args, step, epoch=0):
        add_logprobs(model, minibatch, "old_logprobs", args)
    if args.kl:
        add_logprobs(reference.to(device), rows, "ref_logprobs", args)
        if args.reference_device == "cpu":
            reference.to("cpu")
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # of loss, k3, is_clipped
    grad_norms, skipped, tokens_seen = [], 0, 0
    for epoch in range(args.ppo_epochs):
        for minibatch in minibatches(rows, args, step, epoch):
            tokens = sum(len(row["completion_ids"]) for row in minibatch)
            for trees in own_micro_batches(model, minibatch, args.micro_batch_tokens):  # rows by prefix
                batch = make_batch(minibatch, trees, device)
                logprobs = token_logprobs(model, batch, args.temperature)  # [N]
                loss, k3, is_clipped = token_losses(
                    logprobs, batch.old_logprobs, batch.ref_logprobs, batch.advantages, args.clip, args.kl
                )
                # weight: 0 in an idle process. Times count, since gradients are averaged over the processes.
                (batch.weight * loss.sum() * count / tokens).backward()
                sums += batch.weight * torch.stack([loss.detach().sum(), k3.detach().sum(), is_clipped.sum()])
            processes.average_gradients(model)
            grad_norm = processes.whole_tensor(
                torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
            ).item()
            if grad_norm <= args.grad_skip:  # False for NaN too: such a step is skipped, as in the release
                optimizer.step()
            else:
                skipped += 1
            optimizer.zero_grad()
            grad_norms.append(grad_norm)
            tokens_seen += tokens
    means = (processes.sum_over_processes(sums.cpu()) / tokens_seen).tolist()
    gaps = [(row["old_logprobs"].cpu() - torch.tensor(row["logprobs"])).abs().max().item() for row in rows]
    return dict(zip(("loss", "kl", "clip_fraction"), means)) | {
        "grad_norm": float(np.max(grad_norms)),
        "skipped": skipped,
        "updates": len(grad_norms),
        "logprob_gap": max(gaps),
        "tokens": tokens_seen // args.ppo_epochs,
    }


# Collecting completions


class Prover(NamedTuple):
    """What the main process collects completions with."""

    model: Any = None  # the sampler's weights; the trained model itself unless it is sharded
    tokenizer: Any = None
    engines: list = []  # vLLM's; [] for the torch sampler
    verifier: Any = None


def collect(
    prover: Prover, problems: list[dict], G: int, folder: str, seed: int, args: Namespace, progress=False
) -> tuple[list[dict], dict]:
    """G verified completions a problem, through FOLDER/problems.jsonl, samples.jsonl and verified.jsonl.

    Lean judges finished samples while the rest are being sampled. Files of an interrupted run are reused.
    Returns the rows, and the seconds of sampling and of the verification that was left after it."""
    make_folder(folder)
    total, start = len(problems) * G, time.time()
    if not run.load_if_complete(f"{folder}/problems.jsonl", len(problems), "statement"):
        write_jsonl(f"{folder}/problems.jsonl", problems)
    rows = run.load_if_complete(f"{folder}/verified.jsonl", total, "reward")
    if rows:
        return rows, {"seconds_sample": 0.0, "seconds_verify": 0.0}
    sampled_at, (model, tokenizer, engines, verifier) = start, prover
    name = f"{args.out}@{os.path.basename(folder)}"
    options = {"seed": seed, "model_name": name, "engines": engines, "progress": progress}

    def sampling():
        nonlocal sampled_at
        yield from sample.sample_rows(model, tokenizer, problems, G, args, **options)
        sampled_at = time.time()

    samples = run.load_if_complete(f"{folder}/samples.jsonl", total, "logprobs")
    samples = samples or tee_jsonl(f"{folder}/samples.jsonl", sampling())
    verified = run.some_judged(verify.verify_stream(samples, verifier, progress, total), folder)
    rows = list(tee_jsonl(f"{folder}/verified.jsonl", verified))
    return rows, {"seconds_sample": sampled_at - start, "seconds_verify": time.time() - sampled_at}


def problems_of(step: int, problems: list[dict], args: Namespace) -> list[dict]:
    """The problems of a step. Each pass over them has its own random order and drops the remainder."""
    steps_a_pass = max(1, len(problems) // args.problems_per_step)
    order = np.random.default_rng([args.seed, step // steps_a_pass]).permutation(len(problems))
    first = step % steps_a_pass * args.problems_per_step
    return [problems[i] for i in order[first : first + args.problems_per_step]]


def collect_step(prover: Prover, problems: list[dict], step: int, args: Namespace) -> tuple[list[dict], dict]:
    """A step's rows with their advantages, and seconds."""
    folder, batch = f"{args.out}/step_{step:05d}", problems_of(step, problems, args)
    rows, seconds = collect(prover, batch, args.num_samples, folder, sampler_seed(args, step), args)
    return list(tee_jsonl(f"{folder}/advantages.jsonl", advantage.add_advantages(rows, args))), seconds


def sampler_seed(args: Namespace, step: int) -> int:
    """The --seed of sample.py that gives a step's samples."""
    return args.seed * 10**6 + step


def collect_held_out(prover: Prover, held_out: list[dict], step: int, args: Namespace) -> None:
    """Samples and verifies the held-out problems in OUT/eval_00100: before, after, as --eval-every says."""
    due = step in (0, args.steps) or args.eval_every and step % args.eval_every == 0
    if held_out and due:
        tqdm.write(f"evaluating at step {step}: {len(held_out)} problems x {args.eval_samples} samples")
        folder, seed = f"{args.out}/eval_{step:05d}", sampler_seed(args, EVALUATION)
        collect(prover, held_out, args.eval_samples, folder, seed, args, progress=True)


# Setting up


def parse_args(words: list[str] | None = None) -> Namespace:
    parser = flags("GRPO for a Lean prover, with the unlikeliness reward.")
    positive, count, rate = number(float, 0, exclusive=True), number(int, 1), number(float, 0, high=1)
    held_out = os.path.join(os.path.dirname(os.path.abspath(__file__)), "toy", "val.jsonl")
    sample.add_flags(parser)
    verify.add_flags(parser)
    advantage.add_flags(parser)
    add = parser.add_argument_group("update").add_argument
    add("--ppo-epochs", type=count, default=1, help="passes over the buffer [paper: 1 to 3]")
    add("--kl", type=number(float, 0), default=0.1, help="beta_KL [paper: 0.02 or 0.1]")
    add("--clip", type=positive, default=0.2, help="PPO's clip range [paper: 0.2]")
    add("--lr", type=rate, default=1e-4, help="constant learning rate [paper, at 7B: 1e-6]")
    add("--weight-decay", type=rate, default=0.01, help="[paper: 0.01]")
    add("--grad-clip", type=positive, default=1.0, help="largest gradient norm [paper: 1]")
    add("--grad-skip", type=positive, default=20.0, help="skip updates with larger norms [paper: 20]")
    add("--problems-per-step", type=count, default=16, help="B [paper: 16]")
    add("--train-batch", type=count, default=256, help="completions that start an update [paper: 256]")
    add("--minibatch", type=count, default=256, help="completions of an optimizer step [paper: 256]")
    add("--advantages", help="make one update, on the rows of this file of advantage.py")
    add = parser.add_argument_group("evaluation").add_argument
    add("--eval-problems", default=held_out, help="held-out problems")
    add("--eval-samples", type=number(int, 0), default=64, help="completions a problem; 0: no evaluation")
    add("--eval-every", type=number(int, 0), default=0, help="steps between them; 0: only before and after")
    run.add_flags(parser)
    build.add_flags(parser)
    args = parser.parse_args(words)
    sample.settle_flags(args)
    shaping = any(vars(args)[name] != value for name, value in vars(advantage.options()).items())
    if args.advantages and (shaping or not args.out):
        fail("--advantages takes --out, but --unlikeliness, --estimator and the like belong to advantage.py")
    args.out = args.out or f"runs/{run.run_name(args, parser)}"
    args.stored_curve = run.stored_curve(args, parser)
    return args


class Prepared(NamedTuple):
    """What the main process begins with; the others have an empty one, and get the last two by broadcast."""

    prover: Prover = Prover()
    problems: list = []
    held_out: list = []
    rows: list = []  # of --advantages, in the place of problems
    record: dict = {}  # for args.json
    checkpoint: str | None = None  # to continue from
    longest: int = 0  # tokens of the longest prompt and completion


def prepare(args: Namespace) -> Prepared:
    """Runs in the main process. Checks all input before anything is computed."""
    problems, held_out, rows, verifier = [], [], [], None
    if args.advantages:
        rows = run.read_advantages(args)
    else:
        lean = verify.asks_lean(args)
        problems = sample.read_problems(args.problems, lean=lean)
        if args.eval_samples:
            held_out = sample.read_problems(args.eval_problems, lean=lean)
        verifier = verify.start_verifier(args, problems + held_out)
    record, checkpoint = run.open_run(args)
    run.announce(args, problems, held_out, rows, checkpoint)
    # vLLM first, since it measures the free memory.
    use_vllm = args.engine == "vllm" and not args.advantages
    engines = start_engines(checkpoint or args.model, args, args.sleep) if use_vllm else []
    model, tokenizer = build.load_sampler(args, checkpoint or args.model, weights=not engines)
    if args.advantages:
        longest = checks.check_tokens(rows, args.advantages, model, args.model)
    else:
        prompts = sample.encode_prompts(model, tokenizer, problems + held_out, args)
        longest = max(len(prompt) + args.max_new_tokens for prompt in prompts)
    prover = Prover(model, tokenizer, engines, verifier)
    return Prepared(prover, problems, held_out, rows, record, checkpoint, longest)


def main() -> None:
    broadcast = processes.connect()  # the main one samples, verifies, writes and prints; all of them update
    is_main = processes.is_main()
    args = broadcast(parse_args() if is_main else None)
    prover, problems, held_out, rows, record, *start_from = prepare(args) if is_main else Prepared()
    checkpoint, longest = broadcast(start_from)
    model, reference, optimizer = build.build(args, checkpoint, prover.model, longest)
    first, buffer = run.load_checkpoint(checkpoint, model, optimizer) if checkpoint else (0, [])
    last = first + 1 if args.advantages else args.steps
    if first > last:
        fail(f"{args.out} already has {first} steps; give --steps {first} or more")
    if is_main:
        history = read_metrics(args, first)
        write_jsonl(f"{args.out}/args.json", [record])
        report = start_report(args, history)
        collect_held_out(prover, held_out, first, args)

    for step in tqdm(range(first, last), "training", last, initial=first, disable=not is_main):
        if is_main:
            seconds: dict = {}
            if not args.advantages:
                rows, seconds = collect_step(prover, problems, step, args)
            buffer += [row for row in rows if row["advantage"] is not None]
        ready = broadcast(buffer if len(buffer) >= args.train_batch or args.advantages else [])
        stats, start = {}, time.time()
        if ready:
            if args.sleep:
                sleep_engines(prover.engines)
            stats = update(model, reference, optimizer, ready, args, step)
            build.sync_sampler(prover.model, prover.engines, model, args)
            buffer = []
        if is_main:
            report(step_metrics(step, rows) | stats | seconds | {"seconds_update": time.time() - start})
        if (step + 1) % args.save_every == 0 or step + 1 == last:
            run.save_checkpoint(model, prover.tokenizer, optimizer, step + 1, buffer, args)
        if is_main:
            collect_held_out(prover, held_out, step + 1, args)

    broadcast(None)  # the others wait for the main process's last evaluation; then it goes on alone
    processes.disconnect()
    if is_main:
        print(f"Model: {args.out}/checkpoints/step_{last:05d}")
    if is_main and not args.advantages:
        name = os.path.basename(os.path.normpath(args.out))
        make_folder(f"{args.out}/figures")
        compare({name: args.out}, f"{args.out}/figures/story.png", args, args.stored_curve)


if __name__ == "__main__":
    processes.end_in_a_sentence(main)
