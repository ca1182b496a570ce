import io
import logging
import sys
from unittest.mock import Mock

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy

from unmask.callbacks.progress import PlainProgress, TerminalProgress
from unmask.callbacks.throughput import Throughput

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # Lightning 2.6 with torch 2.14
]


@pytest.fixture(autouse=True)
def _log_everything(caplog):
    caplog.set_level(logging.INFO, logger="unmask")


def lines(caplog):
    messages = [record.getMessage() for record in caplog.records if record.name == "unmask"]
    return [message for message in messages if "are not counted" not in message]  # losses are read here at every step


def test_lines_say_how_far_the_run_is(fit, make_mae, pass_time, training_losses, caplog):
    method = make_mae()
    losses = training_losses(method)
    trainer = fit(pass_time(batch=0.5, pause=1.0), Throughput(), PlainProgress(4), log_every_n_steps=4, method=method)

    def mean(first, last):
        return f"{sum(losses[first:last]) / (last - first):.4f}"

    first_val, last_val = (line.split("  ")[2] for line in lines(caplog) if "val/loss" in line)
    # The clock starts with the first step's end. At step 4 three steps took 1.5 s and 8 are left: 4 s. A validation and
    # an epoch's end take 1 s each: at step 8 seven took 5.5 s, 4 are left: 3.1 s.
    assert lines(caplog) == [
        f"epoch 1/2  step 4/12  loss {mean(0, 4)}  lr 1.0e-03  8 images/s  4 s left",
        f"epoch 1/2  step 6/12  {first_val}",
        f"epoch 2/2  step 8/12  loss {mean(4, 8)}  lr 1.0e-03  8 images/s  3 s left",
        f"epoch 2/2  step 12/12  loss {mean(8, 12)}  lr 1.0e-03  8 images/s  0 s left",
        f"epoch 2/2  step 12/12  {last_val}",
    ]
    assert last_val == f"val/loss {float(trainer.callback_metrics['val/loss']):.4f}"


def test_loss_of_accumulated_batches_is_their_mean(make_mae, make_data, make_trainer, training_losses, caplog):
    method, data = make_mae(), make_data()
    losses = training_losses(method)
    trainer = make_trainer(PlainProgress(3), accumulate_grad_batches=2, max_epochs=1, limit_val_batches=0)
    data.global_batch_size *= 2  # still six batches
    trainer.fit(method, datamodule=data)
    (line,) = lines(caplog)
    assert line.startswith(f"epoch 1/1  step 3/3  loss {sum(losses) / 6:.4f}  lr 1.0e-03")
    assert "images/s" not in line


def test_a_run_without_end_tells_no_total_and_no_time_left(caplog):
    trainer = Mock(
        spec=Trainer,
        is_global_zero=True,
        strategy=SingleDeviceStrategy(device=torch.device("cpu")),
        accumulate_grad_batches=1,
        is_last_batch=False,
        max_epochs=-1,
        current_epoch=2,
        estimated_stepping_batches=float("inf"),
        optimizers=[Mock(param_groups=[{"lr": 2.5e-4}])],
        callback_metrics={"system/images_per_s": 2309.6},
    )
    progress = PlainProgress(2)
    for step, loss in enumerate((1.0, 2.0, 3.0, 5.0), start=1):
        trainer.global_step = step
        progress.on_train_batch_end(trainer, LightningModule(), {"loss": torch.tensor(loss)}, None, step - 1)
    assert lines(caplog) == [
        "epoch 3  step 2  loss 1.5000  lr 2.5e-04  2310 images/s",
        "epoch 3  step 4  loss 4.0000  lr 2.5e-04  2310 images/s",
    ]


def test_other_processes_say_nothing(caplog):
    strategy = Mock()
    strategy.reduce.side_effect = lambda own, reduce_op: own
    strategy.root_device = torch.device("cpu")
    trainer = Mock(spec=Trainer, is_global_zero=False, strategy=strategy, accumulate_grad_batches=1, global_step=1)
    progress = PlainProgress(1)
    progress.on_train_batch_end(trainer, LightningModule(), {"loss": torch.tensor(1.0)}, None, 0)
    assert strategy.reduce.called  # the first process waits for it
    progress.on_validation_end(trainer, LightningModule())
    assert lines(caplog) == []


def test_an_interval_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        PlainProgress(0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Remark(Callback):
    """Something else that speaks during a run."""

    def on_train_epoch_end(self, *_):
        logging.getLogger("unmask").info("a remark")


@pytest.fixture
def handlers():
    """Adds log handlers as an application has them, to a terminal and to a file."""
    logger, added = logging.getLogger("unmask"), []

    def add(stream):
        handler = logging.StreamHandler(stream)
        logger.addHandler(handler)
        added.append(handler)
        return handler

    yield add
    for handler in added:
        logger.removeHandler(handler)


def test_a_terminal_gets_the_bar_and_a_file_the_lines(fit, pass_time, handlers, monkeypatch):
    terminal, file = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr("unmask.callbacks.progress._BAR_READ_INTERVAL", 0.0)
    console = handlers(terminal)
    handlers(file)
    callbacks = (pass_time(), Throughput(), PlainProgress(2), TerminalProgress(), Remark())
    fit(*callbacks, enable_progress_bar=True)

    shown = terminal.getvalue()
    assert "epoch 2/2" in shown
    assert "loss=" in shown
    assert "images/s=8," in shown
    assert "left=0 s" in shown
    assert "step 2/12" not in shown  # the bar says it
    assert shown.count("val/loss ") == 2  # which no bar shows
    assert shown.count("step 6/12  val/loss ") == 1
    # Alone on its line: the bar before it was wiped.
    assert all(before.endswith("\r") for before in shown.split("a remark\n")[:-1])
    assert file.getvalue().count("a remark") == 2
    assert file.getvalue().count("images/s") == 6
    assert console.filters == []  # afterwards the terminal is told everything again


def test_the_terminal_is_given_back_after_a_failure(fit, handlers, monkeypatch):
    class Fail(Callback):
        def on_train_epoch_start(self, *_):
            raise RuntimeError("no such luck")

    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    console = handlers(terminal)
    with pytest.raises(RuntimeError, match="no such luck"):
        fit(TerminalProgress(), Fail(), enable_progress_bar=True)
    assert console.filters == []


def test_the_bar_writes_nothing_to_a_file(fit, monkeypatch):
    monkeypatch.setattr(sys, "stdout", file := io.StringIO())
    monkeypatch.setattr(sys, "stderr", file)
    fit(TerminalProgress(), enable_progress_bar=True, max_epochs=1)
    assert file.getvalue() == ""


def test_the_bar_reads_the_loss_at_most_twice_a_second(monkeypatch):
    now, shown = 0.0, []
    monkeypatch.setattr("unmask.callbacks.progress.perf_counter", lambda: now)
    bar = TerminalProgress()
    for moment, loss in ((0.0, 1.0), (0.4, 2.0), (0.6, 3.0), (0.9, 4.0)):
        now = moment
        trainer = Mock(spec=Trainer, global_step=1, estimated_stepping_batches=9, callback_metrics={"train/loss": loss})
        shown.append(bar.get_metrics(trainer, LightningModule())["loss"])
    assert shown == ["1.0000", "1.0000", "3.0000", "3.0000"]
