"""MAE with its decoder, for transformers."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from unmask.interchange.exporters.base import Comparison, ExportSource, compare_outputs
from unmask.interchange.exporters.location import ExportLocation
from unmask.interchange.exporters.quiet import quiet_transformers
from unmask.interchange.exporters.timm import WEIGHTS_NAME
from unmask.interchange.exporters.transformers_names import (
    Renames,
    block_renames,
    compare_processor,
    rename_for_transformers,
    require_square,
    require_transformers,
    write_json,
    write_processor,
)

_ENCODER: Renames = [
    ("cls_token", "vit.embeddings.cls_token"),
    ("pos_embed", "vit.embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(\w+)", r"vit.embeddings.patch_embeddings.projection.\1"),
    (r"norm\.(\w+)", r"vit.layernorm.\1"),
    *block_renames(r"blocks\.(\d+)\.", r"vit.encoder.layer.\1.", attention="attention"),
]
_DECODER: Renames = [
    ("mask_token", "decoder.mask_token"),
    ("pos_embed", "decoder.decoder_pos_embed"),
    (r"embed\.(\w+)", r"decoder.decoder_embed.\1"),
    (r"norm\.(\w+)", r"decoder.decoder_norm.\1"),
    (r"predict\.(\w+)", r"decoder.decoder_pred.\1"),
    *block_renames(r"blocks\.(\d+)\.", r"decoder.decoder_layers.\1.", attention="attention"),
]


class ViTMAEExporter:
    """Writes what `transformers.ViTMAEForPreTraining` opens: encoder, decoder and the loss's settings.

    The names are those of transformers 4, which transformers 5 reads too.
    """

    name = "vitmae"
    library = "transformers"

    def write(self, source: ExportSource, folder: Path) -> None:
        require_transformers("vitmae")
        method = _require_mae(source)
        side = require_square(source, "vitmae")
        weights = rename_for_transformers(method.backbone.vit.state_dict(), _ENCODER, format_name="vitmae")
        weights |= rename_for_transformers(method.decoder.state_dict(), _DECODER, format_name="vitmae")
        save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        write_json(_configuration(method, side), folder / "config.json")
        write_processor(source, folder)

    def compare(self, source: ExportSource, folder: Path) -> list[Comparison]:
        from transformers import ViTMAEForPreTraining  # noqa: PLC0415 (an extra)

        method = _require_mae(source)
        images = source.normalise(source.trial_pixels(2))
        mask = method.patch_mask(method.mask_generator(images, torch.arange(2)))
        masked = mask.masked.flatten(1)
        order = torch.linspace(0.0, 0.5, masked.shape[1])  # transformers keeps the patches of the lowest noise
        with quiet_transformers(), torch.no_grad():
            theirs = ViTMAEForPreTraining.from_pretrained(folder).eval()(images, noise=masked + order)
            ours = method(images, mask)
            predicted = method.predict_patches(images, mask)
        return [
            compare_outputs(theirs.mask, masked.float(), what="masked patches in transformers", tolerance=0.0),
            compare_outputs(theirs.loss, ours.loss, what="losses in transformers", tolerance=1e-6),
            compare_outputs(theirs.logits, predicted, what="predicted patches in transformers"),
            compare_processor(source, folder),
        ]

    def usage(self, source: ExportSource, location: ExportLocation) -> str:
        return "\n".join(
            [
                "```python",
                "from PIL import Image",
                "from transformers import AutoImageProcessor, ViTMAEForPreTraining",
                "",
                f'processor = AutoImageProcessor.from_pretrained("{location.name}")',
                f'model = ViTMAEForPreTraining.from_pretrained("{location.name}").eval()',
                'inputs = processor(Image.open("photo.jpg").convert("RGB"), return_tensors="pt")',
                "loss = model(**inputs).loss  # under a random mask",
                "```",
            ]
        )


def _require_mae(source: ExportSource) -> Any:
    if not hasattr(source.method, "decoder"):
        kept = "a backbone alone" if source.method is None else type(source.method).__name__
        raise ValueError(
            f"format=vitmae is for a training checkpoint of MAE, whose decoder it includes; this is {kept}: "
            "use format=huggingface"
        )
    return source.method


def _configuration(method: Any, side: int) -> dict[str, Any]:
    vit, decoder = method.backbone.vit, method.decoder
    block, decoder_block = vit.blocks[0], decoder.blocks[0]
    return {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "image_size": side,
        "patch_size": method.backbone.patch_size,
        "num_channels": 3,
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": vit.norm.eps,
        "qkv_bias": block.attn.qkv.bias is not None,
        "decoder_hidden_size": decoder.embed.out_features,
        "decoder_num_hidden_layers": len(decoder.blocks),
        "decoder_num_attention_heads": decoder_block.attn.num_heads,
        "decoder_intermediate_size": decoder_block.mlp.fc1.out_features,
        "mask_ratio": _mask_ratio(method.mask_generator(torch.empty(1, 3, side, side)).masked),
        "norm_pix_loss": method.norm_pix_loss,
    }


def _mask_ratio(masked: Tensor) -> float:
    """Finds a ratio from which transformers computes `int(patches * (1 - ratio))`, the patches kept here."""
    num_patches, num_masked = masked.numel(), int(masked.sum())
    ratios = (round(num_masked / num_patches, 4), num_masked / num_patches, (num_masked - 0.5) / num_patches)
    return next(ratio for ratio in ratios if int(num_patches * (1 - ratio)) == num_patches - num_masked)
