"""Finds where in a network numbers stop being finite, and how large its gradient is."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from unmask.types import ImageBatch

IN_THE_IMAGES = "the images"


def find_first_nonfinite(module: LightningModule, batch: ImageBatch, batch_idx: int) -> tuple[str | None, float]:
    """Computes the training loss of a batch once more and watches every layer; generators must stand as they did.

    Returns:
        The name of the first layer with an output that is not finite, `IN_THE_IMAGES`, or None where all outputs are
        finite; and the loss.
    """
    if not bool(batch.image.isfinite().all()):
        return IN_THE_IMAGES, float("nan")
    found: list[str] = []
    eagerly = torch.compiler.set_stance("force_eager")  # hooks within compiled blocks would not be called
    with eagerly, _watched(module, found), _unlogged(module), torch.no_grad():
        loss = module.training_step(batch, batch_idx)
    return (found[0] if found else None), float(loss)  # type: ignore[arg-type]


def compute_gradient_norm(module: LightningModule, batch: ImageBatch, batch_idx: int) -> float:
    """Computes the training loss of a batch and the norm of its gradient; generators must stand as they did."""
    with _unlogged(module):
        module.training_step(batch, batch_idx).backward()  # type: ignore[union-attr]
    return gradient_norm(module)


def gradient_norm(module: LightningModule) -> float:
    """The norm of all gradients together; not finite where one of them is not."""
    norm, _ = gradient_norm_and(module, torch.ones((), device=module.device))
    return norm


def gradient_norm_and(module: LightningModule, flag: Tensor) -> tuple[float, bool]:
    """Reads the norm of all gradients together and a flag, which lies where they do; the device is waited for once."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    norms = torch._foreach_norm(gradients) if gradients else []  # one kernel
    *parts, is_set = torch.stack([norm.float() for norm in (*norms, flag)]).tolist()
    return math.nan if any(math.isnan(part) for part in parts) else math.hypot(*parts), bool(is_set)


@contextmanager
def _watched(module: LightningModule, found: list[str]) -> Iterator[None]:
    def watch(name: str) -> Any:
        def note(_: Any, __: Any, output: Any) -> None:
            if any(not bool(tensor.isfinite().all()) for tensor in _tensors(output)):
                found.append(name)

        return note

    hooks = [part.register_forward_hook(watch(name)) for name, part in module.named_modules() if name]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _unlogged(module: LightningModule) -> Iterator[None]:
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del module.log, module.log_dict  # the class's own come back


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
