import re

import pytest
import torch
from torch import Tensor

from unmask.masking.random import RandomMaskGenerator
from unmask.randomness import sample_keys


def blank(batch: int, height: int, width: int | None = None) -> Tensor:
    return torch.zeros(batch, 3, height, width or height)


@pytest.mark.parametrize(
    ("size", "patch_size", "ratio", "expected"),
    [(192, 32, 0.6, 22), (224, 32, 0.6, 30), (224, 16, 0.75, 147), (224, 14, 0.75, 192), (224, 16, 0.9, 177)],
)
@pytest.mark.parametrize("is_keyed", [True, False])
def test_each_image_hides_the_published_number_of_patches(
    size: int, patch_size: int, ratio: float, expected: int, is_keyed: bool
) -> None:
    keys = sample_keys(0, "mask", 0, torch.arange(16)) if is_keyed else None
    mask = RandomMaskGenerator(ratio=ratio, patch_size=patch_size)(blank(16, size), keys)
    assert (mask.masked.sum(dim=(1, 2)) == expected).all()
    assert mask.num_masked == expected


def test_patches_may_be_oblong_as_a_configuration_writes_them() -> None:
    mask = RandomMaskGenerator(ratio=0.5, patch_size=[8, 4])(blank(2, 16, 24))
    assert mask.patch_size == (8, 4)
    assert mask.masked.shape == (2, 2, 6)
    assert (mask.masked.sum(dim=(1, 2)) == 6).all()
    with pytest.raises(ValueError, match="patch_size must be at least 1 pixel, got 8x0"):
        RandomMaskGenerator(ratio=0.5, patch_size=[8, 0])


@pytest.mark.parametrize("is_keyed", [True, False])
def test_every_patch_is_hidden_equally_often(is_keyed: bool) -> None:
    images = 4000
    keys = sample_keys(0, "mask", 0, torch.arange(images)) if is_keyed else None
    masked = RandomMaskGenerator(ratio=0.6, patch_size=2)(blank(images, 12), keys).masked.flatten(1).double()
    share = 22 / 36
    deviation = (share * (1 - share) / images) ** 0.5  # of a binomial share
    assert (masked.mean(dim=0) - share).abs().max() < 5 * deviation
    # Without replacement, two patches are masked together with probability 22 * 21 / (36 * 35).
    together = (masked.T @ masked / images)[~torch.eye(36, dtype=torch.bool)]
    pair_fraction = 22 * 21 / (36 * 35)
    assert (together - pair_fraction).abs().max() < 6 * (pair_fraction * (1 - pair_fraction) / images) ** 0.5


def test_keyed_masks_depend_neither_on_the_batch_nor_on_pixels_nor_on_torchs_stream() -> None:
    generator = RandomMaskGenerator(ratio=0.6, patch_size=8)
    keys = sample_keys(0, "mask", 3, torch.arange(12))
    together = generator(blank(12, 48), keys).masked
    order = torch.randperm(12)
    assert torch.equal(generator(torch.randn(12, 3, 48, 48), keys[order]).masked, together[order])
    alone = [generator(blank(1, 48), key[None]).masked for key in keys]
    assert torch.equal(torch.cat(alone), together)


def test_keyed_masks_differ_between_images_and_epochs() -> None:
    generator = RandomMaskGenerator(ratio=0.6, patch_size=4)
    masks = [generator(blank(50, 48), sample_keys(0, "mask", e, torch.arange(50))).masked.flatten(1) for e in (0, 1)]
    assert torch.cat(masks).unique(dim=0).shape[0] == 100


def test_unkeyed_masks_follow_torchs_seed() -> None:
    generator = RandomMaskGenerator(ratio=0.6, patch_size=4)
    torch.manual_seed(1)
    first, second = generator(blank(4, 48)).masked, generator(blank(4, 48)).masked
    torch.manual_seed(1)
    assert torch.equal(generator(blank(4, 48)).masked, first)
    assert not torch.equal(first, second)


def test_rows_and_columns_follow_height_and_width() -> None:
    mask = RandomMaskGenerator(ratio=0.5, patch_size=8)(blank(2, 16, 40))
    assert mask.masked.shape == (2, 2, 5)
    assert mask.at_pixels().shape == (2, 1, 16, 40)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_ratio_must_hide_some_and_leave_some(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"between 0 and 1, both excluded, got {ratio}"):
        RandomMaskGenerator(ratio=ratio, patch_size=16)


