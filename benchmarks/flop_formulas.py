"""The floating-point operations of a training step as formulas of its sizes, part by part.

    flops = step_flops(method, num_images=2)

Counted are matrix products and convolutions, a multiplication and an addition as two operations, as
`unmask.callbacks.model_flops.count_flops` counts them. The formulas read sizes alone and run nothing, so each can be
held against the count (`tests/benchmarks/test_flop_formulas.py`). What is linear in tokens stands apart from what grows
with pairs of tokens. A layer takes three times its forward pass in training: once more for the gradient of its input
and once for that of its weights. The first convolution takes two, since images have no gradient, and a teacher one.

Not counted, and therefore no part of the model FLOPs: norms, activations, softmax, masking, the optimizer.
"""

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from unmask.backbones.timm_beit import TimmBeit
from unmask.backbones.timm_hiera import TimmHiera
from unmask.backbones.timm_swin import TimmSwin
from unmask.backbones.timm_vit import TimmViT
from unmask.heads.mae_decoder import MAEDecoder
from unmask.heads.stage_expansion import StageExpansion
from unmask.methods.ddmim import DDMIM
from unmask.methods.ddmim_sparse import SparseDDMIM
from unmask.methods.mae import MAE
from unmask.methods.simmim import SimMIM
from unmask.methods.supervised import Supervised
from unmask.patches import patch_grid, patch_sides

TRAINED, FIRST, FORWARD = 3, 2, 1  # times a forward pass
_POSITION_WIDTH = 512  # of the MLP that Swin V2 computes its relative positions by (arXiv:2111.09883, sec. 3.3)


class Forward(NamedTuple):
    """The forward pass of a backbone: of an image its first convolution, linear layers and attention; of a batch more.

    Attributes:
        embedding: From pixels to tokens.
        blocks: All that is linear in the number of tokens.
        attention: Products of pairs of tokens.
        once: What a batch takes whatever the number of images.
    """

    embedding: float
    blocks: float
    attention: float
    once: float = 0.0


def step_flops(method: nn.Module, *, num_images: int) -> Mapping[str, float]:
    """Operations of forward and backward pass of a batch on one device, by part: `sum(....values())` is the step's."""
    return _step_flops(method, num_images)


@functools.singledispatch
def _step_flops(method: nn.Module, _: int) -> Mapping[str, float]:
    raise TypeError(f"there is no formula for {type(method).__name__}")


@_step_flops.register
def _(method: MAE, num_images: int) -> Mapping[str, float]:
    backbone = method.backbone
    maskable = math.prod(patch_grid(backbone.image_size, method.mask_generator.patch_size))
    fraction = 1 - math.ceil(maskable * method.mask_generator.ratio) / maskable
    parts = _trained(_forward(backbone, fraction), num_images)
    parts["decoder"] = TRAINED * num_images * _decoder(method.decoder, method.grid, fraction)
    if isinstance(method.fusion, StageExpansion):
        parts["fusion"] = TRAINED * num_images * _expansion(method.fusion, backbone, fraction)
    elif method.fusion is not None:
        tokens = fraction * math.prod(patch_grid(backbone.image_size, backbone.stages[-1].stride))
        weights = sum(project.weight.numel() for project in method.fusion.project)
        parts["fusion"] = TRAINED * num_images * 2 * tokens * weights
    return parts


@_step_flops.register
def _(method: SimMIM, num_images: int) -> Mapping[str, float]:
    parts = _trained(_forward(method.backbone, 1.0), num_images)
    return {**parts, "head": TRAINED * num_images * _pixels(method.backbone)}


@_step_flops.register
def _(method: Supervised, num_images: int) -> Mapping[str, float]:
    parts = _trained(_forward(method.backbone, 1.0), num_images)
    return {**parts, "head": TRAINED * num_images * _linear_layers(method.head)}


@_step_flops.register
def _(method: DDMIM, num_images: int) -> Mapping[str, float]:
    parts = _trained(_forward(method.backbone, 1.0), num_images)
    if method.reconstruction is not None:
        parts["head"] = TRAINED * num_images * _pixels(method.backbone)
    return parts + _teacher_and_contrast(method, num_images)


