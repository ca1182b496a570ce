"""Where the samples of a tar shard lie, so that any of them is read without the others."""

import contextlib
import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped

from unmask.atomic_write import atomic_write
from unmask.data.files.decoding import ARRAY_SUFFIXES, IMAGE_SUFFIXES
from unmask.data.files.opening import open_file

_BLOCK = 512  # bytes; what POSIX pads members to, and an archive ends with a block of zeros
_TAIL = 2**20  # bytes looked at behind the end; writers pad by some KiB
_FORMAT = 1  # of cached indices; to be raised when what they hold changes
_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")  # key and ending: the name is cut at its first dot
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"PK": "zip"}


class LabelSource(NamedTuple):
    """Which members of a sample are read.

    Args:
        image_key: Ending of the image; None finds the one that names an image.
        label_key: "auto" takes `cls`, else the field of `json`; "none" reads no labels; or an ending.
        json_field: Where in a JSON member the label stands.
    """

    image_key: str | None = None
    label_key: str = "auto"
    json_field: str = "label"


class ShardIndex(NamedTuple):
    """The samples of one shard, in their order.

    Attributes:
        offset, size: First byte of each image in the shard, and their number.
        label: What is written as each label, empty where there is none.
        has_labels: Whether samples come with a label, if only an empty one.
    """

    offset: Int64[np.ndarray, " n"]
    size: Int64[np.ndarray, " n"]
    label: Shaped[np.ndarray, " n"]
    has_labels: bool


def read_index(shard: Path, source: LabelSource, cache: Path) -> ShardIndex:
    """Lists a shard's samples; from the cache where the shard has been listed before and has not changed since.

    Raises:
        ValueError: The shard is no plain tar archive, is damaged, cut short, holds a link, a sample without image or
            without the label that others have, or names a member twice.
    """
    try:
        status = shard.stat()
        identity = [_FORMAT, str(shard.resolve()), status.st_size, status.st_mtime_ns, *source]
        stored = cache / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]}.npz"
        index = _load(stored)
        if index is None:
            index = _list_samples(shard, source)
            _save(index, stored)
    except OSError as error:
        raise ValueError(f"shard {shard} cannot be read ({error.strerror})") from error
    return index


def _load(stored: Path) -> ShardIndex | None:
    try:
        with stored.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return ShardIndex(arrays["offset"], arrays["size"], arrays["label"], bool(arrays["has_labels"]))
    except Exception:  # absent, torn or of another make: it is made again
        return None


def _save(index: ShardIndex, stored: Path) -> None:
    # A cache that cannot be written costs time at the next start, no more.
    with contextlib.suppress(OSError), atomic_write(stored) as partial:
        np.savez(partial, **index._asdict())


def _list_samples(shard: Path, source: LabelSource) -> ShardIndex:
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in _walk(shard):
        matched = _NAME.fullmatch(member.name)
        if matched is None:
            continue
        key, ending = matched[1], matched[2].lower()
        members = samples.setdefault(key, {})
        if ending in members:
            raise ValueError(f"shard {shard}: {member.name} appears twice; each sample needs a unique name")
        members[ending] = member
    if not samples:
        raise ValueError(f"shard {shard} contains no sample; expected members such as 000000.jpg and 000000.cls")
    images = [_image_of(key, members, source.image_key, shard) for key, members in samples.items()]
    labels = _read_labels(shard, samples, source)
    return ShardIndex(
        np.array([image.offset_data for image in images], dtype=np.int64),
        np.array([image.size for image in images], dtype=np.int64),
        np.array(labels if labels is not None else [""] * len(images)),
        labels is not None,
    )


