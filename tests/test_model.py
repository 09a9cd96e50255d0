"""What is loaded: the tokenizer of tokenizer.json, generation's token ids, the model's own log-probabilities."""

import copy
import functools
import json
import os
import shutil
import sys

import pytest
import torch

import evaluate
import lib.checks
import lib.logprobs
import lib.model
import sample
from lib.checks import check_logprobs, check_prompts, check_sampler
from lib.logprobs import completion_logprobs
from lib.model import load_model, position_limit, save_tokenizer
from sample import build_prompt, encode_prompts, options

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BASE = f"{ROOT}/toy/base"
PROBLEM = {"id": "x", "statement": "theorem x (p q : Prop) (h1 : p ∧ q) : q ∧ p := by"}


def refusal(capsys, call, *args, **kwargs):
    """The sentence with which this ends."""
    with pytest.raises(SystemExit) as end:
        call(*args, **kwargs)
    [said] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert end.value.code == 2
    return said


def encode(model, tokenizer, problems, template, max_new_tokens):
    return encode_prompts(
        model, tokenizer, problems, options(f"--template {template} --max-new-tokens {max_new_tokens}")
    )


def byte_level_tokenizer(text="<s> $A"):
    """As DeepSeek's: byte-level BPE, split at line breaks and words, digits one by one."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    split = functools.partial(pre_tokenizers.Split, behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            split(Regex(r"[\r\n]")),
            split(Regex(r"\s?[A-Za-z]+")),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([build_prompt(PROBLEM, "deepseek")] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=text, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def model_folder(folder, tokenizer=None, config=None, **changes):
    """A tiny Llama, whose tokenizer_config.json names LlamaTokenizerFast and says what else is asked for."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or byte_level_tokenizer()
    torch.manual_seed(0)
    config = config or LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(f"{folder}/tokenizer.json")
    described = dict(
        tokenizer_class="LlamaTokenizerFast", bos_token="<s>", eos_token="</s>", add_bos_token=True, **changes
    )
    with open(f"{folder}/tokenizer_config.json", "w") as file:
        json.dump(described, file, indent=7)
    return str(folder)


@pytest.mark.parametrize("template", ["bare", "deepseek"])
def test_prompts_are_what_tokenizer_json_says(tmp_path, template):
    own = byte_level_tokenizer()
    model, tokenizer = load_model(model_folder(tmp_path, own))
    [prompt] = encode(model, tokenizer, [PROBLEM], template, 10)
    text = build_prompt(PROBLEM, template)
    assert prompt == own.encode(text).ids and prompt[0] == 0
    assert own.decode(prompt) == text and tokenizer.decode(prompt[1:]) == text


def test_llamas_own_pipeline_is_refused(tmp_path, capsys):
    """What transformers makes of the same folder: it drops the spaces."""
    from transformers import AutoTokenizer

    model, _ = load_model(model_folder(tmp_path))
    other = AutoTokenizer.from_pretrained(tmp_path)
    text = build_prompt(PROBLEM, "deepseek")
    if other.decode(other(text, add_special_tokens=False).input_ids) == text:
        pytest.skip("this transformers loads what tokenizer.json says")
    said = refusal(capsys, encode, model, other, [PROBLEM], "deepseek", 10)
    assert "problem x" in said and "tokenizer.json" in said and "CompletethefollowingLean" in said


def test_a_checkpoint_gets_the_tokenizers_own_files(tmp_path):
    (tmp_path / "model").mkdir()
    folder = model_folder(tmp_path / "model")
    with open(f"{folder}/special_tokens_map.json", "w") as file:
        file.write('{"eos_token":\n\n"</s>"}')
    _, tokenizer = load_model(folder)
    names = ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    before = [(tmp_path / "model" / name).read_bytes() for name in names]
    shutil.rmtree(folder)  # it may be gone by then
    (tmp_path / "checkpoint").mkdir()
    save_tokenizer(tokenizer, str(tmp_path / "checkpoint"))
    assert sorted(os.listdir(tmp_path / "checkpoint")) == names
    assert [(tmp_path / "checkpoint" / name).read_bytes() for name in names] == before


def test_a_prompt_that_ends_in_eos(tmp_path, capsys):
    model, tokenizer = load_model(model_folder(tmp_path, byte_level_tokenizer("<s> $A </s>")))
    said = refusal(capsys, encode, model, tokenizer, [PROBLEM], "bare", 10)
    assert "problem x" in said and "</s>" in said and "post_processor" in said


def test_a_bos_that_tokenizer_json_does_not_add(tmp_path, capsys):
    for text, words in (("$A", 1), ("<s> $A", 0)):
        model, tokenizer = load_model(model_folder(tmp_path, byte_level_tokenizer(text)))
        encode(model, tokenizer, [PROBLEM], "bare", 10)
        assert capsys.readouterr().err.count("warning: tokenizer_config.json wants <s>") == words


