import pytest
import torch

from unmask.masking.bernoulli import BernoulliMaskGenerator
from unmask.randomness import sample_keys

KEYS = sample_keys(0, "mask", 0, torch.arange(200))


def test_patches_are_hidden_independently_with_the_stated_chance() -> None:
    masked = BernoulliMaskGenerator(ratio=0.3, patch_size=4)(torch.empty(200, 3, 64, 64), KEYS).masked.float()
    counts = masked.flatten(1).sum(dim=1)
    assert masked.mean().item() == pytest.approx(0.3, abs=0.01)
    assert counts.std().item() == pytest.approx((256 * 0.3 * 0.7) ** 0.5, rel=0.15)  # binomial, not a fixed number


def test_keys_decide_the_mask_and_the_place_in_the_batch_does_not() -> None:
    generator = BernoulliMaskGenerator(ratio=0.5, patch_size=8)
    whole = generator(torch.empty(200, 3, 32, 32), KEYS).masked
    part = generator(torch.empty(3, 3, 32, 32), KEYS[[7, 5, 9]]).masked
    assert torch.equal(part, whole[[7, 5, 9]])


def test_no_image_is_all_hidden_or_all_visible() -> None:
    for ratio in (0.001, 0.999):
        counts = (
            BernoulliMaskGenerator(ratio=ratio, patch_size=16)(torch.empty(200, 3, 32, 32), KEYS)
            .masked.flatten(1)
            .sum(dim=1)
        )
        assert counts.min() >= 1
        assert counts.max() <= 3


def test_a_single_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="one 32 px patch is the whole 32x32 px image"):
        BernoulliMaskGenerator(ratio=0.5, patch_size=32)(torch.empty(2, 3, 32, 32))
