"""vLLM as a sampler: one engine per GPU, or per --tensor-parallel GPUs, each in a process of its own.

    pip install -r requirements.txt -r requirements-gpu.txt
    python sample.py --model FOLDER --engine vllm --dtype bfloat16 --out samples.jsonl
    python train.py --model FOLDER --engine vllm --dtype bfloat16 --gpu-memory-utilization 0.4
    VLLM_LOGGING_LEVEL=INFO python sample.py ...     # shows vLLM's own messages, hidden otherwise

A process of its own keeps vLLM's distributed state away from the trainer's. Commands and answers go through a
pipe; the process ends when the other end of the pipe is closed, for whatever reason.
"""

import argparse
import atexit
import contextlib
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import queue
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from lib.cli import fail

AT_ONCE = 1024  # samples queued at an engine, which runs half of them at a time, so it never runs dry
SHOW_MESSAGES = "VLLM_LOGGING_LEVEL" in os.environ


class Engine(NamedTuple):
    """A running vLLM."""

    name: str
    process: Any
    pipe: Any


# ---- the engine's process ----


def engine_main(pipe: Any, environment: dict, options: dict) -> None:
    """Takes (command, value), answers ("group", (key, completions)), ("done", None), ("failed", why)."""

    def listen():
        with contextlib.suppress(EOFError, OSError):
            while True:
                inbox.put(pipe.recv())
        inbox.put(("stop", None))  # the parent is gone or has closed the pipe
        time.sleep(10)
        os._exit(0)  # vLLM is busy

    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    inbox = queue.Queue()
    threading.Thread(target=listen, daemon=True).start()
    if not SHOW_MESSAGES:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
    try:
        from vllm import EngineArgs, LLMEngine, SamplingParams  # not before the environment is set
        from vllm.sampling_params import RequestOutputKind

        engine, sleeps = LLMEngine.from_engine_args(EngineArgs(**options)), options["enable_sleep_mode"]
        pipe.send(("done", None))
        while True:
            if inbox.empty() and engine.has_unfinished_requests():
                for output in engine.step():
                    pipe.send(("group", (output.request_id, [completion(one) for one in output.outputs])))
                continue
            name, value = inbox.get()
            if name == "stop":
                return
            if name == "sample":  # its answer is the group
                key, prompt, params = value
                params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **params)
                engine.add_request(key, {"prompt_token_ids": prompt}, params)
                continue
            if name == "sleep":
                engine.sleep(level=2)  # frees the KV cache and the weights: a reload follows before it wakes
            if name == "reload":
                if sleeps:
                    engine.wake_up(["weights"])
                engine.collective_rpc("reload_weights", kwargs={"weights_path": value})
                if sleeps:
                    engine.wake_up(["kv_cache"])
                if not engine.reset_prefix_cache():  # it holds keys and values of the old weights
                    raise RuntimeError("the prefix cache cannot be reset")
            pipe.send(("done", None))
    except Exception as error:  # after any error the engine is unusable
        with contextlib.suppress(OSError):
            pipe.send(("failed", " ".join((str(error) or type(error).__name__).split())[:300].rstrip(".")))


def completion(sample: Any) -> tuple:
    """(completion_ids, logprobs, finish_reason) of one of vLLM's samples."""
    if sample.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"a completion ended with '{sample.finish_reason}'")
    logprobs = [entry[token].logprob for token, entry in zip(sample.token_ids, sample.logprobs)]
    return list(sample.token_ids), logprobs, sample.finish_reason


# ---- the parent's side ----


