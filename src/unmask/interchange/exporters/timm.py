"""timm's own state dict."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.backbones.timm_spec import TimmSpec
from unmask.interchange.exporters.base import Comparison, ExportSource, compare_outputs, require_linear
from unmask.interchange.exporters.location import ExportLocation
from unmask.interchange.files import DESCRIPTION_KEY

WEIGHTS_NAME = "model.safetensors"


class TimmExporter:
    """Writes `model.safetensors`, which timm's model of the same arguments takes as it is.

    The model card holds the call of `timm.create_model` that fits.
    """

    name = "timm"
    library = "timm"

    def write(self, source: ExportSource, folder: Path) -> None:
        form = source.backbone.to_timm()
        published = {"crop_pct": source.crop_pct, "crop_mode": "center", "interpolation": source.interpolation}
        published |= {"mean": list(source.backbone.pixel_mean), "std": list(source.backbone.pixel_std)}
        described = {"architecture": form.name, "model_args": dict(form.arguments), "pretrained_cfg": published}
        described |= {"label_names": list(source.class_names)} if source.class_names else {}
        header = {"format": "pt", DESCRIPTION_KEY: json.dumps(described)}  # by which importing knows the heads again
        save_file(timm_weights(source, form), folder / WEIGHTS_NAME, metadata=header)

    def compare(self, source: ExportSource, folder: Path) -> list[Comparison]:
        form = source.backbone.to_timm()
        model = timm.create_model(form.name, num_classes=num_classes(source), **form.arguments)
        model.load_state_dict(load_file(folder / WEIGHTS_NAME))
        return [compare_timm(model, source, what=f"{source.output_name} in timm")]

    def usage(self, source: ExportSource, location: ExportLocation) -> str:
        form = source.backbone.to_timm()
        mean, std = (list(values) for values in (source.backbone.pixel_mean, source.backbone.pixel_std))
        return "\n".join(
            [
                "```python",
                "import timm",
                *location.imports,
                "from safetensors.torch import load_file",
                "",
                f"model = timm.create_model({create_arguments(source, form)})",
                f"model.load_state_dict(load_file({location.file(WEIGHTS_NAME)}))",
                f"{source.output_name} = model.eval()(images)",
                "```",
                "",
                f"`images`: pixels in 0..1, minus {mean}, divided by {std}.",
            ]
        )


def timm_weights(source: ExportSource, form: TimmSpec) -> dict[str, Tensor]:
    """Lays out all weights under timm's names.

    Raises:
        ValueError: The classifier is more than one linear layer.
    """
    weights = dict(form.state_dict)
    if source.classifier is not None:
        linear = require_linear(source.classifier)
        weights |= {f"{form.classifier}.{name}": weight for name, weight in linear.items()}
    return {name: weight.detach().contiguous() for name, weight in weights.items()}


def num_classes(source: ExportSource) -> int:
    """Counts the logits; 0 for a backbone alone."""
    return 0 if source.classifier is None else len(require_linear(source.classifier)["bias"])


def create_arguments(source: ExportSource, form: TimmSpec) -> str:
    """Writes the arguments of `timm.create_model` as one types them."""
    arguments: Mapping[str, Any] = {**form.arguments, "num_classes": num_classes(source)}
    return ", ".join([f'"{form.name}"', *(f"{name}={value!r}" for name, value in arguments.items())])


def compare_timm(model: Any, source: ExportSource, *, what: str) -> Comparison:
    """Compares a model of timm with the network it was made from."""
    images = source.normalize(source.trial_pixels(2))
    with torch.no_grad():
        return compare_outputs(model.eval()(images), source.outputs(images), what=what)
