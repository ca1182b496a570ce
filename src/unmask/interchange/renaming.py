"""Moves weights from one program's names to timm's."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask")

Rules = Sequence[tuple[str, str]]  # (regular expression, replacement), applied one after the other


def rename(weights: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Applies every rule to every name."""
    renamed = {}
    for name, weight in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901
        renamed[name] = weight
    return renamed


def split(weights: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Divides weights into those under a prefix, which is taken off, and the others."""
    under = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    others = {name: weight for name, weight in weights.items() if not name.startswith(prefix)}
    return under, others


def fuse_qkv(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joins `attn.query`, `attn.key`, `attn.value` into timm's `attn.qkv`, in this order, where all three are there."""
    fused = dict(weights)
    for name in weights:
        third = re.fullmatch(r"(.*\.attn\.)query\.(weight|bias)", name)
        if third:
            parts = [f"{third[1]}{part}.{third[2]}" for part in ("query", "key", "value")]
            if all(part in weights for part in parts):
                fused[f"{third[1]}qkv.{third[2]}"] = torch.cat([fused.pop(part) for part in parts])
    return fused


def computed_buffers(weights: Mapping[str, Tensor]) -> list[str]:
    """Names what a network computes from its sizes: indices, offsets and masks of windows."""
    return [name for name in weights if name.endswith(_COMPUTED)]


def without_buffers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drops what a network computes from its sizes."""
    return {name: weight for name, weight in weights.items() if not name.endswith(_COMPUTED)}
