"""What `inspect` concludes from the times it takes."""

from types import SimpleNamespace
from typing import Any

import pytest

from unmask.runtime import inspect


@pytest.mark.parametrize(
    ("loading", "training", "verdict"),
    [
        (300.0, 100.0, ": loading keeps up"),
        (100.0, 100.0, ": loading keeps up"),
        (100.0, 250.0, ": loading is 2.5 times slower"),
    ],
)
def test_the_verdict_names_the_slower_side(
    loading: float, training: float, verdict: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data: Any = SimpleNamespace(holds_images_in_memory=False, num_workers=3)
    monkeypatch.setattr(inspect, "_time_loading", lambda *_: ("batch", loading))
    monkeypatch.setattr(inspect, "_time_training", lambda *_: (training, "this CPU"))
    monkeypatch.setattr(inspect, "_describe_step", lambda *_: "MAE")
    monkeypatch.setattr(inspect, "build_module", lambda *_: None)
    config: Any = SimpleNamespace(seconds_of_loading=1.0, timed_steps=2, method=None)
    caplog.set_level("INFO")
    assert _unchecked(inspect._describe_speed)(config, data) == "batch"
    assert f"{loading:,.0f} images/s, decoded and augmented (3 workers)" in caplog.text
    assert f"{training:,.0f} images/s, MAE on this CPU{verdict}" in caplog.text


def _unchecked(function: Any) -> Any:
    """The function without its run-time check of types, so that stand-ins pass."""
    return getattr(function, "__wrapped__", function)
