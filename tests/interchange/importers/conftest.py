"""Microsoft's names, which two programs share."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

Weights = dict[str, Tensor]


@pytest.fixture
def microsoft_weights() -> Callable[[Any], Weights]:
    """Names a Swin of timm as Microsoft does: a merging closes its stage, and buffers of windows are stored."""

    def rename(swin: Any) -> Weights:
        weights = {}
        for name, weight in swin.state_dict().items():
            if not name.startswith("head."):
                merging = re.sub(r"^layers\.(\d+)\.down", lambda found: f"layers.{int(found[1]) - 1}.down", name)
                weights[merging] = weight
        for stage_number, stage in enumerate(swin.layers):
            for block_number, block in enumerate(stage.blocks):
                place = f"layers.{stage_number}.blocks.{block_number}"
                tokens = math.prod(block.window_size)
                weights[f"{place}.attn.relative_position_index"] = torch.zeros(tokens, tokens, dtype=torch.int64)
                if any(block.shift_size):
                    num_windows = math.prod(block.input_resolution) // tokens
                    weights[f"{place}.attn_mask"] = torch.zeros(num_windows, tokens, tokens)
        return weights

    return rename


@pytest.fixture
def prefixed() -> Callable[[str, Weights], Weights]:
    return lambda prefix, weights: {f"{prefix}{name}": weight for name, weight in weights.items()}
