"""Checkpoints of FlyEgle/MAE-pytorch: its MAE, or a classifier."""

from torch import Tensor

from unmask.interchange import infer_config
from unmask.interchange.classifier import take_classifier
from unmask.interchange.conversion import Conversion
from unmask.interchange.files import WeightFile
from unmask.interchange.renaming import split
from unmask.positions import sinusoid_positions

_IMAGE_SIZE = 224  # of every committed configuration; positions are in no file
_NORM_EPS = 1e-5  # torch's own
_DECODER = {  # of `TransposedConvDecoder`
    "Decoder.blocks.": "blocks.",
    "Decoder.unmask_embed.proj.": "mask_embed.",
    "proj.": "embed.",
    "restruction.": "predict.0.",
    "patch_norm.gamma": "predict.1.weight",
    "patch_norm.beta": "predict.1.bias",
    "unconv.": "predict.2.convolution.",
}


def matches(file: WeightFile) -> bool:
    return "Encoder.cls_token" in file.weights or "model.class_head.weight" in file.weights


def convert(file: WeightFile) -> Conversion:
    """The encoder has timm's names; positions, fixed and along the sequence, are computed.

    Its classifier reads the class token.
    """
    classifier, weights = take_classifier(file.weights, [(r"^model\.class_head\.", "linear.")], pooling="cls")
    encoder, others = split(weights, "Encoder.")
    if not encoder:
        encoder, others = split(weights, "model.")
    rows = _IMAGE_SIZE // encoder["patch_embed.proj.weight"].shape[-1]
    encoder["pos_embed"] = sinusoid_positions(encoder["cls_token"].shape[-1], rows * rows + 1)
    heads, unread = _take_decoder(others)
    if "proj.weight" in others:
        heads["decoder.pos_embed"] = sinusoid_positions(others["proj.weight"].shape[0], rows * rows + 1)
    return infer_config.vit(
        "FlyEgle's MAE",
        encoder,
        heads=heads,
        classifier=classifier,
        left_out=dict.fromkeys(unread, "read by no computation of FlyEgle's"),
        norm_eps=_NORM_EPS,
        positions="sinusoid",
    )


def _take_decoder(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    decoder, unread = {}, []
    for name, weight in weights.items():
        part = next((part for part in _DECODER if name.startswith(part)), None)
        if part is None:
            unread.append(name)
        else:
            decoder[f"decoder.{_DECODER[part]}{name.removeprefix(part)}"] = weight
    return decoder, unread
