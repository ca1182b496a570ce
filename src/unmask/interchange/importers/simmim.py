"""Checkpoints of microsoft/SimMIM and of Microsoft's Swin: pre-trained with `encoder.` in front, or fine-tuned."""

from unmask.interchange import infer_config
from unmask.interchange.classifier import take_classifier
from unmask.interchange.conversion import Conversion
from unmask.interchange.files import WeightFile
from unmask.interchange.importers.microsoft import microsoft_swin_to_timm, simmim_heads, sizes_in_buffers
from unmask.interchange.renaming import split, without_buffers

_STEM = "patch_embed.proj.weight"


def matches(file: WeightFile) -> bool:
    names = file.weights
    is_fine_tuned = "layers.0.downsample.reduction.weight" in names or "blocks.0.attn.relative_position_index" in names
    return f"encoder.{_STEM}" in names or (_STEM in names and is_fine_tuned)


def convert(file: WeightFile) -> Conversion:
    """A ViT is BEiT's transformer, told by its separate biases of queries and values.

    Classifiers read the mean: of a Swin behind its norm, of a ViT in front of it.
    """
    classifier, weights = take_classifier(file.weights, [(r"^head\.", "linear.")])
    encoder, others = split(weights, "encoder.")
    decoder, others = split(others, "decoder.0.")
    is_pretrained = bool(encoder)
    encoder = encoder if is_pretrained else others
    left_out = dict.fromkeys(others, "not part of the backbone") if is_pretrained else {}
    heads = simmim_heads(encoder.pop("mask_token", None), decoder)
    form = "pre-trained" if is_pretrained else "or Microsoft's Swin, fine-tuned"
    if "blocks.0.attn.qkv.weight" in encoder:
        form = "pre-trained" if is_pretrained else "fine-tuned"
        return infer_config.beit(
            f"SimMIM's ViT, {form}", without_buffers(encoder), heads=heads, classifier=classifier, left_out=left_out
        )
    return infer_config.swin(
        f"SimMIM's Swin, {form}",
        microsoft_swin_to_timm(encoder),
        heads=heads,
        classifier=classifier,
        left_out=left_out,
        **sizes_in_buffers(encoder, encoder[_STEM].shape[-1]),
    )
