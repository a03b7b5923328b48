"""A known decoder's forward pass for samples, in plain torch: prefill of prompts, then decoding.

The numbers are those of transformers with PEFT, to rounding; what is left out is their Python,
which takes longer than the arithmetic of a small model. Shapes follow from a prompt's own length
and the number of slots, so that no bit depends on what a sample was batched with:

- Prompts are prefilled as `prompt_packing` puts them together, layer by layer, so that a layer's
  weights come from memory once. Of the last layer, only a prompt's last token goes all the way.
- Keys and values are then moved to the slots that have the prompt, so that it ends at the same
  column in all of them; every step of decoding writes one more column.
- Attention reads the columns up to a length of 2 modulo 16; `kv_cache.py` says why.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from local_tinker.decoder_weights import DecoderWeights, Layer
from local_tinker.kv_cache import BLOCK_TOKENS, capacity
from local_tinker.prompt_packing import Pack, packs

VIEW_TOKENS = 16


class Decoding:
    """Slots on their way through a decoder; call `prefill` once, then `decode` for each token."""

    def __init__(
        self, weights: DecoderWeights, num_slots: int, last_column: int, piece_tokens: int
    ) -> None:
        """Prompts will end before column `last_column`, which is at least their length.

        `piece_tokens` is how many tokens of prompts a product takes, if a prompt has no more.
        """
        self._weights = weights
        self._piece_tokens = piece_tokens
        self._num_slots = num_slots
        self._column = last_column  # the next one to be written
        self._capacity = 0
        self._kv: list[Tensor] = []  # of each layer: (keys and values, slots, heads, columns, size)
        self._starts_B = torch.zeros(0)  # the column where each slot's prompt begins
        self._hidden_TH: dict[int, Tensor] = {}  # of the slots whose prompts are scored
        self._masks: dict[int | None, Tensor] = {}  # by the layers' window: (slots, 1, 1, columns)

    # --- prefill ----------------------------------------------------------------------------------

    def prefill(self, prompts: Sequence[Sequence[int]], scored: Collection[int]) -> Tensor:
        """Compute the prompts of the first slots; returns the next token's logits of all slots."""
        weights = self._weights
        device = weights.embedding_VH.device
        starts = [self._column - len(prompt) for prompt in prompts]
        starts += [self._column - 1] * (self._num_slots - len(prompts))
        self._starts_B = torch.tensor(starts, device=device)
        self._grow()
        vocab_size = weights.unembedding.weights[0].shape[0]
        logits_BV = torch.zeros((self._num_slots, vocab_size), device=device)
        for pack in packs(prompts, self._num_slots, self._piece_tokens, device):
            own_scored = [slot for slot in scored if slot in pack.starts]
            ends_SH, hidden_NH = self._prefill_pack(pack, with_all=bool(own_scored))
            logits_SV = _unembed(weights, weights.norm.apply(ends_SH))
            logits_BV[pack.slots] = logits_SV[pack.first_slots]
            for slot in own_scored:
                start = pack.starts[slot]
                hidden_TH = hidden_NH[start : start + len(prompts[slot])]
                self._hidden_TH[slot] = weights.norm.apply(hidden_TH)
        return logits_BV

    def prompt_logits(self, slot: int) -> Tensor:
        """Logits at each token of a prompt that was to be `scored`; may be called once."""
        return _unembed(self._weights, self._hidden_TH.pop(slot))

    def _prefill_pack(self, pack: Pack, with_all: bool) -> tuple[Tensor, Tensor]:
        """Hidden states of each prompt's last token, (slots, size), and `with_all` of all tokens;
        keys and values go to the slots."""
        weights = self._weights
        rope_2TD = weights.rope.table(pack.longest_tokens)
        ropes = rope_2TD[:, pack.places_N, None].split(pack.piece_tokens, dim=1)
        columns_M = self._column - pack.from_end_M
        pieces = [
            functional.embedding(tokens, weights.embedding_VH)
            for tokens in pack.tokens_N.split(pack.piece_tokens)
        ]
        ends_SH = weights.embedding_VH[:0]
        for layer, kv in zip(weights.layers, self._kv, strict=True):
            made = [
                self._heads(layer, piece, rope) for piece, rope in zip(pieces, ropes, strict=True)
            ]
            q_NHD, k_NHD, v_NHD = (torch.cat(parts) for parts in zip(*made, strict=True))
            kv[0][pack.slots_M, :, columns_M] = _picked(k_NHD, pack.sources_M)
            kv[1][pack.slots_M, :, columns_M] = _picked(v_NHD, pack.sources_M)
            attended = [
                _attend_to_prompt(
                    layer, *(_picked(part, rows_RT) for part in (q_NHD, k_NHD, v_NHD))
                )
                for rows_RT in pack.groups_RT
            ]
            attended_NA = torch.cat([part.flatten(0, 1) for part in attended]).flatten(1)
            attended_NA = _picked(attended_NA, pack.attended_N)
            if layer is weights.layers[-1]:
                ends_SH = _picked(torch.cat(pieces), pack.ends_S)
                ends_SH = _finish(layer, ends_SH, _picked(attended_NA, pack.ends_S))
                if not with_all:
                    break
            pieces = [
                _finish(layer, piece, own)
                for piece, own in zip(pieces, attended_NA.split(pack.piece_tokens), strict=True)
            ]
        return ends_SH, torch.cat(pieces)

    def _heads(self, layer: Layer, hidden_NH: Tensor, rope: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values (tokens, heads, size) at their positions."""
        q_NHD, k_NHD, v_NHD = (
            part.view(len(hidden_NH), -1, self._weights.head_size)
            for part in layer.qkv.apply(layer.norm.apply(hidden_NH))
        )
        return *_placed(layer, q_NHD, k_NHD, rope), v_NHD

    # --- decoding ---------------------------------------------------------------------------------

    def decode(self, tokens_B: Tensor) -> Tensor:
        """Logits (slots, vocabulary) of what follows one more token of every slot."""
        weights, num_slots, column = self._weights, self._num_slots, self._column
        self._column += 1
        self._grow()
        self._show(column)
        num_columns = capacity(column + 1, VIEW_TOKENS)
        hidden_BH = functional.embedding(tokens_B, weights.embedding_VH)
        rope_2BD = weights.rope.table(column + 1)[:, column - self._starts_B, None]
        masks = {window: mask[..., :num_columns] for window, mask in self._masks.items()}
        shape_BHGD = (num_slots, weights.num_kv_heads, -1, weights.head_size)
        for layer, kv in zip(weights.layers, self._kv, strict=True):
            q_BHD, k_BHD, v_BHD = self._heads(layer, hidden_BH, rope_2BD)
            kv[0, :, :, column] = k_BHD
            kv[1, :, :, column] = v_BHD
            # The query heads of one key head see the same keys: as if they were several tokens.
            attended_BHGD = functional.scaled_dot_product_attention(
                q_BHD.view(shape_BHGD),
                kv[0, :, :, :num_columns],
                kv[1, :, :, :num_columns],
                attn_mask=masks[layer.window],
            )
            hidden_BH = _finish(layer, hidden_BH, attended_BHGD.reshape(num_slots, -1))
        return _unembed(weights, weights.norm.apply(hidden_BH))

    def _grow(self) -> None:
        """Make room for the columns written so far and one view's more."""
        needed = capacity(self._column + 1, VIEW_TOKENS)
        if needed <= self._capacity:
            return
        weights, before = self._weights, self._capacity
        self._capacity = capacity(needed, BLOCK_TOKENS)
        if not self._kv:
            heads = (weights.num_kv_heads, self._capacity, weights.head_size)
            like = weights.embedding_VH
            self._kv = [like.new_zeros((2, self._num_slots, *heads)) for _ in weights.layers]
        else:
            for index, kv in enumerate(self._kv):
                self._kv[index] = functional.pad(kv, (0, 0, 0, self._capacity - before))
        self._masks = {layer.window: self._mask(layer.window) for layer in weights.layers}

    def _mask(self, window: int | None) -> Tensor:
        """0 at the columns that the last written token sees, minus infinity elsewhere."""
        columns_C = torch.arange(self._capacity, device=self._starts_B.device)
        is_seen_BC = (columns_C >= self._starts_B[:, None]) & (columns_C < self._column)
        if window is not None:
            is_seen_BC &= columns_C >= self._column - window
        mask_BC = self._weights.embedding_VH.new_zeros(is_seen_BC.shape)
        return mask_BC.masked_fill_(~is_seen_BC, -torch.inf)[:, None, None]

    def _show(self, column: int) -> None:
        """Let the masks show a column, the newest one."""
        for window, mask in self._masks.items():
            mask[..., column] = 0.0
            if window is not None and column >= window:
                mask[..., column - window] = -torch.inf


def _picked(rows: Tensor, which: Tensor) -> Tensor:
    """`rows[which]`; torch's own indexing takes four times as long (2.13, CPU)."""
    return rows.index_select(0, which.view(-1)).view(*which.shape, *rows.shape[1:])


def _unembed(weights: DecoderWeights, hidden_NH: Tensor) -> Tensor:
    """Logits in float32."""
    return weights.unembedding.apply(hidden_NH)[0].float()


def _placed(layer: Layer, q: Tensor, k: Tensor, rope_2: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (..., heads, size) with their norms and rotary positions."""
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = layer.q_norm.apply(q), layer.k_norm.apply(k)
    return _rotated(q, rope_2), _rotated(k, rope_2)


def _rotated(heads: Tensor, rope_2: Tensor) -> Tensor:
    """Halves (a, b) of each head become (a cos - b sin, b cos + a sin)."""
    cos, signed_sin = rope_2[0], rope_2[1]
    swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
    return torch.addcmul(heads * cos, swapped, signed_sin)


def _attend_to_prompt(layer: Layer, q_RTHD: Tensor, k_RTHD: Tensor, v_RTHD: Tensor) -> Tensor:
    """Attention of a prompt's tokens to those before them, (rows, tokens, heads, size)."""
    num_tokens, num_heads, num_kv_heads = q_RTHD.shape[1], q_RTHD.shape[2], k_RTHD.shape[2]
    if num_heads != num_kv_heads:
        repeats = num_heads // num_kv_heads
        k_RTHD = k_RTHD.repeat_interleave(repeats, dim=2)
        v_RTHD = v_RTHD.repeat_interleave(repeats, dim=2)
    is_seen_TT = None
    if layer.window is not None and layer.window < num_tokens:
        places = torch.arange(num_tokens, device=q_RTHD.device)
        distance_TT = places[:, None] - places
        is_seen_TT = (distance_TT >= 0) & (distance_TT < layer.window)
    return functional.scaled_dot_product_attention(
        q_RTHD.transpose(1, 2),
        k_RTHD.transpose(1, 2),
        v_RTHD.transpose(1, 2),
        attn_mask=is_seen_TT,
        is_causal=is_seen_TT is None,
    ).transpose(1, 2)


def _finish(layer: Layer, hidden_NH: Tensor, attended_NA: Tensor) -> Tensor:
    """What a layer does after its attention."""
    hidden_NH = hidden_NH + layer.attended.apply(attended_NA)[0]
    gate_NI, up_NI = layer.gate_up.apply(layer.mlp_norm.apply(hidden_NH))
    (down_NH,) = layer.down.apply(layer.activation(gate_NI).mul_(up_NI))
    return hidden_NH + down_NH
