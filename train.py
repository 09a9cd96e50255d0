"""GRPO with the unlikeliness reward: sample, verify, advantages, update, and pass@N before and after (paper, section 4).

    python train.py --unlikeliness 0.25 --ppo-epochs 2                         # the embedded default: CPU, minutes
    python train.py --out runs/default                                         # the same with plain GRPO
    python train.py --advantages advantages.jsonl --out runs/by-hand           # one update on a file of advantage.py
    torchrun --nproc-per-node 8 train.py --model deepseek-ai/DeepSeek-Prover-V1.5-SFT --problems train.jsonl --template deepseek \\
        --engine vllm --dtype bfloat16 --gradient-checkpointing ...            # rank 0 does all but the update (lib/vllm_engine.py)

Reads: problems (id, statement). Each step goes through the other stages' files, runs/NAME/step_00012/samples.jsonl,
verified.jsonl and advantages.jsonl, and adds a row to runs/NAME/metrics.jsonl; `--resume` continues a killed run from
its last checkpoint and from the files of the steps after it, on any number of processes. A checkpoint is a Hugging Face
folder with trainer.pt and optimizer/, AdamW's moments as safetensors.
Every random draw is keyed by (seed, step), so there is no generator state to save, and on a CPU a resumed run ends
with the same bits. At a step's first mini-batch the ratio is 1 and the loss says nothing: watch reward and pass@N.
"""

import argparse
import functools
import json
import os
import signal
import sys
import time
import warnings
from typing import Any

os.environ.setdefault(
    "GOMP_SPINCOUNT", "3000"
)  # before torch: its threads wait awake for a moment only, or a busy core stalls all

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers.utils import logging

import advantage
import sample
import verify
from evaluate import compare
from lib.cli import cause, fail, flags, number
from lib.jsonl import read_verified, tee_jsonl, write_jsonl
from lib.logprobs import (
    completion_logprobs,
    device_of,
    make_batch,
    micro_batches_per_rank,
    target_logprobs,
    token_logprobs,
)
from lib.metrics import alarms, open_log, plain, step_line, step_metrics
from lib.model import load_model
from lib.ranks import (
    average_gradients,
    checkpoint_blocks,
    full_state,
    ranks,
    shard,
    start_ranks,
    sum_over_ranks,
    whole_tensor,
)
from lib.run import last_checkpoint, lighten_others, load_checkpoint, open_run, save_checkpoint, whole
from lib.vllm_engine import sleep_engines, start_engines, sync_weights
from sample import read_problems
from verify import start_verifier, verify_stream

EVALUATION = 999_999  # stands for the step in an evaluation's sampler seed


def token_losses(
    logprobs: torch.Tensor,
    old_logprobs: Any,
    ref_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    clip: float,
    kl: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss [N], KL estimate [N] and clipped [N] of tokens (paper, section 2); all arguments [N], ref_logprobs may be None.

    loss = max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)) + kl k3, with k3 = exp(d) - d - 1, d = ref - new; as in the
    release k3 is held within [-10, 10], so beyond 10 it has no gradient. clipped: the tokens where the clip takes the gradient away.
    """
    ratio = (logprobs - old_logprobs).exp()
    plain, held = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = torch.maximum(plain, held)
    if ref_logprobs is None:
        return loss, torch.zeros_like(loss), held > plain
    d = ref_logprobs - logprobs
    k3 = (d.exp() - d - 1).clamp(-10, 10)
    return loss + kl * k3, k3, held > plain


def minibatches(rows: list[dict], args: argparse.Namespace, step: int, epoch: int) -> list[list[dict]]:
    """The buffer in a new order, cut into equal parts of about --minibatch rows."""
    order = np.random.default_rng([args.seed, step, epoch]).permutation(len(rows))
    count = max(1, round(len(rows) / args.minibatch))
    return [[rows[i] for i in part] for part in np.array_split(order, count)]


def add_old_logprobs(model: Any, rows: list[dict], args: argparse.Namespace, step: int) -> None:
    """The trainer's own log-probabilities just before the update, [T] a row. They are taken over the very batches
    of the first epoch, so that its first ratio is exactly 1, in bfloat16 too."""
    for minibatch in minibatches(rows, args, step, epoch=0):
        logprobs = completion_logprobs(
            model, minibatch, args.temperature, args.micro_batch_tokens, args.dtype
        )
        for row, row_logprobs in zip(minibatch, logprobs):
            row["old_logprobs"] = row_logprobs


def add_ref_logprobs(reference: Any, rows: list[dict], args: argparse.Namespace, device: Any) -> None:
    """The frozen initial model's log-probabilities, [T] a row, for the KL term."""
    waits_on = device_of(reference)  # the CPU for --reference-device cpu
    reference.to(device)
    logprobs = completion_logprobs(reference, rows, args.temperature, args.micro_batch_tokens, args.dtype)
    for row, row_logprobs in zip(rows, logprobs):
        row["ref_logprobs"] = row_logprobs
    reference.to(waits_on)


