"""One sample in the making: its tokens so far, its end, and what its request asks of the prompt."""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np
import torch

from local_tinker.choosing import Choice, Wish, invert, is_greedy
from local_tinker.sample_requests import SampleRequest
from local_tinker.wire import PromptScores, SampledTokens, TopK

MAX_STOP_STRING_TOKENS = 32  # how many last tokens are decoded to look for a stop string


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

    @property
    def is_done(self) -> bool:
        return self.stop_reason is not None

    @functools.cached_property
    def _draws(self) -> random.Random:
        """The row's own stream. Seeding takes a tenth of a millisecond, which greedy rows spare."""
        return random.Random(f"{self.request.seed}:{self.index}")

    def wish(self, slot: int) -> Wish:
        """How the next token is to be chosen; each token that is drawn takes a random number."""
        params = self.request.params
        uniform = 0.0 if is_greedy(params) else self._draws.random()
        return Wish(slot, params, uniform, self.request.topk)

    def take(self, choice: Choice, tokenizer: Any) -> None:
        """Record the next token, and see whether the sample ends with it."""
        self.tokens.append(choice.token)
        self.logprobs.append(choice.logprob)
        if choice.topk is not None:
            self.topk.append(choice.topk)
        if choice.token in self.request.stop_ids or self._ends_with_stop_string(tokenizer):
            self.stop_reason = "stop"
        elif len(self.tokens) >= self.request.max_tokens:
            self.stop_reason = "length"
        if self.request.on_token is not None:
            self.request.on_token(self.index, choice)

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
        params = self.request.params
        if is_greedy(params):
            return logprobs_TV.argmax(dim=-1, keepdim=True).expand(-1, k).numpy()
        cumulative_TV = torch.softmax(logprobs_TV.double() / params.temperature, dim=-1).cumsum(
            dim=-1
        )
        uniforms_TK = torch.tensor(
            [[self._draws.random() for _ in range(k)] for _ in range(len(logprobs_TV))],
            dtype=torch.double,
        ).reshape(len(logprobs_TV), k)
        return invert(cumulative_TV, uniforms_TK).numpy()
