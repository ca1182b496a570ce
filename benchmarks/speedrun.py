"""A race on CIFAR-10: from nothing to a linear probe, by pre-training without labels, on two cores or one GPU.

    python benchmarks/speedrun.py benchmarks/speedrun/mae_5_minutes.yaml --out races data.root=DIR
    python benchmarks/speedrun.py --page docs/speedrun.md    # writes the tables anew, from the records alone

Rules:
    1. An entry is one command of `run.py`, given as overrides in a file of `benchmarks/speedrun/`. Its time is that
       of the whole command, from the start of Python to the end of the process, validation and pictures included.
    2. It starts from random weights and learns from the training split of CIFAR-10 without labels: no other data, no
       weights from a file, no online probe.
    3. Measured is `checkpoints/last.ckpt`, by k-NN and a linear probe whose settings are `EVALUATION` below, the same
       for all. Layer and rate of the probe are chosen on 5,000 held-out training images. The time of measuring does
       not count.
    4. Test images choose nothing: an entry is tuned on the held-out images with other seeds than those it is run with.
    5. A record has three seeds. What other processes did on the machine stands beside it as the load.

A record (`benchmarks/speedrun/records/ENTRY.json`) holds the command, commit, machine, versions and, by seed, wall and
CPU seconds, the figures and the curve of the training loss over time; logs stay under `--out`. Commands that are
finished are not run again. Records of different machines cannot be compared.
"""

import argparse
import csv
import json
import logging
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from compare import CHECKPOINT, EVAL, RUN, CommandError, Commands

from unmask.atomic_write import atomic_write

ENTRIES = Path(__file__).resolve().parent / "speedrun"
RECORDS = ENTRIES / "records"
SEEDS = (0, 1, 2)
EVALUATION = (
    "eval=all",
    "eval.protocols.linear.epochs=30",
    "eval.protocols.logistic=null",
    "eval.protocols.fewshot=null",
    "eval.protocols.clustering=null",
    "eval.protocols.anomaly=null",
    "eval.baseline=false",
)
DATA = ("data=cifar10", "data.verify=false")
_KEYS = {"title", "minutes", "bar", "run"}
_FORBIDDEN = {  # keys of overrides, and why
    "data": "every entry learns from CIFAR-10",
    "ckpt_path": "an entry starts from random weights",
    "method.init_from": "an entry starts from random weights",
    "seed": "the race gives the seeds",
    "probes": "a probe reads labels",
}
_MARKS = ("<!-- table of records: written by benchmarks/speedrun.py -->", "<!-- end of the table -->")
_CURVE_POINTS = 40


def read_entry(path: Path) -> dict[str, Any]:
    """Reads an entry: `title`, `minutes` (the class it races in), `bar` (linear top-1 to reach), `run` (overrides).

    Raises:
        ValueError: A key is missing or unknown, or an override breaks a rule.
    """
    entry = yaml.safe_load(path.read_text())
    if not isinstance(entry, dict) or set(entry) != _KEYS:
        raise ValueError(f"{path}: an entry has the keys {', '.join(sorted(_KEYS))}")
    for override in entry["run"]:
        check_override(override)
    return entry


def check_override(override: str) -> None:
    """Raises a ValueError that names the rule an override breaks."""
    key, _, value = override.lstrip("+~").partition("=")
    for forbidden, reason in _FORBIDDEN.items():
        if key == forbidden or (key.startswith(forbidden + ".") and key != "data.root"):
            raise ValueError(f"{override} is against the rules: {reason}")
    if (key, value) == ("method", "supervised"):
        raise ValueError(f"{override} is against the rules: an entry learns without labels")


