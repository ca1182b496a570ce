import gc
import os
import weakref
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from unmask.data.augmentation.crops import CenterCrop
from unmask.data.augmentation.transforms import Augmentation
from unmask.data.bad_images import BAD_IMAGES_NAME, ReplaceBadImage
from unmask.data.dataset import InMemoryDataset, RawBatch, SampleKey
from unmask.data.sources.folder import ImageFolder

COUNT = 30
BAD = (4, 11, 12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of one gray each, by which they are known; three of them are cut short."""
    root = tmp_path / "images"
    for split, count in (("train", COUNT), ("val", 3)):
        (root / split).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (24, 20), (8 * number,) * 3).save(root / split / f"{number:02d}.png")
    for number in BAD:
        path = root / "train" / f"{number:02d}.png"
        path.write_bytes(path.read_bytes()[:60])
    return root


@pytest.fixture
def make_data(folder: Path, tmp_path: Path) -> Callable[..., ImageFolder]:
    """A data module with what it reads of a trainer; the run's folder is `run` unless named."""

    def make(*, rank: int = 0, devices: int = 1, run: str = "run", epoch: int = 0, **changes: Any) -> ImageFolder:
        settings: dict[str, Any] = {
            "root": str(folder),
            "image_size": 16,
            "pixel_mean": (0.0, 0.0, 0.0),
            "pixel_std": (1.0, 1.0, 1.0),
            "augmentation": Augmentation(),
            "global_batch_size": 6,
            "on_bad_image": "skip",
            "max_bad_fraction": 0.5,
            "test_fraction": 0.0,
        }
        data = ImageFolder(**settings | changes)
        data.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=devices,
            accumulate_grad_batches=1,
            training=True,
            default_root_dir=str(tmp_path / run),
            fit_loop=SimpleNamespace(
                epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=epoch)),
                epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(processed=0))),
            ),
        )
        return data

    return make


