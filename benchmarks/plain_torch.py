"""The work of the service's benchmarks as a person writes it in torch, transformers and peft.

Nothing here knows of a service, but for its number of threads and of slots. Callers run this in a
process of its own.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

PADDED_PROMPT_TOKENS = 64  # prompts of the benchmarks are about as long; slots depend on it little


class Row(NamedTuple):
    """One training sequence as plain lists: inputs, targets and the targets' weights."""

    tokens: list[int]
    targets: list[int]
    weights: list[float]


class Adam(NamedTuple):
    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


class Training(NamedTuple):
    """Seconds of the steps after the warm-up, and the loss of every step."""

    seconds: float
    losses: list[float]


class Answers(NamedTuple):
    seconds: float
    tokens: list[list[int]]


class Base(NamedTuple):
    """Where a base model lies, where it is computed and with which of torch's number types."""

    model_dir: Path
    device: str = "cpu"
    dtype: str = "float32"


class Peaks(NamedTuple):
    """The most memory that was resident by the end of each phase, in MiB."""

    training_mib: float
    sampling_mib: float


def peak_mib(pid: int | None = None) -> float:
    """The most memory that a process, this one by default, has had resident at one time."""
    status = Path(f"/proc/{os.getpid() if pid is None else pid}/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def as_the_service(base: Base) -> int:
    """Use as many threads as the service does for this model; returns how many slots it uses."""
    from local_tinker.engine import Engine

    engine = Engine.load("model", str(base.model_dir), base.device)
    torch.set_num_threads(engine.num_threads)
    return engine.num_slots(PADDED_PROMPT_TOKENS, False)


def load_adapted(base: Base, folder: Path, *, is_trainable: bool) -> Any:
    transformers_logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(
        base.model_dir, dtype=getattr(torch, base.dtype)
    )
    model.to(base.device)
    return PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable).eval()


# --- training -------------------------------------------------------------------------------------


def train(base: Base, folder: Path, batches: list[list[Row]], adam: Adam, warmup: int) -> Training:
    """The plain training loop that a person would write, from the adapter in `folder`."""
    return train_model(load_adapted(base, folder, is_trainable=True), batches, adam, warmup)


def train_model(model: Any, batches: list[list[Row]], adam: Adam, warmup: int) -> Training:
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=adam.learning_rate,
        betas=(adam.beta1, adam.beta2),
        eps=adam.eps,
        weight_decay=adam.weight_decay,
    )
    losses: list[float] = []
    started = time.perf_counter()
    for step, rows in enumerate(batches):
        if step == warmup:
            started = time.perf_counter()
        loss = -sum_of_logprobs(model, rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Training(time.perf_counter() - started, losses)


def sum_of_logprobs(model: Any, rows: list[Row]) -> torch.Tensor:
    weights_BT = padded([row.weights for row in rows]).to(model.device)
    return (weights_BT * logprobs_of(model, rows)).sum()


def logprobs_of(model: Any, rows: list[Row]) -> torch.Tensor:
    """Log-probabilities of all rows' targets, padded: (B, T)."""
    logits_BTV = model(
        input_ids=padded([row.tokens for row in rows]).to(model.device),
        attention_mask=padded([[1] * len(row.tokens) for row in rows]).to(model.device),
        use_cache=False,
    ).logits
    targets_BT1 = padded([row.targets for row in rows]).to(model.device)[..., None]
    return logits_BTV.float().log_softmax(-1).gather(-1, targets_BT1).squeeze(-1)


def padded(rows: list[Any]) -> torch.Tensor:
    """Stack lists of numbers, zeros behind each."""
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def score(base: Base, folder: Path, rows: list[Row]) -> list[list[float]]:
    """Log-probabilities of each row's targets under the adapter in `folder`."""
    model = load_adapted(base, folder, is_trainable=False)
    with torch.inference_mode():
        scored = [logprobs_of(model, [row])[0].tolist() for row in rows]
    return scored


# --- sampling -------------------------------------------------------------------------------------


class Asking(NamedTuple):
    """Prompts for greedy answers that end with a stop token, or after `max_tokens`."""

    prompts: list[list[int]]
    stop: list[int]
    max_tokens: int
    batch_size: int


def sample(base: Base, folder: Path, asking: Asking) -> Answers:
    return sample_model(load_adapted(base, folder, is_trainable=False), asking)


def sample_model(model: Any, asking: Asking) -> Answers:
    """`generate` over batches that are padded on the left, after one batch to warm up."""
    prompts, stop, max_tokens, batch_size = asking
    model.generation_config.eos_token_id = stop or None  # else the model's own would end answers
    tokens: list[list[int]] = []

    def answer(batch: list[list[int]]) -> None:
        longest = max(len(prompt) for prompt in batch)
        ids = [[0] * (longest - len(p)) + p for p in batch]
        mask = [[0] * (longest - len(p)) + [1] * len(p) for p in batch]
        made_BT = model.generate(
            input_ids=torch.tensor(ids).to(model.device),
            attention_mask=torch.tensor(mask).to(model.device),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=stop[0] if stop else 0,
        )
        for made in made_BT[:, longest:].tolist():
            end = next((place for place, token in enumerate(made) if token in stop), len(made))
            tokens.append(made[: end + 1])

    answer(prompts[:batch_size])
    tokens.clear()
    gc.collect()  # as before the service's answers
    started = time.perf_counter()
    for start in range(0, len(prompts), batch_size):
        answer(prompts[start : start + batch_size])
    return Answers(time.perf_counter() - started, tokens)


def train_then_sample(
    base: Base, folder: Path, batches: list[list[Row]], adam: Adam, asking: Asking
) -> Peaks:
    """The memory of both; for a fresh process."""
    model = load_adapted(base, folder, is_trainable=True)
    train_model(model, batches, adam, 0)
    training_mib = peak_mib()
    with torch.inference_mode():
        sample_model(model, asking)
    return Peaks(training_mib, peak_mib())
