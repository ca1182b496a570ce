"""Reads a network's sizes off its weights under timm's names, and makes a `Conversion` of both."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unmask.backbones.timm_beit import TimmBeit
from unmask.backbones.timm_hiera import TimmHiera
from unmask.backbones.timm_swin import TimmSwin
from unmask.backbones.timm_vit import TimmViT
from unmask.interchange.classifier import Classifier
from unmask.interchange.conversion import Conversion
from unmask.interchange.record import KIND_KEY
from unmask.positions import sincos_positions

Weights = Mapping[str, Tensor]

_CLASSIFIERS = ("head.", "head_dist.", "pre_logits.", "class_head.", "classifier.")
_HEAD_WIDTH = 64  # channels of an attention head in the published ViTs
_HEADS_OF_WIDE = {1280: 16, 1408: 16, 1664: 16}  # but of ViT-H (arXiv:2010.11929), -g and -G (arXiv:2106.04560)
_MAX_BLOCKS = 1024  # the deepest networks have some 50
_NUM_BEIT_EXTRA = 3  # rows of a table that belong to the class token
_PUBLISHED_SWINV2 = 8, 256  # window and image size in arXiv:2111.09883
_VIT_NAMES = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
_SWIN_NAMES = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base", (192, 18): "large"}  # width, blocks of stage 2
_HIERA_NAMES: Mapping[tuple[int, ...], str] = {
    (1, 2, 11, 2): "small",
    (2, 3, 16, 3): "base",
    (2, 6, 36, 4): "large",
}  # by blocks of each stage
_HIERA_HEADS = {96: 1, 112: 2, 144: 2, 256: 4}  # of the first stage, by its width (arXiv:2306.00989)
_ABSWIN_SIZE = 256  # px, of timm's Hieras with positions of windows, which tell no image
_SWINV2_WINDOWS = {"large": "window12_192"}  # timm has the others as window8_256


def vit(
    source_format: str,
    weights: Weights,
    *,
    heads: Weights | None = None,
    classifier: Classifier | None = None,
    left_out: Mapping[str, str] | None = None,
    num_heads: int | None = None,
    head_rule: str | None = None,
    norm_eps: float = 1e-6,
    **settings: Any,
) -> Conversion:
    """Makes the conversion of a ViT.

    Args:
        source_format: Whose file it is.
        weights: By timm's names; a head of a form that is not loaded may be among them.
        heads, classifier, left_out: Of the conversion.
        num_heads: Attention heads where known; None takes the usual number of the width.
        head_rule: By which rule they are known, where the file itself does not tell.
        norm_eps: Of every LayerNorm.
        settings: Further settings of `TimmViT`, before those read off the weights.

    Raises:
        ValueError: Something a ViT with a class token has is missing.
    """
    own, classifiers = _without_classifiers(weights)
    width, patch_size, depth = (
        _token_width(own, source_format),
        _patch_size(own, source_format),
        _num_blocks(own, source_format),
    )
    positions = _required(own, "pos_embed", source_format)
    side = math.isqrt(positions.shape[1] - 1)
    if side * side != positions.shape[1] - 1:
        raise ValueError(
            f"{source_format}: {positions.shape[1]} positions are not those of one class token and a square of "
            "patches; a ViT with other tokens cannot be taken"
        )
    if num_heads is None:
        num_heads, head_rule = _usual_heads(width)
    is_pooled_first = "fc_norm.weight" in own and "norm.weight" not in own
    if is_pooled_first:
        own = {re.sub(r"^fc_norm\.", "norm.", name): weight for name, weight in own.items()}
    return Conversion(
        source_format=source_format,
        settings={
            KIND_KEY: TimmViT.__name__,
            "name": f"vit_{_VIT_NAMES.get(width, 'base')}_patch16_224",
            "image_size": side * patch_size,
            "patch_size": patch_size,
            "embed_dim": width,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": _mlp_ratio(own, "blocks.0.", source_format),
            "norm_eps": None if norm_eps == 1e-6 else norm_eps,
            "positions": "sincos" if has_fixed_positions(own) else "learned",
            "norm_after_pooling": is_pooled_first,
            "pooling": "mean",
            **_channels(own),
            **settings,
        },
        backbone={f"vit.{name}": weight for name, weight in own.items()},
        heads=heads or {},
        classifier=classifier,
        left_out={**(left_out or {}), **classifiers},
        assumed={} if head_rule is None else {"num_heads": head_rule},
    )


def has_fixed_positions(weights: Weights) -> bool:
    """Tells whether the positions are MAE's sines and cosines, which no training has changed."""
    positions = weights["pos_embed"]
    side = math.isqrt(positions.shape[1] - 1)
    if side * side != positions.shape[1] - 1 or positions.shape[2] % 4:
        return False
    return torch.allclose(positions.float(), sincos_positions(positions.shape[2], (side, side)), atol=1e-5)


