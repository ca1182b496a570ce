import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import CubicSpline

from unmask.interchange.resize import reorder_unfolded_merging, resize_bias_table, resize_positions


@pytest.mark.parametrize("num_extra_rows", [0, 3])
def test_a_table_of_the_same_window_stays_bitwise(num_extra_rows) -> None:
    table = torch.randn(49 + num_extra_rows, 2)
    assert torch.equal(resize_bias_table(table, (4, 4), num_extra_rows=num_extra_rows), table)


def spline_by_loops(table: torch.Tensor, side: int, target: int, ratio: float) -> torch.Tensor:
    """The official code in words: distances 1, 1+q, 1+q+q^2, ...; cubic splines along columns, then along rows."""
    distances = [sum(ratio**power for power in range(count + 1)) for count in range(side // 2)]
    axis = np.array([-d for d in reversed(distances)] + [0.0] + distances)
    wanted = np.arange(target) - target // 2
    resized = torch.empty(target, target, table.shape[1])
    for head in range(table.shape[1]):
        values = table[:, head].view(side, side).double().numpy()
        along_columns = np.stack([CubicSpline(axis, row, bc_type="not-a-knot")(wanted) for row in values])
        for col in range(target):
            along_rows = CubicSpline(axis, along_columns[:, col], bc_type="not-a-knot")(wanted)
            resized[:, col, head] = torch.from_numpy(along_rows)
    return resized.flatten(0, 1)


# The ratios were found by bisection with the official code's formula.
@pytest.mark.parametrize(("window", "target", "ratio"), [(6, 7, 1.0913), (12, 14, 1.0329)])
def test_a_table_is_resized_as_by_the_official_code(window, target, ratio) -> None:
    table = torch.randn((2 * window - 1) ** 2, 2)
    side = 2 * target - 1
    expected = spline_by_loops(table, 2 * window - 1, side, ratio)
    resized = resize_bias_table(table, (target, target))
    inner = torch.zeros(side, side, dtype=torch.bool)
    inner[1:-1, 1:-1] = True  # on the rim the rounded ratios above extrapolate
    torch.testing.assert_close(resized[inner.flatten()], expected[inner.flatten()], rtol=0, atol=2e-3)
    center = (side * side) // 2
    torch.testing.assert_close(resized[center], table[len(table) // 2])


def test_a_table_of_straight_lines_stays_so_at_equal_spacing() -> None:
    rows = torch.arange(-3.0, 4.0)[:, None].expand(7, 7)
    smaller = resize_bias_table(rows.reshape(49, 1), (3, 3)).view(5, 5)
    # Where the window shrinks the spread is the least allowed, 1.01, hence nearly even.
    torch.testing.assert_close(smaller, torch.arange(-2.0, 3.0)[:, None].expand(5, 5), rtol=0, atol=0.05)


def test_extra_rows_are_kept_and_windows_may_be_oblong() -> None:
    table = torch.randn(49 + 3, 2)
    resized = resize_bias_table(table, (4, 6), num_extra_rows=3)
    assert resized.shape == (7 * 11 + 3, 2)
    assert torch.equal(resized[-3:], table[-3:])
    transposed = table[:-3].view(7, 7, 2).transpose(0, 1).reshape(49, 2)
    across = resize_bias_table(transposed, (6, 4)).view(11, 7, 2).transpose(0, 1)
    torch.testing.assert_close(resized[:-3].view(7, 11, 2), across)


def test_a_table_of_one_or_two_tokens_can_be_resized() -> None:
    assert torch.equal(resize_bias_table(torch.tensor([[3.0]]), (2, 2)), torch.full((9, 1), 3.0))
    assert resize_bias_table(torch.randn(9, 1), (3, 3)).isfinite().all()


def test_positions_are_resized_as_by_the_official_code() -> None:
    positions = torch.randn(1, 17, 8)
    resized = resize_positions(positions, (6, 4), num_prefix_tokens=1)
    as_image = positions[:, 1:].reshape(1, 4, 4, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(as_image, size=(6, 4), mode="bicubic", align_corners=False)
    assert torch.equal(resized[:, 0], positions[:, 0])
    torch.testing.assert_close(resized[:, 1:].reshape(1, 6, 4, 8), expected.permute(0, 2, 3, 1))
    assert torch.equal(resize_positions(positions, (4, 4), num_prefix_tokens=1), positions)


def test_what_is_no_square_is_refused() -> None:
    with pytest.raises(ValueError, match="15 positions of patches do not form a square"):
        resize_positions(torch.zeros(1, 16, 4), (3, 3), num_prefix_tokens=1)
    with pytest.raises(ValueError, match="a table of 64 relative positions is not of a square window"):
        resize_bias_table(torch.zeros(64, 1), (3, 3))


def test_reordering_a_merging_leaves_what_it_computes(make_swin) -> None:
    merging = make_swin(embed_dim=6, depths=(1, 1), num_heads=(1, 1), image_size=16).swin.layers[1].downsample
    torch.nn.init.normal_(merging.norm.weight)
    image = torch.randn(1, 4, 4, 6)
    by_channel = F.unfold(image.permute(0, 3, 1, 2), kernel_size=2, stride=2).transpose(1, 2)
    weights = {"norm": torch.randn(24), "bias": torch.randn(24), "reduction": torch.randn(12, 24)}
    normalized = F.layer_norm(by_channel, (24,), weights["norm"], weights["bias"], merging.norm.eps)
    expected = F.linear(normalized, weights["reduction"])
    merging.norm.weight.data = reorder_unfolded_merging(weights["norm"])
    merging.norm.bias.data = reorder_unfolded_merging(weights["bias"])
    merging.reduction.weight.data = reorder_unfolded_merging(weights["reduction"])
    torch.testing.assert_close(merging(image).flatten(1, 2), expected)
