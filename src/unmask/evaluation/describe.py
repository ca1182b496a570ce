"""Settings in a protocol line."""

import functools
from typing import Any


def describe_factory(value: Any) -> str:
    """Writes a factory and its settings in one line, as `Supervised(layer_decay=0.65, ...)`."""
    if isinstance(value, functools.partial):
        settings = ", ".join(f"{name}={describe_factory(setting)}" for name, setting in value.keywords.items())
        return f"{describe_factory(value.func)}({settings})"
    if isinstance(value, float):
        return f"{value:g}"
    return str(getattr(value, "__name__", value))
