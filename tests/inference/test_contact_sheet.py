"""Captions that come from file names and classes."""

import io

import pytest
import torch
from PIL import Image

from unmask.inference.contact_sheet import Cell, contact_sheet

ROWS = ((10, 20, 30), (40, 50))


@pytest.mark.parametrize("caption", [r"$\nothing$", "a$b$c", "<b>&", "100 %", ""])
def test_a_caption_is_text_and_no_formula(caption: str) -> None:
    figure = contact_sheet([[Cell(torch.zeros(3, 8, 8), caption)]], title=caption)
    figure.savefig(io.BytesIO(), format="png")
    assert not any(text.get_parse_math() for text in figure.texts)


def test_a_sheet_is_laid_out_by_the_pixel() -> None:
    rows = [[Cell(torch.full((3, 64, 32), shade / 255), f"{shade}.png") for shade in shades] for shades in ROWS]
    figure = contact_sheet(rows, title="title", subtitle="below", is_first_apart=True)

    # Twice enlarged: cells of 64 x 128, 8 apart, 18 below each for its line; 56 above all, 20 around.
    assert (figure.get_figwidth() * figure.dpi, figure.get_figheight() * figure.dpi) == (480, 56 + 2 * 154 + 20)
    height = 384
    expected = {"title": (20, 24, 13.0, "#1a1a1a", "bold"), "below": (20, 42, 8.0, "#6b6b6b", "normal")}
    lefts, tops = (20, 20 + 72 + 8, 20 + 2 * 72 + 8), (56, 56 + 154)
    for shades, top in zip(ROWS, tops, strict=True):
        for shade, left in zip(shades, lefts, strict=False):
            expected[f"{shade}.png"] = (left, top + 128 + 12, 8.0, "#1a1a1a", "normal")
    found = {}
    for text in figure.texts:
        left, top = text.get_position()[0] * 480, (1 - text.get_position()[1]) * height
        style = (text.get_fontsize(), text.get_color(), text.get_fontweight())
        found[text.get_text()] = (round(left, 3), round(top, 3), *style)
    assert found == expected

    figure.savefig(written := io.BytesIO(), format="png")
    sheet = Image.open(written).convert("L")
    for shades, top in zip(ROWS, tops, strict=True):
        for shade, left in zip(shades, lefts, strict=False):
            corners = [(left, top), (left + 63, top), (left, top + 127), (left + 63, top + 127)]
            assert [sheet.getpixel(corner) for corner in corners] == [shade] * 4
            outside = [(left - 1, top), (left + 64, top), (left, top - 1)]
            assert [sheet.getpixel(corner) for corner in outside] == [255] * 3


def test_columns_stand_alike_unless_the_first_is_another_thing() -> None:
    figure = contact_sheet([[Cell(torch.zeros(3, 128, 128), name) for name in "abcd"]], title="")
    width = 2 * 20 + 4 * (128 + 8)
    assert figure.get_figwidth() * figure.dpi == width
    lefts = [round(text.get_position()[0] * width, 3) for text in figure.texts if text.get_text() in set("abcd")]
    assert lefts == [20, 156, 292, 428]


@pytest.mark.parametrize(("caption", "shown"), [("a" * 20, "a" * 20), (f"b{'a' * 20}", f"…{'a' * 19}")])
def test_a_caption_too_long_loses_its_beginning(caption: str, shown: str) -> None:
    figure = contact_sheet([[Cell(torch.zeros(3, 128, 128), caption)]], title="")  # room for 20 letters of 6.2 pixels
    assert figure.texts[-1].get_text() == shown
