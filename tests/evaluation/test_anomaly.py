"""One class in turn is the anomaly."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from unmask.evaluation.anomaly import Anomaly, distances_without
from unmask.evaluation.features import Features


@pytest.mark.parametrize("k", [1, 2, 5])
def test_distances_equal_a_search_without_each_class(k):
    """Classes of 12, 3 and 9 images: with k = 5 one of them cannot fill the list alone."""
    bank = Features(torch.randn(24, 6), torch.tensor([0] * 12 + [2] * 3 + [5] * 9)[torch.randperm(24)])
    query = torch.randn(17, 6)
    found = distances_without(query, bank, [5, 0, 1], k)
    for column, number in zip(found.unbind(1), [5, 0, 1], strict=True):
        rest = bank.features[bank.labels != number]
        similarity = F.normalize(query, dim=1) @ F.normalize(rest, dim=1).T
        expected = 1 - similarity.sort(dim=1, descending=True).values[:, :k].mean(dim=1)
        torch.testing.assert_close(column, expected)


def test_each_area_is_scikit_learns_and_the_headline_their_mean(make_backbone, make_data, draw_splits, make_trainer):
    data = make_data(draw_splits((60, 6, 40), num_classes=4, spread=90.0), num_classes=4)
    backbone = make_backbone()
    metrics = Anomaly(k=3).evaluate(backbone, data, make_trainer).metrics
    (train, train_labels), (test, labels) = (
        (F.normalize(backbone.linear((images.float() / 255).flatten(1)).detach(), dim=1), kind)
        for images, kind in (data.splits["train"], data.splits["test"])
    )
    areas = []
    for number in range(4):
        distance = 1 - (test @ train[train_labels != number].T).topk(3, dim=1).values.mean(dim=1)
        areas.append(100 * roc_auc_score((labels == number).numpy(), distance.numpy()))
        assert metrics[f"auroc_class {number}"] == pytest.approx(areas[-1], abs=1e-3)
    assert metrics["auroc"] == pytest.approx(sum(areas) / 4, abs=1e-3)
    assert len(set(areas)) == 4


def test_separate_blobs_are_told_apart_and_a_list_is_kept_to(make_backbone, make_data, draw_splits, make_trainer):
    data = make_data(draw_splits((48, 6, 30), num_classes=6, spread=3.0), num_classes=6)
    report = Anomaly(classes=["class 4", "class 1"]).evaluate(make_backbone(), data, make_trainer)
    assert report.metrics == {"auroc": 100.0, "auroc_class 4": 100.0, "auroc_class 1": 100.0}
    assert report.protocol == (
        "anomaly: mean cosine distance to k=2 nearest, class 4, class 1 held out in turn, bank the rest of train (48), "
        "test (30), Pixels pooled features (8), 4x4 px, center crop 1"
    )


def test_classes_without_test_images_are_passed_over_unless_asked_for(
    make_backbone, make_data, draw_splits, make_trainer
):
    splits = draw_splits((48, 6, 30), num_classes=6, spread=3.0)
    keep = splits["test"][1] != 2
    splits["test"] = tuple(part[keep] for part in splits["test"])
    data, backbone = make_data(splits, num_classes=6), make_backbone()
    assert "auroc_class 2" not in Anomaly().evaluate(backbone, data, make_trainer).metrics
    backbone.calls.clear()
    with pytest.raises(ValueError, match="holds out 'class 2', but 0 of the 25 test images are of that class"):
        Anomaly(classes=["class 2"]).evaluate(backbone, data, lambda: None)
    assert backbone.calls == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"k": 41}, r"asks for k=41 neighbors, but the train split has 40 images without 'class 0'; set eval.k=40"),
        (
            {"classes": ["cat"]},
            r"eval.classes has \['cat'\], which the data does not; its classes are class 0, class 1",
        ),
    ],
)
def test_what_the_data_cannot_answer_is_refused_before_any_image_is_read(
    make_backbone, make_data, draw_splits, settings, sentence
):
    backbone = make_backbone()
    data = make_data(draw_splits((48, 6, 30), num_classes=6, spread=3.0), num_classes=6)
    with pytest.raises(ValueError, match=sentence):
        Anomaly(**settings).evaluate(backbone, data, lambda: None)
    assert backbone.calls == []


@pytest.mark.parametrize("settings", [{"k": 0}, {"classes": []}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="eval"):
        Anomaly(**settings)
