import torch

from unmask.losses.masked import masked_mean


def test_mean_equals_a_loop_over_the_masked_values() -> None:
    values = torch.randn(2, 3, 4, 5)
    masked = torch.rand(2, 1, 4, 5) < 0.4
    chosen = [
        values[image, channel, row, col].item()
        for image in range(2)
        for channel in range(3)
        for row in range(4)
        for col in range(5)
        if masked[image, 0, row, col]
    ]
    torch.testing.assert_close(masked_mean(values, masked), torch.tensor(sum(chosen) / len(chosen)))


def test_mean_counts_every_number_of_a_masked_patch_vector() -> None:
    values = torch.tensor([[[1.0, 2.0], [30.0, 40.0]], [[5.0, 6.0], [7.0, 9.0]]])
    masked = torch.tensor([[[True], [False]], [[True], [True]]])
    assert masked_mean(values, masked) == (1 + 2 + 5 + 6 + 7 + 9) / 6  # over the batch at once, not image by image


def test_nothing_masked_gives_zero_and_a_zero_gradient() -> None:
    values = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = masked_mean(values, torch.zeros(2, 1, 4, 4, dtype=torch.bool))
    loss.backward()
    assert loss == 0.0
    assert torch.count_nonzero(values.grad) == 0


def test_half_precision_is_summed_in_float32() -> None:
    values = torch.full((1, 3, 300, 300), 1.0, dtype=torch.float16)  # their sum, 270000, is beyond float16
    loss = masked_mean(values, torch.ones(1, 1, 300, 300, dtype=torch.bool))
    assert loss.dtype == torch.float32
    assert loss == 1.0
