"""Tiny data sets on disk."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
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
def grey_image() -> Callable[..., bytes]:
    """An image file of one grey, by default a PNG of 8 px."""

    def make(grey: int, kind: str = "png", size: tuple[int, int] = (8, 8)) -> bytes:
        written = io.BytesIO()
        Image.new("RGB", size, (grey, grey, grey)).save(written, kind)
        return written.getvalue()

    return make


@pytest.fixture
def data_settings() -> dict[str, Any]:
    """What every data module is told, for images of 8 px."""
    from unmask.data.transforms import Augmentation  # noqa: PLC0415 (read before run-time shape checks are on)

    return {
        "image_size": 8,
        "pixel_mean": (0.5, 0.5, 0.5),
        "pixel_std": (0.5, 0.5, 0.5),
        "augmentation": Augmentation(),
        "global_batch_size": 2,
    }
