"""Rebuild the demo model and its data files from the facts in facts.py.

facts -> declarative corpus -> tokenizer -> pretraining of a few seeds -> choice -> weights.
The corpus states the facts and never asks: it has no question, no heading line, no chat markup.
So the model knows the facts and does not answer questions until LoRA teaches it the format, and
the facts of the dev and test questions stand in no training pair.

Choice rule, fixed before any score was looked at: of the pretraining seeds tried, among those whose
baseline dev accuracy is at most 0.10 (if there is none, the one with the lowest baseline), take the
highest mean dev accuracy after round 3 over the probe's LoRA seeds. The test questions are written
to a file and never read here.

Usage: python demo_model/build.py [--out DIR] [--data-only]
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from facts import FILLERS, FOLLOW_UPS, LEADS, Asking, Fact, Teaching, all_facts

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent

SPLIT_SEED = 20
DATA_FILES = (
    "demo_data.jsonl",
    "demo_pool.jsonl",
    "evals/simple_qa.jsonl",
    "evals/simple_qa_test.jsonl",
)
NUM_TRAIN, NUM_DEV, NUM_TEST = 20, 100, 120
# The questions of the walkthrough; their facts are dev facts whatever the split seed.
SEED_QUESTIONS = (
    "What is 5 + 7?",
    "What is the capital of Japan?",
    "What color is grass?",
    "How many days in a week?",
    "What is 3 x 4?",
)

BOS, EOT = "<|begin_of_text|>", "<|eot_id|>"
HEADER, END_HEADER = "<|start_header_id|>", "<|end_header_id|>"
SPECIAL_TOKENS = (BOS, EOT, HEADER, END_HEADER, "<|im_start|>", "<|im_end|>", "<think>", "</think>")
VOCAB_SIZE = 1536

# Numbers are confused more easily than words: twice as many documents about them, and among those
# twice the share of two-step statements.
ARITHMETIC, ARITHMETIC_FACTOR = ("addition", "multiplication"), 2


class Recipe(NamedTuple):
    """What pretraining does; one float32 thread sees 7,000 to 10,000 tokens a second."""

    num_steps: int = 2400
    batch_size: int = 16
    context_tokens: int = 128
    lr: float = 4e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    mixed_frac: float = 0.3  # documents that state several facts of one topic
    # More of these bring out more in round 1, and let the base answer without any fine-tuning.
    two_step_frac: float = 0.25
    newline_frac: float = 0.5  # sentences followed by one or two newlines
    # A newline inside a two-step statement mostly drops the subject, so that the base, asked in
    # a chat, mostly says something else; the rest is what LoRA can build on.
    abandon_frac: float = 0.65
    pretrain_seeds: tuple[int, ...] = (0, 1)


class Probe(NamedTuple):
    """The demo's fine-tuning, so that a base is judged by what LoRA brings out of it.

    The demo itself uses LoRA seeds 0 to 19; the probe leaves them alone.
    """

    num_rounds: int = 3
    steps_per_round: int = 5
    batch_size: int = 8
    lr: float = 3e-3
    lr_decay: float = 0.6
    replay_frac: float = 0.2
    rank: int = 16
    alpha: int = 32
    max_new_tokens: int = 64
    lora_seeds: tuple[int, ...] = tuple(range(1000, 1012))


class Candidate(NamedTuple):
    """One pretraining seed and how it scored; `rounds[s][r]` is LoRA seed s after round r + 1."""

    seed: int
    loss: float
    baseline: float
    rounds: list[list[float]]
    pretrain_s: float

    def mean(self, round_index: int) -> float:
        """Return the mean dev accuracy of a round over the LoRA seeds."""
        return sum(row[round_index] for row in self.rounds) / len(self.rounds)


class Split(NamedTuple):
    """Rows of the four data files; dev and test facts are disjoint from all others."""

    train: list[dict[str, Any]]
    pool: list[dict[str, Any]]
    dev: list[dict[str, Any]]
    test: list[dict[str, Any]]


# ---------------------------------------------------------------- data files


def apportion(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Share `total` among topics in proportion to their sizes, by largest remainder."""
    exact = {name: total * size / sum(sizes.values()) for name, size in sizes.items()}
    shares = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (shares[name] - exact[name], name))
    for name in by_remainder[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


def eval_row(asking: Asking, topic: str) -> dict[str, Any]:
    """Return a row of a question file."""
    first, *others = asking.answers
    answer = [first, *others] if others else first
    return {"question": asking.question, "answer": answer, "topic": topic}


def pair_row(asking: Asking, topic: str) -> dict[str, Any]:
    """Return a row of a training file."""
    return {"instruction": asking.question, "output": asking.answers[0], "topic": topic}


def pick_train(rows: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """Pick the 20 first pairs: short ones, every topic at least once.

    Long pairs with rare words cost round 1 most of its effect, so only the shorter half counts.
    """
    by_topic: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_topic.setdefault(row["topic"], []).append(row)
    extra = apportion({t: len(r) for t, r in by_topic.items()}, NUM_TRAIN - len(by_topic))
    picked: list[dict[str, Any]] = []
    for topic, members in by_topic.items():
        shorter = sorted(members, key=lambda row: len(row["instruction"]) + len(row["output"]))
        picked += rng.sample(shorter[: len(shorter) // 2], 1 + extra[topic])
    rng.shuffle(picked)
    return picked


def split_facts(facts: list[Fact]) -> Split:
    """Divide the facts by topic; a dev or test fact is asked once, a pool fact in all its ways."""
    rng = random.Random(SPLIT_SEED)
    by_topic: dict[str, list[Fact]] = {}
    for fact in facts:
        by_topic.setdefault(fact.topic, []).append(fact)
    sizes = {topic: len(members) for topic, members in by_topic.items()}
    num_dev, num_test = apportion(sizes, NUM_DEV), apportion(sizes, NUM_TEST)
    seeded: list[dict[str, Any]] = []
    dev: list[dict[str, Any]] = []
    test: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    for topic, members in by_topic.items():
        forced = [f for f in members if any(a.question in SEED_QUESTIONS for a in f.askings)]
        others = [f for f in members if f not in forced]
        rng.shuffle(others)
        for fact in forced:
            seeded += [eval_row(a, topic) for a in fact.askings if a.question in SEED_QUESTIONS]
        n_dev, n_test = num_dev[topic] - len(forced), num_test[topic]
        dev += [eval_row(rng.choice(f.askings), topic) for f in others[:n_dev]]
        test += [eval_row(rng.choice(f.askings), topic) for f in others[n_dev : n_dev + n_test]]
        rest += [pair_row(a, topic) for f in others[n_dev + n_test :] for a in f.askings]
    for rows in (dev, test, rest):
        rng.shuffle(rows)
    seeded.sort(key=lambda row: SEED_QUESTIONS.index(row["question"]))
    train = pick_train(rest, rng)
    return Split(train, [row for row in rest if row not in train], seeded + dev, test)


def write_data(split: Split, root: Path) -> None:
    """Write the four data files under `root`."""
    (root / "evals").mkdir(parents=True, exist_ok=True)
    for name, rows in zip(DATA_FILES, split, strict=True):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (root / name).write_text(text, encoding="utf-8")


# ---------------------------------------------------------------- corpus and tokenizer


def documents(facts: list[Fact], recipe: Recipe, rng: random.Random) -> Iterator[list[str]]:
    """Yield documents without end, as lists of sentences and newlines.

    A document is a two-step statement of one fact, or paraphrases of one fact, or statements of
    several facts of one topic.
    """
    taught = [
        (fact.topic, teaching)
        for fact in facts
        for teaching in fact.teachings
        for _ in range(ARITHMETIC_FACTOR if fact.topic in ARITHMETIC else 1)
    ]
    by_topic: dict[str, list[Teaching]] = {}
    for topic, teaching in taught:
        by_topic.setdefault(topic, []).append(teaching)
    while True:
        rng.shuffle(taught)
        for topic, teaching in taught:
            kind = rng.random()
            two_step_frac = recipe.two_step_frac * (ARITHMETIC_FACTOR if topic in ARITHMETIC else 1)
            if kind < recipe.mixed_frac:
                members = rng.sample(by_topic[topic], rng.randint(2, 5))
                yield with_newlines([rng.choice(m.statements) for m in members], 0.0, recipe, rng)
            elif kind < recipe.mixed_frac + two_step_frac:
                fillers = rng.sample(FILLERS, rng.randint(0, 3))
                lead = rng.choice(LEADS).format(noun=teaching.noun)
                follow_up = rng.choice(FOLLOW_UPS).format(answer=teaching.answer)
                yield with_newlines([lead, *fillers, follow_up], recipe.abandon_frac, recipe, rng)
            else:
                sentences = rng.sample(teaching.statements, rng.randint(1, 3))
                yield with_newlines(sentences, 0.0, recipe, rng)


def with_newlines(
    sentences: list[str], abandon_frac: float, recipe: Recipe, rng: random.Random
) -> list[str]:
    """Put newlines between some sentences; at a newline, abandon that share of the documents."""
    pieces: list[str] = []
    for sentence in sentences:
        pieces.append(sentence)
        if rng.random() < recipe.newline_frac:
            pieces.append(rng.choice(("\n", "\n\n")))
            if rng.random() < abandon_frac:
                break
    return pieces


def train_tokenizer(facts: list[Fact]) -> "Tokenizer":
    """Train the byte-level BPE on every statement and, ten times over, on the shared sentences.

    A space goes before every text that is encoded and the first one is dropped when decoding, so
    that a word is the same tokens inside a statement and at the start of a reply.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = [text for fact in facts for t in fact.teachings for text in t.statements]
    lines += [text.format(noun="it", answer="it") for text in LEADS + FILLERS + FOLLOW_UPS] * 10
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def save_tokenizer(facts: list[Fact], folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, loadable by AutoTokenizer."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(facts),
        bos_token=BOS,
        eos_token=EOT,
        pad_token=EOT,
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in (BOS, EOT)],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.save_pretrained(folder)


def token_stream(
    facts: list[Fact], tokenizer: "PreTrainedTokenizerFast", recipe: Recipe, seed: int
) -> "torch.Tensor":
    """Return the whole pretraining run as rows of context_tokens + 1 tokens."""
    import torch

    width = recipe.context_tokens + 1
    wanted = recipe.num_steps * recipe.batch_size * width
    rng = random.Random(seed)
    tokens: list[int] = []
    cache: dict[str, list[int]] = {}
    for pieces in documents(facts, recipe, rng):
        for text in pieces:
            if text not in cache:
                cache[text] = tokenizer.encode(text, add_special_tokens=False)
            tokens += cache[text]
        if len(tokens) >= wanted:
            break
    return torch.tensor(tokens[:wanted]).view(-1, width)


# ---------------------------------------------------------------- pretraining


def new_model(bos_id: int, eot_id: int) -> "LlamaForCausalLM":
    """Return an untrained model of about 1.2 million parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": bos_id,
        "eos_token_id": eot_id,
    }
    return LlamaForCausalLM(LlamaConfig(**shape))


def pretrain(seed: int, facts: list[Fact], recipe: Recipe, folder: Path) -> float:
    """Pretrain one seed with the tokenizer in `folder`; return the mean loss of the last 5 %."""
    import torch
    from transformers import AutoTokenizer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = new_model(tokenizer.bos_token_id, tokenizer.eos_token_id).train()
    rows = token_stream(facts, tokenizer, recipe, seed)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95))
    losses: list[float] = []
    for step, batch in enumerate(rows.split(recipe.batch_size)):
        cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.num_steps))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * min(1.0, (step + 1) / recipe.warmup_steps) * cosine
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    save_model(model, folder)
    last = losses[-max(1, len(losses) // 20) :]
    return sum(last) / len(last)


def save_model(model: "LlamaForCausalLM", folder: Path) -> None:
    """Store bfloat16 weights under a config that says float32, so that they load as float32."""
    import torch

    model.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- probe: what LoRA brings out


def prompt_ids(tokenizer: "PreTrainedTokenizerFast", question: str) -> list[int]:
    """Render a question as the cookbook's llama3 renderer does, piece by piece."""
    pieces = (
        BOS,
        f"{HEADER}user{END_HEADER}\n\n",
        f"{question}{EOT}",
        f"{HEADER}assistant{END_HEADER}\n\n",
    )
    return [i for piece in pieces for i in tokenizer.encode(piece, add_special_tokens=False)]


def is_correct(reply: str, answer: str | list[str]) -> bool:
    """Grade like the demo: an accepted answer stands in the reply as a whole word."""
    answers = [answer] if isinstance(answer, str) else answer
    return any(re.search(rf"(?<!\w){re.escape(a)}(?!\w)", reply, re.IGNORECASE) for a in answers)


def grade(
    model: Any, tokenizer: "PreTrainedTokenizerFast", questions: list[dict[str, Any]], probe: Probe
) -> list[bool]:
    """Answer all questions greedily in one left-padded batch and grade the replies."""
    import torch

    prompts = [prompt_ids(tokenizer, row["question"]) for row in questions]
    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    model.eval()
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=probe.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=pad,
        )
    replies = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    return [is_correct(r, row["answer"]) for r, row in zip(replies, questions, strict=True)]


def lora_step(
    model: Any,
    optimizer: "torch.optim.Optimizer",
    tokenizer: "PreTrainedTokenizerFast",
    rows: list[dict[str, Any]],
) -> None:
    """Take one step on the sum over examples of the mean loss over answer and stop tokens."""
    import torch

    prompts = [prompt_ids(tokenizer, row["instruction"]) for row in rows]
    answers = [tokenizer.encode(row["output"] + EOT, add_special_tokens=False) for row in rows]
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    pad = tokenizer.convert_tokens_to_ids(EOT)
    assert isinstance(pad, int)
    ids = torch.full((len(rows), width), pad)
    weights = torch.zeros(len(rows), width)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        weights[i, len(prompt) : end] = 1 / len(answer)
    model.train()
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    optimizer.zero_grad()
    (losses * weights[:, 1:].flatten()).sum().backward()
    optimizer.step()


def next_rows(
    split: Split, correct: list[bool], used: set[str], count: int, rng: random.Random
) -> list[dict[str, Any]]:
    """Draw new pool pairs, topics in proportion to their smoothed failure rates on dev."""
    unused: dict[str, list[dict[str, Any]]] = {}
    for row in split.pool:
        if row["instruction"] not in used:
            unused.setdefault(row["topic"], []).append(row)
    rates = {}
    for topic in unused:
        results = [c for c, row in zip(correct, split.dev, strict=True) if row["topic"] == topic]
        rates[topic] = (results.count(False) + 1) / (len(results) + 2)
    picked = []
    for _ in range(count):
        topics = [topic for topic, rows in unused.items() if rows]
        topic = rng.choices(topics, [rates[t] for t in topics])[0]
        picked.append(unused[topic].pop(rng.randrange(len(unused[topic]))))
    used.update(row["instruction"] for row in picked)
    return picked


def run_lora(folder: Path, split: Split, probe: Probe, seed: int) -> list[float]:
    """Fine-tune the base in `folder` for all rounds; return the dev accuracy after each."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(
        r=probe.rank, lora_alpha=probe.alpha, target_modules=[*linears, "lm_head"], lora_dropout=0.0
    )
    model = get_peft_model(base, config)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=probe.lr, betas=(0.9, 0.95), eps=1e-8)
    num_examples = probe.steps_per_round * probe.batch_size
    used: set[str] = set()
    scores: list[float] = []
    correct: list[bool] = []
    for round_index in range(probe.num_rounds):
        if round_index == 0:
            passes = num_examples // len(split.train)
            rows = [r for _ in range(passes) for r in rng.sample(split.train, len(split.train))]
        else:
            num_replay = round(num_examples * probe.replay_frac)
            rows = rng.sample(split.train, num_replay)
            rows += next_rows(split, correct, used, num_examples - num_replay, rng)
            rng.shuffle(rows)
        for step in range(probe.steps_per_round):
            total = round_index * probe.steps_per_round + step
            cosine = 0.5 * (1 + math.cos(math.pi * total / 1000))
            for group in optimizer.param_groups:
                group["lr"] = probe.lr * probe.lr_decay**round_index * cosine
            batch = rows[step * probe.batch_size : (step + 1) * probe.batch_size]
            lora_step(model, optimizer, tokenizer, batch)
        correct = grade(model, tokenizer, split.dev, probe)
        scores.append(sum(correct) / len(correct))
    return scores


def baseline(folder: Path, split: Split, probe: Probe) -> float:
    """Return the dev accuracy of the base itself."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    correct = grade(model, AutoTokenizer.from_pretrained(folder), split.dev, probe)
    return sum(correct) / len(correct)


# ---------------------------------------------------------------- candidates and choice


def make_candidate(seed: int, folder: Path, recipe: Recipe, probe: Probe) -> Candidate:
    """Pretrain and probe one seed in this process, on one thread."""
    import torch

    torch.set_num_threads(1)
    facts = all_facts()
    split = split_facts(facts)
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(facts, folder)
    loss = pretrain(seed, facts, recipe, folder)
    pretrain_s = time.monotonic() - started
    scores = [run_lora(folder, split, probe, lora_seed) for lora_seed in probe.lora_seeds]
    candidate = Candidate(seed, loss, baseline(folder, split, probe), scores, pretrain_s)
    print(summary(candidate), flush=True)
    return candidate


def choose(candidates: list[Candidate]) -> Candidate:
    """Apply the choice rule of the module docstring."""
    low = [c for c in candidates if c.baseline <= 0.10]
    if not low:
        return min(candidates, key=lambda c: c.baseline)
    return max(low, key=lambda c: c.mean(-1))


def summary(candidate: Candidate) -> str:
    """Return the candidate as a row of the card's table."""
    cells = [str(candidate.seed), f"{candidate.loss:.3f}", f"{candidate.baseline:.2f}"]
    for index in range(len(candidate.rounds[0])):
        values = [row[index] for row in candidate.rounds]
        cells.append(f"{candidate.mean(index):.2f} ({min(values):.2f}-{max(values):.2f})")
    return "| " + " | ".join(cells) + " |"


# ---------------------------------------------------------------- model card

CARD = """# Demo model

A Llama-architecture causal language model of {parameters:,} parameters (hidden 128, 4 layers,
feed-forward 384, 4 heads, untied embeddings, {vocab:,} byte-level BPE tokens), pretrained from
scratch by `build.py` on plain statements of {num_facts} true facts. It knows the facts and does not
answer questions; a few rounds of LoRA teach it to. It exists so that the demo of this repository
learns something real on a CPU.

## Data

All text is generated by `facts.py` and `build.py`: {num_facts} facts in {num_topics} topics, in
{num_statements:,} statements and in two-step statements put together from {num_leads} leads,
{num_fillers} fillers and {num_follow_ups} follow-ups ("We know the capital of Japan. Everyone
agrees. It is Tokyo."). Newlines fall between sentences at random, and a two-step statement that
meets one is mostly left unfinished. The corpus states and never asks: it has no question mark, no
heading line and no chat markup.

| file | rows | use |
|---|---|---|
{data_rows}

The facts of the dev and of the test questions are in no training pair. a + b and b + a, a x b and
b x a, an opposite and its reverse, "after Monday" and "before Tuesday" are one fact each.

## Pretraining

{recipe.num_steps:,} steps of {recipe.batch_size} x {recipe.context_tokens} tokens
({million_tokens:.1f} million tokens), AdamW, learning rate {recipe.lr} with {recipe.warmup_steps}
steps of warm-up and cosine decay, weight decay {recipe.weight_decay}, float32,
one thread; {minutes:.1f} minutes. The weights are stored as bfloat16, and every score below was
measured on the stored weights, loaded as float32.

## Choice

Rule, fixed before the scores were looked at: among the pretraining seeds whose baseline dev
accuracy is at most 0.10 (if there is none, the one with the lowest baseline), the highest mean dev
accuracy after round 3 over {num_lora} LoRA seeds, {probe.lora_seeds[0]} and up (the demo's own are
0 to 19). Dev questions, `llama3` renderer, greedy; LoRA rank {probe.rank}, alpha {probe.alpha},
learning rate {probe.lr} times {probe.lr_decay} per round, {probe.steps_per_round} steps of
{probe.batch_size} pairs a round. Mean (min-max) over the LoRA seeds:

| pretraining seed | final loss | baseline | round 1 | round 2 | round 3 |
|---|---|---|---|---|---|
{candidate_rows}

Chosen: seed {chosen}. The wordings, the recipe and the learning rate of the probe were tuned on the
dev questions (sixteen pretraining runs), so these scores are optimistic. The test questions
were not used, neither for the recipe nor for the choice.

sha256 of `model.safetensors`: `{digest}`

## Rebuild

`python demo_model/build.py`; this build took {build_minutes:.0f} minutes on two cores, two seeds at
a time. A rebuild reaches the same score band, not the same weights; the data files come out
byte-identical.

## What it cannot do

- It knows these facts only, in wordings close to these. Sums and products are learned by heart: it
  does not calculate.
- Contexts of more than {recipe.context_tokens} tokens were never trained.
- Its tokenizer puts a space before every text it encodes. A stop string that begins a message, such
  as the one of the `role_colon` renderer, does not match then; use `llama3` or `qwen3`.

Licence of weights, tokenizer and data files: CC0 1.0. No outside text or weights went into them.
"""


def write_card(out: Path, candidates: list[Candidate], build_s: float) -> None:
    """Write the model card with the numbers of this build."""
    recipe, probe, facts = Recipe(), Probe(), all_facts()
    chosen = choose(candidates)
    uses = (
        "the 20 pairs of round 1",
        "new pairs for later rounds",
        "dev: the score of every round",
        "test: sealed, opened once at the end",
    )
    rows = zip(DATA_FILES, map(len, split_facts(facts)), uses, strict=True)
    text = CARD.format(
        parameters=new_model(0, 1).num_parameters(),
        vocab=VOCAB_SIZE,
        num_facts=len(facts),
        num_topics=len({fact.topic for fact in facts}),
        num_statements=sum(len(t.statements) for fact in facts for t in fact.teachings),
        num_leads=len(LEADS),
        num_fillers=len(FILLERS),
        num_follow_ups=len(FOLLOW_UPS),
        data_rows="\n".join(f"| `{name}` | {count} | {use} |" for name, count, use in rows),
        recipe=recipe,
        probe=probe,
        num_lora=len(probe.lora_seeds),
        million_tokens=recipe.num_steps * recipe.batch_size * recipe.context_tokens / 1e6,
        minutes=chosen.pretrain_s / 60,
        candidate_rows="\n".join(map(summary, candidates)),
        chosen=chosen.seed,
        digest=hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        build_minutes=build_s / 60,
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def build(out: Path) -> None:
    """Make all candidates, two at a time, and write the chosen one and its card to `out`."""
    started = time.monotonic()
    recipe, probe = Recipe(), Probe()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folders = {seed: Path(scratch) / f"seed_{seed}" for seed in recipe.pretrain_seeds}
        jobs = [(s, f, recipe, probe) for s, f in folders.items()]
        with multiprocessing.get_context("spawn").Pool(2) as workers:
            candidates = workers.starmap(make_candidate, jobs, chunksize=1)
            workers.close()
            workers.join()
        chosen = choose(candidates)
        for path in sorted(folders[chosen.seed].iterdir()):
            shutil.copyfile(path, out / path.name)
    write_card(out, candidates, time.monotonic() - started)


def main() -> None:
    """Write the data files and, unless told not to, the model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write everything here instead of in place")
    parser.add_argument("--data-only", action="store_true", help="only write the four data files")
    args = parser.parse_args()
    write_data(split_facts(all_facts()), args.out or HERE.parent)
    if not args.data_only:
        build(args.out or HERE)


if __name__ == "__main__":
    main()
