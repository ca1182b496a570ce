"""No step is made with numbers that are not finite, or suddenly far too large."""

import logging
import math
import statistics
from collections import deque
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from unmask.callbacks.first_nonfinite import find_first_nonfinite, gradient_norm_and
from unmask.callbacks.step_seeding import StepSeeding
from unmask.callbacks.stopping import NumbersFailed
from unmask.callbacks.trainer_state import logging_interval, require_positive
from unmask.types import ImageBatch

BOX_KEY = "nonfinite"
CHOICES = ("stop", "skip")
SPIKE_CHOICES = ("warn", "stop", "skip")
_NUM_NAMES_SHOWN = 3
_NUM_NORMS, _FEWEST_NORMS = 100, 20  # of the steps before, which a gradient is compared with
_MOST_WARNED = 3  # black boxes of steps that are made all the same: each is as large as a checkpoint

_log = logging.getLogger("unmask")


class NonfiniteGuard(Callback):
    """Looks at loss and gradients before every optimizer step; where one is not finite, the step is not made.

    The batch, the weights, the step, the layer where it began and the parameters with bad gradients are written to
    `nonfinite/step_00000012.ckpt` in the run's folder, a checkpoint which `python -m unmask.replay FILE` computes
    again. Then the run stops, or, with "skip", goes on with the next batch. All devices do the same. What a batch norm
    averaged in the forward passes of the step is taken back.

    A spike, a gradient whose norm is more than `spike_factor` times the median of the last 100 steps, is written
    likewise. By default the step is made and a line warns, since it does no harm where gradients are clipped or the
    optimizer normalizes them, and since the median of a run that fits all its images comes near zero.

    A gradient scaler (float16) tries scales that are too large and leaves out those steps itself. Only their number in
    a row is watched then, and the gradients are dropped, so that a teacher sees that no step was made.

    Args:
        folder: The run's.
        on_nonfinite: "stop": the run ends with exit code 3; "skip": the step is left out.
        on_spike: Likewise, or "warn": the step is made; of the first three such steps a file is kept.
        spike_factor: What makes a spike, above 1; null looks for none.
        max_skips: Steps in a row that may be left out; one more ends the run.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self,
        *,
        folder: str | Path,
        on_nonfinite: str = "stop",
        on_spike: str = "warn",
        spike_factor: float | None = 100.0,
        max_skips: int = 20,
    ) -> None:
        if on_nonfinite not in CHOICES:
            raise ValueError(f"on_nonfinite must be 'stop' or 'skip', got {on_nonfinite!r}")
        if on_spike not in SPIKE_CHOICES:
            raise ValueError(f"on_spike must be 'warn', 'stop' or 'skip', got {on_spike!r}")
        if spike_factor is not None and not 1.0 < spike_factor < math.inf:
            raise ValueError(f"spike_factor must be above 1, or null to look for no spikes, got {spike_factor}")
        require_positive("max_skips", max_skips)
        self.folder = Path(folder) / "nonfinite"
        self.on_nonfinite = on_nonfinite
        self.on_spike = on_spike
        self.spike_factor = spike_factor
        self.max_skips = max_skips
        self._skipped_in_a_row = 0
        self._num_warned = 0
        self._norms: deque[float] = deque(maxlen=_NUM_NORMS)
        self._statistics_before: list[Tensor] | None = None
        self._batch: tuple[ImageBatch, int] | None = None
        self._is_loss_finite: Tensor | None = None
        self._box: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._running = [
            buffer
            for part in pl_module.modules()
            if isinstance(part, _NormBase)
            for buffer in part.buffers(recurse=False)
        ]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: ImageBatch, batch_idx: int
    ) -> None:
        self._batch = batch, batch_idx
        if self._statistics_before is None:  # else further batches are accumulated
            self._statistics_before = [buffer.clone() for buffer in self._running]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        is_finite = loss.detach().isfinite()
        before = self._is_loss_finite  # of the batches accumulated so far
        self._is_loss_finite = is_finite if before is None else before & is_finite

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        flag = self._is_loss_finite
        norm, is_loss_finite = gradient_norm_and(
            pl_module, torch.ones((), device=pl_module.device) if flag is None else flag
        )
        is_loss_bad = not is_loss_finite
        self._is_loss_finite = None
        median = self._usual_norm()
        is_spike = norm > (self.spike_factor or math.inf) * (median or math.inf)  # no median, or 0: nothing to compare
        is_bad = is_loss_bad or is_spike or not math.isfinite(norm)
        first_rank = _first_of(trainer, is_bad)
        if first_rank is None:
            if (trainer.global_step + 1) % logging_interval(trainer) == 0:
                pl_module.log("train/gradient_norm", norm)  # of this process, before clipping
            self._skipped_in_a_row = 0
            self._norms.append(norm)
            self._statistics_before = None
            return
        is_finite = _first_of(trainer, is_loss_bad or not math.isfinite(norm)) is None
        if is_finite and self.on_spike == "warn":
            self._warn(trainer, pl_module, first_rank, norm, median)
            self._norms.append(norm)
            self._statistics_before = None
            return
        self._skipped_in_a_row += 1
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # a fused optimizer would do it in its step, where no gradients are left
        if not is_finite and scaler is not None and not is_loss_bad and self._skipped_in_a_row <= self.max_skips:
            self._take_back_statistics()
            _drop_gradients(pl_module)
            return
        box = self._describe(trainer, pl_module, first_rank, norm, median if is_finite else None)
        self._take_back_statistics()
        self._leave_out(trainer, pl_module, box, self.on_spike if is_finite else self.on_nonfinite)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: ImageBatch, batch_idx: int
    ) -> None:
        self._batch = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._box is not None:
            checkpoint[BOX_KEY] = self._box

    def state_dict(self) -> dict[str, Any]:
        return {
            "skipped_in_a_row": self._skipped_in_a_row,
            "num_warned": self._num_warned,
            "norms": list(self._norms),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._skipped_in_a_row = int(state_dict["skipped_in_a_row"])
        self._num_warned = int(state_dict["num_warned"])
        self._norms = deque((float(norm) for norm in state_dict["norms"]), maxlen=_NUM_NORMS)

    def _usual_norm(self) -> float | None:
        """The median of the steps before; None where they are too few to tell."""
        return statistics.median(self._norms) if len(self._norms) >= _FEWEST_NORMS else None

    def _take_back_statistics(self) -> None:
        assert self._statistics_before is not None
        with torch.no_grad():
            for buffer, before in zip(self._running, self._statistics_before, strict=True):
                buffer.copy_(before)
        self._statistics_before = None

    def _warn(self, trainer: Trainer, pl_module: LightningModule, rank: int, norm: float, median: float | None) -> None:
        self._num_warned += 1
        if self._num_warned > _MOST_WARNED:
            return
        made = [buffer.clone() for buffer in self._running]  # computing the step again averages once more
        box = self._describe(trainer, pl_module, rank, norm, median)
        for buffer, value in zip(self._running, made, strict=True):
            buffer.copy_(value)
        path = self._keep(trainer, box)
        if trainer.is_global_zero:
            last = "; further ones are only counted" if self._num_warned == _MOST_WARNED else ""
            kept = f", kept as {path}" if path.exists() else ""
            _log.warning(
                f"{_sentence(box)} at step {trainer.global_step} (epoch {trainer.current_epoch + 1}){kept}; the step "
                f"is made (on_spike=stop or skip prevents it){last}"
            )

    def _keep(self, trainer: Trainer, box: dict[str, Any]) -> Path:
        path = self.folder / f"step_{trainer.global_step:08d}.ckpt"
        self._box = box
        trainer.save_checkpoint(path)
        self._box = None
        return path

    def _leave_out(self, trainer: Trainer, pl_module: LightningModule, box: dict[str, Any], action: str) -> None:
        is_first = self._skipped_in_a_row == 1 or action == "stop"  # of a row the first alone: they are large
        path = self._keep(trainer, box) if is_first else None
        _drop_gradients(pl_module)
        what = f"{_sentence(box)} at step {trainer.global_step} (epoch {trainer.current_epoch + 1})"
        if action == "stop":
            setting = "on_nonfinite" if box["usual_norm"] is None else "on_spike"
            raise NumbersFailed(
                f"{what}; the step was not taken. {_replay(path)}lower the learning rate, set "
                f"trainer.gradient_clip_val, or skip such steps by {setting}=skip"
            )
        if self._skipped_in_a_row > self.max_skips:
            raise NumbersFailed(f"{what}; {self.max_skips} steps in a row were skipped before it")
        if trainer.is_global_zero:
            _log.warning(f"{what}; the step is skipped ({self._skipped_in_a_row} in a row of at most {self.max_skips})")

    def _describe(
        self, trainer: Trainer, pl_module: LightningModule, rank: int, norm: float, usual_norm: float | None
    ) -> dict[str, Any]:
        """What one device had before it, on all of them."""
        box = None
        if trainer.global_rank == rank:
            box = {**self._own_batch(trainer, pl_module), "gradient_norm": norm, "usual_norm": usual_norm}
        box = box if trainer.world_size == 1 else trainer.strategy.broadcast(box, src=rank)
        assert box is not None
        return box

    def _own_batch(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        assert self._batch is not None
        batch, batch_idx = self._batch
        gradients = [name for name, p in pl_module.named_parameters() if p.grad is not None and not _is_finite(p.grad)]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepSeeding):  # the generators as the step found them
                callback.on_train_batch_start(trainer, pl_module, batch, batch_idx)
        with trainer.precision_plugin.forward_context():
            layer, loss = find_first_nonfinite(pl_module, batch, batch_idx)
        return {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "batch_idx": batch_idx,
            "images": batch.image.detach().cpu(),
            "labels": batch.label.detach().cpu(),
            "indices": batch.index.detach().cpu(),
            "loss": loss,
            "first_layer": layer,
            "bad_gradients": gradients,
            "precision": str(trainer.precision),
        }


def _replay(path: Path | None) -> str:
    """How to see the step again; nothing where the disk took no file."""
    return f"python -m unmask.replay {path} computes it again; " if path is not None and path.exists() else ""


def _sentence(box: dict[str, Any]) -> str:
    images = f"images {box['indices'].tolist()}"
    if box["usual_norm"] is not None:
        return f"the gradient's norm is {box['gradient_norm']:.3g}, usual is {box['usual_norm']:.3g} ({images})"
    where = f"first in {box['first_layer']}" if box["first_layer"] else "the layers' outputs are finite"
    names = ", ".join(box["bad_gradients"][:_NUM_NAMES_SHOWN])
    what = f"the gradient of {names}" if box["loss"] == box["loss"] and names else "the loss"
    return f"{what} is not finite ({where}, {images})"


def _first_of(trainer: Trainer, is_bad: bool) -> int | None:
    """The first device that has found something; None where none has."""
    first_rank = trainer.global_rank if is_bad else trainer.world_size
    if trainer.world_size > 1:
        shared = torch.tensor(first_rank, device=trainer.strategy.root_device)
        first_rank = int(trainer.strategy.reduce(shared, reduce_op="min"))
    return None if first_rank == trainer.world_size else first_rank


def _drop_gradients(module: LightningModule) -> None:
    for parameter in module.parameters():
        parameter.grad = None  # an optimizer leaves out what has no gradient


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
