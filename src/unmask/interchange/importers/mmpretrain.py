"""Checkpoints of open-mmlab/mmpretrain: SimMIM and MAE, pre-trained or fine-tuned, and its supervised Swin and ViT."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from unmask.interchange import infer_config
from unmask.interchange.classifier import take_classifier
from unmask.interchange.conversion import Conversion
from unmask.interchange.files import WeightFile
from unmask.interchange.importers.decoder import take_mae_decoder
from unmask.interchange.importers.microsoft import microsoft_swin_to_timm, simmim_heads
from unmask.interchange.renaming import Rules, rename, split
from unmask.interchange.resize import reorder_unfolded_merging

_DEFAULT = "the default of mmpretrain's pad_small_map; its Swin-L of SimMIM has it on"
_FEED_FORWARD: Rules = [(r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."), (r"\.ffn\.layers\.1\.", ".mlp.fc2.")]
_SWIN: Rules = [
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^stages\.", "layers."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"^norm3\.", "norm."),
    *_FEED_FORWARD,
]
_VIT: Rules = [
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^(?:ln1|norm1)\.", "norm."),
    (r"^(?:ln2|norm2)\.", "fc_norm."),
    (r"^layers\.", "blocks."),
    (r"\.ln([12])\.", r".norm\1."),
    *_FEED_FORWARD,
]
_HEAD: Rules = [(r"^head\.(?:fc|layers\.head)\.", "linear."), (r"^neck\.bn\.", "norm.")]
_DECODER: Rules = [(r"^(?:ln1|norm1)\.", "decoder_norm."), (r"\.ln([12])\.", r".norm\1."), *_FEED_FORWARD]


def matches(file: WeightFile) -> bool:
    return "backbone.patch_embed.projection.weight" in file.weights


def convert(file: WeightFile) -> Conversion:
    is_pooled_first = any(name in file.weights for name in ("backbone.ln2.weight", "backbone.norm2.weight"))
    is_of_class_token = "backbone.cls_token" in file.weights and not is_pooled_first
    classifier, weights = take_classifier(
        file.weights, _HEAD, pooling="cls" if is_of_class_token else "mean", class_names=_class_names(file)
    )
    backbone, others = split(weights, "backbone.")
    neck, others = split(others, "neck.")
    left_out = dict.fromkeys(others, "not part of the backbone")
    if "cls_token" in backbone:
        decoder, unused = take_mae_decoder(rename(neck, _DECODER))
        left_out |= {f"neck.{name}": "not part of the backbone" for name in unused}
        vit = rename(backbone, _VIT)
        return infer_config.vit("mmpretrain's ViT", vit, heads=decoder, classifier=classifier, left_out=left_out)
    decoder, unused = split(neck, "decoder.0.")
    left_out |= {f"neck.{name}": "not part of the backbone" for name in unused}
    heads = simmim_heads(backbone.pop("mask_token", None), decoder)
    swin = microsoft_swin_to_timm(rename(backbone, _SWIN))
    for name in swin:
        if ".downsample." in name:
            swin[name] = reorder_unfolded_merging(swin[name])
    told = _told_by(file, swin)
    conversion = infer_config.swin(
        "mmpretrain's Swin", swin, heads=heads, classifier=classifier, left_out=left_out, **told
    )
    return conversion if told else replace(conversion, assumed={**conversion.assumed, "always_partition": _DEFAULT})


def _class_names(file: WeightFile) -> Any:
    """What mmengine, or mmpretrain before it, notes of the training data."""
    meta = file.content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    described = meta.get("dataset_meta")
    return described.get("classes") if isinstance(described, Mapping) else meta.get("CLASSES")


def _told_by(file: WeightFile, swin: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads image size and `pad_small_map` off the configuration in the file's `meta`; empty where there is none.

    Weights do not tell them: with `pad_small_map` a window may be larger than the last stage, and is shifted where it
    is as large. Without, mmpretrain computes no stage that is smaller than its window.
    """
    meta = file.content.get("meta")
    text = meta.get("cfg", meta.get("config")) if isinstance(meta, Mapping) else None
    if not isinstance(text, str) or "backbone" not in text:
        return {}
    is_padded = "pad_small_map=True" in text
    size = re.search(r"img_size=(\d{1,5})\b", text)
    if size is None:  # which mmpretrain's Swin computes without, too
        return {"always_partition": is_padded}
    has_small_stage = infer_config.last_window(swin) > int(size[1]) // infer_config.last_stride(swin)
    return {"image_size": int(size[1]), "always_partition": is_padded or has_small_stage}
