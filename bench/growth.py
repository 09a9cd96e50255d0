"""Do the time and the memory of each stage grow with the completions, and with their length, and no faster?

    # 1, 4 and 16 times as many completions, and 4 times as long ones
    python bench/growth.py
    # so many verified rows, against a bare loop of json.loads over them
    python bench/growth.py --rows 1000000 --rounds 2

1x is 16 problems with 32 samples each of the embedded prover; advantage.py and evaluate.py, which are
quick, get 32 times as many rows, the same ones under other ids. For 4 times the length the sampler draws
200 tokens of each completion instead of 50 (from a copy of the prover whose end-of-text is another one,
which it hardly ever says), and the other stages get rows whose prompt, tokens and log-probabilities stand
there four times, and their proofs four times as many lines. Each stage is a command in a process of its
own; of its seconds, those of the same command with next to nothing to do are taken away. Memory is its
largest resident size. Ratios are of CPU time, Lean's included, which other work on the machine disturbs
less; 4.0 is linear.
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
from lib.jsonl import read_jsonl, write_jsonl  # noqa: E402

BARE = "import json, sys\nfor line in open(sys.argv[1], encoding='utf-8'): json.loads(line)"


def measure(*command):
    """(seconds, GB, CPU seconds) of a Python process. Linux counts this process's memory as the child's
    before it begins, so little is kept here."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=HERE, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(map(str, command))} failed:\n{said.read().decode()}")
    return (
        time.perf_counter() - start,
        used.ru_maxrss / 1e6,
        used.ru_utime + used.ru_stime,
    )  # of all that it waited for too


def longer(row, times):
    """The row with so many times the tokens, and lines of its proof."""
    lines = "\n  have h0 : True := True.intro" * ((times - 1) * row["completion"].count("\n"))
    return dict(
        row,
        completion=lines + row["completion"],
        **{key: row[key] * times for key in ("prompt_ids", "completion_ids", "logprobs")},
    )


def repeated(rows, count, path):
    """`count` rows: the given ones, again and again, each time under other ids."""
    with open(path, "w", encoding="utf-8") as file:
        lines = [json.dumps(dict(row, id="@" + row["id"]), ensure_ascii=False) + "\n" for row in rows]
        for k in range(count):
            file.write(lines[k % len(lines)].replace('"@', f'"{k // len(lines)}@', 1))
    return path


def sample(folder, name, limit, model="toy/base", tokens=200, samples=32):
    out = f"{folder}/{name}.jsonl"
    return measure(
        "sample.py",
        "--model",
        model,
        "--problems",
        "toy/train.jsonl",
        "--limit",
        limit,
        "--num-samples",
        samples,
        "--max-new-tokens",
        tokens,
        "--out",
        out,
    ), out


def stages(folder):
    """Yields (stage, size, what measure says); size 0 is next to nothing, 1L and 4L are the lengths."""
    endless = f"{folder}/endless"
    shutil.copytree(f"{HERE}/toy/base", endless)
    for name, before, after in (
        ("generation_config.json", '"eos_token_id": 2', '"eos_token_id": 0'),
        ("tokenizer_config.json", '"eos_token": "</s>"', '"eos_token": "<pad>"'),
    ):
        with open(f"{endless}/{name}", encoding="utf-8") as file:
            text = file.read()
        with open(f"{endless}/{name}", "w", encoding="utf-8") as file:
            file.write(text.replace(before, after))
    yield "sample.py", "1L", sample(folder, "length-1", 16, endless, 50)[0]
    yield "sample.py", "4L", sample(folder, "length-4", 16, endless, 200)[0]
    for size, problems in ((0, 1), (1, 16), (4, 64), (16, 256)):
        used, samples = sample(folder, f"s{size}", problems, samples=32 if size else 8)
        yield "sample.py", size, used
        yield from later_stages(folder, samples, size)
        if size == 1:
            write_jsonl(f"{folder}/longer.jsonl", (longer(row, 4) for row in read_jsonl(samples)))
            yield from later_stages(folder, f"{folder}/longer.jsonl", "4L")


