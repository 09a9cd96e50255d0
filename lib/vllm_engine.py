"""vLLM as the sampler of sample.py and train.py: one engine per GPU, or per --tensor-parallel GPUs.

    pip install -r requirements.txt -r requirements-gpu.txt
    python sample.py --model FOLDER --problems problems.jsonl --num-samples 512 --out samples.jsonl --engine vllm --dtype bfloat16
    python train.py  --model FOLDER --problems train.jsonl --engine vllm --dtype bfloat16 --gpu-memory-utilization 0.4
    VLLM_LOGGING_LEVEL=INFO python sample.py ...             # shows what vLLM says, which is kept silent otherwise

Every engine lives in a process of its own, so that vLLM's distributed state and the trainer's stay apart. The process hears
commands and answers through a pipe, and ends when the other end of the pipe is closed, whatever closed it.
"""

import atexit
import contextlib
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import queue
import shutil
import signal
import tempfile
import threading
import time
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from lib.cli import fail
from sample import encode, group_rows

AT_ONCE = 1024  # samples an engine has before it while there are any; vLLM computes half of them at a time
LOUD = "VLLM_LOGGING_LEVEL" in os.environ


class Engine(NamedTuple):
    """A running vLLM."""

    name: str
    process: Any
    pipe: Any


def engine_main(pipe, options, sleeps):
    """The process of an engine. Commands and answers are pairs (name, value); a "sample" is answered by its "group", the others
    by "done", and anything by "failed"."""

    def listen():
        with contextlib.suppress(EOFError, OSError):
            while True:
                inbox.put(pipe.recv())
        inbox.put(("stop", None))  # whoever started this process is gone, or needs it no more
        time.sleep(10)
        os._exit(0)  # vLLM is in the midst of something

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever holds the pipe's other end
    inbox = queue.Queue()
    threading.Thread(target=listen, daemon=True).start()
    if not LOUD:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
    try:
        from vllm import EngineArgs, LLMEngine, SamplingParams  # here, after the environment is set
        from vllm.sampling_params import RequestOutputKind

        engine = LLMEngine.from_engine_args(EngineArgs(**options))
        pipe.send(("done", None))
        while True:
            if inbox.empty() and engine.has_unfinished_requests():
                for output in engine.step():  # a whole group
                    found = [
                        (
                            list(one.token_ids),
                            [entry[token].logprob for token, entry in zip(one.token_ids, one.logprobs)],
                            one.finish_reason,
                        )
                        for one in output.outputs
                    ]
                    if other := {reason for *_, reason in found} - {"stop", "length"}:
                        raise RuntimeError(f"a completion ended with '{other.pop()}'")
                    pipe.send(("group", (output.request_id, found)))
                continue
            name, value = inbox.get()
            if name == "stop":
                return
            if name == "sample":
                key, prompt, params = value
                params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **params)
                engine.add_request(key, {"prompt_token_ids": prompt}, params)
                continue
            if name == "rest":
                engine.sleep(level=2)  # frees the KV cache and the weights: others come before it wakes
            if name == "reload":
                if sleeps:
                    engine.wake_up(["weights"])
                engine.collective_rpc("reload_weights", kwargs={"weights_path": value})
                if sleeps:
                    engine.wake_up(["kv_cache"])
                if (
                    not engine.reset_prefix_cache()
                ):  # or prompts longer than a block would be answered by the old weights
                    raise RuntimeError("the prefix cache cannot be reset")
            pipe.send(("done", None))
    except Exception as error:  # whatever it is, this engine is of no use any more
        with contextlib.suppress(OSError):
            pipe.send(("failed", " ".join((str(error) or type(error).__name__).split())[:300].rstrip(".")))


