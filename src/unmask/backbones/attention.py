"""Chooses the kernel of attention."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from timm.layers import Attention
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_MATRICES_AT_A_TIME = 2**20  # bytes: about what a core keeps in its own cache
_MATRICES_KEPT = 2**23  # bytes of a batch that cost less time to keep than to compute again


def prefer_fast_attention(module: nn.Module, *, device: torch.device, is_bfloat16: bool) -> None:
    """Makes timm's attention use plain matrix products where torch's fused kernel is the slower one.

    That is on a CPU in bfloat16, where the backward of `scaled_dot_product_attention` took 432 ms and two batched
    products 46 ms (heads of 32, windows of 49 tokens, torch 2.14). Elsewhere timm's own choice stands. Where a
    ViT's attention matrices are large, it goes through a batch there in parts and keeps none of them for the backward
    pass, which computes them again: the same numbers in less memory, and in no more time, since they stay in the cache.
    """
    if device.type == "cpu" and is_bfloat16:
        for part in module.modules():
            if hasattr(part, "fused_attn"):
                setattr(part, "fused_attn", False)  # noqa: B010 (a plain flag of timm's, unknown to torch's types)
            if type(part) is Attention and _is_softmax_alone(part):
                part.forward = partial(_attend, part)


def _is_softmax_alone(attention: Any) -> bool:
    """Whether nothing but scaling and softmax lies between the projections."""
    norms = (attention.q_norm, attention.k_norm, attention.norm)
    return attention.attn_drop.p == 0 and attention.gate is None and all(type(norm) is nn.Identity for norm in norms)


def _attend(attention: Any, tokens: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Computes what timm's attention does, in parts of the batch where its matrices are large.

    They are where they take more than the cache, and more than queries, keys, values and what is attended together.
    """
    num_images, num_tokens, _ = tokens.shape
    bytes_an_image = attention.num_heads * num_tokens**2 * 2
    are_small = num_images * bytes_an_image <= _MATRICES_KEPT or num_tokens <= 4 * attention.head_dim
    if are_small or attn_mask is not None or is_causal or torch.compiler.is_compiling():
        plain: Tensor = type(attention).forward(attention, tokens, attn_mask, is_causal)
        return plain
    at_a_time = max(_MATRICES_AT_A_TIME // bytes_an_image, 1)
    qkv = attention.qkv(tokens).unflatten(2, (3, attention.num_heads, -1))
    attended: Tensor = _AttentionInParts.apply(qkv, attention.scale, at_a_time)
    projected: Tensor = attention.proj_drop(attention.proj(attended.flatten(2)))
    return projected


class _AttentionInParts(torch.autograd.Function):
    """softmax(q k^T scale) v, of `at_a_time` images after another; of the forward pass its input alone is kept.

    Each operation is the one that timm's attention has or autograd derives from it, so the numbers are the same.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Float[Tensor, "b n 3 heads d"], scale: float, at_a_time: int
    ) -> Float[Tensor, "b n heads d"]:
        ctx.save_for_backward(qkv)
        ctx.scale, ctx.at_a_time = scale, at_a_time
        attended = torch.empty_like(qkv[:, :, 0], memory_format=torch.contiguous_format)
        for part, result in zip(qkv.split(at_a_time), attended.split(at_a_time), strict=True):
            q, k, v = part.permute(2, 0, 3, 1, 4)
            result.copy_((_attention_matrix(q * scale, k) @ v).transpose(1, 2))
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "b n heads d"]) -> tuple[Tensor, None, None]:
        (qkv,) = ctx.saved_tensors
        grad_qkv = torch.empty_like(qkv)
        for part, grad_part, result in zip(*(each.split(ctx.at_a_time) for each in (qkv, grad, grad_qkv)), strict=True):
            q, k, v = part.permute(2, 0, 3, 1, 4)
            grad_q, grad_k, grad_v = result.permute(2, 0, 3, 1, 4)
            grad_attended = grad_part.transpose(1, 2).contiguous()
            q = q * ctx.scale
            matrix = _attention_matrix(q, k)
            grad_v.copy_(matrix.transpose(2, 3) @ grad_attended)
            grad_matrix = torch._softmax_backward_data(grad_attended @ v.transpose(2, 3), matrix, -1, matrix.dtype)
            grad_q.copy_(grad_matrix @ k * ctx.scale)
            grad_k.copy_(grad_matrix.transpose(2, 3) @ q)
        return grad_qkv, None, None


def _attention_matrix(q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads n d"]) -> Float[Tensor, "b heads n n"]:
    return (q @ k.transpose(2, 3)).softmax(dim=-1)
