"""How the blocks of a network are computed in training: compiled, or with less memory."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.checkpoint import checkpoint

_FEWEST_VARIANTS = 128  # a Swin compiles its block anew for each stage and shift, in training and in eval mode
_OPTIONS = ("compile", "activation_checkpointing")


class _HasBlocks(Protocol):
    @property
    def blocks(self) -> Sequence[nn.Module]: ...


class StepOptions(Callback):
    """Compiles blocks or has them computed again in the backward pass, and lays convolutions' weights out for the GPU.

    Names and values in checkpoints stay as they are: a run may be resumed with other options. Blocks are compiled one
    by one, in place (`Module.compile`), so that blocks of one shape share what was compiled, and masks, losses and the
    rest, which are small beside them, stay as they are written. Compiled stochastic depth draws other paths.

    Args:
        compile: Blocks are compiled by torch's inductor at the first step, which takes a minute.
        activation_checkpointing: Of each block the input alone is kept for the backward pass, which computes the block
            again: a third more time for a fraction of the memory; the numbers are the same.
        channels_last: Convolutions' weights lie channels last. Here they embed patches alone.
        backend: By which is compiled, a name of torch's.

    Raises:
        ValueError: As training begins, the module has no blocks.
    """

    def __init__(
        self,
        *,
        compile: bool = False,  # noqa: A002  (the key's name)
        activation_checkpointing: bool = False,
        channels_last: bool = False,
        backend: str = "inductor",
    ) -> None:
        self.compile = compile
        self.activation_checkpointing = activation_checkpointing
        self.channels_last = channels_last
        self.backend = backend

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        blocks = self._blocks(pl_module)
        if self.activation_checkpointing:
            for block in blocks:
                compute_again(block)
        if self.compile:
            limits: Any = torch._dynamo.config
            limits.recompile_limit = max(limits.recompile_limit, _FEWEST_VARIANTS)  # behind it nothing is compiled
            for block in blocks:
                block.compile(backend=self.backend)
        if self.channels_last:
            pl_module.to(memory_format=torch.channels_last)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        for block in self._blocks(pl_module):
            if self.activation_checkpointing:
                del block.forward  # the class's own comes back
            if self.compile:
                block._compiled_call_impl = None

    def _blocks(self, module: Any) -> Sequence[nn.Module]:
        chosen = [name for name in _OPTIONS if getattr(self, name)]
        if not chosen:
            return ()
        with_blocks: _HasBlocks = module
        if not with_blocks.blocks:
            raise ValueError(
                f"trainer.{chosen[0]}=true applies to transformer blocks, and {type(module).__name__}'s backbone names "
                "none; leave it out"
            )
        return with_blocks.blocks


def compute_again(block: nn.Module) -> None:
    """Lets a block keep its input alone and compute itself again in the backward pass, its random numbers included."""
    block.forward = partial(checkpoint, block.forward, use_reentrant=False)
