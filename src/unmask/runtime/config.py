"""Finds and composes the configuration."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import unmask
from unmask.runtime.constructor_defaults import show_constructor_defaults
from unmask.runtime.resolvers import GROUP_OF_BASES, register_resolvers

_OF_A_CHECKPOINT = ("demo", "eval", "export")  # commands that compose only with one named


def config_directory() -> Path:
    """The folder `conf`: inside an installed package, else at the top of the repository."""
    package = Path(unmask.__file__).parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def compose_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """Composes `run`, `eval` or `export` as the command line would."""
    register_resolvers()
    show_constructor_defaults()
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = compose(name, overrides=list(overrides), return_hydra_config=False)
    if names_experiment(overrides) and "follow_data" in config:
        config.follow_data = bool(config.follow_data)  # there is no job that could be asked for its experiment
    return config


def names_experiment(overrides: Sequence[str]) -> bool:
    """Whether a command line chooses an experiment."""
    chosen = [override.partition("=")[2] for override in overrides if override.lstrip("+").startswith("experiment=")]
    return any(choice not in ("", "null") for choice in chosen)


def with_own_data(overrides: Sequence[str]) -> list[str]:
    """Lets `data.root=DIR` change the data of a checkpoint's own run where the user names no other data."""
    if any(override.startswith(("data=", "experiment=")) for override in overrides):
        return list(overrides)
    return [f"++own_{override}" if override.startswith("data.") else override for override in overrides]


def with_probes(overrides: Sequence[str]) -> list[str]:
    """Lets `probes.NAME.KEY=VALUE` name a probe that no file has."""
    return [f"++{override}" if override.startswith("probes.") else override for override in overrides]


def configuration_names(name: str, overrides: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Lists the keys of a configuration, dotted, and the groups: what a misspelled name is compared with.

    Args:
        name: Of the command.
        overrides: Of the user. Choices of groups that exist decide which keys there are.
    """
    folders = [path for path in config_directory().iterdir() if path.is_dir() and path.name != GROUP_OF_BASES]
    with_checkpoint = ["ckpt_path=none"] if name in _OF_A_CHECKPOINT else []
    chosen = [override for override in overrides if _is_choice(override)]
    try:
        config = compose_config(name, [*with_checkpoint, *chosen])
    except (HydraException, OmegaConfBaseException):  # of another command, or in need of what is missing
        config = compose_config(name, with_checkpoint)
    return _dotted_keys(config), sorted(path.name for path in folders)


def list_experiments() -> list[str]:
    """The names under `conf/experiment`, for `experiment=NAME`."""
    return sorted(path.stem for path in (config_directory() / "experiment").glob("*.yaml"))


def _is_choice(override: str) -> bool:
    group, _, choice = override.partition("=")
    return (config_directory() / group / f"{choice}.yaml").is_file()


def _dotted_keys(config: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for key in config:
        name = f"{prefix}{key!s}"
        keys.append(name)
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            keys += _dotted_keys(node, f"{name}.")
    return keys
