"""Fixed position embeddings, shared by encoder and decoder."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def sinusoid_positions(dim: int, count: int) -> Float[Tensor, "1 {count} {dim}"]:
    """Builds 1-D sinusoidal positions (arXiv:1706.03762, sec. 3.5): sine and cosine of each frequency side by side.

    Entry 2k of position p is `sin(p * 10000**(-2k/dim))`, entry 2k + 1 its cosine. Computed in float64.

    Raises:
        ValueError: `dim` is odd.
    """
    if dim % 2:
        raise ValueError(f"sinusoidal positions need an even width, got {dim}")
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(count, dtype=torch.float64)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).unsqueeze(0).float()


def sincos_positions(dim: int, grid: tuple[int, int], *, num_prefix_tokens: int = 1) -> Float[Tensor, "1 n {dim}"]:
    """Builds MAE's 2-D sine-cosine positions; prefix tokens get the zero vector.

    The first half of a vector encodes the column, the second the row; each half is the sines, then the cosines, of
    `position * 10000**(-4k/dim)` for k = 0 .. dim/4 - 1. Computed in float64.

    Raises:
        ValueError: `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"2-D sine-cosine positions need a width divisible by 4, got {dim}")
    rows, cols = grid
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    row_angles = torch.arange(rows, dtype=torch.float64)[:, None] * frequencies
    col_angles = torch.arange(cols, dtype=torch.float64)[:, None] * frequencies
    row_codes = torch.cat([row_angles.sin(), row_angles.cos()], dim=1)[:, None].expand(rows, cols, -1)
    col_codes = torch.cat([col_angles.sin(), col_angles.cos()], dim=1)[None].expand(rows, cols, -1)
    patches = torch.cat([col_codes, row_codes], dim=2).flatten(0, 1)
    return torch.cat([patches.new_zeros(num_prefix_tokens, dim), patches]).unsqueeze(0).float()


def resample_into_box(
    features: Float[Tensor, "b h w c"], box: Float[Tensor, "b 4"], other_box: Float[Tensor, "b 4"]
) -> tuple[Float[Tensor, "b h w c"], Bool[Tensor, "b h w"]]:
    """Reads a feature map of one crop at the positions of another crop of the same image, bilinearly.

    Args:
        features: Of the crop at `box`.
        box, other_box: As `View.box` in `types`.

    Returns:
        The map as the other crop's positions lie in it, and which of these lie inside the first crop at all; the
        others hold nothing to be used.
    """
    height, width = features.shape[1:3]
    own = [(torch.arange(side, device=features.device) + 0.5) / side for side in (height, width)]
    y, x = (
        (other_box[:, edge, None] + own[edge] * other_box[:, edge + 2, None] - box[:, edge, None])
        / box[:, edge + 2, None]
        for edge in (0, 1)
    )
    inside = ((y >= 0) & (y <= 1))[:, :, None] & ((x >= 0) & (x <= 1))[:, None, :]
    points = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=3)
    sampled = F.grid_sample(
        features.permute(0, 3, 1, 2), 2 * points.to(features.dtype) - 1, padding_mode="border", align_corners=False
    )
    return sampled.permute(0, 2, 3, 1), inside
