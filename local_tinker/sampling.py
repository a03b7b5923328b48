"""Sampling in waves: prompts that came together are prefilled and decoded over one KV cache.

The contract: a sample's tokens and log-probabilities do not depend on what it was batched with.
A wave therefore always has the same number of rows (idle ones hold a one-token dummy), a prompt's
padded length follows from its own length alone, and only prompts of one padded length share a wave.
There is always a column of padding, so that no wave is free of it and takes another kernel.
Each sample draws from its own random stream, made from (seed, index).
"""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from local_tinker.engine import Engine
from local_tinker.kv_cache import make_cache
from local_tinker.wire import (
    MAX_PROMPT_CELLS,
    PromptScores,
    Sample,
    SampledTokens,
    SamplingParams,
    TensorData,
    TopK,
    UserError,
    csr_cells,
)

MIN_PADDED_LENGTH_TOKENS = 32
MIN_TEMPERATURE = 1e-5  # below it sampling is greedy; dividing by less could overflow
MAX_STOP_STRING_TOKENS = 32  # how many last tokens are decoded to look for a stop string


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
    if room < 1:
        raise UserError(
            f"the prompt of {len(prompt)} tokens leaves no room for a sample in the model's "
            f"context; send at most {engine.max_context_length - 1}"
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


class Row:
    """One sample in the making."""

    def __init__(self, request: SampleRequest, index: int) -> None:
        self.request = request
        self.index = index
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.topk: list[tuple[np.ndarray, np.ndarray]] = []
        self.stop_reason: str | None = None
        self.scores: PromptScores | None = None
        self._random = random.Random(f"{request.seed}:{index}")

    @property
    def is_done(self) -> bool:
        return self.stop_reason is not None

    @property
    def is_greedy(self) -> bool:
        params = self.request.params
        return params.temperature < MIN_TEMPERATURE or params.top_k == 1

    def uniform(self) -> float:
        return self._random.random()

    def take(self, token: int, logprobs_V: torch.Tensor, tokenizer: Any) -> None:
        """Record the next token, and see whether the sample ends with it."""
        self.tokens.append(token)
        self.logprobs.append(float(logprobs_V[token]))
        if self.request.topk:
            values, ids = logprobs_V.topk(self.request.topk)
            self.topk.append((ids.numpy(), values.numpy()))
        if token in self.request.stop_ids or self._ends_with_stop_string(tokenizer):
            self.stop_reason = "stop"
        elif len(self.tokens) >= self.request.max_tokens:
            self.stop_reason = "length"

    def _ends_with_stop_string(self, tokenizer: Any) -> bool:
        """A stop string may cross token borders, so the text of the last tokens is searched."""
        if not self.request.stop_strings:
            return False
        longest = max(len(stop) for stop in self.request.stop_strings)
        tail = self.tokens[-max(MAX_STOP_STRING_TOKENS, 4 * longest) :]
        text, before = tokenizer.decode(tail), tokenizer.decode(tail[:-1])
        return any(text.count(stop) > before.count(stop) for stop in self.request.stop_strings)

    def result(self) -> SampledTokens:
        topk = None
        if self.topk:
            topk = TopK(
                np.stack([ids for ids, _ in self.topk]), np.stack([v for _, v in self.topk])
            )
        reason = "stop" if self.stop_reason == "stop" else "length"
        return SampledTokens(self.tokens, self.logprobs, reason, topk)

    def score_prompt(self, logits_TV: torch.Tensor) -> None:
        """Answer the request's questions about its prompt, from the logits of its T positions."""
        questions, prompt = self.request.questions, self.request.prompt
        if questions is None:
            return
        num_tokens = len(prompt)
        logprobs_TV = torch.log_softmax(logits_TV[:-1].float(), dim=-1).cpu()  # of tokens 1..T-1
        own_T1 = logprobs_TV.gather(-1, torch.tensor(prompt[1:], dtype=torch.long)[:, None])
        is_hidden_T = np.ones(num_tokens, dtype=np.bool_)
        is_hidden_T[max(1, num_tokens - (questions.last_n or num_tokens)) :] = False
        own_T = np.concatenate([[np.nan], own_T1.squeeze(-1).numpy()])
        topk = None
        if questions.topk:
            values, ids = (part.numpy() for part in logprobs_TV.topk(questions.topk))
            empty = np.full((1, questions.topk), np.nan, dtype=np.float32)
            values = np.concatenate([empty, values])
            topk = TopK(
                np.concatenate([np.zeros_like(ids, shape=(1, questions.topk)), ids]),
                np.where(is_hidden_T[:, None], np.nan, values),
            )
        target_logprobs = None
        if questions.targets is not None:
            positions, ids = questions.target_cells
            cells = logprobs_TV.numpy()[positions - 1, np.maximum(ids, 0)]
            target_logprobs = np.where(ids < 0, 0.0, cells)  # the protocol's value for "not asked"
        alt_tokens = alt_logprobs = None
        if questions.alt_tokens_k:
            alt_tokens = self._draw_alternatives(logprobs_TV, questions.alt_tokens_k)
            alt_logprobs = np.take_along_axis(logprobs_TV.numpy(), alt_tokens, axis=-1)
        self.scores = PromptScores(
            logprobs_T=np.where(is_hidden_T, np.nan, own_T) if questions.logprobs else None,
            topk=topk,
            targets=questions.targets,
            target_logprobs=target_logprobs,
            alt_tokens=alt_tokens,
            alt_logprobs=alt_logprobs,
        )

    def _draw_alternatives(self, logprobs_TV: torch.Tensor, k: int) -> np.ndarray:
        """k draws per position, with replacement, at the request's temperature: (T-1, k)."""
        temperature = self.request.params.temperature
        if temperature < MIN_TEMPERATURE:
            return logprobs_TV.argmax(dim=-1, keepdim=True).expand(-1, k).numpy()
        cumulative_TV = torch.softmax(logprobs_TV.double() / temperature, dim=-1).cumsum(dim=-1)
        uniforms_TK = torch.tensor(
            [[self.uniform() for _ in range(k)] for _ in range(len(logprobs_TV))],
            dtype=torch.double,
        ).reshape(len(logprobs_TV), k)
        return _invert(cumulative_TV, uniforms_TK).numpy()


def _invert(cumulative_BV: torch.Tensor, uniforms_BK: torch.Tensor) -> torch.Tensor:
    """Invert cumulative distributions, which need not end at 1, at uniforms in [0, 1)."""
    places = torch.searchsorted(cumulative_BV, uniforms_BK * cumulative_BV[:, -1:], right=True)
    return places.clamp(max=cumulative_BV.shape[-1] - 1)


def _draw_from_few(logprobs_V: torch.Tensor, params: SamplingParams, uniform: float) -> int:
    """Sample from what temperature, top-k and top-p leave, likeliest tokens first."""
    probs, tokens = torch.softmax(logprobs_V.double() / params.temperature, dim=-1).sort(
        descending=True, stable=True
    )
    if params.top_k > 0:
        probs = probs[: params.top_k]
    cumulative = probs.cumsum(0)
    if params.top_p < 1:
        num_kept = int((cumulative < params.top_p * cumulative[-1]).sum()) + 1
        cumulative = cumulative[:num_kept]
    uniform_11 = torch.tensor([[uniform]], dtype=torch.double)
    return int(tokens[_invert(cumulative[None], uniform_11)])


class Wave:
    """Rows of one wave key on their way; each `advance` gives every unfinished row a token."""

    def __init__(self, engine: Engine, rows: list[Row]) -> None:
        """Load the weights. Outside inference mode: training could not touch them otherwise."""
        self.engine = engine
        self.rows = rows
        self.key = rows[0].request.wave_key
        self._num_slots = self.key.num_slots(engine)
        assert 0 < len(rows) <= self._num_slots
        self._sampler = engine.acquire_sampler(self.key.weights)
        self._cache: Any = make_cache(engine.model.config)
        self._is_prefilled = False
        self._mask_BT = torch.zeros(0)
        self._next_B = torch.zeros(self._num_slots, dtype=torch.long)

    @property
    def is_done(self) -> bool:
        return all(row.is_done for row in self.rows)

    def close(self) -> None:
        """Let go of the weights and the cache."""
        self.engine.release_sampler(self._sampler)
        self._cache = None

    def advance(self) -> None:
        self.engine.activate_sampler(self._sampler)
        with torch.inference_mode():
            logits_BV = self._decode() if self._is_prefilled else self._prefill()
            logprobs_BV = torch.log_softmax(logits_BV.float(), dim=-1).cpu()
            for slot, token in self._choose(logprobs_BV):
                self.rows[slot].take(token, logprobs_BV[slot], self.engine.tokenizer)
                self._next_B[slot] = token

    def _prefill(self) -> torch.Tensor:
        shape = (self._num_slots, self.key.padded_length_tokens)
        tokens_BT, mask_BT = torch.zeros(shape, dtype=torch.long), torch.zeros(shape).long()
        mask_BT[:, -1] = 1  # dummy rows: one token
        for slot, row in enumerate(self.rows):
            length = len(row.request.prompt)
            tokens_BT[slot, -length:] = torch.tensor(row.request.prompt)
            mask_BT[slot, -length:] = 1
        self._mask_BT = mask_BT.to(self.engine.device)
        output = self.engine.model(
            input_ids=tokens_BT.to(self.engine.device),
            attention_mask=self._mask_BT,
            position_ids=(self._mask_BT.cumsum(dim=1) - 1).clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=0 if self.key.with_prompt_logits else 1,
        )
        self._is_prefilled = True
        if self.key.with_prompt_logits:
            for slot, row in enumerate(self.rows):
                if row.index == 0:  # once per request; all its rows have the same prompt
                    row.score_prompt(output.logits[slot, -len(row.request.prompt) :])
        return output.logits[:, -1, :]

    def _decode(self) -> torch.Tensor:
        lengths_B1 = self._mask_BT.sum(dim=1, keepdim=True)
        self._mask_BT = torch.cat(
            [self._mask_BT, self._mask_BT.new_ones((self._num_slots, 1))], dim=1
        )
        return self.engine.model(
            input_ids=self._next_B[:, None].to(self.engine.device),
            attention_mask=self._mask_BT,
            position_ids=lengths_B1,
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1, :]

    def _choose(self, logprobs_BV: torch.Tensor) -> list[tuple[int, int]]:
        """The next token of every slot whose row is not done."""
        live = [(slot, row) for slot, row in enumerate(self.rows) if not row.is_done]
        tokens_B = logprobs_BV.argmax(dim=-1).tolist()
        drawing = [(slot, row) for slot, row in live if not row.is_greedy]
        if drawing:
            # All slots, so that the shape is the same in any company.
            temperatures_B1 = torch.ones((self._num_slots, 1), dtype=torch.double)
            uniforms_B1 = torch.zeros((self._num_slots, 1), dtype=torch.double)
            for slot, row in drawing:
                temperatures_B1[slot] = row.request.params.temperature
                uniforms_B1[slot] = row.uniform()
            probs_BV = torch.softmax(logprobs_BV.double() / temperatures_B1, dim=-1)
            drawn_B = _invert(probs_BV.cumsum(dim=-1), uniforms_B1).squeeze(-1).tolist()
            for slot, row in drawing:
                params = row.request.params
                if params.top_k > 0 or params.top_p < 1:
                    uniform = float(uniforms_B1[slot])
                    tokens_B[slot] = _draw_from_few(logprobs_BV[slot], params, uniform)
                else:
                    tokens_B[slot] = drawn_B[slot]
        return [(slot, tokens_B[slot]) for slot, _ in live]
