"""Requests for samples: what is asked, checked, and which of them may be computed together."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from local_tinker.choosing import Choice
from local_tinker.engine import Engine
from local_tinker.wire import (
    MAX_PROMPT_CELLS,
    Sample,
    SamplingParams,
    TensorData,
    UserError,
    csr_cells,
)

MIN_PADDED_LENGTH_TOKENS = 32


class WaveKey(NamedTuple):
    """What samples must share to be computed together."""

    weights: Path | None
    padded_length_tokens: int
    with_prompt_logits: bool

    def num_slots(self, engine: Engine) -> int:
        """Rows of a wave of this kind."""
        return engine.num_slots(self.padded_length_tokens, self.with_prompt_logits)


@dataclass(frozen=True)
class PromptQuestions:
    """What a request asks about its prompt; positions and rows as the protocol defines them."""

    logprobs: bool
    last_n: int | None
    topk: int
    targets: TensorData | None
    target_cells: tuple[np.ndarray, np.ndarray]  # position and token id of each asked cell
    alt_tokens_k: int


@dataclass(frozen=True)
class SampleRequest:
    """A checked asample request: `num_samples` rows of one prompt."""

    weights: Path | None  # folder of the sampler weights; None is the base model
    prompt: list[int]
    params: SamplingParams
    num_samples: int
    max_tokens: int
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    seed: int
    topk: int
    questions: PromptQuestions | None
    on_token: Callable[[int, Choice], None] | None = None  # told of each token: sample, choice

    @property
    def wave_key(self) -> WaveKey:
        padded = MIN_PADDED_LENGTH_TOKENS
        while padded <= len(self.prompt):
            padded *= 2
        return WaveKey(self.weights, padded, self.questions is not None)


def check_request(engine: Engine, request: Sample, weights: Path | None) -> SampleRequest:
    """Turn a wire request into one to compute. Raises `UserError` for what is not supported."""
    if request.record_stability_info:
        raise UserError(
            "record_stability_info is not supported: this service keeps no such records"
        )
    prompt = request.prompt_tokens()
    engine.check_tokens(prompt, "prompt")
    room = engine.max_context_length - len(prompt)
    if room == 0 and request.sampling_params.max_tokens == 1:
        room = 1  # as `compute_logprobs` asks: a token that nothing follows takes no position
    if room < 1:
        raise UserError(
            f"the prompt of {len(prompt)} tokens leaves no room for a sample in the model's "
            f"context; send at most {engine.max_context_length - 1}, or ask for one token"
        )
    params = request.sampling_params
    stop = [params.stop] if isinstance(params.stop, str) else params.stop
    if stop is None:
        stop_ids, stop_strings = engine.eos_token_ids, ()
    else:
        stop_ids = frozenset(s for s in stop if isinstance(s, int))
        stop_strings = tuple(s for s in stop if isinstance(s, str) and s)
    max_tokens = min(params.max_tokens or room, room)
    if request.topk_sample_logprobs > engine.vocab_size:
        raise UserError(f"topk_sample_logprobs is larger than the {engine.vocab_size} tokens known")
    return SampleRequest(
        weights=weights,
        prompt=prompt,
        params=params,
        num_samples=request.num_samples,
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        stop_strings=stop_strings,
        seed=secrets.randbits(63) if params.seed is None else params.seed,
        topk=request.topk_sample_logprobs,
        questions=_questions(engine, request, prompt),
    )


def _questions(engine: Engine, request: Sample, prompt: list[int]) -> PromptQuestions | None:
    last_n, targets = request.prompt_logprobs_last_n, request.target_prompt_logprobs
    widths = (request.topk_prompt_logprobs, request.prompt_alt_tokens_k)
    if last_n is not None and not request.prompt_logprobs:
        raise UserError("prompt_logprobs_last_n needs prompt_logprobs")
    if last_n is not None and last_n > len(prompt) - 1:
        raise UserError(
            f"prompt_logprobs_last_n must lie in 1..{len(prompt) - 1} for a prompt of "
            f"{len(prompt)} tokens, found {last_n}"
        )
    if not (request.prompt_logprobs or any(widths) or targets):
        return None
    if max(widths) * len(prompt) > MAX_PROMPT_CELLS or widths[0] > engine.vocab_size:
        raise UserError(
            f"topk_prompt_logprobs {widths[0]} or prompt_alt_tokens_k {widths[1]} is too large for "
            f"{engine.vocab_size} tokens and a prompt of {len(prompt)}"
        )
    no_cells = np.zeros(0, dtype=np.int64)
    return PromptQuestions(
        logprobs=bool(request.prompt_logprobs),
        last_n=last_n,
        topk=widths[0],
        targets=targets,
        target_cells=(no_cells, no_cells)
        if targets is None
        else _target_cells(engine, targets, len(prompt) - 1),
        alt_tokens_k=widths[1],
    )


def _target_cells(
    engine: Engine, targets: TensorData, num_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Position (from 1) and token id of every cell that is listed; -1 asks for nothing."""
    where = "target_prompt_logprobs"
    has_shape = len(targets.shape) == 2 and targets.shape[0] == num_rows
    if not has_shape or not 1 <= targets.shape[1] <= MAX_PROMPT_CELLS:
        raise UserError(
            f"{where} must have shape ({num_rows}, K) here, one row per prompt token after the "
            f"first, found {tuple(targets.shape)}"
        )
    shape = (num_rows, targets.shape[1])
    try:
        ids = np.array(targets.data, dtype=np.int64)
        crow = np.array(targets.sparse_crow_indices or [], dtype=np.int64)
        columns = np.array(targets.sparse_col_indices or [], dtype=np.int64)
    except OverflowError:
        raise UserError(f"{where}: a number does not fit 64 bits") from None
    if targets.sparse_crow_indices is None:
        rows = np.arange(num_rows).repeat(min(shape[1], ids.size + 1))
    else:
        rows, _ = csr_cells(crow, columns, shape, where)
    if rows.size != ids.size or ids.size > MAX_PROMPT_CELLS:
        raise UserError(f"{where}: {ids.size} token ids do not fill shape {shape}")
    if ids.size and (ids.min() < -1 or ids.max() >= engine.vocab_size):
        raise UserError(f"{where}: token ids must lie in -1..{engine.vocab_size - 1}")
    return rows + 1, ids
