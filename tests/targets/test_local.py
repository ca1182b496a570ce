import pytest
import torch

from unmask.targets.local import local_statistics, normalize_locally, restore_locally

IMAGES = 2.0 * torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0)) + 1.0


@pytest.mark.parametrize("window", [3, 5, 7, 47])
def test_each_pixel_is_measured_by_the_part_of_its_window_that_lies_in_the_image(window: int) -> None:
    mean, std = local_statistics(IMAGES, window)
    reach = window // 2
    for row in range(7):
        for col in range(9):
            rows, cols = slice(max(0, row - reach), row + reach + 1), slice(max(0, col - reach), col + reach + 1)
            around = IMAGES[:, :, rows, cols].flatten(2)
            torch.testing.assert_close(mean[:, :, row, col], around.mean(dim=2))
            expected = (around.var(dim=2, correction=1) + 1e-6).sqrt()
            torch.testing.assert_close(std[:, :, row, col], expected, rtol=1e-4, atol=1e-5)


def test_a_flat_image_becomes_zero_and_not_infinite() -> None:
    assert normalize_locally(torch.full((1, 3, 8, 8), 0.5), 5).abs().max() < 1e-3


def test_restoring_uses_the_statistics_of_the_true_image() -> None:
    torch.testing.assert_close(restore_locally(normalize_locally(IMAGES, 5), 5, like=IMAGES), IMAGES)
    flat = restore_locally(torch.zeros_like(IMAGES), 5, like=IMAGES)
    torch.testing.assert_close(flat, local_statistics(IMAGES, 5).mean)


@pytest.mark.parametrize("window", [46, 1, 0])
def test_a_window_without_a_center_is_refused(window: int) -> None:
    with pytest.raises(ValueError, match=f"odd side of at least 3 px, got {window}"):
        normalize_locally(IMAGES, window)
