from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from unmask.data.augmentation.transforms import Augmentation, resize_and_center_crop
from unmask.data.datamodule import ImageDataModule
from unmask.data.dataset import InMemoryDataset, RawBatch, SampleKey
from unmask.data.files.splits import Split
from unmask.data.sources.folder import ImageFolder

MEAN, STD = (0.1, 0.5, 0.8), (0.2, 0.4, 0.7)


class Memory(ImageDataModule):
    """Images in memory, the same in every split."""

    holds_images_in_memory = True

    def __init__(self, images: Tensor, **shared: Any) -> None:
        super().__init__(**shared)
        self.images = images
        self.reads = 0

    def load_split(self, split: Split) -> InMemoryDataset:
        self.reads += 1
        return InMemoryDataset(self.images, torch.arange(len(self.images)) % 3, ("a", "b", "c"))


def settings(**changes: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "image_size": 16,
        "pixel_mean": MEAN,
        "pixel_std": STD,
        "augmentation": Augmentation(),
        "global_batch_size": 8,
    }
    return defaults | changes


def make_data(count: int = 50, **changes: Any) -> Memory:
    images = torch.randint(256, (count, 3, 20, 24), dtype=torch.uint8)
    return Memory(images, **settings(**changes))


def attach_trainer(
    data: ImageDataModule, *, rank: int = 0, devices: int = 1, accumulated: int = 1, epoch: int = 0, done: int = 0
) -> None:
    """Gives the data module what it reads of a trainer."""
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=devices,
        accumulate_grad_batches=accumulated,
        training=True,
        fit_loop=SimpleNamespace(
            epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=epoch)),
            epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(processed=done))),
        ),
    )


