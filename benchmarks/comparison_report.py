"""What `compare.py` writes: means over seeds, differences paired by seed with their interval, and their origin."""

import csv
import io
import math
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from scipy import stats

from unmask.atomic_write import atomic_write
from unmask.callbacks.pictures import save_figure

CONFIDENCE = 0.95
_INTERVAL_ENDS = ("_ci95_low", "_ci95_high")  # of one checkpoint, over test images


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One finished command."""

    command: tuple[str, ...]
    cpu_seconds: float
    commit: str
    epochs: float | None = None  # trained; None for an evaluation


class Measured(NamedTuple):
    """One protocol's report on one checkpoint, or on random weights."""

    row: str
    seed: int
    evaluation: str
    report: dict[str, Any]  # an entry of report.json
    training: Cell | None  # None for random weights
    measuring: Cell

    def column(self, metric: str) -> str:
        """Names a metric by its evaluation and protocol."""
        protocol = self.report["protocol"].partition(":")[0]
        return (
            f"{self.evaluation} {metric}" if protocol == self.evaluation else f"{self.evaluation} {protocol} {metric}"
        )


class Failure(NamedTuple):
    """A command that did not do its work."""

    row: str
    seed: int | None  # None where it concerns all
    part: str
    reason: str

    @property
    def text(self) -> str:
        """One line for a reader."""
        return f"{self.row}{'' if self.seed is None else f', seed {self.seed}'}, {self.part}: {self.reason}"


class Difference(NamedTuple):
    """A mean difference and the interval of the mean."""

    mean: float
    low: float | None  # None where there is one pair alone
    high: float | None
    num_pairs: int

    @property
    def is_open(self) -> bool:
        """Whether the pairs leave open which is larger: there is one alone, or the interval holds 0."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


def paired_difference(differences: Sequence[float]) -> Difference:
    """Averages differences of pairs, with Student's interval of the mean.

    `mean ± t * s / sqrt(n)`, s the sample deviation and t the quantile of Student's distribution with n - 1 degrees of
    freedom that leaves 2.5 % on either side. It assumes that differences vary normally from pair to pair.

    Raises:
        ValueError: There is no pair.
    """
    if not differences:
        raise ValueError("a paired difference needs at least one pair")
    mean, count = statistics.fmean(differences), len(differences)
    if count == 1:
        return Difference(mean, None, None, 1)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
    half = quantile * statistics.stdev(differences) / math.sqrt(count)
    return Difference(mean, mean - half, mean + half, count)


class Table:
    """Every figure by row, column and seed; columns are the metrics that reports put first, as they come.

    Args:
        measured: In any order.
        rows: All rows there may be, in order.
        pairs: Rows whose differences are of interest, first minus second.
    """

    def __init__(self, measured: Sequence[Measured], *, rows: Sequence[str], pairs: Sequence[tuple[str, str]]) -> None:
        self.measured = sorted(measured, key=lambda entry: (rows.index(entry.row), entry.seed))
        found = {entry.row for entry in measured}
        self.rows = [row for row in rows if row in found]
        self.pairs = [pair for pair in pairs if found.issuperset(pair)]
        self.figures = {
            (entry.row, entry.column(metric), entry.seed): float(value)
            for entry in self.measured
            for metric, value in entry.report["metrics"].items()
            if not metric.endswith(_INTERVAL_ENDS)
        }
        self.columns = list(
            dict.fromkeys(
                entry.column(metric)
                for entry in self.measured
                for metric in entry.report["headline"]
                if metric in entry.report["metrics"]
            )
        )

    def seeds(self, row: str, column: str) -> list[int]:
        """The seeds of which there is a figure."""
        return sorted(seed for r, c, seed in self.figures if (r, c) == (row, column))

    def values(self, row: str, column: str) -> list[float]:
        """The figures of a row, by seed."""
        return [self.figures[row, column, seed] for seed in self.seeds(row, column)]

    def difference(self, pair: tuple[str, str], column: str) -> Difference | None:
        """The difference of two rows over the seeds both have; None without any."""
        first, second = pair
        both = sorted({*self.seeds(first, column)} & {*self.seeds(second, column)})
        figures = [self.figures[first, column, seed] - self.figures[second, column, seed] for seed in both]
        return paired_difference(figures) if figures else None

    def trainings(self, row: str) -> dict[int, Cell]:
        """The run behind each seed of a row; empty for random weights."""
        return {e.seed: e.training for e in self.measured if e.row == row and e.training is not None}


def write_tables(out: Path, table: Table, failures: Sequence[Failure]) -> None:
    """Writes `table.md`, `table.csv` and `differences.csv`."""
    texts = {
        "table.md": markdown(table, failures),
        "table.csv": figures_csv(table),
        "differences.csv": differences_csv(table),
    }
    for name, text in texts.items():
        with atomic_write(out / name) as partial:
            partial.write_text(text)


def markdown(table: Table, failures: Sequence[Failure]) -> str:
    """Lays out means, differences, what was chosen on which split, failures and commands."""
    parts = [_lines(["pre-training", "seeds", "epochs", "CPU minutes", *table.columns], _mean_rows(table))]
    if table.pairs:
        parts.append(_lines(["difference", "seeds", *table.columns], _difference_rows(table)))
    notes = [
        "± is the sample deviation over seeds; [low, high] is the 95 % interval of a mean difference paired by seed "
        "(Student's t), which takes the test images as given; where it holds 0, or there is one seed, nothing is "
        "concluded",
        "CPU minutes are of the whole training command",
        *_choices(table),
        *(f"failed: {failure.text}" for failure in failures),
    ]
    parts.append("\n".join(f"- {note}" for note in notes))
    parts += [_commands(table, row) for row in table.rows]
    return "\n\n".join(parts) + "\n"


def _lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def _mean_rows(table: Table) -> list[list[str]]:
    rows = []
    for row in table.rows:
        cells = list(table.trainings(row).values())
        epochs = spread([cell.epochs for cell in cells if cell.epochs is not None])
        minutes = spread([cell.cpu_seconds / 60 for cell in cells])
        seeds = sorted({entry.seed for entry in table.measured if entry.row == row})
        figures = [spread(table.values(row, column)) for column in table.columns]
        rows.append([row, ", ".join(map(str, seeds)), epochs, minutes, *figures])
    return rows


def _difference_rows(table: Table) -> list[list[str]]:
    rows = []
    for pair in table.pairs:
        differences = [table.difference(pair, column) for column in table.columns]
        counts = {str(difference.num_pairs) for difference in differences if difference is not None}
        rows.append([" − ".join(pair), "/".join(sorted(counts)) or "–", *map(_describe, differences)])
    return rows


def _describe(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    if difference.low is None:
        return f"{difference.mean:+.1f}, one pair"
    text = f"{difference.mean:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"
    return f"{text}, holds 0" if difference.is_open else text


def spread(values: Sequence[float]) -> str:
    """Mean and sample deviation; a dash for nothing."""
    if not values:
        return "–"
    mean = statistics.fmean(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ± {statistics.stdev(values):.1f}"


def _choices(table: Table) -> list[str]:
    """Each protocol, and what was selected on which split."""
    notes: dict[str, None] = {}
    for entry in table.measured:
        notes[entry.report["protocol"]] = None
    for entry in table.measured:
        settings = entry.report["settings"]
        if "selected" in settings:
            place = f"{entry.evaluation}, {entry.row}, seed {entry.seed}"
            notes[f"{place}: selected {settings['selected']} on {settings['selected_on']}"] = None
    splits = {split: digest for entry in table.measured for split, digest in entry.report["data"].items()}
    return [*notes, *([f"data: {', '.join(f'{k} {v}' for k, v in splits.items())}"] if splits else [])]


def _commands(table: Table, row: str) -> str:
    """The commands behind a row, as they were run, each with commit and CPU time."""
    cells = [*table.trainings(row).values(), *(entry.measuring for entry in table.measured if entry.row == row)]
    lines = [
        f"python {shlex.join(cell.command)}  # {cell.commit}, {cell.cpu_seconds / 60:.1f} CPU minutes"
        + ("" if cell.epochs is None else f", {cell.epochs:.2f} epochs")
        for cell in dict.fromkeys(cells)
    ]
    return "\n".join([f"{row}:", "```bash", *lines, "```"])


def figures_csv(table: Table) -> str:
    """One line for every figure: all metrics of all reports."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ("pretraining", "seed", "metric", "value", "epochs", "cpu_minutes", "commit", "run", "eval")
    writer.writerow(header)
    cells = {(e.row, e.column(metric), e.seed): e for e in table.measured for metric in e.report["metrics"]}
    for (row, column, seed), value in table.figures.items():
        entry = cells[row, column, seed]
        training = entry.training
        trained = ("", "") if training is None else (training.epochs, training.cpu_seconds / 60)
        run = "" if training is None else shlex.join(training.command)
        commit = entry.measuring.commit if training is None else training.commit
        writer.writerow((row, seed, column, value, *trained, commit, run, shlex.join(entry.measuring.command)))
    return text.getvalue()


