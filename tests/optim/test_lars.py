"""Steps of LARS against its equation, tensor by tensor."""

import pytest
import torch
from torch import Tensor, nn

from unmask.optim.lars import LARS


def mae_step(weight: Tensor, gradient: Tensor, memory: Tensor, *, lr: float) -> tuple[Tensor, Tensor]:
    """One step of the LARS of MAE's linear probe, without decay."""
    ratio = 1.0
    if weight.ndim > 1 and weight.norm() > 0 and gradient.norm() > 0:
        ratio = 0.001 * weight.norm().item() / gradient.norm().item()
    memory = 0.9 * memory + ratio * gradient
    return weight - lr * memory, memory


@pytest.mark.parametrize("as_group", [False, True], ids=["tensors", "group"])
def test_three_steps_follow_the_equation(as_group) -> None:
    parameters = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in [(4, 3), (4,), (2, 2, 2)]]
    parameters.append(nn.Parameter(torch.zeros(3, 2, dtype=torch.float64)))  # no norm yet: a plain first step
    expected = [parameter.detach().clone() for parameter in parameters]
    memories = [torch.zeros_like(parameter) for parameter in parameters]
    optimizer = LARS([{"params": parameters, "lr": 6.4}] if as_group else parameters, lr=6.4)
    for _ in range(3):
        for number, parameter in enumerate(parameters):
            parameter.grad = torch.randn_like(parameter)
            expected[number], memories[number] = mae_step(expected[number], parameter.grad, memories[number], lr=6.4)
        optimizer.step()
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-12, atol=0.0)


def test_a_tensor_without_gradient_does_not_become_nan() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.zeros(2, 2)
    LARS([weight], lr=1.0).step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))


def test_only_tensors_of_two_axes_or_more_decay() -> None:
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    weight.grad, bias.grad = torch.zeros(2, 2), torch.zeros(2)
    LARS([weight, bias], lr=1.0, weight_decay=0.1).step()
    assert torch.equal(bias.detach(), torch.ones(2))
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), 0.9))  # q is 1 where the gradient is 0
