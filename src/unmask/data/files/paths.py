"""Paths of very many files."""

import os
from array import array
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Int, UInt8
from torch import Tensor


class PathList:
    """Paths kept as one block of bytes, which all worker processes share.

    A list of str takes more than twice the memory, and each forked worker comes to hold a copy of it, since reading a
    str writes its reference count.

    Args:
        paths: In their order; read once, so that a generator need never hold them all.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        block, ends = bytearray(), array("q", [0])
        for path in paths:
            block += os.fsencode(path)
            ends.append(len(block))
        bounds = torch.frombuffer(ends, dtype=torch.int64)
        bytes_of_all = torch.frombuffer(block, dtype=torch.uint8) if block else torch.empty(0, dtype=torch.uint8)
        self._set(bytes_of_all, bounds[:-1], bounds[1:])

    @classmethod
    def from_block(
        cls, block: UInt8[Tensor, " bytes"], starts: Int[Tensor, " n"], ends: Int[Tensor, " n"]
    ) -> "PathList":
        """Takes paths that stand in a block of file-system encoded bytes already, which is not copied."""
        made = cls.__new__(cls)
        made._set(block, starts, ends)
        return made

    def _set(self, block: Tensor, starts: Tensor, ends: Tensor) -> None:
        self.block, self.starts, self.ends = block, starts, ends

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self.block[self.starts[index] : self.ends[index]].numpy().tobytes())

    def __iter__(self) -> Iterator[str]:
        for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True):
            yield os.fsdecode(self.block[start:end].numpy().tobytes())

    def take(self, indices: Int[Tensor, " m"]) -> "PathList":
        """The paths at these places; the block is shared, not copied."""
        return PathList.from_block(self.block, self.starts[indices], self.ends[indices])
