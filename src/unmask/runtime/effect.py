"""Refuses settings of the command line that change nothing.

A setting has an effect if another value of it would reach something that the command builds or reads. What it reaches
is found by changing it and resolving the configuration again; what an object was given and makes no use of, the object
says itself (`settings_without_effect`).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_ALWAYS_READ = ("name", "paths")  # where a run's folder is
_ANOTHER = "another_value"
_UNRESOLVED = "unresolved"


@runtime_checkable
class ReportsUnusedSettings(Protocol):
    """An object that knows which of its arguments the others make idle."""

    def settings_without_effect(self) -> Mapping[str, str]:
        """Names such arguments, dotted where they lie within another argument, each with the reason."""
        ...


class Unused(NamedTuple):
    """Part of a configuration that is built or read and yet has no effect."""

    path: str
    reason: str


def require_effect(
    config: DictConfig,
    *,
    read: Collection[str],
    built: Mapping[str, object],
    idle: Mapping[str, str],
    by: str,
) -> None:
    """Refuses a setting of this job's command line that has no effect on it.

    Args:
        config: As composed.
        read: The top-level keys that the command builds or reads; others serve to be referred to from these.
        built: What was built, by the path of its node.
        idle: Paths whose values this command makes no use of, each with the reason.
        by: The choice that decides what is built, for the message, such as "eval".

    Raises:
        ValueError: The setting and why it does nothing.
    """
    if not HydraConfig.initialized():
        return
    job = HydraConfig.get()
    reason = f"nothing that {by}={job.runtime.choices[by]} uses takes it"
    unused = [Unused(path, why) for path, why in idle.items()]
    for path, thing in built.items():
        if isinstance(thing, ReportsUnusedSettings):
            unused += [Unused(f"{path}.{name}", why) for name, why in thing.settings_without_effect().items()]
    typed: Any = OmegaConf.to_container(job.overrides.task, resolve=False)  # a message must not show what it refers to
    _refuse(config, typed, read=[*read, *_ALWAYS_READ], unused=unused, otherwise=reason)


def _refuse(
    config: DictConfig, overrides: Sequence[str], *, read: Collection[str], unused: Sequence[Unused], otherwise: str
) -> None:
    """Refuses the first of the overrides that has no effect."""
    before = _resolved(config, read)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group.replace("/", ".")
        changed = None if override.is_delete() else _changed(config, key)
        if changed is None:  # a choice of a group that has no node of its own, such as recipe
            continue
        reached = _differences(before, _resolved(changed, read))
        idle = [_covering(path, unused) for path in reached]
        if all(found is not None for found in idle):
            why = next((found.reason for found in idle if found is not None), otherwise)
            raise ValueError(f"{override.input_line} has no effect: {why}; leave it out")


def _changed(config: DictConfig, key: str) -> DictConfig | None:
    """Copies a configuration with another value for one key; None if it has no such key of its own."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    *parents, name = key.split(".")
    node = plain
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if not isinstance(node, dict) or name not in node:
        return None
    value = node[name]
    node[name] = {**value, _ANOTHER: _ANOTHER} if isinstance(value, dict) else _another(value)
    changed: DictConfig = OmegaConf.create(plain)
    return changed


def _another(value: Any) -> Any:
    """A different value of the same kind, so that what is computed from it still can be."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value + max(1.0, abs(value))  # 1e30 + 1 is 1e30
    if isinstance(value, int):
        return value + 1
    if isinstance(value, list) and value:
        return [_another(item) for item in value]
    return _ANOTHER if value is None or not isinstance(value, str) else f"{value}_{_ANOTHER}"


def _resolved(config: DictConfig, read: Collection[str]) -> dict[str, Any]:
    """What the command builds or reads, by dotted path; a part whose values cannot be computed stands for itself."""
    found: dict[str, Any] = {}
    for key in read:
        if key in config:
            found |= dict(_leaves(config, key, key))
    return found


def _leaves(parent: DictConfig | ListConfig, key: Any, path: str) -> Iterator[tuple[str, Any]]:
    try:
        value = parent[key] if not OmegaConf.is_missing(parent, key) else None
    except (OmegaConfBaseException, ValueError, TypeError):  # a rule refused what it was given
        yield path, _UNRESOLVED
        return
    if isinstance(value, DictConfig):
        yield path, "a node"
        for name in value:
            yield from _leaves(value, name, f"{path}.{name!s}")
    elif isinstance(value, ListConfig):
        yield path, len(value)
        for number in range(len(value)):
            yield from _leaves(value, number, f"{path}.{number}")
    else:
        yield path, value


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [
        path for path in {**before, **after} if path not in before or path not in after or before[path] != after[path]
    ]


def _covering(path: str, unused: Sequence[Unused]) -> Unused | None:
    return next((part for part in unused if f"{path}.".startswith(f"{part.path}.")), None)
