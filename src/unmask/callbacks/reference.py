"""What good runs of a recipe showed at each epoch, which a run is compared with."""

import csv
import json
import math
import statistics
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from unmask.atomic_write import atomic_write

FORMAT = 1
# Readings kept of a run; all are logged once an epoch. Those of probes come beside them.
TRAIN_LOSS, GRADIENT_NORM, VAL_LOSS = "train/loss_epoch", "train/gradient_norm_epoch", "val/loss"
EFFECTIVE_RANK, STD, CHANGE = "features/effective_rank", "features/std", "features/change"
KEPT = (TRAIN_LOSS, GRADIENT_NORM, VAL_LOSS, EFFECTIVE_RANK, STD, CHANGE)
PROBE = "probe/"

# Half of a band is the largest of these; ours.
_DEVIATIONS = 4.0  # of the runs at that epoch: of three, the deviation itself is uncertain
_OF_MEAN = 0.1
_PACE = 0.75  # of the steps: how far back a good run may be; ours
_OF_CURVE = 0.03  # from the least to the greatest mean of the curve: so wide also where the runs happen to agree

# Settings that make runs comparable, and those among them that another good run may have otherwise.
_COMPARED = ("data.", "global_batch_size", "method.")
_FREE = (
    "data.max_bad_fraction",
    "data.num_test",
    "data.num_workers",
    "data.on_bad_image",
    "data.worker_timeout",
    "method.optimizer.",
    "method.schedule.",
)
_SEED = "seed"  # what their names end in


class Band(NamedTuple):
    """From the least to the greatest value that is no surprise."""

    low: float
    high: float


class _Point(NamedTuple):
    step: int  # optimizer steps done
    mean: float  # over the runs
    std: float  # of the runs; 0 of a single one


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Curves of good runs, and what a run must have in common with them to be compared.

    Attributes:
        name: For messages.
        num_runs: Over which the curves are taken.
        num_steps: Optimizer steps of each run.
        settings: Which the runs share, by dotted names.
        images: Fingerprints of their splits.
        curves: By the name they were logged under.
    """

    name: str
    num_runs: int
    num_steps: int
    settings: Mapping[str, Any]
    images: Mapping[str, str]
    curves: Mapping[str, Sequence[_Point]]

    def band(self, name: str, step: int) -> Band | None:
        """What the runs showed after that many optimizer steps, or after three quarters of them.

        Good runs may lie a good part of their steps apart before their curves meet, more than the deviations of a few
        seeds tell. Between two epochs the values are those on the line between them.

        Returns:
            None where they kept no such reading, or none so early.
        """
        curve = self.curves.get(name, ())
        if not curve or step < curve[0].step:
            return None
        now, earlier = _band(curve, step), _band(curve, max(curve[0].step, round(_PACE * step)))
        return Band(min(now.low, earlier.low), max(now.high, earlier.high))

    def difference(
        self, settings: Mapping[str, Any], *, images: Mapping[str, str], num_steps: int | None
    ) -> str | None:
        """Names the first thing in which a run differs from those of the reference; None where it is comparable.

        The seed, the learning rate and the optimizer may be others: a wrong rate is what a reference is to show. A
        setting that the file does not name is newer than it. Images are the same by their fingerprints: settings do
        not tell one folder of images from another, and how low a loss can get depends on the images.
        """
        own = compared_settings(settings)
        for key in sorted(self.settings, key=lambda name: (name.count("."), name)):
            if self.settings[key] != own.get(key):
                return f"{key} is {own.get(key)}, there {self.settings[key]}"
        others = [split for split, fingerprint in self.images.items() if images.get(split) != fingerprint]
        if others:
            return f"other images in the {' and '.join(others)} split"
        return None if num_steps == self.num_steps else f"{num_steps} optimizer steps, there {self.num_steps}"


def compared_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a run's settings, by dotted names, in which runs of one recipe are alike."""
    return {
        key: value
        for key, value in settings.items()
        if key.startswith(_COMPARED) and not key.startswith(_FREE) and not key.endswith(_SEED)
    }


