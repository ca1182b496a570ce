"""Checkpoints of facebookresearch/mae: the encoder alone, with its decoder, or fine-tuned."""

from unmask.backbones.base import Pooling
from unmask.interchange import infer_config
from unmask.interchange.classifier import take_classifier
from unmask.interchange.conversion import Conversion
from unmask.interchange.files import WeightFile
from unmask.interchange.importers.decoder import take_mae_decoder
from unmask.interchange.renaming import Rules

_FORMS = {
    "decoder_embed.weight": "encoder and decoder",
    "head.weight": "fine-tuned",
    "fc_norm.weight": "fine-tuned",
    "head.1.weight": "encoder with a linear probe",
}
_HEAD: Rules = [
    (r"^head\.0\.", "norm."),
    (r"^head\.1\.", "linear."),
    (r"^head\.", "linear."),
]


def matches(file: WeightFile) -> bool:
    """By its decoder's names, by fixed positions, or by what fine-tuning puts in place of the last norm."""
    names = file.weights
    if "pos_embed" not in names or "blocks.0.norm1.weight" not in names or file.config:
        return False
    is_pooled_first = "fc_norm.weight" in names and "norm.weight" not in names and "model" in file.content
    is_fine_tuned = is_pooled_first or hasattr(file.content.get("args"), "global_pool")
    return "decoder_embed.weight" in names or is_fine_tuned or infer_config.has_fixed_positions(names)


def convert(file: WeightFile) -> Conversion:
    """The encoder has timm's own names.

    A classifier reads the mean of the patches where `fc_norm` follows it (`--global_pool`), else the class token.
    """
    pooling: Pooling = "mean" if "fc_norm.weight" in file.weights else "cls"
    classifier, others = take_classifier(file.weights, _HEAD, pooling=pooling)
    decoder, encoder = take_mae_decoder(others)
    form = next((form for name, form in _FORMS.items() if name in file.weights), "encoder")
    return infer_config.vit(f"MAE, {form}", encoder, heads=decoder, classifier=classifier)
