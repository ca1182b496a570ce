"""Random numbers that are looked up by key, not drawn from a stream.

A draw depends on (seed, stream, epoch, sample index) alone, so it does not change with the batch size, the number of
workers or devices, or an interruption of the run, and it is computed for a whole batch on the batch's device.
"""

import functools
import zlib

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed

# The odd constants of the SplitMix64 finalizer (Steele et al., 2014), as the signed integers torch works with.
_GOLDEN = -7046029254386353131
_MIX_1 = -4658895280553007687
_MIX_2 = -7723592293110705685
_FLOAT_BITS = 24  # a float32 holds 24 bits exactly


def sample_keys(seed: int, stream: str, epoch: int | Int[Tensor, " b"], index: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Hashes what a draw may depend on to one 64-bit key a sample.

    Args:
        seed: The run's seed.
        stream: What the draw is for; two streams of one sample are independent.
        epoch: Passes over the data so far; a constant for draws that never change.
        index: The samples' numbers in their data set.
    """
    epochs = torch.as_tensor(epoch, dtype=torch.int64, device=index.device)
    return _mix(_mix(_stream_of_seed(seed, stream) ^ epochs) ^ index)


def keyed_uniform(keys: Int[Tensor, " b"], count: int) -> Float[Tensor, "b {count}"]:
    """Looks up `count` float32 numbers a key, uniform in [0, 1)."""
    counter = torch.arange(1, count + 1, device=keys.device)
    bits = _mix(keys[:, None] + counter * _GOLDEN)
    return _shift_right(bits, 64 - _FLOAT_BITS).to(torch.float32) * 2.0**-_FLOAT_BITS


def keyed_permutation(key: int, count: int) -> Int[Tensor, "{count}"]:
    """Shuffles 0 .. count - 1; the order is a function of `key` alone."""
    generator = torch.Generator().manual_seed(key)
    return torch.randperm(count, generator=generator)


def stream_key(seed: int, stream: str, *counters: int) -> int:
    """Hashes a seed, a stream and counters (epoch, step, rank) to one key, as `sample_keys` does for samples."""
    key = torch.tensor(_stream_of_seed(seed, stream))
    for counter in counters:
        key = _mix(_mix(key) ^ counter)
    return int(_mix(key))


def rows_of_devices(count: int) -> tuple[int, slice]:
    """Counts the rows of all devices where each has `count`, and tells which of them are this device's.

    What all devices draw alike for every row, of which each keeps its own, does not depend on their number. Images are
    dealt out in turn, so a device has every n-th row.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return count, slice(None)
    num_devices = distributed.get_world_size()
    return count * num_devices, slice(distributed.get_rank(), None, num_devices)


@functools.lru_cache(maxsize=64)
def _stream_of_seed(seed: int, stream: str) -> int:
    return int(_mix(_mix(torch.tensor(seed)) ^ zlib.crc32(stream.encode())))


def _mix(bits: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    bits = bits + _GOLDEN
    bits = (bits ^ _shift_right(bits, 30)) * _MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * _MIX_2
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Int[Tensor, "*shape"], count: int) -> Int[Tensor, "*shape"]:
    """Shifts without copying the sign bit, which torch's `>>` on signed integers does."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
