import pytest
import torch

from unmask.heads.pixel_shuffle import PixelShuffleHead


@pytest.mark.parametrize(("stride", "tall", "wide"), [(4, 4, 4), ((4, 5), 4, 5)])
def test_an_output_channel_lands_on_its_color_and_pixel_of_the_cell(stride, tall: int, wide: int) -> None:
    """Channel slowest, as in SimMIM's checkpoints: (channel * height + row) * width + col."""
    head = PixelShuffleHead(in_channels=2, stride=stride)
    torch.nn.init.zeros_(head.project.weight)
    for channel, row, col in [(0, 0, 1), (1, 2, 3), (2, 3, 0)]:
        torch.nn.init.zeros_(head.project.bias)
        with torch.no_grad():
            head.project.bias[(channel * tall + row) * wide + col] = 1.0
        lit = head(torch.randn(1, 2, 2, 3)).nonzero().tolist()
        assert lit == [[0, channel, i * tall + row, j * wide + col] for i in range(2) for j in range(3)]


def test_square_cells_are_laid_out_as_by_torch() -> None:
    head, features = PixelShuffleHead(in_channels=2, stride=3), torch.randn(2, 2, 4, 5)
    assert torch.equal(head(features), torch.pixel_shuffle(head.project(features), 3))


def test_each_cell_is_predicted_from_its_own_features() -> None:
    head = PixelShuffleHead(in_channels=5, stride=2)
    features = torch.randn(1, 5, 3, 4)
    other = features.clone()
    other[0, :, 1, 2] += 1.0
    changed = (head(features) != head(other)).any(dim=1)[0]
    expected = torch.zeros(6, 8, dtype=torch.bool)
    expected[2:4, 4:6] = True
    assert torch.equal(changed, expected)
