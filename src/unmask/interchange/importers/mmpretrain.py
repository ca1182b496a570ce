"""Checkpoints of open-mmlab/mmpretrain: SimMIM and MAE, pre-trained or fine-tuned, and its supervised Swin and ViT."""

import re
from typing import Any

from torch import Tensor

from unmask.interchange import infer_config
from unmask.interchange.conversion import Conversion
from unmask.interchange.files import WeightFile
from unmask.interchange.importers.decoder import take_mae_decoder
from unmask.interchange.importers.microsoft import microsoft_swin_to_timm, simmim_heads
from unmask.interchange.renaming import Rules, rename, split
from unmask.interchange.resize import reorder_unfolded_merging

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
_DECODER: Rules = [(r"^(?:ln1|norm1)\.", "decoder_norm."), (r"\.ln([12])\.", r".norm\1."), *_FEED_FORWARD]


def matches(file: WeightFile) -> bool:
    return "backbone.patch_embed.projection.weight" in file.weights


def convert(file: WeightFile) -> Conversion:
    backbone, others = split(file.weights, "backbone.")
    neck, others = split(others, "neck.")
    left_out = {name: _kind(name, weight) for name, weight in others.items()}
    if "cls_token" in backbone:
        decoder, _ = take_mae_decoder(rename(neck, _DECODER))
        return infer_config.vit("mmpretrain's ViT", rename(backbone, _VIT), heads=decoder, left_out=left_out)
    heads = simmim_heads(backbone.pop("mask_token", None), split(neck, "decoder.0.")[0])
    swin = microsoft_swin_to_timm(rename(backbone, _SWIN))
    for name in swin:
        if ".downsample." in name:
            swin[name] = reorder_unfolded_merging(swin[name])
    return infer_config.swin("mmpretrain's Swin", swin, heads=heads, left_out=left_out, **_told_by(file))


def _kind(name: str, weight: Tensor) -> str:
    is_classifier = name.startswith("head.") and name.endswith("weight")
    return f"a classifier of {weight.shape[0]} classes" if is_classifier else "not part of the backbone"


def _told_by(file: WeightFile) -> dict[str, Any]:
    """Reads the image size off the configuration in the file's `meta`; weights with padded windows do not tell it."""
    meta = file.content.get("meta")
    text = meta.get("cfg", meta.get("config")) if isinstance(meta, dict) else None
    found = re.search(r"img_size=(\d{1,5})\b", text) if isinstance(text, str) else None
    return {"image_size": int(found[1])} if found else {}
