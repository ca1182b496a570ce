"""lightning-bolts 0.7.0, made to run on today's Lightning.

The package was abandoned for pytorch-lightning 1.9. While it is imported, `pytorch_lightning` stands for
`lightning.pytorch`, so that its classes are classes of the Lightning in use and 1.9.5, which pip installs with it, is
never run. One module that Lightning has moved is put in its place.
"""

import sys
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np

_OLD, _NEW = "pytorch_lightning", "lightning.pytorch"
_MOVED = {f"{_OLD}.utilities.apply_func": "lightning_utilities.core.apply_func"}
_NUMPY_NAMES = ("object", "bool", "int", "float")  # bolts adds to numpy those of them it lacks


def import_bolts() -> ModuleType:
    """Imports `pl_bolts` with all its parts, and leaves everything else as it was.

    Raises:
        ValueError: lightning-bolts is not installed.
    """
    if "pl_bolts" in sys.modules and sys.modules["pl_bolts"] is not None:
        return sys.modules["pl_bolts"]
    with _lightning_under_its_old_name(), _kept_globals():
        try:
            return import_module("pl_bolts")
        except ModuleNotFoundError as error:
            if error.name != "pl_bolts":
                raise
            raise ValueError(
                "data=imagenet_bolts needs lightning-bolts; pip install 'unmask[bolts]', or use data=imagenet, which "
                "makes the same splits without it"
            ) from None


@contextmanager
def kept_numpy_state() -> Iterator[None]:
    """Gives numpy's global generator back as it was: bolts seeds it whenever it makes a split."""
    state = np.random.get_state()  # noqa: NPY002 (not ours)
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Shows no warning: bolts calls all of itself "under review", by a filter of its own."""
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore")
        yield


class _OldName(MetaPathFinder, Loader):
    """Finds `pytorch_lightning.x` as `lightning.pytorch.x`."""

    def __init__(self) -> None:
        self.specs: dict[str, Any] = {}

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.partition(".")[0] == _OLD else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(_MOVED.get(spec.name, _NEW + spec.name.removeprefix(_OLD)))
        self.specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """The module has run under its own name; the import system has only overwritten where it came from."""
        if module.__spec__ is not None:
            module.__spec__ = self.specs[module.__spec__.name]


@contextmanager
def _lightning_under_its_old_name() -> Iterator[None]:
    finder = _OldName()
    hidden = {name: sys.modules.pop(name) for name in _old_modules()}
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in _old_modules():
            del sys.modules[name]
        sys.modules.update(hidden)


def _old_modules() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == _OLD]


@contextmanager
def _kept_globals() -> Iterator[None]:
    """Undoes what the import does to others: names added to numpy, urllib's browser disguise, filters of warnings."""
    opener = urllib.request._opener  # type: ignore[attr-defined]
    known = set(vars(np))
    with quiet_warnings():
        try:
            yield
        finally:
            urllib.request.install_opener(opener)
            for name in set(_NUMPY_NAMES) & set(vars(np)) - known:
                delattr(np, name)