def update(
    model: Any,
    reference: Any,
    optimizer: torch.optim.Optimizer,
    rows: list[dict],
    args: argparse.Namespace,
    step: int,
) -> dict:
    """PPO epochs over the rows of the buffer (paper, section 4.2). Returns means over everything it saw.

    The loss of a mini-batch is the mean over its completion tokens, whatever the micro-batches and the ranks.
    """
    (rank, count), device = ranks(), device_of(model)
    rows = [dict(row) for row in rows]
    add_old_logprobs(model, rows, args, step)
    if args.kl:
        add_ref_logprobs(reference, rows, args, device)
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # of loss, KL estimate and clipped tokens
    grad_norms, skipped, tokens_seen = [], 0, 0
    for epoch in range(args.ppo_epochs):
        for minibatch in minibatches(rows, args, step, epoch):
            tokens = sum(len(row["completion_ids"]) for row in minibatch)
            for trees in micro_batches_per_rank(minibatch, args.micro_batch_tokens, count)[rank]:
                batch = make_batch(minibatch, trees, device)
                logprobs = token_logprobs(model, batch, args.temperature, args.dtype)  # [N]
                losses = token_losses(
                    logprobs, batch.old_logprobs, batch.ref_logprobs, batch.advantages, args.clip, args.kl
                )  # loss, KL estimate, clipped: [N] each
                # Times the number of ranks, because gradients are averaged over them.
                (batch.weight * losses[0].sum() * count / tokens).backward()
                sums += batch.weight * torch.stack([values.detach().sum() for values in losses])
            average_gradients(model)
            grad_norm = whole_tensor(
                torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
            ).item()
            if grad_norm <= args.grad_skip:  # False for NaN too: such a step is skipped, as in the release
                optimizer.step()
            else:
                skipped += 1
            optimizer.zero_grad()
            grad_norms.append(grad_norm)
            tokens_seen += tokens
    loss, kl, clip_fraction = (sum_over_ranks(sums.cpu()) / tokens_seen).tolist()
    gaps = [(row["old_logprobs"].cpu() - torch.tensor(row["logprobs"])).abs().max().item() for row in rows]
    return {
        "loss": loss,
        "kl": kl,
        "clip_fraction": clip_fraction,
        "grad_norm": float(np.max(grad_norms)),
        "skipped": skipped,
        "updates": len(grad_norms),
        "logprob_gap": max(gaps),
        "tokens": tokens_seen // args.ppo_epochs,
    }


