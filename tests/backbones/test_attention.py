from typing import Any

import pytest
import torch
from timm.layers import Attention
from torch import Tensor, nn

from unmask.backbones import attention as kernels
from unmask.backbones.attention import prefer_fast_attention
from unmask.callbacks.step_options import compute_again


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


NUM_IMAGES, NUM_TOKENS, WIDTH, NUM_HEADS = 5, 17, 12, 3
CPU = torch.device("cpu")


@pytest.fixture
def two_at_a_time(monkeypatch) -> None:
    """Matrices of two images fit, so that five images go through in three parts."""
    monkeypatch.setattr(kernels, "_MATRICES_AT_A_TIME", 2 * NUM_HEADS * NUM_TOKENS**2 * 2)
    monkeypatch.setattr(kernels, "_MATRICES_KEPT", 2 * NUM_HEADS * NUM_TOKENS**2 * 2)


def make_attention(*, is_lean: bool = False, **settings: Any) -> Attention:
    torch.manual_seed(0)
    made = Attention(WIDTH, NUM_HEADS, qkv_bias=True, **settings)
    made.fused_attn = False
    if is_lean:
        prefer_fast_attention(made, device=CPU, is_bfloat16=True)
    return made


def outcome(attention: nn.Module, tokens: Tensor) -> list[Tensor]:
    """What comes out of it in bfloat16, and all gradients."""
    tokens = tokens.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        attended = attention(tokens)
    (attended.float() * torch.linspace(-1, 1, WIDTH)).square().sum().backward()
    return [attended, tokens.grad, *(parameter.grad for parameter in attention.parameters())]


@pytest.mark.parametrize("is_checkpointed", [False, True], ids=["plain", "checkpointed"])
def test_attention_in_parts_is_timms_bit_for_bit(two_at_a_time, is_checkpointed: bool) -> None:
    lean, tokens = make_attention(is_lean=True), torch.randn(NUM_IMAGES, NUM_TOKENS, WIDTH)
    if is_checkpointed:
        compute_again(lean)
    for computed, expected in zip(outcome(lean, tokens), outcome(make_attention(), tokens), strict=True):
        assert torch.equal(computed, expected)


@pytest.mark.parametrize("at_a_time", [1, 2, 5])
def test_gradients_of_attention_in_parts_are_those_of_differences(at_a_time: int) -> None:
    qkv = torch.randn(3, 4, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: kernels._AttentionInParts.apply(given, 0.7, at_a_time), qkv)


def test_no_attention_matrix_is_kept_for_the_backward_pass(two_at_a_time) -> None:
    def kept(attention: nn.Module, num_images: int) -> list[torch.Size]:
        shapes: list[torch.Size] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: (shapes.append(tensor.shape), tensor)[1], lambda tensor: tensor
        ):
            attention(torch.randn(num_images, NUM_TOKENS, WIDTH))
        return [shape for shape in shapes if shape[-2:] == (NUM_TOKENS, NUM_TOKENS)]

    assert kept(make_attention(), NUM_IMAGES)
    assert kept(make_attention(is_lean=True), NUM_IMAGES) == []
    assert kept(make_attention(is_lean=True), 2)  # few cost more to compute again than to keep


def test_compiled_attention_computes_the_same(two_at_a_time) -> None:
    lean, tokens = make_attention(is_lean=True), torch.randn(NUM_IMAGES, NUM_TOKENS, WIDTH)
    compiled = torch.compile(lean, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens), make_attention()(tokens))


@pytest.mark.parametrize(
    "settings",
    [{"qk_norm": True, "norm_layer": nn.LayerNorm}, {"scale_norm": True, "norm_layer": nn.LayerNorm}, {"gated": True}],
    ids=["norm of queries", "norm of what is attended", "gate"],
)
def test_attention_with_more_than_a_softmax_is_left_to_timm(two_at_a_time, settings: dict[str, Any]) -> None:
    lean, tokens = make_attention(is_lean=True, **settings), torch.randn(NUM_IMAGES, NUM_TOKENS, WIDTH)
    for computed, expected in zip(outcome(lean, tokens), outcome(make_attention(**settings), tokens), strict=True):
        assert torch.equal(computed, expected)
