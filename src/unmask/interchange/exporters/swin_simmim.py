"""SimMIM on Swin with its head, for transformers."""

import math
import re
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
from unmask.patches import patch_grid

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


class SwinSimMIMExporter:
    """Writes what `transformers.SwinForMaskedImageModeling` opens: Swin, mask token and prediction head.

    The names are those of transformers 4, which transformers 5 reads too.
    """

    name = "swin_simmim"
    library = "transformers"

    def write(self, source: ExportSource, folder: Path) -> None:
        require_transformers("swin_simmim")
        method = _require_simmim(source)
        side = require_square(source, "swin_simmim")
        _require_one_window(method.backbone.swin)
        save_file(_weights(method), folder / WEIGHTS_NAME, metadata={"format": "pt"})
        write_json(_configuration(method, side), folder / "config.json")
        write_processor(source, folder)

    def compare(self, source: ExportSource, folder: Path) -> list[Comparison]:
        from transformers import SwinForMaskedImageModeling  # noqa: PLC0415 (an extra)

        method = _require_simmim(source)
        images = source.normalise(source.trial_pixels(2))
        mask = method.mask_generator(images, torch.arange(2))
        masked = mask.at_stride(method.backbone.stages[0].stride).flatten(1)
        with quiet_transformers(), torch.no_grad():
            theirs = SwinForMaskedImageModeling.from_pretrained(folder).eval()(images, bool_masked_pos=masked)
            ours = method(images, mask)
        return [
            compare_outputs(theirs.loss, ours.loss, what="losses in transformers", tolerance=1e-6),
            compare_outputs(theirs.reconstruction, ours.prediction, what="predicted pixels in transformers"),
            compare_processor(source, folder),
        ]

    def usage(self, source: ExportSource, location: ExportLocation) -> str:
        stride = source.backbone.stages[0].stride
        num_tokens = math.prod(patch_grid(source.backbone.image_size, stride))
        return "\n".join(
            [
                "```python",
                "import torch",
                "from PIL import Image",
                "from transformers import AutoImageProcessor, SwinForMaskedImageModeling",
                "",
                f'processor = AutoImageProcessor.from_pretrained("{location.name}")',
                f'model = SwinForMaskedImageModeling.from_pretrained("{location.name}").eval()',
                'inputs = processor(Image.open("photo.jpg").convert("RGB"), return_tensors="pt")',
                f"masked = torch.rand(1, {num_tokens}) < 0.6  # one a token of {stride} px; True is masked",
                "reconstruction = model(**inputs, bool_masked_pos=masked).reconstruction",
                "```",
            ]
        )


def _require_simmim(source: ExportSource) -> Any:
    method = source.method
    if not hasattr(method, "mask_token") or not hasattr(method.backbone, "swin"):
        kept = "a backbone alone" if method is None else f"{type(method).__name__} on {type(method.backbone).__name__}"
        raise ValueError(
            f"format=swin_simmim is for a training checkpoint of SimMIM on Swin, whose head it includes; this is {kept}"
            ": use format=huggingface"
        )
    return method


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


def _weights(method: Any) -> dict[str, Tensor]:
    weights = {_merging_closes_a_stage(name): weight for name, weight in method.backbone.swin.state_dict().items()}
    weights |= {"mask_token": method.mask_token.view(1, 1, -1), **method.head.state_dict()}
    return rename_for_transformers(weights, _RENAMES, format_name="swin_simmim")


def _merging_closes_a_stage(name: str) -> str:
    """Counts a merging of patches with the stage before it, as transformers does; in timm it opens the next one."""
    return re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name)


def _configuration(method: Any, side: int) -> dict[str, Any]:
    swin, stages = method.backbone.swin, method.backbone.stages
    block = swin.layers[0].blocks[0]
    return {
        "architectures": ["SwinForMaskedImageModeling"],
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
