"""Stochastic depth of networks that are built already."""

from collections.abc import Iterable

from timm.layers import DropPath
from torch import nn


def set_drop_path(blocks: Iterable[nn.Module], rate: float) -> None:
    """Drops whole residual branches with a probability that rises linearly from 0 to `rate` (arXiv:1603.09382).

    Args:
        blocks: timm's transformer blocks, shallow to deep.
        rate: Probability at the last block, in [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"drop_path_rate must lie in [0, 1), got {rate}")
    ordered = list(blocks)
    for depth, block in enumerate(ordered):
        share = rate * depth / max(1, len(ordered) - 1)
        for branch in ("drop_path1", "drop_path2"):
            setattr(block, branch, DropPath(share) if share else nn.Identity())
