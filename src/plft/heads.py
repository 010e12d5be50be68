"""Hidden states -> outputs.

Every head is an `nn.Module` called as ``head(hidden_states, attention_mask, **extra)``; a head of your own needs
nothing more. `attention_mask` is 1 for real residues; special tokens and padding are 0, whatever the backbone saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from plft.errors import PlftError, look_up

PROTEIN, RESIDUE = "protein", "residue"


def mean_over_residues(hidden: Tensor, is_residue: Tensor) -> Tensor:
    """Average the hidden states of real residues; special tokens and padding do not count.

    hidden: (batch, tokens, width) float.  is_residue: (batch, tokens) bool.  Returns (batch, width).
    A sequence with no residues averages to zero rather than NaN.
    """
    weights = is_residue.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def max_over_residues(hidden: Tensor, is_residue: Tensor) -> Tensor:
    """Largest value of each channel over real residues; zero for a sequence without residues.

    hidden: (batch, tokens, width) float.  is_residue: (batch, tokens) bool.  Returns (batch, width).
    """
    lowest = torch.finfo(hidden.dtype).min
    best = hidden.masked_fill(~is_residue.unsqueeze(-1), lowest).amax(1)
    return best.masked_fill(~is_residue.any(1, keepdim=True), 0.0)


def first_token(hidden: Tensor, is_residue: Tensor) -> Tensor:
    """Hidden state of the first token, `<cls>` where the family has one. Returns (batch, width)."""
    return hidden[:, 0]


class AttentionPooling(nn.Module):
    """Weighted mean over residues, the weights being a learned softmax (one score per residue)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, hidden: Tensor, is_residue: Tensor) -> Tensor:
        """hidden: (batch, tokens, width).  is_residue: (batch, tokens) bool.  Returns (batch, width)."""
        scores = self.score(hidden).float().masked_fill(~is_residue.unsqueeze(-1), -torch.inf)
        weights = torch.nan_to_num(scores.softmax(1)).to(hidden.dtype)  # all masked: softmax is NaN, the pool is 0
        return (hidden * weights).sum(1)


class FixedPooling(nn.Module):
    """A pooling without weights of its own."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, hidden: Tensor, is_residue: Tensor) -> Tensor:
        """hidden: (batch, tokens, width).  is_residue: (batch, tokens) bool.  Returns (batch, width)."""
        return self.function(hidden, is_residue)


POOLINGS: dict[str, Callable[[int], nn.Module]] = {
    "mean": lambda width: FixedPooling(mean_over_residues),
    "max": lambda width: FixedPooling(max_over_residues),
    "cls": lambda width: FixedPooling(first_token),
    "attention": AttentionPooling,
}


class TaskHead(nn.Module):
    """What the built-in heads share: pooling for one output per sequence, none for one output per residue."""

    def __init__(self, width: int, classification_mode: str, pooling_strategy: str) -> None:
        super().__init__()
        look_up("classification_mode", classification_mode, {PROTEIN: 0, RESIDUE: 0})
        pooling = look_up("pooling", pooling_strategy, POOLINGS)
        self.classification_mode = classification_mode
        self.pooling = pooling(width) if classification_mode == PROTEIN else None

    @property
    def pools_first(self) -> bool:
        """Whether all that this head sees of a sequence is one vector, the same in every epoch."""
        return False

    def pooled(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """(batch, tokens, width) -> (batch, width) at sequence level; unchanged at residue level."""
        return hidden if self.pooling is None else self.pooling(hidden, as_mask(hidden, attention_mask))


def as_mask(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The mask as bool, (batch, tokens); no mask means that every position is a residue."""
    if attention_mask is None:
        return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    return attention_mask.bool()


def perceptron(input_dim: int, hidden_dim: int, output_dim: int, hidden_layers: int, dropout: float) -> nn.Sequential:
    """Dropout, linear, tanh for each hidden layer, then dropout and the linear output; 0 hidden layers is linear."""
    layers: list[nn.Module] = []
    for _ in range(hidden_layers):
        layers += [nn.Dropout(dropout), nn.Linear(input_dim, hidden_dim), nn.Tanh()]
        input_dim = hidden_dim
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(input_dim, output_dim))


class MLPHead(TaskHead):
    """A perceptron on the pooled sequence, or on every residue.

    input_dim: the backbone's width.  output_dim: classes, or columns in a regression.  num_hidden_layers: 0 is linear.
    classification_mode: "protein" (one output per sequence) or "residue".  pooling_strategy: a key of `POOLINGS`.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        num_hidden_layers: int = 1,
        dropout_rate: float = 0.1,
        classification_mode: str = PROTEIN,
        pooling_strategy: str = "mean",
    ) -> None:
        super().__init__(input_dim, classification_mode, pooling_strategy)
        self.mlp = perceptron(input_dim, hidden_dim, output_dim, num_hidden_layers, dropout_rate)

    @property
    def pools_first(self) -> bool:
        """Whether a pooling without weights comes before anything else; of a subclass only where it changes neither."""
        own = type(self).forward is MLPHead.forward and type(self).pooled is TaskHead.pooled
        return own and isinstance(self.pooling, FixedPooling)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **extra: Any) -> Tensor:
        """(batch, tokens, input_dim) -> (batch, output_dim), or (batch, tokens, output_dim) in residue mode."""
        return self.mlp(self.pooled(hidden_states, attention_mask))


class LinearHead(MLPHead):
    """Dropout and one linear layer: what "linear probing" means."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_hidden_layers: int = 0, **rest: Any):
        super().__init__(input_dim, hidden_dim, output_dim, num_hidden_layers=0, **rest)


