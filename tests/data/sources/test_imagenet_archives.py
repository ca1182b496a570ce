import hashlib
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.datasets import imagenet as torchvision_imagenet

from unmask.data.sources.imagenet import ImageNet
from unmask.data.sources.imagenet_archives import extract_archives, read_meta

Devkit = Any  # of conftest.py

FOLDERS = {"train": "parse_train_archive", "val": "parse_val_archive"}


def pack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive, "w") as opened:
        for path in sorted(folder.iterdir()):
            opened.add(path, path.name)
    shutil.rmtree(folder)


@pytest.fixture
def root(tmp_path: Path, devkit: Devkit, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The three official archives, but tiny, and known to torchvision by their MD5."""
    root = tmp_path / "imagenet"
    parts = root / "parts"
    for wnid in devkit.classes:
        (parts / wnid).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8)).save(parts / wnid / f"{wnid}_{number}.JPEG", format="JPEG")
        pack(parts / f"{wnid}.tar", parts / wnid)
    pack(root / "ILSVRC2012_img_train.tar", parts)
    parts.mkdir()
    for number in range(len(devkit.val_wnids)):
        name = f"ILSVRC2012_val_{number + 1:08}.JPEG"
        Image.new("RGB", (8, 8), (number, 0, 0)).save(parts / name, format="JPEG")
    pack(root / "ILSVRC2012_img_val.tar", parts)
    devkit.write(root / "ILSVRC2012_devkit_t12.tar.gz")
    for part, (name, _) in dict(torchvision_imagenet.ARCHIVE_META).items():
        md5 = hashlib.md5((root / name).read_bytes()).hexdigest()
        monkeypatch.setitem(torchvision_imagenet.ARCHIVE_META, part, (name, md5))
    return root


@pytest.fixture
def make(data_settings: dict[str, Any]) -> Callable[..., ImageNet]:
    return lambda root: ImageNet(root=str(root), held_out_per_class=1, **data_settings)


def interrupt(monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    """Ends torchvision's extraction in the middle, as a signal would."""
    parse = getattr(torchvision_imagenet, FOLDERS[split])

    def stop(root: str, folder: str, **settings: Any) -> None:
        parse(root, folder=folder, **settings)
        next(Path(root, folder).rglob("*.JPEG")).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(torchvision_imagenet, FOLDERS[split], stop)


def test_the_archives_become_the_splits(root: Path, make: Callable[..., ImageNet], devkit: Devkit) -> None:
    data = make(root)
    data.prepare_data()
    assert [len(data.dataset(split)) for split in ("train", "val", "test")] == [9, 3, 6]
    assert data.class_names == ("n01", "n02", "n03")
    test = data.dataset("test")
    assert {Path(path).name: data.class_names[label] for path, label in zip(test.paths, test.labels, strict=True)} == {
        f"ILSVRC2012_val_{number:08}.JPEG": wnid for number, wnid in enumerate(devkit.val_wnids, start=1)
    }
    meta = read_meta(root)
    assert meta is not None
    assert meta.classes == devkit.classes
    assert meta.val_wnids == devkit.val_wnids


def test_an_extracted_tree_is_left_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., ImageNet]
) -> None:
    extract_archives(root)
    for name in FOLDERS.values():
        monkeypatch.setattr(torchvision_imagenet, name, None)
    extract_archives(root)
    assert len(make(root).dataset("test")) == 6


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_interrupted_extraction_is_noticed_and_repeated(root: Path, split: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, split)
        with pytest.raises(KeyboardInterrupt):
            extract_archives(root)
    assert not (root / split).exists()
    assert (root / f".{split}.partial").exists()
    extract_archives(root)
    assert len(list((root / "train").rglob("*.JPEG"))) == 12
    assert len(list((root / "val").rglob("*.JPEG"))) == 6
    assert not (root / f".{split}.partial").exists()


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"])
def test_another_archive_than_the_official_one_is_refused(root: Path, name: str, make: Callable[..., ImageNet]) -> None:
    with (root / name).open("ab") as archive:
        archive.write(b"more")
    with pytest.raises(ValueError, match=rf"{name} is not the official archive \(MD5 differs\); download it again"):
        make(root).dataset("train")


def test_a_full_disk_is_noticed_before_anything_is_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"extracting .*train\.tar and .*val\.tar needs 0\.0 GiB .* nothing was extr"):
        extract_archives(root)
    assert not {"train", "val", ".train.partial"} & {path.name for path in root.iterdir()}


def test_validation_images_without_the_devkit_are_refused(root: Path) -> None:
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(
        ValueError,
        match=r"which does not contain the classes of its images; put ILSVRC2012_devkit_t12.tar.gz beside it",
    ):
        extract_archives(root)


@pytest.mark.parametrize("place", [".", "train", "val"])
def test_meta_is_found_where_torchvision_and_bolts_put_it(
    root: Path, place: str, make: Callable[..., ImageNet], devkit: Devkit
) -> None:
    extract_archives(root)
    (root / "meta.bin").rename(root / place / "meta.bin")
    meta = read_meta(root)
    assert meta is not None
    assert (meta.classes, meta.val_wnids) == (devkit.classes, devkit.val_wnids)
    assert len(make(root).dataset("test")) == 6  # the file is no image


def test_validation_images_without_class_folders_are_labeled_by_meta(
    root: Path, make: Callable[..., ImageNet], devkit: Devkit
) -> None:
    extract_archives(root)
    for image in list((root / "val").rglob("*.JPEG")):
        image.rename(root / "val" / image.name)
        if not list(image.parent.iterdir()):
            image.parent.rmdir()
    test = make(root).dataset("test")
    assert [test.class_names[label] for label in test.labels] == devkit.val_wnids
    (root / "val" / "ILSVRC2012_val_00000003.JPEG").unlink()
    with pytest.raises(ValueError, match=r"has 5 images outside class folders, and meta\.bin the classes of 6"):
        make(root).dataset("test")


def test_a_class_folder_that_meta_does_not_know_is_named(root: Path, make: Callable[..., ImageNet]) -> None:
    extract_archives(root)
    shutil.copytree(root / "train" / "n01", root / "train" / "n04")
    with pytest.raises(ValueError, match=r"has the class folder 'n04', which meta\.bin does not list"):
        make(root).dataset("train")


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (exec, ("raise SystemExit('code of the file was run')",))


@pytest.mark.parametrize("content", [Evil(), 3, ([], [])], ids=["code", "number", "lists"])
def test_a_foreign_meta_is_refused_and_none_of_its_code_run(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "meta.bin")
    with pytest.raises(ValueError, match=r"meta\.bin is not the meta\.bin that torchvision or lightning-bolts write"):
        read_meta(tmp_path)
