import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from unmask.data.dataset import InMemoryDataset, LoaderCrop, LoaderDataset, RawBatch, SampleKey
from unmask.data.files.pixels import Pixels
from unmask.data.loader import DeferredDataLoader

BATCHES = [[SampleKey(0, 0), SampleKey(0, 1), SampleKey(0, 2)], [SampleKey(0, 3), SampleKey(0, 4), SampleKey(0, 5)]]


class _Sleepy(InMemoryDataset):
    """Ends or stops its process at one image, and crops the others one by one, as files are read."""

    def __init__(self, *, hangs_at: int = -1, dies_at: int = -1) -> None:
        super().__init__(torch.zeros(6, 3, 4, 4, dtype=torch.uint8), torch.zeros(6, dtype=torch.long), ())
        self.hangs_at, self.dies_at = hangs_at, dies_at

    def read(self, keys: Sequence[SampleKey], crop: Any) -> RawBatch:
        for key in keys:
            if key.index == self.hangs_at:
                time.sleep(60)
            if key.index == self.dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
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


@pytest.mark.slow
def test_a_hanging_worker_ends_the_reading_in_time_and_its_image_is_named() -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"nothing for 1 s while the workers were reading image 4; .*worker_timeout"):
        list(make_loader(timeout=1.0, hangs_at=4))
    assert time.monotonic() - began < 15


@pytest.mark.slow
@pytest.mark.parametrize("dies_at", [0, 5])
def test_a_dead_worker_is_reported_with_its_image(dies_at: int) -> None:
    loader = make_loader(dies_at=dies_at)
    with pytest.raises((ValueError, RuntimeError)) as raised:  # torch reports it wherever the process stands
        list(loader)
    said = str(raised.value) if isinstance(raised.value, ValueError) else loader.explain(raised.value)
    assert f"a loader worker died while the workers were reading image {dies_at}; " in str(said)
    assert "set data.num_workers below 1" in str(said)


_LEFT_OPEN = """
import multiprocessing, sys, torch
from unmask.data.dataset import InMemoryDataset, LoaderCrop, LoaderDataset, SampleKey
from unmask.data.loader import DeferredDataLoader

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


def test_other_errors_pass_as_they_are() -> None:
    assert make_loader().explain(RuntimeError("out of memory")) is None
