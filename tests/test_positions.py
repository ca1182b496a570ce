import math

import pytest
import torch

from unmask.positions import resample_into_box, sincos_positions, sinusoid_positions


@pytest.mark.parametrize("num_prefix_tokens", [0, 1, 2])
def test_positions_equal_a_loop_over_the_formula(num_prefix_tokens: int) -> None:
    dim, rows, cols = 16, 3, 5
    positions = sincos_positions(dim, (rows, cols), num_prefix_tokens=num_prefix_tokens)[0]
    assert torch.count_nonzero(positions[:num_prefix_tokens]) == 0
    for row in range(rows):
        for col in range(cols):
            expected = []
            for place in (col, row):  # column first
                angles = [place * 10000 ** (-k / (dim / 4)) for k in range(dim // 4)]
                expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            computed = positions[num_prefix_tokens + row * cols + col]
            torch.testing.assert_close(computed, torch.tensor(expected), rtol=0, atol=1e-7)


def test_far_positions_keep_the_precision_of_float64() -> None:
    last = sincos_positions(8, (1, 5000), num_prefix_tokens=0)[0, -1]
    assert abs(last[0].item() - math.sin(4999)) < 1e-7  # float32 angles would be off by 1e-4


def test_width_must_hold_sine_and_cosine_of_both_axes() -> None:
    with pytest.raises(ValueError, match="divisible by 4, got 18"):
        sincos_positions(18, (2, 2))


def test_sinusoids_equal_a_loop_over_the_formula() -> None:
    positions = sinusoid_positions(6, 5)[0]
    for place in range(5):
        angles = [place * 10000 ** (-2 * k / 6) for k in range(3)]
        expected = [function(angle) for angle in angles for function in (math.sin, math.cos)]
        torch.testing.assert_close(positions[place], torch.tensor(expected), rtol=0, atol=1e-7)


def test_sinusoids_need_an_even_width() -> None:
    with pytest.raises(ValueError, match="even width, got 7"):
        sinusoid_positions(7, 3)


def places(box: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Where the centers of a crop's cells lie in the image, as (row, column) in 0..1."""
    rows = box[:, 0, None] + (torch.arange(height) + 0.5) / height * box[:, 2, None]
    cols = box[:, 1, None] + (torch.arange(width) + 0.5) / width * box[:, 3, None]
    return torch.stack([rows[:, :, None].expand(-1, -1, width), cols[:, None, :].expand(-1, height, -1)], dim=3)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_crop_is_read_where_the_other_crop_lies_in_it(mirrored: bool) -> None:
    box = torch.tensor([[0.1, 0.2, 0.8, 0.7], [0.0, 0.0, 0.5, 0.5]])
    other = torch.tensor([[0.3, 0.4, 0.4, 0.3], [0.25, 0.25, 0.5, 0.5]])
    if mirrored:  # the same part of the image, seen from the right
        other = torch.stack([other[:, 0], other[:, 1] + other[:, 3], other[:, 2], -other[:, 3]], dim=1)
    map_of_places = places(box, 16, 20)
    resampled, inside = resample_into_box(map_of_places, box, other)
    wanted = places(other, 16, 20)
    top, left, height, width = (edge[:, None, None] for edge in box.unbind(1))
    in_rows = (wanted[..., 0] >= top) & (wanted[..., 0] <= top + height)
    in_cols = (wanted[..., 1] >= left) & (wanted[..., 1] <= left + width)
    assert torch.equal(inside, in_rows & in_cols)
    assert inside[0].all()
    assert inside[1].sum() == 8 * 10  # a quarter overlaps
    far_from_edge = inside & (wanted < (box[:, None, None, :2] + box[:, None, None, 2:]) - 0.03).all(dim=3)
    torch.testing.assert_close(resampled[far_from_edge], wanted[far_from_edge])


def test_a_crop_read_at_its_own_place_is_itself() -> None:
    box = torch.tensor([[0.2, 0.9, 0.5, -0.6]])
    features = torch.randn(1, 4, 6, 3)
    resampled, inside = resample_into_box(features, box, box)
    torch.testing.assert_close(resampled, features)
    assert inside.all()