@pytest.mark.parametrize(("devices", "accumulated"), [(1, 1), (2, 1), (1, 3), (2, 3), (6, 2)])
def test_an_optimizer_step_takes_the_global_batch(devices: int, accumulated: int) -> None:
    data = make_data(global_batch_size=12)
    steps: list[list[int]] = [[] for _ in range(50 // 12)]
    for rank in range(devices):
        attach_trainer(data, rank=rank, devices=devices, accumulated=accumulated)
        for number, batch in enumerate(data.train_dataloader()):
            assert len(batch.index) == 12 // (devices * accumulated)
            steps[number // accumulated] += batch.index.tolist()

    assert [len(set(step)) for step in steps] == [12] * 4
    alone = make_data(global_batch_size=12)
    assert [sorted(step) for step in steps] == [sorted(batch.index.tolist()) for batch in alone.train_dataloader()]


@pytest.mark.parametrize(
    ("size", "devices", "accumulated", "nearest"), [(10, 4, 1, 8), (11, 2, 3, 6), (1, 2, 1, 2), (3, 2, 4, 8)]
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest(
    size: int, devices: int, accumulated: int, nearest: int
) -> None:
    data = make_data(global_batch_size=size)
    attach_trainer(data, devices=devices, accumulated=accumulated)
    sentence = f"global_batch_size={size} does not divide among {devices} devices.*; use {nearest}$"
    with pytest.raises(ValueError, match=sentence):
        data.train_dataloader()
    data.global_batch_size = nearest
    assert len(next(iter(data.train_dataloader())).index) == nearest // (devices * accumulated)


@pytest.mark.parametrize(
    ("size", "devices", "accumulated", "advice"),
    [
        (8, 1, 1, "global_batch_size=3 or less"),
        (8, 2, 1, "global_batch_size=2"),
        (8, 1, 3, "global_batch_size=3"),
        (512, 2, 3, "global_batch_size=6"),
        (512, 1, 128, "global_batch_size=3 trainer.accumulate_grad_batches=null"),
        (512, 5, 2, "global_batch_size=5 trainer.accumulate_grad_batches=null"),
        (512, 8, 1, "trainer.devices=1 global_batch_size=3 trainer.accumulate_grad_batches=null"),
    ],
)
def test_a_training_split_smaller_than_a_batch_is_refused_with_settings_that_work(
    size: int, devices: int, accumulated: int, advice: str
) -> None:
    data = make_data(7, global_batch_size=size)
    attach_trainer(data, devices=devices, accumulated=accumulated)
    with pytest.raises(ValueError, match=f"has 7 images, fewer than one batch of {size}; set {advice}$"):
        data.train_dataloader()
    advised = dict(word.split("=") for word in advice.split() if "=" in word)
    data.global_batch_size = int(advised["global_batch_size"])
    attach_trainer(
        data,
        devices=int(advised.get("trainer.devices", devices)),
        accumulated=1 if "trainer.accumulate_grad_batches" in advised else accumulated,
    )
    assert len(data.train_dataloader()) >= 1


@pytest.mark.parametrize("devices", [1, 2])
def test_a_batch_as_large_as_the_training_split_is_taken(devices: int) -> None:
    data = make_data(7, global_batch_size=8)
    attach_trainer(data, devices=devices)
    assert len(data.val_dataloader()) == 1  # where a smaller batch is no harm
    whole = make_data(8, global_batch_size=8)
    attach_trainer(whole, devices=devices)
    assert len(whole.train_dataloader()) == 1


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("devices", [1, 3])
def test_an_evaluation_loader_reads_every_sample_once_in_order(split: Split, devices: int) -> None:
    data = make_data(50, global_batch_size=12)
    shares = []
    for rank in range(devices):
        attach_trainer(data, rank=rank, devices=devices, epoch=5, done=2)
        read = list(data.evaluation_loader(split))
        assert len(read) == 5  # on every device
        served = [data.to_model_input(batch, augmented=False).is_counted for batch in read]
        batches = [batch for batch, counted in zip(read, served, strict=True) if counted.all()]
        assert all(len(counted) == 1 for counted in served if not counted.all())  # a filler stands alone
        shares.append([index for batch in batches for index in batch.index.tolist()])
        assert all(batch.epoch.eq(0).all() for batch in batches)
        assert torch.equal(torch.cat([batch.image for batch in batches]), data.images[shares[-1]])
    assert all(share == sorted(share) for share in shares)
    assert sorted(index for share in shares for index in share) == list(range(50))
    if devices == 1:
        assert shares == [list(range(50))]
    assert data.reads == 1


def test_training_begins_where_the_trainer_stands() -> None:
    data = make_data(global_batch_size=12)
    attach_trainer(data, epoch=2)
    whole = [batch.index.tolist() for batch in data.train_dataloader()]
    attach_trainer(data, epoch=2, done=3)
    rest = list(data.train_dataloader())
    assert [batch.index.tolist() for batch in rest] == whole[3:]
    assert all(batch.epoch.eq(2).all() for batch in rest)
    attach_trainer(data, epoch=3)
    assert [batch.index.tolist() for batch in data.train_dataloader()] != whole


def test_the_order_depends_on_the_seed() -> None:
    orders = [[batch.index.tolist() for batch in make_data(seed=seed).train_dataloader()] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_images_are_divided_by_255_and_normalized_channel_by_channel() -> None:
    data = make_data(4, image_size=(20, 24))
    (batch,) = data.val_dataloader()
    finished = data.to_model_input(batch, augmented=False)
    for channel in range(3):
        expected = (data.images[:, channel].double() / 255 - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(finished.image[:, channel].double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(finished.label, torch.tensor([0, 1, 2, 0]))
    assert torch.equal(finished.index, torch.arange(4))


@pytest.mark.parametrize("rand_augment", [None, "rand-m9-mstd0.5-inc1"])
def test_images_in_memory_are_distorted_anew_in_each_epoch_and_by_each_seed(rand_augment: str | None) -> None:
    augmentation = Augmentation(random_erasing_prob=0.0 if rand_augment else 1.0, rand_augment=rand_augment)
    whole = torch.tensor([[0, 0, 20, 24, 0]]).expand(12, 5)
    images = torch.randint(256, (12, 3, 20, 24), dtype=torch.uint8)

    def served(epoch: int, seed: int) -> Tensor:
        data = Memory(images, **settings(augmentation=augmentation, seed=seed))
        batch = RawBatch(images, torch.zeros(12).long(), torch.arange(12), torch.full((12,), epoch), crop=whole)
        return data.to_model_input(batch, augmented=True).image

    first = served(0, 0)
    assert torch.equal(first, served(0, 0))
    for other in (served(1, 0), served(0, 1)):
        assert (first != other).flatten(1).any(dim=1).sum() > 6  # RandAugment may draw what changes nothing


@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_sees_the_centered_crop_of_the_given_fraction(crop_pct: float, interpolation) -> None:
    data = make_data(3, crop_pct=crop_pct, interpolation=interpolation)
    (batch,) = data.val_dataloader()
    expected = data.statistics.pixels.normalize_(
        resize_and_center_crop(data.images, (16, 16), crop_pct, interpolation=interpolation).float()
    )
    assert torch.equal(data.to_model_input(batch, augmented=False).image, expected)
    assert torch.equal(data.held_out_images(3).image, expected)


@pytest.mark.parametrize("is_training", [True, False])
def test_the_trainers_stage_decides_on_augmentation(is_training: bool) -> None:
    data = make_data(8)
    (batch,) = data.train_dataloader()
    attach_trainer(data)
    data.trainer.training = is_training
    expected = data.to_model_input(batch, augmented=is_training)
    assert torch.equal(data.on_after_batch_transfer(batch, 0).image, expected.image)
    assert not torch.equal(data.to_model_input(batch, augmented=not is_training).image, expected.image)


def test_held_out_images_are_spread_over_the_split() -> None:
    data = make_data(50)
    assert data.held_out_images(5).index.tolist() == [0, 10, 20, 30, 40]
    assert data.held_out_images(3).index.tolist() == [0, 16, 33]
    assert data.held_out_images(80).index.tolist() == list(range(50))


def raw_batch(data: Memory, keys: list[tuple[int, int]]) -> RawBatch:
    """What the training loader would hand over for these epochs and samples."""
    return data.train_dataloader().dataset.__getitems__([SampleKey(*key) for key in keys])


def test_augmentation_does_not_depend_on_the_batch() -> None:
    data = make_data(augmentation=Augmentation(random_erasing_prob=0.5), seed=3)
    keys = [(epoch, index) for epoch in (0, 1) for index in (4, 17, 30, 49)]
    together = data.to_model_input(raw_batch(data, keys), augmented=True).image
    for order in ([5, 2], [7], [6, 1, 0, 3]):
        apart = data.to_model_input(raw_batch(data, [keys[number] for number in order]), augmented=True).image
        torch.testing.assert_close(apart, together[order], rtol=0, atol=1e-4)


def test_augmentation_changes_with_seed_epoch_and_sample() -> None:
    data, other = make_data(), make_data(seed=1)
    data.images = other.images = data.images[:1].expand(50, -1, -1, -1)  # one image at every index
    keys = [(0, 0), (0, 1), (1, 0), (1, 1)]
    images = torch.cat([each.to_model_input(raw_batch(each, keys), augmented=True).image for each in (data, other)])
    distances = torch.cdist(images.flatten(1), images.flatten(1)).fill_diagonal_(torch.inf)
    assert distances.min() > 1.0


def smooth_images(count: int, height: int, width: int) -> Tensor:
    """Images that vary slowly, so that rounding shows little and a box moved by a pixel much."""
    rows, cols = torch.arange(height)[:, None] / height, torch.arange(width) / width
    waves = [
        127.5 * (1 + torch.sin(6 * (rows * (1 + channel) + cols * (2 - channel)) + image))
        for image in range(count)
        for channel in range(3)
    ]
    return torch.stack(waves).view(count, 3, height, width).round().to(torch.uint8)


def write_files(images: Tensor, folder: Path) -> None:
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:02}.png")


@pytest.mark.parametrize("augmented", [True, False])
@pytest.mark.parametrize("image_size", [(32, 32), (20, 28)])
def test_files_and_memory_serve_the_same_pixels(tmp_path: Path, augmented: bool, image_size: tuple[int, int]) -> None:
    images = smooth_images(12, 32, 40)
    write_files(images, tmp_path)
    unscaled = {"pixel_mean": (0.0, 0.0, 0.0), "pixel_std": (1.0, 1.0, 1.0)}
    shared = settings(image_size=image_size, global_batch_size=4, seed=2, interpolation="bilinear", **unscaled)
    memory = Memory(images, **shared)
    files = ImageFolder(root=str(tmp_path), val_fraction=0.0, test_fraction=0.0, crop_pct=1.0, **shared)
    for epoch in (0, 1):
        served = []
        for data in (memory, files):
            attach_trainer(data, epoch=epoch)
            loader = data.train_dataloader() if augmented else data.evaluation_loader("train")
            served.append([data.to_model_input(batch, augmented=augmented) for batch in loader])
        for in_memory, from_files in zip(*served, strict=True):
            assert torch.equal(in_memory.index, from_files.index)
            assert torch.equal(in_memory.image, from_files.image)


def test_erased_boxes_of_files_and_memory_agree(tmp_path: Path) -> None:
    images = torch.full((8, 3, 16, 16), 100, dtype=torch.uint8)
    write_files(images, tmp_path)
    shared = settings(augmentation=Augmentation(random_erasing_prob=1.0))
    memory = Memory(images, **shared)
    files = ImageFolder(root=str(tmp_path), val_fraction=0.0, test_fraction=0.0, **shared)
    (first,), (second,) = memory.train_dataloader(), files.train_dataloader()
    expected = memory.to_model_input(first, augmented=True).image
    torch.testing.assert_close(files.to_model_input(second, augmented=True).image, expected)
    background = expected.flatten(2).median(dim=2).values[..., None, None]
    assert (((expected - background).abs() > 1e-3).flatten(1).any(dim=1)).all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"crop_pct": 0.0}, r"crop_pct must lie above 0 and at most 1, got 0\.0"),
        ({"crop_pct": 1.2}, r"crop_pct must lie above 0 and at most 1, got 1\.2"),
        ({"interpolation": "area"}, r"data\.interpolation must be 'bicubic' or 'bilinear', got 'area'"),
        ({"global_batch_size": 0}, "global_batch_size must be at least 1, got 0"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_data(**changes)


@pytest.mark.parametrize("fraction", [0.25, 0.8])
def test_a_fraction_of_the_training_images_is_kept_and_not_left_out(fraction: float) -> None:
    data = make_data(40)
    whole = data.dataset("train").fingerprint
    data.loaded_splits.limit_training(fraction)
    kept = data.dataset("train")
    assert len(kept) == 40 * fraction
    counts = kept.labels.bincount(minlength=3) / 40
    assert ((counts - fraction / 3).abs() <= 1 / 40).all()
    data.loaded_splits.limit_training(fraction, seed=1)
    assert data.dataset("train").fingerprint != kept.fingerprint
    assert len(data.dataset("train")) == 40 * fraction  # of the whole split again
    data.loaded_splits.limit_training(1.0)
    assert data.dataset("train").fingerprint == whole
