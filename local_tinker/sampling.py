"""Sampling in waves: prompts that came together are prefilled and decoded over one KV cache.

The contract: a sample's tokens and log-probabilities do not depend on what it was batched with.
A wave therefore always has the same number of rows (idle ones hold a one-token dummy), a prompt's
padded length follows from its own length alone, only prompts of one padded length share a wave, and
one dummy row is always there, so that no wave is ever free of padding and takes another kernel.
Each sample draws from its own random stream, made from (seed, index).
"""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from local_tinker.engine import Engine
from local_tinker.wire import Sample, SampledTokens, SamplingParams, UserError

MIN_PADDED_LENGTH_TOKENS = 64
MAX_STOP_STRING_TOKENS = 32  # how many last tokens are decoded to look for a stop string


class WaveKey(NamedTuple):
    """What samples must share to be computed together."""

    weights: Path | None
    padded_length_tokens: int
    with_prompt_logprobs: bool


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
    with_prompt_logprobs: bool

    @property
    def wave_key(self) -> WaveKey:
        padded = MIN_PADDED_LENGTH_TOKENS
        while padded < len(self.prompt):
            padded *= 2
        return WaveKey(self.weights, padded, self.with_prompt_logprobs)


def check_request(engine: Engine, request: Sample, weights: Path | None) -> SampleRequest:
    """Turn a wire request into one to compute. Raises `UserError` for what is not supported."""
    unsupported = {
        "topk_prompt_logprobs": request.topk_prompt_logprobs,
        "topk_sample_logprobs": request.topk_sample_logprobs,
        "target_prompt_logprobs": request.target_prompt_logprobs,
        "prompt_alt_tokens_k": request.prompt_alt_tokens_k,
        "prompt_logprobs_last_n": request.prompt_logprobs_last_n,
    }
    for name, value in unsupported.items():
        if value:
            raise UserError(f"{name} is not supported yet by this service; leave it out")
    prompt = request.prompt_tokens()
    engine.check_tokens(prompt, "prompt")
    room = engine.max_context_length - len(prompt)
    if room < 1:
        raise UserError(
            f"the prompt of {len(prompt)} tokens fills the model's context; nothing can be sampled"
        )
    params = request.sampling_params
    stop = [params.stop] if isinstance(params.stop, str) else params.stop
    if stop is None:
        stop_ids, stop_strings = engine.eos_token_ids, ()
    else:
        stop_ids = frozenset(s for s in stop if isinstance(s, int))
        stop_strings = tuple(s for s in stop if isinstance(s, str) and s)
    return SampleRequest(
        weights=weights,
        prompt=prompt,
        params=params,
        num_samples=request.num_samples,
        max_tokens=min(params.max_tokens or room, room),
        stop_ids=stop_ids,
        stop_strings=stop_strings,
        seed=secrets.randbits(63) if params.seed is None else params.seed,
        with_prompt_logprobs=bool(request.prompt_logprobs),
    )


class Row:
    """One sample in the making."""

    def __init__(self, request: SampleRequest, index: int) -> None:
        self.request = request
        self.index = index
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.stop_reason: str | None = None
        self.prompt_logprobs: np.ndarray | None = None
        self._random = random.Random(f"{request.seed}:{index}")

    @property
    def is_done(self) -> bool:
        return self.stop_reason is not None

    def take(self, logprobs_V: torch.Tensor, greedy_token: int, tokenizer: object) -> int:
        """Choose the next token, record it, and see whether the sample ends with it."""
        params = self.request.params
        is_greedy = params.temperature == 0 or params.top_k == 1
        token = greedy_token if is_greedy else _draw(logprobs_V, params, self._random.random())
        self.tokens.append(token)
        self.logprobs.append(float(logprobs_V[token]))
        if token in self.request.stop_ids or self._ends_with_stop_string(tokenizer):
            self.stop_reason = "stop"
        elif len(self.tokens) >= self.request.max_tokens:
            self.stop_reason = "length"
        return token

    def _ends_with_stop_string(self, tokenizer: object) -> bool:
        """A stop string may cross token borders, so the text of the last tokens is searched."""
        if not self.request.stop_strings:
            return False
        tail = tokenizer.decode(self.tokens[-MAX_STOP_STRING_TOKENS:])  # pyright: ignore[reportAttributeAccessIssue]
        before = tokenizer.decode(self.tokens[-MAX_STOP_STRING_TOKENS:-1])  # pyright: ignore[reportAttributeAccessIssue]
        return any(stop in tail and stop not in before for stop in self.request.stop_strings)

    def result(self) -> SampledTokens:
        return SampledTokens(
            self.tokens, self.logprobs, "stop" if self.stop_reason == "stop" else "length"
        )


