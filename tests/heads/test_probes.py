"""Heads of a frozen backbone against their formulas."""

import pytest
import torch
import torch.nn.functional as F

from unmask.heads.classifier import BatchNormMLPClassifier
from unmask.heads.probes import AttentiveClassifier, BatchNormLinearClassifier, MLPClassifier


def standardized(pooled, eps):
    return (pooled - pooled.mean(dim=0)) / (pooled.var(dim=0, correction=0) + eps).sqrt()


def test_maes_probe_is_a_plain_batch_norm_and_a_linear_layer(randomize) -> None:
    head = randomize(BatchNormLinearClassifier(in_features=5, num_classes=3)).train()
    pooled = 1e-3 * torch.randn(6, 5)  # small, so that epsilon counts
    expected = standardized(pooled, 1e-6) @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(pooled), expected)
    assert [name for name, _ in head.named_parameters()] == ["linear.weight", "linear.bias"]


def test_maes_probe_starts_from_its_deviation() -> None:
    head = BatchNormLinearClassifier(in_features=400, num_classes=100)
    assert 0.0095 < head.linear.weight.std().item() < 0.0105
    assert not head.linear.bias.any()


def test_the_mlp_is_batch_norm_linear_gelu_linear(randomize) -> None:
    head = randomize(MLPClassifier(in_features=5, num_classes=3, hidden_features=8)).train()
    norm, first, _, last = head
    pooled = torch.randn(6, 5)
    hidden = first(standardized(pooled, 1e-5) * norm.weight + norm.bias)
    torch.testing.assert_close(head(pooled), last(F.gelu(hidden)))


def test_the_attentive_head_weighs_patches_by_one_query(randomize) -> None:
    head = randomize(AttentiveClassifier(in_features=6, num_classes=3, num_heads=2))
    patches = torch.randn(4, 5, 6)
    attention, normed = head.attention, F.layer_norm(patches, (6,), head.norm.weight, head.norm.bias)
    query = attention.q(attention.latent[0, 0])
    keys, values = attention.kv(normed).chunk(2, dim=2)
    pooled = torch.zeros(4, 6)
    for image in range(4):
        for part in (slice(0, 3), slice(3, 6)):
            scores = torch.stack([query[part] @ key / 3**0.5 for key in keys[image, :, part]])
            pooled[image, part] = scores.softmax(dim=0) @ values[image, :, part]
    torch.testing.assert_close(head(patches), head.linear(pooled))
    assert not torch.allclose(head(patches), head(patches.mean(dim=1, keepdim=True)), atol=1e-3)


@pytest.mark.parametrize(("width", "num_heads"), [(192, 3), (1280, 20), (24, 1)])
def test_the_attentive_head_takes_a_head_for_64_features(width, num_heads) -> None:
    assert AttentiveClassifier(in_features=width, num_classes=2).attention.num_heads == num_heads


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_heads=5 does not divide the 24 features .* 1, 2, 3, 4, 6, 8, 12, 24"):
        AttentiveClassifier(in_features=24, num_classes=2, num_heads=5)


def test_the_attentive_head_refuses_pooled_features() -> None:
    with pytest.raises(ValueError, match=r"head=attentive reads one vector a patch, .* use it with eval=frozen"):
        AttentiveClassifier(in_features=6, num_classes=3)(torch.randn(4, 6))


@pytest.mark.parametrize("kind", [BatchNormLinearClassifier, MLPClassifier, BatchNormMLPClassifier])
def test_a_single_image_is_refused_in_training_alone(kind) -> None:
    head = kind(in_features=4, num_classes=2)
    with pytest.raises(ValueError, match="set global_batch_size to 2 images or more for each device"):
        head(torch.randn(1, 4))
    assert head.eval()(torch.randn(1, 4)).isfinite().all()
