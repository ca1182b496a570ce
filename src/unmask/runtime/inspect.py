"""A look at a data set before the run."""

import itertools
import logging
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from torch.utils.data import DataLoader, Dataset

from unmask.callbacks.panel import as_shown
from unmask.callbacks.pictures import save_figure
from unmask.data.auto_split import AutoSplitDataModule
from unmask.data.datamodule import ImageDataModule
from unmask.data.dataset import RawBatch
from unmask.data.files.splits import Split
from unmask.data.inspection import Inspection, inspect_images
from unmask.inference.contact_sheet import Cell, contact_sheet
from unmask.methods.backbone_module import BackboneModule
from unmask.runtime.builders import build, build_module, build_trainer
from unmask.runtime.follow_data import follow_image_size, is_following
from unmask.runtime.setting_types import require_types
from unmask.types import ImageBatch

_SMALL = 32  # px; images with a shorter side are counted
_COLUMNS = 6  # of the contact sheet
_NUM_SHOWN = 24  # pictures of the contact sheet
_NUM_NAMED = 5  # bad images, and groups of equal ones
_STEPS_OF_AN_EPOCH = 1000  # as schedules are told; few of them are made
_BATCH_ON_CPU, _BATCH_ON_GPU = 18, 64  # images of a timed step

_log = logging.getLogger("unmask")


def inspect(config: DictConfig) -> None:
    """Prints what is in a data set and whether a loader can feed the chosen model, and draws a contact sheet.

    Raises:
        ValueError: There are no training images, or none can be read.
    """
    start = time.monotonic()
    require_types(config)
    logging.getLogger(AutoSplitDataModule.__module__).setLevel(logging.WARNING)  # what it says of splits is said below
    data: ImageDataModule = build(config.data, on_bad_image="skip", max_bad_fraction=1.0, statistics="auto")
    if is_following(config):
        follow_image_size(config, data)
    splits, missing = _splits(data)
    found = inspect_images(data, splits, num_decoded=config.decoded_images)
    for line in itertools.chain(_describe_splits(data, splits, missing), _describe(found, data, splits)):
        _log.info(line)
    if found.pixels is None:
        raise ValueError("no training image that was decoded can be read, or all are of one color; see above")
    _log.info(_row("pixels", *_describe_pixels(found, config)))
    logging.getLogger("unmask.data").setLevel(logging.WARNING)  # all has been said when the splits were first read
    data = _with_small_batches(config, data, found)
    batch = _describe_speed(config, data)
    _log.info(_row("contact sheet", str(_draw(data, batch, Path(config.contact_sheet)))))
    _log.info(_row("took", f"{time.monotonic() - start:.0f} s"))


def _splits(data: ImageDataModule) -> tuple[list[Split], dict[Split, str]]:
    """The splits there are, and why the others are not."""
    data.dataset("train")
    found, missing = [], {}
    for split in get_args(Split):
        try:
            data.dataset(split)
        except ValueError as error:
            missing[split] = str(error)
        else:
            found.append(split)
    return found, missing


def _row(name: str, text: str, *more: str) -> str:
    return "\n".join([f"{name:>13}  {text}", *(f"{'':15}{line}" for line in more)])


def _describe_splits(data: ImageDataModule, splits: Sequence[Split], missing: dict[Split, str]) -> Iterator[str]:
    for split in splits:
        samples = data.dataset(split)
        unlabeled = int((samples.labels < 0).sum())
        sizes = torch.bincount(samples.labels[samples.labels >= 0], minlength=len(samples.class_names))
        classes = "no labels"
        if samples.class_names and len(sizes):
            few, many = int(sizes.argmin()), int(sizes.argmax())
            spread = f"{int(sizes[few]):,} ({samples.class_names[few]}) to {int(sizes[many]):,} each"
            same = f"{int(sizes[few]):,} each"
            classes = f"{len(sizes)} classes of {same if sizes[few] == sizes[many] else spread}"
            classes += f", {unlabeled:,} without label" if unlabeled else ""
        yield _row(split, f"{len(samples):,} images, {classes}")
    for split, reason in missing.items():
        yield _row(split, f"none: {reason}")


