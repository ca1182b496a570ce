"""Keeps a file from asking for more memory than its own weights could fill."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

_SPARE_BYTES = 2**30  # for buffers that a network computes, and for a larger image than the file's
_MAX_MODULES = 10_000  # ViT-H has some 700


@contextmanager
def bounded_networks(num_bytes: int) -> Iterator[None]:
    """Stops networks from growing beyond the weights of the file they are built for.

    A parameter is counted before it is filled, so that memory which is asked for is not yet touched.

    Args:
        num_bytes: Of the file's weights.

    Raises:
        ValueError: What is built inside has more bytes of parameters and buffers than that and a GiB, or more parts
            than any network.
    """
    growth = _Growth(num_bytes + _SPARE_BYTES)
    with ExitStack() as hooks:
        for register, hook in (
            (register_module_parameter_registration_hook, growth.add_tensor),
            (register_module_buffer_registration_hook, growth.add_tensor),
            (register_module_module_registration_hook, growth.add_module),
        ):
            hooks.callback(register(hook).remove)
        yield


class _Growth:
    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.num_modules = 0

    def add_tensor(self, module: nn.Module, name: str, tensor: Tensor | None) -> None:
        self.num_bytes += 0 if tensor is None else tensor.numel() * tensor.element_size()
        if self.num_bytes > self.max_bytes:
            raise ValueError(
                f"the file describes a network of more than {self.max_bytes / 2**30:.3g} GiB, which its own weights "
                "could not fill; refused"
            )

    def add_module(self, module: nn.Module, name: str, part: Any) -> None:
        self.num_modules += 1
        if self.num_modules > _MAX_MODULES:
            raise ValueError(f"the file describes a network of more than {_MAX_MODULES:,} parts; refused")
