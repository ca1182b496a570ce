import numpy as np
import pytest
import torch

from unmask.callbacks.panel import (
    MASKED_GRAY,
    as_shown,
    estimate_masked,
    masked_psnr,
    reconstruction_panel,
    reconstruction_pixels,
)
from unmask.callbacks.pictures import figure_pixels
from unmask.patches import PatchMask, patchify, unpatchify
from unmask.targets.pixels import patch_statistics
from unmask.types import PixelStatistics

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
GRAY, WHITE = (128, 128, 128), (255, 255, 255)


def normalize(images):
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def solid(color, size, count=1):
    return (torch.tensor(color) / 255.0)[None, :, None, None].expand(count, 3, size, size)


def top_half_masked(size, count=1):
    return PatchMask(torch.tensor([[True, True], [False, False]]).expand(count, 2, 2), size // 2)


def reconstruct(images, mask, prediction, borrowed=None):
    return reconstruction_pixels(
        normalize(images), mask, normalize(prediction), pixel_mean=MEAN, pixel_std=STD, borrowed=borrowed
    )


def test_composite_is_the_image_where_visible_and_the_prediction_where_masked():
    images, prediction = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    shown = reconstruct(images, top_half_masked(8, count=2), prediction)

    torch.testing.assert_close(shown.image, images)
    torch.testing.assert_close(shown.prediction, prediction)
    assert torch.equal(shown.composite[:, :, :4], shown.prediction[:, :, :4])
    assert torch.equal(shown.composite[:, :, 4:], shown.image[:, :, 4:])


def test_masked_input_shows_nothing_of_masked_pixels():
    mask, prediction = top_half_masked(8), torch.rand(1, 3, 8, 8)
    images = torch.rand(1, 3, 8, 8)
    others = torch.cat([torch.rand(1, 3, 4, 8), images[:, :, 4:]], dim=2)

    masked = reconstruct(images, mask, prediction).masked
    assert torch.equal(masked, reconstruct(others, mask, prediction).masked)
    assert (masked[:, :, :4] == MASKED_GRAY).all()
    torch.testing.assert_close(masked[:, :, 4:], images[:, :, 4:])


def test_predictions_outside_the_range_of_colors_are_clamped():
    far_off = torch.tensor([-3.0, 0.5, 4.0])[None, :, None, None].expand(1, 3, 8, 8)
    shown = reconstruct(torch.rand(1, 3, 8, 8), top_half_masked(8), far_off)
    torch.testing.assert_close(shown.prediction[0, :, 0, 0], torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(shown.composite[0, :, 0, 0], torch.tensor([0.0, 0.5, 1.0]))


@pytest.mark.parametrize(("size", "cell"), [(32, 128), (48, 144), (128, 128), (160, 160)])
def test_picture_holds_four_columns_of_unblended_pixels(size, cell):
    shown = reconstruct(solid(RED, size, 2), top_half_masked(size, 2), solid(GREEN, size, 2))
    picture = figure_pixels(reconstruction_panel(shown, title="MAE"))

    def count(color):
        return int((picture == np.array(color)).all(axis=2).sum())

    # In two rows. Red: the image, half the masked input and half the composite. Green: the other halves.
    assert count(RED) == 2 * cell**2 * 2
    assert count(GREEN) == 2 * cell**2

    def colors_along(line):
        changes = [pixel for pixel, before in zip(line[1:], line[:-1], strict=True) if (pixel != before).any()]
        return [tuple(int(channel) for channel in pixel) for pixel in [line[0], *changes]]

    bottom = np.flatnonzero((picture == np.array(RED)).all(axis=2).any(axis=1)).max()
    columns = [RED, RED, GRAY, RED]  # visible
    assert colors_along(picture[bottom]) == [color for cell in columns for color in (WHITE, cell)] + [WHITE]
    columns = [RED, GRAY, GREEN, GREEN]  # masked
    top_of_last = bottom - cell + 1
    assert colors_along(picture[top_of_last]) == [color for cell in columns for color in (WHITE, cell)] + [WHITE]


def texts(shown, **lines):
    return [text.get_text() for text in reconstruction_panel(shown, **lines).texts]


def test_the_note_below_the_images_gives_the_figures_of_the_reconstruction():
    shown = reconstruct(solid(RED, 32), top_half_masked(32), solid(GREEN, 32))
    lines = texts(shown, title="MAE", subtitle="epoch 3")
    assert lines[:6] == ["MAE", "epoch 3", "image", "masked", "prediction", "composite"]
    note = " ".join(lines[6:])
    assert (
        note == "PSNR of masked pixels: prediction 1.8 dB, mean of visible neighbors inf dB."
    )  # 2 of 3 channels wrong

    picture = figure_pixels(reconstruction_panel(shown, title="MAE"))
    below = np.flatnonzero((picture == np.array(RED)).all(axis=2).any(axis=1)).max() + 1
    assert (picture[below:] < 200).any(axis=2).sum() > 100


@pytest.mark.parametrize("is_borrowed", [False, True])
def test_all_text_lies_inside_the_picture(is_borrowed):
    image = torch.rand(2, 3, 32, 32)
    borrowed = PixelStatistics(image, image + 1) if is_borrowed else None
    figure = reconstruction_panel(
        reconstruct(image, top_half_masked(32, 2), image / 2, borrowed),
        title="DDMIM: 1000 image(s)",
        subtitle="epoch 1000  ·  step 1,000,000  ·  75% of each image masked  ·  loss 0.1234",
    )
    figure_pixels(figure)
    for text in figure.texts:
        box = text.get_window_extent()
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.width, text
        assert box.y1 <= figure.bbox.height, text


def patchwise_statistics(images):
    patches = patchify(images, 8)
    mean, std = (unpatchify(statistic.expand_as(patches), 8, (4, 4)) for statistic in patch_statistics(patches))
    return PixelStatistics(mean, std)


def test_rows_stand_in_the_order_of_the_images():
    images = torch.cat([solid(RED, 32), solid(BLUE, 32)])
    shown = reconstruct(images, top_half_masked(32, 2), solid(GREEN, 32, 2))
    picture = figure_pixels(reconstruction_panel(shown, title="MAE"))
    red, blue = (np.flatnonzero((picture == np.array(color)).all(axis=2).any(axis=1)) for color in (RED, BLUE))
    assert red.max() < blue.min()


def test_masks_of_stages_stand_in_columns_of_their_own():
    first = top_half_masked(8)
    second = PatchMask(torch.tensor([[[True, False], [True, False]]]), 4)
    mask = PatchMask((first.masked | second.masked), 4, by_stage=(first, None, second))
    images = torch.rand(1, 3, 8, 8)
    shown = reconstruct(images, mask, torch.rand(1, 3, 8, 8))

    assert list(shown.masked_by_stage) == ["masked in stage 0", "masked in stage 2"]
    top, left = shown.masked_by_stage.values()
    assert (top[:, :, :4] == MASKED_GRAY).all()
    assert (left[:, :, :, :4] == MASKED_GRAY).all()
    torch.testing.assert_close(top[:, :, 4:], images[:, :, 4:])
    torch.testing.assert_close(left[:, :, :, 4:], images[:, :, :, 4:])
    plain = figure_pixels(reconstruction_panel(reconstruct(images, first, images), title="x"))
    staged = figure_pixels(reconstruction_panel(shown, title="x"))
    assert staged.shape[1] - plain.shape[1] == 2 * (128 + 6)


def test_a_stage_that_masks_what_the_image_does_gets_no_column_that_repeats_it():
    whole = top_half_masked(8)
    other = PatchMask(torch.tensor([[[True, False], [False, False]]]), 4)
    mask = PatchMask(whole.masked, 4, by_stage=(whole, other))
    assert list(reconstruct(torch.rand(1, 3, 8, 8), mask, torch.rand(1, 3, 8, 8)).masked_by_stage) == [
        "masked in stage 1"
    ]


def random_mask(count, rows=4, cols=4, patch_size=8):
    noise = torch.rand(count, rows * cols)
    return PatchMask((noise.argsort(dim=1) < rows * cols * 3 // 4).view(count, rows, cols), patch_size)


def test_the_estimated_prediction_borrows_nothing_of_masked_patches():
    """Other means and contrasts of masked patches leave what the network can know, and so the picture, as they are."""
    images, mask, predicted = torch.randn(2, 3, 32, 32), random_mask(2), torch.randn(2, 16, 192)
    is_masked = mask.at_pixels()

    def shown(images):
        borrowed = patchwise_statistics(images)
        prediction = unpatchify(predicted, 8, (4, 4)) * borrowed.std + borrowed.mean
        return reconstruction_pixels(images, mask, prediction, pixel_mean=MEAN, pixel_std=STD, borrowed=borrowed)

    first, second = shown(images), shown(torch.where(is_masked, 3.0 * images + 0.7, images))
    assert not torch.allclose(first.prediction, second.prediction, atol=0.05)
    torch.testing.assert_close(first.estimated_composite, second.estimated_composite, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        first.estimated_prediction[is_masked.expand_as(images)],
        second.estimated_prediction[is_masked.expand_as(images)],
        atol=1e-4,
        rtol=0,
    )
    columns = texts(first, title="MAE")[2:7]
    assert columns == [
        "image",
        "masked",
        "prediction,\ntrue mean",
        "prediction,\nestimated mean",
        "composite,\nestimated mean",
    ]


def test_a_perfect_prediction_of_normalized_patches_is_the_image_only_with_what_it_borrows():
    images = torch.rand(4, 3, 32, 32)
    borrowed = patchwise_statistics(normalize(images))
    shown = reconstruct(images, random_mask(4), images, borrowed)
    assert shown.psnr["prediction with true statistics"] > 60
    assert shown.psnr["true means alone"] == pytest.approx(
        10 * np.log10(12), abs=0.5
    )  # the variance of a uniform number is 1/12
    assert shown.psnr["prediction with estimated statistics"] > shown.psnr["estimated means alone"]


@pytest.mark.parametrize("patch_size", [8, (4, 8)])
def test_masked_patches_are_estimated_by_their_visible_neighbors(patch_size):
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    rows, cols = 16 // height, 32 // width
    values, mask = torch.randn(2, 3, 16, 32), random_mask(2, rows, cols, patch_size)
    estimated = estimate_masked(values, mask)
    cells = [(row, col) for row in range(rows) for col in range(cols)]

    def patch(of, image, cell):
        top, left = cell[0] * height, cell[1] * width
        return of[image, :, top : top + height, left : left + width]

    for image in range(2):
        visible = [cell for cell in cells if not mask.masked[image][cell]]
        for cell in cells:
            if cell in visible:
                assert torch.equal(patch(estimated, image, cell), patch(values, image, cell))
                continue
            away = [((cell[0] - row) * height) ** 2 + ((cell[1] - col) * width) ** 2 for row, col in visible]
            weights = torch.tensor([1.0 / square**2 for square in away])
            means = torch.stack([patch(values, image, other).mean(dim=(1, 2)) for other in visible])
            expected = (weights[:, None] * means).sum(dim=0) / weights.sum()
            torch.testing.assert_close(patch(estimated, image, cell), expected[:, None, None].expand(3, height, width))


def test_an_image_without_visible_patches_is_estimated_by_the_mean_of_normalized_images():
    mask = PatchMask(torch.ones(1, 2, 2, dtype=torch.bool), 4)
    assert torch.count_nonzero(estimate_masked(torch.randn(1, 3, 8, 8), mask)) == 0


def test_psnr_is_measured_over_masked_pixels_alone():
    image = torch.zeros(1, 3, 8, 8)
    wrong_by_a_tenth = image.clone()
    wrong_by_a_tenth[:, :, :4] = 0.1
    wrong_by_a_tenth[:, :, 4:] = 0.9  # visible
    assert masked_psnr(wrong_by_a_tenth, image, top_half_masked(8)) == pytest.approx(20.0, abs=1e-4)
    assert masked_psnr(image, image, top_half_masked(8)) == float("inf")


@pytest.mark.parametrize(
    ("channels", "shown_channels"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (4, [0, 1, 2]), (7, [0, 1, 2])]
)
def test_channels_that_are_not_rgb_are_shown_about_their_means(channels, shown_channels):
    normalized = torch.linspace(-3.0, 3.0, channels * 16).view(1, channels, 4, 4)
    shown = as_shown(normalized, pixel_mean=(9.0,) * channels, pixel_std=(5.0,) * channels)
    expected = torch.stack([normalized[:, channel] for channel in shown_channels], dim=1) / 5 + 0.5
    torch.testing.assert_close(shown, expected.clamp(0.0, 1.0))
