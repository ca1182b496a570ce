import csv
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

CLASSES = ("red", "green", "blue")


@pytest.fixture
def classifier(channel_means):
    from unmask.inference.predict import Classifier  # noqa: PLC0415

    class FourfoldMeans(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 4 * channel_means.forward_pooled(images)

    return Classifier(FourfoldMeans(), CLASSES)


def test_each_image_gets_its_own_classes_and_softmax_scores(classifier, pictures: Path, point_at) -> None:
    from unmask.inference.predict import Predict  # noqa: PLC0415

    predictions = Predict(image=None, top=2).predict(classifier, point_at(pictures), torch.device("cpu"))
    by_name = {Path(prediction.image).stem: prediction for prediction in predictions}
    assert len(by_name) == 5
    assert {color: by_name[color].classes[0] for color in CLASSES} == {color: color for color in CLASSES}
    assert sorted(by_name["yellow"].classes) == ["green", "red"]
    logits = 4 * (torch.tensor([250.0, 150.0, 160.0]) / 255 - 0.5) / 0.5
    assert by_name["pink"].classes == ["red", "blue"]
    assert by_name["pink"].scores == pytest.approx(logits.softmax(0)[[0, 2]].tolist(), abs=1e-5)


def test_the_table_holds_what_was_predicted(classifier, pictures: Path, point_at, tmp_path: Path, caplog) -> None:
    from unmask.inference.predict import Predict  # noqa: PLC0415

    inference = Predict(image="given", top=9)
    with caplog.at_level("INFO"):
        inference.run(classifier, lambda path, split: point_at(pictures), run_dir=tmp_path, device=torch.device("cpu"))
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert b"\r" not in (tmp_path / "predictions.csv").read_bytes()
    assert [Path(row["image"]).stem for row in rows] == ["green", "red", "blue", "yellow", "pink"]
    assert list(rows[0]) == ["image", "class", "score", "class_2", "score_2", "class_3", "score_3"]
    assert rows[2]["class"] == "blue"
    assert sum(float(rows[2][name]) for name in ("score", "score_2", "score_3")) == pytest.approx(1.0, abs=1e-4)
    assert "5 image(s), 3 classes each" in caplog.text
    (pink,) = [line for line in caplog.text.splitlines() if "pink.png" in line]
    assert pink.split()[1:] == ["red", "90.7", "blue", "5.4,", "green", "3.9"]
    with pytest.raises(ValueError, match=r"eval\.top must be at least 1, got 0"):
        Predict(image=None, top=0)


@pytest.mark.parametrize("count", [20, 21])
def test_the_terminal_shows_the_first_images_and_says_so(
    count: int, classifier, tmp_path: Path, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.inference.predict import Predict, Prediction  # noqa: PLC0415

    scores = [0.5, 0.25, 0.125, 0.0625, 0.0625]
    made = [Prediction(f"{number}.png", list("abcde"), scores) for number in range(count)]
    monkeypatch.setattr(Predict, "predict", lambda *_: made)
    with caplog.at_level("INFO"):
        Predict(image=None, top=1).run(classifier, lambda *_: None, run_dir=tmp_path, device=torch.device("cpu"))
    shown, said = caplog.messages
    assert shown.strip("\n").splitlines()[0].split() == ["image", "class", "score,", "%", "then"]
    assert shown.strip("\n").splitlines()[2:] == [
        f"{f'{number}.png':<8}a      50.0      b 25.0, c 12.5" for number in range(20)
    ]
    assert said.startswith("the first 20 of 21 image(s), 5 classes each" if count > 20 else "20 image(s)")


@pytest.mark.parametrize("is_classifier", [True, False])
def test_a_checkpoint_without_classes_is_refused(is_classifier: bool) -> None:
    from unmask.backbones.base import MaskedBackbone  # noqa: PLC0415
    from unmask.inference.base import Checkpoint  # noqa: PLC0415
    from unmask.inference.predict import Predict  # noqa: PLC0415
    from unmask.methods.backbone_module import BackboneModule  # noqa: PLC0415

    module = Mock(spec=BackboneModule, is_classifier=is_classifier, backbone=Mock(spec=MaskedBackbone))
    module._modules = {}
    checkpoint = Mock(spec=Checkpoint, path="a.ckpt")
    checkpoint.load_module.return_value, checkpoint.class_names.return_value = module, CLASSES
    if not is_classifier:
        with pytest.raises(ValueError, match=r"a\.ckpt holds .*, which names no classes; train .* ckpt_path=a\.ckpt"):
            Predict(image=None).load(checkpoint)
        return
    classifier, backbone = Predict(image=None).load(checkpoint)
    assert (classifier.module, classifier.class_names, backbone) == (module, CLASSES, module.backbone)
