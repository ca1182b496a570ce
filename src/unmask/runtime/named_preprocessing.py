"""Prepares images for another program's classifier as its file says."""

import copy
import logging

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from unmask.runtime.checkpoint import LoadedModule

_log = logging.getLogger("unmask")
_SETTINGS = ("crop_pct", "interpolation")


def prepare_as_named(
    config: DictConfig, loaded: LoadedModule, path: str, *, eval_crop_pct: float | None = None
) -> DictConfig:
    """Puts the crop and the interpolation that a file names below what the user chose, and says so in one line.

    Args:
        config: Of the evaluation; left as it is.
        loaded: The classifier.
        path: Of its file, for the line.
        eval_crop_pct: `eval.crop_pct`, where an evaluation has it.

    Returns:
        The configuration to prepare images by.

    Raises:
        ValueError: The file names what cannot be computed, and the user chose nothing else.
    """
    named = loaded.preprocessing
    if not named.source:
        return config
    chosen = [name for name in _SETTINGS if config[name] is not None or _is_typed(f"data.{name}")]
    chosen += ["crop_pct"] if eval_crop_pct is not None else []
    settings = named.settings(chosen=chosen)
    backbone = loaded.module.exported_backbone
    height, width = backbone.image_size
    said = [f"{name}={value}" for name, value in settings.items()]
    said += [f"{name} {' '.join(f'{value:.4g}' for value in values)}" for name, values in _statistics(backbone)]
    yours = f"; yours: {', '.join(dict.fromkeys(chosen))}" if chosen else ""
    note = f" ({named.note})" if named.note and "crop_pct" in settings else ""
    _log.info(f"{path}: images of {height}x{width} px prepared as {named.source} says: {', '.join(said)}{note}{yours}")
    prepared = copy.deepcopy(config)
    for name, value in settings.items():
        prepared[name] = value
    return prepared


def _statistics(backbone: object) -> list[tuple[str, tuple[float, ...]]]:
    return [(name, tuple(getattr(backbone, f"pixel_{name}"))) for name in ("mean", "std")]


def _is_typed(path: str) -> bool:
    """Whether this job's command line sets it."""
    if not HydraConfig.initialized():
        return False
    return any(override.lstrip("+").startswith(f"{path}=") for override in HydraConfig.get().overrides.task)
