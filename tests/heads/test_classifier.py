import pytest
import torch
import torch.nn.functional as F

from unmask.heads.classifier import BatchNormMLPClassifier


def test_batch_norm_stands_between_two_linear_layers_without_activation(randomize) -> None:
    head = randomize(BatchNormMLPClassifier(in_features=5, num_classes=3, hidden_features=8)).train()
    first, norm, hidden, _, last = head
    pooled = torch.randn(6, 5)
    representation = first(pooled)
    spread = (representation - representation.mean(dim=0)) / (representation.var(dim=0, correction=0) + 1e-5).sqrt()
    expected = last(F.gelu(hidden(spread * norm.weight + norm.bias)))
    torch.testing.assert_close(head(pooled), expected)


def test_ddmims_head_starts_as_torch_draws_it_but_for_the_representation() -> None:
    first, _, hidden, _, last = BatchNormMLPClassifier(in_features=200, num_classes=100, hidden_features=300)
    assert 0.018 < first.weight.std().item() < 0.022
    assert not first.bias.any()
    for layer in (hidden, last):
        bound = layer.in_features**-0.5
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert 0.5 * bound < layer.bias.abs().max().item() <= bound
