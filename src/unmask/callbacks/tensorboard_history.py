"""Readings of a run in TensorBoard's event files, over interruptions."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger


class TensorBoardHistory(TensorBoardLogger):
    """Continues the event files of a run so that reading them back gives every point once.

    Points of steps that are made again are purged by TensorBoard itself (`purge_step`). A checkpoint holds the readings
    of the step after which it was written, for a run that was killed before they were logged; where they were, and
    where a logger begins again with the first step, the files hold them already.

    Args:
        save_dir, name, version: As of `TensorBoardLogger`; the folder of the files is `save_dir/name/version`.
        resumed_step: Optimizer steps done by the checkpoint the run continues from. Null begins anew.
        settings: Further ones of `TensorBoardLogger`.
    """

    def __init__(
        self,
        *,
        save_dir: str | Path,
        name: str = "",
        version: str = "tensorboard",
        resumed_step: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(save_dir, name, version, purge_step=resumed_step, **settings)
        self.resumed_step = resumed_step or 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is not None and step < self.resumed_step:
            metrics = {tag: value for tag, value in metrics.items() if (tag, step) not in self._known}
        super().log_metrics(metrics, step)

    @cached_property
    def _known(self) -> set[tuple[str, int]]:
        """The points that the files hold, less those that were purged."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415  (slow)

        files = EventAccumulator(self.log_dir, size_guidance={"scalars": 0})
        files.Reload()
        return {(tag, point.step) for tag in files.Tags()["scalars"] for point in files.Scalars(tag)}
