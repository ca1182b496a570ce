"""Classifiers of other programs are measured, name classes and are exported as they are."""

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import unmask
from unmask.runtime import inference, named_preprocessing
from unmask.runtime.checkpoint import load_module
from unmask.runtime.config import compose_config
from unmask.runtime.evaluate import evaluate
from unmask.runtime.export import checkpoint_source, export

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
NAMES = ("ant", "bee", "cow")


class Taught:
    """A ViT of timm that classifies each of some images as their folders do, and those images."""

    def __init__(self, model: nn.Module, folder: Path, data: Path) -> None:
        self.model, self.folder, self.data = model, folder, data

    def write(self, *, names: tuple[str, ...] | None, order: tuple[int, ...] = (0, 1, 2)) -> Path:
        """Saves it with its outputs in some order, and with their names, in this order."""
        self.folder.mkdir(exist_ok=True)
        weights = dict(self.model.state_dict())
        weights |= {f"head.{part}": weights[f"head.{part}"][list(order)] for part in ("weight", "bias")}
        save_file(weights, self.folder / "model.safetensors")
        told = {"architecture": "vit_tiny_patch16_224", "model_args": SIZES, "num_classes": 3}
        told |= {} if names is None else {"label_names": [names[number] for number in order]}
        (self.folder / "config.json").write_text(json.dumps(told))
        return self.folder