@_step_flops.register
def _(method: SparseDDMIM, num_images: int) -> Mapping[str, float]:
    backbone, fraction = method.backbone, 1 / method.backbone.visible_cell**2
    parts = _trained(_forward(backbone, fraction), num_images)
    if method.decoder is not None:
        grid = patch_grid(backbone.image_size, backbone.patch_size)
        parts["decoder"] = TRAINED * num_images * _decoder(method.decoder, grid, fraction)
    if method.expansion is not None:
        parts["fusion"] = TRAINED * num_images * _expansion(method.expansion, backbone, fraction)
    return parts + _teacher_and_contrast(method, num_images)


def _teacher_and_contrast(method: DDMIM, num_images: int) -> Counter[str]:
    """The teacher's pass over whole images, and both projections and their similarities."""
    parts: Counter[str] = Counter()
    if method.teacher is not None:
        forward = _forward(method.backbone, 1.0)
        parts["teacher"] = FORWARD * (num_images * (sum(forward) - forward.once) + forward.once)
    if method.contrast is not None:
        projector = _linear_layers(method.contrast.projector)
        width = [layer.out_features for layer in method.contrast.projector.modules() if isinstance(layer, nn.Linear)][
            -1
        ]
        similarities = 2 * num_images**2 * width  # the keys have no gradient
        parts["contrast"] = (TRAINED + FORWARD) * num_images * projector + FIRST * similarities
    return parts


def _trained(forward: Forward, num_images: int) -> Counter[str]:
    """A backbone's forward and backward pass."""
    return Counter(
        {
            "embedding": FIRST * num_images * forward.embedding,
            "blocks": TRAINED * num_images * forward.blocks,
            "attention": TRAINED * num_images * forward.attention,
            "positions": TRAINED * forward.once,
        }
    )


@functools.singledispatch
def _forward(backbone: nn.Module, _: float) -> Forward:
    """The forward pass of a backbone that sees some fraction, in 0..1, of the mask units of an image."""
    raise TypeError(f"there is no formula for {type(backbone).__name__}")


@_forward.register(TimmViT)
@_forward.register(TimmBeit)
def _(backbone: TimmViT | TimmBeit, fraction: float) -> Forward:
    model = backbone.transformer
    patches = fraction * math.prod(backbone.grid)
    hidden = model.blocks[0].mlp.fc1.out_features
    blocks, attention = _blocks(patches + 1, width=model.embed_dim, hidden=hidden, depth=backbone.num_blocks)
    pixels = backbone.in_channels * math.prod(patch_sides(backbone.stages[0].stride))
    return Forward(2 * patches * pixels * model.embed_dim, blocks, attention)


@_forward.register
def _(backbone: TimmSwin, fraction: float) -> Forward:
    first, blocks, attention, once = backbone.stages[0], 0.0, 0.0, 0.0
    grids = _swin_grids(backbone, fraction)
    pixels = backbone.in_channels * math.prod(patch_sides(first.stride))
    for number, (stage, grid) in enumerate(zip(backbone.stages, grids, strict=True)):
        for block in backbone.swin.layers[number].blocks:
            window = math.prod(block.window_size if fraction == 1 else block.second_window)
            hidden = block.mlp.fc1.out_features
            linear, pairs = _blocks(math.prod(grid), width=stage.channels, hidden=hidden, depth=1, attended=window)
            blocks, attention = blocks + linear, attention + pairs
            once += _computed_positions(block)
        if number > 0:  # 2 x 2 tokens become one
            blocks += 2 * math.prod(grid) * 4 * backbone.stages[number - 1].channels * stage.channels
    return Forward(2 * math.prod(grids[0]) * pixels * first.channels, blocks, attention, once)


