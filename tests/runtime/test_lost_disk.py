"""Runs whose disk fills up, becomes read-only or goes away after they have begun."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import builtins
import csv
import errno
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TINY = ["method=mae", "model=vit_mini", "model.embed_dim=24", "model.depth=2", "method.decoder.embed_dim=24"]
TINY += ["method.decoder.depth=1", "method.decoder.num_heads=3", "data.num_train=16", "data.num_val=8"]
TINY += ["data.num_test=8", "global_batch_size=8", "trainer.accelerator=cpu", "trainer.precision=32-true"]
TINY += ["schedule=constant", "logger=default", "trainer.log_every_n_steps=1", "callbacks.report.max_time_fraction=1"]
CHANGES = ("mkdir", "replace", "rename", "unlink", "link", "truncate", "rmdir")


class Disk:
    """The folder of a run, whose disk can be made to refuse."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.refusal: int | None = None  # number of an error of the system
        for module in (builtins, io):
            monkeypatch.setattr(module, "open", self._opening(module.open))
        for name in CHANGES:
            monkeypatch.setattr(os, name, self._changing(getattr(os, name)))

    def _refuse(self, path: Any) -> None:
        if self.refusal is None or isinstance(path, int):  # of an open file
            return
        if Path(os.fsdecode(path)).absolute().is_relative_to(self.folder):
            raise OSError(self.refusal, os.strerror(self.refusal), path)

    def _opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
            if set(mode) & set("wax+"):
                self._refuse(path)
            return real(path, mode, *arguments, **settings)

        return opened

    def _changing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def changed(path: Any, *arguments: Any, **settings: Any) -> Any:
            self._refuse(path)
            return real(path, *arguments, **settings)

        return changed

    def replace_by_a_file(self) -> None:
        self.folder.rename(self.folder.with_name("moved"))
        self.folder.write_text("")

    def refuse(self, number: int) -> Callable[[], None]:
        def act() -> None:
            self.refusal = number

        return act

    def recover(self) -> None:
        self.refusal = None


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path / "run", monkeypatch)


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command in this process, and something as an epoch ends, before its last checkpoint is written."""
    from unmask.callbacks.last_checkpoint import LastCheckpoint
    from unmask.runtime import cli

    monkeypatch.chdir(tmp_path)

    def run(at: dict[int, Callable[[], None]], *overrides: str) -> int:
        save = LastCheckpoint.on_train_epoch_end

        def act_and_save(callback: Any, trainer: Any, pl_module: Any) -> None:
            at.get(trainer.current_epoch, lambda: None)()
            save(callback, trainer, pl_module)

        monkeypatch.setattr(LastCheckpoint, "on_train_epoch_end", act_and_save)
        monkeypatch.setattr(sys, "argv", ["run.py", *TINY, f"hydra.run.dir={tmp_path / 'run'}", *overrides])
        try:
            cli.run()
        except SystemExit as left:
            return int(left.code or 0)
        finally:
            logging.shutdown()  # closes run.log, which a message of another library would open again
            logging.getLogger().handlers.clear()
        return 0

    return run


def step_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["global_step"])


def losses(folder: Path) -> list[int]:
    with (folder / "csv" / "metrics.csv").open(newline="") as lines:
        return [int(row["step"]) for row in csv.DictReader(lines) if row.get("train/loss")]


@pytest.mark.parametrize(
    "number",
    [
        errno.EROFS,
        pytest.param(errno.ENOTDIR, marks=pytest.mark.nightly),  # a file stands in the folder's place
        pytest.param(errno.ESTALE, marks=pytest.mark.nightly),
        pytest.param(errno.EDQUOT, marks=pytest.mark.nightly),
    ],
)
def test_a_disk_that_is_lost_ends_the_run_by_its_third_failure_to_save(
    number: int, disk: Disk, train: Callable[..., int], tmp_path: Path, capfd: Any
) -> None:
    lose = disk.replace_by_a_file if number == errno.ENOTDIR else disk.refuse(number)
    assert train({1: lose}, "trainer.max_epochs=50") == 4
    disk.recover()

    output, errors = capfd.readouterr()
    assert "Traceback" not in output + errors
    assert "Logging error" not in output + errors
    (sentence,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert re.match(rf"error: (best|last)\.ckpt could not be written at step 8 \({os.strerror(number)}\)", sentence)
    assert "failure 3 in a row" in sentence
    kept = tmp_path / ("moved" if number == errno.ENOTDIR else "run")
    assert step_of(kept / "checkpoints" / "last.ckpt") == 2  # of the first epoch
    assert losses(kept) == [0, 1, 2, 3]
    assert (kept / "report.html").exists()


def test_a_disk_that_recovers_costs_points_of_tensorboard_and_pictures_alone(
    disk: Disk, train: Callable[..., int], tmp_path: Path, capfd: Any
) -> None:
    assert train({1: disk.refuse(errno.EDQUOT), 2: disk.recover}, "trainer.max_epochs=4") == 0

    output, errors = capfd.readouterr()
    assert "Traceback" not in output + errors
    assert output.count("last.ckpt could not be written at step 4") == 1
    run = tmp_path / "run"
    assert step_of(run / "checkpoints" / "last.ckpt") == 8
    assert losses(run) == list(range(8))
    assert json.loads((run / "status.json").read_text())["state"] == "complete"
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    steps = [point.step for point in events.Scalars("train/loss")]
    assert {0, 1, 6, 7} <= set(steps) < set(range(8))


@pytest.mark.parametrize("is_read_only", [True, False])
def test_a_run_that_cannot_export_its_weights_says_so(
    is_read_only: bool,
    disk: Disk,
    train: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    """The library that writes them has errors of its own, which name the system's by their number."""
    from safetensors import SafetensorError

    from unmask.runtime import checkpoint

    def refuse(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    if not is_read_only:
        monkeypatch.setattr(checkpoint, "save_file", refuse)
    at = {0: disk.refuse(errno.EROFS)} if is_read_only else {}
    assert train(at, "trainer.max_epochs=1", "callbacks.report=null") == 4
    disk.recover()
    output, errors = capfd.readouterr()
    assert "Traceback" not in output + errors
    (sentence,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert ("Read-only file system" if is_read_only else "No space left on device") in sentence
