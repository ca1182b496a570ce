"""Weights of timm's ViT, Swin, Swin V2 and BEiT: a state dict, a safetensors file, or a folder with `config.json`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import timm
import torch

from unmask.backbones.create import is_model_name
from unmask.interchange import infer_config
from unmask.interchange.conversion import Conversion
from unmask.interchange.files import WeightFile
from unmask.interchange.limits import bounded_networks
from unmask.interchange.record import shown
from unmask.interchange.renaming import without_buffers

# The arguments of a model that decide what is read off it below; no others are taken from a file.
_SIZES = ("img_size", "patch_size", "window_size", "in_chans", "embed_dim", "depth", "depths", "num_heads")
_LARGEST = 16_384  # of any of them
_WRAPPER = "timm_model."  # in front of all names where transformers wrote the folder


def matches(file: WeightFile) -> bool:
    names = {name.removeprefix(_WRAPPER) for name in file.weights}
    is_vit = "blocks.0.attn.qkv.weight" in names and "cls_token" in names
    return "patch_embed.proj.weight" in names and (is_vit or "layers.0.blocks.0.attn.qkv.weight" in names)


def convert(file: WeightFile) -> Conversion:
    """A folder's `config.json` names the model, from which the sizes that weights do not tell are taken."""
    weights = without_buffers({name.removeprefix(_WRAPPER): weight for name, weight in file.weights.items()})
    if "blocks.0.attn.q_bias" in weights:
        return _with_statistics(file, infer_config.beit("timm's BEiT", weights))
    model = _described_model(file)
    if "layers.0.blocks.0.attn.qkv.weight" in weights:
        is_v2 = "layers.0.blocks.0.attn.logit_scale" in weights
        return _with_statistics(
            file, infer_config.swin(f"timm's Swin{' V2' if is_v2 else ''}", weights, **_sizes(model))
        )
    known: dict[str, Any] = {}
    if model is not None:
        attention, norm = model.blocks[0].attn, model.blocks[0].norm1
        known = {"name": file.config["architecture"], "num_heads": attention.num_heads, "norm_eps": norm.eps}
    return _with_statistics(file, infer_config.vit("timm's ViT", weights, **known))


def _described_model(file: WeightFile) -> Any:
    """Builds the network a folder describes, without weights; None where there is no description.

    Raises:
        ValueError: This timm has no such model.
    """
    name, arguments = file.config.get("architecture"), file.config.get("model_args", {})
    if name is None:
        return None
    if not isinstance(name, str) or not is_model_name(name) or not isinstance(arguments, Mapping):
        raise ValueError(f"{file.path}: config.json names {shown(name)}, which this version of timm does not have")
    sizes = {size: arguments[size] for size in _SIZES if arguments.get(size) is not None}
    for size, value in sizes.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(type(number) is int and 0 < number <= _LARGEST for number in numbers):
            raise ValueError(f"{file.path}: config.json gives {size}={shown(value)}, which is not a size of a model")
    partition = {"always_partition": True} if arguments.get("always_partition") is True else {}
    with torch.device("meta"), bounded_networks(file.num_bytes):
        return timm.create_model(name, pretrained=False, num_classes=0, **sizes, **partition)


def _sizes(swin: Any) -> Mapping[str, Any]:
    if swin is None:
        return {}
    window, _ = swin.layers[0].blocks[0].window_size
    side, _ = swin.patch_embed.img_size
    is_partitioned = bool(swin.layers[0].blocks[0].always_partition)
    return {"window_size": window, "image_size": side, "always_partition": is_partitioned}


def _with_statistics(file: WeightFile, conversion: Conversion) -> Conversion:
    described = file.config.get("pretrained_cfg")
    described = described if isinstance(described, Mapping) else {}
    names = {"mean": "pixel_mean", "std": "pixel_std"}
    statistics = {ours: list(described[theirs]) for theirs, ours in names.items() if described.get(theirs)}
    return replace(conversion, settings={**conversion.settings, **statistics})
