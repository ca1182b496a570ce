"""Weights of timm's ViT, Swin, Swin V2, BEiT and Hiera: a state dict, safetensors, or a folder with `config.json`."""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import timm
import torch
from torch import Tensor

from unmask.backbones.base import Pooling
from unmask.backbones.create import is_model_name
from unmask.backbones.timm_hiera import HieraSettings
from unmask.interchange import infer_config
from unmask.interchange.classifier import Classifier, take_classifier
from unmask.interchange.conversion import Conversion
from unmask.interchange.files import WeightFile
from unmask.interchange.limits import bounded_networks
from unmask.interchange.preprocessing import timm_preprocessing
from unmask.interchange.record import KIND_KEY, shown
from unmask.interchange.renaming import without_buffers

# The arguments of a model that decide what is read off it below; no others are taken from a file.
_SIZES = ("img_size", "patch_size", "window_size", "in_chans", "embed_dim", "depth", "depths", "num_heads")
_COMPARED_OF_HIERA = ("patch_kernel", "patch_stride", "patch_padding", "mask_unit_size", "mask_unit_attn", "q_pool")
_HIERA_STAGES = 4  # of all published ones
_LARGEST = 16_384  # of any of them
_POOLINGS: dict[str, Pooling] = {"token": "cls", "avg": "mean"}  # of timm, that are computed here
_ASSUMED = (
    "not stated in the file: pooling; the classifier is taken to read the class token, timm's default "
    "(backbone.pooling=mean reads the mean)"
)
_WRAPPER = "timm_model."  # in front of all names where transformers wrote the folder


def matches(file: WeightFile) -> bool:
    names = {name.removeprefix(_WRAPPER) for name in file.weights}
    is_of_blocks = "blocks.0.attn.qkv.weight" in names and ("cls_token" in names or _is_hiera(names))
    return "patch_embed.proj.weight" in names and (is_of_blocks or "layers.0.blocks.0.attn.qkv.weight" in names)


def convert(file: WeightFile) -> Conversion:
    """A folder's `config.json` names the model, from which the sizes that weights do not tell are taken.

    It tells what the classifier reads, too. Where it is missing that is the mean in front of `fc_norm` and in a Swin,
    else the class token, timm's default.
    """
    model = _described_model(file)
    classifier, weights = _take_classifier(file, model)
    weights = without_buffers({name.removeprefix(_WRAPPER): weight for name, weight in weights.items()})
    return _with_statistics(file, replace(_convert(file, weights, model), classifier=classifier))


def _convert(file: WeightFile, weights: dict[str, Tensor], model: Any) -> Conversion:
    if "blocks.0.attn.q_bias" in weights:
        return infer_config.beit("timm's BEiT", weights)
    if "layers.0.blocks.0.attn.qkv.weight" in weights:
        is_v2 = "layers.0.blocks.0.attn.logit_scale" in weights
        return infer_config.swin(f"timm's Swin{' V2' if is_v2 else ''}", weights, **_sizes(model))
    if _is_hiera(weights):
        return _convert_hiera(file, weights, model)
    known: dict[str, Any] = {}
    if model is not None:
        attention, norm = model.blocks[0].attn, model.blocks[0].norm1
        known = {"name": file.config["architecture"], "num_heads": attention.num_heads, "norm_eps": norm.eps}
    return infer_config.vit("timm's ViT", weights, **known)


def _is_hiera(names: Collection[str]) -> bool:
    """Tells it from a ViT by the layer that widens the tokens, or by the norm of timm's head."""
    return "head.norm.weight" in names or any(re.fullmatch(r"blocks\.\d+\.proj\.weight", name) for name in names)


