"""Probes beside a run: `probes.NAME.data=SOURCE probes.NAME.root=DIR`."""

import inspect
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig, OmegaConf

from unmask.callbacks.online_probe import OnlineProbe
from unmask.data.datamodule import ImageDataModule
from unmask.runtime.builders import build
from unmask.runtime.config import compose_config

_OWN = "own"  # names the run's own images where a source is asked for
_OF_THE_PROBE = [name for name in inspect.signature(OnlineProbe).parameters if name not in ("name", "data")]


def build_probes(config: DictConfig, data: ImageDataModule) -> list[OnlineProbe]:
    """Builds the probes of `config.probes`, whose images are read as those of the run: same size, same statistics.

    An entry holds `data`, a choice of the group of that name or "own", settings of that source (`root=DIR`), and
    those of `OnlineProbe`; an entry of null is left out.

    Raises:
        ValueError: An entry names no source, or a setting that neither has.
    """
    entries: Any = OmegaConf.to_container(config.probes, resolve=True)
    return [_probe(name, entry, config, data) for name, entry in entries.items() if entry is not None]


def _probe(name: str, entry: dict[str, Any], config: DictConfig, data: ImageDataModule) -> OnlineProbe:
    source = entry.get("data") if isinstance(entry, dict) else None
    if not isinstance(source, str):
        raise ValueError(f"probes.{name}.data must name a source of labeled images, such as cifar10, or own")
    own = {key: value for key, value in entry.items() if key in _OF_THE_PROBE}
    others = {key: value for key, value in entry.items() if key not in (*own, "data")}
    if source != _OWN:
        data = _source(name, source, others, config, data)
    elif others:
        raise ValueError(f"probes.{name}.{next(iter(others))} has no effect on the run's own images; leave it out")
    return OnlineProbe(name=name, data=data, **own)


def _source(
    name: str, source: str, settings: dict[str, Any], config: DictConfig, like: ImageDataModule
) -> ImageDataModule:
    side = str(list(like.image_size)).replace(" ", "")
    shared = [f"image_size={side}", f"global_batch_size={like.global_batch_size}", f"seed={like.seed}"]
    node = _composed([f"data={source}", *shared]).data
    names = [str(key) for key in node]  # `in` knows no key whose value is still missing
    unknown = [key for key in settings if key not in names]
    if unknown:
        known = ", ".join(sorted(key for key in names if not key.startswith("_")))
        raise ValueError(f"probes.{name}.{unknown[0]} is no setting of data={source}, which has {known}")
    for key, value in settings.items():
        node[key] = value
    missing = sorted(str(key).rpartition(".")[2] for key in OmegaConf.missing_keys(node))
    if missing:
        raise ValueError(f"probes.{name}.{missing[0]} must be given; add probes.{name}.{missing[0]}=VALUE")
    node.pixel_mean, node.pixel_std, node.statistics = list(like.pixel_mean), list(like.pixel_std), "given"
    node.channels = config.data.channels
    built: ImageDataModule = build(node)
    return built


def _composed(overrides: list[str]) -> DictConfig:
    """Composes beside the command that Hydra is running, which allows one configuration at a time."""
    running = get_gh_backup()
    GlobalHydra.instance().clear()
    try:
        return compose_config("run", overrides)
    finally:
        restore_gh_from_backup(running)
