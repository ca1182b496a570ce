"""A loader whose epochs begin where the run stands, and whose workers' failures name the image."""

import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, get_worker_info

from unmask.data.dataset import IDLE, LoaderDataset, RawBatch, SampleKey
from unmask.data.worker_signals import (
    BatchDeadline,
    WorkerDeaths,
    dead_worker,
    end_workers_at_exit,
    leave_signals_to_main,
)

_TIME_TO_BE_SEEN = 1.0  # seconds
_deaths = WorkerDeaths()  # of all loaders: the process has one handler of the signal
_loaders: WeakSet["DeferredDataLoader"] = WeakSet()  # any of which may be read when a worker of another dies


class WorkerFailed(RuntimeError):  # noqa: N818  (no error of the program)
    """A loader worker died or returns nothing; the message names the image it held."""


class DeferredDataLoader(DataLoader[RawBatch]):
    """Begins an epoch when its first batch is asked for, where torch begins it when the iterator is made.

    Lightning makes the first iterator while optimizers are configured (`Trainer.estimated_stepping_batches`), before it
    restores how far an interrupted run had come. Workers would by then prefetch the first samples of the first epoch.

    Args:
        dataset: What is read.
        batches: The keys of each batch.
        num_workers: Processes that read; 0 reads in this one.
        timeout: Seconds a batch may take before the worker counts as hanging; 0 waits for ever.
        persistent_workers: Keep the workers from epoch to epoch.

    Raises:
        WorkerFailed: When a batch is asked for: a worker has died or hangs.
    """

    def __init__(
        self,
        dataset: LoaderDataset,
        batches: Iterable[list[SampleKey]],
        *,
        num_workers: int,
        timeout: float = 0.0,
        persistent_workers: bool = False,
    ) -> None:
        self.batch_timeout = timeout
        self._hanging: str | None = None  # says which worker was given up
        dataset.progress = torch.tensor([[0, IDLE]] * num_workers).share_memory_() if num_workers else None
        super().__init__(
            dataset,
            batch_sampler=batches,
            collate_fn=_as_fetched,
            num_workers=num_workers,
            persistent_workers=persistent_workers and num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_begin_work,
        )
        _loaders.add(self)

    def __iter__(self) -> Iterator[RawBatch]:  # type: ignore[override]  # torch names the class of its own iterator
        if not self.num_workers:
            yield from super().__iter__()
            return
        end_workers_at_exit()
        deadline = BatchDeadline(self.batch_timeout, pids=self._pids, note=self._note_hanging)
        try:
            with self._naming_images(), _deaths.raised_here(matters=_is_in_use):
                pass  # those since the epoch before
            with self._naming_images(), deadline.running():  # not where deaths are raised: processes are started
                batches = super().__iter__()
            while True:
                with self._naming_images(), deadline.running(), _deaths.raised_here(matters=_is_in_use):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch
        finally:
            deadline.end()

    @contextmanager
    def _naming_images(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:  # the latter where a connection to a killed worker ends
            pid = dead_worker(error) if isinstance(error, RuntimeError) else self._find_dead()
            if self._hanging is None and pid is None:
                raise
            sentence = self._hanging or _explain_death(pid or 0)
            _loaders.discard(self)
            raise WorkerFailed(sentence) from error

    def _find_dead(self) -> int | None:
        """A worker of this loader that has ended, which may show a moment after its connections are closed."""
        limit = time.monotonic() + _TIME_TO_BE_SEEN
        while (dead := self._dead()) is None and time.monotonic() < limit:
            time.sleep(0.01)
        return dead

    def _dead(self) -> int | None:
        alive = {process.pid for process in multiprocessing.active_children()}
        return next((pid for pid in self._pids() if pid and pid not in alive), None)

    def _pids(self) -> list[int]:
        return [pid for pid, _ in self._progress]

    @property
    def _progress(self) -> list[list[int]]:
        assert isinstance(self.dataset, LoaderDataset)
        return [] if self.dataset.progress is None else self.dataset.progress.tolist()

    def image_read_by(self, pid: int) -> str | None:
        """Names the image that a worker of this loader is reading; None for other processes and between two images."""
        assert isinstance(self.dataset, LoaderDataset)
        held = [index for worker, index in self._progress if worker == pid and index != IDLE]
        return self.dataset.dataset.name_of(held[0]) if held else None

    def _note_hanging(self) -> None:
        if (dead := self._dead()) is not None:
            self._hanging = _explain_death(dead)
            return
        names = [name for pid in self._pids() if (name := self.image_read_by(pid))]
        self._hanging = (
            f"a loader worker returned nothing for {self.batch_timeout:g} s "
            f"{_reading(names)}; check that storage, or raise data.worker_timeout"
        )


def _is_in_use(pid: int) -> bool:
    return any(pid in loader._pids() for loader in _loaders)


def _explain_death(pid: int) -> str:
    """Says which image a worker was reading when it died, of whichever loader it was."""
    names = [name for loader in _loaders if (name := loader.image_read_by(pid))]
    return f"a loader worker died {_reading(names)}; if memory ran out, lower data.num_workers or global_batch_size"


def _reading(names: Sequence[str]) -> str:
    return f"while reading {' and '.join(names)}" if names else "between two images"


def _begin_work(worker: int) -> None:
    leave_signals_to_main()
    info = get_worker_info()
    assert info is not None
    assert isinstance(info.dataset, LoaderDataset)
    assert info.dataset.progress is not None
    info.dataset.progress[worker, 0] = os.getpid()


def _as_fetched(batch: Any) -> Any:
    return batch