def test_patch_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        RandomMaskGenerator(ratio=0.5, patch_size=0)


def test_image_size_named_for_images_that_are_not_whole_patches_is_accepted() -> None:
    generator = RandomMaskGenerator(ratio=0.5, patch_size=16)
    with pytest.raises(ValueError, match="200x136 px images are not whole 16 px patches") as error:
        generator(blank(1, 200, 136))
    height, width = map(int, re.search(r"use (\d+)x(\d+)", str(error.value)).groups())
    assert generator(blank(1, height, width)).num_masked == height * width // 512


@pytest.mark.parametrize("size", [64, 192, 224, 448])
def test_ratio_named_where_all_patches_would_be_hidden_is_accepted(size: int) -> None:
    with pytest.raises(ValueError, match="would mask them all") as error:
        RandomMaskGenerator(ratio=0.9999, patch_size=32)(blank(1, size))
    named = float(re.search(r"ratio of at most ([\d.]+)", str(error.value))[1])
    patches = (size // 32) ** 2
    assert RandomMaskGenerator(ratio=named, patch_size=32)(blank(1, size)).num_masked == patches - 1


def test_an_image_of_one_patch_is_not_told_to_use_a_ratio_of_zero() -> None:
    with pytest.raises(ValueError, match="patches smaller than 32 px") as error:
        RandomMaskGenerator(ratio=0.6, patch_size=32)(blank(1, 32))
    assert "at most" not in str(error.value)


@pytest.mark.parametrize(("cell", "ratio"), [(2, 0.75), (3, 8 / 9), (3, 0.8889)])
@pytest.mark.parametrize("is_keyed", [True, False])
def test_each_square_has_one_visible_patch_anywhere_in_it(cell: int, ratio: float, is_keyed: bool) -> None:
    images = 2000
    keys = sample_keys(0, "mask", 0, torch.arange(images)) if is_keyed else None
    mask = RandomMaskGenerator(ratio=ratio, patch_size=[2, 4], cell=cell)(blank(images, 4 * cell, 12 * cell), keys)
    assert (mask.patch_size, mask.visible_cell) == ((2, 4), cell)
    visible = (~mask.masked).double()
    assert visible.shape == (images, 2 * cell, 3 * cell)
    by_square = [
        visible[:, r : r + cell, c : c + cell] for r in range(0, 2 * cell, cell) for c in range(0, 3 * cell, cell)
    ]
    assert all((square.sum(dim=(1, 2)) == 1).all() for square in by_square)
    assert mask.num_masked == 6 * (cell**2 - 1)
    assert (visible.mean(dim=0) - 1 / cell**2).abs().max() < 5 * (1 / cell**2 / images) ** 0.5
    first, second = by_square[0].flatten(1), by_square[1].flatten(1)
    together = first.T @ second / images  # the places in two squares are drawn apart
    assert (together - 1 / cell**4).abs().max() < 6 * (1 / cell**4 / images) ** 0.5


def test_a_mask_of_squares_is_the_same_for_the_same_key() -> None:
    generator = RandomMaskGenerator(ratio=0.75, patch_size=4, cell=2)
    keys = sample_keys(0, "mask", 0, torch.arange(8))
    straight, turned = generator(blank(8, 32), keys), generator(blank(8, 32), keys.flip(0))
    assert torch.equal(straight.masked, turned.masked.flip(0))
    assert not torch.equal(straight.masked[0], straight.masked[1])


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"cell": 2, "ratio": 0.6}, r"of each 2x2 is a mask ratio of 0\.75, not 0\.6; set .*ratio=0\.75"),
        ({"cell": 1, "ratio": 0.5}, "cell must be at least 2 patches a side, or null for none, got 1"),
        (
            {"cell": 2, "ratio": 0.75, "patch_size": 8},
            r"not whole squares of 2x2 patches of 8 px; use 32x32 px images$",
        ),
    ],
)
def test_squares_that_do_not_fit_are_refused(settings: dict[str, float], refusal: str) -> None:
    with pytest.raises(ValueError, match=refusal):
        RandomMaskGenerator(**{"patch_size": 4} | settings)(blank(1, 24))
