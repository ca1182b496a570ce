"""Where a setting comes from: `python run.py ... explain=optimizer.lr`."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unmask.runtime.builders import build_data
from unmask.runtime.config import config_directory, configuration_names, names_experiment
from unmask.runtime.constructor_defaults import show_constructor_defaults
from unmask.runtime.follow_data import SET_HERE, follow_training_images
from unmask.runtime.follow_steps import follow_steps
from unmask.runtime.mistakes import names_near, one_sentence
from unmask.runtime.resolvers import register_resolvers

_REFERENCE = re.compile(r"\$\{(?:oc\.select:)?([A-Za-z_][\w.]*)(?=[,}])")
_ALIAS = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")
_INDENT = "  "
_MISSING = "???"  # listed for its comment, to be set elsewhere


class _Setter(NamedTuple):
    """One of the places that set a value; later ones win."""

    place: str
    written: str


def explain(config_name: str, key: str, overrides: Sequence[str]) -> list[str]:
    """Says what a key is, which file or argument set it, which it replaced, and the same of all it refers to.

    Args:
        config_name: `run` or `eval`.
        key: Dotted.
        overrides: The rest of the command line.

    Returns:
        Lines to print.

    Raises:
        ValueError: The configuration has no such key.
    """
    register_resolvers()
    show_constructor_defaults()
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = compose(config_name, overrides=list(overrides))
        loaded = GlobalHydra.instance().config_loader().loaded  # type: ignore[attr-defined]  # of our own loader
    counted, reason = _follow_images(config, overrides) if config_name == "run" else ([], None)
    explained = _Explained(config, [*_set_by_files(loaded), *_set_by_arguments(overrides), *counted])
    if not explained.has(key):
        near = names_near(key, [name for names in configuration_names(config_name, overrides) for name in names])
        raise ValueError(
            f"explain={key} names no key; nearest: {', '.join(near)}" if near else f"no key is called {key}"
        )
    lines = list(explained.lines(key, set()))
    has_rule = any("${fit_" in line for line in lines)
    return (
        [*lines, f"(no images were counted, so rules give what large sets get: {reason})"]
        if reason and has_rule
        else lines
    )


def _follow_images(config: DictConfig, overrides: Sequence[str]) -> tuple[list[tuple[str, _Setter]], str | None]:
    """Lets a configuration follow its images as the run would, where they can be read; says why where they cannot."""
    try:
        data = build_data(config)
        num_train_images = data.num_train_images
        follow_training_images(config, data, names_experiment=names_experiment(overrides))
        follow_steps(config, num_train_images=num_train_images)
    except (OmegaConfBaseException, HydraException, ValueError) as error:
        return [], one_sentence(error, (), ())
    counted = [name for name in SET_HERE if config[name] is not None]
    return [(name, _Setter("the program", "counted in the images or the model")) for name in counted], None


class _Explained:
    def __init__(self, config: DictConfig, set_by: Sequence[tuple[str, _Setter]]) -> None:
        self.config = config
        self.set_by = set_by

    def has(self, key: str) -> bool:
        return self._node(self._aliased(key)) is not None

    def lines(self, key: str, told: set[str], indent: str = "") -> Iterator[str]:
        """Explains a key and then, deeper, what it refers to; each key once."""
        home = self._aliased(key)
        if home != key:
            yield f"{indent}{key} is {home}"
        if home in told:
            return
        told.add(home)
        yield f"{indent}{home} = {self._value(home)}"
        setters = [setter for name, setter in self.set_by if name == home]
        deeper = indent + _INDENT
        if not setters:
            yield f"{deeper}set by {self._default_of(home)}"
        for number, setter in enumerate(reversed(setters)):
            yield f"{deeper}{'in place of' if number else 'set by'} {setter.place}: {setter.written}"
        for reference in dict.fromkeys(_REFERENCE.findall(self._written(home))):
            yield from self.lines(reference, told, deeper)

    def _aliased(self, key: str) -> str:
        """The key under the name of the node that its parents stand for: `method.backbone.depth` is `model.depth`."""
        parts = key.split(".")
        for count in range(1, len(parts)):
            alias = _ALIAS.fullmatch(self._written(".".join(parts[:count])))
            if alias:
                return self._aliased(".".join([alias[1], *parts[count:]]))
        return key

    def _node(self, key: str) -> Any:
        *parents, name = key.split(".")
        node: Any = self.config
        for parent in parents:
            if not isinstance(node, DictConfig) or node._is_none() or parent not in node:
                return None
            node = node._get_node(parent)
        usable = isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation()
        return node._get_node(name) if usable and name in node.keys() else None  # noqa: SIM118  (`in` hides "???")

    def _written(self, key: str) -> str:
        node = self._node(key)
        return "" if node is None or not node._is_interpolation() else str(node._value())

    def _value(self, key: str) -> str:
        try:
            value = OmegaConf.select(self.config, key)
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
            return _short(value)
        except (OmegaConfBaseException, ValueError):
            return "known once the run has begun"

    def _default_of(self, key: str) -> str:
        parent = self._node(key.rpartition(".")[0])
        target = parent.get("_target_") if isinstance(parent, DictConfig) else None
        return "no file" if target is None else f"the constructor of {target}, by default"


def _set_by_files(loaded: Sequence[tuple[str, str, str, Any]]) -> Iterator[tuple[str, _Setter]]:
    for folder, name, package, content in loaded:
        path = Path(folder.removeprefix("file://")) / (name if name.endswith(".yaml") else f"{name}.yaml")
        lines = _lines_of(path, package)
        for key, value in _leaves(content, ""):
            if not key.startswith("hydra.") and value != _MISSING:
                line = lines.get(key)
                yield key, _Setter(f"{_shown(path)}{f':{line}' if line else ''}", _short(value))


def _set_by_arguments(overrides: Sequence[str]) -> Iterator[tuple[str, _Setter]]:
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group.replace("/", ".")
        for name, _ in _leaves(override.value(), key):
            yield name, _Setter("the command line", str(override.input_line))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields every key of nested containers, dotted, with its value; nodes too."""
    if path:
        yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))


def _lines_of(path: Path, package: str) -> dict[str, int]:
    """The line of each key of a file, dotted as in the composed configuration; none where the file is no plain YAML."""
    if not path.is_file():
        return {}
    root = yaml.compose(path.read_text(encoding="utf-8"))
    return dict(_lines_within(root, "" if package in ("", "_global_") else package))


def _lines_within(node: Any, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, inner in node.value:
            name = f"{prefix}.{key.value}" if prefix else str(key.value)
            yield name, key.start_mark.line + 1
            yield from _lines_within(inner, name)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 160 else f"{text[:157]}..."  # characters


def _shown(path: Path) -> str:
    top = config_directory().parent
    return str(path.relative_to(top)) if path.is_relative_to(top) else str(path)