def sample_and_verify(
    model: Any,
    tokenizer: Any,
    verifier: Any,
    problems: list[dict],
    num_samples: int,
    folder: str,
    seed: int,
    args: argparse.Namespace,
    progress: bool = False,
    engines: Any = None,
) -> tuple[list[dict], float, float]:
    """folder/samples.jsonl and folder/verified.jsonl, the second in the making while the first still is: Lean judges what is
    sampled already. Returns the verified rows, the seconds of sampling, and those of verifying after it."""
    count, start, sampled = len(problems) * num_samples, time.time(), []
    if not whole(f"{folder}/problems.jsonl", len(problems), "statement"):
        write_jsonl(f"{folder}/problems.jsonl", problems)

    def sampling():
        with torch.autocast(model.device.type, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            yield from sample.sample_rows(
                model,
                tokenizer,
                problems,
                num_samples,
                args,
                seed=seed,
                model_name=f"{args.out}@{os.path.basename(folder)}",
                engines=engines,
                progress=progress,
            )
        sampled.append(time.time())

    rows = whole(f"{folder}/verified.jsonl", count, "reward")
    if not rows:
        samples = whole(f"{folder}/samples.jsonl", count, "logprobs") or tee_jsonl(
            f"{folder}/samples.jsonl", sampling()
        )
        verified = verify_stream(samples, verifier, progress, count)
        rows = list(tee_jsonl(f"{folder}/verified.jsonl", verified))
    sampled = sampled[0] if sampled else start
    return rows, sampled - start, time.time() - sampled


def sampler_seed(args: argparse.Namespace, step: int) -> int:
    """The --seed of sample.py that gives a step's samples; every evaluation of a run has the same one."""
    return args.seed * 10**6 + step


def problems_of(step: int, problems: list[dict], args: argparse.Namespace) -> list[dict]:
    """The problems of a step: every pass over them has an order of its own, and its remainder is left out."""
    a_pass = max(1, len(problems) // args.problems_per_step)
    order = np.random.default_rng([args.seed, step // a_pass]).permutation(len(problems))
    return [problems[i] for i in order[step % a_pass * args.problems_per_step :][: args.problems_per_step]]


def parse_args() -> argparse.Namespace:
    parser = flags("GRPO for a Lean prover, with the unlikeliness reward.")
    count, positive, share = number(int, 1), number(float, 0, exclusive=True), number(float, 0)
    here = os.path.dirname(os.path.abspath(__file__))
    # what is trained on what
    parser.add_argument("--out", help="run folder (default: runs/ and a name made of the settings)")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in --out where it was interrupted"
    )
    parser.add_argument("--advantages", help="make one update on the rows of this file, and nothing else")
    sample.add_flags(parser)
    # the algorithm (paper, Table 1)
    advantage.add_flags(parser)
    parser.add_argument(
        "--ppo-epochs",
        type=count,
        default=1,
        help="passes over the buffer per update; the paper tries 1 to 3",
    )
    parser.add_argument(
        "--kl", type=share, default=0.02, help="beta_KL; 0 leaves the reference model out altogether"
    )
    parser.add_argument("--clip", type=positive, default=0.2, help="PPO clip epsilon")
    parser.add_argument("--steps", type=count, default=100, help="sampling steps")
    parser.add_argument("--problems-per-step", type=count, default=16, help="problems sampled a step, B")
    parser.add_argument(
        "--train-batch",
        type=count,
        default=256,
        help="update once this many completions with an advantage wait",
    )
    parser.add_argument("--minibatch", type=count, default=256, help="completions per optimizer step, about")
    parser.add_argument(
        "--lr",
        type=number(float, 0, high=1),
        default=1e-4,
        help="AdamW learning rate, constant (paper's 7B model: 1e-6)",
    )
    parser.add_argument("--weight-decay", type=number(float, 0, high=1), default=0.01, help="of AdamW")
    parser.add_argument("--grad-clip", type=positive, default=1.0, help="largest gradient norm")
    parser.add_argument(
        "--grad-skip", type=positive, default=20.0, help="an update with a larger gradient norm is skipped"
    )
    # evaluation and checkpoints
    parser.add_argument("--eval-problems", default=f"{here}/toy/val.jsonl", help="held-out problems")
    parser.add_argument(
        "--eval-samples",
        type=number(int, 0),
        default=64,
        help="completions a held-out problem (0: no evaluation)",
    )
    parser.add_argument(
        "--eval-every",
        type=number(int, 0),
        default=0,
        help="also evaluate every N steps (0: only before and after)",
    )
    parser.add_argument("--save-every", type=count, default=10, help="steps between checkpoints")
    # the machine
    verify.add_flags(parser)
    parser.add_argument(
        "--micro-batch-tokens", type=count, default=2048, help="update: padded tokens a forward pass"
    )
    parser.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="less memory in the update for a third more time",
    )
    parser.add_argument(
        "--shard",
        choices=["fsdp", "none"],
        default="fsdp",
        help="under torchrun: weights split, or whole on every rank",
    )
    parser.add_argument(
        "--reference",
        choices=["device", "cpu"],
        default="device",
        help="where the initial model waits (--kl)",
    )
    parser.add_argument(
        "--tracker", choices=["wandb", "tensorboard"], help="send the metrics there too; needs that package"
    )
    parser.add_argument(
        "--sleep", action="store_true", help="vllm: gives its memory back for the time of an update"
    )
    args = parser.parse_args()
    sample.settle_flags(args)
    shaping = vars(advantage.options())
    if args.advantages and (not args.out or any(vars(args)[name] != shaping[name] for name in shaping)):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in shaping)
        fail(f"with --advantages give --out, and give {names} to advantage.py, which made the file")
    settings = f"unlikeliness-{args.unlikeliness:g}_epochs-{args.ppo_epochs}_kl-{args.kl:g}_seed-{args.seed}"
    args.out = args.out or f"runs/{settings}"
    return args


def main():
    share = start_ranks()
    rank = ranks()[0]
    warnings.filterwarnings(
        "ignore", "torch.distributed is disabled"
    )  # a checkpoint of one process needs none
    args = checkpoint = tokenizer = sampler = None
    problems, held_out, buffer, history, engines = [], [], [], [], []
    logging.disable_progress_bar()
    if (
        rank == 0
    ):  # it alone samples, verifies, evaluates, writes and prints; what all ranks need goes through share
        args = parse_args()
        if dist.is_initialized() and ":" in args.device:
            fail(
                f"under torchrun each rank takes a GPU of its own; give --device {args.device.split(':')[0]}"
            )
        problems = read_problems(args.problems)
        held_out = read_problems(args.eval_problems) if args.eval_samples else []
        verifier = None  # else it says what to install before anything is computed
        if not args.advantages:
            verifier = start_verifier(args, problems + held_out)
        open_run(args)
        log = open_log(args)
        checkpoint = None if args.advantages else last_checkpoint(args.out)
        sharded = dist.is_initialized() and args.shard == "fsdp"
        if args.engine == "vllm" and not args.advantages:  # first of all, since vLLM measures the free memory
            engines = start_engines(checkpoint or args.model, args, args.sleep)
        sampler, tokenizer = load_model(
            checkpoint or args.model,
            args.dtype if sharded else "float32",
            args.device,
            weights=not (sharded and engines),
        )
        if not args.advantages:  # a prompt that is too long is told of now, not when its step comes
            sample.encode_prompts(sampler, tokenizer, problems + held_out, args)
    args, checkpoint = share((args, checkpoint))
    sharded = (
        dist.is_initialized() and args.shard == "fsdp"
    )  # then rank 0 samples from a whole copy of the weights
    load = functools.partial(load_model, dtype="float32", device="cpu" if sharded else args.device)
    model = sampler if rank == 0 and not sharded else load(checkpoint or args.model)[0]
    reference = (
        load(args.model, dtype=args.dtype if sharded else "float32")[0].requires_grad_(False)
        if args.kl
        else None
    )
    if args.gradient_checkpointing:
        checkpoint_blocks(model)
    if sharded:
        model, reference = (
            shard(model, target_logprobs, args),
            reference and shard(reference, target_logprobs, args, trained=False),
        )
    if args.kl and args.reference == "cpu":
        reference.to("cpu")
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=args.lr,
        weight_decay=args.weight_decay,
        fused=torch.device(args.device).type == "cuda",
    )  # else it holds another copy of the weights
    if args.advantages:
        if rank == 0:
            rows = list(
                read_verified(
                    args.advantages,
                    "prompt_ids",
                    "completion",
                    "completion_ids",
                    "logprobs",
                    "finish_reason",
                    "advantage",
                )
            )
            buffer = [row for row in rows if row["advantage"] is not None]
            if not buffer:
                fail(f"{args.advantages} has no row with an advantage; every group is all right or all wrong")
            if (
                largest := max(max(row["prompt_ids"] + row["completion_ids"]) for row in buffer)
            ) >= model.config.vocab_size:
                fail(
                    f"{args.advantages} has a token {largest}, which {args.model} does not know; give the model that sampled the rows"
                )
        updated = update(model, reference, optimizer, share(buffer), args, 0)
        metrics = rank == 0 and step_metrics(0, rows) | updated
        save_checkpoint(model, tokenizer, optimizer, 1, [], [metrics], args)
        if rank == 0:
            write_jsonl(f"{args.out}/metrics.jsonl", [plain(metrics)])
            write_jsonl(
                f"{args.out}/args.json", [vars(args)]
            )  # last: until then the same command may be given again
            for sentence in alarms([metrics]):
                print(f"warning: {sentence}", file=sys.stderr)
            print(f"{json.dumps(plain(metrics))}\nModel: {args.out}/checkpoints/step_00001")
        return
    if checkpoint:
        buffer, history = load_checkpoint(checkpoint, model, optimizer)
        if rank == 0 and len(history) > args.steps:
            fail(f"{args.out} already has {len(history)} steps; give --steps {len(history)} or more")
        if rank == 0:
            lighten_others(checkpoint)  # the run may have been killed before it could
        print(f"resuming {args.out} at step {len(history)}")
    first = len(history)
    if rank == 0:
        write_jsonl(f"{args.out}/args.json", [vars(args)])
        write_jsonl(
            f"{args.out}/metrics.jsonl", map(plain, history)
        )  # without the rows after the checkpoint, which are made again

    def evaluate(step):
        if (
            rank == 0
            and held_out
            and (step in (0, args.steps) or (args.eval_every and step % args.eval_every == 0))
        ):
            print(f"evaluating at step {step}: {len(held_out)} problems x {args.eval_samples} samples")
            sample_and_verify(
                sampler,
                tokenizer,
                verifier,
                held_out,
                args.eval_samples,
                f"{args.out}/eval_{step:05d}",
                sampler_seed(args, EVALUATION),
                args,
                progress=True,
                engines=engines,
            )

    evaluate(first)
    for step in tqdm(
        range(first, args.steps), initial=first, total=args.steps, desc="training", disable=rank > 0
    ):
        if rank == 0:
            folder, batch = f"{args.out}/step_{step:05d}", problems_of(step, problems, args)
            rows, seconds_sample, seconds_verify = sample_and_verify(
                sampler,
                tokenizer,
                verifier,
                batch,
                args.num_samples,
                folder,
                sampler_seed(args, step),
                args,
                engines=engines,
            )
            rows = list(
                tee_jsonl(
                    f"{folder}/advantages.jsonl",
                    advantage.add_advantages(rows, args),
                )
            )
            buffer += [row for row in rows if row["advantage"] is not None]
        start, updated = time.time(), {}
        if full := share(buffer if len(buffer) >= args.train_batch else []):
            if engines and args.sleep:
                sleep_engines(engines)
            updated, buffer = update(model, reference, optimizer, full, args, step), []
            weights = full_state(model) if sharded else None
            if engines:
                sync_weights(engines, model, args.dtype, weights)
            elif sharded and rank == 0:
                sampler.load_state_dict(weights)
        if rank == 0:
            metrics = step_metrics(step, rows) | updated
            metrics |= {
                "seconds_sample": seconds_sample,
                "seconds_verify": seconds_verify,
                "seconds_update": time.time() - start,
            }
            history.append(metrics)
            write_jsonl(f"{args.out}/metrics.jsonl", map(plain, history))
            log(metrics)
            tqdm.write(step_line(metrics))
            for sentence in alarms(history):
                tqdm.write(f"warning: step {step}: {sentence}", file=sys.stderr)
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            save_checkpoint(model, tokenizer, optimizer, step + 1, buffer, history, args)
        evaluate(step + 1)

    share(None)  # every rank is done
    if dist.is_initialized():
        dist.destroy_process_group()
    if rank == 0:
        figure = f"{args.out}/figures/story.png"
        compare({os.path.basename(os.path.normpath(args.out)): args.out}, figure, args)
        print(f"Figure: {figure}, model: {args.out}/checkpoints/step_{args.steps:05d}")


if __name__ == "__main__":
    try:
        main()
        if dist.is_initialized():
            dist.destroy_process_group()
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun may say it once more
        if ranks()[0] == 0:
            print("stopped; the same command with --resume continues", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        fail(f"cannot go on ({error}); make room or mend it, and the same command with --resume continues")
    except RuntimeError as error:
        if not dist.is_initialized():
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(
            f"error: a process of the run failed; the same command with --resume continues (rank {ranks()[0]}: {cause(error)})",
            file=sys.stderr,
        )
        sys.exit(1)
