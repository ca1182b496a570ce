"""A trained module as it is."""

import pytest
import torch
from lightning import LightningModule
from torch import nn

from unmask.evaluation import score
from unmask.evaluation.metrics import wilson_interval

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # Lightning 2.6 with torch 2.14
]


class Oracle(LightningModule):
    """Hits the even samples at rank 1 and the rest at rank 5."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def test_step(self, batch, batch_idx):
        hits = (batch.index % 2 == 0).float().mean()
        values = {"test/top1": hits, "test/top5": torch.tensor(1.0), "test/loss": batch.image.mean()}
        self.log_dict(values, batch_size=len(batch.image))


class MaskedLoss(Oracle):
    def test_step(self, batch, batch_idx):
        self.log("test/loss", batch.image.mean(), batch_size=len(batch.image))


def test_shares_become_percent_with_an_interval(make_data, draw_splits, make_trainer):
    data = make_data(draw_splits((16, 9, 10), num_classes=6, spread=30.0), num_classes=6)
    report = score.TestEvaluator().evaluate_module(Oracle(), data, make_trainer)
    low, high = wilson_interval(5, 10)
    assert report.metrics["top1"] == pytest.approx(50.0)
    assert report.metrics["top5"] == pytest.approx(100.0)
    assert report.metrics["top1_ci95_low"] == pytest.approx(100 * low)
    assert report.metrics["top1_ci95_high"] == pytest.approx(100 * high)
    assert (report.num_train_images, report.num_test_images) == (0, 10)
    assert report.protocol == "test: test step of Oracle, test (10)"


def test_top5_of_five_classes_is_dropped(make_data, draw_splits, make_trainer):
    data = make_data(draw_splits((16, 9, 10), num_classes=5, spread=30.0), num_classes=5)
    assert "top5" not in score.TestEvaluator().evaluate_module(Oracle(), data, make_trainer).metrics


def test_a_method_reports_its_loss_on_unlabeled_test_images(make_data, draw_splits, make_trainer):
    splits = {
        name: (images, torch.full_like(labels, -1))
        for name, (images, labels) in draw_splits((16, 9, 10), num_classes=3, spread=30.0).items()
    }
    metrics = (
        score.TestEvaluator().evaluate_module(MaskedLoss(), make_data(splits, num_classes=0), make_trainer).metrics
    )
    assert metrics == {"loss": pytest.approx((splits["test"][0].float() / 255).mean().item(), rel=1e-5)}
