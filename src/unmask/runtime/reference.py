"""Curves of good runs: where a run finds them, and the command that makes them."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from unmask.callbacks.durable_checkpoint import LAST_NAME
from unmask.callbacks.reference import write_reference
from unmask.runtime.config import config_directory
from unmask.runtime.own_commands import interpreter
from unmask.runtime.resume import read_resume_point
from unmask.runtime.typed import typed

_BESIDE = ".reference.json"  # in place of .yaml
_OWN_NAME = "reference.json"  # in the folder of a run
_log = logging.getLogger("unmask")


def find_reference(config: DictConfig) -> str | None:
    """The file a run is compared with: the one it is given, else the one that lies beside its experiment, if any."""
    if config.reference is not None:
        return str(config.reference)
    experiment = HydraConfig.get().runtime.choices.get("experiment") if HydraConfig.initialized() else None
    path = config_directory() / "experiment" / f"{experiment}{_BESIDE}"
    return str(path) if path.is_file() else None


def tell_how_to_compare(config: DictConfig, run_dir: Path) -> None:
    """Says how later runs are compared with one that has ended well, where it had nothing to be compared with."""
    has_curves = (config.callbacks or {}).get("verdict") is not None and (run_dir / "csv" / "metrics.csv").is_file()
    if config.reference is None and has_curves:
        own = run_dir / _OWN_NAME
        made = shlex.join([interpreter(), "-m", "unmask.reference", str(run_dir), f"out={own}"])
        _log.info(f"to compare other seeds with it: {made}, then {shlex.quote(typed('reference', own))}")


def make_reference(arguments: Sequence[str]) -> None:
    """Writes the curves of finished runs of one recipe, which differ in their seeds alone, to `out=FILE`.

    Args:
        arguments: Folders of runs, and `out=FILE`.

    Raises:
        ValueError: No folder or no file is named, the file exists, or the runs cannot be put together.
    """
    folders = [Path(argument) for argument in arguments if not argument.startswith("out=")]
    named = [Path(argument.removeprefix("out=")) for argument in arguments if argument.startswith("out=")]
    if not folders or len(named) != 1:
        raise ValueError("name finished runs and one file: python -m unmask.reference RUN RUN RUN out=FILE")
    if named[0].exists():
        raise ValueError(f"{named[0]} exists; name another file, or remove it")
    for folder in folders:
        if not (folder / "csv" / "metrics.csv").is_file():
            raise ValueError(f"{folder} holds no csv/metrics.csv; make the run with logger=csv, or logger=default")
    points = [read_resume_point(folder / "checkpoints" / LAST_NAME) for folder in folders]
    settings, images = [point.settings for point in points], points[0].fingerprints
    for folder, point in zip(folders[1:], points[1:], strict=True):
        others = point.settings
        differing = [key for key in settings[0] if others.get(key) != settings[0][key] and not key.endswith("seed")]
        if differing:
            raise ValueError(
                f"{folder} and {folders[0]} are not of one recipe: {differing[0]} is {others.get(differing[0])} and "
                f"{settings[0][differing[0]]}; a reference takes runs that differ in their seeds alone"
            )
        if point.fingerprints != images:
            raise ValueError(f"{folder} and {folders[0]} are of other images; a reference takes runs of the same ones")
    tables = [folder / "csv" / "metrics.csv" for folder in folders]
    write_reference(named[0], tables, settings=settings[0], images=images)
    _log.info(f"{named[0]}: {len(folders)} run(s); compare a run with them by reference={named[0]}")