def test_a_prompt_of_unknown_words(capsys):
    model, tokenizer = load_model(BASE)
    encode(model, tokenizer, [PROBLEM], "bare", 10)  # whose name alone is unknown
    nat = {"id": "a", "statement": "theorem a (x : Nat) : x + 0 = x := by"}
    said = refusal(capsys, encode, model, tokenizer, [PROBLEM, nat], "bare", 10)
    assert "problem a" in said and "tokens" in said and "--model" in said and "propositional logic" in said


def test_a_tokenizer_that_loses_a_proofs_line_breaks(capsys):
    """Spaces and line breaks are lost in decoding, where a prompt of one word shows nothing."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(
        models.WordLevel({"<unk>": 0, "goal": 1, "apply": 2, "h": 3, "1": 4, "exact": 5}, unk_token="<unk>")
    )
    plain.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", eos_token="</s>")
    said = refusal(capsys, check_prompts, tokenizer, [PROBLEM], ["goal"], [[1]])
    assert "proof" in said and "apply" in said


def test_the_toys_prompts_and_proofs_go_through():
    model, tokenizer = load_model(BASE)
    with open(f"{ROOT}/toy/val.jsonl", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file]
    prompts = encode(model, tokenizer, problems, "bare", 200)
    assert len(prompts) == len(problems) and all(prompt[0] == 1 for prompt in prompts)


def test_generation_settings_that_cannot_be_saved(tmp_path):
    folder = model_folder(tmp_path)
    with open(f"{folder}/generation_config.json", "w") as file:
        json.dump(
            dict(temperature=0.6, top_p=0.95, bos_token_id=0, eos_token_id=[1, 7], pad_token_id=3), file
        )
    for weights in (True, False):
        model, _ = load_model(folder, weights=weights)
        kept = model.generation_config.to_diff_dict()
        assert {key: kept[key] for key in kept if key != "transformers_version"} == dict(
            bos_token_id=0, eos_token_id=[1, 7], pad_token_id=3
        )
    model, _ = load_model(folder)
    model.save_pretrained(tmp_path / "checkpoint")
    again, _ = (
        load_model(str(tmp_path / "checkpoint"))
        if shutil.copy(f"{folder}/tokenizer.json", tmp_path / "checkpoint")
        else None
    )
    assert again.generation_config.eos_token_id == [1, 7]


def granite_twin(folder):
    """toy/base as a Granite model: its logits are divided by 2, its head is twice as large; the same function."""
    from transformers import GraniteConfig, GraniteForCausalLM

    base, tokenizer = load_model(BASE)
    shared = base.config.to_dict()
    for key in ("model_type", "architectures", "transformers_version", "head_dim", "pretraining_tp"):
        shared.pop(key, None)
    twin = GraniteForCausalLM(
        GraniteConfig(
            **shared,
            logits_scaling=2.0,
            embedding_multiplier=1.0,
            residual_multiplier=1.0,
            attention_multiplier=base.config.head_dim**-0.5,
        )
    )
    weights = {key: value.clone() for key, value in base.state_dict().items()}
    weights["lm_head.weight"] *= 2
    twin.load_state_dict(weights)
    twin.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return str(folder)


def test_a_granite_twin_of_the_base_scores_and_trains_as_the_base(tmp_path):
    base, tokenizer = load_model(BASE)
    twin, _ = load_model(granite_twin(tmp_path))
    rows = list(
        sample.sample_rows(base, tokenizer, [PROBLEM], 6, options("--max-new-tokens 30"), progress=False)
    )
    gradients = []
    for model in (base, twin):
        check_logprobs(model, 80)
        assert model.takes_trees
        batch = lib.logprobs.make_batch(rows, [list(range(6))])
        logprobs = lib.logprobs.token_logprobs(model, batch)
        logprobs.square().sum().backward()
        gradients.append((logprobs.detach(), model.model.embed_tokens.weight.grad, model.lm_head.weight.grad))
    for ours, theirs, factor in zip(*gradients, (1, 1, 2)):
        assert torch.allclose(ours, theirs * factor, atol=2e-4 * ours.abs().max())
    sampled = list(
        sample.sample_rows(twin, tokenizer, [PROBLEM], 6, options("--max-new-tokens 30"), progress=False)
    )
    assert [row["completion_ids"] for row in sampled] == [row["completion_ids"] for row in rows]


def longrope(folder, tokenizer):
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    Phi3ForCausalLM(
        Phi3Config(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            original_max_position_embeddings=64,
            initializer_range=0.2,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=1,
            rope_parameters=dict(
                rope_type="longrope",
                rope_theta=10000.0,
                short_factor=[1.0] * 4,
                long_factor=[4.0] * 4,
                original_max_position_embeddings=64,
            ),
        )
    ).save_pretrained(folder)
    tokenizer.save(f"{folder}/tokenizer.json")
    with open(f"{folder}/tokenizer_config.json", "w") as file:
        json.dump(dict(tokenizer_class="LlamaTokenizerFast", bos_token="<s>", eos_token="</s>"), file)
    return str(folder)


def test_longrope_ends_where_its_tables_change(tmp_path, capsys):
    model, tokenizer = load_model(longrope(tmp_path, byte_level_tokenizer()))
    assert position_limit(model.config) == 64
    [prompt] = encode(model, tokenizer, [PROBLEM], "bare", 2)
    room = 64 - len(prompt)
    encode(model, tokenizer, [PROBLEM], "bare", room)
    said = refusal(capsys, encode, model, tokenizer, [PROBLEM], "bare", room + 1)
    assert "64" in said and "--max-new-tokens" in said
    check_logprobs(model, 64)
    check_sampler(model, 64)
    for check in (check_logprobs, check_sampler):
        said = refusal(capsys, check, model, 65)
        assert "phi3" in said and "64" in said and "65" in said


def lost_scale(model, hidden):
    return model.get_output_embeddings()(hidden)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_check_finds_a_lost_scale(tmp_path, capsys, monkeypatch, dtype):
    model, _ = load_model(granite_twin(tmp_path), dtype)
    check_logprobs(model, 80)
    monkeypatch.setattr(lib.logprobs, "own_logits", lambda model, output, hidden: lost_scale(model, hidden))
    said = refusal(capsys, check_logprobs, model, 80)
    assert "granite" in said and "GraniteForCausalLM" in said


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_check_finds_a_lost_window_and_a_lost_softcap(tmp_path, capsys, monkeypatch, dtype):
    import test_architectures as tiny

    for name, lose in (("mistral", ("attention_masks", lambda model, batch: batch.mask)), ("gemma2", None)):
        if (name, dtype) == ("gemma2", "bfloat16"):
            continue  # there the softcap of this tiny model weighs less than rounding may
        tiny.tiny_model(name, tmp_path / name)
        model, _ = load_model(str(tmp_path / name), dtype)
        check_logprobs(model, 60)
        with monkeypatch.context() as patch:
            if lose:
                patch.setattr(lib.logprobs, *lose)
                check_logprobs(model, 60)
                assert not model.takes_trees  # plain rows have the window
            else:
                model.set_attn_implementation("sdpa")
                assert name in refusal(capsys, check_logprobs, model, 60)


def test_uplift_of_a_model_that_cannot_be_scored_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lib.logprobs, "own_logits", lambda model, output, hidden: lost_scale(model, hidden))
    row = dict(
        PROBLEM,
        prompt_ids=[1, 5, 6],
        completion_ids=[7, 8, 2],
        completion=" x",
        finish_reason="stop",
        reward=1.0,
    )
    (tmp_path / "verified.jsonl").write_text(json.dumps(row) + "\n")
    folder = granite_twin(tmp_path)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "evaluate.py",
            "uplift",
            "--before",
            folder,
            "--after",
            folder,
            str(tmp_path / "verified.jsonl"),
            "--out",
            str(tmp_path / "figures"),
        ],
    )
    assert "granite" in refusal(capsys, evaluate.main)


def test_bfloat16_logits_are_float32(tmp_path):
    model, _ = load_model(BASE, dtype="bfloat16")
    assert model(torch.tensor([[1, 5, 6]])).logits.dtype == torch.float32
    (exact, tokenizer), plain = load_model(BASE), copy.deepcopy(model)
    del plain.lm_head.forward
    problem, args = sample.read_problems(f"{ROOT}/toy/train.jsonl", 1), options("--max-new-tokens 80")
    rows = list(sample.sample_rows(exact, tokenizer, problem, 32, args, progress=False))
    expected, close, coarse = (torch.cat(completion_logprobs(one, rows)) for one in (exact, model, plain))
    assert 0 < (close - expected).abs().mean() < 0.8 * (coarse - expected).abs().mean()
    ids = torch.arange(3, 40)[None]
    full = exact(ids).logits
    del exact.lm_head.forward
    assert torch.equal(full, exact(ids).logits)


def test_plain_rows_share_nothing(tmp_path):
    rows = [
        {"prompt_ids": [1, 5], "completion_ids": [6, 7, 8]},
        {"prompt_ids": [1, 5], "completion_ids": [6, 7]},
    ]
    assert [sorted(members) for members, _ in lib.logprobs.group_into_trees(rows, 100, width=0)] == [
        [1],
        [0],
    ]
    model, _ = load_model(BASE)
    shared = lib.logprobs.completion_logprobs(model, rows)
    model.takes_trees = False
    for ours, theirs in zip(lib.logprobs.completion_logprobs(model, rows), shared):
        assert torch.allclose(ours, theirs, atol=1e-5)
