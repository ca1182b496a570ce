"""Means over images, not over batches."""

import pytest
import torch

from unmask.methods.split_means import SplitMeans


def test_every_image_counts_alike_whatever_the_size_of_its_batch() -> None:
    means, values = SplitMeans(), torch.tensor([1.0, 2.0, 6.0, 9.0, 30.0])
    for part in (values[:3], values[3:]):
        means.add({"val/loss": part.mean(), "val/top1": (part > 5).double().mean()}, torch.tensor(len(part)))
    taken = means.take()
    assert {name: mean.item() for name, mean in taken.items()} == pytest.approx({"val/loss": 9.6, "val/top1": 0.6})


def test_a_batch_of_no_counted_image_changes_nothing_even_where_it_is_not_finite() -> None:
    means = SplitMeans()
    means.add({"val/loss": torch.tensor(3.0)}, torch.tensor(2))
    means.add({"val/loss": torch.tensor(float("nan"))}, torch.tensor(0))
    assert means.take()["val/loss"].item() == 3.0


def test_a_loss_that_is_not_finite_is_seen() -> None:
    means = SplitMeans()
    for loss in (3.0, float("nan"), 1.0):
        means.add({"val/loss": torch.tensor(loss)}, torch.tensor(2))
    assert means.take()["val/loss"].isnan()


def test_each_pass_begins_anew() -> None:
    means = SplitMeans()
    means.add({"val/loss": torch.tensor(3.0)}, torch.tensor(2))
    means.take()
    means.add({"test/loss": torch.tensor(5.0)}, torch.tensor(1))
    assert {name: mean.item() for name, mean in means.take().items()} == {"test/loss": 5.0}


def test_half_precision_losses_are_averaged_in_full() -> None:
    means = SplitMeans()
    for _ in range(3000):
        means.add({"val/loss": torch.tensor(1.0078125, dtype=torch.bfloat16)}, torch.tensor(1))
    assert means.take()["val/loss"].item() == pytest.approx(1.0078125, rel=1e-12)
