"""The architectures of transformers, as tiny random models: sampler, log-probabilities and gradients against the
model's plain forward, which is one row, no cache, no padding, no tree, eager attention.

    python tests/test_architectures.py        # writes docs/architectures.md, which the tests hold true
"""

import math
import os
import sys
import tempfile
import warnings

import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from conftest import lean_tokenizer  # noqa: E402

from lib.checks import check_logprobs, check_sampler
from lib.logprobs import (
    completion_logprobs,
    make_batch,
    micro_batches_per_process,
    takes_trees,
    token_logprobs,
)
from lib.model import load_model
from sample import options, sample_rows

torch.set_num_threads(1)  # these models are too small for two
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TABLE = f"{ROOT}/docs/architectures.md"
TOKENIZER = lean_tokenizer()
EXACT = 2e-4  # of a log-probability in float32; a gradient's largest error by its largest entry

SMALL = dict(
    vocab_size=len(TOKENIZER),
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    initializer_range=0.2,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
EXPERTS = dict(
    num_experts=4,
    num_local_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    n_routed_experts=4,
    n_shared_experts=1,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=1,
    shared_expert_intermediate_size=16,
)
LATENT = dict(
    EXPERTS,
    num_key_value_heads=4,
    kv_lora_rank=8,
    q_lora_rank=8,
    qk_rope_head_dim=8,
    qk_nope_head_dim=8,
    v_head_dim=8,
)
WINDOW = dict(sliding_window=8)
BOTH = dict(WINDOW, layer_types=["sliding_attention", "full_attention"])
LINEAR = dict(
    EXPERTS,
    linear_num_key_heads=2,
    linear_num_value_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    layer_types=["linear_attention", "full_attention"],
)
MAMBA = dict(
    EXPERTS, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_expand=2, shared_intermediate_size=16
)
QWEN = dict(EXPERTS | WINDOW, use_sliding_window=True, max_window_layers=1)

# What of a configuration is not SMALL's. Windows are shorter than every text here.
# fmt: off
ARCHITECTURES = {
    "afmoe": EXPERTS | BOTH, "apertus": {}, "arcee": {}, "aria_text": dict(moe_num_experts=4), "axk1": LATENT,
    "bamba": MAMBA | dict(attn_layer_indices=[1]), "biogpt": {}, "bitnet": {}, "bloom": {},
    "codegen": dict(n_embd=32, n_head=4, n_layer=2, rotary_dim=8), "cohere": {}, "cohere2": BOTH,
    "cohere2_moe": EXPERTS | BOTH, "cpmant": dict(dim_ff=48, dim_head=8), "ctrl": dict(n_embd=32, dff=48, n_layer=2, n_head=4), "cwm": BOTH,
    "deepseek_v2": LATENT, "deepseek_v3": LATENT, "deepseek_v32": LATENT | dict(index_n_heads=2, index_head_dim=16, index_topk=8),
    "diffllama": {}, "doge": {}, "dots1": EXPERTS, "ernie4_5": {}, "ernie4_5_moe": EXPERTS, "exaone4": BOTH,
    "exaone_moe": EXPERTS | BOTH, "falcon": dict(head_dim=None), "falcon alibi": dict(head_dim=None, alibi=True), "falcon_mamba": {}, "flex_olmo": EXPERTS,
    "gemma": {}, "gemma2": BOTH | dict(attn_logit_softcapping=0.5, final_logit_softcapping=2.0), "gemma3_text": BOTH,
    "gemma3": BOTH, "glm": {}, "glm4": {}, "glm4_moe": EXPERTS,
    "glm4_moe_lite": LATENT, "gpt-sw3": {}, "gpt2": {}, "gpt_bigcode": {},
    "gpt_neo": dict(num_layers=2, attention_types=[[["global", "local"], 1]], window_size=8), "gpt_neox": {},
    "gpt_neox_japanese": {}, "gpt_oss": EXPERTS | BOTH, "gptj": dict(rotary_dim=8), "granite": dict(logits_scaling=2.0),
    "granite_swa": BOTH, "granitemoe": EXPERTS, "granitemoehybrid": MAMBA | dict(layer_types=["mamba", "attention"]),
    "granitemoeshared": EXPERTS | dict(shared_intermediate_size=16), "helium": {}, "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": EXPERTS, "hyperclovax": {}, "jais2": {},
    "jamba": EXPERTS | dict(attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
                            mamba_d_state=8, use_mamba_kernels=False),
    "jetmoe": EXPERTS, "lfm2": dict(layer_types=["conv", "full_attention"]),
    "lfm2_moe": EXPERTS | dict(layer_types=["conv", "full_attention"], num_dense_layers=1), "llama": {},
    "llama4_text": EXPERTS | dict(attention_chunk_size=8), "longcat_flash": LATENT | dict(zero_expert_num=1, num_layers=1),
    "mamba": {}, "mamba2": dict(num_heads=4, head_dim=16, expand=2, state_size=8, n_groups=1), "mellum": EXPERTS | BOTH,
    "mimo_v2_flash": EXPERTS | BOTH, "minicpm3": LATENT, "minimax": EXPERTS, "minimax_m2": EXPERTS, "ministral": BOTH,
    "ministral3": WINDOW, "mistral": WINDOW, "mixtral": EXPERTS | WINDOW, "mpt": dict(d_model=32, n_heads=4, n_layers=2),
    "nanochat": {}, "nemotron": {}, "olmo": {}, "olmo2": {}, "olmo3": BOTH, "olmo_hybrid": {}, "olmoe": EXPERTS,
    "openai-gpt": {}, "opt": dict(ffn_dim=48, word_embed_proj_dim=32), "persimmon": {}, "phi": {}, "phi3": WINDOW,
    "phimoe": EXPERTS | WINDOW, "qwen2": QWEN, "qwen2_moe": QWEN, "qwen3": QWEN, "qwen3_5_moe_text": LINEAR,
    "qwen3_5_text": LINEAR, "qwen3_moe": QWEN, "qwen3_next": LINEAR,
    "recurrent_gemma": dict(attention_window_size=8, lru_width=32, num_hidden_layers=3), "rwkv": {}, "seed_oss": {},
    "smollm3": {}, "solar_open": EXPERTS, "stablelm": {}, "starcoder2": WINDOW,
    "vaultgemma": BOTH | dict(attn_logit_softcapping=0.5), "xglm": dict(d_model=32, ffn_dim=48, num_layers=2, attention_heads=4),
    "youtu": LATENT,
}
# fmt: on
VISION = dict(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
)


def tiny_model(name, folder):
    """Saves a random model of this architecture and its tokenizer."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    values = {key: value for key, value in (SMALL | ARCHITECTURES[name]).items() if value is not None}
    if name == "gemma3":
        values = dict(text_config=values, vision_config=VISION)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name.split()[0]](**values))
    assert model.num_parameters() < 3_000_000
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)


def plain_logprobs(model, row):
    """[T], of a plain forward."""
    ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
    logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
    start = len(row["prompt_ids"])
    return logprobs[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0]


def make_rows():
    """Two prompts, the completions of the first with a common beginning; all longer than the windows."""
    generator = torch.Generator().manual_seed(1)
    ids = lambda count: torch.randint(3, len(TOKENIZER), (count,), generator=generator).tolist()  # noqa: E731
    first, second, common = ids(9), ids(5), ids(7)
    completions = [
        (first, common + ids(9)),
        (second, ids(12)),
        (first, common[:5] + ids(13)),
        (first, common + ids(2)),
    ]
    return [{"prompt_ids": prompt, "completion_ids": completion} for prompt, completion in completions]


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat(
        [torch.zeros(w.numel()) if w.grad is None else w.grad.flatten() for w in model.parameters()]
    )


def of_trainer(name, model):
    """The cell of the table. What is not refused is compared with the plain forward."""
    try:
        check_logprobs(model, longest=40)
    except SystemExit as end:
        assert end.code == 2
        return "refused"
    rows = make_rows()
    found = completion_logprobs(model, rows, micro_batch_tokens=64)
    weight = torch.randn(sum(map(len, found)), generator=torch.Generator().manual_seed(2))
    [trees] = micro_batches_per_process(rows, 10**6, 1, math.inf if takes_trees(model) else 0)
    loss, order = 0, []
    for batch in (make_batch(rows, one) for one in trees):
        order += batch.rows
        loss = (
            loss
            + (
                token_logprobs(model, batch)
                * torch.cat([weight.split([len(x) for x in found])[i] for i in batch.rows])
            ).sum()
        )
    own = gradient(model, loss)
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    plain = [plain_logprobs(model, row) for row in rows]
    model.set_attn_implementation(attention)
    assert sorted(order) == [0, 1, 2, 3]
    assert max((a - b).abs().max() for a, b in zip(found, plain)) < EXACT
    if name == "rwkv":  # its plain backward fails in place
        return "exact, in rows; gradients not compared"
    expected = gradient(model, (torch.cat(plain) * weight).sum())
    assert (own - expected).abs().max() < EXACT * expected.abs().max() and expected.abs().max() > 0
    return f"exact, in {'trees' if takes_trees(model) else 'rows'}"


def of_sampler(model, tokenizer):
    try:
        check_sampler(model, longest=60)
    except SystemExit as end:
        assert end.code == 2
        return "refused"
    problems = [
        {"id": f"t{k}", "statement": f"theorem h{k} (p q : Prop)" + " (h1 : p)" * k + " : p ∧ q := by"}
        for k in (1, 2)
    ]
    rows = list(sample_rows(model, tokenizer, problems, 3, options("--max-new-tokens 12"), progress=False))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for row in rows:
            assert (plain_logprobs(model, row) - torch.tensor(row["logprobs"])).abs().max() < EXACT
    return "exact"


def examine(name, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny_model(name, folder)
        model, tokenizer = load_model(str(folder))
        attention = model.config._attn_implementation
        return name, of_trainer(name, model), of_sampler(model, tokenizer), attention


HEAD = """# Architectures

What sampler and trainer do with each architecture of transformers that a test builds as a tiny random model
(`tests/test_architectures.py`, which writes this page and fails if it is out of date). "Exact": log-probabilities, and in the
trainer gradients, are those of the model's plain forward (one row, no cache, no padding, eager attention) within
2e-4, on texts longer than any window. "In trees": completions of a prompt share the computation of common prefixes;
"in rows": each is computed alone, since the architecture takes no custom mask or positions. "Refused": the run
ends at its start with a sentence that names the architecture. Every loaded model is checked like this, listed here or not.

Of {count} architectures the trainer is exact for {trained} ({trees} in trees), the torch sampler for {sampled}.

| architecture | trainer | torch sampler | attention |
|---|---|---|---|
"""


def row_of(name, trainer, sampler, attention):
    return f"| {name} | {trainer} | {sampler} | {attention} |"


def page(results):
    """docs/architectures.md."""
    trained = [trainer for _, trainer, _, _ in results if trainer.startswith("exact")]
    head = HEAD.format(
        count=len(results),
        trained=len(trained),
        trees=trained.count("exact, in trees"),
        sampled=sum(sampler == "exact" for _, _, sampler, _ in results),
    )
    return head + "".join(row_of(*result) + "\n" for result in results)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_table_says_what_is_true(name, tmp_path):
    with open(TABLE, encoding="utf-8") as file:
        assert row_of(*examine(name, tmp_path)) in file.read().splitlines()


def test_the_page_counts_its_rows():
    with open(TABLE, encoding="utf-8") as file:
        text = file.read()
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    assert (
        text == page(rows[1:]) and [name for name, *_ in rows[1:]] == list(ARCHITECTURES) and len(rows) > 40
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        found = [examine(name, os.path.join(root, name)) for name in ARCHITECTURES]
    os.makedirs(os.path.dirname(TABLE), exist_ok=True)
    with open(TABLE, "w", encoding="utf-8") as file:
        file.write(page(found))