def start_engines(model: str, args: Any, sleep: bool = False) -> list:
    """Engines that have loaded the model folder, one for each --tensor-parallel GPUs; they end with this process."""
    cuda, size = torch.cuda.is_available(), args.tensor_parallel
    devices = os.environ.get(
        "CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))
    ).split(",")
    gpus = args.gpus or (len(devices) if cuda else size)
    if gpus % size or cuda and gpus > len(devices):
        fail(
            f"{gpus} GPUs of {len(devices) if cuda else 'none'} cannot be shared out {size} by {size};"
            " give another --gpus or --tensor-parallel"
        )
    if sleep and not cuda:
        fail("--sleep frees a GPU's memory, and there is no GPU; leave it out")
    options = dict(
        model=model,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        tensor_parallel_size=size,
        seed=0,
        gpu_memory_utilization=args.gpu_memory_utilization,
        logprobs_mode="processed_logprobs",
        enable_sleep_mode=sleep,
        enforce_eager=not cuda,
        generation_config="vllm",
        disable_log_stats=True,
    )
    if cuda:
        options |= dict(
            max_num_seqs=AT_ONCE // 2, max_num_batched_tokens=8192
        )  # its own are for a server that must answer soon
    else:  # a prompt in two pieces and a seed are too much for vLLM's sampler on a CPU
        options |= dict(max_num_seqs=AT_ONCE // 4, enable_chunked_prefill=False)
    options = {name: value for name, value in options.items() if value is not None}
    before, engines = dict(os.environ), []
    torchrun = [
        name
        for name in before
        if name.startswith(("MASTER_", "TORCHELASTIC_", "GROUP_", "ROLE_"))
        or name.endswith(("RANK", "WORLD_SIZE"))
    ]  # the trainer's, not vLLM's
    changes = (
        dict(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_NO_USAGE_STATS="1")
        | before
        | dict(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_WORKER_MULTIPROC_METHOD="spawn")
    )
    atexit.register(stop, engines)  # before multiprocessing would wait for them
    try:
        os.environ |= changes
        for name in torchrun:
            del os.environ[name]
        for k in range(gpus // size):
            if cuda:  # in this process, for the new one to begin with: it imports torch before it comes to engine_main
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices[k * size : (k + 1) * size])
            pipe, theirs = multiprocessing.get_context("spawn").Pipe()
            process = multiprocessing.get_context("spawn").Process(
                target=engine_main, args=(theirs, options, sleep)
            )
            process.start()
            theirs.close()  # so that the pipe ends with the process
            engines.append(Engine(f"{k + 1} of {gpus // size}", process, pipe))
    finally:
        os.environ.clear()
        os.environ |= before
    for engine in engines:
        answer(engine, f"loading {model}")
    return engines


def stop(engines: list) -> None:
    """Ends the engines' processes."""
    for engine in engines:
        engine.pipe.close()
    for engine in engines:
        engine.process.join(20)
        engine.process.kill()


def answer(engine, task):
    """What the engine says next; ends the program with one sentence where it has failed or died."""
    hint = "what is done so far is kept" + (
        "" if LOUD else ", and VLLM_LOGGING_LEVEL=INFO shows what vLLM says"
    )
    try:
        name, value = engine.pipe.recv()
    except (EOFError, ConnectionError):
        engine.process.join(20)
        fail(f"vLLM's engine {engine.name} died while {task} (exit code {engine.process.exitcode}); {hint}")
    if name == "failed":
        fail(f"vLLM's engine {engine.name} failed while {task} ({value}); {hint}")
    return value


def order(engine, name, value=None):
    """Gives the engine a command; where it is dead already, its answer tells."""
    with contextlib.suppress(ConnectionError):
        engine.pipe.send((name, value))


def vllm_rows(
    engines,
    model,
    tokenizer,
    problems,
    num_samples,
    *,
    temperature=1.0,
    max_new_tokens=512,
    template="bare",
    seed=0,
    progress=True,
    model_name="",
    skip=0,
    limit=None,
):
    """A generator of the rows of sample_rows, in the order of the problems, without the first `skip` groups. Each engine has
    AT_ONCE samples at least before it; a group that is ready waits for those before it. Read it to its end."""
    prompts, eos = encode(model, tokenizer, problems, template, max_new_tokens, limit)
    if temperature < 0.01:
        fail(
            f"vLLM samples at a temperature of 0.01 or more, not at {temperature:g}; raise --temperature or pass --engine torch"
        )
    fence = template == "deepseek"
    params = dict(
        n=num_samples,
        temperature=temperature,
        max_tokens=max_new_tokens,
        logprobs=0,
        flat_logprobs=True,
        ignore_eos=True,
        stop_token_ids=sorted(eos),  # ours, which include it
        stop=["```"] if fence else None,
        detokenize=fence,
        skip_special_tokens=False,
    )

    def generate():
        bar = tqdm(
            total=len(problems) * num_samples, initial=skip * num_samples, unit="sample", disable=not progress
        )
        at_once, todo, first, ready = -(-AT_ONCE // num_samples) + 1, skip, skip, {}
        busy = {engine.pipe: 0 for engine in engines}  # groups that it has
        while first < len(problems):
            while todo < len(problems) and min(busy.values()) < at_once:
                engine = min(engines, key=lambda engine: busy[engine.pipe])
                digest = hashlib.sha256(json.dumps([str(seed), problems[todo]["id"]]).encode()).digest()
                draws = (
                    int.from_bytes(digest[:8], "little") >> 2
                )  # vLLM gives sample k of a group the seed draws + k
                order(engine, "sample", (str(todo), prompts[todo], dict(params, seed=draws)))
                busy[engine.pipe], todo = busy[engine.pipe] + 1, todo + 1
            heard = multiprocessing.connection.wait([pipe for pipe in busy if busy[pipe]])
            for engine in engines:
                if engine.pipe in heard:
                    key, found = answer(engine, "sampling")
                    ready[int(key)], busy[engine.pipe] = found, busy[engine.pipe] - 1
                    bar.update(num_samples)
            while first in ready:
                yield from group_rows(
                    problems[first], prompts[first], ready.pop(first), tokenizer, eos, template, model_name
                )
                first += 1
        bar.close()

    return generate()


def rest(engines: list) -> None:
    """Frees the engines' GPU memory until the next sync; they must have been started with sleep."""
    for engine in engines:
        order(engine, "rest")
    for engine in engines:
        answer(engine, "going to sleep")


def sync(engines: list, model: Any, dtype: str = "float32", state: dict | None = None) -> None:
    """Gives the engines the model's weights, or those of a full state dict, through a folder in memory."""
    if model.config.tie_word_embeddings and not torch.cuda.is_available():
        fail(
            "vLLM on a CPU goes on with the old embeddings where a model ties them; train it with --engine torch"
        )
    state = {
        name: weight.detach().to("cpu", getattr(torch, dtype))
        for name, weight in (state or model.state_dict()).items()
    }
    size = sum(weight.nbytes for weight in state.values())
    memory = (
        "/dev/shm" if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 1.1 * size else None
    )
    with tempfile.TemporaryDirectory(
        prefix="weights-", dir=memory
    ) as folder:  # a fresh one: vLLM remembers those it has seen
        try:
            model.save_pretrained(folder, state_dict=state)
        except OSError as error:
            fail(
                f"cannot write {size / 1e9:.1f} GB of weights to {folder} ({error.strerror or error}); make room there"
            )
        del state
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what the update no longer needs, the engines do
        reload(engines, folder)


def reload(engines: list, folder: str) -> None:
    """Every engine takes the weights of a folder; one that cannot is ruined, and ends the program."""
    for engine in engines:
        order(engine, "reload", folder)
    for engine in engines:
        answer(engine, "loading the new weights")
