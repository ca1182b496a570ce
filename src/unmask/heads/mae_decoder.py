"""MAE's transformer decoder."""

import math
from functools import partial

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from unmask.heads.initialize import initialize_xavier
from unmask.patches import PatchSize, patch_sides
from unmask.positions import sincos_positions

_WIDTH_STEP, _LARGEST_WIDTH = 64, 512  # Table 1b
_CHANNELS_A_BLOCK, _LARGEST_DEPTH = 48, 8  # of the encoder; Table 1a
_CHANNELS_A_HEAD = 32  # MAE's code: 512 in 16 heads


class DecoderBlock(Block):  # type: ignore[misc]  # timm is not annotated
    """timm's block, which can leave out the tokens that are read no more behind it."""

    def forward(self, tokens: Tensor, kept: Tensor | None = None) -> Tensor:
        """Lets all tokens attend to each other, and goes on with those `kept` alone, in that order; None is all."""
        if kept is None:
            every: Tensor = super().forward(tokens)
            return every
        images = torch.arange(len(tokens), device=tokens.device)[:, None]  # what checks types ends a compiled block
        tokens = (tokens + self.attn(self.norm1(tokens)))[images, kept]
        read: Tensor = tokens + self.mlp(self.norm2(tokens))
        return read


class MAEDecoder(nn.Module):
    """Predicts the pixels of every patch from the encoded visible ones (MAE sec. 3).

    Behind the backbones of the paper it is 512 wide and 8 blocks deep (Table 1), behind smaller ones smaller.

    Args:
        encoder_dim: Width of the encoder's tokens.
        num_prefix_tokens: Tokens in front of the encoder's patches; they are decoded too and then dropped.
        grid: Patches of an image, (rows, cols).
        patch_size: Pixels; a prediction holds one number for each of a patch and channel, channel fastest.
        image_channels: Of the images.
        embed_dim: The decoder's own width. None takes two thirds of the encoder's, in steps of 64, between 64 and
            512: the paper's 512 from ViT-B on, below it ours.
        depth: Blocks. None takes one for each 48 channels of the encoder, at most 8.
        num_heads: Of its attention. None takes heads of 32 channels, or a few more where these do not fit the width.

    Raises:
        ValueError: The width does not split into the heads, or is not a multiple of 4 (positions).
    """

    def __init__(
        self,
        *,
        encoder_dim: int,
        num_prefix_tokens: int,
        grid: tuple[int, int],
        patch_size: PatchSize,
        image_channels: int = 3,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
    ) -> None:
        super().__init__()
        embed_dim = _width_behind(encoder_dim) if embed_dim is None else embed_dim
        depth = min(max(encoder_dim // _CHANNELS_A_BLOCK, 1), _LARGEST_DEPTH) if depth is None else depth
        num_heads = _num_heads_of(embed_dim) if num_heads is None else num_heads
        if embed_dim % num_heads:
            raise ValueError(f"decoder embed_dim {embed_dim} does not split into num_heads {num_heads}")
        norm_layer = partial(nn.LayerNorm, eps=1e-6)
        self.embed = nn.Linear(encoder_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        positions = sincos_positions(embed_dim, grid, num_prefix_tokens=num_prefix_tokens)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)  # stored in checkpoints, as upstream
        self.blocks = nn.Sequential(
            *(DecoderBlock(embed_dim, num_heads, qkv_bias=True, norm_layer=norm_layer) for _ in range(depth))
        )
        self.norm: nn.Module = norm_layer(embed_dim)
        self.predict: nn.Module = nn.Linear(embed_dim, image_channels * math.prod(patch_sides(patch_size)))
        initialize_xavier(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        encoded: Float[Tensor, "b prefix_plus_k d"],
        visible: Int[Tensor, "b k"],
        predicted: Int[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b m pixels"]:
        """Puts mask tokens in the masked places, decodes, and predicts patches.

        Args:
            encoded: The class token, then the visible patches in the order of `visible`.
            visible: Their row-major indices.
            predicted: Row-major indices of the patches that are predicted, in that order; None is all of them. What
                serves the others alone is not computed.
        """
        tokens = self.embed(encoded)
        num_prefix = tokens.shape[1] - visible.shape[1]
        num_patches = self.pos_embed.shape[1] - num_prefix
        patches = self.mask_token_for(num_patches).to(tokens.dtype).expand(len(tokens), num_patches, -1)
        patches = patches.scatter(1, visible[..., None].expand(-1, -1, tokens.shape[2]), tokens[:, num_prefix:])
        tokens = torch.cat([tokens[:, :num_prefix], patches], dim=1) + self.pos_embed
        *early, last = self.blocks
        for block in early:
            tokens = block(tokens)
        tokens = last(tokens)[:, num_prefix:] if predicted is None else last(tokens, predicted + num_prefix)
        prediction: Tensor = self.predict(self.norm(tokens))
        return prediction

    def mask_token_for(self, num_patches: int) -> Float[Tensor, "1 1 d"]:
        """What stands in a masked place of an image of that many patches."""
        return self.mask_token


def _width_behind(encoder_dim: int) -> int:
    """The width of a decoder: two thirds of the encoder's."""
    return min(max(round(encoder_dim * 2 / 3 / _WIDTH_STEP), 1) * _WIDTH_STEP, _LARGEST_WIDTH)


def _num_heads_of(embed_dim: int) -> int:
    """The most heads of equal size that have the usual number of channels at least; 1 where there are none."""
    return next(heads for heads in range(max(embed_dim // _CHANNELS_A_HEAD, 1), 0, -1) if embed_dim % heads == 0)
