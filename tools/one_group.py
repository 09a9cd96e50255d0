"""One group of 8 completions through every stage, as a page: docs/one-group.md.

    python tools/one_group.py > docs/one-group.md
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


def train_on(rows: list[dict], beta: float, epochs: int, words: list[str]) -> tuple:
    """The rows with their advantages, by what factor an update changes each probability, its metrics."""
    args = train.parse_args([*words, "--unlikeliness", str(beta), "--ppo-epochs", str(epochs)])
    rows = add_advantages(rows, args)
    if rows[0]["advantage"] is None:
        fail(f"all {G} rewards of this group are equal, so it is dropped; choose another --problem or --seed")
    sampler, _ = build.load_sampler(args, args.model, weights=True)
    model, reference, optimizer = build.build(args, None, sampler, longest=None)
    before = completion_logprobs(model, rows)
    metrics = train.update(model, reference, optimizer, rows, args, step=0)
    gained = [float(new.sum() - old.sum()) for new, old in zip(completion_logprobs(model, rows), before)]
    return rows, np.exp(gained), metrics


def page(statement: str, grpo: list, unlikely: list, kl: float, lr: float) -> str:
    """The page; grpo, unlikely: what train_on returned with one and with two epochs."""
    plain, shaped = grpo[0][0], unlikely[0][0]
    logprobs = [sum(row["logprobs"]) for row in shaped]
    listing = " #  log-prob  rank  Lean      completion"
    for i, (row, logprob) in enumerate(zip(shaped, logprobs), 1):
        text = " ⏎ ".join(line.strip() for line in row["completion"].strip().split("\n"))
        listing += f"\n{i:2d} {logprob:9.2f} {row['rank']:5.1f}  {row['verdict']:9s} {text}"
    columns = [["#", *range(1, G + 1)], ["reward R", *(f"{row['reward']:g}" for row in plain)]]
    columns.append(["A, GRPO", *(f"{row['advantage']:+.2f}" for row in plain)])
    columns.append(["r, unlikely", *(f"{row['shaped_reward']:.3f}" for row in shaped)])
    columns.append(["A, unlikely", *(f"{row['advantage']:+.2f}" for row in shaped)])
    for name, runs in (("GRPO", grpo), ("unlikely", unlikely)):
        columns.append([f"{name}, 1 epoch", *(f"x {factor:.2f}" for factor in runs[0][1])])
        columns.append([f"{name}, 2 epochs", *(f"x {factor:.2f}" for factor in runs[1][1])])
    right = [i for i, row in enumerate(shaped) if row["reward"]]
    likely, rare = right[0], right[-1]
    low, high = shaped[likely]["rank"], shaped[rare]["rank"]
    r = np.array([row["shaped_reward"] for row in shaped])
    past_the_clip = 2 * unlikely[1][2]["clip_fraction"]  # a mean over both epochs, and 0 in the first
    same, times = plain[likely]["advantage"], np.exp(logprobs[likely] - logprobs[rare])
    return f"""# One group, by hand

A theorem, {G} completions that the embedded base prover sampled, and Lean's verdicts. The completions are
ordered by their rank under pi_old; rank 0 is the most likely. This page is made by

    python tools/one_group.py > docs/one-group.md

with the stages' own functions.

```
{statement}

{listing}
```

GRPO's advantage is A = (R - mean R) / std R. {len(right)} completions are correct, and each of them gets the
same {same:+.2f}, likely or rare. But completion {likely + 1} is {times:,.0f} times as probable as completion
{rare + 1}: later groups hold it, and reinforce it, that much more often. This is the rank bias.

The unlikeliness reward pays more for the rarer of two correct completions:

    r = R (1 - beta_rank (G - rank) / G)
    completion {likely + 1}                   1 - {BETA} x ({G} - {low:g}) / {G} = {r[likely]:.3f}
    completion {rare + 1}                   1 - {BETA} x ({G} - {high:g}) / {G} = {r[rare]:.3f}
    A = (r - mean r) / std r       mean r = {r.mean():.3f}, std r = {r.std(ddof=1):.3f}

{markdown(columns)}

The right half says by what factor one update on this group multiplies each probability (KL {kl:g}, learning
rate {lr:g}). In the first epoch the ratio is 1 and nothing is clipped. The second epoch goes over the same
completions again; with the unlikeliness reward it finds {past_the_clip:.0%} of the tokens past the clip,
where they get no more gradient. Equal completions share their rank and advantage, and a wrong one keeps
r = 0. Had all {G} been correct, the group filter would have dropped the group before the reward could rank
them.
"""


def main() -> None:
    parser = flags("One group of 8 completions through every stage, as Markdown.")
    parser.add_argument("--problem", default="t_37880", help="id in toy/train.jsonl")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the sampler")
    own = parser.parse_args()
    words = ["--device", "cpu", "--num-samples", str(G)]
    args = train.parse_args(words)
    problems = [problem for problem in sample.read_problems(args.problems) if problem["id"] == own.problem]
    if not problems:
        fail(f"{args.problems} has no problem {own.problem}; give the id of one")
    model, tokenizer = build.load_sampler(args, args.model, weights=True)
    sampled = sample.sample_rows(model, tokenizer, problems, G, args, seed=own.seed, progress=False)
    rows = sorted(verify.verify_rows(list(sampled), progress=False), key=lambda row: -sum(row["logprobs"]))
    results = [[train_on(rows, beta, epochs, words) for epochs in (1, 2)] for beta in (0.0, BETA)]
    grpo, unlikely = results
    print(page(problems[0]["statement"], grpo, unlikely, args.kl, args.lr), end="")


if __name__ == "__main__":
    run(main)
