"""Two pictures of the paper's argument, on numbers that fit on a page: no prover, no Lean.

    python results/mechanism.py --out results

Left: why many tries need rare proofs (section 3.4). Training multiplies a proof's probability p by 1 + e; what that
adds to pass@N is largest for p near 1/N. Right: what an update of train.py does to likely and to unlikely correct
samples (sections 4.1 and 4.2). The policy is a table of 64 completions, half of them correct, with probabilities from
0.095 down to 0.0002; 4,000 times a group of 32 is drawn from it and goes through advantage.py's advantages and train.py's
clipped loss. Before the second epoch the likely correct samples are past the clip, so that it moves the others.
"""

import os
import sys
from typing import Any

import numpy as np

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
import torch  # noqa: E402
from report import fill  # noqa: E402

from advantage import add_advantages, options  # noqa: E402
from lib.cli import fail, flags, number  # noqa: E402
from lib.figures import markdown, panels, save  # noqa: E402
from train import token_losses  # noqa: E402

CORRECT = torch.arange(64) % 2 == 0  # [64] completions from likely to unlikely, every other one correct
GROUP = 32


def gain(p: Any, N: int, e: float = 0.2) -> Any:
    """What pass@N gains when the success probability p grows by the factor 1 + e, to 1 at most (section 3.4)."""
    return (1 - p) ** N - (1 - np.minimum(1, (1 + e) * p)) ** N


def policy() -> torch.Tensor:
    """Log-probabilities [64] of the table, each lower by 0.1 than the one before."""
    return torch.log_softmax(-0.1 * torch.arange(64.0), 0)


def epochs_of_one_group(
    unlikeliness: float, epochs: int, lr: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """One group's update: log-probabilities [epochs + 1, 64] before and after each epoch, the completions drawn [32], and for
    each epoch and sample whether the clip takes its gradient away [epochs, 32]; None where the group is dropped."""
    logits = policy().clone().requires_grad_()
    old = logits.detach().clone()
    drawn = torch.multinomial(old.exp(), GROUP, replacement=True, generator=generator)
    rows = [
        {"id": "table", "completion_ids": [k], "logprobs": [old[k].item()], "reward": float(CORRECT[k])}
        for k in drawn.tolist()
    ]
    rows = add_advantages(rows, options(f"--unlikeliness {unlikeliness}"))
    if rows[0]["advantage"] is None:
        return None
    advantages = torch.tensor([row["advantage"] for row in rows])
    history, clips = [old], []
    for _ in range(epochs):
        losses, _, clipped = token_losses(
            logits.log_softmax(0)[drawn], old[drawn], None, advantages, 0.2, 0.0
        )
        (gradient,) = torch.autograd.grad(losses.mean(), logits)
        logits.data -= lr * gradient
        history.append(logits.detach().log_softmax(0))
        clips.append(clipped)
    return torch.stack(history), drawn, torch.stack(clips)


def average(
    unlikeliness: float, epochs: int, groups: int = 4000, lr: float = 2.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(change of log-probability [epochs, 64] after each epoch, share of its samples past the clip [epochs, 64]), over the
    groups in which a completion was drawn."""
    generator = torch.Generator().manual_seed(seed)
    change, clipped, seen, samples = (
        torch.zeros(epochs, 64),
        torch.zeros(epochs, 64),
        torch.zeros(64),
        torch.zeros(64),
    )
    for _ in range(groups):
        if result := epochs_of_one_group(unlikeliness, epochs, lr, generator):
            history, drawn, clips = result
            there = torch.zeros(64, dtype=torch.bool).index_fill_(0, drawn, True)
            change += torch.where(there, history[1:] - history[0], 0)
            seen += there
            samples.index_add_(0, drawn, torch.ones(GROUP))
            clipped.index_add_(1, drawn, clips.float())
    return change / seen, clipped / samples


def main():
    parser = flags("Why large N needs rare proofs, and what epochs and rewards do to them.")
    parser.add_argument(
        "--out",
        default="results",
        help="folder for mechanism.png; the table goes into its README.md, if it has one",
    )
    parser.add_argument(
        "--groups", type=number(int, 1000), default=4000, help="groups drawn for the right panel"
    )
    args = parser.parse_args()
    try:
        os.makedirs(args.out, exist_ok=True)
    except OSError as error:
        fail(f"cannot make the folder {args.out} ({error.strerror}); choose another --out")
    figure, (left, right) = panels(1, 2, height=4.2)
    p = np.logspace(-4, 0, 400)
    for N in (1, 8, 64, 512):
        left.plot(p, 100 * gain(p, N), linewidth=2, label=f"N = {N}")
        print(f"N = {N}: pass@N gains most at p = {p[gain(p, N).argmax()]:.4f} (1/N = {1 / N:.4f})")
    left.set(
        xscale="log",
        xlabel="p, a problem's success probability",
        ylabel="points that pass@N gains from 1.2 p",
    )
    left.legend()
    probability, third = policy().exp()[CORRECT], len(policy()[CORRECT]) // 3
    columns = [
        [
            "beta_rank",
            "epochs",
            "likeliest third gains",
            "rarest third gains",
            "likeliest past the clip",
            "rarest past the clip",
        ]
    ]
    for unlikeliness, look in ((0.0, "-"), (0.25, "--")):
        change, clipped = average(unlikeliness, 3, args.groups)
        for epoch, color in zip(range(3), ("#4477aa", "#ee6677", "#228833")):
            values = change[epoch][CORRECT]
            right.plot(
                probability,
                values,
                look,
                color=color,
                linewidth=2,
                label=f"{epoch + 1} epoch{'s' * (epoch > 0)}, beta {unlikeliness:g}",
            )
            past = clipped[epoch][CORRECT]
            columns.append(
                [
                    unlikeliness,
                    epoch + 1,
                    f"{values[:third].mean():+.3f}",
                    f"{values[-third:].mean():+.3f}",
                    f"{past[:third].mean():.0%}",
                    f"{past[-third:].mean():.0%}",
                ]
            )
    right.set(xscale="log", xlabel="probability of a correct sample", ylabel="change of its log-probability")
    right.set_ylim(0, 0.34)
    right.invert_xaxis()
    for ax in (left, right):
        ax.xaxis.set_major_formatter("{x:g}")
    right.legend(fontsize=9, ncols=2, loc="upper center", handlelength=1.5, columnspacing=1)
    path = os.path.join(args.out, "mechanism.png")
    save(figure, path)
    table = markdown([list(column) for column in zip(*columns)])
    fill(os.path.join(args.out, "README.md"), {"mechanism": table})
    print(
        f"\nchange of log-probability, and share past the clip before the last epoch, of correct samples:\n\n{table}\n\nFigure: {path}"
    )


if __name__ == "__main__":
    main()
