"""Training checkpoints and exported backbones of this package."""

import json
from collections.abc import Mapping
from typing import Any

from unmask.interchange.conversion import Conversion
from unmask.interchange.files import WeightFile
from unmask.interchange.renaming import split

RECORD_KEY = "unmask"  # where a training checkpoint keeps its record, and a safetensors file its description

_TEACHER = "teacher.networks.backbone."  # of a `DDMIM` method


def matches(file: WeightFile) -> bool:
    return RECORD_KEY in file.metadata or (RECORD_KEY in file.content and "state_dict" in file.content)


def convert(file: WeightFile) -> Conversion:
    """Raises a ValueError where the record is not as this package writes it."""
    exported = file.metadata.get(RECORD_KEY)
    described: Any = json.loads(exported) if exported is not None else file.content[RECORD_KEY]
    settings = described.get("backbone") if isinstance(described, Mapping) else None
    if not isinstance(settings, Mapping):
        raise ValueError(f"{file.path} does not say which backbone it holds")
    backbone, heads = (file.weights, {}) if exported is not None else split(file.weights, "backbone.")
    teacher, _ = split(heads, _TEACHER)
    return Conversion(source_format="Unmask", settings=settings, backbone=backbone, averaged=teacher, heads=heads)
