"""Counts where a training step waits for its device, on a machine that has none.

The step runs on torch's meta device, whose tensors have no values: whoever asks for one (`.item()`, `bool(tensor)`,
`.tolist()`, `nonzero`) fails there, and what is copied from the host is seen as it is copied. On a GPU each of these
would hold the host back until the device has done all it was given.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unmask.methods.backbone_module import BackboneModule
from unmask.optim.param_groups import decay_groups
from unmask.types import ImageBatch


class HostSyncError(RuntimeError):
    """A step asked its device for a value, or handed it one from pageable memory."""


class _Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        made = [item for item in tree_leaves(result) if isinstance(item, Tensor)]
        if any(item.is_meta for item in made) and any(item.ndim and not item.is_meta for item in given):
            raise HostSyncError(f"{func} copies from the host to the device")
        return result


def require_no_host_sync(step: Callable[[], object]) -> None:
    """Runs a step whose tensors are on the meta device.

    Raises:
        HostSyncError: It waits for the device.
    """
    try:
        with _Watch():
            step()
    except HostSyncError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        if "meta" in str(error).lower():
            raise HostSyncError(f"a value is read from the device: {error}") from error
        raise


def training_step(module: BackboneModule, *, num_images: int, clip: float = 1.0) -> Callable[[], None]:
    """A whole step of a module that is moved to the meta device: loss, gradient, clipping, optimizer.

    What Lightning logs at its intervals is left out.
    """
    module.to("meta").train()
    module.log_training = MethodType(lambda *_: None, module)  # type: ignore[method-assign]
    optimizer = torch.optim.AdamW(decay_groups(module), lr=1e-4)
    shape = (num_images, module.backbone.in_channels, *module.backbone.image_size)
    labels, index = torch.zeros(num_images, dtype=torch.int64, device="meta"), torch.arange(num_images, device="meta")
    batch = ImageBatch(torch.zeros(shape, device="meta"), labels, index)

    def step() -> None:
        loss = module.training_step(batch, 0)
        assert isinstance(loss, Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()

    return step
