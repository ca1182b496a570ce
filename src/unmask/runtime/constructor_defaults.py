"""Fills a composed configuration with the defaults of the constructors it names.

A value that a constructor has by default stands in its signature alone, not in YAML as well; yet `--cfg job` lists it,
the command line changes it without `+`, and completion and the hints for a misspelled key know it.
"""

import ast
import contextlib
import functools
import hashlib
import inspect
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra._internal import hydra as hydra_internal
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.utils import _locate
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from unmask.atomic_write import atomic_write

_HYDRA = "hydra"  # Hydra's own node
_KEPT_PACKAGES = ("unmask", "lightning", "torch")  # whose constructors change with their versions alone, or are ours


def show_constructor_defaults() -> None:
    """Lets every configuration composed from now on list the defaults of its constructors; safe to call again.

    Hydra offers no hook between merging the files and applying the command line, and makes its loader by name; so this
    name is given the loader below. The versions allowed in pyproject.toml all do this, and a test asks each key.
    """
    hydra_internal.ConfigLoaderImpl = ConstructorDefaultsLoader  # type: ignore[attr-defined]


class ConstructorDefaultsLoader(ConfigLoaderImpl):
    """Hydra's loader, except that a node with a `_target_` gets what its constructor would take by default.

    The defaults join once all files are merged, so that any file sets them, and before the command line is applied, so
    that it may change them. A class that the command line names (`optimizer._target_=...`) is the one that is asked.

    Attributes:
        loaded: The files of the last composition in the order they were merged: folder, name, package, content.
    """

    loaded: list[tuple[str, str, str, Any]]

    def _load_configuration_impl(
        self, config_name: str | None, overrides: list[str], *arguments: Any, **options: Any
    ) -> DictConfig:
        self._targets = _targets_of_overrides(overrides)
        self.loaded = []
        return super()._load_configuration_impl(config_name, overrides, *arguments, **options)

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        result = super()._load_single_config(default, repo)
        content = OmegaConf.to_container(result.config, resolve=False)  # what follows is merged into it
        self.loaded.append((result.path, str(default.config_path), default.package or "", content))
        return result

    def _compose_config_from_defaults_list(self, defaults: Any, repo: Any) -> DictConfig:
        config = super()._compose_config_from_defaults_list(defaults, repo)
        with open_dict(config):
            for key in config:
                if key != _HYDRA:
                    _fill(config._get_node(key), str(key), self._targets)
        return config


@functools.cache
def constructor_defaults(target: str) -> Mapping[str, Any]:
    """The plain defaults of what a `_target_` names, in the order of its signature; none if there is no such thing.

    Numbers, strings, Booleans, None, and lists and mappings of them are plain; tuples become lists. Where a constructor
    hands further arguments on to that of its base class, these are listed too, unless it settles them itself. Those of
    installed packages are kept on disk, since reading them anew imports torch, which no completion can wait for.
    """
    if target.partition(".")[0] not in _KEPT_PACKAGES:
        return _read_defaults(target)
    kept = _kept_defaults()
    if target not in kept:
        kept[target] = dict(_read_defaults(target))
        _keep(kept)
    return kept[target]


def _read_defaults(target: str) -> Mapping[str, Any]:
    try:
        named = _locate(target)
    except (ImportError, ValueError):
        return {}
    found: dict[str, Any] = {}
    settled: set[str] = set()
    for constructor in _constructors(named):
        for parameter in inspect.signature(constructor).parameters.values():
            if parameter.name not in settled and parameter.default is not parameter.empty:
                found[parameter.name] = parameter.default
            settled.add(parameter.name)
        settled |= _passed_on(constructor) or set()
    return {name: _as_container(default) for name, default in found.items() if _is_plain(default)}


@functools.cache
def _kept_defaults() -> dict[str, dict[str, Any]]:
    """What an earlier command has read of the same code; nothing where there is none."""
    try:
        content = json.loads(_kept_file().read_text(encoding="utf-8"))
        return dict(content["defaults"]) if content["code"] == _fingerprint() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _keep(defaults: Mapping[str, Mapping[str, Any]]) -> None:
    with contextlib.suppress(OSError), atomic_write(_kept_file()) as partial:  # a folder that is read-only costs time
        partial.write_text(json.dumps({"code": _fingerprint(), "defaults": defaults}) + "\n", encoding="utf-8")


def _kept_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "unmask" / "constructor_defaults.json"


@functools.cache
def _fingerprint() -> str:
    """Changes with the packages' versions and with any file of ours; imports none of them."""
    ours = Path(__file__).parents[1]
    files = {str(path.relative_to(ours)): path.stat().st_mtime_ns for path in ours.rglob("*.py")}
    versions = {package: version(package) for package in _KEPT_PACKAGES if package != "unmask"}
    described = json.dumps([str(ours), sys.version, versions, sorted(files.items())])
    return hashlib.sha256(described.encode()).hexdigest()


def _fill(node: Any, path: str, targets: Mapping[str, str]) -> None:
    """Adds defaults to a node and to those within it."""
    if isinstance(node, ListConfig) and not node._is_none() and not node._is_missing() and not node._is_interpolation():
        for number in range(len(node)):
            _fill(node._get_node(number), f"{path}.{number}", targets)
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing() or node._is_interpolation():
        return
    for key in list(node):
        _fill(node._get_node(key), f"{path}.{key!s}", targets)
    target = targets.get(path, node._get_node("_target_"))
    if target is not None and not OmegaConf.is_interpolation(node, "_target_"):
        for name, default in constructor_defaults(str(target)).items():
            if name not in node:
                node[name] = default


def _targets_of_overrides(overrides: Iterable[str]) -> dict[str, str]:
    """Finds the classes that a command line names in place of those of the files, by the path of their node."""
    targets: dict[str, str] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if not override.is_sweep_override() and not override.is_delete():
            targets |= _targets_within(override.value(), override.key_or_group)
    return targets


def _targets_within(value: Any, path: str) -> dict[str, str]:
    node, _, last = path.rpartition(".")
    if last == "_target_":
        return {node: str(value)}
    if not isinstance(value, Mapping):
        return {}
    return {
        node: target for key, inner in value.items() for node, target in _targets_within(inner, f"{path}.{key}").items()
    }


def _constructors(named: Any) -> Iterable[Callable[..., Any]]:
    """What is called to build the named thing: a function, or `__init__` of a class and of the bases it hands on to."""
    if not inspect.isclass(named):
        if callable(named):
            yield named
        return
    for ancestor in named.__mro__:
        constructor = ancestor.__dict__.get("__init__")
        if constructor is None or not inspect.isroutine(constructor) or ancestor is object:
            continue
        yield constructor
        if _passed_on(constructor) is None:
            return


@functools.cache
def _passed_on(constructor: Callable[..., Any]) -> set[str] | None:
    """The arguments that `super().__init__(name=..., **further)` settles by name; None if it passes nothing further."""
    try:
        function = ast.parse(textwrap.dedent(inspect.getsource(constructor))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    further = function.args.kwarg if isinstance(function, ast.FunctionDef) else None
    if further is None:
        return None
    for call in ast.walk(function):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
            names = {keyword.arg for keyword in call.keywords}
            if any(keyword.arg is None and ast.unparse(keyword.value) == further.arg for keyword in call.keywords):
                return {name for name in names if name is not None}
    return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return "${" not in value
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(inner) for inner in value)
    return value is None or type(value) in (bool, int, float)


def _as_container(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_container(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_container(inner) for inner in value]
    return value
