"""Checkpoints of facebookresearch/mae: the encoder alone, with its decoder, or fine-tuned."""

from unmask.interchange import infer_config
from unmask.interchange.conversion import Conversion
from unmask.interchange.files import WeightFile
from unmask.interchange.importers.decoder import take_mae_decoder

_FORMS = {"decoder_embed.weight": "encoder and decoder", "fc_norm.weight": "fine-tuned"}


def matches(file: WeightFile) -> bool:
    """By its decoder's names, by fixed positions, or by what fine-tuning puts in place of the last norm."""
    names = file.weights
    if "pos_embed" not in names or "blocks.0.norm1.weight" not in names or file.config:
        return False
    is_fine_tuned = "fc_norm.weight" in names and "norm.weight" not in names and "model" in file.content
    return "decoder_embed.weight" in names or is_fine_tuned or infer_config.has_fixed_positions(names)


def convert(file: WeightFile) -> Conversion:
    """The encoder has timm's own names."""
    decoder, encoder = take_mae_decoder(file.weights)
    form = next((form for name, form in _FORMS.items() if name in file.weights), "encoder")
    return infer_config.vit(f"MAE, {form}", encoder, heads=decoder)
