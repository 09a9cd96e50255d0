"""Peak memory of completion log-probs with backward, logits all at once and in chunks.

    python bench/logit_memory.py --tokens 2048

A model with a large vocabulary and next to nothing else; each measurement is the largest resident size of a
process of its own.
"""

import argparse
import os
import resource
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)


def measure(args):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lib.logprobs import make_batch, token_logprobs

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=args.vocabulary,
            hidden_size=args.hidden,
            intermediate_size=args.hidden,
            num_hidden_layers=1,
            num_attention_heads=8,
        )
    )
    rows = [
        {"prompt_ids": [1], "completion_ids": torch.randint(args.vocabulary, (512,)).tolist()}
        for _ in range(args.tokens // 512)
    ]
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)  # is there in either case
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    batch = make_batch(rows, [[i] for i in range(len(rows))])
    token_logprobs(model, batch, chunk=args.chunk).sum().backward()
    after, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter() - start
    name = f"chunks of {args.chunk}" if args.chunk < args.tokens else "all at once"
    print(
        f"{name:16s} {(after - before) / 2**20:6.2f} GiB above the model's and its gradient's {before / 2**20:.2f} GiB, "
        f"{seconds:.1f} s",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description="Peak memory with and without chunks of logits.")
    parser.add_argument("--vocabulary", type=int, default=102400)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=2048, help="completion tokens of the micro-batch")
    parser.add_argument("--chunk", type=int, help="measure this alone, in this process")
    args = parser.parse_args()
    if args.chunk:
        return measure(args)
    from lib.logprobs import LOGITS_AT_ONCE

    for chunk in (args.tokens, LOGITS_AT_ONCE // args.vocabulary, 128):
        subprocess.run([sys.executable, *sys.argv, "--chunk", str(chunk)], check=True)


if __name__ == "__main__":
    main()
