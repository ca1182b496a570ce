"""A run's CSV file holds every reading once, over any number of interruptions."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import AtomicCounter


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def points(folder: Path) -> list[tuple[str, int, float]]:
    """What TensorBoard shows of a run."""
    files = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    files.Reload()
    return sorted((tag, at.step, at.value) for tag in files.Tags()["scalars"] for at in files.Scalars(tag))


@pytest.fixture
def history(tmp_path: Path) -> Callable[..., Any]:
    from unmask.callbacks.csv_history import CSVHistory

    return lambda resumed_step=None: CSVHistory(save_dir=tmp_path, resumed_step=resumed_step)


def test_files_lie_in_the_folder_named_whatever_its_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.callbacks.csv_history import CSVHistory
    from unmask.callbacks.tensorboard_history import TensorBoardHistory

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ELSEWHERE", str(tmp_path / "elsewhere"))
    for folder in (tmp_path / "a $HOME ${ELSEWHERE} [b]", tmp_path / "~" / "=,ü"):
        for logger in (CSVHistory(save_dir=folder), TensorBoardHistory(save_dir=folder)):
            logger.log_metrics({"loss": 1.0}, 0)
            logger.save()
            logger.finalize("success")
        assert [row["loss"] for row in rows(folder)] == ["1.0"]
        assert ("loss", 0, 1.0) in points(folder)
    assert not {"home", "elsewhere"} & {path.name for path in tmp_path.iterdir()}


def test_rows_of_steps_that_are_made_again_are_dropped_and_the_others_stay(
    history: Callable[..., Any], tmp_path: Path
) -> None:
    first = history()
    for step in range(6):
        first.log_metrics({"loss": 1.0 / (step + 1)}, step)
        first.save()
    first.log_metrics({"val/loss": 0.5}, 3)
    first.save()
    second = history(resumed_step=4)
    second.log_hyperparams({"seed": 0})  # opens it
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2", "3", "3"]
    second.log_metrics({"loss": 7.0, "new": 1.0}, 4)
    second.save()

    assert [(row["step"], row.get("loss")) for row in rows(tmp_path)][-2:] == [("3", None), ("4", "7.0")]
    assert rows(tmp_path)[2]["loss"] == str(1.0 / 3)
    assert rows(tmp_path)[4] == {"step": "3", "val/loss": "0.5"}


def test_half_a_row_of_a_killed_process_is_dropped(history: Callable[..., Any], tmp_path: Path) -> None:
    first = history()
    first.log_metrics({"a": 1.0, "b": 2.0}, 0)
    first.save()
    with (tmp_path / "csv" / "metrics.csv").open("a") as file:
        file.write("3.0,4.")
    history(resumed_step=9).log_hyperparams({})

    assert rows(tmp_path) == [{"a": "1.0", "b": "2.0", "step": "0"}]


def test_a_new_run_begins_a_new_file(history: Callable[..., Any], tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        logger = history()
        logger.log_metrics({"a": value}, 0)
        logger.save()

    assert rows(tmp_path) == [{"a": "2.0", "step": "0"}]


def test_a_full_disk_costs_no_row_and_no_training(
    history: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    from lightning.pytorch.loggers.csv_logs import ExperimentWriter

    logger = history()
    logger.log_metrics({"a": 0.0}, 0)
    logger.save()

    def fail(writer: Any) -> None:
        with Path(writer.metrics_file_path).open("a") as file:
            file.write("1.0,")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(ExperimentWriter, "save", fail)
        for step in (1, 2):
            logger.log_metrics({"a": float(step)}, step)
            logger.save()
    logger.log_metrics({"a": 3.0}, 3)
    logger.save()

    assert [(row["step"], row["a"]) for row in rows(tmp_path)] == [(str(i), f"{i}.0") for i in range(4)]
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1  # said once


@pytest.mark.parametrize("is_read_only", [False, True])
def test_rows_with_new_columns_outlast_a_full_disk(
    is_read_only: bool, history: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header is written anew before the rows, of which half may be written; a disk may refuse to take that back."""
    logger = history()
    logger.log_metrics({"z": 0.0}, 0)
    logger.save()

    def write_half(path: str, **_: Any) -> None:
        with Path(path).open("a") as file:
            file.write("1.0,")
        raise OSError(28, "No space left on device")

    def refuse(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as full:
        full.setattr(logger.experiment._fs, "open", write_half)
        if is_read_only:
            full.setattr("os.truncate", refuse)
        logger.log_metrics({"a": 1.0, "z": 1.0}, 1)
        logger.save()
        assert len((tmp_path / "csv" / "metrics.csv").read_text().splitlines()) == 2 + is_read_only
    logger.log_metrics({"z": 2.0}, 2)
    logger.save()
    assert [(row["step"], row.get("a"), row["z"]) for row in rows(tmp_path)] == [
        ("0", None, "0.0"),
        ("1", "1.0", "1.0"),
        ("2", None, "2.0"),
    ]


def test_readings_go_on_where_their_folder_was_removed(history: Callable[..., Any], tmp_path: Path) -> None:
    logger = history()
    logger.log_metrics({"a": 0.0}, 0)
    logger.save()
    (tmp_path / "csv").rename(tmp_path / "moved")
    logger.log_metrics({"a": 1.0}, 1)
    logger.save()
    assert [row["step"] for row in rows(tmp_path)] == ["1"]


def test_tensorboard_leaves_out_half_a_record_and_reads_the_others(tmp_path: Path, caplog: Any) -> None:
    from unmask.callbacks.tensorboard_history import TensorBoardHistory

    logger = TensorBoardHistory(save_dir=tmp_path)
    logger.log_metrics({"a": 0.0}, 0)
    logger.experiment.flush()
    file = logger.experiment._get_file_writer().event_writer._async_writer._writer._writer._file
    write = file.write

    def fail_half_way(record: bytes) -> None:
        write(record[: len(record) // 2])
        raise OSError(28, "No space left on device")

    file.write = fail_half_way
    for step in (1, 2):
        logger.log_metrics({"a": float(step)}, step)
    logger.experiment.flush()
    file.write = write
    logger.log_metrics({"a": 3.0}, 3)
    logger.finalize("success")
    assert [(step, value) for _, step, value in points(tmp_path)] == [(0, 0.0), (3, 3.0)]
    (said,) = [record.message for record in caplog.records if record.levelno == logging.ERROR]  # once
    assert "could not be written (No space left on device): points are left out until it can be" in said


class _EndAt(Callback):
    """Ends a run as a killed process does, some steps after the last file was written; or asks for its end."""

    def __init__(self, step: int, *, is_killed: bool) -> None:
        self.step, self.is_killed = step, is_killed

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            if self.is_killed:
                raise KeyboardInterrupt
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)


def test_five_interruptions_leave_the_rows_of_an_uninterrupted_run(
    make_mae: Callable[..., LightningModule],
    make_data: Callable[..., Any],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lightning.pytorch.callbacks import LearningRateMonitor

    from unmask.callbacks.csv_history import CSVHistory
    from unmask.callbacks.durable_checkpoint import DurableCheckpointIO
    from unmask.callbacks.last_checkpoint import LastCheckpoint
    from unmask.callbacks.step_seeding import StepSeeding
    from unmask.callbacks.stopping import Preempted

    seconds = iter(range(10**9))
    monkeypatch.setattr("unmask.callbacks.last_checkpoint.time.monotonic", lambda: next(seconds))
    # Event files are read in the order of their names: second, process, number of the writer. Processes of real runs
    # begin seconds apart; here the numbers have to sort as text.
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer._global_uid", AtomicCounter(100))

    from unmask.callbacks.tensorboard_history import TensorBoardHistory

    def train(folder: Path, *extra: Callback) -> None:
        last = folder / "checkpoints" / "last.ckpt"
        step = torch.load(last, weights_only=True)["global_step"] if last.exists() else None
        torch.manual_seed(0)
        callbacks = [StepSeeding(seed=0), LearningRateMonitor(logging_interval="step"), *extra]
        callbacks.append(LastCheckpoint(dirpath=last.parent, every_minutes=4 / 60))  # every second to fourth step
        logger = [history(save_dir=folder, resumed_step=step) for history in (CSVHistory, TensorBoardHistory)]
        settings = {"enable_checkpointing": True, "plugins": [DurableCheckpointIO()], "log_every_n_steps": 1}
        trainer = make_trainer(*callbacks, max_epochs=4, logger=logger, default_root_dir=folder, **settings)
        trainer.fit(make_mae(), datamodule=make_data(), ckpt_path=last if last.exists() else None)

    train(tmp_path / "whole")
    for step, is_killed in [(4, True), (9, True), (10, False), (15, False), (20, True)]:
        with pytest.raises(Preempted if not is_killed else SystemExit):
            train(tmp_path / "parts", _EndAt(step, is_killed=is_killed))
    train(tmp_path / "parts")

    def readings(folder: Path) -> list[tuple[int, str, str]]:
        return sorted((int(row["step"]), key, value) for row in rows(folder) for key, value in row.items())

    assert readings(tmp_path / "parts") == readings(tmp_path / "whole")
    assert len({(step, key) for step, key, _ in readings(tmp_path / "parts") if key not in {"step", "epoch"}}) > 90
    assert points(tmp_path / "parts") == points(tmp_path / "whole")
    assert len(points(tmp_path / "parts")) > 90
