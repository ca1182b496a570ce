"""Changes weights that belong to a grid of patches or to a window into those of another."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

_RATIO_TOLERANCE = 1e-6
_RATIO_RANGE = (1.01, 1.5)


def resize_positions(
    positions: Float[Tensor, "1 n d"], grid: tuple[int, int], *, num_prefix_tokens: int
) -> Float[Tensor, "1 m d"]:
    """Interpolates the positions of a square grid of patches to another grid, bicubically, as MAE's fine-tuning does.

    Raises:
        ValueError: The positions are not those of a square.
    """
    prefix, patches = positions[:, :num_prefix_tokens], positions[:, num_prefix_tokens:]
    side = math.isqrt(patches.shape[1])
    if side * side != patches.shape[1]:
        raise ValueError(
            f"{patches.shape[1]} positions of patches do not form a square and cannot be resized to another grid"
        )
    if (side, side) == grid:
        return positions
    as_image = patches.float().transpose(1, 2).unflatten(2, (side, side))
    resized = F.interpolate(as_image, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([prefix, resized.flatten(2).transpose(1, 2).to(prefix.dtype)], dim=1)


def resize_bias_table(
    table: Float[Tensor, "n heads"], window: tuple[int, int], *, num_extra_rows: int = 0
) -> Float[Tensor, "m heads"]:
    """Interpolates a table of relative positions of a square window to another window, as SimMIM's fine-tuning does.

    The offsets of the source are spread in geometric progression so that the farthest lands on the farthest of the
    target, near ones staying about one apart; between them cubic splines are read at whole offsets.

    Args:
        table: Rows run over vertical, then horizontal offsets.
        window: Tokens along the target's sides.
        num_extra_rows: Rows at the end that belong to the class token and are kept (BEiT: 3).

    Raises:
        ValueError: The rows are not those of a square window.
    """
    num_offsets = table.shape[0] - num_extra_rows
    side = math.isqrt(max(0, num_offsets))
    if side * side != num_offsets or side % 2 == 0:
        raise ValueError(
            f"a table of {table.shape[0]} relative positions is not of a square window and cannot be resized"
        )
    target = 2 * window[0] - 1, 2 * window[1] - 1
    if target == (side, side):
        return table
    offsets, extra = table[:num_offsets], table[num_offsets:]
    if side == 1:
        return torch.cat([offsets.expand(target[0] * target[1], -1), extra])
    rows, cols = (_spread(side, length) for length in target)
    wanted = [np.arange(length) - length // 2 for length in target]
    degree = min(3, side - 1)
    heads = [
        RectBivariateSpline(rows, cols, head.double().cpu().numpy(), kx=degree, ky=degree)(*wanted)
        for head in offsets.T.unflatten(1, (side, side))
    ]
    resized = torch.from_numpy(np.stack(heads)).flatten(1).T
    return torch.cat([resized.to(table), extra])


def reorder_unfolded_merging(weight: Float[Tensor, "*out c"]) -> Float[Tensor, "*out c"]:
    """Reorders the last axis of a patch merging from `Unfold`'s order to Swin's.

    mmpretrain gathers the four tokens channel by channel, each in the order (row, column) 00, 01, 10, 11; Microsoft and
    timm token by token, in the order 00, 10, 01, 11.
    """
    by_channel = weight.unflatten(-1, (-1, 4))
    reordered: Tensor = by_channel.transpose(-1, -2)[..., [0, 2, 1, 3], :].flatten(-2)
    return reordered


def _spread(side: int, target: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Places the offsets of a window, their number being `side`, on the axis of a window of `target` offsets."""
    count, reach = side // 2, target // 2
    low, high = _RATIO_RANGE
    while high - low > _RATIO_TOLERANCE:
        ratio = (low + high) / 2
        if (1 - ratio**count) / (1 - ratio) > reach:
            high = ratio
        else:
            low = ratio
    outward = np.cumsum(ratio ** np.arange(count))
    return np.concatenate([-outward[::-1], [0.0], outward])
