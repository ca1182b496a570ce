"""Tiny data sets on disk."""

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image


@pytest.fixture
def write_shard() -> Callable[[Path, Mapping[str, bytes | str]], Path]:
    """Writes a tar archive of members with their content."""

    def write(path: Path, members: Mapping[str, bytes | str]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as archive:
            for name, content in members.items():
                raw = content.encode() if isinstance(content, str) else content
                member = tarfile.TarInfo(name)
                member.size = len(raw)
                archive.addfile(member, io.BytesIO(raw))
        return path

    return write


@pytest.fixture
def gray_image() -> Callable[..., bytes]:
    """An image file of one gray, by default a PNG of 8 px."""

    def make(gray: int, kind: str = "png", size: tuple[int, int] = (8, 8)) -> bytes:
        written = io.BytesIO()
        Image.new("RGB", size, (gray, gray, gray)).save(written, kind)
        return written.getvalue()

    return make


@pytest.fixture
def data_settings() -> dict[str, Any]:
    """What every data module is told, for images of 8 px."""
    from unmask.data.augmentation.transforms import Augmentation  # noqa: PLC0415 (read before run-time shape checks are on)

    return {
        "image_size": 8,
        "pixel_mean": (0.5, 0.5, 0.5),
        "pixel_std": (0.5, 0.5, 0.5),
        "augmentation": Augmentation(),
        "global_batch_size": 2,
    }


@dataclass(frozen=True)
class Devkit:
    """ImageNet's development kit in small; classes stand in the order of their ILSVRC2012_ID, which is no other's."""

    classes: Mapping[str, tuple[str, ...]]
    val_wnids: Sequence[str]

    def write(self, archive: Path) -> None:
        """Packs `meta.mat`, classes first and then a synset above them, and the classes of the validation images."""
        fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
        rows = [
            (number, wnid, ", ".join(names), "a gloss", 0, [], 0)
            for number, (wnid, names) in enumerate(self.classes.items(), start=1)
        ]
        rows.append((len(rows) + 1, "n99", "entity", "a gloss", len(rows), [1], 1))
        synsets = np.array(rows, dtype=[(field, object) for field in fields])
        matrix = io.BytesIO()
        scipy.io.savemat(matrix, {"synsets": synsets})
        numbers = [list(self.classes).index(wnid) + 1 for wnid in self.val_wnids]
        members = {
            "meta.mat": matrix.getvalue(),
            "ILSVRC2012_validation_ground_truth.txt": "".join(f"{number}\n" for number in numbers).encode(),
        }
        with tarfile.open(archive, "w:gz") as opened:
            for name, content in members.items():
                member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
                member.size = len(content)
                opened.addfile(member, io.BytesIO(content))


@pytest.fixture
def devkit() -> Devkit:
    return Devkit(
        classes={"n03": ("crane", "hoist"), "n01": ("tench",), "n02": ("pug", "pug-dog")},
        val_wnids=["n02", "n03", "n01", "n02", "n01", "n03"],
    )