def _walk(shard: Path) -> Iterator[tarfile.TarInfo]:
    """Yields the regular files of an archive and makes sure that it was read to its end."""
    with open_file(shard) as file:
        head = file.read(_BLOCK)
        _require_plain(shard, head)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if member.issym() or member.islnk():
                        raise ValueError(f"shard {shard}: {member.name} is a link; shards may contain only files")
                    if member.isfile() and not member.issparse():
                        yield member
                end = archive.offset
        except tarfile.TarError as error:
            raise ValueError(f"shard {shard} is damaged or cut short ({error}); make or download it again") from error
        # tarfile takes rubbish, and the end of the file, for the end of the archive.
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise ValueError(f"shard {shard} is damaged or cut short at byte {end}; make or download it again")
        if file.read(_TAIL).strip(b"\0"):
            raise ValueError(f"shard {shard} has data after its end marker; join archives with tar -A, not with cat")


def _require_plain(shard: Path, head: bytes) -> None:
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise ValueError(
                f"shard {shard} is compressed ({name}); samples of a compressed shard cannot be read one by one: "
                "unpack it to a plain .tar"
            )
    is_page = head.lstrip().lower().startswith((b"<!doctype html", b"<html"))
    if is_page or len(head) < _BLOCK or head[257:262] not in (b"ustar", bytes(5)):  # zeros in archives before POSIX
        content = "an HTML page" if is_page else repr(head[:12])
        raise ValueError(f"shard {shard} is not a tar archive (it begins with {content}); make or download it again")


def _image_of(key: str, members: dict[str, tarfile.TarInfo], image_key: str | None, shard: Path) -> tarfile.TarInfo:
    found = [ending for ending in members if ending in IMAGE_SUFFIXES | ARRAY_SUFFIXES]
    if image_key is not None:
        found = [image_key] if image_key in members else []
    if len(found) > 1:
        raise ValueError(
            f"shard {shard}: sample {key} has the images {' and '.join(found)}; set data.image_key to one of them"
        )
    if not found:
        wanted = "image" if image_key is None else f"member .{image_key}"
        raise ValueError(f"shard {shard}: sample {key} has no {wanted}, only .{', .'.join(members)}")
    return members[found[0]]


def _read_labels(shard: Path, samples: dict[str, dict[str, tarfile.TarInfo]], source: LabelSource) -> list[str] | None:
    """Reads what is written as label of each sample; None where the shard has no labels."""
    wanted = {"auto": ["cls", "json"], "none": []}.get(source.label_key, [source.label_key])
    ending = next((ending for ending in wanted if any(ending in members for members in samples.values())), None)
    if ending is None:
        if source.label_key not in ("auto", "none"):
            raise ValueError(f"shard {shard}: no sample has a member .{source.label_key}; set data.label_key=auto")
        return None
    labels: list[str | None] = []
    with shard.open("rb") as file:
        for key, members in samples.items():
            if ending not in members:
                raise ValueError(
                    f"shard {shard}: sample {key} has no member .{ending}, as others have; "
                    "give each its label, -1 for none, or set data.label_key=none"
                )
            member = members[ending]
            file.seek(member.offset_data)
            labels.append(_parse_label(file.read(member.size), f"shard {shard}: {member.name}", source.json_field))
    if ending == "json" and not any(label is not None for label in labels):
        return None
    if None in labels:
        key = list(samples)[labels.index(None)]
        raise ValueError(f"shard {shard}: {key}.{ending} has no field {source.json_field!r}, as others have")
    return [label or "" for label in labels]


def _parse_label(content: bytes, name: str, json_field: str) -> str | None:
    """The label as text; None where a JSON object has no such field."""
    try:
        text = content.decode("utf-8-sig").strip()
        if not name.endswith(".json"):
            return text
        fields = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as a label: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f'{name} is not a JSON object; expected one such as {{"{json_field}": 3}}')
    if json_field not in fields:
        return None
    label = fields[json_field]
    if isinstance(label, bool | float | list | dict):
        raise ValueError(f"{name}: {json_field} is {label!r}, expected a whole number or a name; set data.json_field")
    return "" if label is None else str(label).strip()
