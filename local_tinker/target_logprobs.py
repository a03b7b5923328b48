"""Log-probabilities of target tokens under a causal LM, with a gradient only where one is asked.

The protocol wants the log-probability of every target, but a loss often trains few of them: the
answer, not the prompt. The unembedding and the softmax over the vocabulary are a large part of a
small model's work, so positions without a gradient go through them without leaving anything for
the backward pass, and padding does not go through them at all.

Suffixes: B rows, T positions with padding, N real positions of all rows one after another, M some
of these, H the hidden size, V the vocabulary, K targets of one position.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

MAX_IDLE_LOGITS = 8 * 1024 * 1024  # positions x vocabulary at a time, where no gradient is asked
MIN_IDLE_POSITIONS = 64  # fewer at a time would read the unembedding too often


def target_logprobs(
    model: Any,
    tokens_BT: torch.Tensor,
    is_real_BT: torch.Tensor,
    targets_NK: torch.Tensor,
    is_trained_N: torch.Tensor,
) -> torch.Tensor:
    """The log-probability of each target, (N, K) in float32; with gradients where it is trained.

    Rows are padded on the right, where causal attention hides padding without a mask.
    """
    real_N = is_real_BT.flatten().nonzero()[:, 0]
    places, parts = [], []
    with _decoding_once(model) as logits_of:
        for place_M in _parts(is_trained_N, _num_idle_at_a_time(model)):
            with torch.set_grad_enabled(bool(is_trained_N[place_M[0]])):
                logits_MV = logits_of(tokens_BT, real_N[place_M]).float()
                parts.append(_Gathered.apply(logits_MV, targets_NK[place_M]))
            places.append(place_M)
    return torch.cat(parts).index_select(0, torch.cat(places).argsort())


def _num_idle_at_a_time(model: Any) -> int:
    vocab_size = model.get_input_embeddings().weight.shape[0]
    return max(MIN_IDLE_POSITIONS, MAX_IDLE_LOGITS // vocab_size)


def _parts(is_trained_N: torch.Tensor, num_idle_at_a_time: int) -> list[torch.Tensor]:
    """Places of what is trained, all at once and first; then of the rest, some at a time."""
    trained_M = is_trained_N.nonzero()[:, 0]
    idle_M = is_trained_N.logical_not().nonzero()[:, 0]
    return [part for part in (trained_M, *idle_M.split(num_idle_at_a_time)) if part.numel()]


@contextlib.contextmanager
def _decoding_once(model: Any) -> Iterator[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """Give a function for the logits of chosen positions, which decodes when it is called first.

    The model itself turns hidden states into logits, since families scale or cap them; all that it
    meets is a decoder whose output has these positions only.
    """
    decoder = model.get_decoder()
    decode = decoder.forward
    outputs: list[Any] = []

    def logits_of(tokens_BT: torch.Tensor, positions_M: torch.Tensor) -> torch.Tensor:
        def decode_once(*args: Any, **kwargs: Any) -> Any:
            if not outputs:
                outputs.append(decode(*args, **kwargs))
            (output,) = outputs
            chosen_MH = output.last_hidden_state.flatten(0, 1).index_select(0, positions_M)
            return type(output)(**{**output, "last_hidden_state": chosen_MH[None]})

        decoder.forward = decode_once
        return model(input_ids=tokens_BT, use_cache=False).logits[0]

    try:
        yield logits_of
    finally:
        del decoder.forward


class _Gathered(torch.autograd.Function):
    """log_softmax at the targets; its backward pass makes one tensor as large as the logits."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, logits_MV: torch.Tensor, targets_MK: torch.Tensor
    ) -> torch.Tensor:
        logprobs_MV = logits_MV.log_softmax(-1)
        ctx.save_for_backward(logprobs_MV, targets_MK)
        return logprobs_MV.gather(-1, targets_MK)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_MK: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        logprobs_MV, targets_MK = ctx.saved_tensors
        grad_MV = logprobs_MV.exp().mul_(-grad_MK.sum(-1, keepdim=True))
        return grad_MV.scatter_add_(-1, targets_MK, grad_MK), None
