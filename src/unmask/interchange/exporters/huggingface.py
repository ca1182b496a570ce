"""One folder for Hugging Face's transformers and for timm."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from unmask.interchange.exporters.base import Comparison, ExportSource, compare_outputs
from unmask.interchange.exporters.location import ExportLocation
from unmask.interchange.exporters.preparation import trial_photos
from unmask.interchange.exporters.quiet import quiet_transformers
from unmask.interchange.exporters.timm import WEIGHTS_NAME, compare_timm, num_classes, timm_weights

CONFIG_NAME = "config.json"


class HuggingFaceExporter:
    """Writes `config.json` and `model.safetensors` in the layout timm and transformers share.

    transformers opens the folder as `AutoModel`, `AutoImageProcessor` (which reads `config.json`) and, with a
    classifier, `AutoModelForImageClassification`; timm as `local-dir:`. timm's own `save_for_hf` writes `num_classes`
    among the arguments of the architecture, where transformers 5 meets it twice and stops; here it stands beside them.
    It would also copy what timm says of the published weights of that name, which these are not.
    """

    name = "huggingface"
    library = "timm"

    def write(self, source: ExportSource, folder: Path) -> None:
        form = source.backbone.to_timm()
        save_file(timm_weights(source, form), folder / WEIGHTS_NAME, metadata={"format": "pt"})
        content = json.dumps(_configuration(source), indent=2, ensure_ascii=False) + "\n"
        (folder / CONFIG_NAME).write_text(content, encoding="utf-8")

    def compare(self, source: ExportSource, folder: Path) -> list[Comparison]:
        opened = timm.create_model(ExportLocation(str(folder)).timm_name, pretrained=True)
        comparisons = [compare_timm(opened, source, what=f"{source.output_name} in timm")]
        if find_spec("transformers") is not None:
            comparisons += _compare_transformers(source, folder)
        return comparisons

    def usage(self, source: ExportSource, location: ExportLocation) -> str:
        return "\n\n".join([_usage_transformers(source, location), _usage_timm(source, location)])


def _configuration(source: ExportSource) -> dict[str, Any]:
    form = source.backbone.to_timm()
    count = num_classes(source)
    names = list(source.class_names) or [f"LABEL_{index}" for index in range(count)]  # transformers' own default
    return {
        "architecture": form.name,
        "num_classes": count,
        "num_features": source.backbone.embed_dim,
        "global_pool": form.arguments["global_pool"],
        **({"label_names": names} if count else {}),
        "model_args": dict(form.arguments),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [source.backbone.in_channels, *source.backbone.image_size],
            "fixed_input_size": True,
            "interpolation": source.interpolation,
            "crop_pct": source.crop_pct,
            "crop_mode": "center",
            "mean": list(source.backbone.pixel_mean),
            "std": list(source.backbone.pixel_std),
            "num_classes": count,
            "first_conv": "patch_embed.proj",
            "classifier": form.classifier,
        },
    }


def _compare_transformers(source: ExportSource, folder: Path) -> list[Comparison]:
    from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification  # noqa: PLC0415 (an extra)

    images = source.normalize(source.trial_pixels(2))
    photos, expected_photos = trial_photos(source, 2)
    with quiet_transformers(), torch.no_grad():
        features: Tensor = AutoModel.from_pretrained(folder).eval()(images).pooler_output
        prepared = AutoImageProcessor.from_pretrained(folder)(photos)["pixel_values"]
        expected = source.backbone.forward_pooled(images)
        comparisons = [
            compare_outputs(features, expected, what="features in transformers"),
            compare_outputs(prepared, expected_photos, what="prepared images in transformers"),
        ]
        if source.classifier is not None:
            logits = AutoModelForImageClassification.from_pretrained(folder).eval()(images).logits
            comparisons.append(compare_outputs(logits, source.outputs(images), what="logits in transformers"))
    return comparisons


def _usage_transformers(source: ExportSource, location: ExportLocation) -> str:
    if source.classifier is None:
        model, outputs = "AutoModel", "features = model(**inputs).pooler_output  # one vector an image"
        note = (
            "There is no classifier in it: `AutoModelForImageClassification.from_pretrained(..., num_labels=N)` puts "
            "an untrained one of N classes on it, to be fine-tuned; without `num_labels` it refuses."
        )
    else:
        model = "AutoModelForImageClassification"
        outputs = "print(model.config.id2label[model(**inputs).logits.argmax().item()])"
        note = "`AutoModel` gives the features behind the classifier in `pooler_output`."
    code = [
        "```python",
        "from PIL import Image",
        f"from transformers import AutoImageProcessor, {model}",
        "",
        f'processor = AutoImageProcessor.from_pretrained("{location.name}")',
        f'model = {model}.from_pretrained("{location.name}").eval()',
        'inputs = processor(Image.open("photo.jpg").convert("RGB"))',
        outputs,
        "```",
    ]
    return "\n".join([*code, "", note])


def _usage_timm(source: ExportSource, location: ExportLocation) -> str:
    return "\n".join(
        [
            "```python",
            "import timm",
            "",
            f'model = timm.create_model("{location.timm_name}", pretrained=True).eval()',
            "prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            f"{source.output_name} = model(prepare(image)[None])  # image: of PIL, RGB",
            "```",
        ]
    )
