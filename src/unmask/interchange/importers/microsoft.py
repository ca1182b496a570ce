"""Names of Microsoft's Swin, which SimMIM and DDMIM build on."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from unmask.interchange.renaming import without_buffers


def microsoft_swin_to_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drops computed buffers and lets a merging open the next stage, where timm has it, not close its own."""

    def shifted(name: str) -> str:
        return re.sub(r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) + 1}.downsample.", name)

    return {shifted(name): weight for name, weight in without_buffers(weights).items()}


def sizes_in_buffers(weights: Mapping[str, Tensor], patch_size: int) -> dict[str, Any]:
    """Reads window and image size off the buffers of the first stage; empty where they were not kept."""
    sizes: dict[str, Any] = {}
    index = weights.get("layers.0.blocks.0.attn.relative_position_index")
    if index is not None:
        sizes["window_size"] = math.isqrt(index.shape[0])
    mask = weights.get("layers.0.blocks.1.attn_mask")
    if mask is not None:  # one entry for each window of the image
        sizes["image_size"] = math.isqrt(mask.shape[0]) * math.isqrt(mask.shape[1]) * patch_size
    return sizes


def simmim_heads(mask_token: Tensor | None, decoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mask token and the one layer of SimMIM's head, by the names of the `SimMIM` method."""
    heads = {f"head.project.{name}": weight for name, weight in decoder.items()}
    return heads if mask_token is None else {**heads, "mask_token": mask_token.flatten()}