def race(path: Path, out: Path, overrides: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Runs an entry with each seed and measures it; returns its record."""
    entry, commands = read_entry(path), Commands(one_core=False)
    for override in overrides:
        check_override(override)
    runs = []
    for seed in seeds:
        home = out / path.stem / f"seed_{seed}"
        load = os.getloadavg()[0]
        trained = commands.finish(
            home / "pretraining", RUN, [*entry["run"], *DATA, *overrides, f"seed={seed}"], CHECKPOINT
        )
        checkpoint = home / "pretraining" / CHECKPOINT
        measured = commands.finish(
            home / "frozen", EVAL, [*EVALUATION, f"seed={seed}", f"ckpt_path={checkpoint}"], "report.json"
        )
        runs.append(
            {"seed": seed, "load_before": round(load, 1), "commit": trained["git"]}
            | {"command": without_places(trained["command"])}
            | {key: round(trained[key], 1) for key in ("wall_seconds", "cpu_seconds")}
            | {"evaluation": without_places(measured["command"]), "steps": _steps_of(checkpoint)}
            | figures_of(json.loads((home / "frozen" / "report.json").read_text()))
            | {"curve": curve_of(home / "pretraining" / "csv" / "metrics.csv", trained["wall_seconds"])}
        )
    return {
        "title": entry["title"],
        "minutes": entry["minutes"],
        "bar": entry["bar"],
        "run": entry["run"],
        "machine": describe_machine(),
        "runs": runs,
    }


def without_places(command: Sequence[str]) -> list[str]:
    """Leaves out where files lie, which is nobody else's concern."""
    return [word for word in command if not word.startswith(("data.root=", "ckpt_path=", "hydra.run.dir="))]


def figures_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """Takes k-NN and linear top-1 of a checkpoint, with their 95 % interval over test images."""
    by_protocol = {name.rpartition("/")[2]: entry["metrics"] for name, entry in report["reports"].items()}
    figures: dict[str, Any] = {"val_linear": by_protocol["linear"]["val_top1"]}
    for protocol in ("knn", "linear"):
        metrics = by_protocol[protocol]
        figures[protocol] = metrics["top1"]
        figures[f"{protocol}_ci95"] = [round(metrics[f"top1_ci95_{end}"], 2) for end in ("low", "high")]
    return figures


def curve_of(metrics: Path, wall_seconds: float) -> list[tuple[float, float]]:
    """Reads the training loss as (seconds, loss), the steps spread evenly over the time of the command."""
    with metrics.open(newline="") as rows:
        losses = [(int(row["step"]), float(row["train/loss"])) for row in csv.DictReader(rows) if row["train/loss"]]
    last = losses[-1][0]
    thinned = losses[:: max(1, len(losses) // _CURVE_POINTS)]
    return [(round(wall_seconds * step / last, 1), round(loss, 4)) for step, loss in thinned]


def describe_machine() -> dict[str, Any]:
    """The processor, cores that may be used, GPU and versions."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def table_of(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Writes the records as Markdown, the shortest class first and the best linear probe first in each."""
    lines = [
        "| entry | steps | wall min | CPU min, 1st process | linear probe | k-NN | held-out linear | bar | load |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ordered = sorted(records.items(), key=lambda item: (item[1]["minutes"], -_mean(item[1], "linear")))
    for name, record in ordered:
        runs = record["runs"]
        minutes = {key: [run[f"{key}_seconds"] / 60 for run in runs] for key in ("wall", "cpu")}
        reached = _mean(record, "linear") >= record["bar"] and max(minutes["wall"]) <= record["minutes"]
        bar = f"{record['bar']} in {record['minutes']} min: {'reached' if reached else 'missed'}"
        lines.append(
            f"| {record['title']} (`{name}`) | {runs[0]['steps']:,} | {_spread(minutes['wall'], 1)} "
            f"| {_spread(minutes['cpu'], 1)} | {_spread([run['linear'] for run in runs], 1)} "
            f"| {_spread([run['knn'] for run in runs], 1)} | {_spread([run['val_linear'] for run in runs], 1)} "
            f"| {bar} | {max(run['load_before'] for run in runs)} |"
        )
    return "\n".join(lines)


def details_of(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Says of each record what was run, where and at which commit."""
    parts = []
    for name, record in sorted(records.items()):
        machine, commits = record["machine"], sorted({_commit(run) for run in record["runs"]})
        where = f"{machine['cores']} cores of {machine['processor']}"
        parts.append(
            f"**{name}**, at {', '.join(commits)}, on {machine['gpu'] or where}, torch {machine['torch']}, Python "
            f"{machine['python']}; seeds {', '.join(str(run['seed']) for run in record['runs'])}:\n\n"
            f"```bash\npython run.py {shlex.join([*record['run'], *DATA])} data.root=DIR seed=0\n```"
        )
    return "\n\n".join(parts)


def write_page(page: Path) -> None:
    """Replaces the tables of a page by those of the records that are there.

    Raises:
        ValueError: The page lacks the lines between which the tables stand.
    """
    records = {path.stem: json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))}
    before, begin, rest = page.read_text().partition(_MARKS[0])
    _, end, after = rest.partition(_MARKS[1])
    if not begin or not end:
        raise ValueError(f"{page} needs the two lines {_MARKS[0]} and {_MARKS[1]}")
    with atomic_write(page) as partial:
        partial.write_text(f"{before}{begin}\n{table_of(records)}\n\n{details_of(records)}\n{end}{after}")


def _commit(run: Mapping[str, Any]) -> str:
    git = run["commit"]
    return "unknown" if git is None else f"{git['commit'][:7]}{' with changes' if git['is_dirty'] else ''}"


def _mean(record: Mapping[str, Any], key: str) -> float:
    return statistics.fmean(run[key] for run in record["runs"])


def _spread(values: Sequence[float], digits: int) -> str:
    """The mean, and the smallest and largest where there are several."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def _steps_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["global_step"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entry", type=Path, nargs="?", help="YAML, such as benchmarks/speedrun/mae_5_minutes.yaml")
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--page", type=Path, help="writes the tables of a page from the records; runs nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="other seeds than 0 1 2 write no record")
    parser.add_argument("overrides", nargs="*", help="data.root=DIR")
    settings = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        if settings.page is not None:
            write_page(settings.page)
            return 0
        if settings.entry is None or settings.out is None:
            parser.error("give an entry and --out, or --page")
        record = race(settings.entry, settings.out, settings.overrides, settings.seeds)
    except (ValueError, OSError, yaml.YAMLError) as error:
        parser.error(str(error))
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if tuple(settings.seeds) == SEEDS:
        RECORDS.mkdir(parents=True, exist_ok=True)
        with atomic_write(RECORDS / f"{settings.entry.stem}.json") as partial:
            partial.write_text(json.dumps(record, indent=1) + "\n")
    print(table_of({settings.entry.stem: record}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
