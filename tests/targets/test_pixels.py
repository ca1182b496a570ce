import torch

from unmask.targets.pixels import normalize_patches, restore_patches


def test_each_patch_has_mean_zero_and_unbiased_deviation_one() -> None:
    normalized = normalize_patches(3.0 * torch.randn(2, 5, 12) + 7.0)
    torch.testing.assert_close(normalized.mean(dim=2), torch.zeros(2, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(normalized.var(dim=2, correction=1), torch.ones(2, 5), rtol=0, atol=1e-5)


def test_epsilon_is_added_to_the_variance() -> None:
    patch = torch.tensor([[[0.0, 0.001, 0.002]]])  # variance 1e-6, as large as MAE's epsilon
    expected = torch.tensor([[[-0.001, 0.0, 0.001]]]) / 2e-6**0.5
    torch.testing.assert_close(normalize_patches(patch), expected)


def test_a_flat_patch_becomes_zero_and_not_infinite() -> None:
    assert torch.count_nonzero(normalize_patches(torch.full((1, 2, 12), 0.5))) == 0


def test_restoring_uses_the_statistics_of_the_true_patches() -> None:
    patches = 2.0 * torch.randn(2, 5, 12) - 1.0
    torch.testing.assert_close(restore_patches(normalize_patches(patches), like=patches), patches)
    flat_prediction = torch.zeros(2, 5, 12)
    means = patches.mean(dim=2, keepdim=True).expand(-1, -1, 12)
    torch.testing.assert_close(restore_patches(flat_prediction, like=patches), means)
