"""Loading a model, and the log-probabilities of completions in prefix trees."""

import os
import sys
from types import SimpleNamespace
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lib.cli import cause, fail


def load_model(
    path: str, dtype: str = "float32", device: str = "cpu", weights: bool = True
) -> tuple[Any, Any]:
    """(model in eval mode, tokenizer) of a local folder, or of the Hugging Face hub where nothing has that path. Without
    weights the model is only its config and generation_config: the weights are vLLM's then."""
    if os.path.isdir(path) and not os.path.exists(os.path.join(path, "config.json")):
        fail(f"{path} is no model folder: it has no config.json; give a checkpoint's folder")
    if not os.path.exists(path):
        if path.startswith((".", "/", "~")) or path.count("/") > 1 or os.path.isdir(path.partition("/")[0]):
            fail(f"there is no folder {path}; give a model folder or a model of the Hugging Face hub")
        print(
            f"there is no folder {path}: asking the Hugging Face hub for a model of that name",
            file=sys.stderr,
        )
    options: dict[str, Any] = dict(local_files_only=os.path.exists(path), trust_remote_code=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        if not weights:
            model = SimpleNamespace(config=AutoConfig.from_pretrained(path, **options))
            try:
                model.generation_config = GenerationConfig.from_pretrained(
                    path, local_files_only=os.path.exists(path)
                )
            except OSError:  # it has no such file
                model.generation_config = GenerationConfig.from_model_config(model.config)
            return model, tokenizer
        # train.py lets completions share a prompt by a mask of True and False, which another kind of attention would take for numbers
        options |= dict(
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
        )
        model, report = cast(tuple, AutoModelForCausalLM.from_pretrained(path, **options))
        model = model.to(device).eval()
    except (
        Exception
    ) as error:  # a dozen kinds, and the user's mistake is one: no model there, or no such device
        fail(
            f"cannot load {path} on {device} ({cause(error)}); give a model folder or a model of the hub, and a device at hand"
        )
    if report["missing_keys"]:  # transformers would only warn
        fail(
            f"{path} lacks {sorted(report['missing_keys'])[0]}, which would be random; give a complete model folder"
        )
    return model, tokenizer
