"""Lightning checkpoints of vturrisi/solo-learn's MAE."""

from unmask.interchange import infer_config
from unmask.interchange.conversion import Conversion
from unmask.interchange.files import WeightFile
from unmask.interchange.importers.decoder import take_mae_decoder
from unmask.interchange.renaming import split

_NUM_HEADS = 12  # of its ViTs, whatever their width,
_NUM_HEADS_OF_WIDE = 16  # but the two widest
_WIDE = 1024


def matches(file: WeightFile) -> bool:
    return "backbone.blocks.0.norm1.weight" in file.weights and "decoder.decoder_embed.weight" in file.weights


def convert(file: WeightFile) -> Conversion:
    backbone, others = split(file.weights, "backbone.")
    decoder, others = split(others, "decoder.")
    return infer_config.vit(
        "solo-learn's MAE",
        backbone,
        heads=take_mae_decoder(decoder)[0],
        left_out=dict.fromkeys(others, "not part of the backbone"),
        num_heads=_NUM_HEADS if backbone["cls_token"].shape[-1] < _WIDE else _NUM_HEADS_OF_WIDE,
        head_rule="as in every ViT of solo-learn of that width",
    )
