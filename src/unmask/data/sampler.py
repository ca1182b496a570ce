"""The order in which samples are visited."""

import math
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler

from unmask.data.dataset import FILLER_EPOCH, SampleKey
from unmask.randomness import keyed_permutation, stream_key


class KeyedBatchSampler(Sampler[list[SampleKey]]):
    """Cuts each epoch's permutation into batches and hands this device its slice of each.

    The permutation is a function of (seed, epoch), so the order of samples depends neither on the number of devices
    and workers nor on interruptions. No sample is repeated to fill a batch; only a device that gets none of the last
    ones reads one that is another's, of the epoch `FILLER_EPOCH`, since all devices must take equally many batches.

    Args:
        num_samples: Size of the split.
        device_batch_size: Images a device takes at a time.
        rank, world_size: This device and the number of devices.
        seed: Key of the permutation; None keeps the stored order.
        drop_last: Leave out the samples that do not fill an optimizer step.
        position: Tells (epoch, batches of it already done) whenever an epoch begins.
        accumulated: Batches that make one optimizer step.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        device_batch_size: int,
        rank: int,
        world_size: int,
        seed: int | None,
        drop_last: bool,
        position: Callable[[], tuple[int, int]],
        accumulated: int = 1,
    ) -> None:
        self.num_samples = num_samples
        self.device_batch_size = device_batch_size
        self.rank, self.world_size = rank, world_size
        self.seed = seed
        self.drop_last = drop_last
        self.position = position
        self.accumulated = accumulated

    @property
    def step_size(self) -> int:
        """Images all devices take together at a time."""
        return self.device_batch_size * self.world_size

    def __len__(self) -> int:
        if self.drop_last:
            return self.num_samples // (self.step_size * self.accumulated) * self.accumulated
        return math.ceil(self.num_samples / self.step_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, done = self.position()
        if done >= len(self):  # an interruption at the very end of an epoch
            epoch, done = epoch + 1, 0
        order = self._order(epoch)
        for step in range(done, len(self)):
            step_indices = order[step * self.step_size : (step + 1) * self.step_size]
            own = step_indices[self.rank :: self.world_size].tolist()
            yield [SampleKey(epoch, index) for index in own] or [SampleKey(FILLER_EPOCH, int(step_indices[-1]))]

    def _order(self, epoch: int) -> torch.Tensor:
        if self.seed is None:
            return torch.arange(self.num_samples)
        return keyed_permutation(stream_key(self.seed, "order", epoch), self.num_samples)


class PartOfBatches(Sampler[list[SampleKey]]):
    """Every `num_parts`-th batch of the stored order from the `part`-th on; all parts have equally many.

    Where the batches do not divide, the last parts begin again from the first batch.
    """

    def __init__(self, num_samples: int, batch_size: int, *, part: int, num_parts: int) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.part, self.num_parts = part, num_parts

    def __len__(self) -> int:
        return math.ceil(self._num_batches / self.num_parts)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for step in range(len(self)):
            start = (step * self.num_parts + self.part) % self._num_batches * self.batch_size
            yield [SampleKey(0, index) for index in range(start, min(start + self.batch_size, self.num_samples))]

    @property
    def _num_batches(self) -> int:
        return math.ceil(self.num_samples / self.batch_size)
