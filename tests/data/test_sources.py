"""What all sources of files promise alike: the same images in whatever form they come are the same training run."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import webdataset
from lightning import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from unmask.data.augmentation.transforms import Augmentation
from unmask.data.datamodule import ImageDataModule
from unmask.data.packing import Packing, write_packed
from unmask.data.sources.csv_table import CSVTable
from unmask.data.sources.filelist import FileList
from unmask.data.sources.folder import ImageFolder
from unmask.data.sources.hub import Hub
from unmask.data.sources.kaggle import Kaggle
from unmask.data.sources.shards import Shards
from unmask.types import ImageBatch

NUM_TRAIN = 20
NUM_TEST = 6
SIDE = 12
BREEDS = ("cat", "dog")

Files = dict[str, dict[str, tuple[bytes, int]]]  # of each split: content and label by name
Build = Callable[[Files, Path, dict[str, Any]], ImageDataModule]


def in_folders(files: Files, root: Path, settings: dict[str, Any]) -> ImageFolder:
    for split, named in files.items():
        for name, (content, label) in named.items():
            path = root / split / BREEDS[label] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return ImageFolder(root=str(root), **settings)


def in_a_list(files: Files, root: Path, settings: dict[str, Any]) -> FileList:
    in_folders(files, root, settings)
    for split, named in files.items():
        lines = [f"{split}/{BREEDS[label]}/{name}, {BREEDS[label]}\n" for name, (_, label) in named.items()]
        (root / f"{split}.txt").write_text("".join(lines))
    return FileList(train=str(root / "train.txt"), test=str(root / "test.txt"), **settings)


def in_a_table(files: Files, root: Path, settings: dict[str, Any]) -> CSVTable:
    in_folders(files, root, settings)
    for split, named in files.items():
        rows = [f"{label},{split}/{BREEDS[label]}/{name}\n" for name, (_, label) in named.items()]
        (root / f"{split}.csv").write_text("breed,file\n" + "".join(rows))
    tables = {"train": str(root / "train.csv"), "test": str(root / "test.csv")}
    return CSVTable(**tables, path_column="file", label_column="breed", **settings)


def from_kaggle(files: Files, root: Path, settings: dict[str, Any]) -> Kaggle:
    root.mkdir()
    rows = []
    for split, named in files.items():
        with zipfile.ZipFile(root / f"{split}.zip", "w") as archive:
            for name, (content, label) in named.items():
                archive.writestr(f"{split}/{name}", content)
                rows.append(f"{Path(name).stem},{BREEDS[label]}\n")
    (root / "labels.csv").write_text("id,breed\n" + "".join(rows))
    return Kaggle(root=str(root), **settings)


def in_parquet(files: Files, root: Path, settings: dict[str, Any]) -> Hub:
    root.mkdir()
    features = datasets.Features({"img": datasets.Image(), "breed": datasets.ClassLabel(names=list(BREEDS))})
    for split, named in files.items():
        rows = {
            "img": [{"bytes": content, "path": name} for name, (content, _) in named.items()],
            "breed": [label for _, label in named.values()],
        }
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(root / f"{split}-00000-of-00001.parquet")
    return Hub(root=str(root), **settings)


def streamed(files: Files, root: Path, settings: dict[str, Any]) -> Hub:
    in_parquet(files, root, settings)
    counts = {split: len(named) for split, named in files.items()}
    return Hub(root=str(root), streaming=True, num_images=counts, val="test", shuffle_buffer=7, **settings)


def in_shards(files: Files, root: Path, settings: dict[str, Any]) -> Shards:
    root.mkdir()
    for split, named in files.items():
        items = list(named.items())
        for part in range(2):
            with webdataset.TarWriter(str(root / f"{split}-{part}.tar")) as writer:
                for name, (content, label) in items[part * len(items) // 2 : (part + 1) * len(items) // 2]:
                    writer.write({"__key__": Path(name).stem, "png": content, "cls": BREEDS[label]})
    return Shards(root=str(root), **settings)


def packed(form: str) -> Build:
    def build(files: Files, root: Path, settings: dict[str, Any]) -> Shards:
        source = in_folders(files, root / "files", settings | {"val_fraction": 0.0, "test_fraction": 0.0})
        write_packed(source, root / "out", Packing(format=form, size=None, images_per_shard=7), ["train", "test"])
        return Shards(root=str(root / "out"), **settings)

    return build


IN_ANY_ORDER: dict[str, Build] = {
    "folder": in_folders,
    "filelist": in_a_list,
    "csv": in_a_table,
    "kaggle": from_kaggle,
    "hub": in_parquet,
    "shards": in_shards,
    "packed raw": packed("raw"),
    "packed keep": packed("keep"),
}
SOURCES = IN_ANY_ORDER | {"hub, streamed": streamed}


@pytest.fixture
def files() -> Files:
    """Noise whose first byte is the image's number, in names that sort as their classes do."""
    named: Files = {"train": {}, "test": {}}
    for number in range(NUM_TRAIN + NUM_TEST):
        split, place, total = ("train", number, NUM_TRAIN) if number < NUM_TRAIN else ("test", number - 20, NUM_TEST)
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        pixels[0, 0, 0] = number
        written = io.BytesIO()
        Image.fromarray(pixels).save(written, "png")
        named[split][f"{number:02d}.png"] = (written.getvalue(), 2 * place // total)
    return named


@pytest.fixture
def make(files: Files, tmp_path: Path, data_settings, monkeypatch: pytest.MonkeyPatch):
    """Lays the images out for a source and opens it; the val split is held out of the training images."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01, raising=False)
    datasets.disable_progress_bars()

    def build(source: str, **changes: Any) -> ImageDataModule:
        settings = data_settings | {"seed": 4, "global_batch_size": 4, "cache_dir": str(tmp_path / "cache")} | changes
        return SOURCES[source](files, tmp_path / source, settings)

    return build


def attach_trainer(data: ImageDataModule, *, rank: int = 0, devices: int = 1, epoch: int = 0) -> None:
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=devices,
        accumulate_grad_batches=1,
        training=True,
        fit_loop=SimpleNamespace(
            epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=epoch)),
            epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(processed=0))),
        ),
    )


@pytest.mark.parametrize("source", list(IN_ANY_ORDER)[1:])
def test_all_sources_give_bitwise_the_same_images_in_the_same_order(make, source: str) -> None:
    expected, found = make("folder"), make(source)
    assert len(found.dataset("train")) == NUM_TRAIN - 2
    for epoch in (0, 1):
        for data in (expected, found):
            attach_trainer(data, epoch=epoch)
        for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
            for theirs, ours in zip(getattr(expected, loader)(), getattr(found, loader)(), strict=True):
                for name in ("image", "label", "index", "epoch"):
                    assert torch.equal(getattr(ours, name), getattr(theirs, name)), (loader, name)


class Visitor(LightningModule):
    """Writes down which images its process is shown, an epoch at a time, by their first byte."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.visited: list[list[int]] = []

    def on_train_epoch_start(self) -> None:
        self.visited.append([])

    def training_step(self, batch: ImageBatch) -> Tensor:
        first = batch.image[:, 0, 0, 0] * 0.5 + 0.5
        self.visited[-1] += (255 * first).round().long().tolist()
        return self.weight * batch.image.mean()

    def validation_step(self, batch: ImageBatch) -> None:
        raise AssertionError("no batch of it is asked for")

    def on_train_end(self) -> None:
        (self.folder / f"{self.global_rank}.json").write_text(json.dumps(self.visited))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.parametrize("source", list(SOURCES))
def test_two_epochs_of_two_processes_visit_each_image_once_an_epoch(make, source: str, tmp_path: Path) -> None:
    whole_images = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip_prob=0.0)
    data = make(source, image_size=SIDE, augmentation=whole_images, val_fraction=0.0, test_fraction=0.0)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        max_epochs=2,
        use_distributed_sampler=False,  # as run.py has it
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Visitor(tmp_path), datamodule=data)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for mine, others in zip(first, second, strict=True):
        assert len(mine) == len(others) == NUM_TRAIN // 2
        assert sorted(mine + others) == list(range(NUM_TRAIN))
    assert first[0] != first[1]
