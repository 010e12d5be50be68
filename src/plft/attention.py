"""Attention over packed rows: whole sequences laid end to end, each seeing only itself, and no padding anywhere.

A row carries the lengths of its sequences; equal lengths lie next to each other, so that they are one call of torch's
scaled-dot-product attention without a copy. transformers finds this function through its attention interface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.models.esm.modeling_esm import EsmIntermediate, EsmSelfAttention
from transformers.models.t5.modeling_t5 import T5Attention, T5EncoderModel

PACKED = "plft_packed"
SPELLED_OUT = 1024  # tokens of the longest sequence whose attention is spelled out: its memory grows with the square
CACHED = 2**20  # scores computed at a time
MULTIPLE = 32  # of keys: products and softmax are slower where some are left over
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
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence of a row.

    query: (1, heads, tokens, width); key, value: (1, key heads, tokens, width).  Returns (1, tokens, heads, width).
    position_bias: (1, heads, longest, longest), added to the scores of each sequence from its start.
    packing: how the row is laid out; without it this is an ordinary batch, attended to as transformers does by default.
    """
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, position_bias, **others
        )
    query, key, value = (each.transpose(1, 2)[0] for each in (query, key, value))
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    plain = not (dropout or causal or position_bias is not None or query.shape[1] != key.shape[1])
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    limit = SPELLED_OUT if plain and _can_spell_out(query) else 0
    parts = [list(runs) for _, runs in groupby(packing.runs, key=lambda run: run[0] <= limit)]
    sizes = [sum(length * count for length, count in runs) for runs in parts]  # split, not sliced: its backward pass
    states = zip(*(each.split(sizes) for each in (query, key, value)), strict=True)  # touches every token once
    outputs = []
    for runs, (q, k, v) in zip(parts, states, strict=True):
        if runs[0][0] <= limit:
            outputs.append(SpelledOut.apply(q if scale == 1 else q * scale, k, v, runs))
        else:
            outputs += _fused_attention(q, k, v, runs, dropout, scale, causal, position_bias)
    return (torch.cat(outputs) if len(outputs) > 1 else outputs[0])[None], None


def _can_spell_out(query: Tensor) -> bool:
    """Whether matrix products and a softmax beat torch's fused kernel: in bf16 on a CPU training takes half as long."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    runs: list[tuple[int, int]],
    dropout: float,
    scale: float,
    causal: bool,
    bias: Tensor | None,
) -> list[Tensor]:
    """torch's scaled-dot-product attention, run by run: (tokens, heads, width) each."""
    sizes = [length * count for length, count in runs]
    outputs = []
    for (length, count), *parts in zip(runs, *(each.split(sizes) for each in (query, key, value)), strict=True):
        q, k, v = (each.unflatten(0, (count, length)).transpose(1, 2) for each in parts)
        added = None if bias is None else bias[..., :length, :length].to(q.dtype)
        grouped = q.shape[1] != k.shape[1]
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=added, dropout_p=dropout, scale=scale, is_causal=causal, enable_gqa=grouped
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return outputs


