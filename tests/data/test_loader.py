import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.data.dataset import InMemoryDataset, LoaderCrop, LoaderDataset, RawBatch, SampleKey
from unmask.data.files.pixels import Pixels
from unmask.data.loader import DeferredDataLoader, WorkerFailed
from unmask.data.worker_signals import BatchDeadline, WorkerDeaths

BATCHES = [[SampleKey(0, 0), SampleKey(0, 1), SampleKey(0, 2)], [SampleKey(0, 3), SampleKey(0, 4), SampleKey(0, 5)]]


class _Sleepy(InMemoryDataset):
    """Fails at one image in one way, and crops the others one by one, as files are read."""

    def __init__(self, *, hangs_at: int = -1, dies_at: int = -1, fails_at: int = -1) -> None:
        super().__init__(torch.zeros(6, 3, 4, 4, dtype=torch.uint8), torch.zeros(6, dtype=torch.long), ())
        self.hangs_at, self.dies_at, self.fails_at = hangs_at, dies_at, fails_at

    def read(self, keys: Sequence[SampleKey], crop: Any) -> RawBatch:
        for key in keys:
            if key.index == self.hangs_at:
                time.sleep(60)
            if key.index == self.dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if key.index == self.fails_at:
                raise RuntimeError("out of memory")
            crop(self.images[key.index], key)
        return super().read(keys, crop)


class _AsItIs(LoaderCrop):
    def __call__(self, image: Pixels, key: SampleKey) -> Pixels:
        return image


def make_loader(*, num_workers: int = 1, timeout: float = 0.0, **faults: int) -> DeferredDataLoader:
    dataset = LoaderDataset(_Sleepy(**faults), _AsItIs())
    return DeferredDataLoader(dataset, BATCHES, num_workers=num_workers, timeout=timeout)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_begins_with_its_first_batch_not_with_the_iterator(num_workers: int) -> None:
    asked: list[str] = []

    class Batches:
        def __iter__(self) -> Any:
            asked.append("begun")
            yield from BATCHES

    loader = DeferredDataLoader(LoaderDataset(_Sleepy(), _AsItIs()), Batches(), num_workers=num_workers)
    batches = iter(loader)
    assert not asked
    assert [batch.index.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5]]
    assert asked == ["begun"]


def test_a_batch_that_comes_in_time_costs_no_worker() -> None:
    noted: list[str] = []
    deadline = BatchDeadline(300.0, pids=list, note=lambda: noted.append("late"))
    with deadline.running():
        time.sleep(1.3)  # over a second, after which the watch looks for the first time
    deadline.end()
    assert not noted


@pytest.mark.slow
def test_a_hanging_worker_ends_the_reading_in_time_and_its_image_is_named() -> None:
    began = time.monotonic()
    with pytest.raises(WorkerFailed, match=r"nothing for 1 s while reading image 4; .*worker_timeout"):
        list(make_loader(timeout=1.0, hangs_at=4))
    assert time.monotonic() - began < 15


@pytest.mark.slow
def test_a_frozen_worker_ends_the_reading_in_time() -> None:
    loader = make_loader(timeout=2.0)
    batches = iter(loader)
    next(batches)
    ((worker, _),) = loader.dataset.progress.tolist()
    os.kill(worker, signal.SIGSTOP)  # the second batch waits in memory that it has to hand over
    with pytest.raises(WorkerFailed, match="a loader worker returned nothing for 2 s"):
        list(batches)


@pytest.mark.slow
@pytest.mark.parametrize("dies_at", [0, 5])
def test_a_dead_worker_is_reported_with_its_image(dies_at: int) -> None:
    with pytest.raises(WorkerFailed, match=f"a loader worker died while reading image {dies_at}; if memory ran out"):
        list(make_loader(dies_at=dies_at, timeout=60.0))


