"""Those marked `bolts` run beside lightning-bolts (`make test-bolts`) and fail, not skip, where it is missing."""

import hashlib
import pickle
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningDataModule
from PIL import Image
from torchvision.datasets import imagenet as torchvision_imagenet

from unmask.data.sources.bolts import import_bolts, quiet_warnings
from unmask.data.sources.imagenet import ImageNet
from unmask.data.sources.imagenet_bolts import ImageNetBolts

Make = Callable[..., ImageNetBolts]
SIZES = {"n03": 9, "n01": 5, "n02": 12}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes of 5 to 12 training and 2 validation images, and the meta file in both, as bolts wants it."""
    gray = 0
    for split in ("train", "val"):
        for wnid, count in SIZES.items():
            folder = tmp_path / split / wnid
            folder.mkdir(parents=True)
            for number in range(count if split == "train" else 2):
                Image.new("RGB", (8, 8), (gray, gray, gray)).save(folder / f"{wnid}_{number}.JPEG", format="JPEG")
                gray += 5
        torch.save(({wnid: (wnid,) for wnid in SIZES}, []), tmp_path / split / "meta.bin")
    return tmp_path


@pytest.fixture
def make(root: Path, data_settings: dict[str, Any]) -> Callable[..., ImageNetBolts]:
    return lambda held_out=1: ImageNetBolts(root=str(root), held_out_per_class=held_out, **data_settings)


@pytest.mark.bolts
@pytest.mark.parametrize("held_out", [1, 2, 4])
def test_bolts_and_imagenet_divide_alike(root: Path, make: Make, data_settings: dict[str, Any], held_out: int) -> None:
    bolts = make(held_out)
    native = ImageNet(root=str(root), held_out_per_class=held_out, **data_settings)
    assert bolts.class_names == native.class_names == ("n01", "n02", "n03")
    for split in ("train", "val", "test"):
        theirs, ours = bolts.dataset(split), native.dataset(split)
        assert dict(zip(theirs.paths, theirs.labels.tolist(), strict=True)) == dict(
            zip(ours.paths, ours.labels.tolist(), strict=True)
        )
        shuffled = list(ours.paths)  # bolts stores a split in an order of its own
        assert list(theirs.paths) != shuffled
        assert sorted(theirs.paths) == shuffled


@pytest.mark.bolts
def test_images_are_served_as_by_every_source(make: Make) -> None:
    data = make()
    (batch,) = list(data.test_dataloader())[:1]
    finished = data.to_model_input(batch, augmented=False)
    for image, label, path in zip(finished.image, finished.label, data.dataset("test").paths, strict=False):
        assert data.class_names[label] == Path(path).parent.name
        gray = Image.open(path).getpixel((0, 0))[0]
        assert (image - (gray / 127.5 - 1)).abs().max() < 1e-6
    assert b"pl_bolts" not in pickle.dumps(data.test_dataloader().dataset)  # a worker started anew needs none of it


@pytest.mark.bolts
def test_bolts_runs_on_the_lightning_in_use_and_leaves_the_rest_alone(make: Make) -> None:
    opener, names = urllib.request._opener, set(vars(np))
    bolts = import_bolts()
    assert issubclass(bolts.datamodules.ImagenetDataModule, LightningDataModule)
    assert not [name for name in sys.modules if name.partition(".")[0] == "pytorch_lightning"]
    assert sys.modules["lightning.pytorch"].__spec__.name == "lightning.pytorch"
    assert urllib.request._opener is opener
    assert not {"object", "int", "float"} & set(vars(np)) - names
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.RandomState(7).random(3)
    make().dataset("train")
    assert np.random.random(3).tolist() == expected.tolist()  # noqa: NPY002


@pytest.mark.bolts
def test_bolts_and_torchvision_read_the_devkit_alike(
    tmp_path: Path, devkit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    devkit.write(archive)
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(torchvision_imagenet.ARCHIVE_META, "devkit", (archive.name, md5))
    torchvision_imagenet.parse_devkit_archive(tmp_path)
    theirs = (tmp_path / "meta.bin").read_bytes()
    dataset = import_bolts().datasets.imagenet_dataset
    monkeypatch.setattr(dataset, "_verify_archive", lambda *_: None)  # its MD5 is that of the official archive
    with quiet_warnings():
        dataset.parse_devkit_archive(str(tmp_path))
    assert (tmp_path / "meta.bin").read_bytes() == theirs


@pytest.mark.bolts
def test_meta_may_lie_in_the_root_and_must_lie_somewhere(root: Path, make: Make) -> None:
    (root / "val" / "meta.bin").unlink()
    (root / "train" / "meta.bin").rename(root / "meta.bin")
    assert len(make().dataset("test")) == 6
    (root / "meta.bin").unlink()
    with pytest.raises(ValueError, match=r"has no meta\.bin, nor have train and val; data=imagenet writes it"):
        make().dataset("test")


@pytest.mark.bolts
def test_a_class_that_would_lose_all_its_images_is_named(make: Make) -> None:
    with pytest.raises(ValueError, match=r"the train split of .* has no image of n01: bolts holds 5 of each class out"):
        make(5).dataset("train")


def test_without_lightning_bolts_one_is_told_how_to_get_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pl_bolts", None)
    before = old_lightning()  # Lightning may have registered some under its former name
    with pytest.raises(ValueError, match=r"needs lightning-bolts; pip install 'unmask\[bolts\]', or use data=imagenet"):
        make()
    assert old_lightning() == before


def old_lightning() -> dict[str, Any]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "pytorch_lightning"}
