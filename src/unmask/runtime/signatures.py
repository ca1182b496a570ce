"""Checks settings that came with a file against the constructor they are for."""

import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from unmask.interchange.record import shown

_SEQUENCES = (list, tuple)
_PLAIN = (bool, int, float, str, type(None))


def require_settings(target: Callable[..., Any], settings: Mapping[str, Any], place: str) -> None:
    """Refuses a setting the class or function does not have, and a value of another type than it takes.

    A nested node, a mapping with `_target_`, is left to its own class.

    Raises:
        ValueError: Names the setting and what it should be.
    """
    known = dict(_parameters(target))
    others = _annotation_of_others(target)
    for name, value in settings.items():
        if name not in known and others is None:
            raise ValueError(f"the file gives {place} the setting {shown(name)}, which it does not have; refused")
        if isinstance(value, Mapping) and "_target_" in value:
            continue
        if not _fits(value, known.get(name, others)):
            raise ValueError(
                f"the file sets {name} of {place} to {shown(value)}, which is not of the type it takes; refused"
            )


def _parameters(target: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Yields the settings of a function, or of a class and the classes it hands further settings on to."""
    if not isinstance(target, type):
        yield from _named(target)
        return
    for owner in target.__mro__:
        constructor = owner.__dict__.get("__init__")
        if constructor is None:
            continue
        yield from _named(constructor)
        if all(parameter.kind != parameter.VAR_KEYWORD for parameter in _signature(constructor)):
            return


def _annotation_of_others(target: Callable[..., Any]) -> Any:
    """The type of `**settings` a function takes whatever their names; None where it takes none."""
    if isinstance(target, type):
        return None
    return next((each.annotation for each in _signature(target) if each.kind == each.VAR_KEYWORD), None)


def _signature(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _named(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    for parameter in _signature(function):
        name = parameter.name
        if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            yield name, parameter.annotation


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value is of an annotated type; an annotation that says nothing of plain values takes numbers."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if annotation in _PLAIN or annotation is None:
        return _is_a(value, type(None) if annotation is None else annotation)
    if isinstance(value, _SEQUENCES):
        return _takes_lists(origin or annotation) and all(_fits(item, _item_type(arguments)) for item in value)
    if isinstance(value, Mapping):
        return isinstance(origin, type) and issubclass(origin, Mapping)
    return annotation in (Any, inspect.Parameter.empty) and not isinstance(value, str)


def _is_a(value: Any, plain: Any) -> bool:
    """Whole numbers pass for floats, as YAML writes them; Booleans pass for no number."""
    return type(value) is plain or (plain is float and type(value) is int)


def _takes_lists(container: Any) -> bool:
    return (isinstance(container, type) and issubclass(list, container)) or container is tuple


def _item_type(arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if arguments else Any
