"""The kinds a checkpoint may name, and the classes they stand for.

The table writes itself from the YAML files that are installed with the program or that the user passes by
`--config-dir`: a class that such a file names at some place, `method.decoder` say, is a kind of that place, called by
the last part of its name. What a file of unknown origin names is looked up here and nowhere else, place by place, so
that it leads to a class somebody installed for that very place.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object

from unmask.interchange.record import KIND_KEY, is_plain_text, require_plain, shown
from unmask.runtime.config import config_directory
from unmask.runtime.signatures import require_settings

ConfigPath = tuple[str, ...]  # keys from the root of the composed configuration
Slot = frozenset[ConfigPath]  # places that may hold the same

BACKBONE: Slot = frozenset({("model",)})
METHOD: Slot = frozenset({("method",), ("eval", "classifier")})
DATA: Slot = frozenset({("data",)})

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where PyYAML was built with it: ten times as fast
_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)", re.MULTILINE)
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_OF_INTEREST = re.compile(r"_target_|:\s*[\"']?\$\{[\w.]+\}[\"']?\s*(?:$|[,}#])", re.MULTILINE)
_HYDRA_KEY = "_"  # of a configuration, at the start: `_target_`, `_partial_`, ...


class Choice(NamedTuple):
    """A class, as configuration names it."""

    target: str
    is_partial: bool


class Kinds:
    """What the YAML files below some folders name, by place.

    Args:
        directories: Folders of configuration, as Hydra searches them.
    """

    def __init__(self, directories: Iterable[Path]) -> None:
        # A file that replaces single values of others (`@package _global_`) may leave `_partial_` to them.
        self._whole: dict[ConfigPath, dict[str, bool]] = defaultdict(dict)
        self._overlaid: dict[ConfigPath, dict[str, bool | None]] = defaultdict(dict)
        self._references: dict[ConfigPath, set[ConfigPath]] = defaultdict(set)
        for directory in directories:
            for file in sorted(directory.rglob("*.yaml")):
                self._read(file, file.relative_to(directory).parent.parts)

    def find(self, slot: Slot, kind: Any) -> Choice:
        """Looks a kind up.

        Raises:
            ValueError: No configuration names it at this place, or several classes share the name.
        """
        choices = self._choices(slot)
        found = [choice for choice in choices if _kind(choice.target) == kind]
        place = _name(slot)
        if not found:
            known = ", ".join(sorted({_kind(choice.target) for choice in choices})) or "none"
            raise ValueError(
                f"the file names the kind {shown(kind)} for {place}, which no configuration knows there (known: "
                f"{known}); pass the folder whose YAML names it by --config-dir"
            )
        if len(found) > 1:
            targets = " and ".join(sorted(choice.target for choice in found))
            raise ValueError(f"the kind {shown(kind)} of {place} could be {targets}; rename one of them")
        return found[0]

    def kind_of(self, slot: Slot, target: str) -> str | None:
        """The kind that leads to a class at this place; None where no configuration names it.

        Raises:
            ValueError: The kind would lead to another class.
        """
        kind = _kind(target)
        choices = [choice.target for choice in self._choices(slot) if _kind(choice.target) == kind]
        if target in choices and len(choices) == 1:
            return kind
        if choices:
            raise ValueError(
                f"{_name(slot)} is {target}, and a checkpoint would name it {kind} as it names "
                f"{', '.join(sorted({*choices} - {target}))}; rename the class"
            )
        return None

    def below(self, slot: Slot, key: str) -> Slot:
        """The places a key of a node leads to, references to other groups followed."""
        found: set[ConfigPath] = set()
        waiting = [(*place, key) for place in slot]
        while waiting:
            place = waiting.pop()
            if place not in found:
                found.add(place)
                waiting += self._references.get(place, ())
        return frozenset(found)

    def _choices(self, slot: Slot) -> list[Choice]:
        whole = {target: is_partial for place in slot for target, is_partial in self._whole.get(place, {}).items()}
        choices = dict(whole)
        for place in slot:
            for target, is_partial in self._overlaid.get(place, {}).items():
                if target not in whole:
                    inherited = any(self._whole.get(place, {}).values()) if is_partial is None else is_partial
                    choices[target] = choices.get(target, False) or inherited
        return [Choice(target, is_partial) for target, is_partial in choices.items()]

    def _read(self, file: Path, group: ConfigPath) -> None:
        text = file.read_text(encoding="utf-8")
        if not _OF_INTEREST.search(text):  # most experiments set numbers alone, and reading YAML takes its time
            return
        named = _PACKAGE.search(text)
        package = group if named is None or named[1] == "_group_" else _package(named[1])
        content = yaml.load(text, Loader=_LOADER)
        is_overlay = package != group
        for place, node in _nodes(content, package):
            if isinstance(node, str):
                reference = _REFERENCE.fullmatch(node)
                if reference:
                    self._references[place].add(tuple(reference[1].split(".")))
            elif "_target_" in node:
                target, is_partial = str(node["_target_"]), node.get("_partial_")
                if is_overlay:
                    self._overlaid[place][target] = is_partial
                else:
                    self._whole[place][target] = bool(is_partial)


def installed_kinds() -> Kinds:
    """The kinds of the installed configuration, and of the folder a running command was given by `--config-dir`."""
    return _kinds_below(tuple(_directories()))


def to_record(node: Mapping[str, Any], slot: Slot) -> dict[str, Any]:
    """Writes a resolved node of the configuration with kinds in place of targets.

    A class that no configuration names keeps its own full name as its kind, under which nothing is found again: its
    weights can be loaded, the object cannot be rebuilt.

    Raises:
        ValueError: Its kind would lead to another class.
    """
    kinds = installed_kinds()
    target = node.get("_target_")
    record: dict[str, Any] = {}
    if target is not None:
        record[KIND_KEY] = kinds.kind_of(slot, str(target)) or str(target)
    for key, value in node.items():
        if key.startswith(_HYDRA_KEY):
            continue
        if isinstance(value, Mapping):
            record[key] = to_record(value, kinds.below(slot, key))
        elif not isinstance(value, str) or is_plain_text(value):
            record[key] = value
    return record


def unlisted(record: Mapping[str, Any], place: str) -> Iterator[str]:
    """Names the objects of a record that no file can rebuild, as `place: class`."""
    kind = record.get(KIND_KEY)
    if isinstance(kind, str) and "." in kind:
        yield f"{place}: {kind}"
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from unlisted(value, f"{place}.{key}")


def from_record(node: Any, slot: Slot) -> dict[str, Any]:
    """Turns a node of a file into one that can be built: every kind found, every setting checked.

    Raises:
        ValueError: It names something that is not installed for that place, or holds a setting its class does not have.
    """
    place = _name(slot)
    if not isinstance(node, Mapping):
        raise ValueError(f"the file describes {place} by {shown(node)} and not by a kind and its settings; refused")
    require_plain(node, place)
    return _configured(node, slot, installed_kinds())


def _configured(node: Mapping[str, Any], slot: Slot, kinds: Kinds) -> dict[str, Any]:
    choice = kinds.find(slot, node.get(KIND_KEY))
    settings = {
        key: _configured(value, kinds.below(slot, key), kinds) if _is_node(value) else value
        for key, value in node.items()
        if key != KIND_KEY
    }
    require_settings(get_object(choice.target), settings, f"{_name(slot)} ({_kind(choice.target)})")
    partial = {"_partial_": True} if choice.is_partial else {}
    return {"_target_": choice.target, **partial, **settings}


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and KIND_KEY in value


def _name(slot: Slot) -> str:
    """The shortest of its places."""
    return ".".join(min((len(place), place) for place in slot)[1])


def _kind(target: str) -> str:
    return target.rpartition(".")[2]


def _package(name: str) -> ConfigPath:
    return () if name == "_global_" else tuple(name.split("."))


def _nodes(node: Any, place: ConfigPath) -> Iterator[tuple[ConfigPath, Any]]:
    """Yields the mappings and strings of a file with their places; what stands in lists is no place of its own."""
    if isinstance(node, Mapping):
        yield place, node
        for key, value in node.items():
            yield from _nodes(value, (*place, str(key)))
    elif isinstance(node, str):
        yield place, node


def _directories() -> Iterator[Path]:
    yield config_directory()
    if HydraConfig.initialized():
        for source in HydraConfig.get().runtime.config_sources:
            if source.provider == "command-line" and source.schema == "file":
                yield Path(source.path)


@lru_cache(maxsize=8)
def _kinds_below(directories: Sequence[Path]) -> Kinds:
    return Kinds(directories)
