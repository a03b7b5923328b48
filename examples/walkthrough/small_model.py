"""Write a model directory that is small enough to train in seconds, without a download.

    python examples/walkthrough/small_model.py FOLDER

It has the shape, the kind of tokenizer and the chat template of Qwen2.5, with 0.15 million
parameters for 494 million. It stands in for a model that was downloaded: it can tell what a ticket
is about, of other things than those of the task, and answers in words of its own.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from tickets import DESKS, OPENINGS
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

NUM_STEPS, BATCH, RATE = 90, 24, 6e-3
READ = ("table", "chair", "coat", "bag", "ring", "carpet", "mirror", "bottle", "pen", "bicycle")
WORDS = {
    "billing": "money", "delivery": "post", "returns": "back", "account": "login",
    "repair": "broken", "praise": "thanks",
}  # fmt: skip
IGNORED = -100  # of a label that no loss is of
MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PIECES = (  # how Qwen2.5 cuts a text before it looks for merges
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = """\
{%- for message in messages %}
{{- "<|im_start|>" ~ message.role ~ "\n" ~ message.content ~ "<|im_end|>\n" }}
{%- endfor %}
{{- "<|im_start|>assistant\n" if add_generation_prompt }}"""


def chats(number: int, seed: int = 0) -> list[tuple[str, str]]:
    """Questions with the answers that this model gives."""
    chance, made = random.Random(seed), []
    for _ in range(number):
        desk = chance.choice(sorted(DESKS))
        text = chance.choice(DESKS[desk]).format(thing=chance.choice(READ))
        asked = f"Which desk gets this ticket? {chance.choice(OPENINGS)} {text}."
        made.append((asked, WORDS[desk]))
    return made


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, with the words of tickets and desks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=MARKERS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"user\n{asked} {answer} assistant\n" for asked, answer in chats(500)]
    tokenizer.train_from_iterator([*texts, *sorted(DESKS) * 20], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    made.chat_template = TEMPLATE
    return made


def train(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Train all parameters on what answers say."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    rows = chats(NUM_STEPS * BATCH)
    for step in range(NUM_STEPS):
        tokens, labels = [], []
        for asked, answer in rows[step * BATCH : (step + 1) * BATCH]:
            messages = [{"role": "user", "content": asked}]
            prompt = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            before, after = (
                tokenizer.encode(text, add_special_tokens=False)
                for text in (prompt, f"{answer}<|im_end|>")
            )
            tokens.append(torch.tensor(before + after))
            labels.append(torch.tensor([IGNORED] * len(before) + after))
        batch = pad_sequence(tokens, batch_first=True, padding_value=tokenizer.pad_token_id)
        target = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20) * (1 - step / NUM_STEPS)
        # What is padded comes after all that counts, and is not seen by it.
        loss = model(input_ids=batch, labels=target).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen2ForCausalLM(config)
    train(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
