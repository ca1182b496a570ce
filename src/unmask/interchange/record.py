"""What this package writes beside weights, format 1, and how a record of unknown origin is read.

A record supplies data, never names of code: a *kind* is looked up among the classes that installed configuration names
(`runtime.kinds`), a setting is a number, a string, a Boolean, null, or lists and mappings of them.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

RECORD_KEY = "unmask"  # where a training checkpoint keeps its record, and a safetensors file its description
KIND_KEY = "kind"
FORMAT = 1

_MAX_DEPTH = 12  # of nesting
_MAX_VALUES = 200_000  # in a whole record; the names of ImageNet's 21,841 classes are the largest part of one
_MAX_TEXT = 200  # characters of a setting
_MAX_NUMBER = 2**63
_SHOWN = 40  # characters of a refused value in a message
_NUM_SHOWN = 8  # values of a list
_NESTED = (Mapping, list, tuple)
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_TEXT = re.compile(r"[\w .,:;|+=#%@-]*")  # no separators of paths, no quotes, brackets, `$` or control characters


def require_format(described: Any, path: Any) -> Mapping[str, Any]:
    """Returns a record of a format this version reads.

    Raises:
        ValueError: It has no format number, or a higher one.
    """
    number = described.get("format") if isinstance(described, Mapping) else None
    if type(number) is not int or number < 1:
        raise ValueError(
            f"{path} has no format number: it was written by a version of Unmask that had none yet, or by another "
            "program; train or export it again with this version"
        )
    if number > FORMAT:
        raise ValueError(
            f"{path} has format {shown(number)}, and this version of Unmask reads formats up to {FORMAT}; install a "
            "newer version"
        )
    assert isinstance(described, Mapping)
    return described


def is_plain_text(text: str) -> bool:
    """Whether a file may carry this string as a setting: no path, URL, interpolation, call or control character."""
    return len(text) <= _MAX_TEXT and ".." not in text and "__" not in text and bool(_TEXT.fullmatch(text))


def require_plain(value: Any, place: str) -> None:
    """Refuses anything in a record but bounded numbers, plain strings, Booleans, null, and lists and mappings of them.

    Args:
        value: Read from a file.
        place: Where, for the message.

    Raises:
        ValueError: It is another thing, nested too deeply, or too much.
    """
    _Walk().visit(value, place, 0)


def shown(value: Any) -> str:
    """Writes a value of unknown origin for a message: short, printable, never the whole of something nested."""
    if isinstance(value, list | tuple) and len(value) <= _NUM_SHOWN and not any(isinstance(v, _NESTED) for v in value):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, _NESTED):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) > _MAX_NUMBER:
        return "a number of more than 64 bits"
    if value is None or isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        return f"a {type(value).__name__}"
    text = printable(value[: _SHOWN + 1])
    return repr(f"{text[:_SHOWN]}..." if len(text) > _SHOWN else text)


def printable(text: str) -> str:
    """Replaces what a terminal would obey rather than show."""
    return "".join(character if character.isprintable() else "?" for character in text)


class _Walk:
    """Visits every value once, whatever refers to what: shared references would otherwise be visited endlessly."""

    def __init__(self) -> None:
        self.count = 0

    def visit(self, value: Any, place: str, depth: int) -> None:
        self.count += 1
        if depth > _MAX_DEPTH or self.count > _MAX_VALUES:
            raise ValueError(f"{place} is nested too deeply or holds too much; a record holds plain settings")
        if isinstance(value, Mapping):
            for key, item in value.items():
                if not isinstance(key, str) or not _KEY.fullmatch(key) or len(key) > _MAX_TEXT or "__" in key:
                    raise ValueError(
                        f"{place} has the key {shown(key)}, which is not a valid name of a setting; refused"
                    )
                self.visit(item, f"{place}.{key}" if depth < 3 else place, depth + 1)
        elif isinstance(value, list | tuple):
            for item in value:
                if isinstance(item, Mapping):
                    raise ValueError(f"{place} holds a mapping in a list, and a list holds plain values; refused")
                self.visit(item, place, depth + 1)
        else:
            _require_scalar(value, place)


def _require_scalar(value: Any, place: str) -> None:
    if value is None or type(value) is bool or (type(value) is float and math.isfinite(value)):
        return
    if type(value) is int and abs(value) < _MAX_NUMBER:
        return
    if type(value) is str and is_plain_text(value):
        return
    raise ValueError(
        f"{place} is {shown(value)}, which a file may not contain: a setting is a number, a short plain string, a "
        "Boolean, null or a list of them; refused"
    )
