"""Blocks of Swin and Swin V2 that also take a second, smaller grid than the one they were built for."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention, window_partition
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm.models.swin_transformer_v2 import WindowAttention as WindowAttentionV2
from torch import Tensor, nn

_UNRELATED = -100.0  # added to the score of a pair, as timm does
_LEAST_NORM = 1e-12  # of a query or key, which in padding may be 0; torch's own, which float16 rounds to 0
_LARGEST_LOG_SCALE = math.log(100.0)  # of Swin V2's cosines (arXiv:2111.09883, sec. 3.2)


class SwinAttention(WindowAttention):  # type: ignore[misc]  # timm is not annotated
    """timm's attention within windows, which also takes windows that are a part of its own."""

    def attend_in_part(
        self, windows: Float[Tensor, "b n c"], places: Int[Tensor, " n"], mask: Float[Tensor, "w n n"] | None
    ) -> Float[Tensor, "b n c"]:
        """Attends in windows that are smaller than this attention's own.

        Args:
            windows: Tokens, row-major within a window; the windows of an image lie next to each other.
            places: Where each token of a window lies in a whole one, row-major; relative positions are read off it.
            mask: Added to the scores of each of an image's w windows.
        """
        query, key, value = self.qkv(windows).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self._get_rel_pos_bias()[..., places, :][..., places]
        return _mix_values(self, (query * self.scale) @ key.transpose(-2, -1) + bias, mask, value)


class SwinV2Attention(WindowAttentionV2):  # type: ignore[misc]
    """timm's attention of Swin V2 within windows, which also takes windows that are a part of its own."""

    def attend_in_part(
        self, windows: Float[Tensor, "b n c"], places: Int[Tensor, " n"], mask: Float[Tensor, "w n n"] | None
    ) -> Float[Tensor, "b n c"]:
        """Attends as `SwinAttention.attend_in_part` does, by cosines and continuous positions."""
        qkv_bias = None if self.q_bias is None else torch.cat((self.q_bias, self.k_bias, self.v_bias))
        qkv = F.linear(windows, self.qkv.weight, qkv_bias)
        query, key, value = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        eps = max(_LEAST_NORM, torch.finfo(windows.dtype).tiny)
        cosines = F.normalize(query, dim=-1, eps=eps) @ F.normalize(key, dim=-1, eps=eps).transpose(-2, -1)
        scores = cosines * self.logit_scale.clamp(max=_LARGEST_LOG_SCALE).exp()
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, 2)
        bias = 16 * torch.sigmoid(table[self.relative_position_index[places][:, places]]).permute(2, 0, 1)
        return _mix_values(self, scores + bias, mask, value)


class _SecondGrid(nn.Module):
    """A block's second grid of tokens; which grid a map is of, its size says.

    A window there is no larger than the grid, a grid of one window is not shifted, as timm does for the first, and a
    grid that is not whole windows is padded with tokens that no other one attends to.
    """

    input_resolution: tuple[int, int]
    window_size: tuple[int, int]
    target_shift_size: tuple[int, int]
    always_partition: bool
    attn: Any
    second_mask: Tensor | None

    def set_second_grid(self, grid: tuple[int, int]) -> None:
        """Prepares for maps of (rows, cols) tokens beside those the block was built for."""
        window, shift = self.window_size, self.target_shift_size
        if not self.always_partition:
            window = (min(grid[0], window[0]), min(grid[1], window[1]))
            shift = (shift[0] if grid[0] > window[0] else 0, shift[1] if grid[1] > window[1] else 0)
        self.second_window, self.second_shift = window, shift
        self.second_padding = (-grid[0] % window[0], -grid[1] % window[1])
        rows, cols = (torch.arange(side) for side in window)
        self.register_buffer("second_places", (rows[:, None] * self.window_size[1] + cols).flatten(), persistent=False)
        self.register_buffer("second_mask", _mask_of_windows(grid, window, shift), persistent=False)

    def _attn(self, tokens: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        _, rows, cols, channels = tokens.shape
        if (rows, cols) == tuple(self.input_resolution):
            attended: Tensor = super()._attn(tokens)  # type: ignore[misc]  # timm's block
            return attended
        down, right = self.second_shift
        is_shifted = any(self.second_shift)
        if any(self.second_padding):
            below, beside = self.second_padding
            tokens = F.pad(tokens, (0, 0, 0, beside, 0, below))
        if is_shifted:
            tokens = tokens.roll((-down, -right), dims=(1, 2))
        windows = window_partition(tokens, self.second_window).flatten(1, 2)
        windows = self.attn.attend_in_part(windows, self.second_places, self.second_mask)
        height, width = self.second_window
        windows = windows.view(len(tokens), -1, tokens.shape[2] // width, height, width, channels)
        attended = windows.transpose(2, 3).reshape(tokens.shape)
        if is_shifted:
            attended = attended.roll((down, right), dims=(1, 2))
        return attended[:, :rows, :cols]


class SwinBlock(_SecondGrid, SwinTransformerBlock):  # type: ignore[misc]
    """timm's block of Swin, which takes a second grid."""


class SwinV2Block(_SecondGrid, SwinTransformerV2Block):  # type: ignore[misc]
    """timm's block of Swin V2, which takes a second grid."""


def take_second_grid(block: Any, grid: tuple[int, int]) -> None:
    """Makes a block of timm's Swin or Swin V2 also take maps of (rows, cols) tokens; its weights stay."""
    # timm's networks choose the class of their blocks themselves; exchanged afterwards, it leaves weights, their names
    # and what was drawn from the generators as they are.
    of_v2 = isinstance(block, SwinTransformerV2Block)
    block.__class__ = SwinV2Block if of_v2 else SwinBlock
    block.attn.__class__ = SwinV2Attention if of_v2 else SwinAttention
    block.set_second_grid(grid)


def _mix_values(
    attention: Any, scores: Float[Tensor, "b h n n"], mask: Float[Tensor, "w n n"] | None, value: Tensor
) -> Float[Tensor, "b n c"]:
    """Averages the values by the softmax of the scores and projects what comes out."""
    if mask is not None:
        scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
    weights = attention.attn_drop(scores.softmax(dim=-1))
    mixed: Tensor = attention.proj_drop(attention.proj((weights @ value).transpose(1, 2).flatten(2)))
    return mixed


def _mask_of_windows(
    grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> Float[Tensor, "w n n"] | None:
    """What keeps apart tokens that a shift or padding has brought into one window; None where there are none."""
    if not any(shift) and not any(-side % of for side, of in zip(grid, window, strict=True)):
        return None
    by_axis = []
    for side, window_side, by in zip(grid, window, shift, strict=True):
        region = torch.zeros(side + -side % window_side)
        region[:by], region[side:] = 1, 2  # what goes around to the other side, and padding
        by_axis.append(region.roll(-by))
    regions = 3 * by_axis[0][:, None] + by_axis[1]
    of_tokens = window_partition(regions[None, :, :, None], window).flatten(1)
    is_apart: Tensor = of_tokens[:, :, None] != of_tokens[:, None]
    return _UNRELATED * is_apart.float()
