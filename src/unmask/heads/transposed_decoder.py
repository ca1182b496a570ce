"""The decoder of FlyEgle's MAE."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unmask.heads.initialize import initialize_xavier
from unmask.heads.mae_decoder import MAEDecoder
from unmask.patches import PatchSize, patch_sides, patchify
from unmask.positions import sinusoid_positions

_GRAY = 127 / 255  # of the image that stands for masked patches


class TransposedConvDecoder(MAEDecoder):
    """MAE's decoder with a transposed convolution as its last layer (github.com/FlyEgle/MAE-pytorch).

    Tokens become as wide as a patch has numbers, are normalized each by itself, and a transposed convolution turns
    each into the pixels of its patch. Positions are 1-D sinusoids over the class token and the patches. There is no
    norm behind the blocks. The mask token is not learned by itself: a gray patch passes a convolution. The original
    reads that convolution's map across its channels, so that of `embed_dim` numbers only as many differ as the number
    of patches fits into them, three in its own sizes; this is kept.

    Differs: parameters of the original that nothing reads (a second patch embedding, a class token, two norms) are left
    out.

    Args:
        pixel_mean, pixel_std: Statistics of each channel, in 0..1, the images are normalized with.
        shared: See `MAEDecoder`.
    """

    gray: Tensor

    def __init__(self, *, pixel_mean: Sequence[float], pixel_std: Sequence[float], **shared: Any) -> None:
        super().__init__(**shared)
        del self.mask_token
        width, patch_size, channels = self.embed.out_features, shared["patch_size"], len(pixel_mean)
        sides = patch_sides(patch_size)
        numbers = channels * math.prod(sides)
        self.norm = nn.Identity()
        positions = sinusoid_positions(width, self.pos_embed.shape[1])
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.mask_embed = nn.Conv2d(channels, width, kernel_size=sides)
        self.predict = nn.Sequential(
            nn.Linear(width, numbers),
            nn.LayerNorm(numbers, eps=1e-12),
            _TokensToPatches(numbers, channels, patch_size),
        )
        statistics = zip(pixel_mean, pixel_std, strict=True)
        gray = torch.tensor([(_GRAY - mean) / std for mean, std in statistics])
        self.register_buffer("gray", gray[:, None, None].repeat(1, *sides), persistent=False)
        initialize_xavier(self)

    def mask_token_for(self, num_patches: int) -> Float[Tensor, "1 1 d"]:
        embedded = F.conv2d(self.gray[None], self.mask_embed.weight, self.mask_embed.bias).flatten()
        read_across: Tensor = embedded.repeat_interleave(num_patches)[: len(embedded)]
        return read_across[None, None]


class _TokensToPatches(nn.Module):
    """Turns each token into the pixels of a patch, channel fastest."""

    def __init__(self, width: int, channels: int, patch_size: PatchSize) -> None:
        super().__init__()
        self.patch_size, sides = patch_size, patch_sides(patch_size)
        self.convolution = nn.ConvTranspose2d(width, channels, kernel_size=sides, stride=sides)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n pixels"]:
        strip: Tensor = self.convolution(tokens.transpose(1, 2).unsqueeze(2))  # one row of patches
        return patchify(strip, self.patch_size)
