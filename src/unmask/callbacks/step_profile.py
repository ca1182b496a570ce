"""Where the time of a training step goes, by name."""

import functools
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn

from unmask.callbacks.optional_file import write_optional

PROFILE_NAME = "step_profile.json"
DATA_WAIT, TRANSFER, MASK, LOSS, BACKWARD = "data wait", "transfer", "mask", "loss", "backward"
OPTIMIZER, LOGGING, CALLBACKS, LOOP = "optimizer", "logging", "callbacks", "loop"
_OWN_PARTS = (DATA_WAIT, TRANSFER, MASK, LOSS, BACKWARD, OPTIMIZER, LOGGING, CALLBACKS, LOOP)

_FIRST, _LAST, _EVERY = 5, 15, 50  # batches: the first ones compile and start workers; ours
_FEWEST = 3  # samples that a sentence is made of
_OF_HOOKS = {  # what Lightning calls, by the end of its name
    "on_before_batch_transfer": TRANSFER,
    "transfer_batch_to_device": TRANSFER,
    "on_after_batch_transfer": TRANSFER,
    "batch_to_device": TRANSFER,
    "training_step": LOSS,
    "backward": BACKWARD,
    "optimizer_step": OPTIMIZER,
    "optimizer_zero_grad": OPTIMIZER,
    "configure_gradient_clipping": OPTIMIZER,
    "lr_scheduler_step": OPTIMIZER,
}
_LARGE_WAIT, _LARGE_BESIDE, _LARGE_OPTIMIZER = 0.1, 0.1, 0.3  # of a batch's time; ours

_log = logging.getLogger("unmask")


class StepProfile(Callback):
    """Says at the end what the time of a training batch goes into, what bounds it and what would help.

    Sampled are ten early batches and every fiftieth, each from the end of the batch before it to its own end, on one
    process; batches that a validation or the end of an epoch precedes are left out. In a sampled batch a GPU is waited
    for at the borders of the parts, so that each is charged with its own work; the others run as ever, and no number
    of the training changes. The parts lie in `step_profile.json`, in seconds:

    - data wait: for the loader, within the training process where it has no workers;
    - transfer: to the device, and what is done to the images there;
    - mask; backbone, decoder, head, teacher and so on, by their names in the method, forward;
    - loss: all else of the forward pass, such as targets;
    - backward; optimizer, with clipping and schedule; logging; callbacks; loop: Lightning's own.

    A profiler that the user has given the Trainer is left in its place, and nothing is said.
    """

    def __init__(self) -> None:
        self._profiler = _PartProfiler()
        self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batches = 0
        self._profiler = _PartProfiler()
        own: Any = trainer  # whose profiler Lightning declares no type of
        if trainer.is_global_zero and isinstance(own.profiler, PassThroughProfiler):
            own.profiler = self._profiler

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        own: Any = trainer
        if own.profiler is not self._profiler:
            return
        self._profiler.end_sample()
        self._batches += 1
        if _FIRST <= self._batches < _LAST or self._batches % _EVERY == 0:
            self._profiler.begin_sample(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._profiler.drop_sample()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._profiler.drop_sample()
        self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._profiler.drop_sample()
        self._write(trainer)
        if self._profiler.num_samples >= _FEWEST:
            content = self._content(trainer)
            _log.info(describe_parts(content["parts"]))
            _log.info(content["bottleneck"])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._profiler.drop_sample()

    def _content(self, trainer: Trainer) -> dict[str, Any]:
        parts = self._profiler.means()
        costliest = self._profiler.costliest_callback
        workers = int(getattr(trainer.datamodule, "num_workers", 0))  # type: ignore[attr-defined]
        sentence = describe_bottleneck(parts, num_workers=workers, costliest_callback=costliest)
        return {"batches": self._profiler.num_samples, "parts": parts, "bottleneck": sentence}

    def _write(self, trainer: Trainer) -> None:
        if self._profiler.num_samples < _FEWEST or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        text = json.dumps(self._content(trainer), indent=1) + "\n"
        write_optional(
            Path(trainer.default_root_dir) / PROFILE_NAME, lambda partial: partial.write_text(text, encoding="utf-8")
        )


class _PartProfiler(Profiler):
    """Charges each moment of a sampled batch to the innermost part that is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.num_samples = 0
        self._seconds: dict[str, float] = {}  # of all samples
        self._of_sample: dict[str, float] = {}
        self._callback_seconds: dict[str, float] = {}
        self._open: list[tuple[str, str]] = []  # what is under way: action and part
        self._marked_at: float | None = None  # None: no sample is being taken
        self._replaced: list[tuple[Any, str]] = []
        self._synchronizes = False

    def start(self, action_name: str) -> None:
        if self._marked_at is not None:
            part = _part_of(action_name)
            if not self._open:  # between batches nothing but the loader is waited for
                self._charge(DATA_WAIT if part == TRANSFER else LOOP)
            else:
                self._charge(self._open[-1][1])
            self._open.append((action_name, part))

    def stop(self, action_name: str) -> None:
        if self._marked_at is None or not self._open or self._open[-1][0] != action_name:
            return  # begun before the sample
        seconds = self._charge(self._open.pop()[1])
        if action_name.startswith("[Callback]"):
            state_key = action_name.removeprefix("[Callback]").rpartition(".")[0]
            name = state_key.partition("{")[0].rpartition(".")[2]
            self._callback_seconds[name] = self._callback_seconds.get(name, 0.0) + seconds

    def begin_sample(self, trainer: Trainer, module: LightningModule) -> None:
        self._synchronizes = module.device.type == "cuda"
        self._of_sample, self._open = {}, []
        self._replace(module, "draw_masks", MASK)
        for name, child in module.named_children():
            held: Any = getattr(child, "networks", None)  # a teacher's, which are called one by one
            for part in (child, *(held.values() if isinstance(held, nn.ModuleDict) else ())):
                for method in (found for found in dir(type(part)) if found.startswith("forward")):
                    self._replace(part, method, name)
        for logger in trainer.loggers:
            self._replace(logger, "log_metrics", LOGGING)
        self._marked_at = self._now()

    def end_sample(self) -> None:
        if self._marked_at is not None:
            self._charge(CALLBACKS)  # within which this is called
            for part, seconds in self._of_sample.items():
                self._seconds[part] = self._seconds.get(part, 0.0) + seconds
            self.num_samples += 1
        self.drop_sample()

    def drop_sample(self) -> None:
        self._marked_at = None
        for owner, name in self._replaced:
            delattr(owner, name)
        self._replaced = []

    def means(self) -> dict[str, float]:
        """Seconds of a batch by part, the largest first."""
        found = {part: seconds / self.num_samples for part, seconds in self._seconds.items()}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def costliest_callback(self) -> str | None:
        return max(self._callback_seconds, key=lambda name: self._callback_seconds[name], default=None)

    def _charge(self, part: str) -> float:
        assert self._marked_at is not None
        now = self._now()
        seconds, self._marked_at = now - self._marked_at, now
        self._of_sample[part] = self._of_sample.get(part, 0.0) + seconds
        return seconds

    def _now(self) -> float:
        if self._synchronizes:
            torch.cuda.synchronize()
        return perf_counter()

    @contextmanager
    def _during(self, part: str) -> Iterator[None]:
        if self._marked_at is None:
            yield
            return
        self._charge(self._open[-1][1] if self._open else LOOP)
        self._open.append((part, part))
        try:
            yield
        finally:
            if self._marked_at is not None:
                self._charge(part)
                self._open.pop()

    def _replace(self, owner: Any, name: str, part: str) -> None:
        """Lets an object's method be timed until the sample ends; the class stays as it is."""
        method: Callable[..., Any] = getattr(owner, name)
        if not callable(method) or name in vars(owner):
            return

        @functools.wraps(method)
        def timed(*arguments: Any, **settings: Any) -> Any:
            with self._during(part):
                return method(*arguments, **settings)

        setattr(owner, name, timed)
        self._replaced.append((owner, name))


def describe_parts(parts: Mapping[str, float]) -> str:
    """Says the time of a batch and what fraction each part takes, the largest first."""
    total = sum(parts.values())
    fractions = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in parts.items())
    duration = f"{total:.3g} s" if total >= 1.0 else f"{1000 * total:.3g} ms"
    return f"a batch takes {duration}: {fractions}"


