"""Checkpoints of methods built from lightly's parts for MAE, around a ViT of timm or of torchvision."""

from torch import Tensor

from unmask.interchange import infer_config
from unmask.interchange.conversion import Conversion
from unmask.interchange.files import WeightFile
from unmask.interchange.importers.decoder import take_mae_decoder
from unmask.interchange.renaming import Rules, rename, split

_TOKENS = (".vit.cls_token", ".vit.class_token")  # of timm, of torchvision
_TORCHVISION: Rules = [
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
]


def matches(file: WeightFile) -> bool:
    return _owner(file) is not None


def convert(file: WeightFile) -> Conversion:
    owner = _owner(file)
    assert owner is not None
    vit, others = split(file.weights, f"{owner}.vit.")
    wrapper, others = split(others, f"{owner}.")
    decoder, unused = take_mae_decoder(split(others, "decoder.")[0])
    left_out = dict.fromkeys(
        (f"{owner}.{name}" for name in wrapper), "the mask token of methods that keep masked tokens"
    )
    head, vit = split(vit, "head.")
    heads, vit = split(vit, "heads.")
    left_out |= {f"{owner}.vit.head.{name}": "of a head that no training of MAE touches" for name in head}
    left_out |= {f"{owner}.vit.heads.{name}": "of a head that no training of MAE touches" for name in heads}
    left_out |= {
        name: "not part of the backbone"
        for name in others
        if not name.startswith("decoder.") or name.removeprefix("decoder.") in unused
    }
    return infer_config.vit("lightly's MAE", _as_timm(vit), heads=decoder, left_out=left_out)


def _owner(file: WeightFile) -> str | None:
    """The name of the part that holds the masked ViT, such as "backbone"."""
    for name in file.weights:
        for token in _TOKENS:
            if name.endswith(token):
                return name.removesuffix(token)
    return None


def _as_timm(vit: dict[str, Tensor]) -> dict[str, Tensor]:
    return rename(vit, _TORCHVISION) if "class_token" in vit else vit
