"""Fixtures for all tests: a random tiny Llama with a word-level tokenizer of Lean words, saved as a model folder."""

import os
import signal
import sys

import pytest

# Tests run on the CPU, in this process and in those they start. tests/test_cuda.py gives one the GPUs back.
GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# In the background, a shell has it ignored, and the processes of the tests with it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Otherwise the bar of a loading model comes before the error that a test expects first.
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def pytest_configure(config):
    """With -n, the tests of a file share a process and its fixtures; the files go by their names, as without -n."""
    if getattr(config.option, "numprocesses", None):
        config.option.dist = "loadfile"
        config.option.loadscopereorder = False


WORDS = """theorem Prop by intro intros exact apply constructor cases rcases obtain have show left right assumption
exfalso contradiction simp with at from fun rfl trivial True False And Or Not Iff inl inr mp mpr p q r s""".split()
WORDS += (
    [f"h{k}" for k in range(1, 10)]
    + list("()[]{}⟨⟩:,.|·∧∨¬→↔=><_0123456789`")
    + [":=", "=>", "```", "\n", "  ", " "]
)


def lean_tokenizer():
    """Every token stands for itself, white space too, so that decode(encode(text)) == text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: k for k, word in enumerate(["<pad>", "<s>", "</s>", "<unk>"] + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"[A-Za-z]+[1-9]?|```|:=|=>|\n|  | |."), behavior="isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def tiny_llama(tokenizer, hidden_size=64, layers=2, seed=0):
    """Random weights, large enough that the next token's distribution depends on the context."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory):
    """A folder that AutoModelForCausalLM and AutoTokenizer load; shared by all tests, so do not write into it."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = lean_tokenizer()
    tiny_llama(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
