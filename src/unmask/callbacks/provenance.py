"""Where a checkpoint comes from."""

import os
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from unmask.callbacks.asked_of_modules import ExportsBackbone
from unmask.interchange.record import FORMAT, RECORD_KEY
from unmask.types import ImageBatch

_PACKAGES = ("unmask", "torch", "lightning", "timm")
_CODE = (":(top)src", ":(top)conf", ":(top,glob)*.py")  # what a run is made of, from the top of the repository
_GIT_TIMEOUT = 10.0  # seconds; a working tree on a slow network disk must not hold a run up


class Provenance(Callback):
    """Writes into every full checkpoint, under `unmask`, what made it; plain containers, numbers and strings only.

    The entry holds:
        format: Of the entry, `unmask.interchange.record.FORMAT`.
        record: As given.
        backbone: The exported backbone's kind and settings, which rebuild it; None for a module that exports none.
        versions: Of the packages that decide what the weights mean; None where one is not installed.
        git: `commit` and `is_dirty` of the working directory as training began; None outside a repository.
        images_seen: Training images over all devices, earlier parts of a resumed run included.

    Args:
        record: What is known of the run, as plain containers.

    Raises:
        ValueError: The record holds something `torch.load(weights_only=True)` would refuse.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = to_plain_containers(record, "record")
        self.images_seen = 0
        self._git: dict[str, str | bool] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._git = describe_git() if trainer.is_global_zero else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: ImageBatch, batch_idx: int
    ) -> None:
        self.images_seen += len(batch.image) * trainer.world_size

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        backbone = pl_module.exported_backbone if isinstance(pl_module, ExportsBackbone) else None
        checkpoint[RECORD_KEY] = {
            "format": FORMAT,
            "record": self.record,
            "backbone": None if backbone is None else to_plain_containers(backbone.settings, "backbone.settings"),
            "versions": {package: _version(package) for package in _PACKAGES},
            "git": self._git,
            "images_seen": self.images_seen,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if RECORD_KEY in checkpoint:
            self.images_seen = int(checkpoint[RECORD_KEY]["images_seen"])


def to_plain_containers(value: Any, name: str) -> Any:
    """Copies nested containers as dict and list, and scalars as Python's own types.

    Raises:
        ValueError: A value, named by its path, is of another kind.
    """
    if isinstance(value, Mapping):
        return {_plain_key(key, name): to_plain_containers(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain_containers(item, f"{name}[{position}]") for position, item in enumerate(value)]
    if value is None:
        return None
    # Subclasses (an enum's members, numpy's float64, torch's version) would be pickled as themselves.
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)
    raise ValueError(
        f"{name} is a {type(value).__name__}, which a checkpoint cannot hold; pass numbers, strings, lists and dicts"
    )


def describe_git() -> dict[str, str | bool] | None:
    """Reads the commit of the working directory and whether what runs differs from it; None without git.

    It differs where a tracked file has changed, or where a file that git neither tracks nor ignores lies among the
    code or the configuration; what runs leave elsewhere does not count.
    """
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    added = _git("ls-files", "--others", "--exclude-standard", "--", *_CODE)
    if commit is None or changes is None or added is None:
        return None
    return {"commit": commit, "is_dirty": bool(changes or added)}


def _plain_key(key: Any, name: str) -> str | int:
    if isinstance(key, str):
        return str(key)
    if isinstance(key, int):
        return int(key)
    raise ValueError(f"{name} has the key {key!r}, which a checkpoint cannot hold; use strings or whole numbers")


def _git(*arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # reading must not write the index
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=_GIT_TIMEOUT, check=True, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
