"""Files cut short and with bits flipped: loaders read them, or refuse them with a ValueError; nothing else.

The quick form does 40 of each kind, `python -m pytest -m nightly tests/test_fuzz.py` 1,000 truncations and 1,000 flips.
"""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import io
import random
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

QUICK, LONG = 20, 1000  # of truncations, and as many of flips
_MOST_FLIPS = 8

Damage = Callable[[bytes, random.Random], bytes]
Load = Callable[[Path], Any]


def truncate(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def flip(content: bytes, draw: random.Random) -> bytes:
    """Flips some bits; half the time near an end, where formats keep what they say of themselves."""
    flipped = bytearray(content)
    reach = len(content) if draw.random() < 0.5 else min(512, len(content))
    for _ in range(draw.randint(1, _MOST_FLIPS)):
        place = draw.randrange(reach)
        flipped[place if draw.random() < 0.5 else -1 - place] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def photo() -> Image.Image:
    pixels = torch.randint(256, (24, 20, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    photo().convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(photo()))
    return buffer.getvalue()


IMAGES = {
    "a.jpg": encoded("JPEG"),
    "b.jpg": encoded("JPEG", progressive=True),
    "a.png": encoded("PNG"),
    "b.png": encoded("PNG", "P"),
    "a.webp": encoded("WEBP"),
    "a.gif": encoded("GIF"),
    "a.bmp": encoded("BMP"),
    "a.tif": encoded("TIFF"),
    "b.tif": encoded("TIFF", compression="tiff_lzw"),
    "a.ppm": encoded("PPM"),
    "a.avif": encoded("AVIF"),
    "a.npy": array(),
}


def image_files(folder: Path) -> dict[Path, Load]:
    from unmask.data.files.decoding import ImageDecoder

    decoder = ImageDecoder()
    for name, content in IMAGES.items():
        (folder / name).write_bytes(content)
    return dict.fromkeys((folder / name for name in IMAGES), lambda path: decoder.read(str(path)))


def checkpoints(folder: Path) -> dict[Path, Load]:
    from unmask.interchange.files import read_weights
    from unmask.runtime.checkpoint import load_backbone
    from unmask.runtime.resume import read_resume_point

    def load(path: Path) -> None:
        read_weights(path)
        load_backbone(path)

    stored = (Path(__file__).parent / "format_1/last.ckpt").read_bytes()
    old = io.BytesIO()
    torch.save({"state_dict": {"w": torch.zeros(40)}}, old, _use_new_zipfile_serialization=False)
    (folder / "new.ckpt").write_bytes(stored)
    (folder / "resumed.ckpt").write_bytes(stored)
    (folder / "old.pth").write_bytes(old.getvalue())
    return {folder / "new.ckpt": load, folder / "resumed.ckpt": read_resume_point, folder / "old.pth": read_weights}


def safetensors(folder: Path) -> dict[Path, Load]:
    from unmask.runtime.checkpoint import load_backbone

    path = folder / "backbone.safetensors"
    path.write_bytes((Path(__file__).parent / "format_1/backbone.safetensors").read_bytes())
    return {path: load_backbone}


def archives(folder: Path) -> dict[Path, Load]:
    from unmask.data.files.archives import unpack_zip
    from unmask.data.files.tar_index import LabelSource, read_index

    with tarfile.open(folder / "train-000000.tar", "w", format=tarfile.USTAR_FORMAT) as opened:
        for number in range(3):
            for ending, content in (("jpg", IMAGES["a.jpg"]), ("cls", b"1"), ("json", b'{"label": 1}')):
                member = tarfile.TarInfo(f"{number:06d}.{ending}")
                member.size = len(content)
                opened.addfile(member, io.BytesIO(content))
    for name, compression in (("stored.zip", zipfile.ZIP_STORED), ("deflated.zip", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(folder / name, "w", compression) as archive:
            for image in ("a.jpg", "a.bmp"):
                archive.writestr(f"train/{image}", IMAGES[image])

    def index(path: Path) -> None:
        read_index(path, LabelSource(), folder / "cache")

    def unpack(path: Path) -> None:
        target = path.with_suffix(f".{random.getrandbits(64):x}")
        unpack_zip(path, target)

    return {
        folder / "train-000000.tar": index,
        folder / "stored.zip": unpack,
        folder / "deflated.zip": unpack,
    }


def fuzz(files: dict[Path, Load], damage: Damage, *, count: int, seed: int) -> dict[str, int]:
    """Damages the files in turn and loads each; returns how many were read and refused.

    Raises:
        AssertionError: A loader raised something else than a ValueError.
    """
    draw = random.Random(seed)
    sound = {path: path.read_bytes() for path in files}
    ended = {"read": 0, "refused": 0}
    for number in range(count):
        path = list(files)[number % len(files)]
        damaged = damage(sound[path], draw)
        path.write_bytes(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # libraries warn of damage, which is no error to a user
                files[path](path)
        except ValueError as error:
            ended["refused"] += bool(str(error))  # a sentence, not silence
        except Exception as error:
            raise AssertionError(f"{path.name}, case {number}: {type(error).__name__}: {error}") from error
        else:
            ended["read"] += 1
        path.write_bytes(sound[path])
    return ended


@pytest.mark.parametrize("count", [QUICK, pytest.param(LONG, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("damage", [truncate, flip])
@pytest.mark.parametrize("make", [image_files, checkpoints, safetensors, archives])
def test_damaged_files_are_read_or_refused(
    make: Callable[[Path], dict[Path, Load]],
    damage: Damage,
    count: int,
    tmp_path: Path,
    record_property: Callable[[str, Any], None],
) -> None:
    files = make(tmp_path)
    for path, load in files.items():
        load(path)  # sound files are read

    ended = fuzz(files, damage, count=count, seed=count)
    assert sum(ended.values()) == count
    assert ended["refused"] > 0
    print(f"{make.__name__}, {damage.__name__}: {ended}")  # noqa: T201  (shown with -s, for the record)