def _draw(logprobs_V: torch.Tensor, params: SamplingParams, uniform: float) -> int:
    """Sample by inverting the cumulative distribution that temperature, top-k, top-p leave."""
    probs, tokens = torch.softmax(logprobs_V.double() / params.temperature, dim=-1).sort(
        descending=True, stable=True
    )
    if params.top_k > 0:
        probs = probs[: params.top_k]
    cumulative = probs.cumsum(0)
    if params.top_p < 1:
        num_kept = int((cumulative < params.top_p * cumulative[-1]).sum()) + 1
        cumulative = cumulative[:num_kept]
    position = int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True))
    return int(tokens[min(position, cumulative.numel() - 1)])


def run_wave(engine: Engine, rows: list[Row]) -> None:
    """Sample all rows, which share one wave key, to their ends. Fewer rows than slots."""
    assert 0 < len(rows) < engine.num_slots
    # Outside inference mode: adapters that were made inside it could not be touched by training.
    engine.activate_sampler(rows[0].request.weights)
    with torch.inference_mode():
        _prefill_and_decode(engine, rows)


def _prefill_and_decode(engine: Engine, rows: list[Row]) -> None:
    key, num_slots = rows[0].request.wave_key, engine.num_slots
    padded = key.padded_length_tokens
    tokens_BT = torch.zeros((num_slots, padded), dtype=torch.long)
    mask_BT = torch.zeros((num_slots, padded), dtype=torch.long)
    mask_BT[:, -1] = 1  # dummy rows: one token
    for slot, row in enumerate(rows):
        length = len(row.request.prompt)
        tokens_BT[slot, padded - length :] = torch.tensor(row.request.prompt)
        mask_BT[slot, padded - length :] = 1
    tokens_BT, mask_BT = tokens_BT.to(engine.device), mask_BT.to(engine.device)
    lengths_B1 = mask_BT.sum(dim=1, keepdim=True)

    output = engine.model(
        input_ids=tokens_BT,
        attention_mask=mask_BT,
        position_ids=(mask_BT.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=0 if key.with_prompt_logprobs else 1,
    )
    if key.with_prompt_logprobs:
        _record_prompt_logprobs(rows, output.logits)
    cache = output.past_key_values
    next_B = torch.zeros(num_slots, dtype=torch.long)
    num_decoded = 0
    while True:
        logprobs_BV = torch.log_softmax(output.logits[:, -1, :].float(), dim=-1).cpu()
        greedy_B = logprobs_BV.argmax(dim=-1).tolist()
        for slot, row in enumerate(rows):
            if not row.is_done:
                next_B[slot] = row.take(logprobs_BV[slot], greedy_B[slot], engine.tokenizer)
        if all(row.is_done for row in rows):
            return
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones((num_slots, 1))], dim=1)
        output = engine.model(
            input_ids=next_B[:, None].to(engine.device),
            attention_mask=mask_BT,
            position_ids=lengths_B1 + num_decoded,
            past_key_values=cache,
            use_cache=True,
        )
        num_decoded += 1


def _record_prompt_logprobs(rows: list[Row], logits_BTV: torch.Tensor) -> None:
    """The log-probability of each prompt token given those before it; NaN for the first."""
    for slot, row in enumerate(rows):
        prompt = row.request.prompt
        logits_TV = logits_BTV[slot, -len(prompt) :][:-1].float()
        targets_T1 = torch.tensor(prompt[1:], device=logits_TV.device)[:, None]
        logprobs_T = torch.log_softmax(logits_TV, dim=-1).gather(-1, targets_T1).squeeze(-1)
        row.prompt_logprobs = np.concatenate([[np.nan], logprobs_T.cpu().numpy()]).astype(
            np.float32
        )
