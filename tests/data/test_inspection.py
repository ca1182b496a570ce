from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.data.augmentation.transforms import Augmentation
from unmask.data.files.decoding import ImageDecoder
from unmask.data.inspection import Inspection, inspect_images
from unmask.data.sources.folder import ImageFolder

COUNT = 12


def picture(number: int, height: int = 20, width: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", COUNT), ("test", 4)):
        (tmp_path / "images" / split).mkdir(parents=True)
        for number in range(count):
            seed = number if split == "train" else 100 + number
            picture(seed).save(tmp_path / "images" / split / f"{number:02d}.png")
    return tmp_path / "images"


@pytest.fixture
def inspect(root: Path) -> Callable[..., Inspection]:
    def look(num_decoded: int = 0, **changes: Any) -> Inspection:
        settings: dict[str, Any] = {
            "root": str(root),
            "image_size": 16,
            "pixel_mean": (0.5, 0.5, 0.5),
            "pixel_std": (0.5, 0.5, 0.5),
            "augmentation": Augmentation(),
            "global_batch_size": 2,
            "val_fraction": 0.0,
        }
        data = ImageFolder(**settings | changes)
        return inspect_images(data, ("train", "test"), num_decoded=num_decoded)

    return look


def test_headers_tell_kinds_and_sizes(root: Path, inspect: Callable[..., Inspection]) -> None:
    picture(50, 8, 9).save(root / "train" / "02.png")
    picture(51).convert("L").save(root / "train" / "03.png", format="JPEG")
    facts = inspect().facts["train"]

    assert [fact.kind for fact in facts[:4]] == ["PNG RGB", "PNG RGB", "PNG RGB", "JPEG L"]
    assert [(fact.height, fact.width) for fact in facts[1:3]] == [(20, 30), (8, 9)]
    assert facts[0].size == (root / "train" / "00.png").stat().st_size


def test_headers_of_arrays_tell_shapes(root: Path, inspect: Callable[..., Inspection]) -> None:
    for path in root.glob("*/*.png"):
        np.save(path.with_suffix(".npy"), np.zeros((5, 6, 7), dtype=np.uint16))
        path.unlink()
    facts = inspect(channels=5, pixel_mean=(0.5,) * 5, pixel_std=(0.5,) * 5).facts["train"]
    assert {(fact.kind, fact.height, fact.width) for fact in facts} == {("NPY uint16", 6, 7)}


def test_damage_is_found_without_decoding_all(root: Path, inspect: Callable[..., Inspection]) -> None:
    content = (root / "train" / "01.png").read_bytes()
    (root / "train" / "01.png").write_bytes(content[: len(content) // 2])
    (root / "train" / "05.png").write_bytes(b"<html>")
    (root / "test" / "02.png").write_bytes(b"")
    found = inspect()

    assert [Path(name).name for name, _ in found.bad] == ["01.png", "05.png", "02.png"]
    assert [reason.split(" ")[0] for _, reason in found.bad] == ["truncated", "content", "empty"]
    assert found.num_decoded == 1  # the one whose end is missing


def test_damage_in_the_middle_is_found_by_decoding(root: Path, inspect: Callable[..., Inspection]) -> None:
    content = bytearray((root / "train" / "07.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (root / "train" / "07.png").write_bytes(bytes(content))

    assert inspect().bad == []
    found = inspect(num_decoded=COUNT)
    assert [Path(name).name for name, _ in found.bad] == ["07.png"]
    assert found.num_decoded == COUNT + COUNT // 4


def test_equal_files_are_counted_within_and_between_splits(root: Path, inspect: Callable[..., Inspection]) -> None:
    original = (root / "train" / "00.png").read_bytes()
    for name in ("train/04.png", "train/09.png", "test/01.png", "test/03.png"):
        (root / name).write_bytes(original)
    (root / "test" / "00.png").write_bytes((root / "train" / "06.png").read_bytes())
    found = inspect()

    assert sorted(sorted(group) for group in found.duplicates) == [
        [("test", 0), ("train", 6)],
        [("test", 1), ("test", 3), ("train", 0), ("train", 4), ("train", 9)],
    ]
    assert (found.num_repeated("train"), found.num_repeated("test")) == (2, 1)
    assert (found.num_shared("test", "train"), found.num_shared("train", "test")) == (3, 4)


def test_files_of_one_size_and_end_are_not_yet_equal(root: Path, inspect: Callable[..., Inspection]) -> None:
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "train" / "00.png", format="BMP")
    pixels[-1, 0] = 1  # the first pixel of the file: BMP begins with the last row
    Image.fromarray(pixels).save(root / "train" / "01.png", format="BMP")
    found = inspect()
    assert found.facts["train"][0][3:5] == found.facts["train"][1][3:5]
    assert found.duplicates == []


def test_statistics_are_those_of_the_training_images(root: Path, inspect: Callable[..., Inspection]) -> None:
    found = inspect(num_decoded=COUNT, image_size=(20, 30))
    pixels = np.stack([np.asarray(picture(number)) for number in range(COUNT)]).reshape(-1, 3) / 255
    assert found.pixels is not None
    assert found.pixels.mean == pytest.approx(pixels.mean(axis=0))
    assert found.pixels.std == pytest.approx(pixels.std(axis=0))


@pytest.mark.slow
def test_workers_find_the_same(root: Path, inspect: Callable[..., Inspection]) -> None:
    for number in range(COUNT, 300):
        (root / "train" / f"{number:03d}.png").write_bytes(b"" if number % 90 == 0 else bytes(number))
    assert inspect(num_workers=2) == inspect()


def test_images_in_memory_are_looked_at_as_pixels() -> None:
    from unmask.data.sources.synthetic import Synthetic  # noqa: PLC0415

    data = Synthetic(
        num_train=6,
        num_val=2,
        num_test=2,
        image_size=16,
        pixel_mean=(0.5,) * 3,
        pixel_std=(0.25,) * 3,
        augmentation=Augmentation(),
        global_batch_size=2,
    )
    images = data.dataset("train").images
    images[3] = images[1]
    found = inspect_images(data, ("train", "val"), num_decoded=6)

    assert found.facts["train"][0][:4] == ("pixels in memory", 16, 16, 3 * 16 * 16)
    assert found.duplicates == [[("train", 1), ("train", 3)]]
    assert found.pixels is not None
    values = images.transpose(0, 1).flatten(1).double() / 255
    assert torch.tensor(found.pixels.mean) == pytest.approx(values.mean(dim=1).numpy())


def test_a_decoder_refuses_by_the_header_what_it_would_refuse_by_the_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 6, 7), dtype=np.uint8))
    decoder = ImageDecoder(channels=5)
    for read in (lambda file: decoder.read_header(file, "a.npy"), lambda file: decoder.decode(file.read(), "a.npy")):
        with (
            (tmp_path / "a.npy").open("rb") as file,
            pytest.raises(ValueError, match=r"bad image a\.npy: has the shape 4x6x7"),
        ):
            read(file)