def later_stages(folder, samples, size):
    verified, many, advantages = (f"{folder}/{name}{size}.jsonl" for name in "vma")
    yield "verify.py", size, measure("verify.py", samples, "--out", verified, "--verify-batch", 128)
    repeated(read_jsonl(verified), {0: 32, "4L": 32 * 512}.get(size, 32 * 512 * size), many)
    yield "advantage.py", size, measure("advantage.py", many, "--out", f"{folder}/thrown-away.jsonl")
    yield "evaluate.py", size, measure("evaluate.py", many, "--out", f"{folder}/figures")
    if not size:  # what Lean says of a few samples may be the same of all
        write_jsonl(verified, [dict(row, reward=float(k % 2)) for k, row in enumerate(read_jsonl(verified))])
    measure("advantage.py", verified, "--out", advantages)
    yield (
        "train.py, an update",
        size,
        measure("train.py", "--advantages", advantages, "--out", f"{folder}/run{size}"),
    )


def growth(args):
    found = {}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for stage, size, used in stages(folder):
                found.setdefault((stage, size), []).append(used)
    middle = {key: [statistics.median(values) for values in zip(*used)] for key, used in found.items()}
    print(
        "| stage | start, s | 1x, s | 4x | 16x | 16x over 4x | GB at 1x, 4x, 16x | 4 times the length, s | over 1x | GB |\n"
        + "|---" * 10
        + "|"
    )
    for stage in dict.fromkeys(stage for stage, _ in found):
        (start, _, start_cpu), *more = (middle[stage, size] for size in (0, 1, 4, 16))
        short, long = (middle.get((stage, size)) or more[0] for size in ("1L", "4L"))
        ratio = lambda a, b: f"{(a[2] - start_cpu) / (b[2] - start_cpu):.1f}"  # noqa: B023
        print(
            f"| {stage} | {start:.1f} | {' | '.join(f'{s - start:.1f}' for s, *_ in more)} | {ratio(more[2], more[1])} "
            f"| {', '.join(f'{gb:.2f}' for _, gb, _ in more)} | {long[0] - start:.1f} | {ratio(long, short)} | {long[1]:.2f} |"
        )


def million(args):
    with tempfile.TemporaryDirectory() as folder:
        measure("verify.py", sample(folder, "s", 16)[1], "--out", f"{folder}/v.jsonl")
        rows = [longer(row, args.length) for row in read_jsonl(f"{folder}/v.jsonl")]
        path = repeated(rows, args.rows, f"{folder}/many.jsonl")
        commands = {
            "bare json.loads": ("-c", BARE, path),
            "evaluate.py": ("evaluate.py", path, "--out", folder),
            "advantage.py": ("advantage.py", path, "--out", f"{folder}/a.jsonl"),
        }
        used = {name: [] for name in commands}
        for _ in range(args.rounds):
            for name, command in commands.items():
                used[name].append(measure(*command))
        tokens = [statistics.mean(len(row[key]) for row in rows) for key in ("prompt_ids", "completion_ids")]
        print(
            f"{args.rows} rows of {os.path.getsize(path) / args.rows:.0f} bytes, {tokens[0]:.0f} tokens of prompt and {tokens[1]:.0f} of "
            "completion each\n\n| | s | GB | over bare json.loads |\n|---|---|---|---|"
        )
        for name, pairs in used.items():
            seconds, ratios = (
                [pair[0] for pair in pairs],
                [pair[0] / bare[0] for pair, bare in zip(pairs, used["bare json.loads"])],
            )
            cells = [
                f"{statistics.median(x):.{d}f} [{min(x):.{d}f}, {max(x):.{d}f}]"
                for x, d in ((seconds, 1), (ratios, 2))
            ]
            print(f"| {name} | {cells[0]} | {max(pair[1] for pair in pairs):.2f} | {cells[1]} |")


def main():
    parser = argparse.ArgumentParser(description="How the stages' time and memory grow.")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is measured")
    parser.add_argument("--rows", type=int, help="read so many verified rows, and nothing else")
    parser.add_argument("--length", type=int, default=1, help="times the tokens of each of these rows")
    args = parser.parse_args()
    (million if args.rows else growth)(args)


if __name__ == "__main__":
    main()