class SpelledOut(torch.autograd.Function):
    """Attention as matrix products and a softmax, for a whole row at once; what was attended to is kept for backward.

    query (scaled), key, value: (tokens, heads, width) -> (tokens, heads, width).  runs: as of `Packing`.
    What all keys, or all values, of a sequence have in common changes nothing in a softmax; it is taken off, or what
    tells them apart would drown in the rounding of 16 bits, and attention would not learn.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, runs: list[tuple[int, int]]) -> Tensor:
        result, learns, kept = torch.empty_like(value), any(ctx.needs_input_grad), []
        for run, to_key, to_value in zip(_spans(runs), _middles(key, runs), _middles(value, runs), strict=True):
            q, k, v = (
                _by_head(query, run),
                _by_head(key, run, to_key, MULTIPLE),
                _by_head(value, run, to_value, MULTIPLE),
            )
            parts, attended = _parts(len(q), q.shape[1] * k.shape[1]), torch.empty_like(q)
            shares = q.new_empty(len(q) if learns else parts[0].stop, q.shape[1], k.shape[1])
            for part in parts:
                scores = shares[part] if learns else shares[: len(q[part])]
                torch.bmm(q[part], k[part].transpose(1, 2), out=scores)
                scores[..., q.shape[1] :] = -torch.inf
                torch.softmax(scores, -1, out=scores)
                torch.bmm(scores, v[part], out=attended[part])
            _put(result, run, attended, to_value)
            if learns:
                kept += [q, k, v, shares]
        ctx.runs = runs
        ctx.save_for_backward(*kept)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        results = gradient.new_empty(3, *gradient.shape).unbind()
        kept = iter(ctx.saved_tensors)
        for run, (q, k, v, shares) in zip(_spans(ctx.runs), zip(*[kept] * 4, strict=True), strict=True):
            g = _by_head(gradient, run)
            to_query, to_key, to_value = (torch.empty_like(each) for each in (q, k, v))
            for part in _parts(len(q), q.shape[1] * k.shape[1]):
                torch.bmm(shares[part].transpose(1, 2), g[part], out=to_value[part])
                scores = torch.bmm(g[part], v[part].transpose(1, 2))
                torch._softmax_backward_data(scores, shares[part], -1, scores.dtype, grad_input=scores)
                torch.bmm(scores, k[part], out=to_query[part])
                torch.bmm(scores.transpose(1, 2), q[part], out=to_key[part])
            for result, values in zip(results, (to_query, to_key, to_value), strict=True):
                _put(result, run, values)
        return results[0], results[1], results[2], None


def _parts(matrices: int, size: int) -> list[slice]:
    """Cuts that many matrices of scores into parts that a core's cache holds, to be used while they are there."""
    step = min(matrices, max(1, CACHED // size))
    return [slice(start, start + step) for start in range(0, matrices, step)]


def _middles(states: Tensor, runs: list[tuple[int, int]]) -> list[Tensor]:
    """The mean over each sequence, by run: (tokens, heads, width) -> (sequences of the run, heads, 1, width) each."""
    starts = np.cumsum([0] + [length for length, count in runs for _ in range(count)])[:-1]
    tokens = torch.arange(len(states))
    means = F.embedding_bag(tokens, states.flatten(1), torch.from_numpy(starts), mode="mean")
    return list(means.unflatten(1, states.shape[1:]).unsqueeze(2).split([count for _, count in runs]))


def _spans(runs: list[tuple[int, int]]) -> Iterator[tuple[slice, int]]:
    """Where each run lies in the row, and how many sequences it has."""
    start = 0
    for length, count in runs:
        yield slice(start, start + length * count), count
        start += length * count


def _by_head(states: Tensor, run: tuple[slice, int], less: Tensor | None = None, multiple: int = 1) -> Tensor:
    """(tokens, heads, width) -> (sequences x heads, length, width) of one run.

    less: taken off.  multiple: the length is filled up to one, with zeros.
    """
    where, count = run
    there = states[where].unflatten(0, (count, -1)).transpose(1, 2)
    length = there.shape[2]
    result = there.new_empty(*there.shape[:2], -(-length // multiple) * multiple, there.shape[3])
    result[:, :, length:] = 0
    if less is None:
        result[:, :, :length] = there
    else:
        torch.sub(there, less, out=result[:, :, :length])
    return result.flatten(0, 1)


def _put(states: Tensor, run: tuple[slice, int], values: Tensor, more: Tensor | None = None) -> None:
    """The reverse of `_by_head`: write the values of one run into a row, without what filled them up, `more` added."""
    where, count = run
    there = states[where].unflatten(0, (count, -1)).transpose(1, 2)
    values = values.unflatten(0, (count, -1))[:, :, : there.shape[2]]
    if more is None:
        there.copy_(values)
    else:
        torch.add(values, more, out=there)


_packing: ContextVar[Packing | None] = ContextVar("packing", default=None)


def _mask(*arguments: Any, **options: Any) -> Tensor | None:
    """Packed rows need no mask, the packing says it all; ordinary batches have that of torch's attention."""
    return None if _packing.get() is not None else sdpa_mask(*arguments, **options)


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, _mask)


def without_adapters(model: Any) -> Any:
    """The transformers model within peft's wrapper; itself where there is none, or one that has prompts to add."""
    config = getattr(model, "active_peft_config", None)
    return model if config is None or config.is_prompt_learning else model.get_base_model()


def can_pack(model: nn.Module) -> bool:
    """Whether this model's attention can be told apart by sequence within one row.

    Not with code of its own, with a window that slides, or with another attention than torch's, which somebody chose.
    """
    config = model.config
    fits = getattr(config, "model_type", None) in PACKABLE or type(model) is T5EncoderModel
    usual = getattr(config, "_attn_implementation", None) in ("sdpa", PACKED)
    whole = getattr(config, "sliding_window", None) is None
    return fits and usual and whole and type(model).__module__.startswith("transformers.")


def use_packing(model: PreTrainedModel) -> None:
    """Let a model run over packed rows, from its next forward pass on; ordinary batches still are what they were."""
    model.set_attn_implementation(PACKED)
    for module in model.modules():
        if type(module) is T5Attention:
            module.__class__ = _PackedT5Attention


class _FusedIntermediate(EsmIntermediate):
    """ESM's first feed-forward layer with GELU in one pass over memory instead of five; the same to rounding."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.gelu(self.dense(hidden_states))


class _Rotate(torch.autograd.Function):
    """Rotary position embedding of features that lie in pairs, as a product of complex numbers; in fp32, as ESM has it.

    states: (tokens, ..., width).  turn: (tokens, ..., width / 2) complex, to be broadcast.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, turn: Tensor) -> Tensor:
        ctx.save_for_backward(turn)
        return _turned(states, turn)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _turned(gradient, ctx.saved_tensors[0].conj_physical()), None


def _turned(states: Tensor, turn: Tensor) -> Tensor:
    turned = states.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    torch.view_as_complex(turned.unflatten(-1, (-1, 2))).mul_(turn)
    return turned.to(states.dtype)


class _FusedSelfAttention(EsmSelfAttention):
    """ESM's attention over packed rows with one product for queries, keys and values; the same to rounding."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        layers = (self.query, self.key, self.value)
        plain = others.get("packing") is not None and all(type(each) is nn.Linear for each in layers)
        if not plain or position_embeddings is None:
            return super().forward(  # type: ignore[return-value]
                hidden_states,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                position_embeddings,
                **others,
            )
        weight, bias = self._joined()
        states = F.linear(hidden_states[0], weight, bias).unflatten(-1, (3, self.num_attention_heads, -1))
        cos, sin = (each[0, :, None, None, : self.attention_head_size // 2] for each in position_embeddings)
        rotated, value = states.split((2, 1), dim=1)
        query, key = _Rotate.apply(rotated, torch.complex(cos.float(), sin.float())).unbind(1)
        query, key, value = (each.transpose(0, 1)[None] for each in (query, key, value[:, 0]))
        dropout = self.dropout if self.training else 0.0
        attended, _ = packed_attention(self, query, key, value, None, dropout, self.scaling, **others)
        return attended.flatten(2), None

    def _joined(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the three layers as one: queries scaled, features that rotate together made neighbours."""
        layers = ((self.query, self.attention_head_size**-0.5), (self.key, 1.0), (self.value, None))

        def joined(name: str) -> Tensor:
            parts = []
            for layer, scale in layers:
                part = getattr(layer, name)
                if scale is not None:
                    halves = part.unflatten(0, (self.num_attention_heads, 2, -1))
                    part = halves.transpose(1, 2).flatten(0, 2) * scale
                parts.append(part)
            return torch.cat(parts)

        return joined("weight"), None if self.query.bias is None else joined("bias")


class _PackedT5Attention(T5Attention):
    """T5's attention, with a bias for relative positions as large as the longest sequence and not as the row."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        token = _packing.set(options.get("packing"))
        try:
            return super().forward(*arguments, **options)
        finally:
            _packing.reset(token)

    def compute_bias(self, query_length: int, key_length: int, device: Any = None, past_seen_tokens: Any = 0) -> Tensor:
        packing = _packing.get()
        if packing is not None:
            query_length = key_length = max(packing.lengths)
        return super().compute_bias(query_length, key_length, device, past_seen_tokens)


def fuse(model: nn.Module) -> None:
    """Let a model compute the same with fewer passes over memory, where it spells out what torch has in one piece."""
    for module in model.modules():
        if fused := FUSED.get(type(module)):
            module.__class__ = fused


FUSED: dict[type, type] = {EsmIntermediate: _FusedIntermediate, EsmSelfAttention: _FusedSelfAttention}


def run_packed(backbone: Any, input_ids: Tensor, packing: Packing) -> Tensor:
    """The last hidden states of a packed row: input_ids (tokens,) -> (tokens, width)."""
    positions = packing.position_ids(input_ids.device)
    embed = EMBEDDINGS.get(backbone.config.model_type)
    tokens = {"input_ids": input_ids[None]} if embed is None else {"inputs_embeds": embed(backbone, input_ids, packing)}
    token = _packing.set(packing)
    try:
        return backbone(**tokens, position_ids=positions, packing=packing).last_hidden_state[0]
    finally:
        _packing.reset(token)


@dataclass(frozen=True)
class Laid:
    """How a padded batch lies in a row. order: of its sequences.  attended: (batch, tokens) bool, in that order."""

    order: Tensor
    attended: Tensor
    packing: Packing

    @classmethod
    def of(cls, attention_mask: Tensor) -> Laid:
        """Longest sequence first. attention_mask: (batch, tokens)."""
        lengths = attention_mask.sum(1)
        order = lengths.argsort(descending=True, stable=True)
        return cls(order, attention_mask[order].bool(), Packing.of(lengths[order].tolist()))

    def row(self, batch: Tensor) -> Tensor:
        """(batch, tokens, ...) -> (tokens that are no padding, ...)"""
        return batch[self.order][self.attended]

    def padded(self, row: Tensor) -> Tensor:
        """The reverse of `row`, zero where padded: (tokens, width) -> (batch, tokens, width)."""
        shape = self.attended.shape
        places = torch.arange(shape[0] * shape[1], device=row.device).view(shape)
        zeros = row.new_zeros(shape[0] * shape[1], row.shape[-1])
        return zeros.index_copy(0, self.row(places), row).unflatten(0, shape)


def run_padded(backbone: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The last hidden states of a padded batch, computed as a packed row: (batch, tokens, width), zero where padded.

    input_ids, attention_mask: (batch, tokens).  The backbone does no work on padding.
    """
    laid = Laid.of(attention_mask)
    return laid.padded(run_packed(backbone, laid.row(input_ids), laid.packing))


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
        scale = (1 - 0.15 * 0.8) / (1 - share).clamp(min=1e-6)  # where all are masked nothing is scaled
        embedded = embedded * (scale[sequence] * ~is_mask)[:, None].to(embedded.dtype)
    if layer.position_embedding_type == "absolute":
        positions = packing.position_ids(ids.device)[0] + layer.padding_idx + 1
        embedded = embedded + layer.position_embeddings(positions)
    if layer.layer_norm is not None:
        embedded = layer.layer_norm(embedded)
    return embedded[None]


EMBEDDINGS: dict[str, Callable[[Any, Tensor, Packing], Tensor]] = {"esm": _esm_embeddings}
