from typing import Any

import pytest
import torch
from torch import nn

from unmask.backbones.attention import prefer_fast_attention


@pytest.fixture(params=["vit", "swin"])
def backbone(request: pytest.FixtureRequest, make_vit: Any, make_swin: Any, randomize: Any) -> nn.Module:
    """A backbone on the fused kernel, which timm gives to Swin on request alone."""
    module = randomize({"vit": make_vit, "swin": make_swin}[request.param]())
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = True
    return module


def fused(module: nn.Module) -> list[bool]:
    return [part.fused_attn for part in module.modules() if hasattr(part, "fused_attn")]


@pytest.mark.parametrize(
    ("device", "is_bfloat16", "stays_fused"),
    [("cpu", True, False), ("cpu", False, True), ("cuda", True, True), ("cuda", False, True), ("mps", True, True)],
)
def test_only_a_cpu_in_bfloat16_leaves_the_fused_kernel(backbone, device, is_bfloat16, stays_fused) -> None:
    assert fused(backbone) == [True] * 4
    prefer_fast_attention(backbone, device=torch.device(device), is_bfloat16=is_bfloat16)
    assert fused(backbone) == [stays_fused] * 4


def test_features_stay_what_they_were(backbone) -> None:
    images = torch.randn(2, 3, *backbone.image_size)
    expected = backbone.forward_features(images)
    prefer_fast_attention(backbone, device=torch.device("cpu"), is_bfloat16=True)
    for computed, before in zip(backbone.forward_features(images), expected, strict=True):
        torch.testing.assert_close(computed, before, rtol=1e-4, atol=1e-5)


def test_the_fused_kernel_is_really_left_alone(backbone, monkeypatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the fused kernel was called")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refuse)
    images = torch.randn(1, 3, *backbone.image_size)
    with pytest.raises(AssertionError, match="fused kernel"):
        backbone.forward_pooled(images)
    prefer_fast_attention(backbone, device=torch.device("cpu"), is_bfloat16=True)
    assert backbone.forward_pooled(images).isfinite().all()