def vllm_is_installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def engine_options(model: str, args: argparse.Namespace, sleep: bool) -> dict:
    """The arguments of vLLM's EngineArgs."""
    options = dict(
        model=model,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        tensor_parallel_size=args.tensor_parallel,
        gpu_memory_utilization=args.gpu_memory_utilization,
        seed=0,
        logprobs_mode="processed_logprobs",  # at the sampling temperature
        enable_sleep_mode=sleep,
        enforce_eager=not torch.cuda.is_available(),
        generation_config="vllm",  # not the model's own top-p and the like
        disable_log_stats=True,
    )
    if torch.cuda.is_available():  # vLLM's defaults are tuned for a server's latency
        options |= dict(max_num_seqs=AT_ONCE // 2, max_num_batched_tokens=8192)
    else:  # vLLM's CPU sampler fails on a prompt in two pieces with a seed
        options |= dict(max_num_seqs=AT_ONCE // 4, enable_chunked_prefill=False)
    return {name: value for name, value in options.items() if value is not None}


def engine_environment(gpus: Sequence[str]) -> dict:
    """This process's environment, with vLLM's variables and without torchrun's."""
    of_torchrun = ("MASTER_", "TORCHELASTIC_", "GROUP_", "ROLE_", "RANK", "WORLD_SIZE", "LOCAL_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(of_torchrun)}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    defaults = dict(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_NO_USAGE_STATS="1")
    fixed = dict(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_WORKER_MULTIPROC_METHOD="spawn")
    return defaults | environment | fixed


def start_engines(model: str, args: argparse.Namespace, sleep: bool = False) -> list[Engine]:
    """Engines that have loaded the model folder, one per --tensor-parallel GPUs; they end with us."""
    cuda, size = torch.cuda.is_available(), args.tensor_parallel
    every_gpu = ",".join(map(str, range(torch.cuda.device_count())))
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", every_gpu).split(",") if cuda else []
    gpus = args.gpus or len(devices) or size
    if gpus % size or (cuda and gpus > len(devices)):
        there = len(devices) or "none"
        fail(f"{gpus} GPUs of {there} do not make groups of {size}; give another --gpus or --tensor-parallel")
    if sleep and not cuda:
        fail("--sleep frees a GPU's memory, and there is no GPU; leave it out")
    options, engines, context = engine_options(model, args, sleep), [], multiprocessing.get_context("spawn")
    atexit.register(stop, engines)  # before multiprocessing's own exit handler, which would wait for them
    for k in range(gpus // size):
        environment = engine_environment(devices[k * size : (k + 1) * size])
        pipe, theirs = context.Pipe()
        process = context.Process(target=engine_main, args=(theirs, environment, options))
        process.start()
        theirs.close()  # so that the pipe ends with the process
        engines.append(Engine(f"{k + 1} of {gpus // size}", process, pipe))
    for engine in engines:
        answer(engine, f"loading {model}")
    return engines


def stop(engines: list[Engine]) -> None:
    """Ends the engines' processes."""
    for engine in engines:
        engine.pipe.close()
    for engine in engines:
        engine.process.join(20)
        engine.process.kill()


def answer(engine: Engine, task: str) -> Any:
    """The engine's next answer; ends the program with a sentence if the engine has failed or died."""
    hint = "" if SHOW_MESSAGES else ", and VLLM_LOGGING_LEVEL=INFO shows vLLM's messages"
    hint = "what is done so far is kept" + hint
    try:
        name, value = engine.pipe.recv()
    except (EOFError, ConnectionError):
        engine.process.join(20)
        code = engine.process.exitcode
        fail(f"vLLM's engine {engine.name} died while {task} (exit code {code}); {hint}")
    if name == "failed":
        fail(f"vLLM's engine {engine.name} failed while {task} ({value}); {hint}")
    return value


def send(engine: Engine, name: str, value: Any = None) -> None:
    """Sends the engine a command; if it is dead, answer() reports it."""
    with contextlib.suppress(ConnectionError):
        engine.pipe.send((name, value))


def everywhere(engines: list[Engine], name: str, task: str, value: Any = None) -> None:
    """Gives every engine a command and waits for their answers."""
    for engine in engines:
        send(engine, name, value)
    for engine in engines:
        answer(engine, task)


def sampling_params(args: argparse.Namespace, num_samples: int, eos: set[int]) -> dict:
    """The arguments of vLLM's SamplingParams for every prompt."""
    fenced = args.template == "deepseek"
    return dict(
        n=num_samples,
        temperature=args.temperature,
        max_tokens=args.max_new_tokens,
        logprobs=0,  # of the sampled token alone
        flat_logprobs=True,
        ignore_eos=True,
        stop_token_ids=sorted(eos),
        stop=["```"] if fenced else None,
        detokenize=fenced,
        skip_special_tokens=False,
    )


def vllm_completions(
    engines: list[Engine],
    prompts: Sequence[list[int]],
    keys: Sequence[int],
    num_samples: int,
    args: argparse.Namespace,
    eos: set[int],
) -> Iterator[list[tuple]]:
    """Yields the completions of each prompt: (completion_ids, logprobs, finish_reason) of each sample.

    keys: of the random draws of each prompt. Each engine has at least AT_ONCE samples waiting."""
    params = sampling_params(args, num_samples, eos)
    groups_at_once = -(-AT_ONCE // num_samples) + 1
    waiting = {engine.pipe: 0 for engine in engines}  # groups that each engine has
    following, ready = 0, {}
    for wanted in range(len(prompts)):
        while wanted not in ready:
            while following < len(prompts) and min(waiting.values()) < groups_at_once:
                engine = min(engines, key=lambda engine: waiting[engine.pipe])
                seed = keys[following] % 2**64 >> 2  # vLLM gives sample k of a group seed + k
                send(engine, "sample", (str(following), prompts[following], dict(params, seed=seed)))
                waiting[engine.pipe] += 1
                following += 1
            heard = multiprocessing.connection.wait([pipe for pipe, groups in waiting.items() if groups])
            for engine in engines:
                if engine.pipe in heard:
                    key, completions = answer(engine, "sampling")
                    ready[int(key)] = completions
                    waiting[engine.pipe] -= 1
        yield ready.pop(wanted)


def sleep_engines(engines: list[Engine]) -> None:
    """Frees the engines' GPU memory until the next sync; they must have been started with sleep."""
    everywhere(engines, "sleep", "going to sleep")


def sync_weights(
    engines: list[Engine], model: Any, dtype: str = "float32", state: dict | None = None
) -> None:
    """Gives the engines the model's weights, or those of a full state dict, through a folder in memory."""
    cuda = torch.cuda.is_available()
    if model.config.tie_word_embeddings and not cuda:
        fail("vLLM on a CPU keeps the old embeddings of a model that ties them; train it with --engine torch")
    weights = (state or model.state_dict()).items()
    state = {name: weight.detach().to("cpu", getattr(torch, dtype)) for name, weight in weights}
    size = sum(weight.nbytes for weight in state.values())
    fits = os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 1.1 * size
    # A fresh folder each time: vLLM does not load a path twice.
    with tempfile.TemporaryDirectory(prefix="weights-", dir="/dev/shm" if fits else None) as folder:
        try:
            model.save_pretrained(folder, state_dict=state)
        except OSError as error:
            reason = error.strerror or error
            fail(f"cannot write {size / 1e9:.1f} GB of weights to {folder} ({reason}); make room there")
        del state
        if cuda:
            torch.cuda.empty_cache()  # memory that the update no longer needs and the engines do
        everywhere(engines, "reload", "loading the new weights", folder)
