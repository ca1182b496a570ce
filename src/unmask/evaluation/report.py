"""EvalResults as a reader, a table of a paper and a program want them."""

import csv
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from unmask.evaluation.base import EvalReport

_LOW, _HIGH = "_ci95_low", "_ci95_high"
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """One protocol on one backbone in one run, with all that says what the numbers are numbers of."""

    backbone: str  # its name in the tables
    ckpt_path: str | None  # None for random weights
    seed: int  # of the protocol, and of random weights
    report: EvalReport
    data: Mapping[str, str]  # the fingerprint of each split that was read
    git: Mapping[str, str | bool] | None  # the commit of the working directory and whether files differ from it

    @property
    def protocol(self) -> str:
        """The protocol's name."""
        return self.report.protocol.partition(":")[0]


class Summary(NamedTuple):
    """One metric over the runs of one backbone."""

    mean: float
    std: float | None  # sample deviation; None for one run of a protocol that does not repeat itself
    num_runs: int  # of checkpoints where there are several, else of seeds
    interval: tuple[float, float] | None  # 95 %, over the choice of test images; None for several runs


class Column(NamedTuple):
    """What stands under one heading of a table."""

    protocol: str
    metric: str

    @property
    def heading(self) -> str:
        return f"{self.protocol} {self.metric.removeprefix(f'{self.protocol}_')}"


def summarize(results: Sequence[EvalResult], metric: str) -> Summary:
    """Averages a metric over the runs of one backbone under one protocol.

    Over several checkpoints the deviation is that of the checkpoints' means, so that it tells how far repeating the
    pre-training spreads; over seeds of one checkpoint it is that of the seeds. A protocol that repeats itself brings
    the deviation of a single run along, as `<metric>_std`.
    """
    by_checkpoint: dict[str | None, list[float]] = {}
    for result in results:
        by_checkpoint.setdefault(result.ckpt_path, []).append(result.report.metrics[metric])
    runs = list(by_checkpoint.values())
    values = [statistics.fmean(run) for run in runs] if len(runs) > 1 else runs[0]
    if len(values) > 1:
        return Summary(statistics.fmean(values), statistics.stdev(values), len(values), None)
    own_std = results[0].report.metrics.get(f"{metric}_std")
    if own_std is not None:
        return Summary(values[0], own_std, 1, None)
    bounds = [results[0].report.metrics.get(metric + end) for end in (_LOW, _HIGH)]
    low, high = bounds
    return Summary(values[0], None, 1, None if low is None or high is None else (low, high))


