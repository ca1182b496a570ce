"""Weights of timm's ViT, Swin, Swin V2 and BEiT: a state dict, a safetensors file, or a folder with `config.json`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import timm
import torch

from unmask.interchange import infer_config
from unmask.interchange.conversion import Conversion
from unmask.interchange.files import WeightFile
from unmask.interchange.renaming import without_buffers

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
    name = file.config.get("architecture")
    if name is None:
        return None
    if not timm.is_model(name):
        raise ValueError(f"{file.path}: config.json names {name!r}, which this version of timm does not have")
    arguments = {**file.config.get("model_args", {}), "num_classes": 0}
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, **arguments)


def _sizes(swin: Any) -> Mapping[str, Any]:
    if swin is None:
        return {}
    window, _ = swin.layers[0].blocks[0].window_size
    side, _ = swin.patch_embed.img_size
    return {"window_size": window, "image_size": side}


def _with_statistics(file: WeightFile, conversion: Conversion) -> Conversion:
    described = file.config.get("pretrained_cfg", {})
    names = {"mean": "pixel_mean", "std": "pixel_std"}
    statistics = {ours: list(described[theirs]) for theirs, ours in names.items() if described.get(theirs)}
    return replace(conversion, settings={**conversion.settings, **statistics})