@pytest.mark.slow
def test_a_worker_that_dies_between_two_batches_fails_the_next_and_not_what_is_computed_meanwhile() -> None:
    loader = make_loader(num_workers=2, hangs_at=5, timeout=60.0)
    batches = iter(loader)
    next(batches)
    kill_the_second(loader)
    sum(range(10**6))  # in place of what is computed on the first batch
    with pytest.raises(WorkerFailed, match="while reading image 5"):
        next(batches)


def kill_the_second(loader: DeferredDataLoader) -> None:
    """Kills the second worker once it reads image 5, and waits until it is gone."""
    limit = time.monotonic() + 60
    while loader.dataset.progress[1, 1] != 5:
        assert time.monotonic() < limit
        time.sleep(0.01)
    worker = int(loader.dataset.progress[1, 0])
    os.kill(worker, signal.SIGKILL)
    while _is_running(worker):
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_persistent_worker_that_is_gone_fails_the_next_epoch(*, is_frozen: bool) -> None:
    dataset = LoaderDataset(_Sleepy(), _AsItIs())
    loader = DeferredDataLoader(dataset, BATCHES, num_workers=2, timeout=2.0, persistent_workers=True)
    assert len(list(loader)) == 2
    ((worker, _), _) = loader.dataset.progress.tolist()
    os.kill(worker, signal.SIGSTOP if is_frozen else signal.SIGKILL)
    said = "returned nothing for 2 s" if is_frozen else "died between two images"
    with pytest.raises(WorkerFailed, match=f"a loader worker {said}"):
        list(loader)


@pytest.mark.slow
def test_a_connection_that_a_dead_worker_closes_is_its_death(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make_loader(num_workers=2)
    batches = iter(loader)
    next(batches)
    ((worker, _), _) = loader.dataset.progress.tolist()
    monkeypatch.setattr("unmask.data.loader._deaths", WorkerDeaths())  # the signal comes too late to be heard
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.kill(worker, signal.SIGKILL)

    def fail(*_: Any) -> Any:
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter.__next__", fail)
    try:
        with pytest.raises(WorkerFailed, match="a loader worker died"):
            next(batches)
    finally:
        signal.signal(signal.SIGCHLD, before)


def _is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_the_image_of_a_worker_of_another_loader_is_named() -> None:
    failing, other = make_loader(num_workers=2, hangs_at=5), make_loader(num_workers=1, hangs_at=0, timeout=60.0)
    batches = iter(failing)
    next(batches)
    kill_the_second(failing)
    with pytest.raises(WorkerFailed, match="while reading image 5"):
        next(iter(other))


_LEFT_OPEN = """
import multiprocessing, sys, torch
from unmask.data.dataset import InMemoryDataset, LoaderCrop, LoaderDataset, SampleKey
from unmask.data.loader import DeferredDataLoader, WorkerFailed
from unmask.data.worker_signals import WorkerDeaths

class AsItIs(LoaderCrop):
    def __call__(self, image, key):
        return image

def main():
    global batches
    images = InMemoryDataset(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1, dtype=torch.long), ())
    keys = [[SampleKey(0, 0)]] * 50
    loader = DeferredDataLoader(LoaderDataset(images, AsItIs()), keys, num_workers=2, persistent_workers=True)
    batches = iter(loader)
    next(batches)
    sys.exit(3)

if sys.argv[1] == "main":
    main()
child = multiprocessing.get_context("fork").Process(target=main)
child.start()
child.join()
sys.exit(child.exitcode)
"""


@pytest.mark.slow
@pytest.mark.parametrize("process", ["main", "child"])
def test_a_process_that_ends_within_an_epoch_does_not_wait_for_its_workers(process: str) -> None:
    command = [sys.executable, "-c", _LEFT_OPEN, process]
    assert subprocess.run(command, timeout=60, check=False, capture_output=True).returncode == 3


@pytest.mark.slow
def test_other_errors_of_a_worker_pass_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="out of memory") as raised:
        list(make_loader(fails_at=4))
    assert not isinstance(raised.value, WorkerFailed)
