"""How long does a GRPO step take, and how much memory, against TRL's GRPOTrainer?

    python -m venv trlvenv && trlvenv/bin/pip install torch==2.13.0 trl==1.16.0
    python bench/trl_step.py --peer-python trlvenv/bin/python
    python bench/trl_step.py --case random --peer-python trlvenv/bin/python
    python bench/trl_step.py --case llama --device cuda --per-device 32 64 --peer-python trlvenv/bin/python

Cases: "prover", the embedded prover, 16 problems, 32 completions each of at most 200 tokens; "random", the
same with random weights, whose completions are long and share next to nothing; "llama", 1.1 billion random
weights, 8 problems, 32 completions of 256 tokens. Clip 0.2, KL 0.02, mean over tokens, one optimizer step an
iteration. On the CPU in float32; on a GPU both compute in bfloat16, with float32 weights for the optimizer.
The reward is the parity of a completion's bytes: no group is all right or all wrong, and both learn from all
of them; the learning rate is 0, so that every step samples from the same model. Each trainer is a process of
its own with 2 threads, and they take turns, a step each, the first unmeasured. Generation is all from prompts
to texts, update the rest but the reward. Memory is the largest resident size of the process meanwhile (Linux),
of the GPU what torch has allocated. Median [smallest, largest].
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
G, CLIP, KL = 32, 0.2, 0.02
PROBLEMS = {"prover": 16, "random": 16, "llama": 8}
TOKENS = {"prover": 200, "random": 200, "llama": 256}


def make_model(case, small, folder):
    """Saves the model of a case; returns its folder."""
    if case == "prover":
        return f"{HERE}/toy/base"
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(f"{HERE}/toy/base")
    if case == "llama":
        size = dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, vocab_size=32000)
        if small:
            size = dict(
                hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=config.vocab_size
            )
        ends = dict(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, tie_word_embeddings=False
        )
        config = LlamaConfig(
            num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048, **size, **ends
        )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{HERE}/toy/base/{name}", folder)
    return folder


def reward(completions, **columns):
    return [float(sum(text.encode()) % 2) for text in completions]


class Clock(dict):
    """{part: (seconds, peak memory in GB)}, of what lies between a lap and the one before."""

    def __init__(self, device):
        self.device = device

    def lap(self, part):
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() / 1e9
            torch.cuda.reset_peak_memory_stats()
        else:
            with open("/proc/self/status", encoding="ascii") as file:
                peak = int(file.read().split("VmHWM:")[1].split()[0]) / 1e6
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")  # the peak begins anew
        if part:
            seconds, highest = self.get(part, (0.0, 0.0))
            self[part] = seconds + time.perf_counter() - self.start, max(highest, peak)
        self.start = time.perf_counter()

    def answer(self, completions):
        print(json.dumps(dict(self, tokens=sum(map(len, completions)))), flush=True)
        self.clear()


def ours(args):
    """A step for each line of standard input."""
    import advantage
    import train
    from lib import build
    from sample import read_problems, sample_rows

    clock, count = Clock(args.device), PROBLEMS[args.case]
    dtype = "bfloat16" if args.device == "cuda" else "float32"
    words = f"--device {args.device} --dtype {dtype} --kl {KL} --clip {CLIP} --lr 0 --grad-skip 1e9 --model {args.model}"
    words += f" --ppo-epochs {args.iterations} --minibatch {count * G} --max-new-tokens {TOKENS[args.case]}"
    words += f" --micro-batch-tokens {args.micro_batch_tokens}"
    settings = train.parse_args(words.split())
    sampler, tokenizer = build.load_sampler(settings, args.model, weights=True)
    model, reference, optimizer = build.build(settings, None, sampler, None)
    problems = read_problems(f"{HERE}/toy/train.jsonl", count)
    for step, _ in enumerate(sys.stdin):
        clock.lap(None)
        rows = list(sample_rows(sampler, tokenizer, problems, G, settings, seed=step, progress=False))
        clock.lap("generation")
        texts = [row["completion"] for row in rows]
        rows = [dict(row, reward=number) for row, number in zip(rows, reward(texts))]
        clock.lap("reward")
        rows = [row for row in advantage.add_advantages(rows, settings) if row["advantage"] is not None]
        train.update(model, reference, optimizer, rows, settings, step)
        clock.lap("update")
        clock.answer([row["completion_ids"] for row in rows])


def theirs(args):
    """The same with TRL, whose trainer waits for a line before each step."""
    import datasets
    import transformers
    import trl

    clock, found = Clock(args.device), []
    count, on_gpu = PROBLEMS[args.case], args.device == "cuda"

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
        prompts = [json.loads(line)["statement"] for line, _ in zip(file, range(count))]
    parts = count * G // args.per_device[0]
    with tempfile.TemporaryDirectory() as folder:
        config = trl.GRPOConfig(
            folder,
            use_cpu=not on_gpu,
            bf16=on_gpu,
            model_init_kwargs={"dtype": "float32"},
            gradient_checkpointing=False,
            num_generations=G,
            max_completion_length=TOKENS[args.case],
            temperature=1.0,
            beta=KL,
            epsilon=CLIP,
            loss_type="dapo",
            num_iterations=args.iterations,
            per_device_train_batch_size=args.per_device[0],
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


def start_child(python, name, args, iterations, per_device, model):
    flags = dict(child=name, case=args.case, device=args.device, model=model, iterations=iterations)
    flags |= {"per-device": per_device, "micro-batch-tokens": args.micro_batch_tokens}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    settings = {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "3000", "TRANSFORMERS_VERBOSITY": "error"}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return subprocess.Popen([python, os.path.abspath(__file__), *words], env=os.environ | settings, **pipes)


def take_turns(children, rounds):
    """{name: what each of its measured steps said}"""
    steps = {name: [] for name in children}
    for _ in range(rounds + 1):
        for name, child in children.items():
            child.stdin.write("\n")
            child.stdin.flush()
            steps[name].append(json.loads(child.stdout.readline()))
    for child in children.values():
        child.kill()
    return {name: several[1:] for name, several in steps.items()}


def compare(args, model):
    parts = ("generation", "update")
    print(
        "| iterations | part | ours, s | TRL, s | TRL over ours | ours, GB | TRL, GB |\n|---|---|---|---|---|---|---|"
    )
    for iterations in args.iterations:
        for per_device in args.per_device:
            children = {"ours": start_child(sys.executable, "ours", args, iterations, per_device, model)}
            if args.peer_python:
                children["TRL"] = start_child(args.peer_python, "TRL", args, iterations, per_device, model)
            steps = take_turns(children, args.rounds)
            for part in (*parts, "step"):
                some = parts if part == "step" else [part]
                seconds = [[sum(step[one][0] for one in some) for step in steps[name]] for name in steps]
                memory = [max(step[one][1] for one in some for step in steps[name]) for name in steps]
                if args.peer_python:
                    seconds.append([peer / own for own, peer in zip(*seconds)])
                cells = [f"{statistics.median(x):.2f} [{min(x):.2f}, {max(x):.2f}]" for x in seconds]
                cells += [f"{one:.2f}" for one in memory]
                print(f"| {iterations} | {part}, {per_device} per device | {' | '.join(cells)} |", flush=True)
    said = [f"{name} {statistics.mean(step['tokens'] for step in steps[name]):.0f}" for name in steps]
    print(f"\ncompletion tokens a step: {', '.join(said)}")


def main():
    parser = argparse.ArgumentParser(description="A GRPO step against TRL's.")
    add = parser.add_argument
    add("--peer-python", help="python of an environment with trl; without it ours alone")
    add("--case", choices=list(PROBLEMS), default="prover", help="see above")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--small", action="store_true", help="the llama of a toy size")
    add("--rounds", type=int, default=3, help="measured steps of each, with each number of iterations")
    add("--per-device", type=int, nargs="+", default=[16], help="TRL's per_device_train_batch_size, to try")
    add("--micro-batch-tokens", type=int, default=2048, help="ours")
    add("--iterations", type=int, nargs="+", default=[1, 2], help="TRL's word for PPO epochs")
    add("--model", help="of a child")
    add("--child", choices=["ours", "TRL"], help="be this one")
    args = parser.parse_args()
    if args.child:
        args.iterations = args.iterations[0]
        return (ours if args.child == "ours" else theirs)(args)
    with tempfile.TemporaryDirectory() as folder:
        compare(args, make_model(args.case, args.small, folder))


if __name__ == "__main__":
    main()
