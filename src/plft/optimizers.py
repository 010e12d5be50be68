"""Muon for the weight matrices of a model and AdamW for all other weights, as one optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Muon, Optimizer
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

TOGETHER = 2**22  # weights that Muon computes with at once: small matrices gain by it, large ones take memory
OPTIMIZERS = {"muon": "Muon and AdamW", "adamw": "AdamW"}


def matrices(model: PreTrainedModel) -> list[Tensor]:
    """The weights of linear layers that train, except those of the layer that gives logits.

    Muon is for maps between hidden states; embeddings and logits are better off with AdamW (Jordan et al. 2024).
    """
    logits = getattr(model.get_output_embeddings(), "weight", None)
    found = {id(each.weight): each.weight for each in model.modules() if isinstance(each, nn.Linear | Conv1D)}
    return [weight for weight in found.values() if weight is not logits and weight.requires_grad]


def orthogonalized(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """About the nearest matrices with orthonormal rows (or columns, if there are fewer), by Newton-Schulz iterations.

    matrices: (number, rows, columns); their precision is that of the products.  coefficients: of the odd polynomial of
    degree 5 that is applied to the singular values.  Jordan et al. 2024 choose both such that few iterations bring all
    singular values into the neighbourhood of 1 (0.7 to 1.2), not to it.
    """
    linear, cubic, quintic = coefficients
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    wide = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), wide, beta=linear)
    return wide.mT if matrices.shape[1] > matrices.shape[2] else wide


class PortableMuon(Muon):
    """PyTorch's Muon with products in the precision of training, and matrices of one shape taken together.

    PyTorch's own are in bf16 everywhere, which takes a CPU without bf16 20 to 35 times as long. Steps are scaled such
    that learning rate and weight decay are those of AdamW (Liu et al. 2025, arXiv 2502.16982).
    """

    def __init__(
        self, weights: list[Tensor], lr: float, weight_decay: float, precision: torch.dtype = torch.float32
    ) -> None:
        super().__init__(weights, lr=lr, weight_decay=weight_decay)
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step for all matrices that have a gradient; the closure's value, if one is given."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            learning = [weight for weight in group["params"] if weight.grad is not None]
            for shape in dict.fromkeys(weight.shape for weight in learning):
                weights = [weight for weight in learning if weight.shape == shape]
                at_once = max(1, TOGETHER // shape.numel())
                for first in range(0, len(weights), at_once):
                    self._step(weights[first : first + at_once], group)
        return loss

    def _step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Move matrices of one shape."""
        ahead = torch.stack([self._ahead(weight, group["momentum"]).to(self.precision) for weight in weights])
        steps = orthogonalized(ahead, group["ns_coefficients"], group["ns_steps"], group["eps"])
        for weight, step in zip(weights, steps, strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(step, alpha=-group["lr"] * 0.2 * math.sqrt(max(weight.shape)))

    def _ahead(self, weight: Tensor, momentum: float) -> Tensor:
        """The averaged gradient, this one taken in, and looked ahead of by Nesterov's rule."""
        gradient: Any = weight.grad
        state = self.state[weight]
        mean = state["momentum_buffer"] if "momentum_buffer" in state else torch.zeros_like(gradient)
        state["momentum_buffer"] = mean
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)


class MuonWithAdamW(Optimizer):
    """Two optimizers that step together, as if they were one.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) moves a matrix by the nearest orthogonal one to
    its averaged gradient, so that all directions learn, not only the few that dominate the gradient.

    adamw: over all weights that train; Muon's are taken out of it.  weights: those for Muon, two-dimensional.
    precision: of Muon's products.
    """

    def __init__(self, adamw: Optimizer, weights: list[Tensor], precision: torch.dtype = torch.float32) -> None:
        theirs = {id(each) for each in weights}
        for group in adamw.param_groups:
            group["params"] = [each for each in group["params"] if id(each) not in theirs]
        settings = {name: adamw.param_groups[0][name] for name in ("lr", "weight_decay")}
        self.parts = (PortableMuon(weights, precision=precision, **settings), adamw)
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
