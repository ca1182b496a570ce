"""The fingerprint of a split follows its content and nothing else."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.data.augmentation.transforms import Augmentation
from unmask.data.dataset import ImageFileDataset, InMemoryDataset
from unmask.data.files.paths import PathList
from unmask.data.sources.folder import ImageFolder


def in_memory(images: Tensor, labels: list[int], names: tuple[str, ...] = ("a", "b")) -> str:
    return InMemoryDataset(images, torch.tensor(labels), names).fingerprint


def in_files(paths: list[Path], labels: list[int], names: tuple[str, ...] = ("a", "b")) -> str:
    listed = PathList(str(path) for path in paths)
    return ImageFileDataset(listed, torch.tensor(labels), names, decode=lambda path: None).fingerprint


@pytest.fixture
def written(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "here" / folder / f"{number}.png" for folder in "ab" for number in range(2)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"some pixels")
    return paths


def test_images_in_memory_change_it_by_a_label_a_name_and_one_pixel() -> None:
    images = torch.randint(255, (6, 3, 4, 4), dtype=torch.uint8)
    changed = images.clone()
    changed[5, 2, 3, 3] += 1
    labels = [0, 1, 0, 1, 0, 1]
    assert in_memory(images.clone(), labels) == in_memory(images, labels)
    others = [
        in_memory(changed, labels),
        in_memory(images, [0, 1, 0, 1, 1, 1]),
        in_memory(images, labels, ("a", "c")),
        in_memory(images.flip(0), labels),
        in_memory(images[:5], labels[:5]),
    ]
    assert len({in_memory(images, labels), *others}) == 6


def test_files_change_it_by_a_label_a_size_and_a_name_but_not_by_moving(written: list[Path], tmp_path: Path) -> None:
    labels = [0, 0, 1, 1]
    first = in_files(written, labels)
    shutil.copytree(tmp_path / "here", tmp_path / "elsewhere" / "there")
    moved = [tmp_path / "elsewhere" / "there" / path.relative_to(tmp_path / "here") for path in written]
    assert in_files(moved, labels) == first

    others = [in_files(written, [0, 1, 1, 1]), in_files(written[::-1], labels), in_files(written[:3], labels[:3])]
    moved[0].write_bytes(b"some more pixels")
    others.append(in_files(moved, labels))
    renamed = written[1].rename(written[1].with_name("other.png"))
    others.append(in_files([written[0], renamed, *written[2:]], labels))
    assert len({first, *others}) == 6


@pytest.mark.timeout(60)
@pytest.mark.parametrize("read", [ImageFileDataset.open, ImageFileDataset.stored])
def test_a_named_pipe_is_not_waited_for(read: Callable[..., Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    dataset = ImageFileDataset(PathList([str(tmp_path / "a.png")]), torch.tensor([0]), (), decode=lambda path: None)
    with pytest.raises(OSError, match=r"not a regular file.*a\.png"):
        read(dataset, 0)


def test_a_data_module_names_what_was_read_whatever_the_seed(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"-" * number)

    def open_folder(**changes: Any) -> ImageFolder:
        settings: dict[str, Any] = {"image_size": 2, "pixel_mean": (0, 0, 0), "pixel_std": (1, 1, 1)}
        settings |= {"augmentation": Augmentation(), "global_batch_size": 2, "root": str(tmp_path)}
        data = ImageFolder(**settings | changes)
        data.dataset("train")
        data.dataset("test")
        return data

    first = open_folder().fingerprints()
    assert set(first) == {"train", "test"}
    assert first["train"] != first["test"]
    assert open_folder(seed=7).fingerprints() == first
    assert open_folder(split_seed=7).fingerprints() != first
    limited = open_folder()
    limited.loaded_splits.limit_training(0.5)
    assert limited.fingerprints()["train"] != first["train"]
    assert limited.fingerprints()["test"] == first["test"]
