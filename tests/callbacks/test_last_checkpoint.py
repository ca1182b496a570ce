"""`last.ckpt` is the newest state, `best.ckpt` the one of the smallest validation loss."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

STEPS_PER_EPOCH = 6
MODULE = Mock(spec=LightningModule)


class _Scripted(LightningModule):
    """Its validation loss is what a list says; its training loss falls all the time."""

    def __init__(self, val_losses: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.steps_done = nn.Parameter(torch.zeros(1), requires_grad=False)  # what a checkpoint is recognized by
        self.val_losses = val_losses

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log("train/loss", -float(self.global_step))
        self.log("val/other", float(self.global_step))
        return (self.weight - batch).square().mean()

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.steps_done.data.fill_(self.global_step)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.val_losses[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)


def configured_callbacks(folder: Path, *overrides: str) -> list[Callback]:
    """The callbacks of `conf/callbacks/default.yaml` that write checkpoints."""
    from unmask.runtime.builders import build
    from unmask.runtime.config import compose_config

    config = compose_config("run", [f"paths.run_dir={folder}", *overrides])
    return [build(entry) for name, entry in config.callbacks.items() if name.endswith("checkpoint")]


@pytest.fixture
def train(tmp_path: Path, make_trainer: Callable[..., Trainer]) -> Callable[..., dict[str, int]]:
    """Trains on six batches an epoch; lists the files left and the optimizer step each was written at."""

    def run(val_losses: list[float], *overrides: str, callbacks: list[Callback] | None = None, **changes: Any) -> Any:
        callbacks = configured_callbacks(tmp_path, *overrides) if callbacks is None else callbacks
        settings = {"enable_checkpointing": True, "max_epochs": len(val_losses), **changes}
        loaders = [DataLoader(torch.ones(STEPS_PER_EPOCH, 1)) for _ in range(2)]
        make_trainer(*callbacks, **settings).fit(_Scripted(val_losses), *loaders)
        files = sorted((tmp_path / "checkpoints").glob("*"))
        return {file.name: torch.load(file, weights_only=True)["global_step"] for file in files}

    return run


def test_last_is_the_last_step_and_best_the_smallest_validation_loss(train: Callable[..., dict[str, int]]) -> None:
    steps = train([3.0, 1.0, 2.0, 4.0], "checkpoint_every_n_epochs=3")

    assert steps == {"best.ckpt": 12, "epoch_0002.ckpt": 18, "last.ckpt": 24}


def test_a_run_without_validation_has_a_last_checkpoint(train: Callable[..., dict[str, int]]) -> None:
    with pytest.warns(UserWarning, match="could not find the monitored key"):
        steps = train([0.0, 0.0], limit_val_batches=0)

    assert steps == {"last.ckpt": 12}


def test_a_run_limited_by_steps_keeps_its_last_step(train: Callable[..., dict[str, int]]) -> None:
    assert train([3.0, 1.0], max_epochs=-1, max_steps=10)["last.ckpt"] == 10


def test_a_second_run_by_the_same_callbacks_is_saved_too(train: Callable[..., dict[str, int]], tmp_path: Path) -> None:
    from unmask.callbacks.last_checkpoint import LastCheckpoint

    callbacks: list[Callback] = [LastCheckpoint(dirpath=tmp_path / "checkpoints")]
    assert train([1.0], callbacks=callbacks) == {"last.ckpt": 6}
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    assert train([1.0], callbacks=callbacks) == {"last.ckpt": 6}


def test_the_last_checkpoint_knows_what_the_best_one_was(train: Callable[..., dict[str, int]], tmp_path: Path) -> None:
    train([3.0, 1.0])

    callbacks = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    (scores,) = [float(state["best_model_score"]) for key, state in callbacks.items() if "'val/loss'" in key]
    assert scores == 1.0


class _Clock(Callback):
    """Lets a minute pass with every batch; notes when files were written."""

    def __init__(self) -> None:
        self.now = 0.0
        self.saved_at: list[tuple[int, int]] = []

    def __call__(self) -> float:
        return self.now

    def on_train_batch_start(self, *_: Any) -> None:
        self.now += 60.0

    def on_save_checkpoint(self, trainer: Trainer, *_: Any) -> None:
        self.saved_at.append((trainer.global_step, trainer.fit_loop.epoch_loop.batch_progress.current.processed))


@pytest.mark.parametrize(
    ("minutes", "changes", "expected"),
    [
        (2, {}, [2, 4, 6]),  # the sixth by the epoch's end alone
        (2, {"limit_val_batches": 0}, [2, 4, 6]),
        (None, {}, [6]),
        (2, {"accumulate_grad_batches": 2}, [1, 2, 3]),  # within no accumulation window
        (3, {"accumulate_grad_batches": 2}, [2, 3]),
        (5, {"accumulate_grad_batches": 4}, [2]),  # the last window is shorter
        (3, {"val_check_interval": 0.5}, [4, 6]),  # step 3 is followed by a validation
    ],
)
def test_it_is_written_as_time_passes_and_at_ends_of_optimizer_steps(
    minutes: float | None,
    changes: dict[str, Any],
    expected: list[int],
    *,
    train: Callable[..., dict[str, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from unmask.callbacks.last_checkpoint import LastCheckpoint

    clock = _Clock()
    monkeypatch.setattr("unmask.callbacks.last_checkpoint.time.monotonic", clock)
    last = LastCheckpoint(dirpath=tmp_path / "checkpoints", every_minutes=minutes)
    train([1.0], callbacks=[clock, last], **changes)

    assert [step for step, _ in clock.saved_at] == expected
    window = changes.get("accumulate_grad_batches", 1)
    assert all(done % window == 0 or done == STEPS_PER_EPOCH for _, done in clock.saved_at)


def test_a_file_written_within_an_epoch_is_continued_bit_for_bit(
    fit: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.callbacks.last_checkpoint import LastCheckpoint
    from unmask.callbacks.step_seeding import StepSeeding

    monkeypatch.setattr("unmask.callbacks.last_checkpoint.time.monotonic", clock := _Clock())
    settings = {"enable_checkpointing": True, "accumulate_grad_batches": 2}
    last = LastCheckpoint(dirpath=tmp_path, every_minutes=4.0)
    whole = fit(StepSeeding(seed=0), clock, last, _CopyWithinEpoch(tmp_path), **settings)
    resumed = fit(StepSeeding(seed=0), ckpt_path=tmp_path / "within.ckpt", accumulate_grad_batches=2)

    assert resumed.global_step == whole.global_step
    for name, weight in whole.lightning_module.state_dict().items():
        assert torch.equal(weight, resumed.lightning_module.state_dict()[name]), name


class _CopyWithinEpoch(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 0 and (self.folder / "last.ckpt").exists():
            (self.folder / "last.ckpt").rename(self.folder / "within.ckpt")


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_a_time_that_never_comes_is_refused(minutes: float, tmp_path: Path) -> None:
    from unmask.callbacks.last_checkpoint import LastCheckpoint

    with pytest.raises(ValueError, match="checkpoint_every_minutes must be above 0, or null for none"):
        LastCheckpoint(dirpath=tmp_path, every_minutes=minutes)


def process(*, others: int = 0, reason: Exception | None = None, **changes: Any) -> Any:
    """A trainer of one of two processes, of which the other wants something."""
    from unmask.callbacks.durable_checkpoint import DurableCheckpointIO

    def reduce(own: Tensor, *, reduce_op: str = "mean") -> Tensor:
        both = torch.stack([own.float(), torch.tensor(float(others))])
        return {"max": both.amax(0), "min": both.amin(0), "mean": both.mean(0)}[reduce_op]

    settings = {"world_size": 2, "is_global_zero": True, "fast_dev_run": False, "global_step": 7, "max_steps": -1}
    settings |= {"current_epoch": 0, "max_epochs": 9, "sanity_checking": False}
    trainer = Mock(spec=Trainer, **settings | changes)
    trainer.strategy.root_device, trainer.strategy.reduce = torch.device("cpu"), reduce
    trainer.strategy.checkpoint_io = Mock(spec=DurableCheckpointIO, reason_to_stop=reason)
    return trainer


@pytest.fixture
def last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A callback whose next file is due in ten minutes of a clock that stands."""
    from unmask.callbacks.last_checkpoint import LastCheckpoint

    monkeypatch.setattr("unmask.callbacks.last_checkpoint.time.monotonic", lambda: 0.0)
    return LastCheckpoint(dirpath=tmp_path, every_minutes=10.0)


