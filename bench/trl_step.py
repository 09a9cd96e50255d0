"""How long does a GRPO step take, and how much memory, against TRL's GRPOTrainer?

    python -m venv trlvenv && trlvenv/bin/pip install torch==2.13.0 trl==1.16.0
    python bench/trl_step.py --peer-python trlvenv/bin/python

The embedded prover, 16 problems, 32 completions each of at most 200 tokens, float32, clip 0.2, KL 0.02,
mean over tokens, one optimizer step an iteration. The reward is the parity of a completion's bytes: no
group is all right or all wrong, and both learn from all of them; the learning rate is 0, so that every step
samples from the same model. Each trainer is a process of its own with 2 threads, and they take turns, a
step each, the first unmeasured. Generation is all from prompts to texts, update the rest but the reward.
Memory is the largest resident size of the process meanwhile (Linux). Median [smallest, largest].
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
PROBLEMS, G, TOKENS, CLIP, KL = 16, 32, 200, 0.2, 0.02


def reward(completions, **columns):
    return [float(sum(text.encode()) % 2) for text in completions]


class Clock(dict):
    """{part: (seconds, peak memory in GB)}, of what lies between a lap and the one before."""

    def lap(self, part):
        with open("/proc/self/status", encoding="ascii") as file:
            peak = int(file.read().split("VmHWM:")[1].split()[0]) / 1e6
        if part:
            seconds, highest = self.get(part, (0.0, 0.0))
            self[part] = seconds + time.perf_counter() - self.start, max(highest, peak)
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # the peak begins anew
        self.start = time.perf_counter()

    def answer(self, completions):
        print(json.dumps(dict(self, tokens=sum(map(len, completions)))), flush=True)
        self.clear()


def ours(args):
    """A step for each line of standard input."""
    import torch

    import advantage
    import train
    from lib.model import load_model
    from sample import options, read_problems, sample_rows

    (model, tokenizer), (reference, _), clock = load_model(args.model), load_model(args.model), Clock()
    reference.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01)
    problems = read_problems(f"{HERE}/toy/train.jsonl", PROBLEMS)
    settings = SimpleNamespace(
        temperature=1.0,
        clip=CLIP,
        kl=KL,
        seed=0,
        ppo_epochs=args.iterations,
        minibatch=PROBLEMS * G,
        micro_batch_tokens=2048,
        dtype="float32",
        grad_clip=1.0,
        grad_skip=1e9,
        reference_device="device",
    )
    for step, _ in enumerate(sys.stdin):
        clock.lap(None)
        args = options(f"--max-new-tokens {TOKENS}")
        rows = list(sample_rows(model, tokenizer, problems, G, args, seed=step, progress=False))
        clock.lap("generation")
        rows = [
            dict(row, reward=number) for row, number in zip(rows, reward([row["completion"] for row in rows]))
        ]
        clock.lap("reward")
        train.update(
            model, reference, optimizer, advantage.add_advantages(rows, advantage.options()), settings, step
        )
        clock.lap("update")
        clock.answer([row["completion_ids"] for row in rows])


def theirs(args):
    """The same with TRL, whose trainer waits for a line before each step."""
    import datasets
    import transformers
    import trl

    clock, found = Clock(), []

    class Trainer(trl.GRPOTrainer):
        def _generate(self, *rest):
            clock.lap("update")
            result = super()._generate(*rest)
            clock.lap("generation")
            found[:] = result[1]
            return result

        def _calculate_rewards(self, *rest):
            clock.lap("update")
            result = super()._calculate_rewards(*rest)
            clock.lap("reward")
            return result

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **rest):
            if state.global_step % args.num_iterations == 0:
                control.should_training_stop |= not sys.stdin.readline()
                clock.lap(None)

        def on_step_end(self, args, state, control, **rest):
            if state.global_step % args.num_iterations == 0:
                clock.lap("update")
                clock.answer(found)

    with open(f"{HERE}/toy/train.jsonl", encoding="utf-8") as file:
        prompts = [json.loads(line)["statement"] for line, _ in zip(file, range(PROBLEMS))]
    parts = PROBLEMS * G // args.per_device
    with tempfile.TemporaryDirectory() as folder:
        config = trl.GRPOConfig(
            folder,
            use_cpu=True,
            bf16=False,
            model_init_kwargs={"dtype": "float32"},
            gradient_checkpointing=False,
            num_generations=G,
            max_completion_length=TOKENS,
            temperature=1.0,
            beta=KL,
            epsilon=CLIP,
            loss_type="dapo",
            num_iterations=args.iterations,
            per_device_train_batch_size=args.per_device,
            gradient_accumulation_steps=parts,
            steps_per_generation=parts,
            learning_rate=0.0,
            lr_scheduler_type="constant",
            weight_decay=0.01,
            max_grad_norm=1.0,
            max_steps=10**6,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
        trainer = Trainer(
            args.model,
            reward,
            config,
            datasets.Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
            callbacks=[Turns()],
        )
        trainer.train()


def main():
    parser = argparse.ArgumentParser(description="A GRPO step against TRL's.")
    parser.add_argument("--peer-python", help="python of an environment with trl")
    parser.add_argument(
        "--rounds", type=int, default=3, help="measured steps of each, with one and with two iterations"
    )
    parser.add_argument(
        "--per-device",
        type=int,
        default=16,
        help="TRL's per_device_train_batch_size; the rest is gradient accumulation",
    )
    parser.add_argument("--model", default=f"{HERE}/toy/base")
    parser.add_argument("--child", choices=["ours", "TRL"], help="be this one")
    parser.add_argument("--iterations", type=int, help="of a child")
    args = parser.parse_args()
    if args.child:
        return (ours if args.child == "ours" else theirs)(args)
    if not args.peer_python:
        parser.error("give --peer-python, the Python of an environment with trl (see the docstring)")
    parts, steps = ("generation", "update"), {}
    print(
        "| iterations | part | ours, s | TRL, s | TRL over ours | ours, GB | TRL, GB |\n|---|---|---|---|---|---|---|"
    )
    for iterations in (1, 2):
        command = [
            os.path.abspath(__file__),
            "--iterations",
            str(iterations),
            "--per-device",
            str(args.per_device),
            "--model",
            args.model,
        ]
        environment = os.environ | {
            "OMP_NUM_THREADS": "2",
            "GOMP_SPINCOUNT": "3000",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        children = {
            name: subprocess.Popen(
                [python, *command, "--child", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for name, python in (("ours", sys.executable), ("TRL", args.peer_python))
        }
        steps = {name: [] for name in children}
        for _ in range(args.rounds + 1):
            for name, child in children.items():
                child.stdin.write("\n")
                child.stdin.flush()
                steps[name].append(json.loads(child.stdout.readline()))
        for child in children.values():
            child.kill()
        for part in (*parts, "step"):
            (own, own_gb), (peer, peer_gb) = (
                zip(
                    *(
                        [sum(step[one][0] for one in some), max(step[one][1] for one in some)]
                        for step in steps[name][1:]
                    )
                )
                for name in children
                for some in [parts if part == "step" else [part]]
            )
            cells = [
                f"{statistics.median(x):.2f} [{min(x):.2f}, {max(x):.2f}]"
                for x in (own, peer, [b / a for a, b in zip(own, peer)])
            ]
            print(
                f"| {iterations} | {part} | {' | '.join(cells)} | {max(own_gb):.2f} | {max(peer_gb):.2f} |",
                flush=True,
            )
    print(
        "\ncompletion tokens a step: "
        + ", ".join(f"{name} {statistics.mean(s['tokens'] for s in steps[name]):.0f}" for name in steps)
    )


if __name__ == "__main__":
    main()
