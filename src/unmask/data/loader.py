"""A loader whose epochs begin where the run stands, and whose workers' failures name the image."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from unmask.data.dataset import IDLE, LoaderDataset, RawBatch, SampleKey
from unmask.data.worker_signals import end_workers_at_exit, leave_signals_to_main

_FAILED_WORKER = re.compile(r"DataLoader (worker \(pid(?:\(s\))? [\d, ]+\)|timed out)")


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
        ValueError: While it is read: a worker has died or hangs; the images that the workers were reading are named.
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
        dataset.held = torch.full((num_workers,), IDLE).share_memory_() if num_workers else None
        super().__init__(
            dataset,
            batch_sampler=batches,
            collate_fn=_as_fetched,
            num_workers=num_workers,
            timeout=timeout if num_workers else 0.0,
            persistent_workers=persistent_workers and num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=leave_signals_to_main,
        )

    def __iter__(self) -> Iterator[RawBatch]:  # type: ignore[override]  # torch names the class of its own iterator
        if self.num_workers:
            end_workers_at_exit()
        try:
            yield from super().__iter__()
        except RuntimeError as error:
            sentence = self.explain(error)
            if sentence is None:
                raise
            raise ValueError(sentence) from error

    def explain(self, error: BaseException) -> str | None:
        """Says which images the workers were reading when one of them died or hung; None for other errors."""
        assert isinstance(self.dataset, LoaderDataset)
        if self.dataset.held is None or not _FAILED_WORKER.search(str(error)):
            return None
        names = [self.dataset.dataset.name_of(index) for index in self.dataset.held.tolist() if index != IDLE]
        reading = f"while the workers were reading {', '.join(names)}" if names else "between two images"
        if "timed out" in str(error):
            return (
                f"a loader worker returned nothing for {self.timeout:g} s {reading}; check that storage, or raise "
                "data.worker_timeout"
            )
        return (
            f"a loader worker died {reading}; if memory ran out, set data.num_workers below {self.num_workers} or "
            "global_batch_size lower"
        )


def _as_fetched(batch: Any) -> Any:
    return batch
