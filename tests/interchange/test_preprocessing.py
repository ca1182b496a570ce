"""What files say of images, in every form and out of any range."""

import re
from typing import Any

import pytest

from unmask.interchange.preprocessing import Preprocessing, huggingface_preprocessing, timm_preprocessing

SIDES = {"height": 224, "width": 224}


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ({}, {}),
        ({"do_resize": False, "size": 224, "resample": 2}, {}),
        ({"size": 224, "resample": 2}, {"crop_pct": 1.0, "interpolation": "bilinear"}),
        ({"size": SIDES, "resample": 3}, {"crop_pct": 1.0, "interpolation": "bicubic"}),
        (
            {"do_center_crop": True, "size": {"shortest_edge": 256}, "crop_size": SIDES, "resample": 3},
            {"crop_pct": 0.875, "interpolation": "bicubic"},
        ),
        ({"do_center_crop": True, "size": 256, "crop_size": 224}, {"crop_pct": 0.875}),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.9}, {"crop_pct": 0.9}),
        ({"size": {"shortest_edge": 256}, "resample": "bilinear"}, {"interpolation": "bilinear"}),
        ({"do_center_crop": True, "resample": 3}, {"interpolation": "bicubic"}),
    ],
)
def test_every_form_of_a_processor_is_read(described: dict[str, Any], expected: dict[str, Any]) -> None:
    read = huggingface_preprocessing(described, "its file")
    assert read.settings(chosen=()) == expected
    assert ("resized to a square whole" in read.note) == (expected.get("crop_pct") == 1.0)


def test_a_form_of_crop_that_is_not_computed_is_said() -> None:
    read = timm_preprocessing({"crop_pct": 1.0, "crop_mode": "squash"}, "its file")
    assert (read.crop_pct, read.note) == (1.0, "crop_mode='squash' is not computed here, the middle is cut")
    assert timm_preprocessing({"mean": [0.5]}, "its file") == Preprocessing()


BAD_CROPS = [0, -1, 2, 1e-9, float("nan"), float("inf"), True, "0.9", [0.9], {"a": 1}, 10**400]


@pytest.mark.parametrize("value", BAD_CROPS, ids=lambda value: str(value)[:9])
def test_a_crop_out_of_range_is_refused_and_can_be_replaced(value: Any) -> None:
    read = timm_preprocessing({"crop_pct": value, "interpolation": "bicubic"}, "its file")
    with pytest.raises(ValueError, match=r"its file gives crop_pct=.*, which must lie in ") as refused:
        read.settings(chosen=())
    assert len(str(refused.value)) < 200
    assert read.settings(chosen=["crop_pct"]) == {"interpolation": "bicubic"}


@pytest.mark.parametrize("value", ["lanczos", 1, [3], {"a": "bicubic"}, "bicubic\x1b[2J", "x" * 1000, True])
def test_an_interpolation_that_is_not_computed_is_refused_and_can_be_replaced(value: Any) -> None:
    for read in (
        timm_preprocessing({"interpolation": value}, "f"),
        huggingface_preprocessing({"resample": value}, "f"),
    ):
        with pytest.raises(ValueError, match=r"f gives interpolation=.*, which is not computed here") as refused:
            read.settings(chosen=())
        assert re.fullmatch(r"[ -~]{1,300}", str(refused.value))
        assert read.settings(chosen=["interpolation"]) == {}


@pytest.mark.parametrize("size", [0, -256, "256", [256], {"shortest_edge": -1}, {"height": "a"}, 2**40, 1e9])
def test_sizes_that_are_none_are_refused(size: Any) -> None:
    read = huggingface_preprocessing({"do_center_crop": True, "size": size, "crop_size": 224}, "its file")
    with pytest.raises(ValueError, match="its file gives crop_pct="):
        read.settings(chosen=())
