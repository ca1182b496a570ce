"""The settings and images a run was started with, which continuing it must not change."""

from collections.abc import Mapping
from typing import Any

from lightning import Callback


class RunSettings(Callback):
    """Keeps settings and fingerprints of the images in every checkpoint, for the command that continues the run.

    Args:
        settings: Dotted names and plain values.
        fingerprints: Of the splits, as `ImageDataModule.fingerprints`.
    """

    def __init__(self, *, settings: Mapping[str, Any], fingerprints: Mapping[str, str]) -> None:
        self.settings = dict(settings)
        self.fingerprints = dict(fingerprints)

    def state_dict(self) -> dict[str, Any]:
        return {"settings": self.settings, "fingerprints": self.fingerprints}