def markdown_report(results: Sequence[EvalResult]) -> str:
    """Lays results out as a table that also reads well on a terminal, and says beneath what they are.

    A row is a backbone, a column a headline metric of a protocol.
    """
    columns = headline_columns(results)
    header = ("backbone", *(column.heading for column in columns))
    rows = [header, *_rows(results, columns, _plain_cell)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [_line([cell.ljust(width) for cell, width in zip(row, widths, strict=True)]) for row in rows]
    rule = _line(["-" * width for width in widths])
    notes = [*_notes(results), *_protocols(results), *_choices(results), *_origins(results)]
    return "\n".join([lines[0], rule, *lines[1:], "", *(f"- {note}" for note in notes)])


def latex_report(results: Sequence[EvalResult]) -> str:
    """Lays the same table out for LaTeX with the package booktabs; what the numbers are stands in comments."""
    columns = headline_columns(results)
    header = ["backbone", *(column.heading for column in columns)]
    notes = [*_notes(results), *_protocols(results), *_choices(results), *_origins(results)]
    lines = [
        *(f"% {note}" for note in notes),
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        _latex_line([escape_latex(name) for name in header]),
        r"\midrule",
        *(_latex_line([escape_latex(name), *cells]) for name, *cells in _rows(results, columns, _latex_cell)),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)


def csv_report(results: Sequence[EvalResult]) -> str:
    """Writes every metric, one a line: backbone, protocol, metric, mean, std, num_runs, ci95_low, ci95_high."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("backbone", "protocol", "metric", "mean", "std", "num_runs", "ci95_low", "ci95_high"))
    for backbone, protocol, runs in _groups(results):
        for metric in runs[0].report.metrics:
            if metric.endswith((_LOW, _HIGH)):
                continue
            summary = summarize(runs, metric)
            bounds = summary.interval or ("", "")
            spread = "" if summary.std is None else summary.std
            writer.writerow((backbone, protocol, metric, summary.mean, spread, summary.num_runs, *bounds))
    return text.getvalue()


def labeled(results: Sequence[EvalResult]) -> dict[str, EvalResult]:
    """Names each result by its backbone and by what else varies: "checkpoint", "checkpoint/knn/2/seed_1"."""
    num_protocols = len({result.protocol for result in results})
    names = {}
    for backbone, protocol, runs in _groups(results):
        paths, seeds = list(dict.fromkeys(run.ckpt_path for run in runs)), {run.seed for run in runs}
        for run in runs:
            parts = [backbone]
            parts += [protocol] if num_protocols > 1 else []
            parts += [str(paths.index(run.ckpt_path) + 1)] if len(paths) > 1 else []
            parts += [f"seed_{run.seed}"] if len(seeds) > 1 else []
            names["/".join(parts)] = run
    return names


def report_dict(result: EvalResult) -> dict[str, Any]:
    """Turns a result into plain values for JSON, its report's fields beside its own."""
    fields = asdict(result)
    report: dict[str, Any] = fields.pop("report")
    return fields | report


def summary_dicts(results: Sequence[EvalResult]) -> list[dict[str, Any]]:
    """Lists mean, deviation and number of runs of every metric, for JSON."""
    return [
        {"backbone": backbone, "protocol": protocol, "metric": metric, **summarize(runs, metric)._asdict()}
        for backbone, protocol, runs in _groups(results)
        for metric in runs[0].report.metrics
        if not metric.endswith((_LOW, _HIGH))
    ]


def headline_columns(results: Sequence[EvalResult]) -> list[Column]:
    """Chooses what a table shows: of each protocol the metrics its report puts first, as far as it has them."""
    return list(
        dict.fromkeys(
            Column(result.protocol, metric)
            for result in results
            for metric in result.report.headline
            if metric in result.report.metrics
        )
    )


def escape_latex(text: str) -> str:
    """Writes a text so that LaTeX prints it as it is."""
    return "".join(_LATEX.get(character, character) for character in text)


def _rows(
    results: Sequence[EvalResult], columns: Sequence[Column], cell: Callable[[Summary, str], str]
) -> list[tuple[str, ...]]:
    by_place = {(backbone, protocol): runs for backbone, protocol, runs in _groups(results)}

    def fill(backbone: str, column: Column) -> str:
        runs = by_place.get((backbone, column.protocol))
        has_it = runs is not None and column.metric in runs[0].report.metrics
        return cell(summarize(runs, column.metric), column.metric) if runs is not None and has_it else "-"

    backbones = dict.fromkeys(result.backbone for result in results)
    return [(backbone, *(fill(backbone, column) for column in columns)) for backbone in backbones]


def _groups(results: Sequence[EvalResult]) -> list[tuple[str, str, list[EvalResult]]]:
    """Collects the runs of each backbone under each protocol, in the order of the first."""
    groups: dict[tuple[str, str], list[EvalResult]] = {}
    for result in results:
        groups.setdefault((result.backbone, result.protocol), []).append(result)
    return [(backbone, protocol, runs) for (backbone, protocol), runs in groups.items()]


def _plain_cell(summary: Summary, metric: str) -> str:
    digits = _digits(metric)
    if summary.std is not None:
        return f"{summary.mean:.{digits}f} ± {summary.std:.{digits}f}"
    interval = "" if summary.interval is None else " [{:.{d}f}, {:.{d}f}]".format(*summary.interval, d=digits)
    return f"{summary.mean:.{digits}f}{interval}"


def _latex_cell(summary: Summary, metric: str) -> str:
    return _plain_cell(summary, metric).replace("±", r"$\pm$")


def _digits(metric: str) -> int:
    return 4 if metric == "loss" else 2


def _notes(results: Sequence[EvalResult]) -> list[str]:
    columns = headline_columns(results)
    notes = [
        "figures in percent" + ("" if all(column.metric != "loss" for column in columns) else ", but for the loss")
    ]
    summaries = [
        summarize(runs, column.metric)
        for _, protocol, runs in _groups(results)
        for column in columns
        if column.protocol == protocol and column.metric in runs[0].report.metrics
    ]
    if any(summary.interval is not None for summary in summaries):
        notes[0] += "; [low, high] is the 95 % interval over the choice of test images"
    if any(summary.std is not None and summary.num_runs == 1 for summary in summaries):
        notes.append("± of a protocol that repeats itself is the sample standard deviation over its own seeds")
    spreads = [
        f"{name}: {_over(runs)}"
        for name, runs in _by_backbone(results).items()
        if len({(run.ckpt_path, run.seed) for run in runs}) > 1
    ]
    if spreads:
        notes.append(f"± is the sample standard deviation; {'; '.join(spreads)}")
    return notes


def _by_backbone(results: Sequence[EvalResult]) -> dict[str, list[EvalResult]]:
    by_name: dict[str, list[EvalResult]] = {}
    for result in results:
        by_name.setdefault(result.backbone, []).append(result)
    return by_name


def _over(runs: Sequence[EvalResult]) -> str:
    paths, seeds = {run.ckpt_path for run in runs}, sorted({run.seed for run in runs})
    listed = f"seeds {', '.join(map(str, seeds))}"
    if len(paths) > 1:
        return f"{len(paths)} checkpoints" + (f", each the mean of {listed}" if len(seeds) > 1 else "")
    return f"{listed} of the weights and the protocol" if None in paths else f"{listed} of the protocol"


def _protocols(results: Sequence[EvalResult]) -> list[str]:
    """Spells each protocol out once, with the backbones it was run on where they differ in it."""
    on: dict[str, dict[str, None]] = {}
    for result in results:
        on.setdefault(result.report.protocol, {})[result.backbone] = None
    everyone = set(_by_backbone(results))
    return [
        protocol if set(names) == everyone else f"{protocol} ({', '.join(names)})" for protocol, names in on.items()
    ]


def _choices(results: Sequence[EvalResult]) -> list[str]:
    """Says what was selected on which split, and what was left out."""
    lines = []
    for backbone, protocol, runs in _groups(results):
        settings = [run.report.settings for run in runs]
        chosen = dict.fromkeys(_describe_choice(s) for s in settings if "selected" in s)
        if chosen:
            lines.append(f"{protocol}, {backbone}: selected {'; '.join(chosen)}")
        left_out = dict.fromkeys(str(s["left_out"]) for s in settings if "left_out" in s)
        lines += [f"{protocol}, {backbone}: left out {note}" for note in left_out]
    return lines


def _describe_choice(settings: Mapping[str, Any]) -> str:
    """Says what was selected, and whether a wider grid may have held something better."""
    edge = ", at the edge of its grid: widen it" if settings.get("is_at_edge_of_grid") == "yes" else ""
    return f"{settings['selected']} on {settings['selected_on']}{edge}"


def _origins(results: Sequence[EvalResult]) -> list[str]:
    """Names the checkpoints, the data and the code."""
    paths = {
        name: dict.fromkeys(run.ckpt_path for run in runs if run.ckpt_path is not None)
        for name, runs in _by_backbone(results).items()
    }
    lines = [f"{name}: {', '.join(map(str, listed))}" for name, listed in paths.items() if listed]
    fingerprints = dict.fromkeys(f"{split} {digest}" for run in results for split, digest in run.data.items())
    if fingerprints:
        lines.append(f"data: {', '.join(fingerprints)}")
    code = dict.fromkeys(_describe_code(run.git) for run in results if run.git is not None)
    return [*lines, *(f"code: {state}" for state in code)]


def _describe_code(git: Mapping[str, str | bool]) -> str:
    return f"{git['commit']}{' with changes' if git['is_dirty'] else ''}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
