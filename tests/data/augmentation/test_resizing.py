import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torchvision.transforms import InterpolationMode

from unmask.data.augmentation import resizing
from unmask.data.augmentation.boxes import Boxes
from unmask.data.augmentation.resizing import resample_boxes, resize_boxes


def draw_boxes(count: int, height: int, width: int) -> Boxes:
    heights, widths = torch.randint(1, height + 1, (count,)), torch.randint(1, width + 1, (count,))
    top, left = torch.rand(count) * (height - heights + 1), torch.rand(count) * (width - widths + 1)
    return Boxes(top=top.long(), left=left.long(), height=heights, width=widths)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((32, 32), (32, 32)),  # CIFAR-10, by a table of weights
        ((32, 32), (33, 31)),
        ((50, 60), (24, 64)),
        ((64, 64), (8, 8)),  # sums beyond float32
        ((20, 24), (224, 224)),  # weights of each batch
    ],
)
def test_resized_boxes_are_torchvisions_bit_for_bit(interpolation, source, size) -> None:
    count = 60
    images = torch.randint(0, 256, (count, 3, *source), dtype=torch.uint8)
    images[::3] = 255 * (images[::3] > 127)  # full contrast overshoots most
    boxes, flipped = draw_boxes(count, *source), torch.rand(count) < 0.5
    computed = resize_boxes(images, boxes, size, interpolation, flipped)
    for image, flip, result, *box in zip(images, flipped, computed, *boxes, strict=True):
        top, left, height, width = (int(side) for side in box)
        mode = InterpolationMode(interpolation)
        expected = TF.resized_crop(image, top, left, height, width, list(size), mode, antialias=True)
        assert torch.equal(result, (expected.flip(2) if flip else expected).float())


def test_the_table_and_the_weights_of_a_batch_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (30, 3, 12, 14), dtype=torch.uint8)
    boxes, flipped = draw_boxes(30, 12, 14), torch.rand(30) < 0.5
    by_table = resize_boxes(images, boxes, (10, 16), "bicubic", flipped)
    values_by_table = resample_boxes(images.float(), boxes, (10, 16), "bicubic", flipped)
    monkeypatch.setattr(resizing, "_TABLE_LIMIT", 0)
    assert torch.equal(resize_boxes(images, boxes, (10, 16), "bicubic", flipped), by_table)
    assert torch.equal(resample_boxes(images.float(), boxes, (10, 16), "bicubic", flipped), values_by_table)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_values_of_any_range_are_resampled_as_torchvision_does(interpolation) -> None:
    images = 3.0 * torch.randn(20, 2, 20, 24)
    boxes, flipped = draw_boxes(20, 20, 24), torch.rand(20) < 0.5
    computed = resample_boxes(images, boxes, (16, 30), interpolation, flipped)
    for image, flip, result, *box in zip(images, flipped, computed, *boxes, strict=True):
        top, left, height, width = (int(side) for side in box)
        mode = InterpolationMode(interpolation)
        expected = TF.resized_crop(image, top, left, height, width, [16, 30], mode, antialias=True)
        torch.testing.assert_close(result, expected.flip(2) if flip else expected, rtol=0, atol=1e-4)