def differences_csv(table: Table) -> str:
    """One line for every pair and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("first", "second", "metric", "mean", "ci95_low", "ci95_high", "num_pairs"))
    for pair in table.pairs:
        for column in dict.fromkeys(column for _, column, _ in table.figures):
            difference = table.difference(pair, column)
            if difference is not None:
                writer.writerow((*pair, column, *("" if value is None else value for value in difference)))
    return text.getvalue()


def draw(table: Table, path: Path) -> None:
    """Every seed's figure and their mean, and below the differences with their intervals; a column a metric."""
    if not table.columns:
        return
    num_rows = 2 if table.pairs else 1
    figure = Figure(figsize=(1.0 + 3.2 * len(table.columns), 3.4 * num_rows), dpi=100, layout="constrained")
    axes = figure.subplots(num_rows, len(table.columns), squeeze=False)
    for place, column in enumerate(table.columns):
        above = axes[0][place]
        above.set_title(column, fontsize=9)
        for position, row in enumerate(table.rows):
            values = table.values(row, column)
            above.plot(values, [position] * len(values), "o", alpha=0.6)
            if values:
                above.plot(statistics.fmean(values), position, "k|", markersize=14)
        _label(above, table.rows, show=place == 0)
        if table.pairs:
            below = axes[1][place]
            for position, pair in enumerate(table.pairs):
                difference = table.difference(pair, column)
                if difference is None:
                    continue
                if difference.low is not None:
                    below.plot([difference.low, difference.high], [position] * 2, "k-")
                below.plot(difference.mean, position, "ko", fillstyle="none" if difference.is_open else "full")
            below.axvline(0.0, color="gray", linewidth=0.8)
            _label(below, [" − ".join(pair) for pair in table.pairs], show=place == 0)
    save_figure(figure, path)


def _label(axis: Any, names: Sequence[str], *, show: bool) -> None:
    axis.set_yticks(range(len(names)), names if show else [""] * len(names), fontsize=8)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
