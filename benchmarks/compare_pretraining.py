"""What short pre-trainings are worth beside each other: equal images or equal CPU time, several seeds, one table.

    python benchmarks/compare_pretraining.py --data-root DIR --epochs 3 --seeds 0 1 2 untrained simmim ddmim
    python benchmarks/compare_pretraining.py --data-root DIR --cpu-minutes 6 simmim ddmim "ddmim without contrast"

Each run is one process on one core, and its time is CPU time; work on a core's other thread still slows it down, so
compare times of runs made side by side. Recipes, data, k-NN and linear probe are the program's own (the probe trained
for 30 epochs, not 90); the learning rate follows its schedule over the budget. Appends each row to `--out` as it is
measured.
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from timm.models.swin_transformer_v2 import SwinTransformerV2Block

from unmask.backbones.attention import prefer_fast_attention
from unmask.evaluation.features import read_features
from unmask.evaluation.knn import KNN
from unmask.evaluation.linear import LinearProbe
from unmask.methods.base import Method
from unmask.methods.ddmim import DDMIM
from unmask.optim.param_groups import decay_groups
from unmask.randomness import keyed_permutation, sample_keys, stream_key
from unmask.runtime.builders import build
from unmask.runtime.checkpoint import export_weights
from unmask.runtime.config import compose_config
from unmask.types import ImageBatch

WARMUP = 0.05  # of the budget
VARIANTS = {
    "untrained": ["experiment=simmim_cifar10"],
    "simmim": ["experiment=simmim_cifar10"],
    "ddmim": ["experiment=ddmim_cifar10"],
    "ddmim without reconstruction": ["experiment=ddmim_cifar10", "method.reconstruction=null"],
    "ddmim with a slow teacher": ["experiment=ddmim_cifar10", "method.teacher.time_constant=3e4"],
    "ddmim with features": [
        "experiment=ddmim_cifar10",
        "method.features={_target_:unmask.methods.ddmim_terms.StageFeatureTerm,_partial_:true,weights:[0.3,0.03]}",
    ],
    "ddmim on one crop": ["experiment=ddmim_cifar10", "method.views.crops=null", "augmentation.scale=[0.2,1]"],
    "ddmim with more hidden": ["experiment=ddmim_cifar10", "method.mask_generator.ratios=[0.6,0.6]"],
    "ddmim without contrast": ["experiment=ddmim_cifar10", "method.contrast=null", "method.teacher=null"],
    "ddmim without averaging": [
        "experiment=ddmim_cifar10",
        "method.teacher.time_constant=null",
        "method.teacher.momentum=0",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="CIFAR-10, as data.root takes it")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--epochs", type=float, help="passes over the training images")
    budget.add_argument("--cpu-minutes", type=float)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("compare_pretraining.md"))
    parser.add_argument("--keep", type=Path, help="folder for the backbones, which eval.py ckpt_path= reads")
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every variant")
    parser.add_argument(
        "--compile", action="store_true", help="torch compiles the blocks, a fifth faster here; its time counts too"
    )
    parser.add_argument("variants", nargs="+", choices=sorted(VARIANTS))
    settings = parser.parse_args()

    torch.set_num_threads(1)
    measured: dict[str, list[dict[str, float]]] = {variant: [] for variant in settings.variants}
    for seed, variant in itertools.product(settings.seeds, settings.variants):
        row = measure(variant, seed, settings)
        measured[variant].append(row)
        with settings.out.open("a") as file:
            file.write(f"{variant} seed {seed}: {row}\n")
    print("| variant | epochs | CPU minutes | k-NN | linear probe |\n|---|---|---|---|---|")
    for variant, rows in measured.items():
        print(f"| {variant} | " + " | ".join(_spread([row[key] for row in rows]) for key in rows[0]) + " |")


def measure(variant: str, seed: int, settings: argparse.Namespace) -> dict[str, float]:
    """Trains one variant and evaluates its backbone."""
    overrides = [*VARIANTS[variant], f"data.root={settings.data_root}", "data.verify=false", f"seed={seed}"]
    config = compose_config("run", [*overrides, *settings.set])
    seed_everything(seed, verbose=False)
    data = build(config.data)
    method: Method = build(config.method)
    prefer_fast_attention(method, device=torch.device("cpu"), is_bfloat16=True)
    if settings.compile:
        for part in method.modules():
            if isinstance(part, SwinTransformerV2Block):
                part.compile(dynamic=False)
    epochs, minutes = (0.0, 0.0) if variant == "untrained" else train(method, data, config, settings)
    backbone = method.exported_backbone
    if settings.keep is not None:
        settings.keep.mkdir(parents=True, exist_ok=True)
        export_weights(backbone, settings.keep / f"{variant.replace(' ', '-')}_seed-{seed}.safetensors")
    with torch.compiler.set_stance("force_eager"):  # blocks compiled again for evaluation would not gain it back
        train_features, val, test = (
            read_features(backbone, data, split, device=torch.device("cpu")) for split in ("train", "val", "test")
        )
    knn = KNN().score(train_features, test, data.num_classes)
    linear = LinearProbe(epochs=30).score(train_features, val, test, data.num_classes).metrics
    return {"epochs": epochs, "minutes": minutes, "top1_knn": knn["top1"], "top1_linear": linear["top1"]}


def train(method: Method, data: Any, config: Any, settings: argparse.Namespace) -> tuple[float, float]:
    """Trains within the budget; returns the epochs done and the CPU minutes taken."""
    batch_size, peak, clip = config.global_batch_size, config.optimizer.lr, config.trainer.gradient_clip_val
    images = data.dataset("train").images
    optimizer = torch.optim.AdamW(
        decay_groups(method), lr=peak, betas=tuple(config.betas), weight_decay=config.optimizer.weight_decay
    )
    method.train()
    begin, seen, step = time.process_time(), 0, 0
    for epoch, index in _batches(config.seed, len(images), batch_size):
        spent = (time.process_time() - begin) / 60
        done = spent / settings.cpu_minutes if settings.cpu_minutes else seen / (settings.epochs * len(images))
        if done >= 1:
            return seen / len(images), spent
        for group in optimizer.param_groups:
            group["lr"] = peak * min(
                done / WARMUP, (1 + math.cos(math.pi * max(0.0, done - WARMUP) / (1 - WARMUP))) / 2
            )
        keys = sample_keys(config.seed, "augmentation", epoch, index)
        cropped = data.augmentation.crop_batch(images[index], keys, data.image_size)
        batch = ImageBatch(data.normalise(cropped), torch.full_like(index, -1), index)
        with torch.autocast("cpu", torch.bfloat16):
            mask = method.mask_generator(batch.image, sample_keys(config.seed, "mask", epoch, index))
            loss = method(batch.image, mask).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), clip)
        optimizer.step()
        if isinstance(method, DDMIM) and method.teacher is not None:
            method.teacher.update(method.student_networks(), num_images=batch_size, step_of_epoch=step)
        seen, step = seen + batch_size, step + 1
    raise AssertionError("the batches never end")


def _batches(seed: int, count: int, batch_size: int) -> Iterator[tuple[int, torch.Tensor]]:
    for epoch in itertools.count():
        order = keyed_permutation(stream_key(seed, "order", epoch), count)
        for start in range(0, count - batch_size + 1, batch_size):
            yield epoch, order[start : start + batch_size]


def _spread(values: list[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()