def read_reference(path: Path) -> Reference:
    """Reads a file that `write_reference` made.

    Raises:
        ValueError: There is none, or it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"it has format {content['format']}")
        return Reference(
            name=path.name.partition(".")[0],
            num_runs=int(content["runs"]),
            num_steps=int(content["steps"]),
            settings=dict(content["settings"]),
            images={str(split): str(fingerprint) for split, fingerprint in content["images"].items()},
            curves={
                str(name): [_Point(int(step), float(mean), float(std)) for step, mean, std in points]
                for name, points in content["curves"].items()
            },
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"reference={path} is no file of reference curves ({error}); python -m unmask.reference RUN RUN RUN "
            "out=FILE makes one of good runs"
        ) from None


def write_reference(
    path: Path, tables: Sequence[Path], *, settings: Mapping[str, Any], images: Mapping[str, str]
) -> None:
    """Writes the means and deviations, at each epoch, of what runs of several seeds have logged.

    Args:
        path: Of the file.
        tables: The `metrics.csv` of each run.
        settings: Of one of the runs.
        images: Fingerprints of its splits.

    Raises:
        ValueError: A run lacks the readings, or the runs differ in their numbers of steps.
    """
    runs = [_read_kept(table) for table in tables]
    steps = {max(step for curve in run.values() for step in curve) for run in runs}
    if len(steps) > 1:
        raise ValueError(f"the runs are of {', '.join(map(str, sorted(steps)))} steps; a reference takes runs of one")
    shared = [name for name in runs[0] if all(name in run for run in runs)]
    content = {
        "format": FORMAT,
        "runs": len(runs),
        "steps": steps.pop(),
        "settings": compared_settings(settings),
        "images": dict(images),
        "curves": {name: list(_curve([run[name] for run in runs])) for name in shared},
    }
    with atomic_write(path) as partial:
        partial.write_text(_as_json(content), encoding="utf-8")


def _band(curve: Sequence[_Point], step: int) -> Band:
    means = [point.mean for point in curve]
    mean, std = _between(curve, step)
    half = max(_DEVIATIONS * std, _OF_MEAN * abs(mean), _OF_CURVE * (max(means) - min(means)))
    return Band(mean - half, mean + half)


def _between(curve: Sequence[_Point], step: int) -> tuple[float, float]:
    right = min(bisect_left(curve, step, key=lambda point: point.step), len(curve) - 1)
    left = max(0, right - 1)
    before, after = curve[left], curve[right]
    if step >= after.step or before.step == after.step:
        return after.mean, after.std
    part = (step - before.step) / (after.step - before.step)
    return before.mean + part * (after.mean - before.mean), before.std + part * (after.std - before.std)


def _curve(runs: Sequence[Mapping[int, float]]) -> Iterable[_Point]:
    for step in sorted(set(runs[0]).intersection(*runs)):
        values = [run[step] for run in runs]
        std = statistics.stdev(values) if len(values) > 1 else 0.0
        yield _Point(step, float(f"{statistics.fmean(values):.5g}"), float(f"{std:.3g}"))


def _read_kept(table: Path) -> dict[str, dict[int, float]]:
    """Values by name and optimizer steps done, of the readings a reference keeps."""
    found: dict[str, dict[int, float]] = {}
    with table.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            for name, text in row.items():
                if text and (name in KEPT or str(name).startswith(PROBE)) and math.isfinite(float(text)):
                    found.setdefault(name, {})[int(row["step"]) + 1] = float(text)
    if TRAIN_LOSS not in found:
        raise ValueError(f"{table} holds no {TRAIN_LOSS}; make the runs with callbacks.verdict and logger=csv")
    return found


def _as_json(content: Mapping[str, Any]) -> str:
    """One line a setting and a curve, so that a change of the file can be read."""
    lines = [f' "{key}": {json.dumps(content[key])}' for key in ("format", "runs", "steps")]
    for key in ("settings", "images", "curves"):
        inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content[key].items())
        lines.append(f' "{key}": {{\n{inner}\n }}')
    return "{\n" + ",\n".join(lines) + "\n}\n"
