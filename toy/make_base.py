"""Trains the embedded default's base prover by supervised fine-tuning on random proofs.

    python toy/make_base.py --sft runs/sft.jsonl --out toy/base

Reads: statement, completion. Writes a Hugging Face folder: a LlamaForCausalLM of under a million parameters and a
word-level tokenizer that gives Lean text back exactly (a word carries the space before it; a line break, its indent).
"""

import math
import os
import sys

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from lib.cli import flags, number  # noqa: E402
from lib.jsonl import read_jsonl  # noqa: E402

PIECES = (
    r"\n *| ?h\d+| ?[A-Z][a-z]+\.[a-z]+|\.[a-z]+|\.\d| ?[A-Za-z]+_?| ?\?_|\d| ?(:=|=>|<;>|[()⟨⟩,|:·∧∨¬→↔])"
)


def make_tokenizer(texts):
    """A tokenizer whose words are the pieces that occur in the texts."""
    split = pre_tokenizers.Split(Regex(PIECES), "isolated")
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def main():
    parser = flags("Supervised training of the embedded default's base prover.")
    parser.add_argument("--sft", default="runs/sft.jsonl", help="JSONL from toy/make_problems.py")
    parser.add_argument("--out", default="toy/base", help="folder to write the model to")
    parser.add_argument("--layers", type=number(int, 1), default=4, help="transformer blocks")
    parser.add_argument("--width", type=number(int, 32), default=128, help="hidden size, a multiple of 32")
    parser.add_argument("--steps", type=number(int, 1), default=4500, help="optimizer steps")
    parser.add_argument("--batch", type=number(int, 1), default=96, help="proofs a step")
    parser.add_argument("--lr", type=number(float, 0), default=3e-3, help="peak learning rate (cosine to 0)")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of weights and data order")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rows = list(read_jsonl(args.sft, "statement", "completion"))
    tokenizer = make_tokenizer(
        [row["statement"] + row["completion"] for row in rows] + ["0 1 2 3 4 5 6 7 8 9"]
    )
    prompts = tokenizer([row["statement"] for row in rows]).input_ids
    completions = tokenizer([row["completion"] for row in rows], add_special_tokens=False).input_ids
    data = [
        (prompt + completion + [tokenizer.eos_token_id], len(prompt))
        for prompt, completion in zip(prompts, completions)
    ]
    data = sorted((d for d in data if len(d[0]) <= 256), key=lambda d: len(d[0]))
    assert all(tokenizer.decode(c) == row["completion"] for c, row in zip(completions[:2000], rows))

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.width,
            intermediate_size=args.width * 8 // 3 // 8 * 8,
            num_hidden_layers=args.layers,
            num_attention_heads=args.width // 32,
            num_key_value_heads=args.width // 32,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.1, betas=(0.9, 0.98))
    bar = tqdm(
        range(args.steps), desc=f"{model.num_parameters():,} parameters, {len(data):,} proofs", mininterval=5
    )
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = (
                args.lr * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
            )
        # neighbours in the length-sorted list: hardly any padding
        start = torch.randint(max(1, len(data) - args.batch), ()).item()
        batch = data[start : start + args.batch]
        ids = torch.zeros(len(batch), max(len(d[0]) for d in batch), dtype=torch.long)  # [B, L]
        labels = torch.full_like(ids, -100)  # the loss is over the completion, its end included
        for i, (tokens, prompt_length) in enumerate(batch):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            labels[i, prompt_length : len(tokens)] = ids[i, prompt_length : len(tokens)]
        hidden = model.model(ids).last_hidden_state[:, :-1]  # right padding: causal attention never sees it
        wanted = labels[:, 1:] != -100
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[wanted]), labels[:, 1:][wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
