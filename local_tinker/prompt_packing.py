"""Which prompts are prefilled together, and where each of their tokens lies.

Distinct prompts are computed once each, packed one after another without padding; only what is left
of the last piece idles. All products are of pieces of one number of tokens, so that no bit of a
prompt depends on its company or its place. A prompt longer than a piece is alone, in one piece of
its own padded length. Attention sees each prompt apart, padded on the right, where no token sees
the padding.

Suffixes: N tokens of a pack, S slots, M tokens of all slots that have the pack's prompts, R prompts
of one padded length T.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MIN_PREFILL_TOKENS = 8
MAX_PIECES = 8  # what is packed at once; more of them only take more memory


class Pack(NamedTuple):
    """Distinct whole prompts that are prefilled at once, and the slots that have them."""

    piece_tokens: int  # N is a multiple of it
    longest_tokens: int
    tokens_N: Tensor
    places_N: Tensor  # of each token in its prompt
    groups_RT: list[Tensor]  # of each padded length: which tokens of N its prompts are
    attended_N: Tensor  # where each token is in the groups, laid one behind the other
    ends_S: Tensor  # each prompt's last token, in its first slot; 0 in the others
    starts: dict[int, int]  # by slot: where its prompt begins in N
    slots: Tensor  # that have a prompt of the pack
    first_slots: Tensor  # for each of these: the first slot with the same prompt
    sources_M: Tensor  # which token of N
    slots_M: Tensor  # goes to which slot
    from_end_M: Tensor  # how many tokens before the prompt's end, at least 1


def prefill_length(num_tokens: int) -> int:
    """What a prompt is padded to: the next multiple of 8, above 64 tokens 8 steps an octave."""
    step = max(MIN_PREFILL_TOKENS, (1 << (num_tokens - 1).bit_length()) // 8)
    return -(-num_tokens // step) * step


def packs(
    prompts: Sequence[Sequence[int]], num_slots: int, piece_tokens: int, device: torch.device
) -> Iterator[Pack]:
    """Every distinct prompt of the slots in one pack."""
    slots_of: dict[tuple[int, ...], list[int]] = {}
    for slot, prompt in enumerate(prompts):
        slots_of.setdefault(tuple(prompt), []).append(slot)
    short: list[tuple[int, ...]] = []
    num_tokens = 0
    for prompt in slots_of:
        if len(prompt) > piece_tokens:
            length = prefill_length(len(prompt))
            yield _pack([prompt], slots_of, num_slots, length, device)
            continue
        if num_tokens + len(prompt) > MAX_PIECES * piece_tokens:
            yield _pack(short, slots_of, num_slots, piece_tokens, device)
            short, num_tokens = [], 0
        short.append(prompt)
        num_tokens += len(prompt)
    if short:
        yield _pack(short, slots_of, num_slots, piece_tokens, device)


def _pack(
    prompts: list[tuple[int, ...]],
    slots_of: dict[tuple[int, ...], list[int]],
    num_slots: int,
    piece_tokens: int,
    device: torch.device,
) -> Pack:
    lengths = np.array([len(prompt) for prompt in prompts])
    starts = np.cumsum(lengths) - lengths
    num_tokens = -(-int(lengths.sum()) // piece_tokens) * piece_tokens
    tokens_N, places_N, attended_N = np.zeros((3, num_tokens), dtype=np.int64)
    tokens_N[: lengths.sum()] = np.concatenate(prompts)
    places_N[: lengths.sum()] = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    padded = np.array([prefill_length(int(length)) for length in lengths])
    groups, num_before = [], 0
    for length in dict.fromkeys(padded.tolist()):  # not in the order of a set, which may change
        (rows,) = np.nonzero(padded == length)
        places_RT = np.minimum(np.arange(length), lengths[rows, None] - 1)
        groups.append(starts[rows, None] + places_RT)
        for row in rows.tolist():
            own = slice(starts[row], starts[row] + lengths[row])
            attended_N[own] = num_before + np.arange(lengths[row])
            num_before += length
    moves = [(row, slot) for row, prompt in enumerate(prompts) for slot in slots_of[prompt]]
    rows, slots = np.array(moves).T
    firsts = np.array([slots_of[prompt][0] for prompt in prompts])
    ends_S = np.zeros(num_slots, dtype=np.int64)
    ends_S[firsts] = starts + lengths - 1
    moved = lengths[rows]
    offsets_M = np.arange(moved.sum()) - np.repeat(np.cumsum(moved) - moved, moved)

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Pack(
        piece_tokens=piece_tokens,
        longest_tokens=int(lengths.max()),
        tokens_N=put(tokens_N),
        places_N=put(places_N),
        groups_RT=[put(group) for group in groups],
        attended_N=put(attended_N),
        ends_S=put(ends_S),
        starts=dict(zip(slots.tolist(), starts[rows].tolist(), strict=True)),
        slots=put(slots),
        first_slots=put(firsts[rows]),
        sources_M=put(np.repeat(starts[rows], moved) + offsets_M),
        slots_M=put(np.repeat(slots, moved)),
        from_end_M=put(np.repeat(moved, moved) - offsets_M),
    )
