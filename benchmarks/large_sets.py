"""What very large sets of images cost before and beside training: memory of long lists, time to the first batch.

    python benchmarks/large_sets.py list --photos DIR --images 10000000
    python benchmarks/large_sets.py folder --photos DIR --images 1281167

`list` writes a text list of that many lines, which name links to the photos in a temporary folder, and reads batches of
it by `data=filelist`; printed is the memory of this process and of each worker (RSS counts shared pages in full, PSS in
proportion). `folder` makes that many links in 1,000 class folders and opens it by `data=folder`, for the first time and
again in a process of its own, which takes the remembered listing; printed are the seconds to the first training batch.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from unmask.data.datamodule import ImageDataModule
from unmask.runtime.builders import build
from unmask.runtime.config import compose_config

CLASSES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("list", "folder", "first_batch"))
    parser.add_argument("--photos", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--workers", type=int, default=2)
    settings = parser.parse_args()
    if settings.what == "first_batch":
        print_first_batch(settings)
        return
    with tempfile.TemporaryDirectory() as folder:
        if settings.what == "list":
            measure_list(Path(folder), settings)
        else:
            measure_folder(Path(folder), settings)


def measure_list(folder: Path, settings: argparse.Namespace) -> None:
    links = [folder / "photographs" / f"n{number:08}" / f"n{number:08}_{number}.JPEG" for number in range(CLASSES)]
    for link, photo in zip(links, repeated(settings.photos), strict=False):
        link.parent.mkdir(parents=True)
        link.symlink_to(photo)
    listing = folder / "train.txt"
    with listing.open("w") as lines:
        for number in range(settings.images):
            lines.write(f"{links[number % CLASSES]}, {number % CLASSES}\n")
    print(f"{settings.images} lines, {listing.stat().st_size / 2**20:.0f} MiB")
    data = our_data(["data=filelist", f"data.train={listing}", "data.val_fraction=0", "data.test_fraction=0"], settings)
    before = memory("self")
    start = time.perf_counter()
    samples = data.dataset("train")
    print(f"read in {time.perf_counter() - start:.0f} s, {len(samples)} images in {len(samples.class_names)} classes")
    after = memory("self")
    print(f"this process: {before['Rss']} MiB before, {after['Rss']} after, {peak()} at most while it was read")
    batches = iter(data.train_dataloader())
    for _ in range(40):
        next(batches)
    print(f"this process, while it trains: RSS {memory('self')['Rss']} MiB, PSS {memory('self')['Pss']}")
    for child in children():
        shares = memory(child)
        print(f"a worker: RSS {shares['Rss']} MiB, PSS {shares['Pss']}, its own {shares['Private_Dirty']}")


def measure_folder(folder: Path, settings: argparse.Namespace) -> None:
    photos = sorted(settings.photos.rglob("*.JPEG"))
    for number in range(CLASSES):
        (folder / "images" / f"n{number:08}").mkdir(parents=True)
    for number in range(settings.images):
        link = folder / "images" / f"n{number % CLASSES:08}" / f"{number:08}.JPEG"
        link.symlink_to(photos[number % len(photos)])
    time.sleep(3)  # a folder that changed a moment ago is not remembered
    command = [sys.executable, __file__, "first_batch", "--photos", str(folder / "images")]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    for name in ("first time", "again", "again"):
        print(f"{name}: ", end="", flush=True)
        subprocess.run([*command, "--workers", str(settings.workers)], check=True, env=environment)


def print_first_batch(settings: argparse.Namespace) -> None:
    start = time.perf_counter()
    data = our_data(["data=folder", f"data.root={settings.photos}"], settings)
    samples = data.dataset("train")
    found = time.perf_counter() - start
    next(iter(data.train_dataloader()))
    seconds = time.perf_counter() - start
    print(f"{seconds:.1f} s to the first batch, {found:.1f} of them to list and split {len(samples)} training images")


def our_data(overrides: list[str], settings: argparse.Namespace) -> ImageDataModule:
    sizes = ["global_batch_size=64", f"data.num_workers={settings.workers}"]
    data: ImageDataModule = build(compose_config("run", [*overrides, *sizes]).data)
    return data


def repeated(folder: Path) -> Iterator[Path]:
    photos = sorted(folder.rglob("*.JPEG"))
    while True:
        yield from photos


def memory(process: str) -> dict[str, int]:
    """MiB of each kind, from the kernel."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    return {name.rstrip(":"): int(size) // 1024 for name, size, *_ in map(str.split, lines)}


def peak() -> int:
    """MiB this process has held at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def children() -> list[str]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[1] == str(os.getpid()):
                found.append(stat.parent.name)
    return found


if __name__ == "__main__":
    main()