def beit(
    source_format: str,
    weights: Weights,
    *,
    heads: Weights | None = None,
    classifier: Classifier | None = None,
    left_out: Mapping[str, str] | None = None,
    **settings: Any,
) -> Conversion:
    """Makes the conversion of a BEiT without absolute positions, pre-trained or fine-tuned; as `vit`."""
    own, classifiers = _without_classifiers(weights)
    width, patch_size, depth = (
        _token_width(own, source_format),
        _patch_size(own, source_format),
        _num_blocks(own, source_format),
    )
    is_shared = "rel_pos_bias.relative_position_bias_table" in own
    table_name = ("rel_pos_bias." if is_shared else "blocks.0.attn.") + "relative_position_bias_table"
    num_offsets, num_heads = _required(own, table_name, source_format).shape
    grid = (math.isqrt(num_offsets - _NUM_BEIT_EXTRA) + 1) // 2
    is_pooled_first = "fc_norm.weight" in own
    if is_pooled_first:
        own = {re.sub(r"^fc_norm\.", "norm.", name): weight for name, weight in own.items()}
    return Conversion(
        source_format=source_format,
        settings={
            KIND_KEY: TimmBeit.__name__,
            "name": "beit_base_patch16_224",
            "image_size": grid * patch_size,
            "patch_size": patch_size,
            "embed_dim": width,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": _mlp_ratio(own, "blocks.0.", source_format),
            "relative_bias": "shared" if is_shared else "per_block",
            "norm_after_pooling": is_pooled_first,
            "pooling": "mean",
            **_channels(own),
            **settings,
        },
        backbone={f"beit.{name}": weight for name, weight in own.items()},
        heads=heads or {},
        classifier=classifier,
        left_out={**(left_out or {}), **classifiers},
    )


def swin(
    source_format: str,
    weights: Weights,
    *,
    averaged: Weights | None = None,
    trained_names: Sequence[str] = (),
    averaged_names: Sequence[str] = (),
    heads: Weights | None = None,
    classifier: Classifier | None = None,
    left_out: Mapping[str, str] | None = None,
    image_size: int | None = None,
    window_size: int | None = None,
    **settings: Any,
) -> Conversion:
    """Makes the conversion of a Swin or Swin V2; as `vit`.

    Args:
        averaged: The same weights of a teacher.
        trained_names, averaged_names: Of the conversion.
        image_size: Side in pixels where the file tells it. A stage with a smaller window than the others tells it
            too, being one window large; otherwise the last stage is taken to be one window.
        window_size: Tokens along a window where the file tells them. Tables tell them; a Swin V2 has none, and is
            taken to be as published.
    """
    own, classifiers = _without_classifiers(weights)
    width, patch_size = (
        _required(own, "patch_embed.proj.weight", source_format).shape[0],
        _patch_size(own, source_format),
    )
    depths = _depths(own, source_format)
    is_v2 = any(".cpb_mlp." in name for name in own)
    assumed = {}
    tables = [] if is_v2 else [_table_window(own, stage, source_format) for stage in range(len(depths))]
    if window_size is None and is_v2:
        window_size, published_size = _PUBLISHED_SWINV2
        if image_size is None:
            image_size = published_size
            assumed["image_size"] = "as published with that window"
        assumed["window_size"] = "as published, since weights of Swin V2 do not contain it"
    window_size = window_size or max(tables)
    if image_size is None:
        image_size = last_stride(own) * (tables[-1] if tables else window_size)
        is_told = bool(tables) and tables[-1] < window_size
        if not is_told:
            assumed["image_size"] = "the last stage being one window"
    return Conversion(
        source_format=source_format,
        settings={
            KIND_KEY: TimmSwin.__name__,
            "name": _swin_name(width, depths, is_v2=is_v2),
            "image_size": image_size,
            "patch_size": patch_size,
            "window_size": window_size,
            "embed_dim": width,
            "depths": depths,
            "num_heads": [_stage_heads(own, stage, source_format) for stage in range(len(depths))],
            "mlp_ratio": _mlp_ratio(own, "layers.0.blocks.0.", source_format),
            "always_partition": False,
            **_channels(own),
            **settings,
        },
        backbone={f"swin.{name}": weight for name, weight in own.items()},
        averaged={f"swin.{name}": weight for name, weight in (averaged or {}).items()},
        trained_names=trained_names,
        averaged_names=averaged_names,
        heads=heads or {},
        classifier=classifier,
        left_out={**(left_out or {}), **classifiers},
        assumed=assumed,
    )


