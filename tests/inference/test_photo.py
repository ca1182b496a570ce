"""A photo under a mask of any ratio and unit, or one painted by hand, and what a classifier says of it."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

METHODS = ["ddmim", "mae", "simmim"]


@pytest.fixture
def open_photos(tiny_overrides: Callable[[str], list[str]]) -> Callable[..., Any]:
    """Builds a tiny method of 32 px as the page shows it."""

    def opened(method: str, *overrides: str) -> Any:
        from unmask.inference.photo import PhotoModel
        from unmask.runtime.api import build_method

        return PhotoModel(build_method([*tiny_overrides(method), *overrides]).eval())

    return opened


@pytest.fixture
def photo() -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("method", METHODS)
def test_every_unit_offered_can_be_drawn_and_painted(
    method: str, open_photos: Callable[..., Any], photo: np.ndarray
) -> None:
    model = open_photos(method)
    ratio, own = model.own_masking()
    assert own in model.mask_units()
    for unit in model.mask_units():
        shown = model.reconstruct(photo, model.draw(ratio=0.5, unit=unit, seed=1))
        assert float(shown.mask.masked.float().mean()) == pytest.approx(0.5)
        painted = np.zeros((48, 64), dtype=np.float32)
        painted[:, :32] = 1.0  # the left half, of which a centered crop keeps as much as of the right
        masked = model.mask_painted(painted, unit=unit).masked[0]
        half = masked.shape[1] // 2
        assert masked[:, :half].all()
        assert not masked[:, half:].any()
        visible = ~shown.mask.at_pixels().expand_as(shown.image)
        assert torch.equal(shown.composite[visible], shown.image[visible])
    assert 0 < ratio < 1


def test_the_unit_offered_first_is_that_of_the_method(open_photos: Callable[..., Any]) -> None:
    model = open_photos("mae", "method.mask_generator.patch_size=16")
    assert model.mask_units() == [4, 8, 16]
    assert model.own_masking() == (0.75, 16)


@pytest.mark.parametrize(("side", "smallest"), [(32, 1), (34, 2), (64, 2)])
def test_squares_too_small_to_be_told_apart_are_not_offered(side: int, smallest: int) -> None:
    from unmask.inference.photo import PhotoModel
    from unmask.methods.backbone_module import BackboneModule

    backbone = Mock(image_size=(side, side), in_channels=3)
    module = Mock(spec=BackboneModule, exported_backbone=backbone, mask_unit_size=1, mask_cell=None)
    assert PhotoModel(module).mask_units()[0] == smallest


@pytest.mark.parametrize("is_classifier", [True, False])
def test_a_file_is_opened_with_its_classes_where_it_has_any(
    is_classifier: bool, open_photos: Callable[..., Any]
) -> None:
    from unmask.inference.base import Checkpoint
    from unmask.inference.photo import open_for_photos

    module = open_photos(*(("supervised", "data.num_train=20") if is_classifier else ("mae",))).module
    checkpoint = Mock(spec=Checkpoint, path="last.ckpt")
    checkpoint.load_module.return_value = module
    checkpoint.class_names.return_value = ("a", "b")
    opened = open_for_photos(checkpoint)
    assert opened.module is module
    assert opened.class_names == (("a", "b") if is_classifier else ())
    assert opened.origin.startswith("last.ckpt")


def test_a_small_picture_is_enlarged_by_the_factor_that_fills_the_page() -> None:
    from unmask.inference.photo import as_picture

    images = torch.rand(2, 3, 100, 60)
    picture = as_picture(images)
    assert picture.shape == (400, 240, 3)
    expected = (255 * images[0]).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(picture[1::4, 2::4], expected)
    assert as_picture(torch.zeros(1, 3, 300, 400)).shape == (300, 400, 3)


def test_units_offered_for_a_hiera_are_whole_ones_of_it(open_photos: Callable[..., Any], photo: np.ndarray) -> None:
    from unmask.inference.photo import PhotoModel
    from unmask.runtime.api import build_method

    small = ["model.embed_dim=8", "model.depths=[1,1,1]", "image_size=32"]
    model = PhotoModel(build_method(["method=mae", "model=hiera_mini", *small]).eval())
    assert model.own_masking() == (0.625, 8)
    assert model.mask_units() == [8, 16]
    shown = model.reconstruct(photo, model.draw(ratio=0.5, unit=16, seed=0))
    assert float(shown.mask.masked.float().mean()) == 0.5


def test_a_number_draws_the_same_mask_again_and_another_one_another(open_photos: Callable[..., Any]) -> None:
    model = open_photos("mae")
    first, again, other = (model.draw(ratio=0.5, unit=4, seed=seed).masked for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_paint_on_a_small_part_of_a_patch_masks_nothing(open_photos: Callable[..., Any]) -> None:
    model = open_photos("mae")
    painted = np.zeros((64, 64), dtype=np.float32)
    with pytest.raises(ValueError, match="nothing is painted"):
        model.mask_painted(painted, unit=8)
    with pytest.raises(ValueError, match="leave some of the photo visible"):
        model.mask_painted(painted + 1, unit=8)
    with pytest.raises(ValueError, match="nothing is painted"):
        model.mask_painted(painted + 127 / 255, unit=8)
    with pytest.raises(ValueError, match="leave some of the photo visible"):
        model.mask_painted(painted + 128 / 255, unit=8)
    painted[:16, 16:24] = 1.0  # half of the second patch
    painted[:4, 32:36] = 1.0  # a sixteenth of the third
    painted[32:40, 32:40] = 1.0  # a quarter of the one in the third row
    masked = model.mask_painted(painted, unit=8).masked
    assert masked.nonzero().tolist() == [[0, 0, 1], [0, 2, 2]]


@pytest.mark.parametrize("ratio", [0.25, 0.75])
def test_as_much_is_masked_as_was_asked(ratio: float, open_photos: Callable[..., Any]) -> None:
    assert float(open_photos("mae").draw(ratio=ratio, unit=4, seed=0).masked.float().mean()) == ratio


def test_statistics_that_a_method_borrows_are_told_from_what_it_predicts(
    open_photos: Callable[..., Any], photo: np.ndarray
) -> None:
    model = open_photos("mae")
    for is_borrowed in (True, False):
        model.module.norm_pix_loss = is_borrowed
        shown = model.reconstruct(photo, model.draw(ratio=0.5, unit=8, seed=0))
        assert (shown.estimated_prediction is not None) == is_borrowed


def test_a_photo_is_shown_as_it_is(open_photos: Callable[..., Any]) -> None:
    model = open_photos("simmim")
    photo = np.full((40, 80, 4), (200, 100, 50, 0), dtype=np.uint8)
    shown = model.reconstruct(photo, model.draw(ratio=0.5, unit=model.mask_units()[0], seed=0))
    torch.testing.assert_close(shown.image[0, :, 5, 5], torch.tensor([200, 100, 50]) / 255)


def test_the_shorter_side_of_a_photo_is_shown_whole(open_photos: Callable[..., Any]) -> None:
    photo = np.zeros((64, 96, 3), dtype=np.uint8)
    photo[:2] = photo[-2:] = 255
    pixels = open_photos("simmim").prepare(photo)[0, 0]
    assert pixels[0].min() > pixels[2:-2].max()
    assert pixels[-1].min() > pixels[2:-2].max()


def test_classes_are_named_the_likeliest_first(open_photos: Callable[..., Any], photo: np.ndarray) -> None:
    from unmask.inference.photo import PhotoModel

    module = open_photos("supervised", "data.num_train=20").module
    names = [f"kind {number}" for number in range(module.head.linear.out_features)]
    with torch.no_grad():
        module.head.linear.bias[3] += 100.0
    scores = PhotoModel(module, names).classify(photo)

    assert next(iter(scores)) == "kind 3"
    assert sum(scores.values()) == pytest.approx(1.0)
    assert list(scores.values()) == sorted(scores.values(), reverse=True)


def test_classes_of_one_name_keep_their_own_scores(open_photos: Callable[..., Any], photo: np.ndarray) -> None:
    """ImageNet calls a bird and a machine crane."""
    from unmask.inference.photo import PhotoModel

    module = open_photos("supervised", "data.num_train=20").module
    names = ["crane", *(f"kind {number}" for number in range(1, module.head.linear.out_features - 1)), "crane"]
    with torch.no_grad():
        module.head.linear.bias[0] += 100.0
    scores = PhotoModel(module, names).classify(photo)

    assert next(iter(scores.items())) == ("crane (0)", pytest.approx(1.0))
    assert scores[f"crane ({len(names) - 1})"] < 0.1


def test_other_channels_than_rgb_are_refused(open_photos: Callable[..., Any]) -> None:
    from unmask.inference.photo import PhotoModel

    module = open_photos("mae").module
    module.backbone.in_channels = 1
    with pytest.raises(ValueError, match="photos have three channels, and this checkpoint takes images of 1"):
        PhotoModel(module)


def test_a_swin_of_mae_is_offered_its_own_masks_alone(open_photos: Callable[..., Any], photo: np.ndarray) -> None:
    from unmask.inference.photo import PhotoModel
    from unmask.runtime.api import build_method

    small = ["model.embed_dim=8", "model.depths=[1,1]", "image_size=32"]
    model = PhotoModel(build_method(["method=mae", "model=swin_mini", *small]).eval())
    assert model.own_masking() == (0.75, 4)
    assert model.mask_units() == [4]
    shown = model.reconstruct(photo, model.draw(ratio=0.75, unit=4, seed=0))
    assert float(shown.mask.masked.float().mean()) == 0.75
    with pytest.raises(ValueError, match=r"of each 2x2 is a mask ratio of 0\.75, not 0\.5"):
        model.draw(ratio=0.5, unit=4, seed=0)
    painted = np.zeros(photo.shape[:2])
    painted[: len(painted) // 2] = 1.0
    assert not model.takes_any_mask
    with pytest.raises(ValueError, match=r"needs one visible square of each 2x2.*; choose the drawn mask"):
        model.mask_painted(painted, unit=4)
