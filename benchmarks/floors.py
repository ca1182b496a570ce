"""What CIFAR-10 gives away without any network: k-NN of raw pixels, a linear layer on colour statistics.

    python benchmarks/floors.py --data-root DIR

Both on the program's own splits and with its own evaluators, so that they stand beside `eval=knn` and `eval=linear`.
"""

import argparse

import torch

from unmask.data.sources.cifar10 import CIFAR10
from unmask.evaluation.features import Features
from unmask.evaluation.knn import KNN
from unmask.evaluation.linear import LinearProbe
from unmask.runtime.builders import build
from unmask.runtime.config import compose_config

BINS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="CIFAR-10, as data.root takes it")
    settings = parser.parse_args()
    overrides = ["data=cifar10", f"data.root={settings.data_root}", "data.verify=false"]
    data: CIFAR10 = build(compose_config("run", overrides).data)
    samples = [data.dataset(split) for split in ("train", "val", "test")]
    images = [split.images.float() / 255.0 for split in samples]

    pixels = [Features(image.flatten(1), split.labels) for image, split in zip(images, samples, strict=True)]
    print(f"k-NN of raw pixels in 0..1: {_describe(KNN().score(pixels[0], pixels[2], data.num_classes))}")
    colours = [Features(colour_statistics(image), split.labels) for image, split in zip(images, samples, strict=True)]
    metrics = LinearProbe().score(*colours, data.num_classes).metrics
    print(f"linear layer on mean, deviation and {BINS}-bin histogram of each channel: {_describe(metrics)}")


def colour_statistics(images: torch.Tensor) -> torch.Tensor:
    """Numbers that know nothing of where a colour is: [b 3 h w] in 0..1 to [b (2 + bins) * 3]."""
    values = images.flatten(2)
    bins = (values * BINS).long().clamp(max=BINS - 1)
    histogram = torch.stack([(bins == number).float().mean(dim=2) for number in range(BINS)], dim=2)
    return torch.cat([values.mean(dim=2), values.std(dim=2), histogram.flatten(1)], dim=1)


def _describe(metrics: dict[str, float]) -> str:
    return f"{metrics['top1']:.2f} [{metrics['top1_ci95_low']:.2f}, {metrics['top1_ci95_high']:.2f}]"


if __name__ == "__main__":
    main()
