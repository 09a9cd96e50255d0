"""Trains a base prover by supervised fine-tuning on random proofs.

    python toy/make_base.py --sft runs/sft.jsonl --out toy/base
    python toy/make_base.py --sft runs/nat-sft.jsonl --out nat/base --steps 10000 --muon

Reads: statement, completion. Writes a Hugging Face folder: a LlamaForCausalLM of a million parameters or two
and a word-level tokenizer that decodes to the exact text: words have the space before them, line breaks their
indent.
"""

import math
import os
import sys

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from lib.cli import flags, number  # noqa: E402
from lib.jsonl import read_jsonl  # noqa: E402

WORD = (
    r"\n *| ?h\d+| ?[A-Z][a-z]+\.[a-z_]+'?|\.[a-z]+|\.\d| ?[A-Za-z]+_?| ?\?_|\d"
    r"| ?(:=|=>|<;>|[()⟨⟩,|:·∧∨¬→↔=+*^←\[\]])"
)
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}  # ids 0 to 3


def make_tokenizer(texts):
    """A tokenizer whose words are those that occur in the texts."""
    split = pre_tokenizers.Split(Regex(WORD), "isolated")
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: i for i, word in enumerate([*SPECIAL.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    options = {**SPECIAL, "clean_up_tokenization_spaces": False}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def make_model(vocab_size, layers, width):
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def completion_loss(model, batch):
    """Mean cross-entropy of the completions' tokens, EOS included; batch: [(token ids, prompt length)]."""
    ids = [torch.tensor(tokens) for tokens, _ in batch]
    labels = [torch.tensor([-100] * length + tokens[length:]) for tokens, length in batch]
    ids = pad_sequence(ids, batch_first=True)  # [B, L], on the right, where causal attention ignores it
    return model(input_ids=ids, labels=pad_sequence(labels, batch_first=True, padding_value=-100)).loss


def make_optimizers(model, lr, muon):
    """AdamW for all weights, or Muon for the blocks' matrices: it learns arithmetic from far fewer proofs."""
    adamw, matrices = [], []
    for name, weight in model.named_parameters():
        (matrices if muon and weight.ndim == 2 and "layers" in name else adamw).append(weight)
    optimizers = [torch.optim.AdamW(adamw, lr=lr, weight_decay=0.1, betas=(0.9, 0.98))]
    if muon:
        optimizers.append(torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def main():
    parser = flags("Supervised training of a base prover.")
    parser.add_argument("--sft", default="runs/sft.jsonl", help="JSONL from make_problems.py")
    parser.add_argument("--out", default="toy/base", help="folder to write the model to")
    parser.add_argument("--layers", type=number(int, 1), default=4, help="transformer blocks")
    parser.add_argument("--width", type=number(int, 32), default=128, help="hidden size, a multiple of 32")
    parser.add_argument("--steps", type=number(int, 1), default=4500, help="optimizer steps")
    parser.add_argument("--batch", type=number(int, 1), default=96, help="proofs a step")
    parser.add_argument("--lr", type=number(float, 0), default=3e-3, help="peak learning rate (cosine to 0)")
    parser.add_argument("--muon", action="store_true", help="Muon instead of AdamW for the blocks' matrices")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="seed of weights and data order")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rows = list(read_jsonl(args.sft, "statement", "completion"))
    statements, proofs = ([row[key] for row in rows] for key in ("statement", "completion"))
    texts = [statement + proof for statement, proof in zip(statements, proofs)]
    tokenizer = make_tokenizer([*texts, "0 1 2 3 4 5 6 7 8 9"])
    prompts = tokenizer(statements).input_ids
    completions = tokenizer(proofs, add_special_tokens=False).input_ids
    assert all(tokenizer.decode(ids) == proof for ids, proof in zip(completions[:2000], proofs))
    pairs = [
        (prompt + ids + [tokenizer.eos_token_id], len(prompt)) for prompt, ids in zip(prompts, completions)
    ]
    data = sorted((pair for pair in pairs if len(pair[0]) <= 256), key=lambda pair: len(pair[0]))

    model = make_model(len(tokenizer), args.layers, args.width)
    optimizers = make_optimizers(model, args.lr, args.muon)
    title = f"{model.num_parameters():,} parameters, {len(data):,} proofs"
    bar = tqdm(range(args.steps), desc=title, mininterval=5)
    for step in bar:
        warmup, cosine = min(1, (step + 1) / 100), 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = args.lr * warmup * cosine
        start = torch.randint(max(1, len(data) - args.batch), ()).item()
        loss = completion_loss(model, data[start : start + args.batch])  # of similar length: little padding
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
