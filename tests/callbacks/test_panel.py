import numpy as np
import pytest
import torch

from unmask.callbacks.panel import MASKED_GREY, as_shown, reconstruction_panel, reconstruction_pixels
from unmask.callbacks.pictures import figure_pixels
from unmask.patches import PatchMask, StageMask

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
GREY, WHITE = (128, 128, 128), (255, 255, 255)


def normalise(images):
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def solid(colour, size, count=1):
    return (torch.tensor(colour) / 255.0)[None, :, None, None].expand(count, 3, size, size)


def top_half_hidden(size, count=1):
    return PatchMask(torch.tensor([[True, True], [False, False]]).expand(count, 2, 2), size // 2)


def reconstruct(images, mask, prediction):
    return reconstruction_pixels(normalise(images), mask, normalise(prediction), pixel_mean=MEAN, pixel_std=STD)


def test_composite_is_the_image_where_visible_and_the_prediction_where_hidden():
    images, prediction = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    shown = reconstruct(images, top_half_hidden(8, count=2), prediction)

    torch.testing.assert_close(shown.image, images)
    torch.testing.assert_close(shown.prediction, prediction)
    assert torch.equal(shown.composite[:, :, :4], shown.prediction[:, :, :4])
    assert torch.equal(shown.composite[:, :, 4:], shown.image[:, :, 4:])


def test_masked_input_shows_nothing_of_hidden_pixels():
    mask, prediction = top_half_hidden(8), torch.rand(1, 3, 8, 8)
    images = torch.rand(1, 3, 8, 8)
    others = torch.cat([torch.rand(1, 3, 4, 8), images[:, :, 4:]], dim=2)

    masked = reconstruct(images, mask, prediction).masked
    assert torch.equal(masked, reconstruct(others, mask, prediction).masked)
    assert (masked[:, :, :4] == MASKED_GREY).all()
    torch.testing.assert_close(masked[:, :, 4:], images[:, :, 4:])


def test_predictions_outside_the_range_of_colours_are_clamped():
    far_off = torch.tensor([-3.0, 0.5, 4.0])[None, :, None, None].expand(1, 3, 8, 8)
    shown = reconstruct(torch.rand(1, 3, 8, 8), top_half_hidden(8), far_off)
    torch.testing.assert_close(shown.prediction[0, :, 0, 0], torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(shown.composite[0, :, 0, 0], torch.tensor([0.0, 0.5, 1.0]))


@pytest.mark.parametrize(("size", "cell"), [(32, 128), (48, 144), (128, 128), (160, 160)])
def test_picture_holds_four_columns_of_unblended_pixels(size, cell):
    shown = reconstruct(solid(RED, size, 2), top_half_hidden(size, 2), solid(GREEN, size, 2))
    picture = figure_pixels(reconstruction_panel(shown, title="MAE"))

    def count(colour):
        return int((picture == np.array(colour)).all(axis=2).sum())

    # In two rows. Red: the original, half the masked input and half the composite. Green: the prediction and the rest.
    assert count(RED) == 2 * cell**2 * 2
    assert count(GREEN) == 2 * cell**2 * 3 // 2

    def colours_along(line):
        changes = [pixel for pixel, before in zip(line[1:], line[:-1], strict=True) if (pixel != before).any()]
        return [tuple(int(channel) for channel in pixel) for pixel in [line[0], *changes]]

    bottom = np.flatnonzero((picture == np.array(RED)).all(axis=2).any(axis=1)).max()
    columns = [RED, RED, GREEN, RED]  # visible
    assert colours_along(picture[bottom]) == [colour for cell in columns for colour in (WHITE, cell)] + [WHITE]
    columns = [RED, GREY, GREEN, GREEN]  # hidden
    top_of_last = bottom - cell + 1
    assert colours_along(picture[top_of_last]) == [colour for cell in columns for colour in (WHITE, cell)] + [WHITE]


def test_note_is_printed_below_the_images_only_if_there_is_one():
    shown = reconstruct(solid(RED, 32), top_half_hidden(32), solid(GREEN, 32))

    def texts(**lines):
        return [text.get_text() for text in reconstruction_panel(shown, **lines).texts]

    columns = ["original", "masked input", "prediction", "composite"]
    assert texts(title="MAE", subtitle="epoch 3") == ["MAE", "epoch 3", *columns]
    assert texts(title="MAE", note="beware")[-1] == "beware"
    assert "".join(texts(title="MAE", note="wide " * 60)[6:]).count("wide") == 60

    def lowest_ink(note):
        picture = figure_pixels(reconstruction_panel(shown, title="MAE", note=note))
        red_or_dark = (picture < 200).any(axis=(1, 2))
        below = np.flatnonzero((picture == np.array(RED)).all(axis=2).any(axis=1)).max() + 1
        return red_or_dark[below:].sum()

    assert lowest_ink("") == 0
    assert lowest_ink("beware") > 5


def test_rows_stand_in_the_order_of_the_images():
    images = torch.cat([solid(RED, 32), solid(BLUE, 32)])
    shown = reconstruct(images, top_half_hidden(32, 2), solid(GREEN, 32, 2))
    picture = figure_pixels(reconstruction_panel(shown, title="MAE"))
    red, blue = (np.flatnonzero((picture == np.array(colour)).all(axis=2).any(axis=1)) for colour in (RED, BLUE))
    assert red.max() < blue.min()


def test_masks_of_stages_stand_in_columns_of_their_own():
    first = top_half_hidden(8)
    second = PatchMask(torch.tensor([[[True, False], [True, False]]]), 4)
    mask = StageMask((first.masked | second.masked), 4, by_stage=(first, None, second))
    images = torch.rand(1, 3, 8, 8)
    shown = reconstruct(images, mask, torch.rand(1, 3, 8, 8))

    assert list(shown.masked_by_stage) == ["stage 0 hides", "stage 2 hides"]
    top, left = shown.masked_by_stage.values()
    assert (top[:, :, :4] == MASKED_GREY).all()
    assert (left[:, :, :, :4] == MASKED_GREY).all()
    torch.testing.assert_close(top[:, :, 4:], images[:, :, 4:])
    torch.testing.assert_close(left[:, :, :, 4:], images[:, :, :, 4:])
    plain = figure_pixels(reconstruction_panel(reconstruct(images, first, images), title="x"))
    staged = figure_pixels(reconstruction_panel(shown, title="x"))
    assert staged.shape[1] - plain.shape[1] == 2 * (128 + 6)


@pytest.mark.parametrize(
    ("channels", "shown_channels"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (4, [0, 1, 2]), (7, [0, 1, 2])]
)
def test_channels_that_are_not_rgb_are_shown_about_their_means(channels, shown_channels):
    normalised = torch.linspace(-3.0, 3.0, channels * 16).view(1, channels, 4, 4)
    shown = as_shown(normalised, pixel_mean=(9.0,) * channels, pixel_std=(5.0,) * channels)
    expected = torch.stack([normalised[:, channel] for channel in shown_channels], dim=1) / 5 + 0.5
    torch.testing.assert_close(shown, expected.clamp(0.0, 1.0))
