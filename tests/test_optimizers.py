"""Which weights Muon moves, what a step is, and that its state survives."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
from plft.language_models import load_language_model
from plft.optimizers import MuonWithAdamW, PortableMuon, matrices


def names(model, found) -> set[str]:
    ids = {id(each) for each in found}
    return {name for name, each in model.named_parameters() if id(each) in ids}


@pytest.mark.parametrize("family", tiny.KNOWN)
def test_muon_moves_maps_between_hidden_states_and_neither_embeddings_nor_logits(family):
    model = load_language_model(tiny.checkpoint(family))
    rest = names(model, [each for each in model.parameters() if each.ndim == 2]) - names(model, matrices(model))
    outside = ("embed", "wte", "wpe", "shared", "relative_attention_bias")  # by what families call them
    logits = ("lm_head.weight", "lm_head.decoder.weight", "predictions.decoder.weight", "sequence_head.3.weight")
    gate = "mlp.gate.weight"  # of experts: not a linear layer in transformers
    for name in rest:
        assert any(part in name for part in outside) or name.endswith((*logits, gate)), name
    for name in names(model, matrices(model)):
        assert not any(part in name for part in outside), name
        assert not name.endswith((*logits, gate)), name
    assert matrices(model)


def test_frozen_matrices_are_left_alone():
    model = load_language_model(tiny.checkpoint("esm2"))
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["query"]))
    assert names(tuned, matrices(tuned.get_base_model())) == {
        name for name, each in tuned.named_parameters() if each.requires_grad
    }


def pair(lr: float = 0.1, decay: float = 0.0):
    torch.manual_seed(0)
    matrix, vector = torch.nn.Parameter(torch.randn(4, 6)), torch.nn.Parameter(torch.randn(6))
    adamw = torch.optim.AdamW(
        [{"params": [matrix], "weight_decay": decay}, {"params": [vector], "weight_decay": 0.0}], lr
    )
    return matrix, vector, MuonWithAdamW(adamw, [matrix])


def test_a_first_step_is_an_orthogonal_matrix_as_large_as_a_step_of_adamw():
    matrix, vector, optimizer = pair()
    before, was = matrix.detach().clone(), vector.detach().clone()
    matrix.grad, vector.grad = torch.randn(4, 6), torch.randn(6)
    u, _, v = torch.linalg.svd(matrix.grad, full_matrices=False)
    optimizer.step()
    step = (before - matrix).detach() / (0.1 * 0.2 * 6**0.5)  # Liu et al. 2025, equation 4
    singular = torch.linalg.svdvals(step)
    assert singular.min() > 0.5  # five Newton-Schulz iterations leave singular values between about 0.7 and 1.2
    assert singular.max() < 1.3
    assert torch.nn.functional.cosine_similarity(step.flatten(), (u @ v).flatten(), dim=0) > 0.97
    assert torch.allclose((was - vector).detach(), 0.1 * vector.grad.sign(), atol=1e-5)  # Adam's first step


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 6), (24, 8), (5, 5)])
def test_steps_are_those_of_pytorch_but_for_rounding(shape, precision):
    """PyTorch's Muon computes in bf16, which has 8 bits; the averages of the gradients are the same."""
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    settings = {"lr": 0.05, "weight_decay": 0.1}
    optimizers = (
        PortableMuon([ours], **settings, precision=precision),
        torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings),
    )
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn(shape)
        before = ours.detach().clone(), theirs.detach().clone()
        for optimizer in optimizers:
            optimizer.step()
        steps = (ours - before[0]).detach(), (theirs - before[1]).detach()
        assert (steps[0] - steps[1]).norm() < 0.05 * steps[1].norm()
    kept = [optimizer.state_dict()["state"][0]["momentum_buffer"] for optimizer in optimizers]
    assert torch.equal(*kept)


@pytest.mark.parametrize("together", [2**22, 48, 1])
def test_a_step_of_several_matrices_is_that_of_each_alone(monkeypatch, together):
    """Those of one shape are computed together, some at a time; each still has its own norm and its own place."""
    monkeypatch.setattr("plft.optimizers.TOGETHER", together)
    torch.manual_seed(0)
    shapes = [(4, 6), (6, 4), (4, 6), (5, 5), (4, 6)]
    several, alone = ([torch.nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    for at, (one, other) in enumerate(zip(several, alone, strict=True)):
        one.grad = other.grad = 10**at * torch.randn(shapes[at])
        PortableMuon([other], lr=0.1, weight_decay=0.1).step()
    PortableMuon(several, lr=0.1, weight_decay=0.1).step()
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(several, alone, strict=True))
    assert not torch.allclose(several[0], several[2], atol=1e-2)


def test_a_matrix_without_a_gradient_stays_and_the_closure_has_gradients():
    moved, still = (torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    optimizer = PortableMuon([moved, still], lr=0.1, weight_decay=0.1)

    def loss() -> float:
        value = moved.square().sum()
        value.backward()
        return value.item()

    assert optimizer.step(loss) == 6.0
    assert (moved < 1).all()
    assert torch.equal(still, torch.ones(2, 3))


def test_weight_decay_and_the_learning_rate_reach_both():
    matrix, vector, optimizer = pair(lr=0.5, decay=0.2)
    optimizer.load_state_dict(optimizer.state_dict())  # as accelerate does; the schedule has to move what is left then
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 if step == 0 else 0)
    before = matrix.detach().clone()
    matrix.grad, vector.grad = torch.zeros(4, 6), torch.zeros(6)
    optimizer.step()
    assert torch.allclose(matrix, before * (1 - 0.5 * 0.2))
    schedule.step()
    matrix.grad, vector.grad = torch.randn(4, 6), torch.randn(6)
    resting = matrix.detach().clone(), vector.detach().clone()
    optimizer.step()
    assert torch.equal(matrix, resting[0])
    assert torch.equal(vector, resting[1])


def test_a_state_that_was_saved_goes_on_as_if_nothing_had_happened(tmp_path):
    gradients = torch.Generator().manual_seed(1)
    drawn = [(torch.randn(4, 6, generator=gradients), torch.randn(6, generator=gradients)) for _ in range(6)]

    def steps(parts, some):
        matrix, vector, optimizer = parts
        for matrix.grad, vector.grad in some:
            optimizer.step()

    whole = pair()
    steps(whole, drawn)
    first = pair()
    steps(first, drawn[:3])
    torch.save(first[2].state_dict(), tmp_path / "state.pt")
    second = pair()
    second[0].data, second[1].data = copy.deepcopy(first[0].data), copy.deepcopy(first[1].data)
    second[2].load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    steps(second, drawn[3:])
    assert torch.equal(whole[0], second[0])
    assert torch.equal(whole[1], second[1])


def test_the_learning_rate_that_was_saved_is_that_of_both_parts():
    optimizer = pair(lr=0.1)[2]
    optimizer.load_state_dict(pair(lr=0.05)[2].state_dict())
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [0.05] * 3
    assert [group["lr"] for group in optimizer.param_groups] == [0.05] * 3


def test_nothing_has_to_be_left_for_adamw():
    weight = torch.nn.Parameter(torch.randn(3, 3))
    optimizer = MuonWithAdamW(torch.optim.AdamW([weight], 0.1), [weight])
    weight.grad, before = torch.randn(3, 3), weight.detach().clone()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert not torch.equal(weight, before)
