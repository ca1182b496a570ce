import re

import pytest
import torch

from unmask.patches import (
    PatchMask,
    PatchSize,
    as_patch_size,
    patch_sides,
    patches_of_units,
    patchify,
    require_whole_patches,
    unpatchify,
)


def mask_of(*rows: str, patch_size: PatchSize = 8, num_masked: int | None = None) -> PatchMask:
    """Reads a mask of one image, `#` for masked."""
    masked = torch.tensor([[cell == "#" for cell in row] for row in rows])
    return PatchMask(masked[None], patch_size, num_masked)


@pytest.mark.parametrize("patch_size", [2, (2, 3), (4, 1)])
def test_patchify_is_row_major_with_the_channel_fastest(patch_size: PatchSize) -> None:
    images = torch.randn(2, 3, 4, 6)
    patches = patchify(images, patch_size)
    tall, wide = patch_sides(patch_size)
    for row in range(4):
        for col in range(6):
            patch = (row // tall) * (6 // wide) + col // wide
            for channel in range(3):
                entry = ((row % tall) * wide + col % wide) * 3 + channel
                assert torch.equal(patches[:, patch, entry], images[:, channel, row, col])


def test_unpatchify_inverts_patchify_on_a_grid_that_is_not_square() -> None:
    images = torch.randn(2, 3, 12, 20)
    assert torch.equal(unpatchify(patchify(images, 4), 4, (3, 5)), images)
    assert torch.equal(unpatchify(patchify(images, (6, 4)), (6, 4), (2, 5)), images)


def test_mask_at_a_finer_stride_repeats_each_patch() -> None:
    fine = mask_of("#..", "..#").at_stride(4)
    assert torch.equal(fine, mask_of("##....", "##....", "....##", "....##").masked)


def test_mask_at_a_coarser_stride_masks_a_cell_only_where_all_of_it_is_masked() -> None:
    mask = mask_of("###.", "###.", "..##", "#.#.")
    assert torch.equal(mask.at_stride(16), mask_of("#.", "..").masked)


def test_nearest_takes_the_top_left_patch_of_a_coarser_cell() -> None:
    mask = mask_of(".##.", "####", "#..#", "...#")
    assert torch.equal(mask.at_stride(16, coarse="nearest"), mask_of(".#", "#.").masked)


@pytest.mark.parametrize("patch_size", [2, (2, 3), (3, 1)])
def test_mask_at_pixels_covers_exactly_the_masked_patches(patch_size: PatchSize) -> None:
    mask = mask_of("#..", "..#", patch_size=patch_size)
    pixels = mask.at_pixels()
    tall, wide = patch_sides(patch_size)
    assert pixels.shape == (1, 1, 2 * tall, 3 * wide)
    for row in range(2 * tall):
        for col in range(3 * wide):
            assert pixels[0, 0, row, col] == mask.masked[0, row // tall, col // wide]


def test_cells_may_be_finer_one_way_and_coarser_the_other() -> None:
    mask = mask_of("##..", ".###", patch_size=(8, 4))
    assert torch.equal(mask.at_stride((4, 8)), mask_of("#.", "#.", ".#", ".#").masked)
    assert torch.equal(mask.at_stride((4, 8), coarse="nearest"), mask_of("#.", "#.", ".#", ".#").masked)
    assert torch.equal(mask_of(".#", patch_size=(8, 4)).at_stride((8, 8), coarse="nearest"), mask_of(".").masked)
    with pytest.raises(ValueError, match="a 2x4 grid of 8x4 px patches does not nest with cells of 8x6 px"):
        mask.at_stride((8, 6))


def test_a_patch_of_equal_sides_is_one_number() -> None:
    assert as_patch_size([8, 8]) == as_patch_size(8) == 8
    assert as_patch_size([8, 4]) == (8, 4)
    with pytest.raises(ValueError, match=r"one side, or a height and a width, in pixels; got \[8, 4, 2\]"):
        as_patch_size([8, 4, 2])


def test_images_that_are_not_whole_oblong_patches_are_refused() -> None:
    require_whole_patches(32, 20, (16, 4))
    with pytest.raises(ValueError, match="32x20 px images are not whole 4x16 px patches; use 32x16 px images"):
        require_whole_patches(32, 20, (4, 16))


@pytest.mark.parametrize("num_masked", [None, 3])
def test_visible_and_masked_indices_are_in_rising_order(num_masked: int | None) -> None:
    masked = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[0, 1, 1], [1, 0, 0]]], dtype=torch.bool)
    mask = PatchMask(masked, 8, num_masked)
    assert mask.visible_indices().tolist() == [[1, 2, 3], [0, 4, 5]]
    assert mask.masked_indices().tolist() == [[0, 4, 5], [1, 2, 3]]


def test_visible_indices_need_one_number_a_batch() -> None:
    masked = torch.tensor([[[True, False]], [[True, True]]])
    with pytest.raises(ValueError, match="different numbers of masked patches \\(1 to 2\\)"):
        PatchMask(masked, 8).visible_indices()


@pytest.mark.parametrize(("stride", "rows"), [(12, ("##", "..")), (16, ("#.#",)), (32, ("##", ".."))])
def test_strides_that_do_not_nest_are_refused(stride: int, rows: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"does not nest with cells of {stride} px"):
        mask_of(*rows).at_stride(stride)


@pytest.mark.parametrize(("height", "width", "patch_size"), [(225, 225, 16), (30, 48, 32), (5, 7, 16), (100, 60, 7)])
def test_the_sizes_named_for_images_that_do_not_fit_really_fit(height: int, width: int, patch_size: int) -> None:
    with pytest.raises(ValueError, match=f"{height}x{width} px images are not whole {patch_size} px patches") as error:
        require_whole_patches(height, width, patch_size)
    sides = re.search(r"use (\d+)x(\d+) px images", str(error.value))
    assert sides is not None
    require_whole_patches(int(sides[1]), int(sides[2]), patch_size)
    units = re.search(r"or patches of (.*) px", str(error.value))
    for unit in re.findall(r"\d+", units[1]) if units else ():
        require_whole_patches(height, width, int(unit))


def test_patchify_refuses_a_remainder_instead_of_dropping_it() -> None:
    with pytest.raises(ValueError, match="use 32x32 px images"):
        patchify(torch.zeros(1, 3, 32, 36), 16)


def test_patches_of_units_are_listed_row_by_row_unit_after_unit() -> None:
    """Units of 2 x 3 patches in a grid of 4 x 6."""
    listed = patches_of_units(torch.tensor([[3, 0]]), grid=(4, 6), unit_size=(4, 6), patch_size=2)
    assert listed.tolist() == [[15, 16, 17, 21, 22, 23, 0, 1, 2, 6, 7, 8]]
    assert patches_of_units(torch.tensor([[3, 0]]), grid=(4, 6), unit_size=2, patch_size=2).tolist() == [[3, 0]]


def test_a_mask_of_units_says_the_same_of_their_patches() -> None:
    masked = torch.tensor([[[True, False], [False, False]]])
    split = PatchMask(masked, 4, num_masked=1).split((2, 4))
    assert split.masked.int().tolist() == [[[1, 0], [1, 0], [0, 0], [0, 0]]]
    assert (split.patch_size, split.num_masked) == ((2, 4), 2)
    with pytest.raises(ValueError, match="patches of 4 px are not a whole number of 8 px"):
        PatchMask(masked, 4).split(8)
