"""The names transformers gives to the parts of ViT and Swin on disk."""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.interchange.exporters.base import Comparison, ExportSource, compare_outputs
from unmask.interchange.exporters.preparation import trial_photos
from unmask.interchange.exporters.quiet import quiet_transformers
from unmask.patches import patch_text

Renames = Sequence[tuple[str, str]]
"""(pattern that matches a whole name, its replacement); `{part}` stands for query, key and value."""

_PIL_RESAMPLING = {"bilinear": 2, "bicubic": 3}
_PROCESSOR_NAME = "preprocessor_config.json"
_PROJECTIONS = ("query", "key", "value")


def require_transformers(format_name: str) -> None:
    """Refuses where the library that reads the format is not there to check it."""
    if find_spec("transformers") is None:
        raise ValueError(
            f"format={format_name} is checked with transformers, which is not installed; "
            "pip install 'unmask[transformers]'"
        )


def block_renames(timm_block: str, block: str, *, attention: str) -> Renames:
    """Names of one transformer block.

    Args:
        timm_block: Pattern of the block's prefix in timm.
        block: Its prefix in transformers.
        attention: What transformers calls the part of attention that holds the projections: "attention" or "self".
    """
    parts = [
        (r"norm1\.(\w+)", "layernorm_before."),
        (r"norm2\.(\w+)", "layernorm_after."),
        (r"attn\.qkv\.(\w+)", f"attention.{attention}.{{part}}."),
        (r"attn\.proj\.(\w+)", "attention.output.dense."),
        (r"mlp\.fc1\.(\w+)", "intermediate.dense."),
        (r"mlp\.fc2\.(\w+)", "output.dense."),
    ]
    num_groups = re.compile(timm_block).groups
    return [(timm_block + pattern, f"{block}{name}\\{num_groups + 1}") for pattern, name in parts]


def rename_for_transformers(weights: Mapping[str, Tensor], renames: Renames, *, format_name: str) -> dict[str, Tensor]:
    """Puts weights under new names and splits fused projections.

    Raises:
        ValueError: A weight has no name there.
    """
    renamed = {}
    for name, weight in weights.items():
        target = next((re.sub(f"^{old}$", new, name) for old, new in renames if re.fullmatch(old, name)), None)
        if target is None:
            raise ValueError(
                f"format={format_name} has no place for the weight {name!r} of this network; use format=huggingface "
                "for its backbone"
            )
        if "{part}" in target:
            for part, piece in zip(_PROJECTIONS, weight.chunk(3), strict=True):
                renamed[target.replace("{part}", part)] = piece
        else:
            renamed[target] = weight
    return {name: weight.detach().clone().contiguous() for name, weight in renamed.items()}


def require_square(source: ExportSource, format_name: str) -> int:
    """Reads the side of the images.

    Raises:
        ValueError: They or the patches are not square, or not RGB.
    """
    height, width = source.backbone.image_size
    if source.backbone.in_channels != 3:
        raise ValueError(
            f"format={format_name} prepares RGB images alone, this network takes {source.backbone.in_channels} "
            "channel(s); use format=huggingface for its backbone"
        )
    if height != width:
        raise ValueError(
            f"format={format_name} takes square images alone, this network takes {height}x{width} px; "
            "use format=huggingface for its backbone"
        )
    patch_size = source.backbone.stages[0].stride
    if not isinstance(patch_size, int):
        raise ValueError(
            f"format={format_name} has square patches alone, this network has {patch_text(patch_size)} px; "
            "use format=huggingface for its backbone"
        )
    return height


def write_processor(source: ExportSource, folder: Path) -> None:
    """Writes `preprocessor_config.json` for `AutoImageProcessor`."""
    side = source.backbone.image_size[0]
    content = {
        "image_processor_type": "BitImageProcessor",  # the plain one: resize, crop, rescale, normalize
        "do_resize": True,
        "size": {"shortest_edge": int(side / source.crop_pct)},
        "resample": _PIL_RESAMPLING[source.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(source.backbone.pixel_mean),
        "image_std": list(source.backbone.pixel_std),
        "do_convert_rgb": True,
    }
    write_json(content, folder / _PROCESSOR_NAME)


def compare_processor(source: ExportSource, folder: Path) -> Comparison:
    """Compares what `AutoImageProcessor` makes of images."""
    from transformers import AutoImageProcessor  # noqa: PLC0415 (an extra)

    pixels, expected = trial_photos(source, 2)
    with quiet_transformers():
        processor = AutoImageProcessor.from_pretrained(folder)
    as_bytes = list((255 * pixels).round().to(torch.uint8))
    prepared = processor(as_bytes, return_tensors="pt")["pixel_values"]
    return compare_outputs(prepared, expected, what="prepared images in transformers")


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Writes plain values."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
