"""Captions that come from file names and classes."""

import io

import pytest
import torch

from unmask.inference.contact_sheet import Cell, contact_sheet


@pytest.mark.parametrize("caption", [r"$\nothing$", "a$b$c", "<b>&", "100 %", ""])
def test_a_caption_is_text_and_no_formula(caption: str) -> None:
    figure = contact_sheet([[Cell(torch.zeros(3, 8, 8), caption)]], title=caption)
    figure.savefig(io.BytesIO(), format="png")
    assert not any(text.get_parse_math() for text in figure.texts)
