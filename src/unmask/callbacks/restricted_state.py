"""Keeps a checkpoint that a run resumes from out of the rest of the disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

_SUFFIX = ".ckpt"  # of what Lightning's checkpoint callback writes, and removes again
_FOLDER = "dirpath"  # where it wrote


class RestrictedState(Callback):
    """Forgets, before other callbacks read their state from a checkpoint, every path outside the run's own folder.

    Lightning's `ModelCheckpoint` reads from the file which checkpoints were the best, and removes them when better ones
    come: a file from elsewhere could name any file or folder there.
    """

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint.get("callbacks")
        if isinstance(states, Mapping):
            folder = trainer.default_root_dir
            checkpoint["callbacks"] = {name: restrict_paths(state, folder) for name, state in states.items()}


def restrict_paths(state: Any, folder: str | Path) -> Any:
    """Copies the state of a callback without paths that lead out of `folder` or to something that is no checkpoint.

    A setting whose name ends in `path` becomes "" then; an entry whose name is such a path is left out.
    """
    root = Path(folder).resolve()
    if isinstance(state, list | tuple):
        return [restrict_paths(item, root) for item in state]
    if not isinstance(state, Mapping):
        return state
    restricted = {}
    for name, value in state.items():
        if isinstance(name, str) and _may_be_path(name) and not _is_checkpoint_inside(name, root):
            continue
        if isinstance(name, str) and name.endswith("path"):
            restricted[name] = value if _may_stay(name, value, root) else ""
        else:
            restricted[name] = restrict_paths(value, root)
    return restricted


def _may_stay(name: str, value: Any, root: Path) -> bool:
    if not isinstance(value, str):
        return False
    return _is_inside(value, root) if name == _FOLDER else _is_checkpoint_inside(value, root)


def _may_be_path(name: str) -> bool:
    return name.endswith(_SUFFIX) or Path(name).is_absolute() or ".." in Path(name).parts or "://" in name


def _is_checkpoint_inside(value: str, root: Path) -> bool:
    return value.endswith(_SUFFIX) and _is_inside(value, root) and not Path(value).is_dir()


def _is_inside(value: str, root: Path) -> bool:
    return "://" not in value and "\0" not in value and Path(value).resolve().is_relative_to(root)