@pytest.fixture
def taught(randomize: Callable[[nn.Module], nn.Module], tmp_path: Path) -> Taught:
    model = randomize(timm.create_model("vit_tiny_patch16_224", num_classes=3, **SIZES))
    pixels = torch.randint(0, 256, (18, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        logits = model((pixels / 255 - mean) / std)
        model.head.bias -= logits.median(dim=0).values  # so that each class is seen
        classes = (logits - logits.median(dim=0).values).argmax(dim=1).tolist()
    assert set(classes) == {0, 1, 2}
    for number, (image, chosen) in enumerate(zip(pixels, classes, strict=True)):
        for split in ("train", "test"):
            place = tmp_path / "data" / split / NAMES[chosen]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number:02}.png")
    return Taught(model, tmp_path / "model", tmp_path / "data")


def run(tmp_path: Path, *overrides: str) -> Any:
    quiet = ["logger=none", "callbacks=none", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "name=x"]
    quiet += ["trainer.precision=32-true"]  # so that no image is a close call
    evaluate(compose_config("eval", [*quiet, f"paths.run_dir={tmp_path}", "global_batch_size=6", *overrides]))
    report = tmp_path / "report.json"
    return json.loads(report.read_text())["reports"]["checkpoint"] if report.exists() else None


def of_folder(taught: Taught) -> list[str]:
    return ["data=folder", f"data.root={taught.data}", "data.crop_pct=1.0", "data.num_workers=0"]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(
    ("order", "names", "top1", "finding"),
    [
        ((0, 1, 2), NAMES, 100.0, "class order verified by name"),
        ((2, 0, 1), NAMES, 100.0, "outputs put in the order of the data's classes by name"),
        ((0, 1, 2), None, 100.0, "class order not verified: the file does not name its classes"),
        ((2, 0, 1), None, 0.0, "class order not verified: the file does not name its classes"),
    ],
)
def test_accuracy_is_measured_in_the_order_of_the_data(
    taught: Taught, tmp_path: Path, *, order: tuple[int, ...], names: Any, top1: float, finding: str
) -> None:
    path = taught.write(names=names, order=order)
    report = run(tmp_path, "eval=test", f"ckpt_path={path}", *of_folder(taught))
    assert report["metrics"]["top1"] == top1
    assert report["settings"]["class_order"] == finding
    assert (finding in report["protocol"]) == (finding != "class order verified by name")


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_other_names_are_refused_unless_the_order_is_given(taught: Taught, tmp_path: Path) -> None:
    path = taught.write(names=("ameise", "biene", "kuh"))
    measured = ["eval=test", f"ckpt_path={path}", *of_folder(taught)]
    with pytest.raises(ValueError, match=r"'ant' of the data is no single class of the classifier"):
        run(tmp_path, *measured)
    report = run(tmp_path, *measured, "eval.class_order=data")
    assert report["metrics"]["top1"] == 100.0
    assert "class order not verified: that of the data, by eval.class_order=data" in report["protocol"]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_classifier_is_measured_at_another_image_size(taught: Taught, tmp_path: Path) -> None:
    path = taught.write(names=NAMES)
    report = run(tmp_path, "eval=test", f"ckpt_path={path}", *of_folder(taught), "backbone.image_size=16")
    assert report["metrics"]["top1"] < 100.0


def test_data_without_labels_are_refused_in_a_sentence(taught: Taught, tmp_path: Path) -> None:
    path = taught.write(names=NAMES)
    with pytest.raises(ValueError, match=r"eval=test needs labels, but the test split of ImageFolder has none"):
        run(tmp_path, "eval=test", f"ckpt_path={path}", *of_folder(taught), "data.labels=none")


def test_a_backbone_alone_is_not_measured(original_file: Any, taught: Taught, tmp_path: Path) -> None:
    path, _ = original_file("simmim-vit-pretrain")
    with pytest.raises(ValueError, match=r"SimMIM's ViT, pre-trained.* holds no classifier; use its backbone"):
        run(tmp_path, "eval=test", f"ckpt_path={path}", *of_folder(taught))


def predictions(tmp_path: Path) -> dict[str, str]:
    rows = csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines())
    return {Path(row["image"]).name: row["class"] for row in rows}


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_classes_are_named_by_the_file_else_by_the_data_else_by_number(
    taught: Taught, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth = {file.name: file.parent.name for file in (taught.data / "test").glob("*/*.png")}
    of_images = ["eval=predict", f"image={taught.data / 'test'}", "eval.crop_pct=1.0"]
    german = dict(zip(NAMES, ("ameise", "biene", "kuh"), strict=True))
    path = taught.write(names=tuple(german.values()))
    run(tmp_path, *of_images, f"ckpt_path={path}", *of_folder(taught))
    assert predictions(tmp_path) == {image: german[name] for image, name in truth.items()}

    taught.write(names=None)
    with caplog.at_level(logging.INFO, logger="unmask"):
        run(tmp_path, *of_images, f"ckpt_path={path}", *of_folder(taught))
    assert predictions(tmp_path) == truth
    assert "does not name its classes; they have the names of the data's, in that order" in caplog.text
    run(tmp_path, *of_images, f"ckpt_path={path}")
    assert predictions(tmp_path) == {image: f"class {NAMES.index(name)}" for image, name in truth.items()}


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_names_of_other_data_are_not_given_to_outputs(taught: Taught, tmp_path: Path) -> None:
    path = taught.write(names=None)
    with pytest.raises(ValueError, match=r"has 3 outputs and does not name them, and the data have 10 classes"):
        run(tmp_path, "eval=predict", f"image={taught.data}", f"ckpt_path={path}", "data=synthetic")


@pytest.mark.parametrize("format_name", ["huggingface", "timm"])
def test_an_export_keeps_classifier_names_and_pooling(taught: Taught, tmp_path: Path, format_name: str) -> None:
    path = taught.write(names=NAMES)
    folder = tmp_path / "export"
    export(compose_config("export", [f"ckpt_path={path}", f"format={format_name}", f"directory={folder}"]))
    images = torch.randn(2, 3, 32, 32)
    module, outputs, _ = load_module(folder if format_name == "huggingface" else folder / "model.safetensors")
    assert tuple(outputs.class_names) == NAMES
    assert module.backbone.pooling == "cls"
    with torch.no_grad():
        torch.testing.assert_close(module(images), taught.model(images), rtol=0, atol=1e-5)
    assert "its class token" in (folder / "README.md").read_text()


def test_an_export_without_the_classifier_gives_the_features_of_evaluation(taught: Taught, tmp_path: Path) -> None:
    source = checkpoint_source(taught.write(names=NAMES), keep_classifier=False)
    assert source.classifier is None
    assert source.backbone.pooling == "mean"


def test_a_method_is_made_of_another_programs_classifier(taught: Taught) -> None:
    module, images = unmask.load_method(taught.write(names=NAMES)), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(module(images), taught.model(images), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="measured as it is and not trained; use eval=finetune"):
        module.configure_optimizers()


def test_the_backbone_of_a_training_checkpoint_is_not_changed_under_its_head() -> None:
    own = Path(__file__).parent.parent / "format_1" / "last.ckpt"
    with pytest.raises(
        ValueError, match=r"states all settings of the backbone its head was trained on; leave out image"
    ):
        load_module(own, image_size=64)


# ---- preprocessing that a file names


def name_preprocessing(taught: Taught, kind: str, **named: Any) -> Path:
    """Writes the classifier with what timm's `config.json`, before 1.0 or today, says of images."""
    folder = taught.write(names=NAMES)
    told = json.loads((folder / "config.json").read_text())
    told |= {"pretrained_cfg": named} if kind == "timm" else named
    (folder / "config.json").write_text(json.dumps(told))
    return folder


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("kind", ["timm", "older timm"])
def test_images_are_prepared_as_the_file_says_below_what_the_user_says(
    taught: Taught, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = name_preprocessing(taught, kind, crop_pct=0.6, interpolation="bilinear", mean=[0.5] * 3, std=[0.25] * 3)
    measured = ["eval=test", f"ckpt_path={path}", *of_folder(taught)]
    with caplog.at_level(logging.INFO, logger="unmask"):
        report = run(tmp_path, *measured)
    assert report["settings"]["images"] == "32x32 px, center crop 0.6 of an image resized bilinear"
    said = "images of 32x32 px prepared as its config.json says: crop_pct=0.6, interpolation=bilinear, mean 0.5 0.5 0.5"
    assert f"{path}: {said}, std 0.25 0.25 0.25" in caplog.text
    with caplog.at_level(logging.INFO, logger="unmask"):
        report = run(tmp_path, *measured, "crop_pct=0.8", "interpolation=bicubic")
    assert report["settings"]["images"] == "32x32 px, center crop 0.8"
    assert "; yours: crop_pct, interpolation" in caplog.text


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_crop_of_the_data_that_is_typed_goes_before_the_files(
    taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = name_preprocessing(taught, "timm", crop_pct=0.6, interpolation="bilinear")
    monkeypatch.setattr(named_preprocessing, "_is_typed", {"data.crop_pct": True, "data.interpolation": False}.get)
    report = run(tmp_path, "eval=test", f"ckpt_path={path}", *of_folder(taught))
    assert report["settings"]["images"] == "32x32 px, center crop 1 of an image resized bilinear"


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_predictions_see_the_crop_that_the_file_names(
    taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = name_preprocessing(taught, "timm", crop_pct=0.6, interpolation="bilinear")
    seen = []
    served = inference.ImagePaths
    monkeypatch.setattr(inference, "ImagePaths", lambda **given: seen.append(given) or served(**given))
    of_images = ["eval=predict", f"image={taught.data / 'test'}", f"ckpt_path={path}"]
    for changes in ([], ["eval.crop_pct=0.9"], ["crop_pct=0.7", "interpolation=bicubic"]):
        run(tmp_path, *of_images, *changes)
    assert [(given["crop_pct"], given["interpolation"]) for given in seen] == [
        (0.6, "bilinear"),
        (0.9, "bilinear"),
        (0.7, "bicubic"),
    ]


def test_what_cannot_be_computed_is_refused_unless_the_user_chooses(taught: Taught, tmp_path: Path) -> None:
    path = name_preprocessing(taught, "timm", crop_pct=0.6, interpolation="lanczos")
    measured = ["eval=test", f"ckpt_path={path}", *of_folder(taught)]
    with pytest.raises(ValueError, match=r"config.json gives interpolation='?lanczos'?, which is not computed here"):
        run(tmp_path, *measured)
    unmask.load_backbone(path)  # whose features are read by other settings


@pytest.mark.parametrize("format_name", ["huggingface", "timm"])
def test_an_export_keeps_how_images_are_prepared(taught: Taught, tmp_path: Path, format_name: str) -> None:
    path = name_preprocessing(taught, "timm", crop_pct=0.6, interpolation="bilinear")
    folder = tmp_path / "export"
    export(compose_config("export", [f"ckpt_path={path}", f"format={format_name}", f"directory={folder}"]))
    loaded = load_module(folder if format_name == "huggingface" else folder / "model.safetensors")
    assert loaded.preprocessing.settings(chosen=()) == {"crop_pct": 0.6, "interpolation": "bilinear"}
    assert loaded.preprocessing.source == ("its config.json" if format_name == "huggingface" else "its header")


# ---- training on from such a file


PROBE = "unmask.heads.probes.BatchNormLinearClassifier"


def started(taught: Taught, path: Path, *overrides: str) -> Any:
    sizes = ["image_size=32", "model.patch_size=8", "model.embed_dim=128", "model.depth=2", "model.num_heads=2"]
    data = ["global_batch_size=6", *of_folder(taught), f"method.init_from={path}", *overrides]
    return unmask.build_method(["method=supervised", "model=vit_mini", "model.pooling=cls", *sizes, *data])


@pytest.mark.parametrize(
    ("order", "names", "finding"),
    [
        ((0, 1, 2), NAMES, "class order verified by name"),
        ((2, 0, 1), NAMES, "outputs put in the order of the data's classes by name"),
        ((0, 1, 2), None, "class order not verified: the file does not name its classes"),
    ],
)
def test_supervised_training_starts_from_the_head_too(
    taught: Taught, order: tuple[int, ...], names: Any, finding: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="unmask"):
        module = started(taught, taught.write(names=names, order=order)).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(module(images), taught.model(images), rtol=0, atol=1e-5)
    assert f"head: {finding}" in caplog.text


@pytest.mark.parametrize(
    ("names", "overrides", "reason"),
    [
        (("ameise", "biene", "kuh"), [], "of other classes than the data's (the classifier names its 3 classes"),
        (NAMES, ["model.pooling=mean"], "a classifier of other features; model.pooling=cls takes it"),
        (NAMES, [f"method.head._target_={PROBE}"], "the configured head has more (head.norm.running_mean)"),
    ],
)
def test_a_head_that_does_not_belong_is_left_out_with_the_reason(
    taught: Taught, names: Any, overrides: list[str], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="unmask"):
        module = started(taught, taught.write(names=names), *overrides)
    assert reason in caplog.text
    assert "\nhead: " not in caplog.text
    patches = dict(module.backbone.named_parameters())["vit.patch_embed.proj.weight"]
    assert torch.equal(patches, taught.model.patch_embed.proj.weight)


OWN = Path(__file__).parent.parent / "format_1" / "last.ckpt"  # of images of ten classes


def started_from_own(path: Path, heads: dict[str, torch.Tensor], order: list[int] | None = None) -> Any:
    """Supervised training from a checkpoint of this program that holds these heads, its classes in another order."""
    content = torch.load(OWN, weights_only=True)
    kept = {name: weight for name, weight in content["state_dict"].items() if name.startswith("backbone.")}
    content["state_dict"] = kept | heads
    names = content["unmask"]["record"]["class_names"]
    content["unmask"]["record"]["class_names"] = [names[k] for k in order] if order else ["thing"] * 10
    torch.save(content, path)
    sizes = ["image_size=16", "model.patch_size=2", "model.embed_dim=8", "model.depth=1", "model.num_heads=2"]
    return unmask.build_method(["method=supervised", "model=vit_mini", *sizes, f"method.init_from={path}"])


@pytest.mark.parametrize("order", [list(range(10)), [9, *range(9)]])
def test_a_head_of_this_program_is_put_in_the_order_of_the_data(tmp_path: Path, order: list[int]) -> None:
    head = {"head.linear.weight": torch.randn(10, 8), "head.linear.bias": torch.randn(10)}
    module = started_from_own(tmp_path / "own.ckpt", head, order)
    own = module.state_dict()
    for name, weight in head.items():
        assert torch.equal(own[name][order], weight)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ({"head.linear.weight": (10, 8), "head.linear.bias": (10,)}, "a classifier of other classes than the data's"),
        ({"head.project.weight": (192, 8, 1, 1)}, "the configured method has no such head (head.project.weight)"),
    ],
)
def test_a_head_of_this_program_for_something_else_is_left_out(
    tmp_path: Path, head: dict[str, tuple[int, ...]], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="unmask"):
        started_from_own(tmp_path / "own.ckpt", {name: torch.randn(shape) for name, shape in head.items()})
    assert reason in caplog.text
