"""Checkpoints of FlyEgle/MAE-pytorch: its MAE, or a classifier."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.interchange import families
from unmask.interchange.conversion import Conversion
from unmask.interchange.files import WeightFile
from unmask.interchange.renaming import split

_IMAGE_SIZE = 224  # of every committed configuration; positions are in no file
_NORM_EPS = 1e-5  # torch's own


def recognises(file: WeightFile) -> bool:
    return "Encoder.cls_token" in file.weights or "model.class_head.weight" in file.weights


def convert(file: WeightFile) -> Conversion:
    """The encoder has timm's names; its positions, fixed and one-dimensional, are computed."""
    encoder, others = split(file.weights, "Encoder.")
    if not encoder:
        encoder, others = split(file.weights, "model.")
    rows = _IMAGE_SIZE // encoder["patch_embed.proj.weight"].shape[-1]
    encoder["pos_embed"] = _sequence_positions(encoder["cls_token"].shape[-1], rows * rows + 1)
    return families.vit(
        "FlyEgle's MAE",
        encoder,
        left_out=dict.fromkeys(others, "FlyEgle's decoder, which has another form than MAE's"),
        norm_eps=_NORM_EPS,
        positions="sincos",
    )


def _sequence_positions(width: int, length: int) -> Float[Tensor, "1 n d"]:
    """Sines and cosines of the place in the sequence, by turns, the class token's place being 0."""
    places = torch.arange(length, dtype=torch.float32)[:, None]
    frequencies = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
    return torch.stack([torch.sin(places * frequencies), torch.cos(places * frequencies)], dim=2).flatten(1)[None]
