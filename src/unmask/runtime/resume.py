"""Finds what a run continues from, and whether it may."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import get_object
from omegaconf import DictConfig

from unmask.callbacks.durable_checkpoint import LAST_NAME, PREVIOUS_NAME, find_damage
from unmask.callbacks.run_settings import RunSettings
from unmask.callbacks.run_status import read_status
from unmask.interchange.files import read_weights, require_local
from unmask.interchange.record import RECORD_KEY, shown
from unmask.runtime.started_processes import is_first_process

RESUME_CHOICES = ("auto", "never", "must")
_OPTIMIZER_ADVICE = "start a new run from its weights by method.init_from=FILE to train on with other settings"
_NUM_DIFFERENCES_SHOWN = 4
_MAX_COUNT = 2**63  # of steps

# What the run may be continued with another value of; everything else is part of what the run is.
_SILENT = (  # where things lie and what is written down
    "allow_partial",
    "backbone_width",
    "callbacks.",
    "ckpt_path",
    "data.cache_dir",
    "debug",
    "experiment",
    "follow_data",
    "hydra",
    "logger.",
    "method.init_from",
    "name",
    "num_train_images",
    "paths.",
    "probes",
    "reference",
    "resume",
    "resumed_step",
    "train_image_side",
    "trainer.default_root_dir",
    "trainer.enable_",
    "trainer.logger",
    "use_ema_weights",
)
_FREE = (  # from the next step on
    "checkpoint_every_",
    "data.max_bad_fraction",
    "data.num_workers",
    "data.on_bad_image",
    "data.worker_timeout",
    "images_per_device",
    "monitor",
    "on_nonfinite",
    "on_spike",
    "method.schedule.",
    "schedule.",
    "trainer.",
)
_FIXED = ("trainer.limit_train_batches", "trainer.overfit_batches", "schedule._target_", "method.schedule._target_")

_log = logging.getLogger("unmask")


class ResumePoint(NamedTuple):
    """A checkpoint that a run can continue from."""

    path: Path
    step: int  # optimizer steps done
    epochs_done: int
    images_seen: int | None
    settings: Mapping[str, Any]  # dotted names of the run's settings; empty where the file names none
    fingerprints: Mapping[str, str]

    def describe(self) -> str:
        seen = "" if self.images_seen is None else f", {self.images_seen:,} images seen"
        return f"resumed from {self.path} (step {self.step:,}, {self.epochs_done} epochs done{seen})"


def find_resume_point(config: DictConfig) -> ResumePoint | None:
    """Chooses the checkpoint a run begins with, as `resume` and `ckpt_path` say; None begins at step 0.

    `resume=auto` takes the newest whole checkpoint of the run's folder: `last.ckpt`, the one before it, then the
    others by age. Where the folder has none it takes `ckpt_path`.

    Raises:
        ValueError: `resume=must` finds nothing, no file of the folder is whole, `resume=never` would write over an
            earlier run, or the choice is unknown.
    """
    if config.resume not in RESUME_CHOICES:
        raise ValueError(
            f"resume must be auto, never or must, got {config.resume!r}; a file is named by ckpt_path=FILE"
        )
    folder = Path(config.paths.run_dir) / "checkpoints"
    files = _newest_first(folder)
    if config.resume == "never" or not files:
        if config.resume == "must" and config.ckpt_path is None:
            raise ValueError(
                f"resume=must, but {folder} holds no checkpoint; name the run's folder by hydra.run.dir=DIR"
            )
        if config.ckpt_path is None:
            _require_unused(folder, files, config)
            return None
        require_local(config.ckpt_path)
        point = read_resume_point(Path(config.ckpt_path).expanduser())
        if point.path.absolute().parent != folder.absolute():
            _require_unused(folder, files, config)
        return point
    return _first_whole(files)


def read_resume_point(path: Path) -> ResumePoint:
    """Reads where a checkpoint stands.

    Raises:
        ValueError: It is damaged, would run code, or is no checkpoint of a training run.
    """
    damage = find_damage(path)
    if damage is not None:
        raise ValueError(f"{path} {damage}")
    try:
        content = read_weights(path).content
        loops = content["loops"]["fit_loop"]
        own = content["callbacks"].get(RunSettings.__name__, {})
        images_seen = content.get(RECORD_KEY, {}).get("images_seen")
        return ResumePoint(
            path=path,
            step=_count(content["global_step"]),
            epochs_done=_count(loops["epoch_progress"]["current"]["processed"]),
            images_seen=None if images_seen is None else _count(images_seen),
            settings=_mapping(own.get("settings", {})),
            fingerprints=_mapping(own.get("fingerprints", {})),
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a checkpoint a run can continue from (it lacks {error}); to start from its weights use "
            "method.init_from=FILE"
        ) from error


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MAX_COUNT:
        raise TypeError(f"a number of steps or images, and holds {shown(value)}")
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"settings by name, and holds {shown(value)}")
    return value


def require_same_run(point: ResumePoint, settings: Mapping[str, Any]) -> list[str]:
    """Compares the settings of a run with those it is continued with.

    Returns:
        The changes that take effect, one line each.

    Raises:
        ValueError: A setting that makes the run what it is has another value.
    """
    if not point.settings:
        return []
    changed = [
        name
        for name in sorted({*point.settings, *settings}, key=lambda name: (name.count("."), name))
        if point.settings.get(name) != settings.get(name)
    ]
    refused = [name for name in changed if not name.startswith(_FREE) or name.startswith(_FIXED)]
    if refused:
        shown = [_change(point, settings, name) for name in refused[:_NUM_DIFFERENCES_SHOWN]]
        raise ValueError(
            f"{point.path} was trained with other settings, which a run cannot be continued with: {'; '.join(shown)}. "
            f"Leave them as they were, or {_OPTIMIZER_ADVICE}"
        )
    return [_change(point, settings, name) for name in changed if not name.startswith("method.")]


def require_same_images(point: ResumePoint, fingerprints: Mapping[str, str]) -> None:
    """Refuses to continue on other images than the run was begun with."""
    other = [split for split, saved in point.fingerprints.items() if fingerprints.get(split, saved) != saved]
    if other:
        raise ValueError(
            f"{point.path} was trained on other images: those of the {' and '.join(other)} split have changed since; "
            f"restore the files it was started with, or {_OPTIMIZER_ADVICE}"
        )


def is_complete(point: ResumePoint, config: DictConfig) -> bool:
    """Whether a run has nothing left to do."""
    status = read_status(Path(config.paths.run_dir))
    most = config.trainer.max_epochs
    return status is not None and status.get("state") == "complete" and most is not None and point.epochs_done >= most


def settings_of_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Lists the settings that are compared when the run is continued, by dotted names."""
    places = tuple(f"data.{name}" for name in get_object(config["data"]["_target_"]).place_settings)
    return {name: value for name, value in _flat(config, "") if not name.startswith((*_SILENT, *places))}


