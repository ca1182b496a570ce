import pytest
import torch
import torch.nn.functional as F

from unmask.heads.projector import Projector


def test_it_is_linear_gelu_linear(randomize) -> None:
    projector = randomize(Projector(in_features=5, hidden_features=7, out_features=3))
    first, _, second = projector.layers
    pooled = torch.randn(4, 5)
    expected = F.gelu(pooled @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(projector(pooled), expected)


def test_the_representation_has_no_activation_behind_it(randomize) -> None:
    projector = randomize(Projector(in_features=5, hidden_features=7, out_features=3, representation_features=6))
    front, first, _, second = projector.layers
    pooled = torch.randn(4, 5)
    expected = second(F.gelu(first(pooled @ front.weight.T + front.bias)))
    torch.testing.assert_close(projector(pooled), expected)


def test_weights_start_small_and_biases_at_zero() -> None:
    first, _, second = Projector(in_features=200, hidden_features=300, out_features=100).layers
    for layer in (first, second):
        assert 0.018 < layer.weight.std().item() < 0.022
        assert not layer.bias.any()


def test_ddmims_last_two_layers_start_as_torch_draws_them() -> None:
    """nn.Linear's default: uniform within 1 / sqrt(inputs), biases too; the representation starts as the backbone."""
    front, first, _, second = Projector(
        in_features=200, hidden_features=300, out_features=100, representation_features=400, weight_std=None
    ).layers
    assert 0.018 < front.weight.std().item() < 0.022
    assert not front.bias.any()
    for layer in (first, second):
        bound = layer.in_features**-0.5
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert 0.5 * bound < layer.bias.abs().max().item() <= bound


def test_its_sizes_are_those_of_the_original() -> None:
    projector = Projector(in_features=768, hidden_features=512, out_features=512, representation_features=1024)
    front, *rest = projector.layers
    assert sum(p.numel() for p in front.parameters()) == 787_456
    assert sum(p.numel() for layer in rest for p in layer.parameters()) == 787_456
