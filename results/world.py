"""A synthetic world where pass@N is exact, and the paper's training in it, by the project's own code.

World: problems are vectors x ~ N(0, I_d), strategies unit vectors k_a; a solves x if x . k_a > threshold. The
policy draws strategies from the softmax of W x + b. The base model has W_a = skill k_a + noise and a habit
b_a = -habit log(a): it prefers the first strategies whatever the problem. Training is the paper's: groups of
32, advantages from advantage.py, the loss from train.py, an update once 256 draws wait. Only sampling is
random: pass@N is the mean over held-out problems of 1 - (1 - p)^N, p the probability that a draw solves it.

Unlike train.py: a completion is one token; Adam without weight decay; no gradient clipping.
"""

from argparse import ArgumentParser, Namespace

import numpy as np
import torch

import advantage
from lib.cli import parse_settings
from train import token_losses

NS = 2 ** np.arange(10)  # the N of pass@N: 1 .. 512
RANKS = np.arange(8)  # of a problem's right strategies; 0 = the base model's most likely
TRAIN, HELD_OUT, PROBLEMS_PER_STEP, GROUP, BUFFER = 2400, 500, 16, 32, 256
KNOBS = {  # flag: (default, lowest, highest, help)
    "strategies": (128, 8, 4096, "K, the number of strategies"),
    "features": (32, 1, 4096, "d, the length of a problem's vector"),
    "threshold": (1.8, 0, 3, "the higher, the fewer strategies solve a problem"),
    "habit": (2.1, 0, 20, "how much the base model prefers its favourite strategies"),
    "skill": (0.5, 0, 20, "how well it sees which strategy fits a problem"),
    "noise": (0.5, 0, 20, "how much it errs in that"),
    "steps": (150, 1, 10**4, "sampling steps of 16 problems and 32 draws each"),
    "lr": (0.03, 0, 0.3, "Adam's learning rate"),
}


def make_world(args: Namespace, seed: int) -> tuple[list, tuple, tuple]:
    """(base model [W [K, d], b [K]], training problems (features [P, d], solves [P, K]), held-out ones)."""
    rng = np.random.default_rng(seed)
    keys = rng.normal(size=(args.strategies, args.features))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    noise = rng.normal(size=keys.shape) / np.sqrt(args.features)
    bias = -args.habit * np.log(np.arange(1, args.strategies + 1))

    def problems(count):
        solvable = np.empty((0, args.features))
        while len(solvable) < count:
            drawn = rng.normal(size=(count, args.features))
            solvable = np.concatenate([solvable, drawn[(drawn @ keys.T > args.threshold).any(axis=1)]])
        features = solvable[:count]
        return torch.from_numpy(features), torch.from_numpy(features @ keys.T > args.threshold)

    base = [torch.from_numpy(args.skill * keys + args.noise * noise), torch.from_numpy(bias)]
    return base, problems(TRAIN), problems(HELD_OUT)


def logprobs(policy: list, features: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [P, K] of the strategies under policy = [W, b]."""
    return (features @ policy[0].T + policy[1]).log_softmax(1)


def pass_at_n(p: np.ndarray) -> np.ndarray:
    """pass@N for every N in NS; p [P] is each problem's probability of a right draw."""
    return 1 - ((1 - p[:, None]) ** NS).mean(axis=0)


def uplift(before: torch.Tensor, after: torch.Tensor, solves: torch.Tensor) -> np.ndarray:
    """Uplift rate (section 3.5): the share of right strategies that became likelier, by rank."""
    order = before.masked_fill(~solves, -torch.inf).argsort(dim=1, descending=True)[:, : len(RANKS)]
    right, likelier = solves.gather(1, order), (after > before).gather(1, order)
    return ((right & likelier).sum(0) / right.sum(0)).numpy()


def sample_groups(policy: list, features: torch.Tensor, solves: torch.Tensor, args, generator) -> list:
    """Groups (features [d], actions [G], advantages [G]), one per problem unless it is dropped."""
    with torch.no_grad():
        scores = logprobs(policy, features)
    actions = torch.multinomial(scores.exp(), GROUP, replacement=True, generator=generator)  # [P, G]
    scores, rewards = scores.gather(1, actions).numpy(), solves.gather(1, actions).double().numpy()
    groups = []
    for i, completions in enumerate(actions.tolist()):
        if not rewards[i].any():
            continue  # the group filter drops it, whatever the ranks
        ranks = advantage.likelihood_rank(completions, scores[i])
        if result := advantage.group_advantages(rewards[i], ranks, args):
            groups.append((features[i], actions[i], torch.from_numpy(result[1])))
    return groups


def update(policy: list, base: list, optimizer: torch.optim.Optimizer, groups: list, args, generator) -> None:
    """PPO epochs over the groups, in mini-batches of about 256 draws like those of train.py."""
    features, actions, advantages = map(torch.stack, zip(*groups))  # [P, d], [P, G], [P, G]
    problem = torch.arange(len(groups)).repeat_interleave(GROUP)  # [N], N = P G
    action, advantages = actions.flatten(), advantages.flatten()
    with torch.no_grad():
        old, ref = logprobs(policy, features)[problem, action], logprobs(base, features)[problem, action]
    for _ in range(args.ppo_epochs):
        order = torch.randperm(len(action), generator=generator)
        for part in order.tensor_split(max(1, round(len(action) / BUFFER))):
            new = logprobs(policy, features)[problem[part], action[part]]
            losses, _, _ = token_losses(new, old[part], ref[part], advantages[part], 0.2, args.kl)
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()


def add_flags(parser: ArgumentParser) -> None:
    """The flags of train.py that make a setting."""
    advantage.add_flags(parser)
    parser.add_argument("--kl", type=float)
    parser.add_argument("--ppo-epochs", type=int, default=1)


def train(policy: list, features: torch.Tensor, solves: torch.Tensor, world, args, seed: int) -> None:
    """Trains the policy in place: the paper's loop of sampling steps and updates."""
    generator = torch.Generator().manual_seed(seed)
    base = [weights.detach().clone() for weights in policy]
    optimizer, buffer = torch.optim.Adam(policy, lr=world.lr), []
    for step in range(world.steps):
        if step % (TRAIN // PROBLEMS_PER_STEP) == 0:  # a new pass over the problems
            batches = torch.randperm(TRAIN, generator=generator).split(PROBLEMS_PER_STEP)
        batch = batches[step % len(batches)]
        buffer += sample_groups(policy, features[batch], solves[batch], args, generator)
        if len(buffer) * GROUP >= BUFFER:
            update(policy, base, optimizer, buffer, args, generator)
            buffer = []


def train_settings(job: tuple[Namespace, list[str], int]) -> list[np.ndarray]:
    """Every setting in one seed's world, in percent: pass@N before and after training, uplift rates."""
    world, settings, seed = job
    torch.set_num_threads(1)
    base, training, (new_features, new_solves) = make_world(world, seed)

    def measured(model):
        with torch.no_grad():
            p = (logprobs(model, new_features).exp() * new_solves).sum(1).numpy()
            return pass_at_n(p), logprobs(model, training[0])

    before, old = measured(base)
    results = []
    for words in settings:
        policy = [weights.clone().requires_grad_() for weights in base]
        train(policy, *training, world, parse_settings(add_flags, words), seed)
        after, new = measured(policy)
        results.append(100 * np.concatenate([before, after, uplift(old, new, training[1])]))
    return results