def _swin_grids(backbone: TimmSwin, fraction: float) -> list[tuple[int, int]]:
    """Tokens of each stage, (rows, cols); a quarter of the units is an image of half the sides."""
    if fraction == 1:
        return [patch_grid(backbone.image_size, stage.stride) for stage in backbone.stages]
    assert fraction == 1 / 4
    assert not any(any(block.second_padding) for block in backbone.blocks)
    height, width = (side // 2 for side in backbone.image_size)
    return [(-(-height // stage.stride), -(-width // stage.stride)) for stage in backbone.stages]  # merging rounds up


def _computed_positions(block: Any) -> float:
    """What Swin V2's MLP takes for the table of relative positions; a Swin has a table."""
    if not hasattr(block.attn, "cpb_mlp"):  # timm's own classes, which differ in nothing else that is counted
        return 0.0
    places = math.prod(2 * side - 1 for side in block.window_size)
    coordinates = 2 * FIRST / TRAINED  # they have no gradient
    return 2 * places * (coordinates + block.attn.num_heads) * _POSITION_WIDTH


@_forward.register
def _(backbone: TimmHiera, fraction: float) -> Forward:
    first, blocks, attention = backbone.stages[0], 0.0, 0.0
    grid = math.prod(patch_grid(backbone.image_size, first.stride))
    kernel = backbone.in_channels * math.prod(backbone.hiera.patch_embed.proj.kernel_size)
    tokens = fraction * grid
    for block in backbone.hiera.blocks:
        own, wide, pooled = block.dim, block.dim_out, tokens / block.attn.q_stride
        attended = block.attn.q_stride * block.attn.window_size if block.attn.use_mask_unit_attn else tokens
        blocks += 2 * tokens * own * 3 * wide + 2 * pooled * wide**2
        blocks += 2 * tokens * own * wide if block.do_expand else 0.0
        blocks += 4 * pooled * wide * block.mlp.fc1.out_features
        attention += 4 * pooled * attended * wide
        tokens = pooled
    return Forward(2 * grid * kernel * first.channels, blocks, attention)  # the convolution reads masked places too


def _blocks(
    tokens: float, *, width: int, hidden: int, depth: int, attended: float | None = None
) -> tuple[float, float]:
    """Transformer blocks: linear layers (query, key, value, projection, MLP), and the products of attention.

    Args:
        tokens: Of an image.
        width: Channels.
        hidden: Channels within the MLP.
        depth: Number of blocks.
        attended: Tokens that a token attends to; None is all.
    """
    attended = tokens if attended is None else attended
    return depth * 2 * tokens * (4 * width**2 + 2 * width * hidden), depth * 4 * tokens * attended * width


def _decoder(decoder: MAEDecoder, grid: tuple[int, int], fraction: float) -> float:
    """MAE's decoder: all patches and the prefix, of which the visible ones come from the encoder.

    Behind the attention of the last block there are the masked patches alone, which are predicted.
    """
    patches, prefix = math.prod(grid), decoder.pos_embed.shape[1] - math.prod(grid)
    width = decoder.embed.out_features
    hidden = decoder.blocks[0].mlp.fc1.out_features
    encoded = 2 * (fraction * patches + prefix) * decoder.embed.in_features * width
    unread = fraction * patches + prefix  # behind the last attention
    return (
        encoded
        + sum(_blocks(patches + prefix, width=width, hidden=hidden, depth=len(decoder.blocks)))
        - unread * 4 * width * hidden
        + 2 * (patches - fraction * patches) * width * decoder.predict.out_features
    )


def _expansion(expansion: StageExpansion, backbone: TimmSwin, fraction: float) -> float:
    """The tokens of the last stage to those of units."""
    return 2 * math.prod(_swin_grids(backbone, fraction)[-1]) * expansion.project.weight.numel()


def _pixels(backbone: Any) -> float:
    """A linear layer from the last map to all pixels."""
    last = backbone.stages[-1]
    return 2 * last.channels * backbone.in_channels * math.prod(backbone.image_size)


def _linear_layers(module: nn.Module) -> float:
    """Linear layers that are applied once an image."""
    layers: Iterable[nn.Module] = module.modules()
    return sum(2 * layer.in_features * layer.out_features for layer in layers if isinstance(layer, nn.Linear))
