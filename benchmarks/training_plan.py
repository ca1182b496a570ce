"""Hours, cost, loading and network of the published recipes, planned from counted operations; nothing is timed.

    python benchmarks/training_plan.py                       # all recipes of conf/experiment that name ImageNet
    python benchmarks/training_plan.py --only mae_vit --price 2.5

Of each recipe the configuration is composed and its network built without storage. Counted: the operations of an image
(`unmask.callbacks.model_flops.count_flops`), parameters, images, epochs and the batch. Assumed, each an option: the
peak of a GPU, what fraction of it training reaches, the size of a JPEG file, what a core loads, and the bandwidths.
Nothing of it was measured on a GPU. Left out: evaluation, start, writing checkpoints, latency of the network.

`hours = operations of an image * images * epochs / (GPUs * peak * utilization)`

A network's step needs `images a GPU * operations of an image / (peak * utilization)`, of which the backward pass is two
thirds. DDP sends each gradient by a ring, `2 (n - 1) / n * 4 bytes * trained parameters` from each of n GPUs; FSDP
gathers weights for the forward and for the backward pass and scatters gradients, `3 (n - 1) / n * 2 bytes * parameters`
with Lightning's bf16-mixed. Rings leave a node once and share all its links to others. Both run beside the backward
pass, so DDP becomes the limit where the ring takes longer.
"""

import argparse
import functools
import json
import math
import platform
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from unmask.callbacks.model_flops import count_flops
from unmask.runtime.builders import build
from unmask.runtime.config import compose_config

EXPERIMENTS = Path(__file__).resolve().parents[1] / "conf" / "experiment"
IMAGENET, CLASSES = 1_281_167, 1000  # training images and classes of ImageNet-1k
DEVICES = (8, 64, 512)
GPUS_A_NODE = 8
BACKWARD = 2 / 3  # of a step
_NETWORK = re.compile(r"_(vit|swin|swinv2)-(\w+?)_\d+b-\d+e_in1k-(\d+)px")
_KEEPS_FEATURES = re.compile(r"/eval: linear$", flags=re.MULTILINE)
_OPTIMIZER = {"_target_": "torch.optim.AdamW", "_partial_": True}
_UNUSED = {"optimizer": _OPTIMIZER, "schedule": _OPTIMIZER, "seed": 0}  # which change no operation


@dataclass(frozen=True)
class Recipe:
    """What a recipe takes.

    Attributes:
        name: Of its file.
        network: As its name says, with the image's side.
        kind: "pre-training", "fine-tuning" or "linear probe".
        flops: Operations of an image, forward and backward.
        images: Of an epoch.
        epochs: Passes over them.
        batch: Images of an optimizer step, over all GPUs.
        parameters: Of the network that is trained, with a frozen backbone and without a teacher.
        trained: Those of them that have a gradient.
    """

    name: str
    network: str
    kind: str
    flops: float
    images: int
    epochs: int
    batch: int
    parameters: int
    trained: int

    @property
    def total_flops(self) -> float:
        return self.flops * self.images * self.epochs


@dataclass(frozen=True)
class Assumptions:
    """What was not measured.

    Attributes:
        peak: Operations per second of a GPU in bfloat16.
        utilization: Fraction of it that training reaches: low, middle, high.
        image_bytes: Of a JPEG file.
        images_a_core: Loaded per second.
        node_bandwidth: Bytes per second that a GPU sends within its node.
        network_bandwidth: Bytes per second that a node sends to others by all its links.
        price: Of a GPU hour; None leaves cost out.
    """

    peak: float
    utilization: tuple[float, float, float]
    image_bytes: float
    images_a_core: float
    node_bandwidth: float
    network_bandwidth: float
    price: float | None = None

    @property
    def speed(self) -> float:
        """Operations per second of a GPU at the middle utilization."""
        return self.peak * self.utilization[1]


def hours(recipe: Recipe, devices: int, assumed: Assumptions) -> list[float]:
    """Hours at the highest, the middle and the lowest utilization."""
    return [recipe.total_flops / (devices * assumed.peak * one) / 3600 for one in reversed(assumed.utilization)]


def step_seconds(recipe: Recipe, devices: int, assumed: Assumptions) -> float:
    """What an optimizer step computes, without communication."""
    return recipe.batch / devices * recipe.flops / assumed.speed


def sent_by_ddp(trained: int, devices: int) -> float:
    """Bytes each GPU sends in an all-reduce of float32 gradients by a ring."""
    return 2 * (devices - 1) / devices * 4 * trained


def sent_by_fsdp(parameters: int, devices: int) -> float:
    """Bytes each GPU sends in a step: weights gathered twice, gradients scattered once, in bfloat16."""
    return 3 * (devices - 1) / devices * 2 * parameters


def bandwidth(devices: int, assumed: Assumptions) -> float:
    """Of the slowest part of a ring."""
    return assumed.node_bandwidth if devices <= GPUS_A_NODE else min(assumed.node_bandwidth, assumed.network_bandwidth)


