"""What an importer makes of a file, and what became of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from unmask.interchange.classifier import Classifier
from unmask.interchange.preprocessing import Preprocessing

_NUM_SHOWN = 2  # names a line lists before it counts the others


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The weights of a file under this package's names, at the file's own sizes."""

    source_format: str  # whose file it is, in a few words
    settings: Mapping[str, Any]  # that build the backbone, with its kind
    backbone: Mapping[str, Tensor]  # by the names of that backbone's `state_dict`
    averaged: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # the same of a teacher's moving average, if there is one
    heads: Mapping[str, Tensor] = field(default_factory=dict)  # by the names of the method's `state_dict`
    classifier: Classifier | None = None  # on this backbone
    preprocessing: Preprocessing = field(default_factory=Preprocessing)  # of images for the classifier
    left_out: Mapping[str, str] = field(default_factory=dict)  # name in the file -> why it has no place
    trained_names: Sequence[str] = ()  # in the file, of `backbone`, where `averaged` may be taken in its place
    averaged_names: Sequence[str] = ()  # in the file, of `averaged`
    assumed: Mapping[str, str] = field(
        default_factory=dict
    )  # setting the file does not state -> by which rule it is set
    source: str = ""  # where it was read from


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """How much of a network a file filled, and how much of the file found a place."""

    source_format: str
    loaded: tuple[str, ...]  # names of the backbone taken as they are
    resized: Mapping[str, str]  # name of the backbone -> from what size to what
    missing_keys: tuple[str, ...]  # of the backbone, not in the file: left as they were
    unexpected_keys: tuple[str, ...]  # of the file's backbone, not of this one
    left_out: Mapping[str, str]  # name in the file -> why
    heads: tuple[str, ...]  # names of the method's heads taken
    notes: tuple[str, ...]  # what was assumed, and what differs between file and network

    def describe(self) -> str:
        """Writes the report, a line a finding."""
        total = len(self.loaded) + len(self.resized) + len(self.missing_keys)
        lines = [
            f"{self.source_format}: {len(self.loaded) + len(self.resized)} of {total} tensors of the backbone loaded"
        ]
        for change in dict.fromkeys(self.resized.values()):
            names = [name for name, how in self.resized.items() if how == change]
            lines.append(f"resized: {change} ({_listed(names)})")
        if self.heads:
            lines.append(f"heads: {len(self.heads)} tensors loaded ({_listed(self.heads)})")
        for reason in dict.fromkeys(self.left_out.values()):
            names = [name for name, why in self.left_out.items() if why == reason]
            lines.append(f"left out: {_listed(names)}: {reason}")
        if self.missing_keys:
            lines.append(f"missing keys, left as they were: {_listed(self.missing_keys)}")
        if self.unexpected_keys:
            lines.append(f"unexpected keys: {_listed(self.unexpected_keys)}")
        return "\n".join([*lines, *self.notes])


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NUM_SHOWN])
    return shown if len(names) <= _NUM_SHOWN else f"{shown} and {len(names) - _NUM_SHOWN} more"
