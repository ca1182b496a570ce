import math

import pytest
import torch
import torch.nn.functional as F

from unmask.masking.stages import StageMaskGenerator, stage_masks
from unmask.patches import PatchMask
from unmask.randomness import sample_keys

IMAGES = torch.empty(6, 3, 64, 64)
KEYS = sample_keys(3, "mask", 0, torch.arange(6))


def make(**changes) -> StageMaskGenerator:
    settings = {"ratios": [0.5, 0.5, 0.5, 0.0], "patch_size": 16, "token_size": 4}
    return StageMaskGenerator(**settings | changes)


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_nested_masks_agree_under_every_pooling_for_the_default_unit(stride: int) -> None:
    mask = make()(IMAGES, KEYS)
    (stage_mask,) = {4: mask.by_stage[0:1], 8: mask.by_stage[1:2], 16: mask.by_stage[2:3]}[stride]
    assert stage_mask is not None
    found = stage_mask.at_stride(stride, coarse="nearest").float()
    pixels = mask.at_pixels().float()
    for pooled in (
        F.max_pool2d(pixels, stride),
        -F.max_pool2d(-pixels, stride),
        F.avg_pool2d(pixels, stride),
    ):
        assert torch.equal(pooled.squeeze(1), found)


def test_poolings_disagree_for_a_unit_of_one_token() -> None:
    mask = make(patch_size=4, distribution="bernoulli")(IMAGES, KEYS)
    pixels = mask.at_pixels().float()
    nearest = mask.at_stride(16, coarse="nearest").float()
    assert not torch.equal(F.max_pool2d(pixels, 16).squeeze(1), nearest)
    assert torch.equal(nearest, pixels[:, 0, ::16, ::16])  # the top-left token decides


def test_what_a_coarse_stage_hides_is_what_its_mask_shows() -> None:
    mask = make(patch_size=4, distribution="bernoulli")(IMAGES, KEYS)
    assert [stage.patch_size for stage in mask.by_stage[:3]] == [4, 8, 16]
    for stage, stride in enumerate([4, 8, 16]):
        assert torch.equal(mask.by_stage[stage].masked, mask.masked[:, :: stride // 4, :: stride // 4])


def test_only_stages_with_a_ratio_are_masked() -> None:
    mask = make(ratios=[0.0, 0.4, 0.4, 0.0])(IMAGES, KEYS)
    assert [stage is None for stage in mask.by_stage] == [True, False, False, True]
    assert mask.masked.flatten(1).sum(dim=1).tolist() == [math.ceil(0.4 * 16)] * 6


def test_independent_stages_draw_their_own_masks_and_their_union_is_hidden() -> None:
    mask = make(ratios=[0.25, 0.0, 0.5, 0.5], nested=False)(IMAGES, KEYS)
    first, none, third, fourth = mask.by_stage
    assert none is None
    assert [stage.patch_size for stage in (first, third, fourth)] == [16, 16, 32]
    assert [stage.masked.float().mean().item() for stage in (first, third, fourth)] == [0.25, 0.5, 0.5]
    assert not torch.equal(first.masked, third.masked)
    union = first.at_pixels() | third.at_pixels() | fourth.at_pixels()
    assert torch.equal(mask.at_pixels(), union)


@pytest.mark.parametrize("nested", [True, False])
def test_keys_decide_every_stage(nested: bool) -> None:
    generator = make(ratios=[0.5, 0.5, 0.5, 0.5], nested=nested, patch_size=32)
    whole, part = generator(IMAGES, KEYS), generator(IMAGES[:2], KEYS[[4, 1]])
    for of_whole, of_part in zip(whole.by_stage, part.by_stage, strict=True):
        assert torch.equal(of_whole.masked[[4, 1]], of_part.masked)


def test_a_plain_mask_hides_in_the_stages_listed() -> None:
    plain = PatchMask(torch.ones(1, 4, 4, dtype=torch.bool), 16)
    assert stage_masks(plain, 4, [0, 2]) == (plain, None, plain, None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ratios": [0.5, 0.4, 0.5, 0.0]}, r"nested masks are one mask .* \[0.5, 0.4, 0.5, 0.0\] differ"),
        ({"ratios": [0.0, 0.0]}, "mask nothing"),
        ({"ratios": [1.0, 1.0]}, "between 0 and 1"),
        ({"ratios": [-0.5, 0.0]}, "between 0 and 1"),
        ({"distribution": "gauss"}, "exact or bernoulli"),
    ],
)
def test_mistakes_are_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(**changes)


def test_masks_that_do_not_nest_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    make(patch_size=16)
    assert caplog.text == ""
    make(patch_size=8)
    assert "mask patches of 8 px are not whole cells of 16 px of stage 2" in caplog.text
