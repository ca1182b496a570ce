"""Says so when a network stops telling images apart."""

import logging

from lightning import Callback, LightningModule, Trainer

_log = logging.getLogger("unmask")
_READINGS = {"student": "val/student_rank_fraction", "teacher": "val/teacher_rank_fraction"}


class CollapseWarning(Callback):
    """Writes a warning line when the features of held-out images come to lie in few directions.

    It reads `val/student_rank_fraction` and `val/teacher_rank_fraction`, which methods with a teacher log, and is
    silent for others.

    Args:
        min_rank_fraction: Fraction of the directions the features could spread over, in (0, 1), below which it warns.
            Ours.

    Raises:
        ValueError: The fraction lies outside (0, 1).
    """

    def __init__(self, min_rank_fraction: float = 0.05) -> None:
        if not 0.0 < min_rank_fraction < 1.0:
            raise ValueError(f"min_rank_fraction must lie between 0 and 1, both excluded, got {min_rank_fraction}")
        self.min_rank_fraction = min_rank_fraction

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        for stream, name in _READINGS.items():
            fraction = trainer.callback_metrics.get(name)
            if fraction is not None and not float(fraction) >= self.min_rank_fraction:  # NaN warns too
                _log.warning(
                    f"the {stream}'s features are collapsing: they spread over {float(fraction):.1%} of the directions "
                    f"they could ({name}, warned of below {self.min_rank_fraction:.1%}). Lower the learning rate, or "
                    "give the contrastive or reconstruction term more weight"
                )
