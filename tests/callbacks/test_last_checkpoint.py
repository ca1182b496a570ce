"""`last.ckpt` is the newest state, `best.ckpt` the one of the smallest validation loss."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

STEPS_PER_EPOCH = 6


class _Scripted(LightningModule):
    """Its validation loss is what a list says; its training loss falls all the time."""

    def __init__(self, val_losses: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.steps_done = nn.Parameter(torch.zeros(1), requires_grad=False)  # what a checkpoint is recognised by
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
