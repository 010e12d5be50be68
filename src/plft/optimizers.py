"""Muon for the weight matrices of a model and AdamW for all other weights, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Muon, Optimizer
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

OPTIMIZERS = {"muon": "Muon and AdamW", "adamw": "AdamW"}


def matrices(model: PreTrainedModel) -> list[Tensor]:
    """The weights of linear layers that train, except those of the layer that gives logits.

    Muon is for maps between hidden states; embeddings and logits are better off with AdamW (Jordan et al. 2024).
    """
    logits = getattr(model.get_output_embeddings(), "weight", None)
    found = {id(each.weight): each.weight for each in model.modules() if isinstance(each, nn.Linear | Conv1D)}
    return [weight for weight in found.values() if weight is not logits and weight.requires_grad]


class MuonWithAdamW(Optimizer):
    """Two optimizers that step together, as if they were one.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) moves a matrix by the nearest orthogonal one to
    its averaged gradient, so that all directions learn, not only the few that dominate the gradient. Its steps are
    scaled such that learning rate and weight decay are those of AdamW (Liu et al. 2025, arXiv 2502.16982). They are
    computed in bf16, which takes a CPU without bf16 twenty times as long.

    adamw: over all weights that train; Muon's are taken out of it.  weights: those for Muon, two-dimensional.
    """

    def __init__(self, adamw: Optimizer, weights: list[Tensor]) -> None:
        theirs = {id(each) for each in weights}
        for group in adamw.param_groups:
            group["params"] = [each for each in group["params"] if id(each) not in theirs]
        settings = {name: adamw.param_groups[0][name] for name in ("lr", "weight_decay")}
        self.parts = (Muon(weights, adjust_lr_fn="match_rms_adamw", **settings), adamw)
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both; the closure's value, if one is given."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both: tensors and plain values."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