def _first_whole(files: Iterable[Path]) -> ResumePoint:
    reasons = []
    for path in files:
        try:
            point = read_resume_point(path)
        except ValueError as error:
            reasons.append(str(error))
            continue
        if reasons and is_first_process():
            _log.warning(f"{'; '.join(reasons)}; {path.name} is used instead")
        return point
    raise ValueError(f"no checkpoint can be continued from: {'; '.join(reasons)}; choose another folder for a new run")


def _newest_first(folder: Path) -> list[Path]:
    names = [path.name for path in folder.glob("*.ckpt") if not path.name.startswith(".")]
    first = [name for name in (LAST_NAME, PREVIOUS_NAME) if name in names]
    others = [folder / name for name in names if name not in first]
    return [folder / name for name in first] + sorted(others, key=lambda path: path.lstat().st_mtime, reverse=True)


def _require_unused(folder: Path, files: list[Path], config: DictConfig) -> None:
    if files and not config.trainer.get("fast_dev_run"):
        raise ValueError(
            f"{folder} holds the checkpoints of an earlier run, which this one would replace; continue it by "
            "resume=auto, or choose another folder by hydra.run.dir=DIR"
        )


def _change(point: ResumePoint, settings: Mapping[str, Any], name: str) -> str:
    return f"{name} {shown(point.settings.get(name))} in the checkpoint, {shown(settings.get(name))} in this run"


def _flat(node: Any, name: str) -> Iterable[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        yield name, node
        return
    for key, value in node.items():
        yield from _flat(value, f"{name}.{key}" if name else str(key))
