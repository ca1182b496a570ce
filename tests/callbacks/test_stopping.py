"""A run asked to stop saves at the next optimizer step and goes on later as if nothing had happened."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP]


class _Interrupt(Callback):
    """Sends this process a signal in a hook, at an optimizer step."""

    def __init__(self, hook: str, step: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.hook = hook

        def interrupt(trainer: Trainer, *_: Any, **__: Any) -> None:
            if trainer.global_step == step and not self.was_sent:
                self.was_sent = True
                os.kill(os.getpid(), number)

        self.was_sent = False
        setattr(self, hook, interrupt)


class _Course(Callback):
    """Notes losses of training and validation as exact numbers."""

    def __init__(self) -> None:
        self.losses: dict[tuple[str, int], str] = {}

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses["train", trainer.current_epoch * 100 + batch_idx] = float(outputs["loss"]).hex()

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self.losses["val", trainer.global_step] = float(trainer.callback_metrics["val/loss"]).hex()


@pytest.fixture
def run(fit: Callable[..., Trainer], tmp_path: Path) -> Callable[..., Any]:
    """Trains for three epochs of six steps; gives back the course of the losses and the weights."""

    def train(*extra: Callback, ckpt_path: Path | None = None, **changes: Any) -> Any:
        from unmask.callbacks.durable_checkpoint import DurableCheckpointIO
        from unmask.callbacks.last_checkpoint import LastCheckpoint
        from unmask.callbacks.step_seeding import StepSeeding

        torch.manual_seed(0)  # of the first weights
        course = _Course()
        callbacks = [StepSeeding(seed=0), *extra, course, LastCheckpoint(dirpath=tmp_path / "checkpoints")]
        settings = {"max_epochs": 3, "enable_checkpointing": True, "plugins": [DurableCheckpointIO()], **changes}
        trainer = fit(*callbacks, ckpt_path=ckpt_path, **settings)
        return course.losses, trainer.lightning_module.state_dict()

    return train


CASES = [  # hook, optimizer steps done before it, changes to the trainer, step of the file
    ("on_train_batch_start", 0, {}, 1),
    ("on_train_batch_start", 7, {}, 8),
    ("on_train_batch_end", 8, {}, 8),
    ("on_before_optimizer_step", 9, {}, 10),
    ("on_train_batch_start", 11, {}, 12),  # the last batch: saved before the validation
    ("on_validation_start", 12, {}, 12),
    ("on_validation_batch_end", 12, {}, 12),
    ("on_validation_end", 12, {}, 12),
    ("on_train_epoch_end", 6, {}, 6),
    ("on_train_batch_start", 4, {"accumulate_grad_batches": 2}, 5),
    ("on_train_batch_start", 1, {"accumulate_grad_batches": 4}, 2),
    ("on_validation_batch_end", 3, {"val_check_interval": 0.5}, 3),
    ("on_validation_batch_start", 9, {"val_check_interval": 0.5}, 9),
    ("on_train_batch_start", 5, {"limit_val_batches": 0}, 6),
    ("on_train_batch_start", 3, {"precision": "bf16-mixed"}, 4),
]


@pytest.mark.parametrize(("hook", "step", "changes", "saved_at"), CASES)
def test_a_run_stopped_anywhere_goes_on_bit_for_bit(
    hook: str, step: int, changes: dict[str, Any], saved_at: int, *, run: Callable[..., Any], tmp_path: Path
) -> None:
    from unmask.callbacks.stopping import Preempted

    uninterrupted, weights = run(**changes)
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(Preempted, match=f"stopped by SIGTERM at step {saved_at}, saved as"):
        run(_Interrupt(hook, step), **changes)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == saved_at
    losses, resumed = run(ckpt_path=last, **changes)

    assert {key: uninterrupted[key] for key in losses} == losses
    missing = {key for key in uninterrupted if key not in losses}
    assert all(kind == "train" or at <= saved_at for kind, at in missing)
    if "validation_batch" in hook or hook == "on_validation_start":
        assert ("val", saved_at) in losses  # done anew, as a whole
    for name, weight in weights.items():
        assert torch.equal(weight, resumed[name]), name


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_that_asks_for_an_end_is_heard(number: signal.Signals, run: Callable[..., Any]) -> None:
    from unmask.callbacks.stopping import Preempted

    before = signal.getsignal(number)
    with pytest.raises(Preempted, match=f"stopped by {number.name} at step 3"):
        run(_Interrupt("on_train_batch_start", 2, number))
    signal.signal(number, before)


def test_a_request_in_the_last_epochs_validation_does_not_lose_the_end(run: Callable[..., Any], tmp_path: Path) -> None:
    run(_Interrupt("on_validation_end", 18))

    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 18


def test_signals_are_given_back(run: Callable[..., Any]) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    run(max_epochs=1)

    assert [signal.getsignal(number) for number in SIGNALS] == before


TWO_SIGNALS = """
    import signal, subprocess, sys, time
    from unmask.callbacks.stopping import StopSignals
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    signals = StopSignals()
    signals.install(lambda: [child.pid])
    print(child.pid, flush=True)
    while True:
        time.sleep(0.1)
        if signals.received is not None:
            print(signals.received.name, flush=True)
            time.sleep(60)
"""


@pytest.mark.slow
def test_a_second_signal_ends_the_process_and_its_children_at_once() -> None:
    script = [sys.executable, "-c", textwrap.dedent(TWO_SIGNALS)]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)  # as torchrun forwards a Ctrl-C: one request
        assert process.stdout.readline().strip() == "SIGINT"
        time.sleep(1.1)
        assert process.poll() is None
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=5) == 130
        assert time.monotonic() - asked < 2
        assert "stopped at once" in process.stderr.read()
    assert not Path(f"/proc/{child}").exists() or "State:\tZ" in Path(f"/proc/{child}/status").read_text()


def test_a_loader_worker_outlives_the_first_signal_to_all_processes() -> None:
    from unmask.data.worker_signals import leave_signals_to_main

    worker = os.fork()
    if worker == 0:
        leave_signals_to_main()
        time.sleep(60)
        os._exit(9)
    time.sleep(0.2)
    for number in [*SIGNALS[1:], signal.SIGTERM]:
        os.kill(worker, number)
    time.sleep(0.2)
    assert os.waitpid(worker, os.WNOHANG) == (0, 0)
    os.kill(worker, signal.SIGTERM)
    assert os.waitpid(worker, 0) == (worker, 0)
