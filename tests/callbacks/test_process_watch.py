import json
import signal
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer

from unmask.callbacks.process_watch import ProcessWatch, lost_process

LOST = RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:2474")


class _Process:
    """A process that Lightning started, which is over."""

    def __init__(self, code: int | None, pid: int = -1) -> None:
        self.code, self.pid, self.is_killed = code, pid, False

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.is_killed = True


class _TrainerOfMany(Trainer):
    """A trainer beside which other processes run."""

    def __init__(self, *codes: int | None, world_size: int = 2, is_first: bool = True) -> None:
        super().__init__(accelerator="cpu", logger=False, enable_checkpointing=False)
        self._world_size, self._is_first = world_size, is_first
        self.processes = [_Process(code) for code in codes]
        self.strategy._launcher = SimpleNamespace(procs=self.processes)

    @property
    def world_size(self) -> int:
        return self._world_size

    @property
    def is_global_zero(self) -> bool:
        return self._is_first


MODULE = LightningModule()


@pytest.mark.parametrize(
    ("codes", "sentence", "exit_code", "can_go_on"),
    [
        ([-9], "process 1 of this run was killed by SIGKILL", 4, True),
        ([0, 2], "process 2 of this run ended with exit code 2; its message stands above", 2, False),
        ([None, -11], "process 2 of this run was killed by SIGSEGV", 4, True),
    ],
)
def test_a_lost_connection_is_explained_by_the_process_that_is_gone(
    codes: list[int | None], sentence: str, exit_code: int, can_go_on: bool
) -> None:
    trainer = _TrainerOfMany(*codes, world_size=len(codes) + 1)
    failed = lost_process(trainer, LOST)
    assert failed is not None
    assert (str(failed), failed.exit_code, failed.can_go_on) == (sentence, exit_code, can_go_on)
    assert all(process.is_killed for process in trainer.processes)


@pytest.mark.parametrize("error", [LOST, torch.distributed.DistBackendError("NCCL error")])
def test_a_connection_is_lost_also_where_another_launcher_started_the_processes(error: RuntimeError) -> None:
    failed = lost_process(_TrainerOfMany(), error)
    assert failed is not None
    assert "the connection to another process of this run was lost" in str(failed)


def test_other_errors_and_runs_of_one_process_are_left_alone() -> None:
    assert lost_process(_TrainerOfMany(-9), RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert lost_process(_TrainerOfMany(world_size=1), LOST) is None


def test_the_first_process_ends_where_it_would_wait_for_another_that_was_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, codes = threading.Event(), []
    watch = ProcessWatch(folder=tmp_path, end=lambda code: (codes.append(code), ended.set()))
    (tmp_path / "status.json").write_text(json.dumps({"state": "running", "step": 7, "epoch": 1}))
    trainer = _TrainerOfMany(-9, None, world_size=3)
    watch.setup(trainer, MODULE, "fit")
    assert ended.wait(30)
    watch.teardown(trainer, MODULE, "fit")
    assert codes[0] == 4
    assert trainer.processes[1].is_killed
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["step"], status["epoch"]) == ("failed", 7, 1)
    assert status["reason"] == "process 1 of this run was killed by SIGKILL"
    assert "process 1 of this run was killed by SIGKILL; the last checkpoint holds" in capsys.readouterr().err


def test_an_error_of_its_own_comes_first(tmp_path: Path) -> None:
    codes: list[int] = []
    watch = ProcessWatch(folder=tmp_path, end=codes.append)
    trainer = _TrainerOfMany(2)
    watch.setup(trainer, MODULE, "fit")
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "process-watch"]
    watch.on_exception(trainer, MODULE, ValueError("the same image"))
    thread.join(30)
    assert not thread.is_alive()
    assert codes == []


def test_the_first_process_looks_after_those_that_it_started_alone(tmp_path: Path) -> None:
    watch = ProcessWatch(folder=tmp_path, end=pytest.fail)
    watch.setup(_TrainerOfMany(), MODULE, "fit")
    assert "process-watch" not in [thread.name for thread in threading.enumerate()]


needs_states = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@needs_states
def test_a_process_that_is_frozen_is_ended_with_the_run(
    another_process: subprocess.Popen[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, codes = threading.Event(), []
    watch = ProcessWatch(folder=tmp_path, frozen_seconds=1, end=lambda code: (codes.append(code), ended.set()))
    trainer = _TrainerOfMany(None)
    trainer.strategy._launcher = SimpleNamespace(procs=[another_process])
    watch.setup(trainer, MODULE, "fit")
    assert not ended.wait(1.5)  # one that runs, however long it takes, is let alone
    another_process.send_signal(signal.SIGSTOP)
    assert ended.wait(30)
    watch.teardown(trainer, MODULE, "fit")
    assert another_process.wait(30) == -signal.SIGKILL
    assert codes[0] == 4
    sentence = "process 1 of this run has been stopped (SIGSTOP) for 1 s"
    assert f"error: {sentence}; the last checkpoint holds, go on by resume=auto" in capsys.readouterr().err
    assert json.loads((tmp_path / "status.json").read_text())["reason"] == sentence
