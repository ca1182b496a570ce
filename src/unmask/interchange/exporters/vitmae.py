"""MAE with its decoder, for transformers."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from unmask.interchange.exporters.base import Comparison, ExportSource, compare_outputs
from unmask.interchange.exporters.pretraining import PretrainingExporter
from unmask.interchange.exporters.transformers_names import Renames, block_renames, rename_for_transformers
from unmask.patches import PatchMask
from unmask.types import Images

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


@runtime_checkable
class PredictsPatches(Protocol):
    """A module whose decoder predicts every patch of an image from those that are visible."""

    def predict_patches(self, images: Images, mask: PatchMask) -> Tensor: ...

    def patch_mask(self, mask: PatchMask) -> PatchMask: ...


class ViTMAEExporter(PretrainingExporter):
    """Writes what `transformers.ViTMAEForPreTraining` opens: encoder, decoder and the loss's settings."""

    name = "vitmae"
    class_name = "ViTMAEForPreTraining"

    def require_method(self, source: ExportSource) -> Any:
        if not isinstance(source.method, PredictsPatches):
            kept = "a backbone alone" if source.method is None else type(source.method).__name__
            raise ValueError(
                f"format=vitmae is for a training checkpoint of MAE, whose decoder it includes; this is {kept}: "
                "use format=huggingface"
            )
        method: Any = source.method
        if not method.backbone.num_prefix_tokens:
            raise ValueError(
                f"format=vitmae is for MAE on a ViT, which has a class token; this one trained a "
                f"{type(method.backbone).__name__}: use format=huggingface for its backbone"
            )
        return method

    def weights(self, method: Any) -> dict[str, Tensor]:
        weights = rename_for_transformers(method.backbone.vit.state_dict(), _ENCODER, format_name=self.name)
        return weights | rename_for_transformers(method.decoder.state_dict(), _DECODER, format_name=self.name)

    def compare_networks(self, method: Any, theirs: Any, images: Images) -> list[Comparison]:
        mask = method.patch_mask(method.mask_generator(images, torch.arange(2)))
        masked = mask.masked.flatten(1)
        order = torch.linspace(0.0, 0.5, masked.shape[1])  # transformers keeps the patches of the lowest noise
        computed = theirs(images, noise=masked + order)
        predicted = method.predict_patches(images, mask)
        return [
            compare_outputs(computed.mask, masked.float(), what="masked patches in transformers", tolerance=0.0),
            compare_outputs(computed.loss, method(images, mask).loss, what="losses in transformers", tolerance=1e-6),
            compare_outputs(computed.logits, predicted, what="predicted patches in transformers"),
        ]

    def usage_lines(self, source: ExportSource) -> tuple[Sequence[str], Sequence[str]]:
        return [], ["loss = model(**inputs).loss  # under a random mask"]

    def configuration(self, method: Any, side: int) -> Mapping[str, Any]:
        vit, decoder = method.backbone.vit, method.decoder
        block, decoder_block = vit.blocks[0], decoder.blocks[0]
        return {
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
