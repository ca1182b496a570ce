"""Which shards make up each split."""

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unmask.data.files.download import download, is_url
from unmask.data.files.splits import SPLIT_NAMES, Split

RECORD_NAME = "dataset.json"
"""The file that a packed data set has beside its shards."""

RECORD_FORMAT = "unmask-shards-1"

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")


class Shard(NamedTuple):
    """A shard by its path or URL, with its size in bytes where a record states it."""

    location: str
    size: int | None = None

    def fetch(self, cache: Path) -> Path:
        """The shard on this machine's disk.

        Raises:
            ValueError: It is not there, cannot be downloaded, or has another size than stated.
        """
        if is_url(self.location):
            return download(self.location, cache / "downloads", size=self.size)
        path = Path(self.location)
        if not path.is_file():
            raise ValueError(f"no shard {path} (seen from {Path.cwd()})")
        if self.size not in (None, path.stat().st_size):
            raise ValueError(
                f"shard {path} has {path.stat().st_size} bytes, {path.with_name(RECORD_NAME)} says {self.size}; "
                "copy it again"
            )
        return path


def expand_patterns(patterns: str | Sequence[str], root: str | None, *, key: str) -> list[Shard]:
    """Lists what patterns stand for, in their order.

    Args:
        patterns: Paths or URLs with braces, as in `train-{000000..000123}.tar` or `{a,b}.tar`; or paths with the
            wildcards `*`, `?` and `[...]`, whose matches are sorted by name.
        root: Folder or URL that relative ones start from; None = the working folder.
        key: What a message calls them.

    Raises:
        ValueError: A pattern matches nothing, a range ends before it starts, or a shard is named twice.
    """
    shards = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in _expand_braces(pattern, key):
            shards += _match(name if root is None or is_url(name) else _join(root, name), key)
    repeated = {shard.location for shard in shards if shards.count(shard) > 1} if len(set(shards)) < len(shards) else ()
    for place in repeated:
        raise ValueError(f"{key} names the shard {place} twice; its samples would be repeated")
    return shards


def find_shards(root: Path) -> dict[Split, list[Shard]]:
    """Lists the shards of a folder by their names: `train-*.tar`, `train/*.tar` and the like.

    Without a name of a split, all are training images.

    Raises:
        ValueError: There is no shard, or none of the train split beside others.
    """
    tars = sorted(path for pattern in ("*.tar", "*/*.tar") for path in root.glob(pattern))
    tars = [path for path in tars if not path.name.startswith(".")]
    if not tars:
        raise ValueError(f"no shard in {root}: neither {RECORD_NAME} nor *.tar; set data.train to a pattern of them")
    found: dict[Split, list[Shard]] = {}
    for path in tars:
        split = _split_of(path.name) or (_split_of(path.parent.name) if path.parent != root else None)
        if split is not None:
            found.setdefault(split, []).append(Shard(str(path)))
    if found and "train" not in found:
        raise ValueError(f"{root} has shards of {' and '.join(found)} but none of train; set data.train to a pattern")
    return found or {"train": [Shard(str(path)) for path in tars]}


def read_record(root: str, cache: Path) -> dict[str, Any] | None:
    """Reads the record of a packed data set; None where a folder has none.

    Raises:
        ValueError: It cannot be fetched or read, or is of another format.
    """
    place = _join(root, RECORD_NAME)
    path = download(place, cache / "downloads") if is_url(root) else Path(place)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != RECORD_FORMAT:
            raise ValueError(f"its format is {record['format']!r}, this version reads {RECORD_FORMAT!r}")
        record["splits"] = {split: _recorded_shards(root, stated) for split, stated in record["splits"].items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place} cannot be read as the record of a packed data set: {error!s}") from error
    return dict(record)


def _recorded_shards(root: str, stated: dict[str, Any]) -> list[Shard]:
    return [Shard(_join(root, Path(shard["name"]).name), int(shard["bytes"])) for shard in stated["shards"]]


def _join(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}" if is_url(root) else str(Path(root) / Path(name).expanduser())


def _match(name: str, key: str) -> list[Shard]:
    if is_url(name) or not any(sign in name for sign in "*?["):
        return [Shard(name if is_url(name) else str(Path(name).expanduser()))]
    place = Path(name).expanduser()
    start = Path(place.anchor)
    matches = sorted(path for path in start.glob(str(place.relative_to(start))) if path.is_file())
    if not matches:
        raise ValueError(f"{key}={name} matches no file (seen from {Path.cwd()})")
    return [Shard(str(path)) for path in matches]


def _expand_braces(pattern: str, key: str) -> list[str]:
    parts = _BRACES.split(pattern)  # text and the inside of braces in turn
    choices = [_choices(part, pattern, key) if place % 2 else [part] for place, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(inside: str, pattern: str, key: str) -> list[str]:
    ends = _RANGE.fullmatch(inside)
    if ends is None:
        return inside.split(",")
    first, last = int(ends[1]), int(ends[2])
    if first > last:
        raise ValueError(f"{key}={pattern}: the range {{{inside}}} ends before it starts")
    return [f"{number:0{len(ends[1])}d}" for number in range(first, last + 1)]


def _split_of(name: str) -> Split | None:
    word = re.split(r"[^a-z]", name.lower(), maxsplit=1)[0]
    return next((split for split, names in SPLIT_NAMES.items() if word in names), None)
