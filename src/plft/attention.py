"""Attention over packed rows: whole sequences laid end to end, each seeing only itself, and no padding anywhere.

A row carries the lengths of its sequences; equal lengths lie next to each other, so that they are one call of torch's
scaled-dot-product attention without a copy. transformers finds this function through its attention interface.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.models.esm.modeling_esm import EsmIntermediate

PACKED = "plft_packed"
PACKABLE = ("esm", "esmc", "bert", "electra", "mixtral", "gpt2")


@dataclass(frozen=True)
class Packing:
    """How sequences lie in a row. lengths: tokens of each, equal ones next to each other."""

    lengths: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Packing:
        """From any sequence of lengths."""
        return cls(tuple(int(each) for each in lengths))

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(length, how many sequences of it), in the order they lie."""
        return [(length, len(list(run))) for length, run in groupby(self.lengths)]

    def position_ids(self, device: torch.device | str = "cpu") -> Tensor:
        """Positions that begin at 0 with every sequence: (1, tokens) int64."""
        return torch.cat([torch.arange(length, device=device) for length in self.lengths])[None]

    def sequence_ids(self, device: torch.device | str = "cpu") -> Tensor:
        """The number of the sequence that each token belongs to: (tokens,) int64."""
        lengths = torch.tensor(self.lengths, device=device)
        return torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    packing: Packing | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence of a row.

    query: (1, heads, tokens, width); key, value: (1, key heads, tokens, width).  Returns (1, tokens, heads, width).
    packing: how the row is laid out; without it the row is one sequence.
    """
    if packing is None:
        packing = Packing((query.shape[2],) * query.shape[0])
        query, key, value = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))
    else:
        query, key, value = (each.transpose(1, 2)[0] for each in (query, key, value))
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    grouped = query.shape[1] != key.shape[1]
    runs = packing.runs
    sizes = [length * count for length, count in runs]  # split, not sliced: its backward pass touches every token once
    outputs = []
    for (length, count), *parts in zip(runs, *(each.split(sizes) for each in (query, key, value)), strict=True):
        q, k, v = (each.unflatten(0, (count, length)).transpose(1, 2) for each in parts)
        attended = F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=scaling, is_causal=causal, enable_gqa=grouped
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """Packed rows need no mask: the packing says it all."""
    return


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, _no_mask)


def can_pack(model: PreTrainedModel) -> bool:
    """Whether this model's attention can be told apart by sequence within one row; not with code of its own."""
    return model.config.model_type in PACKABLE and type(model).__module__.startswith("transformers.")


def use_packing(model: PreTrainedModel) -> None:
    """Switch a model's attention over to packed rows, from its next forward pass on."""
    model.set_attn_implementation(PACKED)


class _FusedIntermediate(EsmIntermediate):
    """ESM's first feed-forward layer with GELU in one pass over memory instead of five; the same to rounding."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.gelu(self.dense(hidden_states))


def fuse(model: nn.Module) -> None:
    """Let a model compute the same with fewer passes over memory, where it spells out what torch has in one piece."""
    for module in model.modules():
        if type(module) is EsmIntermediate:
            module.__class__ = _FusedIntermediate


def run_packed(backbone: Any, input_ids: Tensor, packing: Packing) -> Tensor:
    """The last hidden states of a packed row: input_ids (tokens,) -> (tokens, width)."""
    positions = packing.position_ids(input_ids.device)
    embed = EMBEDDINGS.get(backbone.config.model_type)
    tokens = {"input_ids": input_ids[None]} if embed is None else {"inputs_embeds": embed(backbone, input_ids, packing)}
    return backbone(**tokens, position_ids=positions, packing=packing).last_hidden_state[0]


def _esm_embeddings(backbone: Any, input_ids: Tensor, packing: Packing) -> Tensor:
    """ESM's embeddings, with the share of masked tokens counted per sequence and not per row: (1, tokens, width).

    With `token_dropout` masked tokens are zero, and the others are scaled by what training saw (15 % masked, 80 % of
    them as <mask>) over what this sequence holds.
    """
    layer, ids = backbone.embeddings, input_ids
    embedded = layer.word_embeddings(ids)
    if layer.token_dropout:
        is_mask = ids == layer.mask_token_id
        sequence = packing.sequence_ids(ids.device)
        masked = torch.zeros(len(packing.lengths), device=ids.device).index_add_(0, sequence, is_mask.float())
        share = masked / torch.tensor(packing.lengths, device=ids.device)
        scale = (1 - 0.15 * 0.8) / (1 - share)
        embedded = embedded * (scale[sequence] * ~is_mask)[:, None].to(embedded.dtype)
    if layer.position_embedding_type == "absolute":
        positions = packing.position_ids(ids.device)[0] + layer.padding_idx + 1
        embedded = embedded + layer.position_embeddings(positions)
    if layer.layer_norm is not None:
        embedded = layer.layer_norm(embedded)
    return embedded[None]


EMBEDDINGS: dict[str, Callable[[Any, Tensor, Packing], Tensor]] = {"esm": _esm_embeddings}
