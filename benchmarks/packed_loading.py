"""How fast a training loop is served from packed images, beside torchvision's ImageFolder, both in one run.

    python benchmarks/packed_loading.py --photos DIR     # a folder of photographs, repeated to --images files

The photographs are packed by `write_packed` (raw pixels, short side 256) into a temporary folder. The other side is
ImageFolder with the usual transforms on Pillow images (RandomResizedCrop(bicubic), RandomHorizontalFlip, ToTensor,
Normalize). Both serve the same size and area shares with the same number of workers. The sides take turns, each in a
process of its own, so that whatever else the machine does falls on both: only the paired ratios carry over to another
machine or hour. Beside images a second stand CPU milliseconds an image, of all processes of a side together, which a
busy machine changes less.
"""

import argparse
import gc
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from loading import count_images, our_data, repeat_photos, usual_photo_loader
from turns import ratios, spread, take_turns

from unmask.data.packing import Packing, write_packed
from unmask.runtime.memory import keep_freed_memory


class Cost(NamedTuple):
    """Of one image."""

    wall: float  # seconds
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of images, nested or flat")
    parser.add_argument("--images", type=int, default=2000, help="files a turn reads")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each side")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    settings = parser.parse_args()
    keep_freed_memory()  # as the commands do; it serves both sides
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sides = prepare(Path(folder), settings)
        print(f"{settings.images} photos, {settings.image_size} px, {settings.workers} workers, batch {settings.batch}")
        report(take_turns(sides, measure, rounds=settings.rounds))  # the first round fills the page cache


def prepare(folder: Path, settings: argparse.Namespace) -> dict[str, Callable[[], Iterable[torch.Tensor]]]:
    files = repeat_photos(settings.photos, folder / "files", settings.images)
    whole = ["data.val_fraction=0", "data.test_fraction=0"]
    source = our_data(["data=folder", f"data.root={files}", *whole], settings)
    write_packed(source, folder / "packed", Packing(format="raw", size=256), ["train"])
    for name in ("files", "packed"):
        size = sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file())
        print(f"{name}: {size / 2**20:.0f} MiB")
    cache = f"data.cache_dir={folder / 'cache'}"
    packed = our_data(["data=shards", f"data.root={folder / 'packed'}", cache, *whole], settings)
    packed.dataset("train")  # the shards are listed before the clock starts, as files are
    return {
        "ImageFolder, Pillow transforms": lambda: (images for images, _ in usual_photo_loader(files, settings)),
        "data=folder, as workers hand over": lambda: (batch.image for batch in source.train_dataloader()),
        "data=shards, packed raw at 256 px, as workers hand over": lambda: (
            batch.image for batch in packed.train_dataloader()
        ),
        "the same, until normalized": lambda: (
            packed.to_model_input(batch, augmented=True).image for batch in packed.train_dataloader()
        ),
    }


def measure(side: Callable[[], Iterable[torch.Tensor]]) -> Cost:
    """Reads one epoch in a process of its own, whose workers have ended when their time is counted."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        start, used = time.perf_counter(), cpu_seconds()
        count = count_images(side)
        wall = time.perf_counter() - start
        gc.collect()  # ends persistent workers
        sender.send(Cost(wall / count, (cpu_seconds() - used) / count))

    process = context.Process(target=run)
    process.start()
    cost: Cost = receiver.recv()
    process.join()
    return cost


def cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    usages = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def report(costs: dict[str, list[Cost]]) -> None:
    """Prints each side's medians and its ratios to the first side, paired by round: median [least, most]."""
    reference = next(iter(costs.values()))
    print("| side | images/s | ratio | CPU ms an image | ratio |\n|---|---|---|---|---|")
    for name, measured in costs.items():
        rate = 1 / statistics.median(cost.wall for cost in measured)
        cpu = 1000 * statistics.median(cost.cpu for cost in measured)
        faster, cheaper = (
            spread(ratios([cost[place] for cost in reference], [cost[place] for cost in measured]))
            for place in range(2)
        )
        print(f"| {name} | {rate:.0f} | {faster} | {cpu:.2f} | {cheaper} |")


if __name__ == "__main__":
    main()
