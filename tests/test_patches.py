import re

import pytest
import torch

from unmask.patches import PatchMask, patchify, require_whole_patches, unpatchify


def mask_of(*rows: str, patch_size: int = 8, num_masked: int | None = None) -> PatchMask:
    """Reads a mask of one image, `#` for hidden."""
    masked = torch.tensor([[cell == "#" for cell in row] for row in rows])
    return PatchMask(masked[None], patch_size, num_masked)


def test_patchify_is_row_major_with_the_channel_fastest() -> None:
    images = torch.randn(2, 3, 4, 6)
    patches = patchify(images, 2)
    for row in range(4):
        for col in range(6):
            patch = (row // 2) * 3 + col // 2
            for channel in range(3):
                entry = ((row % 2) * 2 + col % 2) * 3 + channel
                assert torch.equal(patches[:, patch, entry], images[:, channel, row, col])


def test_unpatchify_inverts_patchify_on_a_grid_that_is_not_square() -> None:
    images = torch.randn(2, 3, 12, 20)
    assert torch.equal(unpatchify(patchify(images, 4), 4, (3, 5)), images)


def test_mask_at_a_finer_stride_repeats_each_patch() -> None:
    fine = mask_of("#..", "..#").at_stride(4)
    assert torch.equal(fine, mask_of("##....", "##....", "....##", "....##").masked)


def test_mask_at_a_coarser_stride_hides_a_cell_only_where_all_of_it_is_hidden() -> None:
    mask = mask_of("###.", "###.", "..##", "#.#.")
    assert torch.equal(mask.at_stride(16), mask_of("#.", "..").masked)


def test_nearest_takes_the_top_left_patch_of_a_coarser_cell() -> None:
    mask = mask_of(".##.", "####", "#..#", "...#")
    assert torch.equal(mask.at_stride(16, coarse="nearest"), mask_of(".#", "#.").masked)


def test_mask_at_pixels_covers_exactly_the_hidden_patches() -> None:
    mask = mask_of("#..", "..#", patch_size=2)
    pixels = mask.at_pixels()
    for row in range(4):
        for col in range(6):
            assert pixels[0, 0, row, col] == mask.masked[0, row // 2, col // 2]


@pytest.mark.parametrize("num_masked", [None, 3])
def test_visible_indices_are_the_complement_in_rising_order(num_masked: int | None) -> None:
    masked = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[0, 1, 1], [1, 0, 0]]], dtype=torch.bool)
    visible = PatchMask(masked, 8, num_masked).visible_indices()
    assert visible.tolist() == [[1, 2, 3], [0, 4, 5]]


def test_visible_indices_need_one_number_a_batch() -> None:
    masked = torch.tensor([[[True, False]], [[True, True]]])
    with pytest.raises(ValueError, match="different numbers of patches \\(1 to 2\\)"):
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
