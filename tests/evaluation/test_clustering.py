"""Groups learned on training images, measured on test images."""

import pytest
import torch

from unmask.evaluation.clustering import Clustering


@pytest.fixture
def backbone(make_backbone):
    return make_backbone()


@pytest.fixture
def measure(backbone, make_data, make_trainer):
    """Evaluates one backbone on splits of three classes."""
    return lambda clustering, splits: clustering.evaluate(backbone, make_data(splits, num_classes=3), make_trainer)


def test_separate_blobs_are_found(measure, draw_splits):
    report = measure(Clustering(), draw_splits((40, 6, 30), num_classes=3, spread=3.0))
    assert report.metrics == pytest.approx({"clustering_accuracy": 100.0, "nmi": 100.0, "ari": 100.0})
    assert report.protocol == (
        "clustering: k-means, k=3, unit length, 10 starts, centers of train (40, labels unused), test (30), "
        "Pixels pooled features (8), 4x4 px, center crop 1"
    )
    assert (report.num_train_images, report.num_test_images) == (0, 30)


def test_labels_of_the_training_images_make_no_difference(measure, draw_splits):
    splits = draw_splits((40, 6, 30), num_classes=3, spread=90.0)
    first = measure(Clustering(), splits)
    images, _ = splits["train"]
    assert measure(Clustering(), splits | {"train": (images, torch.full((40,), -1))}) == first
    assert 0 < first.metrics["clustering_accuracy"] < 100


def test_clusters_do_not_follow_the_test_labels(measure, draw_splits):
    splits = draw_splits((40, 6, 30), num_classes=3, spread=90.0)
    images, labels = splits["test"]
    first = measure(Clustering(), splits)
    scrambled = measure(Clustering(), splits | {"test": (images, labels[torch.randperm(30)])})
    assert scrambled.settings == first.settings
    assert scrambled.metrics["nmi"] != first.metrics["nmi"]


def test_features_are_compared_by_direction(measure, draw_splits, backbone, monkeypatch):
    splits = draw_splits((40, 6, 30), num_classes=3, spread=60.0)
    first = measure(Clustering(), splits).metrics
    plain = backbone.forward_pooled
    lengths = lambda images: 1.0 + 50.0 * images.mean(dim=(1, 2, 3))[:, None]  # noqa: E731
    monkeypatch.setattr(backbone, "forward_pooled", lambda images: lengths(images) * plain(images))
    assert measure(Clustering(), splits).metrics == pytest.approx(first)


def test_fewer_images_than_clusters_are_refused_before_any_is_read(backbone, measure, draw_splits):
    splits = draw_splits((4, 6, 30), num_classes=3, spread=3.0)
    with pytest.raises(
        ValueError, match=r"seeks 9 clusters, but the train split has 4 images; set eval.num_clusters=4"
    ):
        measure(Clustering(num_clusters=9), splits)
    assert backbone.calls == []


@pytest.mark.parametrize("settings", [{"num_clusters": 1}, {"num_starts": 0}, {"max_iterations": 0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="eval"):
        Clustering(**settings)
