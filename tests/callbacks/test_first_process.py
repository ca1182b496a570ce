import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from unmask.callbacks import first_process
from unmask.callbacks.first_process import FIRST_PROCESS, StoppedFor, end_with_first_process, forget_first_process

WATCH = "first-process-watch"
needs_states = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@pytest.fixture(autouse=True)
def no_watch_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (FIRST_PROCESS, "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "")  # which is then given back as it was
        monkeypatch.delenv(name)
    yield
    forget_first_process()
    for thread in watches():
        thread.join(30)
        assert not thread.is_alive()


def watches() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == WATCH]


def started_by(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lightning starts the process of another device."""
    monkeypatch.setenv(FIRST_PROCESS, str(first))
    monkeypatch.setenv("LOCAL_RANK", "1")


class Ending:
    """Takes the place of `os._exit`."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.has_come = threading.Event()

    def __call__(self, code: int) -> None:
        self.codes.append(code)
        self.has_come.set()


@pytest.mark.parametrize("local_rank", [None, "0"])
def test_a_process_that_no_other_started_names_itself(local_rank: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose environment names another run's first process, from which it was started."""
    monkeypatch.setenv(FIRST_PROCESS, "1")
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    end_with_first_process(exit_code=4, end=pytest.fail)
    assert os.environ[FIRST_PROCESS] == str(os.getpid())
    assert watches() == []


def test_a_process_ends_with_the_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    started_by(os.getppid(), monkeypatch)
    ending = Ending()
    end_with_first_process(exit_code=4, end=ending)
    assert not ending.has_come.wait(0.6)
    monkeypatch.setattr(os, "getppid", lambda: 1)  # as of a process whose parent is gone
    assert ending.has_come.wait(30)
    assert ending.codes == [4]
    assert capsys.readouterr().err == "error: the first process of this run is gone; this one ends\n"


def test_a_process_ends_whose_first_was_gone_before_it_could_look(monkeypatch: pytest.MonkeyPatch) -> None:
    started_by(2**22 + 1, monkeypatch)  # more than Linux numbers processes
    ending = Ending()
    end_with_first_process(exit_code=4, end=ending)
    assert ending.has_come.wait(30)
    assert ending.codes == [4]


@pytest.mark.parametrize("is_late", [False, True])
def test_a_process_whose_work_is_done_does_not_mind_the_first(
    monkeypatch: pytest.MonkeyPatch, *, is_late: bool
) -> None:
    started_by(os.getppid(), monkeypatch)
    end_with_first_process(exit_code=4, end=pytest.fail)
    (watch,) = watches()
    if not is_late:
        forget_first_process()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    if is_late:  # the first ended a moment before
        monkeypatch.setattr(first_process, "TIME_TO_FAIL", 600)
        watch.join(1)
        forget_first_process()
    watch.join(30)
    assert not watch.is_alive()


def test_a_process_of_torchrun_asks_itself_to_stop_when_torchrun_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process of the run is another child of torchrun, and a variable of another run may be about."""
    started_by(1, monkeypatch)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        end_with_first_process(exit_code=4, end=pytest.fail)
        assert not asked.wait(0.6)
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert asked.wait(30)
    finally:
        signal.signal(signal.SIGTERM, before)


@needs_states
def test_a_process_ends_where_the_first_is_stopped(
    another_process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ending = Ending()
    monkeypatch.setattr(os, "getppid", lambda: another_process.pid)
    monkeypatch.setattr(first_process, "FROZEN_SECONDS", 1)
    started_by(another_process.pid, monkeypatch)
    end_with_first_process(exit_code=4, end=ending)
    assert not ending.has_come.wait(1.5)  # one that runs is let alone
    another_process.send_signal(signal.SIGSTOP)
    assert ending.has_come.wait(30)
    assert ending.codes == [4]
    said = "error: the first process of this run has been stopped (SIGSTOP) for 1 s; this one ends\n"
    assert capsys.readouterr().err == said


def test_time_in_which_none_of_the_processes_ran_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-Z and fg a look may find another process still stopped: a single look is a quarter of a second."""
    states = iter(["T", "T", "T", "S", "T", "T", "T", "T"])
    monkeypatch.setattr(first_process, "_state", lambda pid: next(states))
    stopped = StoppedFor(1, limit=1.0)
    assert [stopped.is_too_long() for _ in range(8)] == [False] * 7 + [True]