def limit_of_ddp(recipe: Recipe, assumed: Assumptions) -> float:
    """GPUs on several nodes from which on an all-reduce takes longer than the backward pass beside it."""
    ring = 2 * 4 * recipe.trained / bandwidth(GPUS_A_NODE + 1, assumed)  # (n - 1) / n is 1 there
    return BACKWARD * recipe.batch * recipe.flops / assumed.speed / ring


def published(only: Sequence[str] = ("",)) -> list[str]:
    """The recipes on ImageNet whose name holds one of these.

    Without that of `eval=linear`, which computes the features of each image once and trains on what it has kept.
    """
    paths = [path for path in EXPERIMENTS.glob("*.yaml") if _NETWORK.search(path.stem)]
    names = sorted(path.stem for path in paths if not _KEEPS_FEATURES.search(path.read_text(encoding="utf-8")))
    return [name for name in names if any(part in name for part in only)]


def compose(name: str) -> DictConfig:
    """The configuration of a recipe, of `run.py` or `eval.py` as its file says."""
    is_evaluation = "python eval.py" in (EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8")
    command, given = ("eval", ["ckpt_path=x"]) if is_evaluation else ("run", [])
    return compose_config(command, [f"experiment={name}", "paths.run_dir=x", "callbacks=none", "logger=none", *given])


def read(name: str, config: DictConfig | None = None) -> Recipe:
    """A recipe as its file composes."""
    config = compose(name) if config is None else config
    found = _NETWORK.search(name)
    assert found is not None
    family, size, _ = found.groups()
    if "eval" in config:
        side = config.backbone.image_size or int(found[3])
        kind = "linear probe" if "_linear_" in name else "fine-tuning"
        # SimMIM's ViT is BEiT's; windows are those its fine-tuning sets, or of the size in which it pre-trained
        model = f"{'beit' if name.startswith('simmim') and family == 'vit' else family}_{size}"
        window = config.backbone.window_size or (6 if family == "swin" and side == 192 else None)
        windows = [] if window is None else [f"model.window_size={window}"]
        classifier = _arithmetic_of(config.eval.classifier)
        flops, parameters, trained = _counted_classifier(model, side, tuple(windows), kind, classifier)
    else:
        side, kind = config.image_size, "pre-training"
        flops, parameters, trained = _counted_method(_arithmetic_of(config.method))
    network, (images, epochs) = f"{family}-{size} {side} px", images_and_epochs(config)
    return Recipe(name, network, kind, flops, images, epochs, config.global_batch_size, parameters, trained)


def images_and_epochs(config: DictConfig) -> tuple[int, int]:
    """ImageNet's images that an epoch of a recipe trains on, and the epochs; evaluations are taken to train on all."""
    if "eval" in config:
        return IMAGENET, config.eval.epochs
    return IMAGENET - CLASSES * config.data.held_out_per_class, config.trainer.max_epochs


def _arithmetic_of(node: DictConfig) -> str:
    """What of a node says which operations are done, so that recipes that share them are counted once."""
    content: Any = OmegaConf.to_container(node, resolve=True)
    return json.dumps({**content, **{name: value for name, value in _UNUSED.items() if name in content}})


@functools.cache
def _counted_method(text: str) -> tuple[float, int, int]:
    with torch.device("meta"):
        method = build(OmegaConf.create(json.loads(text)))
    return _counted(method)


@functools.cache
def _counted_classifier(
    model: str, side: int, windows: tuple[str, ...], kind: str, text: str
) -> tuple[float, int, int]:
    composed = compose_config("run", [f"model={model}", f"image_size={side}", *windows, "callbacks=none"])
    with torch.device("meta"):
        backbone = build(composed.model)
        if kind == "fine-tuning":
            backbone.prepare_for_finetuning(drop_path_rate=0.0)
        classifier = build(OmegaConf.create(json.loads(text)))(backbone=backbone, num_classes=CLASSES)
    return _counted(classifier)


def _counted(module: Any) -> tuple[float, int, int]:
    """Operations of an image, and parameters, all and trained; a teacher's are not sent."""
    flops = count_flops(module)
    assert flops is not None
    own = [parameter for name, parameter in module.named_parameters() if not name.startswith("teacher.")]
    return flops, sum(one.numel() for one in own), sum(one.numel() for one in own if one.requires_grad)


def hours_table(recipes: Iterable[Recipe], assumed: Assumptions) -> str:
    """A row for each recipe; those that compute the same share one."""
    alike: dict[tuple[Any, ...], list[Recipe]] = {}
    for recipe in recipes:
        alike.setdefault((recipe.network, recipe.kind, recipe.flops, recipe.images, recipe.epochs), []).append(recipe)
    cost = "" if assumed.price is None else " cost |"
    lines = [
        f"| recipe | GFLOP an image | images, millions | epochs | EFLOP | GPU hours | hours on 8 |{cost}",
        "|---|---|---|---|---|---|---|" + ("---|" if cost else ""),
    ]
    for group in alike.values():
        first = group[0]
        names = ", ".join(f"`{one.name}`" for one in group)
        cells = [names, _number(first.flops / 1e9), f"{first.images / 1e6:.2f}", str(first.epochs)]
        cells += [_number(first.total_flops / 1e18), _range(hours(first, 1, assumed)), _range(hours(first, 8, assumed))]
        if assumed.price is not None:
            cells.append(_range([one * assumed.price for one in hours(first, 1, assumed)]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def needs_table(recipes: Iterable[Recipe], assumed: Assumptions) -> str:
    """What pre-training needs at 8, 64 and 512 GPUs: one recipe for each network and batch."""
    chosen: dict[tuple[Any, ...], Recipe] = {}
    for recipe in recipes:
        if recipe.kind == "pre-training" and recipe.batch >= max(DEVICES):
            chosen.setdefault((recipe.flops, recipe.batch, recipe.trained), recipe)
    lines = [
        "| first recipe of its kind | images/s | JPEG MB/s | cores that load | step, ms "
        "| DDP: MB sent by a GPU, ms | FSDP: MB, ms | DDP is the limit from |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for recipe in chosen.values():
        rates = [count * assumed.speed / recipe.flops for count in DEVICES]
        cells = [f"`{recipe.name}`", _series(rates), _series(rate * assumed.image_bytes / 1e6 for rate in rates)]
        cells += [_series(rate / assumed.images_a_core for rate in rates)]
        cells += [_series(1e3 * step_seconds(recipe, count, assumed) for count in DEVICES)]
        for sent in (
            [sent_by_ddp(recipe.trained, count) for count in DEVICES],
            [sent_by_fsdp(recipe.parameters, count) for count in DEVICES],
        ):
            times = [1e3 * one / bandwidth(count, assumed) for one, count in zip(sent, DEVICES, strict=True)]
            cells.append(f"{statistics.mean(sent) / 1e6:.0f}; {_series(times)}")
        cells.append(_limit(limit_of_ddp(recipe, assumed)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _limit(devices: float) -> str:
    return f"{math.floor(devices)} GPUs" if devices > GPUS_A_NODE else f"more than {GPUS_A_NODE} GPUs"


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.3g}" if value < 1000 else f"{float(f'{value:.3g}'):,.0f}"


def _range(values: Sequence[float]) -> str:
    """Middle (least to most)."""
    least, middle, most = map(_number, values)
    return f"{middle} ({least} to {most})"


def _series(values: Iterable[float]) -> str:
    return " / ".join(map(_number, values))


def describe(assumed: Assumptions) -> str:
    """The assumptions as lines of Markdown."""
    low, middle, high = (f"{100 * one:.0f}" for one in assumed.utilization)
    return "\n".join(
        [
            f"- a GPU: {assumed.peak / 1e12:.0f} TFLOP/s at most in bfloat16, of which training reaches {middle} % "
            f"({low} to {high} %)",
            f"- an image: {assumed.image_bytes / 1e3:.0f} kB of JPEG; a core loads {assumed.images_a_core:.0f} a "
            "second",
            f"- a GPU sends {assumed.node_bandwidth / 1e9:g} GB/s within its node of {GPUS_A_NODE}, "
            f"a node {assumed.network_bandwidth / 1e9:g} GB/s to others",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="recipes whose name holds one of these")
    parser.add_argument(
        "--tflops", type=float, default=989, help="peak of a GPU in bfloat16, 1e12 operations per second"
    )
    parser.add_argument("--utilization", type=float, nargs=3, default=[25, 35, 45], help="percent: low, middle, high")
    parser.add_argument("--price", type=float, help="of a GPU hour; adds a column")
    parser.add_argument("--image-kb", type=float, default=115, help="kB of a JPEG file")
    parser.add_argument("--images-per-core", type=float, default=200, help="that a core loads in a second")
    parser.add_argument("--node-bandwidth", type=float, default=450, help="GB/s a GPU sends within a node")
    parser.add_argument("--network-bandwidth", type=float, default=400, help="GB/s a node sends to others")
    settings = parser.parse_args()
    low, middle, high = (one / 100 for one in settings.utilization)
    if not 0 < low <= middle <= high <= 1:
        parser.error("--utilization takes three rising numbers above 0 and at most 100")
    assumed = Assumptions(
        peak=1e12 * settings.tflops,
        utilization=(low, middle, high),
        image_bytes=1e3 * settings.image_kb,
        images_a_core=settings.images_per_core,
        node_bandwidth=1e9 * settings.node_bandwidth,
        network_bandwidth=1e9 * settings.network_bandwidth,
        price=settings.price,
    )
    recipes = [read(name) for name in published(settings.only)]
    if not recipes:
        parser.error(f"no recipe on ImageNet holds {' or '.join(settings.only)} in its name")
    print(f"{datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, Python {platform.python_version()}\n")
    print(describe(assumed) + "\n")
    print(hours_table(recipes, assumed) + "\n")
    print(needs_table(recipes, assumed))


if __name__ == "__main__":
    main()