def describe_bottleneck(parts: Mapping[str, float], *, num_workers: int, costliest_callback: str | None = None) -> str:
    """Names, in one sentence, what bounds the speed and what would help.

    Args:
        parts: Seconds of a batch by part.
        num_workers: Of the loader.
        costliest_callback: Class of the callback that takes most.
    """
    total = sum(parts.values())
    of = {name: seconds / total for name, seconds in parts.items()}
    network = {name: part for name, part in of.items() if name not in _OWN_PARTS}
    beside = of.get(CALLBACKS, 0.0) + of.get(LOGGING, 0.0)
    if of.get(DATA_WAIT, 0.0) > _LARGE_WAIT:
        helps = f"more data.num_workers than {num_workers}, or images packed by python -m unmask.pack, would help"
        return f"bottleneck: waiting for images takes {of[DATA_WAIT]:.0%} of the time; {helps}"
    if beside > _LARGE_BESIDE:
        who = "" if costliest_callback is None else f", most of it in {costliest_callback}"
        helps = "a larger global_batch_size, a larger trainer.log_every_n_steps or fewer callbacks would help"
        return f"bottleneck: callbacks and logging take {beside:.0%} of the time{who}; {helps}"
    if of.get(TRANSFER, 0.0) > _LARGE_WAIT:
        helps = "smaller images or lighter augmentation would help"
        return f"bottleneck: moving and preparing images on the device takes {of[TRANSFER]:.0%} of the time; {helps}"
    if of.get(OPTIMIZER, 0.0) > _LARGE_OPTIMIZER:
        helps = "a larger global_batch_size would spread it over more images"
        return f"bottleneck: the optimizer takes {of[OPTIMIZER]:.0%} of the time; {helps}"
    computing = sum(network.values()) + sum(of.get(part, 0.0) for part in (LOSS, BACKWARD, MASK))
    largest = f", {max(network, key=lambda name: network[name])} the most of it forward" if network else ""
    helps = "a faster device, more trainer.devices, a smaller model or smaller images would help"
    return f"bottleneck: the network itself takes {computing:.0%} of the time{largest}; {helps}"


def read_profile(folder: Path) -> Mapping[str, Any] | None:
    """Reads `step_profile.json`; None where there is none, or no whole one."""
    try:
        content = json.loads((folder / PROFILE_NAME).read_text(encoding="utf-8"))
        content["parts"] = {str(name): float(seconds) for name, seconds in content["parts"].items()}
        content["bottleneck"] = str(content["bottleneck"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(content)


def _part_of(action_name: str) -> str:
    if action_name.startswith("[Callback]"):
        return CALLBACKS
    return _OF_HOOKS.get(action_name.rpartition(".")[2], LOOP)
