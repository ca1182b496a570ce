import colorsys

import pytest
import torch

from unmask.data.augmentation.color import ColorJitter

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
LUMA = torch.tensor([0.299, 0.587, 0.114])
UNCHANGED = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}


def change(rgb: torch.Tensor, **factors: float) -> torch.Tensor:
    """In and out in 0..1."""
    mean, std = (torch.tensor(statistic)[:, None, None] for statistic in (MEAN, STD))
    settings = {name: torch.full((len(rgb),), value) for name, value in (UNCHANGED | factors).items()}
    return ColorJitter(pixel_mean=MEAN, pixel_std=STD).apply((rgb - mean) / std, **settings) * std + mean


@pytest.fixture
def rgb() -> torch.Tensor:
    return 0.3 + 0.4 * torch.rand(3, 3, 6, 5)


def test_no_change_is_none(rgb: torch.Tensor) -> None:
    torch.testing.assert_close(change(rgb), rgb, atol=1e-5, rtol=0)


def test_each_factor_does_what_its_name_says(rgb: torch.Tensor) -> None:
    gray = torch.einsum("bchw,c->bhw", rgb, LUMA)[:, None]
    mean_gray = gray.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(change(rgb, brightness=1.3), 1.3 * rgb, atol=1e-5, rtol=0)
    torch.testing.assert_close(change(rgb, contrast=0.6), 0.6 * rgb + 0.4 * mean_gray, atol=1e-5, rtol=0)
    torch.testing.assert_close(change(rgb, saturation=0.0), gray.expand_as(rgb), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        change(rgb, brightness=1.2, contrast=0.5), 1.2 * (0.5 * rgb + 0.5 * mean_gray), atol=1e-5, rtol=0
    )


def test_hue_turns_about_gray_and_keeps_luma(rgb: torch.Tensor) -> None:
    turned = change(rgb, hue=0.1)
    torch.testing.assert_close(
        torch.einsum("bchw,c->bhw", turned, LUMA), torch.einsum("bchw,c->bhw", rgb, LUMA), atol=1e-4, rtol=0
    )
    gray = torch.full((1, 3, 2, 2), 0.5)
    torch.testing.assert_close(change(gray, hue=0.3), gray, atol=1e-4, rtol=0)
    torch.testing.assert_close(change(change(rgb, hue=0.05), hue=-0.05), rgb, atol=1e-4, rtol=0)
    before, after = (colorsys.rgb_to_hsv(*image[0, :, 0, 0].tolist())[0] for image in (rgb, turned))
    assert abs(before - after) > 0.02


def test_results_stay_colors() -> None:
    changed = change(torch.rand(4, 3, 4, 4), brightness=2.0, saturation=3.0)
    assert changed.min() >= -1e-6
    assert changed.max() <= 1 + 1e-6


def test_images_are_changed_each_in_its_own_way_in_the_stated_shares() -> None:
    images = torch.randn(2000, 3, 2, 2).mul(0.2)
    jitter = ColorJitter(pixel_mean=MEAN, pixel_std=STD, probability=0.6, grayscale=0.25)
    changed = jitter(images)
    is_same = torch.isclose(changed, images, atol=1e-4).flatten(1).all(dim=1).float().mean().item()
    rgb = changed * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    is_gray = (rgb.amax(dim=1) - rgb.amin(dim=1) < 1e-3).flatten(1).all(dim=1).float().mean().item()
    assert is_same == pytest.approx(0.4 * 0.75, abs=0.04)
    assert is_gray == pytest.approx(0.25, abs=0.04)
    pairs = ColorJitter(pixel_mean=MEAN, pixel_std=STD, probability=1.0)(images[:1].expand(8, 3, 2, 2))
    assert len({round(value, 4) for value in pairs[:, 0, 0, 0].tolist()}) > 4


def test_a_strength_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"color jitter's hue must lie in 0..0.5, got 0.7"):
        ColorJitter(pixel_mean=MEAN, pixel_std=STD, hue=0.7)


def test_images_that_are_not_rgb_are_refused() -> None:
    with pytest.raises(ValueError, match=r"red, green and blue, but these images have 4 channel\(s\)"):
        ColorJitter(pixel_mean=(0.5,) * 4, pixel_std=(0.2,) * 4)
