"""Fills a network with what a file holds."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from unmask.backbones.base import MaskedBackbone
from unmask.interchange.conversion import Conversion, LoadReport
from unmask.interchange.resize import resize_bias_table, resize_positions
from unmask.patches import patch_grid

_SHARED_TABLE = "beit.rel_pos_bias.relative_position_bias_table"
_NUM_BEIT_EXTRA = 3  # rows of a table that belong to the class token
_COMPARED = (
    "norm_eps",
    "norm_after_pooling",
    "pooling",
    "always_partition",
    "pool_last_stage",
    "pixel_mean",
    "pixel_std",
)  # settings that no shape shows
_NUM_SHOWN = 3


def load_backbone_weights(
    backbone: MaskedBackbone, conversion: Conversion, *, allow_partial: bool = False
) -> LoadReport:
    """Loads a file's backbone, resizing what belongs to a grid or a window.

    Args:
        backbone: Filled in place; untouched where the file is refused.
        conversion: Of the file.
        allow_partial: Accept weights that are missing, which stay as they are, and unexpected ones.

    Returns:
        What was loaded and what was not.

    Raises:
        ValueError: The file is of another architecture, holds weights that are not finite, or lacks part of the
            backbone and `allow_partial` is false.
    """
    own = backbone.state_dict()
    offered = _spread_shared_table(conversion.backbone, own)
    _require_same_family(offered, own, conversion)
    _require_same_heads(backbone, conversion)
    _require_same_partition(backbone, conversion)
    fitting, resized, misfits = {}, {}, {}
    for name, weight in offered.items():
        if name not in own:
            continue
        fitted, change = _resize(name, weight, own[name], backbone)
        if fitted.shape != own[name].shape:
            misfits[name] = f"{_shape(weight)} in the file, {_shape(own[name])} in the model"
            continue
        fitting[name] = fitted
        if change:
            resized[name] = change
    missing_keys = tuple(name for name in own if name not in offered)
    unexpected_keys = tuple(name for name in offered if name not in own)
    _require_fit(misfits, missing_keys, unexpected_keys, conversion, allow_partial=allow_partial)
    bad = next((name for name, weight in fitting.items() if not weight.float().isfinite().all()), None)
    if bad is not None:
        raise ValueError(
            f"{conversion.source} holds numbers in {bad} that are not finite, so that nothing can be computed by it; "
            "take an earlier checkpoint, or download the file again"
        )
    backbone.load_state_dict(fitting, strict=False)
    return LoadReport(
        source_format=conversion.source_format,
        loaded=tuple(name for name in fitting if name not in resized),
        resized=resized,
        missing_keys=missing_keys,
        unexpected_keys=unexpected_keys,
        left_out={**conversion.left_out, **dict.fromkeys(conversion.heads, "a head, not part of the backbone")},
        heads=(),
        notes=tuple(_notes(backbone, conversion)),
    )


def load_head_weights(module: nn.Module, conversion: Conversion, report: LoadReport) -> LoadReport:
    """Loads the heads of a method where it has the same, all of them or none.

    Fixed positions of a decoder for another grid are not taken: the decoder has computed its own.

    Returns:
        The report of the backbone, completed.
    """
    if not conversion.heads:
        return report
    own = module.state_dict()
    heads = {
        name: weight
        for name, weight in conversion.heads.items()
        if not name.endswith("pos_embed") or own.get(name, weight).shape == weight.shape
    }
    refused = _why_not(heads, own, set(conversion.heads))
    left_out = {name: why for name, why in report.left_out.items() if name not in conversion.heads}
    if refused:
        return replace(report, left_out=left_out | dict.fromkeys(conversion.heads, refused))
    module.load_state_dict(heads, strict=False)
    fixed = dict.fromkeys(conversion.heads.keys() - heads.keys(), "fixed positions of another grid")
    return replace(report, heads=tuple(heads), left_out=left_out | fixed)


def _why_not(heads: Mapping[str, Tensor], own: Mapping[str, Tensor], offered: Collection[str]) -> str:
    unknown = [name for name in heads if name not in own]
    if unknown:
        return f"the configured method has no such head ({unknown[0]})"
    misfits = [name for name, weight in heads.items() if weight.shape != own[name].shape]
    if misfits:
        name = misfits[0]
        sizes = f"{_shape(heads[name])} in the file, {_shape(own[name])} in the model"
        return f"the configured head has other sizes ({name}: {sizes})"
    parts = {name.partition(".")[0] for name in heads}
    lacking = [name for name in own if name.partition(".")[0] in parts and name not in offered]
    return f"the configured head has more ({lacking[0]})" if lacking else ""


def _spread_shared_table(weights: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Gives each block of a fine-tuned BEiT the table that a pre-trained one shares."""
    per_block_weights = dict(weights)
    per_block = [name for name in own if re.match(r"beit\.blocks\.\d+\.attn\.relative_position_bias_table", name)]
    if _SHARED_TABLE in per_block_weights and per_block:
        table = per_block_weights.pop(_SHARED_TABLE)
        per_block_weights |= dict.fromkeys(per_block, table)
    return per_block_weights


