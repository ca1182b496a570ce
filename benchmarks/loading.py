"""How fast images are served, beside the usual way, both sides in one run.

    python benchmarks/loading.py --photos DIR            # a folder of photographs, repeated to --images files
    python benchmarks/loading.py --cifar10 DIR           # as data.root takes it

Photos: `data=folder` against torchvision's ImageFolder with the usual transforms on Pillow images
(RandomResizedCrop(bicubic), RandomHorizontalFlip, ToTensor, Normalize), both at the same size and area shares, with the
same number of workers. CIFAR-10: a whole epoch of batches cropped and normalized, against the same transforms sample by
sample. The two sides take turns, so that whatever else the machine does falls on both; only the ratios carry over to
another machine.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms as T
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder as TorchvisionFolder
from torchvision.transforms import InterpolationMode
from turns import ratios, spread, take_turns

from unmask.data.datamodule import ImageDataModule
from unmask.runtime.builders import build
from unmask.runtime.config import compose_config
from unmask.runtime.memory import keep_freed_memory

SCALE = (0.2, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of images, nested or flat")
    parser.add_argument("--cifar10", type=Path, help="the folder of the official pickles")
    parser.add_argument("--images", type=int, default=2000, help="files a turn reads")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each side")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    settings = parser.parse_args()
    keep_freed_memory()  # as the commands do; it serves both sides
    torch.set_num_threads(1)
    if settings.photos is not None:
        with tempfile.TemporaryDirectory() as folder:
            compare_photos(repeat_photos(settings.photos, Path(folder), settings.images), settings)
    if settings.cifar10 is not None:
        compare_cifar10(settings)


def repeat_photos(source: Path, target: Path, count: int) -> Path:
    """Copies the photos in turn until there are `count` files, in ten class folders."""
    photos = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    for number in range(count):
        path = target / f"class{number % 10}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photos[number % len(photos)], path)
    return target


def usual_photo_loader(root: Path, settings: argparse.Namespace) -> DataLoader[Any]:
    """ImageFolder with the transforms of nearly every training script."""
    usual = T.Compose(
        [
            T.RandomResizedCrop(settings.image_size, scale=SCALE, interpolation=InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    return DataLoader(
        TorchvisionFolder(str(root), usual),
        batch_size=settings.batch,
        shuffle=True,
        drop_last=True,
        num_workers=settings.workers,
    )


def compare_photos(root: Path, settings: argparse.Namespace) -> None:
    theirs = usual_photo_loader(root, settings)
    data = our_data(["data=folder", f"data.root={root}", "data.val_fraction=0", "data.test_fraction=0"], settings)
    ours = data.train_dataloader()

    def finished() -> Iterable[torch.Tensor]:
        return (data.to_model_input(batch, augmented=True).image for batch in ours)

    sides: dict[str, Callable[[], Iterable[torch.Tensor]]] = {
        "ImageFolder, Pillow transforms": lambda: (images for images, _ in theirs),
        "data=folder, until normalized": finished,
        "data=folder, as workers hand over (normalized on the device)": lambda: (batch.image for batch in ours),
    }
    print(f"{settings.images} photos, {settings.image_size} px, {settings.workers} workers, batch {settings.batch}")
    report(take_turns(sides, images_per_second, rounds=settings.rounds))


def compare_cifar10(settings: argparse.Namespace) -> None:
    data = our_data(["data=cifar10", f"data.root={settings.cifar10}", "data.verify=false"], settings)
    images = data.dataset("train").images
    usual = T.Compose(
        [
            T.ToPILImage(),
            T.RandomResizedCrop(32, scale=SCALE, interpolation=InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(data.pixel_mean, data.pixel_std),
        ]
    )

    class PerSample(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> torch.Tensor:
            return usual(images[index])

    def per_sample(workers: int) -> Callable[[], Iterable[torch.Tensor]]:
        loader = DataLoader(PerSample(), settings.batch, shuffle=True, drop_last=True, num_workers=workers)
        return lambda: loader

    ours = data.train_dataloader()
    sides: dict[str, Callable[[], Iterable[torch.Tensor]]] = {
        "per sample, 0 workers": per_sample(0),
        f"per sample, {settings.workers} workers": per_sample(settings.workers),
        "data=cifar10, until normalized": lambda: (data.to_model_input(batch, augmented=True).image for batch in ours),
    }
    print(f"CIFAR-10, an epoch of {len(images)}, batch {settings.batch}, 1 thread")
    report(take_turns(sides, images_per_second, rounds=settings.rounds))


def our_data(overrides: list[str], settings: argparse.Namespace) -> ImageDataModule:
    sizes = [f"global_batch_size={settings.batch}"]
    if "data=cifar10" not in overrides:
        sizes += [f"image_size={settings.image_size}", f"data.num_workers={settings.workers}"]
    config = compose_config("run", [*overrides, *sizes, f"augmentation.scale={list(SCALE)}"])
    data: ImageDataModule = build(config.data)
    return data


def images_per_second(side: Callable[[], Iterable[torch.Tensor]]) -> float:
    """Of one pass over all that a side serves."""
    start = time.perf_counter()
    count = count_images(side)
    return count / (time.perf_counter() - start)


def count_images(side: Callable[[], Iterable[torch.Tensor]]) -> int:
    return sum(len(images) for images in side())


def report(rates: dict[str, list[float]]) -> None:
    """Prints each side's median and its ratio to the first side, paired by round."""
    reference = next(iter(rates.values()))
    print("| side | images/s (median) | ratio, paired: median [least, most] |\n|---|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {statistics.median(values):.0f} | {spread(ratios(values, reference))} |")


if __name__ == "__main__":
    main()
