import math

import pytest
import torch

from unmask.positions import sincos_positions, sinusoid_positions


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