def hiera(
    source_format: str,
    weights: Weights,
    *,
    classifier: Classifier | None = None,
    num_heads: int | None = None,
    image_size: Sequence[int] | None = None,
    **settings: Any,
) -> Conversion:
    """Makes the conversion of a Hiera; as `vit`.

    Args:
        num_heads: Of the first stage.
        image_size: Height and width, where the file tells them; None takes a square.
    """
    width, kernel = _required(weights, "patch_embed.proj.weight", source_format).shape[::3]
    patch_size, depths = (kernel + 1) // 2, _hiera_depths(weights, source_format)
    assumed = {}
    if num_heads is None:
        num_heads = _HIERA_HEADS.get(width)
        assumed["num_heads"] = (
            f"a width of {width} being none of a published Hiera"
            if num_heads is None
            else f"as in the published Hiera of width {width}"
        )
    has_window_positions = "pos_embed_win" in weights
    if image_size is None and has_window_positions:
        image_size, assumed["image_size"] = (_ABSWIN_SIZE, _ABSWIN_SIZE), "as published"
    elif image_size is None:
        image_size = (math.isqrt(_required(weights, "pos_embed", source_format).shape[1]) * patch_size,) * 2
    height, image_width = image_size
    return Conversion(
        source_format=source_format,
        settings={
            KIND_KEY: TimmHiera.__name__,
            "name": _hiera_name(width, depths, has_window_positions=has_window_positions),
            "image_size": height if height == image_width else [height, image_width],
            "patch_size": patch_size,
            "embed_dim": width,
            "depths": depths,
            "num_heads": num_heads,
            "mlp_ratio": _mlp_ratio(weights, "blocks.0.", source_format),
            "pool_last_stage": True,
            **_channels(weights),
            **settings,
        },
        backbone={f"hiera.{name}": weight for name, weight in weights.items()},
        classifier=classifier,
        assumed=assumed,
    )


def last_stride(weights: Weights) -> int:
    """Reads off a Swin's weights how many pixels a token of the last stage stands for, a side."""
    num_mergings = len(_depths(weights, "Swin")) - 1
    return _patch_size(weights, "Swin") << num_mergings


def last_window(weights: Weights) -> int:
    """Reads the window off the table of a Swin's last stage, tokens a side."""
    return _table_window(weights, len(_depths(weights, "Swin")) - 1, "Swin")


