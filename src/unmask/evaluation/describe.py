"""Settings in a protocol line."""

import functools
import inspect
import re
from collections.abc import Mapping
from typing import Any

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+")


def describe(value: Any) -> str:
    """Writes a setting in one line, as `Supervised(layer_decay=0.65, ...)`; equal settings give equal lines.

    A factory is written as its class and its arguments; any other object as it writes itself or, where that holds an
    address, which differs from process to process, as its class and its public attributes.
    """
    return _describe(value, ())


def _describe(value: Any, inside: tuple[int, ...]) -> str:
    """Describes a value; `inside` are the objects it is part of, which are not entered a second time."""
    if value is None or isinstance(value, bool | int | str):
        return str(value)
    if isinstance(value, float):
        return f"{value:g}"
    if id(value) in inside:
        return "..."
    return _describe_object(value, (*inside, id(value)))


def _describe_object(value: Any, inside: tuple[int, ...]) -> str:
    if isinstance(value, functools.partial):
        positional = [_describe(argument, inside) for argument in value.args]
        return f"{_describe(value.func, inside)}({', '.join([*positional, *_pairs(value.keywords, inside)])})"
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return _describe_container(value, inside)
    if inspect.ismethod(value):
        return f"{_describe(value.__self__, inside)}.{value.__name__}"
    if hasattr(value, "__name__"):  # a class or a function
        return str(value.__name__)
    written = str(value)
    if not _ADDRESS.search(written):
        return written
    public = {name: setting for name, setting in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    return f"{type(value).__name__}({', '.join(_pairs(public, inside))})"


def _describe_container(value: Any, inside: tuple[int, ...]) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(_pairs(value, inside))}}}"
    described = [_describe(item, inside) for item in value]
    return f"[{', '.join(described)}]" if isinstance(value, list | tuple) else f"{{{', '.join(sorted(described))}}}"


def _pairs(settings: Mapping[Any, Any], inside: tuple[int, ...]) -> list[str]:
    return [f"{name}={_describe(setting, inside)}" for name, setting in settings.items()]
