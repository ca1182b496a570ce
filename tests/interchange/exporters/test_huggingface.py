from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from unmask.data.augmentation.transforms import resize_and_center_crop
from unmask.interchange.exporters.folder import write_export
from unmask.interchange.exporters.huggingface import HuggingFaceExporter


@torch.no_grad()
def test_a_classifier_opens_in_transformers_and_timm(
    backbone: Any, make_source, pixels: Tensor, images: Tensor, tmp_path: Path
) -> None:
    source = make_source(backbone)
    folder = tmp_path / "export"
    exported = write_export(HuggingFaceExporter(), source, folder)
    features = backbone.forward_pooled(images)
    logits = source.classifier(features)

    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    torch.testing.assert_close(model(images).logits, logits, rtol=0, atol=1e-5)
    assert tuple(model.config.id2label[index] for index in range(5)) == source.class_names
    assert model.config.label2id["dog"] == 3
    torch.testing.assert_close(
        AutoModel.from_pretrained(folder).eval()(images).pooler_output, features, rtol=0, atol=1e-5
    )
    prepared = AutoImageProcessor.from_pretrained(folder)(pixels)["pixel_values"]
    torch.testing.assert_close(prepared, images, rtol=0, atol=1e-5)
    opened = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(opened(images), logits, rtol=0, atol=1e-5)
    assert {path.name for path in exported.paths} == {"README.md", "config.json", "model.safetensors"}
    assert max(comparison.difference for comparison in exported.comparisons) <= 1e-5
    assert len(exported.comparisons) == 4


@torch.no_grad()
def test_a_backbone_alone_takes_a_new_classifier(backbone: Any, make_source, images: Tensor, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    write_export(HuggingFaceExporter(), make_source(backbone, classifier=None), folder)
    features = backbone.forward_pooled(images)
    opened = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(opened(images), features, rtol=0, atol=1e-5)
    # Where no number of classes is given transformers refuses, as the card says.
    with pytest.raises(ValueError, match="no classifier head"):
        AutoModelForImageClassification.from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder, num_labels=3).eval()
    assert model(images).logits.shape == (2, 3)
    pooled = model.timm_model.forward_head(model.timm_model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(pooled, features, rtol=0, atol=1e-5)


def test_all_weights_are_the_networks_own(make_vit, make_source, randomize, tmp_path: Path) -> None:
    backbone = randomize(make_vit(norm_after_pooling=True))
    source = make_source(backbone)
    write_export(HuggingFaceExporter(), source, tmp_path / "export")
    written = load_file(tmp_path / "export" / "model.safetensors")
    for name, weight in backbone.vit.state_dict().items():
        assert torch.equal(written.pop(name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name), weight)
    assert torch.equal(written.pop("head.weight"), source.classifier.linear.weight)
    assert torch.equal(written.pop("head.bias"), source.classifier.linear.bias)
    assert not written


def test_classes_without_names_are_numbered(make_vit, make_source, tmp_path: Path) -> None:
    """A thousand nameless classes would otherwise be taken for ImageNet's."""
    write_export(HuggingFaceExporter(), make_source(make_vit(depth=1), class_names=()), tmp_path / "export")
    config = AutoModelForImageClassification.from_pretrained(tmp_path / "export").config
    assert config.id2label == {index: f"LABEL_{index}" for index in range(5)}


@pytest.mark.parametrize(
    ("size", "interpolation"), [((32, 32), "bicubic"), ((32, 64), "bicubic"), ((32, 32), "bilinear")]
)
def test_photos_are_prepared_as_the_evaluation_prepares_them(
    make_vit, make_source, size: tuple[int, int], interpolation: str, tmp_path: Path
) -> None:
    backbone = make_vit(depth=1, image_size=size, pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1))
    source = make_source(backbone, crop_pct=0.75, interpolation=interpolation)
    write_export(HuggingFaceExporter(), source, tmp_path / "export")
    ramp = torch.linspace(0, 255, 100).outer(torch.linspace(0.2, 1, 140))
    photo = Image.fromarray(torch.stack([ramp, ramp.flip(0), ramp.flip(1)], dim=2).byte().numpy())
    prepared = AutoImageProcessor.from_pretrained(tmp_path / "export")(photo)["pixel_values"][0]
    ours = resize_and_center_crop(pil_to_tensor(photo), size, 0.75, interpolation=interpolation)
    assert (
        255 * prepared - ours
    ).abs().max() <= 4  # the longer side and the bytes are rounded in other ways; a crop a pixel away differs by 6


def test_a_classifier_of_several_layers_is_refused(make_vit, make_source, tmp_path: Path) -> None:
    from unmask.heads.classifier import BatchNormMLPClassifier  # noqa: PLC0415

    head = BatchNormMLPClassifier(in_features=24, num_classes=5, hidden_features=8).eval()
    with pytest.raises(ValueError, match=r"BatchNormMLPClassifier is more than one linear layer.*classifier=false"):
        write_export(HuggingFaceExporter(), make_source(make_vit(depth=1), classifier=head), tmp_path / "export")
    assert not list(tmp_path.iterdir())
