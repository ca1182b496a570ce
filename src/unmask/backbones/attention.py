"""Chooses the kernel of attention."""

import torch
from torch import nn


def prefer_fast_attention(module: nn.Module, *, device: torch.device, is_bfloat16: bool) -> None:
    """Makes timm's attention use plain matrix products where torch's fused kernel is the slower one.

    That is on a CPU in bfloat16, where the backward of `scaled_dot_product_attention` took 432 ms and two batched
    products 46 ms (heads of 32, windows of 49 tokens, torch 2.14). Elsewhere timm's own choice stands.
    """
    if device.type == "cpu" and is_bfloat16:
        for part in module.modules():
            if hasattr(part, "fused_attn"):
                setattr(part, "fused_attn", False)  # noqa: B010 (a plain flag of timm's, unknown to torch's types)
