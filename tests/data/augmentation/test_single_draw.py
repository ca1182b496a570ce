"""The crop of one draw against MAE's rule, written down image by image."""

import math

import torch

from unmask.data.augmentation.boxes import shape_attempts
from unmask.data.augmentation.single_draw import SingleDrawAugmentation
from unmask.data.augmentation.transforms import Augmentation


def test_a_box_too_large_is_cut_to_the_image() -> None:
    draws = torch.rand(300, 40)
    single = SingleDrawAugmentation(scale=(0.08, 1.0))
    attempts = shape_attempts(draws, single.scale, single.ratio)
    boxes = single.choose_boxes(attempts, 20, 60)
    cut = 0
    for number, (area, aspect, top, left) in enumerate(draws[:, :4].tolist()):
        target = 20 * 60 * (0.08 + 0.92 * area)
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * aspect)
        height, width = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
        cut += height > 20 or width > 60
        height, width = min(height, 20), min(width, 60)
        expected = (int(top * (20 - height + 1)), int(left * (60 - width + 1)), height, width)
        assert tuple(int(side[number]) for side in boxes) == expected
        assert single.choose_box(attempts[number].tolist(), 20, 60) == expected
    assert cut > 100  # of a wide image most squarish crops are


def test_where_the_first_draw_fits_it_is_the_crop_of_ten_attempts() -> None:
    attempts = shape_attempts(torch.rand(300, 40), (0.08, 1.0), (3 / 4, 4 / 3))
    single, ten = (
        kind(scale=(0.08, 1.0)).choose_boxes(attempts, 24, 24) for kind in (SingleDrawAugmentation, Augmentation)
    )
    fits = (single.height < 24) & (single.width < 24)
    assert 150 < int(fits.sum()) < 300
    for one, other in zip(single, ten, strict=True):
        assert torch.equal(one[fits], other[fits])


def test_its_settings_can_be_read_in_a_protocol() -> None:
    written = str(SingleDrawAugmentation(scale=(0.3, 1.0), ratio=(1.0, 1.0), interpolation="bilinear", hflip_prob=0.25))
    assert written == (
        "SingleDrawAugmentation(scale=(0.3, 1.0), ratio=(1.0, 1.0), interpolation=bilinear, "
        "hflip_prob=0.25, random_erasing_prob=0.0)"
    )
