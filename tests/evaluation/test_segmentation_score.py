"""Segmentation figures against torchmetrics and against counting by hand."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from unmask.evaluation.segmentation_score import SegmentationScore


def test_batches_add_up_to_torchmetrics_figures() -> None:
    masks, predicted = torch.randint(0, 4, (6, 8, 8)), torch.randint(0, 4, (6, 8, 8))
    masks[torch.rand(6, 8, 8) < 0.3] = 255
    score = SegmentationScore()
    for part in (slice(0, 4), slice(4, 6)):
        score.add_pixels(predicted[part], masks[part].to(torch.uint8))
    metrics = score.metrics()
    settings = {"num_classes": 4, "ignore_index": 255}
    expected = multiclass_jaccard_index(predicted, masks, average="macro", **settings)
    assert metrics["miou"] == pytest.approx(100.0 * expected.item())
    accuracy = multiclass_accuracy(predicted, masks, average="micro", **settings)
    assert metrics["pixel_accuracy"] == pytest.approx(100.0 * accuracy.item())


def test_a_class_counts_where_it_occurs_or_is_predicted() -> None:
    score = SegmentationScore()
    score.add_pixels(torch.tensor([[[0, 0, 7, 7]]]), torch.tensor([[[0, 3, 255, 0]]]))
    # Class 0: 1 of 3; class 3: 0 of 1; class 7: predicted once where there is a class, 0 of 1.
    assert score.metrics()["miou"] == pytest.approx(100.0 / 9)
    assert score.metrics()["pixel_accuracy"] == pytest.approx(100.0 / 3)


def test_patches_without_a_class_are_left_out() -> None:
    score = SegmentationScore()
    score.add_pixels(torch.tensor([[[0]]]), torch.tensor([[[0]]]))
    score.add_patches(torch.tensor([[[1, 2]], [[1, 0]]]), torch.tensor([[[1, 255]], [[1, 1]]]))
    assert score.metrics()["patch_accuracy"] == pytest.approx(200.0 / 3)


def test_masks_without_any_class_are_refused() -> None:
    score = SegmentationScore()
    score.add_pixels(torch.tensor([[[0]]]), torch.tensor([[[255]]]))
    with pytest.raises(ValueError, match="no pixel of the test masks has a class"):
        score.metrics()