def _resize(name: str, weight: Tensor, target: Tensor, backbone: MaskedBackbone) -> tuple[Tensor, str]:
    """Resizes positions and tables, and says from what to what; returns anything else as it is."""
    if weight.shape == target.shape or weight.shape[-1] != target.shape[-1]:
        return weight, ""
    if name.endswith("pos_embed"):
        rows, cols = patch_grid(backbone.image_size, backbone.stages[0].stride)
        num_prefix_tokens = target.shape[1] - rows * cols
        side = math.isqrt(weight.shape[1] - num_prefix_tokens)
        resized = resize_positions(weight, (rows, cols), num_prefix_tokens=num_prefix_tokens)
        return resized, f"positions of {side}x{side} patches to {rows}x{cols}"
    if name.endswith("relative_position_bias_table"):
        module: Any = backbone.get_submodule(name.rpartition(".")[0])
        height, width = module.window_size
        extra = _NUM_BEIT_EXTRA if name.startswith("beit.") else 0
        side = (math.isqrt(weight.shape[0] - extra) + 1) // 2
        resized = resize_bias_table(weight, (height, width), num_extra_rows=extra)
        return resized, f"relative positions in {side}x{side} tokens to {height}x{width}"
    return weight, ""


def _require_same_family(offered: Mapping[str, Tensor], own: Mapping[str, Tensor], conversion: Conversion) -> None:
    theirs, ours = (next(iter(weights)).partition(".")[0] for weights in (offered, own))
    if theirs != ours:
        raise ValueError(
            f"{conversion.source} holds {_describe(conversion)}, but the configured model is of the family {ours!r}; "
            f"choose one of {theirs!r}, such as model={theirs}_base"
        )


def _require_same_heads(backbone: MaskedBackbone, conversion: Conversion) -> None:
    """Compares what weights do not show but a file may state."""
    theirs = conversion.settings.get("num_heads")
    ours = backbone.num_heads
    if isinstance(theirs, int) and theirs != ours and "num_heads" not in conversion.assumed:
        raise ValueError(
            f"{conversion.source} holds {_describe(conversion)} with {theirs} attention heads, the configured model "
            f"has {ours}; set model.num_heads={theirs}"
        )


def _require_same_partition(backbone: MaskedBackbone, conversion: Conversion) -> None:
    """Compares how a Swin computes stages no larger than a window, which its weights do not show."""
    if conversion.settings.get("always_partition") and not backbone.settings.get("always_partition"):
        raise ValueError(
            f"{conversion.source} holds {_describe(conversion)} that pads small stages and keeps their shifts "
            "(always_partition; pad_small_map of mmpretrain), and the configured model clamps their windows; set "
            "model.always_partition=true"
        )


def _require_fit(
    misfits: Mapping[str, str],
    missing_keys: tuple[str, ...],
    unexpected_keys: tuple[str, ...],
    conversion: Conversion,
    *,
    allow_partial: bool,
) -> None:
    if misfits:
        shown = "; ".join(f"{name} {how}" for name, how in list(misfits.items())[:_NUM_SHOWN])
        raise ValueError(
            f"{conversion.source} holds {_describe(conversion)}, and {len(misfits)} of its weights have other sizes "
            f"than the model they are for: {shown}. Choose the model the file was made with"
        )
    if (missing_keys or unexpected_keys) and not allow_partial:
        lacks = f"lacks {len(missing_keys)} weights of the backbone ({_some(missing_keys)})" if missing_keys else ""
        unknown = (
            f"holds {len(unexpected_keys)} weights unknown to this backbone ({_some(unexpected_keys)})"
            if unexpected_keys
            else ""
        )
        found = " and ".join(part for part in (lacks, unknown) if part)
        raise ValueError(
            f"{conversion.source}, {_describe(conversion)}, {found}; it is incomplete or of another architecture. Load "
            "what fits by allow_partial=true"
        )


def _notes(backbone: MaskedBackbone, conversion: Conversion) -> Iterable[str]:
    for setting, rule in conversion.assumed.items():
        used = backbone.settings.get(setting)
        why = rule if used == conversion.settings[setting] else "of the model"
        yield f"not stated in the file: {setting}; {_default(used)} is used, {why}"
    for name in _COMPARED:
        there, here = conversion.settings.get(name), backbone.settings.get(name)
        if there != here and name in backbone.settings and name in conversion.settings:
            yield f"differs: {name} is {_default(there)} in the file, {_default(here)} in the configured model"


def _describe(conversion: Conversion) -> str:
    settings = conversion.settings
    depth = settings.get("depth") or settings.get("depths")
    return (
        f"{conversion.source_format} (width {settings.get('embed_dim')}, blocks {depth}, patches of "
        f"{settings.get('patch_size')} px, images of {settings.get('image_size')} px)"
    )


def _shape(weight: Tensor) -> str:
    return "x".join(map(str, weight.shape))


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_NUM_SHOWN])
    return shown if len(names) <= _NUM_SHOWN else f"{shown}, ..."


def _default(value: Any) -> str:
    return "the default" if value is None else str(value)
