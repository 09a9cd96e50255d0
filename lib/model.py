"""Loading a model and its tokenizer exactly as their folder describes them."""

import functools
import os
import sys
from types import SimpleNamespace
from typing import Any, cast

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file

from lib.cli import cause, fail

TOKENIZER_FILES = """tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json
    chat_template.jinja tokenizer.model vocab.json merges.txt""".split()


TINY = 40e6  # bytes of weights, 10 million in float32: starting a kernel takes longer than computing it


def pick_device(device: str, path: str) -> str:
    """ "auto" is cuda if there is a GPU, but the CPU for a model folder with fewer than 40 MB of weights."""
    if device != "auto":
        return device
    files = os.scandir(path) if os.path.isdir(path) else []
    sizes = [file.stat().st_size for file in files if file.name.endswith(".safetensors")]
    return "cuda" if torch.cuda.is_available() and not 0 < sum(sizes) < TINY else "cpu"


def load_model(
    path: str, dtype: str = "float32", device: str = "cpu", weights: bool = True
) -> tuple[Any, Any]:
    """(model in eval mode, tokenizer) of a local folder, or of the Hugging Face hub if there is no such path.

    device: see pick_device. Without weights the model is only its config and generation_config: vLLM has the
    weights then."""
    device = pick_device(device, path)
    if os.path.isdir(path) and not os.path.exists(os.path.join(path, "config.json")):
        fail(f"{path} is no model folder: it has no config.json; give a checkpoint's folder")
    if not os.path.exists(path):
        if path.startswith((".", "/", "~")) or path.count("/") > 1 or os.path.isdir(path.partition("/")[0]):
            fail(f"there is no folder {path}; give a model folder or a model of the Hugging Face hub")
    local = os.path.exists(path) or is_cached(path)
    options: dict[str, Any] = dict(local_files_only=local, trust_remote_code=False)
    try:
        tokenizer = load_tokenizer(path, options)
        config = AutoConfig.from_pretrained(path, **options)
        if weights:
            options |= dict(dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True)
            options |= dict(attn_implementation=attention(config))
            model, report = cast(tuple, AutoModelForCausalLM.from_pretrained(path, **options))
            model = model.to(device).eval()
        else:
            model, report = SimpleNamespace(config=config), {"missing_keys": []}
            try:
                model.generation_config = GenerationConfig.from_pretrained(path, **options)
            except OSError:  # there is no such file
                model.generation_config = GenerationConfig.from_model_config(config)
    except Exception as error:  # of many types, and all mean the same: no model there, or no such device
        fail(
            f"cannot load {path} on {device} ({cause(error)}); give a model folder or a model of the hub, and"
            " a device at hand"
        )
    if report["missing_keys"]:  # transformers would only warn
        name = sorted(report["missing_keys"])[0]
        fail(f"{path} lacks {name}, which would be random; give a complete model folder")
    # Other settings of generation are not used, and some (a temperature without do_sample) cannot be saved.
    token_ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(
        **{name: getattr(model.generation_config, name) for name in token_ids}
    )
    if weights:
        head = model.get_output_embeddings()
        if isinstance(head, torch.nn.Linear):
            head.forward = functools.partial(float32_head, head)
    return model, tokenizer


def is_cached(name: str) -> bool:
    """Whether a model of the hub is on this machine already. If not, one request checks that the hub has it:
    so a typo or a missing network fails immediately, where the hub's own client would retry for minutes."""
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return True
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # of many types, all of which say that there is no such model to be had
        fail(f"{name} is no folder here, nor a model of the Hugging Face hub ({cause(error)}); check it")
    print(f"{name} is not a folder here, so it is loaded from the Hugging Face hub", file=sys.stderr)
    return False


def attention(config: Any) -> str | None:
    """The attention implementation: SDPA where the model has it (transformers' own choice), but eager for a
    model that caps attention scores, since SDPA silently leaves the cap out."""
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def float32_head(head: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """Logits in float32 whatever the rest is computed in: in bfloat16, a logit of 20 is off by up to 0.06."""
    bias = None if head.bias is None else head.bias.float()
    # TF32 represents bfloat16 exactly, so tensor cores lose nothing; they would round float32.
    torch.backends.cuda.matmul.allow_tf32 = head.weight.dtype == torch.bfloat16
    return torch.nn.functional.linear(hidden.float(), head.weight.float(), bias)


def load_tokenizer(path: str, options: dict) -> Any:
    """The tokenizer that tokenizer.json describes. Its `files` are what it was loaded from, as bytes.

    AutoTokenizer would build the class that tokenizer_config.json names: for LlamaTokenizerFast it replaces
    the pre-tokenizer and the decoder of tokenizer.json by Llama's."""
    files = {}
    for name in TOKENIZER_FILES:
        try:
            with open(cast(str, cached_file(path, name, **options)), "rb") as file:
                files[name] = file.read()
        except OSError:
            continue  # no tokenizer has all of them
    kind = PreTrainedTokenizerFast if "tokenizer.json" in files else AutoTokenizer
    tokenizer = kind.from_pretrained(path, **options)
    tokenizer.files = files
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: str) -> None:
    """Writes the files that the tokenizer was loaded from, byte for byte."""
    for name, content in tokenizer.files.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)


def vocabulary_size(config: Any) -> int:
    """Also of a multimodal model, whose text model has a config of its own."""
    return config.get_text_config().vocab_size


def position_limit(config: Any) -> int | None:
    """Tokens of prompt and completion at most. LongRoPE changes all positions once a text passes the original
    limit, so that the log-probabilities of earlier tokens would depend on how long the text became."""
    config = config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None)]
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *ropes.values()):  # one for all layers, or one for each type of layer
        if isinstance(rope, dict) and rope.get("rope_type") == "longrope":
            limits.append(rope.get("original_max_position_embeddings"))
    return min((limit for limit in limits if limit), default=None)
