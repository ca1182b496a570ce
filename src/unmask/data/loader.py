"""A loader whose epochs begin where the run stands."""

from collections.abc import Iterator

from torch.utils.data import DataLoader

from unmask.data.dataset import RawBatch


class DeferredDataLoader(DataLoader[RawBatch]):
    """Begins an epoch when its first batch is asked for, where torch begins it when the iterator is made.

    Lightning makes the first iterator while optimizers are configured (`Trainer.estimated_stepping_batches`), before it
    restores how far an interrupted run had come. Workers would by then prefetch the first samples of the first epoch.
    """

    def __iter__(self) -> Iterator[RawBatch]:  # type: ignore[override]  # torch names the class of its own iterator
        yield from super().__iter__()
