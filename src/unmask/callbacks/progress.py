"""How far a run is: plain lines for files, a bar for terminals."""

import logging
import sys
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities.types import STEP_OUTPUT

from unmask.callbacks.mean_loss import MeanLoss
from unmask.callbacks.throughput import IMAGES_PER_S
from unmask.callbacks.time_left import TimeLeft
from unmask.callbacks.trainer_state import ends_interval, learning_rate, require_positive, total_steps

_LOG = logging.getLogger("unmask")
_IS_PROGRESS = "is_progress"  # set on the records a bar makes superfluous
_BAR_READ_INTERVAL = 0.5  # seconds; reading the loss waits for the device
_BAR_LOGGERS = ("", "unmask", "lightning.pytorch")  # whose terminal output would run into the bar; "" is the root


class PlainProgress(Callback):
    """Logs one line an interval, and one after each validation, from the first process alone.

    `epoch 3/24  step 1200/9600  loss 0.4123  lr 1.2e-03  2310 images/s  5 min left`: the loss is the mean over the
    interval, the images per second are `Throughput`'s, which should stand before this callback.

    Args:
        every_n_steps: Optimizer steps an interval.

    Raises:
        ValueError: `every_n_steps` is not positive.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        require_positive("every_n_steps", every_n_steps)
        self.every_n_steps = every_n_steps
        self._loss = MeanLoss()
        self._time_left = TimeLeft()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._time_left.restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        self._loss.add(trainer, outputs)
        self._time_left.observe(trainer.global_step)
        if not ends_interval(trainer, batch_idx, self.every_n_steps):
            return
        loss = self._loss.take(trainer)  # every process takes part
        if not trainer.is_global_zero:
            return
        parts = [_epoch(trainer), _step(trainer)]
        if loss is not None:
            parts.append(f"loss {loss:.4f}")
        parts.append(f"lr {learning_rate(trainer):.1e}")
        if IMAGES_PER_S in trainer.callback_metrics:
            parts.append(f"{_images_per_s(trainer)} images/s")
        if left := self._time_left.describe(trainer.global_step, total_steps(trainer)):
            parts.append(f"{left} left")
        _log_progress(parts)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking and "val/loss" in trainer.callback_metrics:
            loss = float(trainer.callback_metrics["val/loss"])
            _LOG.info("  ".join([_epoch(trainer), _step(trainer), f"val/loss {loss:.4f}"]))  # no bar shows it


class TerminalProgress(TQDMProgressBar):
    """Draws a bar with loss, images per second and the time left of the run; only where output is a terminal.

    While it is drawn, `PlainProgress`'s lines of training go to files alone; those of validation and other messages are
    written above the bar. In a file or a pipe it writes nothing.
    """

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}"

    def __init__(self) -> None:
        super().__init__()
        self._messages = _MessagesAboveBar(self._bars)
        self._time_left = TimeLeft()
        self._shown: dict[str, int | str | float | dict[str, float]] = {}
        self._shown_at = float("-inf")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not sys.stdout.isatty():
            self.disable()
        if self.is_enabled:
            self._messages.attach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._messages.detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._messages.detach()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._time_left.restart()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self.train_progress_bar.set_description(_epoch(trainer))

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Reads what stands behind the bar, at most twice a second."""
        self._time_left.observe(trainer.global_step)
        now = perf_counter()
        if now - self._shown_at < _BAR_READ_INTERVAL:
            return self._shown
        self._shown, self._shown_at = {}, now
        if "train/loss" in trainer.callback_metrics:
            self._shown["loss"] = f"{float(trainer.callback_metrics['train/loss']):.4f}"
        if IMAGES_PER_S in trainer.callback_metrics:
            self._shown["images/s"] = _images_per_s(trainer)
        if left := self._time_left.describe(trainer.global_step, total_steps(trainer)):
            self._shown["left"] = left
        return self._shown

    def _bars(self) -> Iterator[Any]:
        for bar in (self._train_progress_bar, self._val_progress_bar, self._test_progress_bar):
            if bar is not None and not bar.disable:
                yield bar


class _MessagesAboveBar(logging.Filter):
    """Wipes the bars before a terminal shows a message, and keeps progress lines from it; bars redraw themselves."""

    def __init__(self, bars: Callable[[], Iterator[Any]]) -> None:
        super().__init__()
        self.bars = bars
        self._handlers: list[logging.Handler] = []

    def attach(self) -> None:
        handlers = {handler for name in _BAR_LOGGERS for handler in logging.getLogger(name).handlers}
        self._handlers = [handler for handler in handlers if _writes_to_terminal(handler)]
        for handler in self._handlers:
            handler.addFilter(self)

    def detach(self) -> None:
        for handler in self._handlers:
            handler.removeFilter(self)
        self._handlers = []

    def filter(self, record: logging.LogRecord) -> bool:
        if hasattr(record, _IS_PROGRESS):
            return False
        for bar in self.bars():
            bar.clear()
        return True


def _writes_to_terminal(handler: logging.Handler) -> bool:
    is_file = isinstance(handler, logging.FileHandler)  # whose stream may not be open yet
    return isinstance(handler, logging.StreamHandler) and not is_file and bool(handler.stream.isatty())


def _log_progress(parts: list[str]) -> None:
    _LOG.info("  ".join(parts), extra={_IS_PROGRESS: True})


def _epoch(trainer: Trainer) -> str:
    has_end = trainer.max_epochs is not None and trainer.max_epochs > 0
    return f"epoch {trainer.current_epoch + 1}" + (f"/{trainer.max_epochs}" if has_end else "")


def _step(trainer: Trainer) -> str:
    total = total_steps(trainer)
    return f"step {trainer.global_step}" + (f"/{total}" if total is not None else "")


def _images_per_s(trainer: Trainer) -> str:
    rate = float(trainer.callback_metrics[IMAGES_PER_S])
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