def with_changes(conversion: Conversion, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a file's backbone with some replaced, such as another `image_size`.

    A Swin V2 remembers the windows it was trained with when its image or window changes.

    Raises:
        ValueError: A change is of no setting that backbone has, or the number of heads is neither told nor usual.
    """
    settings = dict(conversion.settings)
    unknown = sorted(changes.keys() - settings.keys())
    if unknown:
        raise ValueError(
            f"a backbone of {conversion.source_format} has no setting {unknown[0]!r}; it has "
            f"{', '.join(sorted(settings))}"
        )
    if {**settings, **changes}.get("num_heads") is None and "num_heads" in conversion.assumed:
        raise ValueError(
            f"{conversion.source} ({conversion.source_format}) does not tell its number of attention heads, "
            f"{conversion.assumed['num_heads']}; say num_heads=NUMBER to load_backbone, backbone.num_heads=NUMBER to "
            "eval.py, or load it into a configured model by method.init_from"
        )
    is_v2 = str(settings.get("name")).startswith("swinv2_") and "window_size" not in conversion.assumed
    if is_v2 and {"image_size", "window_size"} & changes.keys() and not settings.get("pretrained_window_sizes"):
        settings["pretrained_window_sizes"] = _stage_windows(settings)
    return settings | dict(changes)


def _stage_windows(settings: Mapping[str, Any]) -> list[int]:
    """The window of each stage: that of the settings, or the whole grid where that is smaller."""
    num_stages = len(settings.get("depths") or range(4))
    side = settings["image_size"]
    grids = [
        (side if isinstance(side, int) else min(side)) // (settings["patch_size"] * 2**s) for s in range(num_stages)
    ]
    return [min(settings["window_size"], grid) for grid in grids]


def _usual_heads(width: int) -> tuple[int | None, str]:
    """The number of heads by convention, and that convention; None where there is none."""
    if width in _HEADS_OF_WIDE:
        return _HEADS_OF_WIDE[width], f"as in the published ViT of width {width}"
    if width % _HEAD_WIDTH:
        return None, f"a width of {width} not being a multiple of the default {_HEAD_WIDTH} channels a head"
    return width // _HEAD_WIDTH, f"{_HEAD_WIDTH} channels each, the default"


def _swin_name(width: int, depths: list[int], *, is_v2: bool) -> str:
    size = _SWIN_NAMES.get((width, depths[2]), "tiny") if len(depths) == 4 else "tiny"
    if is_v2:
        return f"swinv2_{size}_{_SWINV2_WINDOWS.get(size, 'window8_256')}"
    return f"swin_{size}_patch4_window7_224"


def _hiera_name(width: int, depths: list[int], *, has_window_positions: bool) -> str:
    size = _HIERA_NAMES.get(tuple(depths), "tiny")
    if has_window_positions:
        return f"hiera_{'base' if size == 'base' else 'small'}_abswin_256"
    return "hiera_base_plus_224" if (width, size) == (112, "base") else f"hiera_{size}_224"


def _hiera_depths(weights: Weights, source_format: str) -> list[int]:
    """Counts the blocks of each stage, the first of which widens the tokens."""
    depths = [0]
    for block in range(_num_blocks(weights, source_format)):
        entering, leaving = (
            _required(weights, f"blocks.{block}.{norm}.weight", source_format).shape for norm in ("norm1", "norm2")
        )
        if entering != leaving:
            depths.append(0)
        depths[-1] += 1
    return depths


def _without_classifiers(weights: Weights) -> tuple[dict[str, Tensor], dict[str, str]]:
    own = {name: weight for name, weight in weights.items() if not name.startswith(_CLASSIFIERS)}
    return own, {name: "of a head of another form than those that are loaded" for name in weights if name not in own}


def _required(weights: Weights, name: str, source_format: str) -> Tensor:
    if name not in weights:
        raise ValueError(
            f"{source_format}: the weights lack {name} (in timm's names); the file is incomplete or of another network"
        )
    return weights[name]


def _token_width(weights: Weights, source_format: str) -> int:
    return _required(weights, "cls_token", source_format).shape[-1]


def _patch_size(weights: Weights, source_format: str) -> int:
    return _required(weights, "patch_embed.proj.weight", source_format).shape[-1]


def _channels(weights: Weights) -> dict[str, Any]:
    """The channels of the images; other than RGB they are taken as they are, in 0..1."""
    in_channels = weights["patch_embed.proj.weight"].shape[1]
    statistics = {} if in_channels == 3 else {"pixel_mean": [0.0] * in_channels, "pixel_std": [1.0] * in_channels}
    return {"in_channels": in_channels, **statistics}


def _mlp_ratio(weights: Weights, block: str, source_format: str) -> float | None:
    hidden, width = _required(weights, f"{block}mlp.fc1.weight", source_format).shape
    return None if hidden == 4 * width else hidden / width


def _num_blocks(weights: Weights, source_format: str) -> int:
    numbers = {int(found[1]) for found in (re.match(r"blocks\.(\d+)\.", name) for name in weights) if found}
    if not numbers:
        raise ValueError(f"{source_format}: the weights hold no blocks of a transformer")
    if max(numbers) >= _MAX_BLOCKS:
        raise ValueError(f"{source_format}: the weights name a block number {max(numbers)}; no network is that deep")
    return max(numbers) + 1


def _depths(weights: Weights, source_format: str) -> list[int]:
    found = [re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name) for name in weights]
    blocks = {(int(match[1]), int(match[2])) for match in found if match}
    if not blocks:
        raise ValueError(f"{source_format}: the weights hold no stages of a Swin")
    if max(max(block) for block in blocks) >= _MAX_BLOCKS:
        raise ValueError(f"{source_format}: the weights name a block of an impossible number")
    num_stages = max(stage for stage, _ in blocks) + 1
    return [1 + max((block for stage, block in blocks if stage == wanted), default=-1) for wanted in range(num_stages)]


def _table_window(weights: Weights, stage: int, source_format: str) -> int:
    table = _required(weights, f"layers.{stage}.blocks.0.attn.relative_position_bias_table", source_format)
    return (math.isqrt(table.shape[0]) + 1) // 2


def _stage_heads(weights: Weights, stage: int, source_format: str) -> int:
    attention = f"layers.{stage}.blocks.0.attn."
    if f"{attention}logit_scale" in weights:
        return weights[f"{attention}logit_scale"].shape[0]
    return _required(weights, f"{attention}relative_position_bias_table", source_format).shape[1]