@pytest.mark.parametrize("others", [0, 1, 2, 3])
@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_do_the_most_that_one_of_them_wants(rank: int, others: int, last: Any) -> None:
    trainer = process(others=others, is_global_zero=rank == 0)
    assert last._agree(trainer) == others
    last._saved_at = -600.0  # ten minutes ago, by the clock of the first process alone
    assert last._agree(trainer) == max(others, 1 if rank == 0 else 0)
    last.signals.received = signal.SIGTERM
    assert last._agree(trainer) == max(others, 2)


@pytest.mark.parametrize("others", [2, 3])
def test_what_another_process_wants_is_done_and_said(others: int, last: Any) -> None:
    from unmask.callbacks.stopping import RunStopped

    trainer = process(others=others)
    sentence = {2: "stopped by a signal to another process at step 7", 3: "another process of this run has stopped it"}
    with pytest.raises(RunStopped, match=sentence[others]):
        last._act(trainer, last._agree(trainer))
    assert trainer.save_checkpoint.call_count == {2: 1, 3: 0}[others]


@pytest.mark.parametrize(
    ("wanted", "is_last", "saves", "stops"),
    [(0, False, 1, False), (1, True, 1, False), (2, False, 1, True), (2, True, 1, False), (3, True, 0, True)],
)
def test_what_happens_as_an_epoch_ends(wanted: int, is_last: bool, saves: int, stops: bool, last: Any) -> None:
    from unmask.callbacks.stopping import RunStopped

    trainer = process(others=wanted, max_epochs=1 if is_last else 2)
    if stops:
        with pytest.raises(RunStopped):
            last.on_train_epoch_end(trainer, MODULE)
    else:
        last.on_train_epoch_end(trainer, MODULE)
    assert trainer.save_checkpoint.call_count == saves


