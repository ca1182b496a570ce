"""Images of other channels than RGB, on every backbone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.fixture(params=["make_swin", "make_vit", "make_beit", "make_hiera"])
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.getfixturevalue(request.param)


def test_statistics_of_other_channels_are_refused(make) -> None:
    with pytest.raises(ValueError, match=r"model.in_channels=4, but the statistics of its pixels have 3 number\(s\)"):
        make(in_channels=4)


@pytest.mark.parametrize("name", ["pixel_mean", "pixel_std"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30, 10**400])
def test_statistics_that_make_no_numbers_of_images_are_refused(make, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"model.{name} must be numbers from"):
        make(**{name: (0.5, value, 0.5)})


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-45])
def test_deviations_of_no_size_are_refused(make, value: float) -> None:
    with pytest.raises(ValueError, match=r"model.pixel_std must be numbers from 1e-06 to 1e\+06, got"):
        make(pixel_std=(0.5, value, 0.5))


def test_every_channel_reaches_the_features(make, randomize) -> None:
    backbone = randomize(make(in_channels=5, pixel_mean=(0.0,) * 5, pixel_std=(1.0,) * 5))
    images = torch.randn(1, 5, *backbone.image_size)
    with torch.no_grad():
        features = backbone.forward_pooled(images)
        for channel in range(5):
            changed = images.clone()
            changed[:, channel] += 1.0
            assert not torch.allclose(backbone.forward_pooled(changed), features, atol=1e-4)
