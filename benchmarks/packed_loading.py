"""How fast a training loop is served from packed images, beside torchvision's ImageFolder, both in one run.

    python benchmarks/packed_loading.py --photos DIR     # a folder of photographs, repeated to --images files

The photographs are packed by `write_packed` (raw pixels, short side 256) into a temporary folder. The other side is
ImageFolder with the usual transforms on Pillow images (RandomResizedCrop(bicubic), RandomHorizontalFlip, ToTensor,
Normalize). Both serve the same size and area shares with the same number of workers. The sides take turns, so that
whatever else the machine does falls on both: only the paired ratios carry over to another machine or hour.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from loading import our_data, repeat_photos, report, take_turns, usual_photo_loader

from unmask.data.packing import Packing, write_packed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of images, nested or flat")
    parser.add_argument("--images", type=int, default=2000, help="files a turn reads")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each side")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), settings)


def compare(folder: Path, settings: argparse.Namespace) -> None:
    files = repeat_photos(settings.photos, folder / "files", settings.images)
    whole = ["data.val_share=0", "data.test_share=0"]
    source = our_data(["data=folder", f"data.root={files}", *whole], settings)
    write_packed(source, folder / "packed", Packing(format="raw", size=256), ["train"])
    cache = f"data.cache_dir={folder / 'cache'}"
    packed = our_data(["data=shards", f"data.root={folder / 'packed'}", cache, *whole], settings)

    theirs, files_loader, ours = (
        usual_photo_loader(files, settings),
        source.train_dataloader(),
        packed.train_dataloader(),
    )
    sides = {
        "ImageFolder, Pillow transforms": lambda: (images for images, _ in theirs),
        "data=folder, as workers hand over": lambda: (batch.image for batch in files_loader),
        "data=shards, packed raw at 256 px, until normalised": lambda: (
            packed.finish(batch, augmented=True).image for batch in ours
        ),
        "data=shards, packed raw at 256 px, as workers hand over": lambda: (batch.image for batch in ours),
    }
    size = {
        name: sum(path.stat().st_size for path in (folder / name).rglob("*.*") if path.is_file())
        for name in ("files", "packed")
    }
    print(f"{settings.images} photos, {settings.image_size} px, {settings.workers} workers, batch {settings.batch}")
    print(f"on disk: files {size['files'] / 2**20:.0f} MiB, packed {size['packed'] / 2**20:.0f} MiB")
    report(take_turns(sides, settings.rounds))


if __name__ == "__main__":
    main()