def grays(batch: RawBatch) -> list[int]:
    """Which files the images are."""
    return [int(image.float().mean().round()) // 8 for image in batch.image]


def trained_on(data: ImageFolder) -> dict[int, list[int]]:
    """The files of each step, after they have passed through the data module as in training."""
    steps = {}
    for step, batch in enumerate(data.train_dataloader()):
        data.on_after_batch_transfer(batch, 0)
        steps[step] = grays(batch)
    return steps


def test_a_bad_training_image_stops_the_run_with_its_path_and_reason(make_data: Callable[..., ImageFolder]) -> None:
    sentence = (
        r"bad image .*train/(04|11|12)\.png: truncated or corrupt \(\d+ bytes; .*; "
        r"repair or remove the file, or set data.on"
    )
    with pytest.raises(ValueError, match=sentence):
        trained_on(make_data(on_bad_image="raise"))


def test_a_bad_image_is_replaced_and_the_others_keep_their_places(
    make_data: Callable[..., ImageFolder], folder: Path
) -> None:
    order = [step for batch in make_data(on_bad_image="raise").train_dataloader().batch_sampler for step in batch]
    found = [number for step in trained_on(make_data()).values() for number in step]

    assert len(found) == COUNT
    for key, number in zip(order, found, strict=True):
        assert (number == key.index) == (key.index not in BAD)
        assert number not in BAD


@pytest.mark.timeout(120)
@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_named_pipe_is_a_bad_image_and_not_waited_for(
    make_data: Callable[..., ImageFolder], folder: Path, tmp_path: Path, num_workers: int
) -> None:
    (pipe := folder / "train" / "07.png").unlink()
    os.mkfifo(pipe)
    found = trained_on(make_data(num_workers=num_workers, worker_timeout=0.0))

    assert not {7, *BAD} & {number for step in found.values() for number in step}
    assert f"{pipe}\tcannot be read (not a regular file)\t0\n" in (tmp_path / "run" / BAD_IMAGES_NAME).read_text()


def test_a_batch_names_the_samples_it_holds(make_data: Callable[..., ImageFolder]) -> None:
    for batch in make_data().train_dataloader():
        assert batch.index.tolist() == grays(batch)


def test_replacements_depend_on_the_epoch_and_neither_on_devices_nor_on_memory(
    make_data: Callable[..., ImageFolder],
) -> None:
    whole = trained_on(make_data())
    shares = [trained_on(make_data(rank=rank, devices=2)) for rank in range(2)]
    for step, images in whole.items():
        assert images[0::2] == shares[0][step]
        assert images[1::2] == shares[1][step]

    loader = make_data().train_dataloader()
    assert [grays(batch) for batch in loader] == [grays(batch) for batch in loader] == list(whole.values())
    replaced = [sorted(chain.from_iterable(trained_on(make_data(epoch=epoch)).values())) for epoch in range(3)]
    assert replaced[0] != replaced[1] or replaced[1] != replaced[2]
    assert sorted(chain.from_iterable(trained_on(make_data(seed=1)).values())) != replaced[0]


@pytest.mark.slow
def test_workers_replace_alike_and_report(make_data: Callable[..., ImageFolder], tmp_path: Path) -> None:
    assert trained_on(make_data(num_workers=2, run="workers")) == trained_on(make_data(run="alone"))
    lists = [sorted((tmp_path / run / BAD_IMAGES_NAME).read_text().split("\n")) for run in ("workers", "alone")]
    assert lists[0] == lists[1]


def test_the_runs_folder_lists_path_reason_and_epoch(
    make_data: Callable[..., ImageFolder], folder: Path, tmp_path: Path
) -> None:
    data = make_data(epoch=2)
    trained_on(data)
    trained_on(data)  # twice in one epoch, as after a resume: no line is repeated
    lines = [line.split("\t") for line in (tmp_path / "run" / BAD_IMAGES_NAME).read_text().splitlines()]

    assert sorted(line[0] for line in lines) == [str(folder / "train" / f"{number:02d}.png") for number in BAD]
    assert all(line[1].startswith("truncated or corrupt (") and line[2] == "2" for line in lines)


def test_too_many_bad_images_stop_the_run(make_data: Callable[..., ImageFolder], tmp_path: Path) -> None:
    trained_on(make_data(max_bad_fraction=0.1, run="enough"))  # 3 of 30
    with pytest.raises(
        ValueError, match=r"3 of 30 training images are bad \(10.00%\), more than data.max_bad_fraction="
    ):
        trained_on(make_data(max_bad_fraction=0.099, run="few"))
    assert len((tmp_path / "few" / BAD_IMAGES_NAME).read_text().splitlines()) == 3
    with pytest.raises(ValueError, match="1 of 30 training images are bad"):
        trained_on(make_data(max_bad_fraction=0.0, run="none"))


def test_processes_of_a_run_count_together(make_data: Callable[..., ImageFolder]) -> None:
    shares = [
        {number for batch in make_data(rank=rank, devices=2).train_dataloader() for number in batch.bad}
        for rank in range(2)
    ]
    assert all(0 < len({bad.name for bad in share}) < 3 for share in shares)  # neither alone would stop
    trained_on(make_data(rank=0, devices=2, max_bad_fraction=0.099))
    with pytest.raises(ValueError, match="3 of 30"):
        trained_on(make_data(rank=1, devices=2, max_bad_fraction=0.099))


def test_a_replacement_may_be_bad_too(folder: Path, make_data: Callable[..., ImageFolder]) -> None:
    for path in sorted((folder / "train").iterdir())[:20]:
        path.write_bytes(b"")
    found = [number for step in trained_on(make_data(max_bad_fraction=1.0)).values() for number in step]
    assert len(found) == COUNT
    assert min(found) >= 20


def test_where_nothing_can_be_read_the_run_stops(folder: Path, make_data: Callable[..., ImageFolder]) -> None:
    for path in (folder / "train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"bad image .*: empty file; so were the 10 images drawn in its place"):
        trained_on(make_data(max_bad_fraction=1.0))


@pytest.mark.parametrize("split", ["val", "train"])
def test_evaluation_replaces_nothing(folder: Path, make_data: Callable[..., ImageFolder], split: Any) -> None:
    (folder / "val" / "01.png").write_bytes(b"")
    data = make_data()
    with pytest.raises(ValueError, match=r"bad image .*; repair or remove the file: evaluation never replaces images"):
        list(data.evaluation_loader(split))
    with pytest.raises(
        ValueError,
        match=r"bad image .*val/01\.png: empty file; repair or remove the file: evaluation never replaces images",
    ):
        data.held_out_images(3)


def test_a_share_out_of_range_is_refused(make_data: Callable[..., ImageFolder]) -> None:
    with pytest.raises(ValueError, match=r"max_bad_fraction must be a fraction in 0..1, got 2"):
        make_data(max_bad_fraction=2)


def test_replacements_are_others_in_each_epoch_for_each_image_and_by_each_seed() -> None:
    images = InMemoryDataset(torch.zeros(1000, 3, 2, 2, dtype=torch.uint8), torch.zeros(1000).long(), ())
    crop = CenterCrop(size=(2, 2), crop_pct=1.0)

    def replacements(epoch: int, index: int, seed: int) -> list[int]:
        first, *others = ReplaceBadImage(images, crop, seed=seed)._candidates(SampleKey(epoch, index))
        assert first == SampleKey(epoch, index)
        return [key.index for key in others]

    drawn = replacements(0, 3, 0)
    assert drawn == replacements(0, 3, 0)
    assert drawn not in (replacements(1, 3, 0), replacements(0, 4, 0), replacements(0, 3, 1))


def test_a_list_that_cannot_be_written_costs_no_training_and_no_limit(
    make_data: Callable[..., ImageFolder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").write_text("in the place of the folder")
    found = [number for step in trained_on(make_data()).values() for number in step]
    assert not set(found) & set(BAD)
    said = [record.message for record in caplog.records if "could not be written" in record.message]
    assert said == [f"{tmp_path}/run/bad_images.txt could not be written (File exists); bad images are only counted"]
    with pytest.raises(ValueError, match="3 of 30 training images are bad"):
        trained_on(make_data(max_bad_fraction=0.08))


@pytest.mark.parametrize("is_first", [True, False])
def test_what_is_known_of_a_bad_image_keeps_no_batch_alive(
    make_data: Callable[..., ImageFolder], *, is_first: bool
) -> None:
    """A worker lives as long as the run: an error that it keeps would keep, by its frames, the images read beside."""
    dataset = make_data().train_dataloader().dataset
    keys = [SampleKey(0, index) for index in (3, *BAD, 5)]
    if not is_first:
        dataset.__getitems__(keys)
    batch = dataset.__getitems__(keys)
    images = weakref.ref(batch.image)
    assert {bad.name[-6:] for bad in batch.bad} == {"04.png", "11.png", "12.png"}
    del batch
    gc.collect()
    assert images() is None
