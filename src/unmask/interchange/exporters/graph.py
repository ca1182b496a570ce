"""The network as one computation from pixels to outputs, for formats that keep the computation itself."""

import json

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unmask.interchange.exporters.base import ExportSource
from unmask.types import Images

INPUT_NAME = "images"


class PixelsToOutputs(nn.Module):
    """Normalizes pixels in 0..1 and computes logits, or pooled features where there is no classifier."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, source: ExportSource) -> None:
        super().__init__()
        self.backbone = source.backbone
        self.classifier = source.classifier or nn.Identity()
        self.register_buffer("pixel_mean", torch.tensor(source.backbone.pixel_mean)[:, None, None])
        self.register_buffer("pixel_std", torch.tensor(source.backbone.pixel_std)[:, None, None])

    def forward(self, images: Images) -> Float[Tensor, "b outputs"]:
        outputs: Tensor = self.classifier(self.backbone.forward_pooled((images - self.pixel_mean) / self.pixel_std))
        return outputs


def description(source: ExportSource) -> str:
    """Says in JSON what goes in and comes out, for programs that hold the file alone."""
    channels, (height, width) = source.backbone.in_channels, source.backbone.image_size
    return json.dumps(
        {
            "input": {"name": INPUT_NAME, "shape": ["batch", channels, height, width], "values": "in 0..1"},
            "output": source.output_name,
            "class_names": list(source.class_names),
            "crop_pct": source.crop_pct,
            "interpolation": source.interpolation,
        },
        ensure_ascii=False,
    )


def input_sentence(source: ExportSource) -> str:
    """Says in Markdown what the network takes and gives."""
    channels, (height, width) = source.backbone.in_channels, source.backbone.image_size
    colors = "RGB in 0..1" if channels == 3 else "values in 0..1"
    outputs = "logits of the classes below" if source.classifier is not None else "pooled features"
    shape = f"[batch, {channels}, {height}, {width}]"
    return (
        f"`images`: float32 of shape {shape}, {colors}, normalized by the network itself. "
        f"The batch may be of any size. Out come {outputs}, one row an image."
    )