def test_a_reason_to_stop_is_the_one_that_is_raised(last: Any) -> None:
    from unmask.callbacks.stopping import MachineFailed

    trainer = process(world_size=1, reason=MachineFailed("the disk is full"))
    with pytest.raises(MachineFailed, match="the disk is full"):
        last.on_train_epoch_end(trainer, MODULE)


def test_a_step_is_written_once_and_a_trial_never(last: Any) -> None:
    trainer = process(others=0)
    for step in (7, 7, 8):
        trainer.global_step = step
        last.on_train_epoch_end(trainer, MODULE)
    assert trainer.save_checkpoint.call_count == 2
    trial = process(fast_dev_run=True)
    last.on_train_epoch_end(trial, MODULE)
    assert trial.save_checkpoint.call_count == 0


@pytest.mark.parametrize("rank_of_fewest", [0, 1])
def test_processes_agree_within_a_validation_as_long_as_all_of_them_validate(rank_of_fewest: int, last: Any) -> None:
    from unmask.callbacks.stopping import Preempted

    counts = [3, 4] if rank_of_fewest == 0 else [4, 3]
    starting = process(others=counts[1], num_val_batches=[counts[0] - 1, 1])
    last.on_validation_start(starting, MODULE)
    last.signals.received = signal.SIGTERM
    for changes, place in (({}, (3, 0)), ({}, (0, 1)), ({"sanity_checking": True}, (0, 0))):
        last.on_validation_batch_start(process(**changes), MODULE, None, *place)
    with pytest.raises(Preempted, match="stopped by SIGTERM"):
        last.on_validation_batch_start(process(), MODULE, None, 2, 0)


def test_a_validation_under_way_begins_anew(last: Any) -> None:
    """It is the third: two of four batches each are done, and of this one two batches."""

    def counts(**values: int) -> dict[str, int]:
        return values

    current = counts(ready=3, started=3, processed=2, completed=2)
    progress = {"total": counts(ready=11, started=11, processed=10, completed=10), "current": current}
    checkpoint = {"loops": {"fit_loop": {"epoch_loop.val_loop.batch_progress": progress}}}
    last.on_save_checkpoint(process(), MODULE, checkpoint)
    assert current["completed"] == 2  # saved elsewhere
    last._repeats_validation = True
    last.on_save_checkpoint(process(), MODULE, checkpoint)
    assert progress == {
        "total": counts(ready=9, started=9, processed=8, completed=8),
        "current": counts(ready=1, started=1, processed=0, completed=0),
    }


def test_signals_are_kept_while_a_second_may_come(last: Any) -> None:
    from unmask.callbacks.stopping import Preempted

    last.signals.restore = Mock()
    last.on_exception(process(), MODULE, Preempted("by a signal"))
    last.signals.restore.assert_not_called()
    last.on_exception(process(), MODULE, ValueError("by a mistake"))
    last.signals.restore.assert_called_once()


class _Notes(DummyLogger):
    """What is logged of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int | None, float, float]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if "train/loss" in metrics:
            self.logged.append((step, metrics["train/loss"], metrics["epoch"]))


class Killed(Exception):  # noqa: N818  (no mistake)
    """Ends a run as a kill does, after its file is written."""


class _Kill(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


@pytest.mark.parametrize("step", [7, 8])  # the eighth is logged
def test_a_step_that_was_saved_before_it_was_logged_is_logged_by_the_run_that_goes_on(
    step: int, fit: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.callbacks.last_checkpoint import LastCheckpoint
    from unmask.callbacks.step_seeding import StepSeeding

    whole, first, second = _Notes(), _Notes(), _Notes()
    monkeypatch.setattr("unmask.callbacks.last_checkpoint.time.monotonic", clock := _Clock())

    def run(logger: _Notes, *callbacks: Callback, ckpt_path: Path | None = None) -> None:
        torch.manual_seed(0)  # of the first weights
        last = LastCheckpoint(dirpath=tmp_path, every_minutes=1.0)
        settings: dict[str, Any] = {"enable_checkpointing": True, "logger": logger, "log_every_n_steps": 2}
        fit(StepSeeding(seed=0), clock, last, *callbacks, ckpt_path=ckpt_path, **settings)

    run(whole)
    with pytest.raises(Killed):
        run(first, _Kill(step))
    (tmp_path / "last.ckpt").rename(tmp_path / "killed.ckpt")
    run(second, ckpt_path=tmp_path / "killed.ckpt")
    assert len(whole.logged) == 6
    assert [*first.logged, *second.logged] == whole.logged
