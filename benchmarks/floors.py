"""What images give away without any network: k-NN and a linear layer on raw pixels and on color statistics.

    python benchmarks/floors.py --data-root DIR   # CIFAR-10
    python benchmarks/floors.py                   # the quickstart's generated pictures

Both on the program's own splits and with its own evaluators, so that they stand beside `eval=knn` and `eval=linear`.
"""

import argparse

import torch

from unmask.data.datamodule import ImageDataModule
from unmask.evaluation.features import Features
from unmask.evaluation.knn import KNN
from unmask.evaluation.linear import LinearProbe
from unmask.runtime.builders import build
from unmask.runtime.config import compose_config

BINS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="CIFAR-10, as data.root takes it; left out: the generated pictures")
    settings = parser.parse_args()
    root = settings.data_root
    overrides = ["data=cifar10", f"data.root={root}", "data.verify=false"] if root else ["data=synthetic"]
    data: ImageDataModule = build(compose_config("run", overrides).data)
    samples = [data.dataset(split) for split in ("train", "val", "test")]
    images = [split.images.float() / 255.0 for split in samples]

    pixels = [Features(image.flatten(1), split.labels) for image, split in zip(images, samples, strict=True)]
    colors = [Features(color_statistics(image), split.labels) for image, split in zip(images, samples, strict=True)]
    names = {
        "raw pixels in 0..1": pixels,
        f"mean, deviation and {BINS}-bin histogram of each channel": colors,
    }
    for name, (train, val, test) in names.items():
        print(f"k-NN of {name}: {_describe(KNN().score(train, test, data.num_classes))}")
        print(f"linear layer on {name}: {_describe(LinearProbe().score(train, val, test, data.num_classes).metrics)}")


def color_statistics(images: torch.Tensor) -> torch.Tensor:
    """Numbers that know nothing of where a color is: [b 3 h w] in 0..1 to [b (2 + bins) * 3]."""
    values = images.flatten(2)
    bins = (values * BINS).long().clamp(max=BINS - 1)
    histogram = torch.stack([(bins == number).float().mean(dim=2) for number in range(BINS)], dim=2)
    return torch.cat([values.mean(dim=2), values.std(dim=2), histogram.flatten(1)], dim=1)


def _describe(metrics: dict[str, float]) -> str:
    return f"{metrics['top1']:.2f} [{metrics['top1_ci95_low']:.2f}, {metrics['top1_ci95_high']:.2f}]"


if __name__ == "__main__":
    main()
