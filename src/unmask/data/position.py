"""Where a training stands, so that a continued run reads on from there."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from unmask.optim.accumulation import device_batch_size


class BatchShape(NamedTuple):
    """What gives the number of a batch its meaning."""

    images_per_batch: int  # over all devices
    num_images: int  # in the training split


class DevicePlace(NamedTuple):
    """Which of the devices of a run this one is, and in how many parts each computes its images of a step."""

    rank: int = 0
    world_size: int = 1
    accumulated: int = 1

    @classmethod
    def of(cls, trainer: Any) -> "DevicePlace":
        """As Lightning's trainer says; alone where there is none."""
        if not trainer:
            return cls()
        return cls(trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)

    def batch_size(self, global_batch_size: int) -> int:
        """Images a device computes at a time.

        Raises:
            ValueError: The global batch does not divide.
        """
        return device_batch_size(global_batch_size, num_devices=self.world_size, accumulated=self.accumulated)

    def settings_for(self, num_images: int) -> str:
        """Writes the settings by which a set trains that is smaller than a batch: about two batches an epoch."""
        half = max(1, num_images // 2)
        parts = self.world_size * self.accumulated
        if parts == 1:
            return f"global_batch_size={half} or less"
        if parts <= num_images:
            return f"global_batch_size={max(parts, half // parts * parts)}"
        if self.world_size <= num_images:
            batch = max(self.world_size, half // self.world_size * self.world_size)
            return f"global_batch_size={batch} trainer.accumulate_grad_batches=null"
        return f"trainer.devices=1 global_batch_size={half} trainer.accumulate_grad_batches=null"


class TrainingPosition:
    """Tells the epoch about to begin and the batches of it done before an interruption, as the trainer counts them.

    Args:
        trainer: Lightning's, whose progress says it; None outside a run, which stands at the beginning.
        shape: Of the batches of this run.
        saved: `BatchShape` of the checkpoint the run continues from, as a dictionary, if it does.
    """

    def __init__(self, trainer: Any, shape: BatchShape, saved: Mapping[str, int] | None) -> None:
        self.trainer, self.shape = trainer, shape
        self.saved = saved

    def __call__(self) -> tuple[int, int]:
        """Returns epoch and batches.

        Raises:
            ValueError: The checkpoint was written within an epoch of other batches, whose number means nothing here.
        """
        if self.trainer is None:
            return 0, 0
        loop = self.trainer.fit_loop
        epoch, done = loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.processed
        if done and self.saved and dict(self.saved) != self.shape._asdict():
            there, here = BatchShape(**self.saved), self.shape
            raise ValueError(
                f"the checkpoint was written after {done} batches of an epoch of {there.num_images:,} images in "
                f"batches of {there.images_per_batch} over all devices, and this run has {here.num_images:,} images in "
                f"batches of {here.images_per_batch}; continue with the same data, global_batch_size and "
                "accumulation, or from a checkpoint of an epoch's end"
            )
        return epoch, done


def beginning() -> tuple[int, int]:
    """The position of what is read from the first batch."""
    return 0, 0
