"""One group of 8 completions through every stage: the numbers of docs/one-group.md.

    python tools/one_group.py
    python tools/one_group.py --problem t_13888 --seed 1       # another group

The stages' own functions do all of it: sample, verify, advantage without and with the unlikeliness reward,
train.update with one and with two PPO epochs, each time from the base model.
"""

import os
import sys

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import sample
import train
import verify
from advantage import add_advantages
from lib import build
from lib.cli import fail, flags, number, run
from lib.figures import markdown
from lib.logprobs import completion_logprobs

G, BETA = 8, 0.25
WORDS = ["--device", "cpu", "--num-samples", str(G)]


def train_on(rows: list[dict], beta: float, epochs: int) -> tuple[list[dict], np.ndarray, dict]:
    """The rows with their advantages, by what factor an update changes each probability, its metrics."""
    args = train.parse_args([*WORDS, "--unlikeliness", str(beta), "--ppo-epochs", str(epochs)])
    rows = add_advantages(rows, args)
    if rows[0]["advantage"] is None:
        fail(f"all {G} rewards of this group are equal, so it is dropped; choose another --problem or --seed")
    sampler, _ = build.load_sampler(args, args.model, weights=True)
    model, reference, optimizer = build.build(args, None, sampler, longest=None)
    before = completion_logprobs(model, rows)
    metrics = train.update(model, reference, optimizer, rows, args, step=0)
    gained = [float(new.sum() - old.sum()) for new, old in zip(completion_logprobs(model, rows), before)]
    return rows, np.exp(gained), metrics


def main() -> None:
    parser = flags("One group of 8 completions through every stage, as Markdown.")
    parser.add_argument("--problem", default="t_37880", help="id in toy/train.jsonl")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the sampler")
    own = parser.parse_args()
    args = train.parse_args(WORDS)
    problems = [problem for problem in sample.read_problems(args.problems) if problem["id"] == own.problem]
    if not problems:
        fail(f"{args.problems} has no problem {own.problem}; give the id of one")
    model, tokenizer = build.load_sampler(args, args.model, weights=True)
    sampled = sample.sample_rows(model, tokenizer, problems, G, args, seed=own.seed, progress=False)
    rows = sorted(verify.verify_rows(list(sampled), progress=False), key=lambda row: -sum(row["logprobs"]))

    columns: list[list] = [["#", *range(1, G + 1)]]
    factors = []
    for name, beta, reward in (("GRPO", 0.0, "reward R"), ("unlikely", BETA, "r, unlikely")):
        for epochs, words in ((1, "1 epoch"), (2, "2 epochs")):
            shaped, factor, metrics = train_on(rows, beta, epochs)
            factors.append([f"{name}, {words}", *(f"x {change:.2f}" for change in factor)])
        columns.append([reward, *(f"{row['shaped_reward']:.3g}" for row in shaped)])
        columns.append([f"A, {name}", *(f"{row['advantage']:+.2f}" for row in shaped)])
    print(f"```\n{problems[0]['statement']}\n\n #  log-prob  rank  Lean      completion")
    for i, row in enumerate(shaped, 1):
        text = " ⏎ ".join(line.strip() for line in row["completion"].strip().split("\n"))
        print(f"{i:2d} {sum(row['logprobs']):9.2f} {row['rank']:5.1f}  {row['verdict']:9s} {text}")
    r = np.array([row["shaped_reward"] for row in shaped])
    clipped = 2 * metrics["clip_fraction"]  # a mean over both epochs, and 0 in the first
    print(f"```\n\n{markdown(columns + factors)}\n")
    print(f"- unlikely: mean r = {r.mean():.3f}, std r = {r.std(ddof=1):.3f}")
    print(f"- unlikely, second epoch: {clipped:.0%} of the tokens are past the clip")


if __name__ == "__main__":
    run(main)