def _convert_hiera(file: WeightFile, weights: dict[str, Tensor], model: Any) -> Conversion:
    """A bare file has every stage pool and attend as published, the number of stages being the published one.

    Raises:
        ValueError: It is computed in another way than here, or does not tell how.
    """
    named = {re.sub(r"^(?:encoder_)?norm\.", "head.norm.", name): weight for name, weight in weights.items()}
    told: Any = {} if model is None else file.config.get("model_args", {})
    known: dict[str, Any] = {}
    if model is not None:
        known = {"name": file.config["architecture"], "num_heads": model.blocks[0].attn.heads}
        known["image_size"] = _told_sizes(file).get("img_size")
        if isinstance(known["image_size"], int):
            known["image_size"] = [known["image_size"]] * 2
    conversion = infer_config.hiera("timm's Hiera", named, **known)
    num_stages = len(conversion.settings["depths"])
    if told.get("q_pool") == num_stages - 2:
        conversion = replace(conversion, settings={**conversion.settings, "pool_last_stage": False})
    if num_stages != _HIERA_STAGES and "mask_unit_attn" not in told:
        raise ValueError(
            f"{file.path} holds a Hiera of {num_stages} stages and does not tell in which of them attention stays "
            "within mask units; only Hieras of four stages can be read without a description"
        )
    settings = {name: value for name, value in conversion.settings.items() if name != KIND_KEY}
    for name, value in HieraSettings(**settings).timm_sizes().items():
        if name in _COMPARED_OF_HIERA and told.get(name, value) != value:
            raise ValueError(
                f"{file.path}: config.json gives {name}={shown(told[name])}, and such a Hiera has {value} here; it "
                "cannot be taken"
            )
    return conversion


def _take_classifier(file: WeightFile, model: Any) -> tuple[Classifier | None, dict[str, Tensor]]:
    names = {name.removeprefix(_WRAPPER) for name in file.weights}
    is_assumed = model is None and "cls_token" in names and "fc_norm.weight" not in names
    return take_classifier(
        file.weights,
        [(rf"^(?:{re.escape(_WRAPPER)})?head\.(?:fc\.)?(?=weight|bias)", "linear.")],
        pooling="cls" if is_assumed else _pooling(file, model),
        class_names=_label_names(file),
        assumed=_ASSUMED if is_assumed else "",
    )


def _pooling(file: WeightFile, model: Any) -> Pooling | None:
    """What the classifier reads; None of a pooling that is not computed here."""
    if model is None:
        return "mean"
    arguments: Any = file.config.get("model_args", {})
    own = model.head.pool_type if _is_hiera(model.state_dict()) else model.global_pool
    told = arguments.get("global_pool", file.config.get("global_pool", own))
    return _POOLINGS.get(told) if isinstance(told, str) else None


def _label_names(file: WeightFile) -> Any:
    return file.config.get("label_names", _pretrained_cfg(file).get("label_names"))


def _pretrained_cfg(file: WeightFile) -> Mapping[str, Any]:
    """What a folder or a header says of the published weights; older folders of timm say it beside all else."""
    described = file.config.get("pretrained_cfg", file.config)
    return described if isinstance(described, Mapping) else {}


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
    sizes = _told_sizes(file)
    partition = {"always_partition": True} if arguments.get("always_partition") is True else {}
    with torch.device("meta"), bounded_networks(file.num_bytes):
        return timm.create_model(name, pretrained=False, num_classes=0, **sizes, **partition)


def _told_sizes(file: WeightFile) -> dict[str, Any]:
    """Reads the sizes that a description gives.

    Raises:
        ValueError: One of them is none of a model.
    """
    arguments: Any = file.config.get("model_args", {})
    sizes = {size: arguments[size] for size in _SIZES if arguments.get(size) is not None}
    published = _pretrained_cfg(file)
    if published.get("fixed_input_size") is True and isinstance(published.get("input_size"), list):
        sizes.setdefault("img_size", published["input_size"][1:])  # as timm does where it builds the model
    for size, value in sizes.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(type(number) is int and 0 < number <= _LARGEST for number in numbers):
            raise ValueError(f"{file.path}: config.json gives {size}={shown(value)}, which is not a size of a model")
    return sizes


def _sizes(swin: Any) -> Mapping[str, Any]:
    if swin is None:
        return {}
    window, _ = swin.layers[0].blocks[0].window_size
    side, _ = swin.patch_embed.img_size
    is_partitioned = bool(swin.layers[0].blocks[0].always_partition)
    return {"window_size": window, "image_size": side, "always_partition": is_partitioned}


def _with_statistics(file: WeightFile, conversion: Conversion) -> Conversion:
    described = _pretrained_cfg(file)
    names = {"mean": "pixel_mean", "std": "pixel_std"}
    statistics = {ours: list(described[theirs]) for theirs, ours in names.items() if described.get(theirs)}
    source = "its config.json" if file.path.is_dir() else "its header"
    return replace(
        conversion,
        settings={**conversion.settings, **statistics},
        preprocessing=timm_preprocessing(described, source),
    )
