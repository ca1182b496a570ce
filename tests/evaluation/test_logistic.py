"""Logistic regression as a protocol: what it chooses, on which split, and what it says."""

import functools

import pytest
import torch

from unmask.evaluation.logistic import LogisticProbe
from unmask.heads.logistic_regression import LogisticRegression

HEAD = functools.partial(LogisticRegression, inverse_strengths=(0.01, 1.0))


def test_the_test_split_chooses_nothing(make_backbone, make_data, draw_splits, make_trainer):
    splits = draw_splits((30, 12, 12), num_classes=3, spread=40.0)
    backbone = make_backbone()
    reports = []
    for _ in range(2):
        reports.append(LogisticProbe(head=HEAD).evaluate(backbone, make_data(splits, num_classes=3), make_trainer))
        splits["test"] = (splits["test"][0], (splits["test"][1] + 1) % 3)  # other answers
    first, second = reports
    assert first.settings == second.settings
    assert first.metrics["val_top1"] == second.metrics["val_top1"]
    assert first.metrics["top1"] > 60.0 > second.metrics["top1"]


def test_the_protocol_says_what_was_fitted_to_what(make_backbone, make_data, draw_splits, make_trainer):
    data = make_data(draw_splits((30, 12, 9), num_classes=3, spread=20.0), num_classes=3)
    report = LogisticProbe(head=HEAD).evaluate(make_backbone(), data, make_trainer)
    assert report.protocol == (
        "logistic: L-BFGS on standardized features, inverse strength of 0.01, 1 by top-1 on val (12), at most 500 "
        "iterations, train (30), test (9), Pixels stage 1, mean (8), 4x4 px, center crop 1"
    )
    assert (report.num_train_images, report.num_test_images) == (30, 9)
    assert report.settings["selected_on"] == "val (12)"
    assert report.settings["is_at_edge_of_grid"] == "yes"  # of two values, both are
    assert report.settings["has_converged"] == "yes"


def test_a_pooling_the_backbone_lacks_is_refused(make_backbone, make_data, draw_splits, make_trainer):
    data = make_data(draw_splits((30, 12, 9), num_classes=3, spread=20.0), num_classes=3)
    with pytest.raises(ValueError, match=r"Pixels cannot be pooled by pool='cls'; use one of mean, max"):
        LogisticProbe(head=HEAD, pool="cls").evaluate(make_backbone(), data, make_trainer)


def test_images_without_labels_are_refused(make_backbone, make_data, draw_splits, make_trainer):
    splits = draw_splits((30, 12, 9), num_classes=3, spread=20.0)
    splits["val"] = (splits["val"][0], torch.full((12,), -1))
    with pytest.raises(ValueError, match="eval=logistic needs labels, but the val split of InMemory has none"):
        LogisticProbe(head=HEAD).evaluate(make_backbone(), make_data(splits, num_classes=3), make_trainer)
