"""Training checkpoints and exported backbones of this package."""

from collections.abc import Mapping

from unmask.interchange.conversion import Conversion
from unmask.interchange.files import WeightFile, parse_json
from unmask.interchange.record import RECORD_KEY, require_format, require_plain
from unmask.interchange.renaming import split

_TEACHER = "teacher.networks.backbone."  # of a `DDMIM` method


def matches(file: WeightFile) -> bool:
    return RECORD_KEY in file.metadata or (RECORD_KEY in file.content and "state_dict" in file.content)


def convert(file: WeightFile) -> Conversion:
    """Raises a ValueError where the record is not as this package writes it."""
    exported = file.metadata.get(RECORD_KEY)
    content = parse_json(exported, f"{file.path}'s header") if exported is not None else file.content[RECORD_KEY]
    described = require_format(content, file.path)
    settings = described.get("backbone")
    if not isinstance(settings, Mapping):
        raise ValueError(f"{file.path} does not say which backbone it holds")
    require_plain(settings, f"{file.path}: backbone")
    backbone, heads = (file.weights, {}) if exported is not None else split(file.weights, "backbone.")
    teacher, _ = split(heads, _TEACHER)
    return Conversion(source_format="Unmask", settings=settings, backbone=backbone, averaged=teacher, heads=heads)