class MaskedConvolution(nn.Module):
    """1-D convolution along the sequence that sees zeros outside the real residues, so padding changes nothing."""

    def __init__(self, input_dim: int, output_dim: int, kernel_size: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(input_dim, output_dim, kernel_size, padding="same")

    def forward(self, hidden: Tensor, is_residue: Tensor) -> Tensor:
        """hidden: (batch, tokens, in).  is_residue: (batch, tokens) bool.  Returns (batch, tokens, out)."""
        visible = hidden * is_residue.unsqueeze(-1).to(hidden.dtype)
        return self.convolution(visible.transpose(1, 2)).transpose(1, 2)


class CNNHead(TaskHead):
    """Convolutions with ReLU along the sequence, then pooling (sequence level) and a linear output.

    Arguments as `MLPHead`; `num_hidden_layers` counts the convolutions, `kernel_size` is in residues and odd.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        num_hidden_layers: int = 2,
        dropout_rate: float = 0.1,
        classification_mode: str = PROTEIN,
        pooling_strategy: str = "max",
        kernel_size: int = 7,
    ) -> None:
        super().__init__(hidden_dim, classification_mode, pooling_strategy)
        widths = [input_dim] + [hidden_dim] * max(1, num_hidden_layers)
        self.layers = nn.ModuleList(MaskedConvolution(a, b, kernel_size) for a, b in pairwise(widths))
        self.output = perceptron(hidden_dim, hidden_dim, output_dim, 0, dropout_rate)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **extra: Any) -> Tensor:
        """(batch, tokens, input_dim) -> (batch, output_dim), or (batch, tokens, output_dim) in residue mode."""
        is_residue = as_mask(hidden_states, attention_mask)
        for layer in self.layers:
            hidden_states = torch.relu(layer(hidden_states, is_residue))
        return self.output(self.pooled(hidden_states, is_residue))


class LightAttentionHead(nn.Module):
    """Light attention (Staerk et al. 2021): one convolution gives values, another softmax weights over residues.

    The weighted sum and the maximum over residues are joined and go through a perceptron. Sequence level only.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        num_hidden_layers: int = 1,
        dropout_rate: float = 0.1,
        classification_mode: str = PROTEIN,
        pooling_strategy: str = "attention",
        kernel_size: int = 9,
    ) -> None:
        super().__init__()
        if classification_mode == RESIDUE:
            raise PlftError("The light_attention head pools the sequence and cannot label residues. Use cnn or mlp.")
        self.values = MaskedConvolution(input_dim, input_dim, kernel_size)
        self.scores = MaskedConvolution(input_dim, input_dim, kernel_size)
        self.dropout = nn.Dropout(dropout_rate)
        self.mlp = perceptron(2 * input_dim, hidden_dim, output_dim, num_hidden_layers, dropout_rate)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **extra: Any) -> Tensor:
        """(batch, tokens, input_dim) -> (batch, output_dim)."""
        is_residue = as_mask(hidden_states, attention_mask)
        values = self.dropout(self.values(hidden_states, is_residue))
        scores = self.scores(hidden_states, is_residue).float().masked_fill(~is_residue.unsqueeze(-1), -torch.inf)
        weights = torch.nan_to_num(scores.softmax(1)).to(values.dtype)
        return self.mlp(torch.cat([(values * weights).sum(1), max_over_residues(values, is_residue)], dim=-1))


@dataclass(frozen=True)
class HeadRow:
    """One row of the head table.

    labels_residues: whether it can give one output per residue.  ignores: settings of a model that do nothing to it.
    """

    name: str
    build: Callable[..., nn.Module]
    title: str
    pooling: str
    hidden_layers: int
    labels_residues: bool = True
    ignores: tuple[str, ...] = ()


HEADS: dict[str, HeadRow] = {
    row.name: row
    for row in (
        HeadRow("mlp", MLPHead, "perceptron: dropout, linear, tanh", "mean", 1, ignores=("head_kernel",)),
        HeadRow(
            *("linear", LinearHead, "one linear layer", "mean", 0),
            ignores=("head_kernel", "head_layers", "head_width"),
        ),
        HeadRow("cnn", CNNHead, "convolutions along the sequence", "max", 2),
        HeadRow(
            *("light_attention", LightAttentionHead, "light attention (Staerk et al. 2021)", "attention", 1),
            labels_residues=False,
            ignores=("pooling",),
        ),
    )
}


def build_head(name: str, input_dim: int, output_dim: int, *, residues: bool, **options: Any) -> nn.Module:
    """Build a head of the table.

    residues: one output per residue instead of one per sequence.  options: any of hidden_dim, num_hidden_layers,
    dropout_rate, pooling_strategy, kernel_size; None means the head's own default.
    """
    row = look_up("head", name, HEADS)
    given = {key: value for key, value in options.items() if value is not None}
    if "head_kernel" in row.ignores:
        given.pop("kernel_size", None)
    return row.build(
        input_dim=input_dim,
        hidden_dim=given.pop("hidden_dim", min(input_dim, 512)),
        output_dim=output_dim,
        classification_mode=RESIDUE if residues else PROTEIN,
        **given,
    )