def _describe(found: Inspection, data: ImageDataModule, splits: Sequence[Split]) -> Iterator[str]:
    facts = [fact for split in splits for fact in found.facts[split] if fact.kind]
    kinds = Counter(fact.kind for fact in facts)
    yield _row("formats", ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(8)) or "none")
    if facts:
        yield _row("sizes", *_describe_sizes([(fact.height, fact.width) for fact in facts]))
    total = sum(len(found.facts[split]) for split in splits)
    examined = f"header and end of {total:,} read, {found.num_decoded:,} decoded in full"
    named = [f"{name}: {reason}" for name, reason in found.bad[:_NUM_NAMED]]
    if len(found.bad) > _NUM_NAMED:
        named.append(f"and {len(found.bad) - _NUM_NAMED} more")
    yield _row("bad", f"{len(found.bad) or 'none'} ({examined})", *named)
    yield _row("duplicates", *_describe_duplicates(found, data, splits))


def _describe_sizes(sizes: Sequence[tuple[int, int]]) -> list[str]:
    different = set(sizes)
    if len(different) == 1:
        height, width = sizes[0]
        lines = [f"all {height}x{width} px"]
    else:
        by_area = sorted(sizes, key=lambda size: size[0] * size[1])
        (low, high), (least, most) = by_area[0], by_area[-1]
        middle = by_area[len(by_area) // 2]
        lines = [f"{low}x{high} to {least}x{most} px (height x width), half of them above {middle[0]}x{middle[1]}"]
    small = sum(min(size) < _SMALL for size in sizes)
    if small:
        lines.append(f"{small:,} with a side shorter than {_SMALL} px")
    return lines


def _describe_duplicates(found: Inspection, data: ImageDataModule, splits: Sequence[Split]) -> list[str]:
    inside = [f"{found.num_repeated(split):,} in {split}" for split in splits if found.num_repeated(split)]
    between = [
        f"{found.num_shared(second, first):,} of {second} are in {first} too"
        for first, second in itertools.combinations(splits, 2)
        if found.num_shared(second, first)
    ]
    examples = [
        " = ".join(f"{data.dataset(split).name_of(index)} ({split})" for split, index in group[:2])
        for group in found.duplicates[: _NUM_NAMED - 2]
    ]
    return [f"{', '.join(inside + between) or 'none'} (files equal byte for byte)", *examples]


def _describe_pixels(found: Inspection, config: DictConfig) -> list[str]:
    assert found.pixels is not None
    mean, std = (", ".join(f"{value:.3f}" for value in values) for values in found.pixels)
    configured = [list(config.data.pixel_mean), list(config.data.pixel_std)]
    given = (
        ", ".join(f"{value:.3f}" for value in configured[0]) + " and " + ", ".join(f"{v:.3f}" for v in configured[1])
    )
    advice = "measured when a run begins" if config.data.get("statistics") == "auto" else f"configured: {given}"
    return [f"mean {mean}, deviation {std} of the training images decoded", advice]


def _with_small_batches(config: DictConfig, data: ImageDataModule, found: Inspection) -> ImageDataModule:
    """The data as training serves them, in batches small enough to be timed."""
    assert found.pixels is not None
    if config.data.get("statistics") == "auto":
        config.data.pixel_mean, config.data.pixel_std = list(found.pixels.mean), list(found.pixels.std)
        config.data.statistics = "given"
    on_gpu = torch.cuda.is_available() and config.trainer.accelerator in ("auto", "gpu", "cuda")
    most = min(config.global_batch_size, _BATCH_ON_GPU if on_gpu else _BATCH_ON_CPU, len(data.dataset("train")))
    config.global_batch_size = most
    config.trainer.accumulate_grad_batches = 1
    return build(config.data, on_bad_image="skip", max_bad_fraction=1.0)  # type: ignore[no-any-return]


def _describe_speed(config: DictConfig, data: ImageDataModule) -> ImageBatch:
    """Times the loader and the model, says which is slower, and returns a batch as the model sees it."""
    served, loading = _time_loading(data, config.seconds_of_loading)
    workers = "images in memory" if data.holds_images_in_memory else f"{data.num_workers} workers"
    _log.info(_row("loading", f"{_rounded(loading)} images/s, decoded and augmented ({workers})"))
    if config.timed_steps:
        try:
            method = build_module(config.method, data)
            training, device = _time_training(config, method, served)
        except ValueError as error:
            _log.info(_row("training", f"not timed: {error}"))
        else:
            verdict = "loading keeps up" if loading >= training else f"loading is {training / loading:.1f} times slower"
            _log.info(
                _row(
                    "training",
                    f"{_rounded(training)} images/s, {_describe_step(method, served)} on {device}: {verdict}",
                )
            )
    return served


def _rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _describe_step(method: BackboneModule, batch: ImageBatch) -> str:
    backbone = method.exported_backbone
    size = sum(parameter.numel() for parameter in backbone.parameters()) / 1e6
    return f"{type(method).__name__}, {type(backbone).__name__} of {size:.1f} M, steps of {len(batch.image)}"


def _time_loading(data: ImageDataModule, seconds: float) -> tuple[ImageBatch, float]:
    """A batch, and the images per second of the training loader once its workers have started."""
    loader = data.train_dataloader()
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    first: RawBatch = next(batches)
    served = data.to_model_input(first, augmented=True)
    for _ in range(2 * data.num_workers if not data.holds_images_in_memory else 0):
        next(batches)  # what workers prepared while they were waited for
    images, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        batch = data.to_model_input(next(batches), augmented=True)
        images += len(batch.image)
    return served, images / max(time.monotonic() - start, 1e-9)


def _time_training(config: DictConfig, method: BackboneModule, batch: ImageBatch) -> tuple[float, str]:
    """Images per second of whole training steps on one device, the first left out, and the device's name."""
    clock = _Clock(config.timed_steps + 1)
    trainer = build_trainer(
        config,
        callbacks=[clock],
        logger=False,
        devices=1,
        num_nodes=1,
        strategy="auto",
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    warnings.filterwarnings("ignore", message="You defined a `validation_step`")
    trainer.fit(method, train_dataloaders=DataLoader(_Repeated(batch), batch_size=None))
    images: int = len(batch.image) * config.timed_steps
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"this {device.type.upper()}"
    return images / (clock.times[-1] - clock.times[0]), name


class _Repeated(Dataset[ImageBatch]):
    """One batch at every step."""

    def __init__(self, batch: ImageBatch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return _STEPS_OF_AN_EPOCH

    def __getitem__(self, _: int) -> ImageBatch:
        return self.batch


class _Clock(Callback):
    """Notes when each step is done and ends the training after some."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.monotonic())
        trainer.should_stop = len(self.times) >= self.num_steps


def _draw(data: ImageDataModule, batch: ImageBatch, path: Path) -> Path:
    images = as_shown(batch.image[:_NUM_SHOWN], pixel_mean=data.pixel_mean, pixel_std=data.pixel_std)
    names = data.class_names
    captions = [names[label] if 0 <= label < len(names) else "" for label in batch.label.tolist()][: len(images)]
    height, width = data.image_size
    cells = [Cell(image, caption) for image, caption in zip(images, captions, strict=True)]
    figure = contact_sheet(
        [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)],
        title="Training images as the model will see them",
        subtitle=f"augmented, {height}x{width} px, {data.decoder.channels} channel(s)",
    )
    free = _free_name(path)
    save_figure(figure, free)
    return free


def _free_name(path: Path) -> Path:
    numbered = (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([path], numbered) if not candidate.exists())
