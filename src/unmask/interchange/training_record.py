"""Tells in Markdown how a checkpoint came about and what was measured of it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unmask.interchange.model_card import markdown_table
from unmask.interchange.record import KIND_KEY

_RECIPE_KEYS = ("seed", "image_size", "global_batch_size", "base_lr", "base_batch_size")


class TrainingRun(NamedTuple):
    """A training run as its checkpoint records it: plain values and kinds, no places on a machine."""

    record: Mapping[str, Any]  # `method`, `data`, `training`
    origin: Mapping[str, Any]  # `versions`, `git`, `images_seen`, `steps`


class Measurement(NamedTuple):
    """One number of a report."""

    protocol: str  # in full
    metrics: Mapping[str, float]
    num_test_images: int
    baseline_top1: float | None  # of the untrained network under the same protocol, percent
    commit: str | None  # of the program that measured
    report: str  # where it was read


def training_section(run: TrainingRun, *, title: str) -> str:
    """Describes one run: its main settings in a table, all that decide the result beneath."""
    method, data, training = (_mapping(run.record.get(name)) for name in ("method", "data", "training"))
    trainer = _mapping(training.get("trainer"))
    rows = {
        "method": _call(method, ("norm_pix_loss", "layer_decay", "mixup", "cutmix", "label_smoothing")),
        "masks": _call(method.get("mask_generator")),
        "data": _call(data, ("image_size", "num_train", "split_seed")),
        "augmentation": _call(data.get("augmentation")),
        "optimizer": _call(method.get("optimizer")),
        "schedule": _call(method.get("schedule")),
        "batch": _shown(training.get("global_batch_size")),
        "length": _length(run),
        "precision": _shown(trainer.get("precision")),
        "seed": _shown(training.get("seed")),
        "program": _program(run.origin),
    }
    settings = {name: training[name] for name in _RECIPE_KEYS if name in training}
    settings |= {"method": method, "data": data, "trainer": trainer}
    details = ["<details><summary>All settings</summary>", "", "```json", json.dumps(settings, indent=1), "```", ""]
    known = {name: value for name, value in rows.items() if value}
    return "\n".join([f"## {title}", "", markdown_table(known), "", *details, "</details>"])


def accuracy_section(measurements: Sequence[Measurement]) -> str:
    """Lists what reports measured, each number with its protocol; says so where there is none."""
    if not measurements:
        return "## Accuracy\n\nNo report of this checkpoint was given or found, so no accuracy is stated."
    lines = ["## Accuracy", "", "| protocol | top-1, % [95 % interval] | top-5, % | untrained, top-1 | test images |"]
    lines.append("|---|---|---|---|---|")
    for measured in measurements:
        top5, baseline = measured.metrics.get("top5"), measured.baseline_top1
        cells = [
            measured.protocol.replace("|", "\\|"),
            _top1(measured.metrics),
            "" if top5 is None else f"{top5:.2f}",
            "" if baseline is None else f"{baseline:.2f}",
            f"{measured.num_test_images:,}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    sources = [f"- {m.report}" + (f", measured at commit {m.commit}" if m.commit else "") for m in measurements]
    return "\n".join([*lines, "", *sources])


def _top1(metrics: Mapping[str, float]) -> str:
    if "top1" not in metrics:
        return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    interval = [metrics.get(f"top1_ci95_{end}") for end in ("low", "high")]
    if None in interval:
        return f"{metrics['top1']:.2f}"
    return f"{metrics['top1']:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _length(run: TrainingRun) -> str:
    epochs = _mapping(run.record.get("training")).get("epochs")
    is_planned = isinstance(epochs, int | float) and epochs > 0
    parts = [
        f"{epochs:g} epochs planned" if is_planned else "",
        f"{run.origin['steps']:,} steps done" if run.origin.get("steps") else "",
        f"{run.origin['images_seen']:,} images seen" if run.origin.get("images_seen") else "",
    ]
    return ", ".join(part for part in parts if part)


def _program(origin: Mapping[str, Any]) -> str:
    versions = {name: version for name, version in (origin.get("versions") or {}).items() if version}
    git = origin.get("git") or {}
    changed = " with uncommitted changes" if git.get("is_dirty") else ""
    commit = f", commit {git['commit']}{changed}" if git.get("commit") else ""
    return ", ".join(f"{name} {version}" for name, version in versions.items()) + commit


def _call(node: Any, names: Sequence[str] | None = None) -> str:
    """Writes a configured object as `Name(key=value, ...)`; None shows every plain value."""
    if not isinstance(node, Mapping) or KIND_KEY not in node:
        return ""
    plain = {name: value for name, value in node.items() if not isinstance(value, Mapping) and name != KIND_KEY}
    shown = {name: value for name, value in plain.items() if (names is None or name in names) and value is not None}
    arguments = ", ".join(f"{name}={_shown(value)}" for name, value in shown.items())
    name = str(node[KIND_KEY])
    return f"{name}({arguments})" if arguments else name


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
