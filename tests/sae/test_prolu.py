"""ProLU's straight-through gradients: by hand, and from the step's alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jumpahead.sae.architectures.prolu import ProLUFunction
from jumpahead.sae.gradients import StepInputs
from tests.engine.cases import CASES, activations, random_state

# m > 0 and m + b > 0 at the last two only
M = torch.tensor([[-0.4], [0.3], [0.6], [2.0]], dtype=torch.float64)
B = torch.tensor([-0.5], dtype=torch.float64)
GRAD = torch.tensor([[3.0], [0.7], [-0.2], [5.0]], dtype=torch.float64)


class Step(torch.autograd.Function):
    """H(z), with the derivative of ReLU."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z > 0)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * grad_outputs[0]


def test_by_hand():
    m, b = M.clone().requires_grad_(), B.clone().requires_grad_()
    f = ProLUFunction.apply(m, b)
    assert f.flatten().tolist() == [0, 0, 0.6, 2.0]
    d_m, d_b = torch.autograd.grad(f, [m, b], GRAD)
    assert torch.allclose(d_m.flatten(), torch.tensor([0, 0, 1.6 * -0.2, 3.0 * 5.0], dtype=torch.float64))
    assert torch.allclose(d_b, torch.tensor([0.6 * -0.2 + 2.0 * 5.0], dtype=torch.float64))


def test_a_positive_bias_is_a_relu():
    f = ProLUFunction.apply(M, -B)
    assert torch.equal(f, M.relu())


def test_the_loss_has_the_gradient_of_a_relu_times_a_straight_through_step():
    state, x = (
        random_state(next(case for case in CASES if case.architecture == "prolu"), 6, 20, seed=3),
        activations(40, 6, 4),
    )
    leaves = {name: state.params[name].clone().requires_grad_() for name in ("W_enc", "W_dec", "b_dec", "b_gate")}
    params, inputs = state.params | leaves, StepInputs(0.07)
    m = (x - params["b_dec"]) @ params["W_enc"].T + params["b_enc"]
    f = m.relu() * Step.apply(m + params["b_gate"])
    error = (x - f @ params["W_dec"] - params["b_dec"]).square().sum(1)
    expected = (error + 0.07 * (f * params["W_dec"].norm(dim=1)).sum(1)).mean()
    loss = state.arch.loss(params, x, inputs)
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(
        *(torch.autograd.grad(one, list(leaves.values())) for one in (loss, expected)), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
        assert wanted.abs().max() > 1e-3
