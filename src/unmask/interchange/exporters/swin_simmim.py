"""SimMIM on Swin with its head, for transformers."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from unmask.interchange.exporters.base import Comparison, ExportSource, compare_outputs
from unmask.interchange.exporters.pretraining import PretrainingExporter
from unmask.interchange.exporters.transformers_names import Renames, block_renames, rename_for_transformers
from unmask.patches import PatchMask, patch_grid
from unmask.types import Images

_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
_RENAMES: Renames = [
    (r"patch_embed\.proj\.(\w+)", r"swin.embeddings.patch_embeddings.projection.\1"),
    (r"patch_embed\.norm\.(\w+)", r"swin.embeddings.norm.\1"),
    (r"norm\.(\w+)", r"swin.layernorm.\1"),
    (r"layers\.(\d+)\.downsample\.(\w+)\.(\w+)", r"swin.encoder.layers.\1.downsample.\2.\3"),
    *block_renames(_BLOCK, r"swin.encoder.layers.\1.blocks.\2.", attention="self"),
    (
        _BLOCK + r"attn\.(relative_position_bias_table)",
        r"swin.encoder.layers.\1.blocks.\2.attention.self.\3",
    ),
    ("mask_token", "swin.embeddings.mask_token"),
    (r"project\.(\w+)", r"decoder.0.\1"),
]


@runtime_checkable
class FillsMaskedTokens(Protocol):
    """A module that puts a mask token in the place of masked tokens and predicts pixels by one layer."""

    def masked_tokens(self, mask: PatchMask) -> Tensor: ...


class SwinSimMIMExporter(PretrainingExporter):
    """Writes what `transformers.SwinForMaskedImageModeling` opens: Swin, mask token and prediction head."""

    name = "swin_simmim"
    class_name = "SwinForMaskedImageModeling"

    def require_method(self, source: ExportSource) -> Any:
        method = source.method
        if not isinstance(method, FillsMaskedTokens) or not source.backbone.to_timm().name.startswith("swin"):
            kept = (
                "a backbone alone" if method is None else f"{type(method).__name__} on {type(source.backbone).__name__}"
            )
            raise ValueError(
                f"format=swin_simmim is for a training checkpoint of SimMIM on Swin, whose head it includes; this is "
                f"{kept}: use format=huggingface"
            )
        return method

    def weights(self, method: Any) -> dict[str, Tensor]:
        swin = method.backbone.swin.state_dict()
        weights = {_merging_closes_a_stage(name): weight for name, weight in swin.items()}
        weights |= {"mask_token": method.mask_token.view(1, 1, -1), **method.head.state_dict()}
        return rename_for_transformers(weights, _RENAMES, format_name=self.name)

    def compare_networks(self, method: Any, theirs: Any, images: Images) -> list[Comparison]:
        mask = method.mask_generator(images, torch.arange(2))
        computed = theirs(images, bool_masked_pos=method.masked_tokens(mask).flatten(1))
        ours = method(images, mask)
        return [
            compare_outputs(computed.loss, ours.loss, what="losses in transformers", tolerance=1e-6),
            compare_outputs(computed.reconstruction, ours.prediction, what="predicted pixels in transformers"),
        ]

    def usage_lines(self, source: ExportSource) -> tuple[Sequence[str], Sequence[str]]:
        stride = source.backbone.stages[0].stride
        num_tokens = math.prod(patch_grid(source.backbone.image_size, stride))
        return ["import torch"], [
            f"masked = torch.rand(1, {num_tokens}) < 0.6  # one a token of {stride} px; True is masked",
            "reconstruction = model(**inputs, bool_masked_pos=masked).reconstruction",
        ]

    def configuration(self, method: Any, side: int) -> Mapping[str, Any]:
        swin, stages = method.backbone.swin, method.backbone.stages
        _require_one_window(swin)
        block = swin.layers[0].blocks[0]
        return {
            "model_type": "swin",
            "image_size": side,
            "patch_size": stages[0].stride,
            "num_channels": 3,
            "embed_dim": stages[0].channels,
            "depths": [len(stage.blocks) for stage in swin.layers],
            "num_heads": [stage.blocks[0].attn.num_heads for stage in swin.layers],
            "window_size": block.window_size[0],
            "mlp_ratio": block.mlp.fc1.out_features / stages[0].channels,
            "qkv_bias": block.attn.qkv.bias is not None,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "drop_path_rate": method.backbone.settings["drop_path_rate"],
            "hidden_act": "gelu",
            "use_absolute_embeddings": False,
            "layer_norm_eps": swin.norm.eps,
            "encoder_stride": stages[-1].stride,
        }


def _require_one_window(swin: Any) -> None:
    """Refuses windows of a stage that transformers would make smaller or keep, other than timm does."""
    if any(block.always_partition for stage in swin.layers for block in stage.blocks):
        raise ValueError(
            "format=swin_simmim clamps windows to small stages, this network has always_partition=true and does not; "
            "use format=huggingface for its backbone"
        )
    sizes = [tuple(block.window_size) for stage in swin.layers for block in stage.blocks]
    if any(size != (sizes[0][0], sizes[0][0]) for size in sizes):
        shown = ", ".join(f"{height}x{width}" for height, width in dict.fromkeys(sizes))
        raise ValueError(
            f"format=swin_simmim has one window for all stages, this network has windows of {shown} tokens, since a "
            "stage's grid is smaller than its window; use format=huggingface for its backbone"
        )


def _merging_closes_a_stage(name: str) -> str:
    """Counts a merging of patches with the stage before it, as transformers does; in timm it opens the next one."""
    return re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name)
