"""Backbones whose hidden states can be read, and a run that breaks off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.modeling_outputs import BaseModelOutput


class ReadsTokens(nn.Module):
    """The hidden state of a token is its id: width 1."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=input_ids.unsqueeze(-1).float())


class ReadsNeighbours(ReadsTokens):
    """The hidden state of a token says its own id and those two places to either side: width 3."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> BaseModelOutput:
        ids = nn.functional.pad(input_ids * attention_mask, (2, 2)).float()
        return BaseModelOutput(last_hidden_state=torch.stack([ids[:, :-4], ids[:, 2:-2], ids[:, 4:]], dim=-1))


class Unchanged(nn.Module):
    """A head that gives its input back."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))  # a model has at least one weight

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **extra: Any) -> Tensor:
        return hidden_states


class StopAt(TrainerCallback):
    """Breaks off after a step, as a power cut would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt
