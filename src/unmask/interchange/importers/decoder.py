"""MAE's decoder under its author's names, which other programs have kept."""

from collections.abc import Mapping

from torch import Tensor

_NAMES = {
    "mask_token": "mask_token",
    "decoder_pos_embed": "pos_embed",
    "decoder_embed.": "embed.",
    "decoder_blocks.": "blocks.",
    "decoder_norm.": "norm.",
    "decoder_pred.": "predict.",
}


def take_mae_decoder(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Divides weights into those of an `MAE` method's decoder, by its names, and the others.

    Args:
        weights: With the blocks by timm's names.
    """
    decoder, others = {}, {}
    for name, weight in weights.items():
        part = next((part for part in _NAMES if name.startswith(part)), None)
        if part is None:
            others[name] = weight
        else:
            decoder[f"decoder.{_NAMES[part]}{name.removeprefix(part)}"] = weight
    return decoder, others
