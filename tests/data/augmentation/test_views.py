import torch

from unmask.data.augmentation.transforms import Augmentation
from unmask.data.augmentation.views import CropPair

SIDE = 32


def picture_of_places(count: int) -> torch.Tensor:
    """Each pixel holds its own row and column, in 0..1."""
    centers = (torch.arange(SIDE) + 0.5) / SIDE
    rows, cols = torch.meshgrid(centers, centers, indexing="ij")
    return torch.stack([rows, cols, torch.zeros_like(rows)]).expand(count, -1, -1, -1)


def test_a_view_shows_what_its_box_says() -> None:
    for view in CropPair(crop=Augmentation(scale=(0.2, 0.6), hflip_prob=0.5))(picture_of_places(16)):
        top, left, height, width = (edge[:, None] for edge in view.box.unbind(1))
        inner = slice(4, -4)  # the kernel is cut off at the edges
        centers = ((torch.arange(SIDE) + 0.5) / SIDE)[inner]
        rows, cols = view.image[:, 0, inner, inner], view.image[:, 1, inner, inner]
        expected_rows = (top + centers * height)[:, :, None].expand_as(rows)
        torch.testing.assert_close(rows, expected_rows, atol=2e-3, rtol=0)
        torch.testing.assert_close(cols, (left + centers * width)[:, None, :].expand_as(cols), atol=2e-3, rtol=0)
        assert 0 < (width < 0).sum() < 16  # some are mirrored, some are not


def test_the_two_views_and_the_images_are_cropped_apart() -> None:
    first, second = CropPair(crop=Augmentation(scale=(0.2, 1.0)))(picture_of_places(32))
    assert (first.box != second.box).any(dim=1).float().mean() > 0.9
    assert len(first.box.unique(dim=0)) > 28


def test_values_below_zero_survive() -> None:
    whole = CropPair(crop=Augmentation(scale=(1.0, 1.0), hflip_prob=0.0))
    images = torch.randn(4, 3, SIDE, SIDE)
    for view in whole(images):
        torch.testing.assert_close(view.image, images)
        assert torch.equal(view.box, torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(4, -1))
