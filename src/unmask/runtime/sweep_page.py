"""One page, in one file, of what the jobs of a sweep have found."""

import html
import math
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

from unmask.callbacks.report_page import REPORT_NAME, html_page, write_page
from unmask.runtime.job_outcome import JobOutcome
from unmask.runtime.sweep_table import SeedAverage, Spread, average_over_seeds, differing_settings, metrics_of

PAGE_NAME = "sweep.html"
_VALUE = "value"
_MOST_SETTINGS, _MOST_METRICS = 6, 4  # axes that fit beside each other
_MOST_NAMES = 12  # of settings that are no numbers, written along an axis
_HEIGHT = 420  # pixels
_SLANT = 0.5  # rad
_MOST_REASONS = 5  # at the head of the page; the table below says them all
_NO_DEVIATION = 0.0


def write_sweep_page(path: Path, jobs: Sequence[JobOutcome]) -> None:
    """Writes the page of a sweep beside the folders of its jobs; one that was written before is replaced.

    Raises:
        ValueError: There is another file at `path`.
    """
    write_page(path, sweep_html(jobs, folder=path.parent))


def sweep_html(jobs: Sequence[JobOutcome], *, folder: Path) -> str:
    """Makes a page that needs no server: a line a job over settings and metrics, means over seeds, a table of links.

    Args:
        jobs: By their numbers.
        folder: Of the page, which its links start from.
    """
    settings = differing_settings(jobs)
    says_more = any(job.value is not None and job.value not in job.metrics.values() for job in jobs)
    measured = [*([_VALUE] if says_more else []), *_telling(jobs)]
    averages = average_over_seeds(jobs)
    num_complete = sum(job.state == "complete" for job in jobs)
    compared = [name for name in measured if _is_of_all(jobs, name)] or measured
    axes = [*settings[:_MOST_SETTINGS], *compared[-_MOST_METRICS:]]
    scripts, plots = _plots(jobs, axes, averages)
    title = f"Sweep {folder.name}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{num_complete} of {len(jobs)} jobs complete. {html.escape(_others(jobs))}</p>",
        _reasons(jobs, folder),
        plots,
        _averages_table(averages, measured),
        "<h2>Jobs</h2>",
        _jobs_table(jobs, settings, measured, folder),
    ]
    return html_page(title, "".join(body), scripts)


def _telling(jobs: Sequence[JobOutcome]) -> list[str]:
    """The metrics that say how good a job is, each once: the training loss, what was validated, and probes.

    Those that not all jobs have, such as the terms of one method among several, come behind those that all have.
    """
    told: list[str] = []
    for name in sorted(metrics_of(jobs), key=lambda name: (name.startswith("probe/"), name)):
        is_judged = name == "train/loss" or not name.startswith(("train/", "system/"))
        if is_judged and not any(_says_the_same(jobs, name, other) for other in told):
            told.append(name)
    return sorted(told, key=lambda name: not _is_of_all(jobs, name))


def _is_of_all(jobs: Sequence[JobOutcome], name: str) -> bool:
    """Whether every job that has measured anything has measured this."""
    return all(_told(job, name) is not None for job in jobs if job.metrics)


def _says_the_same(jobs: Sequence[JobOutcome], name: str, other: str) -> bool:
    return all(job.metrics.get(name) in (None, job.metrics.get(other)) for job in jobs)


def _others(jobs: Sequence[JobOutcome]) -> str:
    states = ("failed", "preempted", "pruned", "running", "waiting")
    counts = {state: sum(job.state == state for job in jobs) for state in states}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def _plots(
    jobs: Sequence[JobOutcome], names: Sequence[str], averages: Sequence[SeedAverage]
) -> tuple[tuple[str, str], str]:
    """The scripts for the head and for the end of the page, and the places of the plots."""
    figures: dict[str, tuple[Any, str]] = {}
    drawn = [job for job in jobs if job.value is not None or job.metrics]
    if drawn and len(names) > 1:
        axes = {name: _axis(name, drawn) for name in names}
        said = f"{len(drawn)} jobs as lines over {', '.join(axes)}; the table below holds the same"
        figures["Settings and what came of them"] = _parallel_coordinates(drawn, axes), said
    told = [average for average in averages if average.value is not None]
    if told:
        said = "; ".join(f"{average.name}: {_spread_text(average.value)}" for average in told)
        figures["Mean over seeds"] = _means(told), f"mean and standard deviation over seeds of {said}"
    if not figures:
        return ("", ""), ""
    resources, embed = import_module("bokeh.resources"), import_module("bokeh.embed")
    script, places = embed.components({name: figure for name, (figure, _) in figures.items()})
    parts = [
        f'<h2>{name}</h2><figure><div role="img" aria-label="{html.escape(said)}">{places[name]}</div></figure>'
        for name, (_, said) in figures.items()
    ]
    head = resources.Resources(mode="inline", components=["bokeh"]).render_js()
    return (str(head), str(script)), "".join(parts)


class _Axis:
    """Places a setting or a metric in 0..1: numbers by their size (by their logarithm over decades), names in turn."""

    def __init__(self, values: Sequence[str | float]) -> None:
        numbers = [_number(value) for value in values]
        self._is_named = any(number is None for number in numbers)
        finite = [number for number in numbers if number is not None and math.isfinite(number)]
        self._names = list(dict.fromkeys(map(str, values))) if self._is_named else []
        self._is_log = bool(finite) and not self._is_named and min(finite) > 0 and max(finite) >= 20 * min(finite)
        self._low, self._high = (min(finite), max(finite)) if finite and not self._is_named else (0.0, 1.0)

    def place(self, value: str | float) -> float:
        if self._is_named:
            return self._names.index(str(value)) / max(1, len(self._names) - 1)
        number = _number(value)
        if number is None or not math.isfinite(number):
            return math.nan
        low, high = (math.log(bound) if self._is_log else bound for bound in (self._low, self._high))
        return 0.5 if high == low else ((math.log(number) if self._is_log else number) - low) / (high - low)

    @property
    def ticks(self) -> dict[float, str]:
        """Texts by their places."""
        if self._is_named:
            return {self.place(name): name for name in self._names[:_MOST_NAMES]}
        return {self.place(bound): f"{bound:.4g}" for bound in (self._low, self._high)}


def _axis(name: str, jobs: Sequence[JobOutcome]) -> _Axis:
    return _Axis([told for job in jobs if (told := _told(job, name)) is not None])


def _told(job: JobOutcome, name: str) -> str | float | None:
    """A setting or a metric of a job; None where it has none."""
    if name == _VALUE:
        return job.value
    return job.metrics[name] if name in job.metrics else job.settings.get(name)


def _number(value: str | float) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _parallel_coordinates(jobs: Sequence[JobOutcome], axes: Mapping[str, _Axis]) -> Any:
    """A vertical axis for each name and a line for each job, colored by the last axis."""
    plotting, palettes = import_module("bokeh.plotting"), import_module("bokeh.palettes")
    palette = palettes.Viridis256[:230]  # the rest is too light to be seen on white
    *_, last = axes
    rows: dict[str, list[Any]] = {"xs": [], "ys": [], "color": [], "job": [], "settings": [], "value": []}
    for job in jobs:
        places = [
            (position, axis.place(told))
            for position, (name, axis) in enumerate(axes.items())
            if (told := _told(job, name)) is not None
        ]
        told = _told(job, last)
        height = math.nan if told is None else axes[last].place(told)
        rows["xs"].append([position for position, _ in places])
        rows["ys"].append([place for _, place in places])
        rows["color"].append("#9a9a9a" if math.isnan(height) else palette[round(height * (len(palette) - 1))])
        rows["job"].append(str(job.number))
        rows["settings"].append(", ".join(f"{name}={_told(job, name)}" for name in axes if name in job.settings))
        rows["value"].append("-" if job.value is None else f"{job.value:.4g}")
    figure = plotting.figure(
        height=_HEIGHT,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,reset,hover,save",
        tooltips=[("job", "@job"), ("settings", "@settings"), ("value", "@value")],
        x_range=(-0.4, len(axes) - 0.4),
        y_range=(-0.15, 1.15),
    )
    figure.toolbar.logo = None
    figure.yaxis.visible = figure.ygrid.visible = False
    figure.xaxis.ticker = list(range(len(axes)))
    figure.xaxis.major_label_overrides = dict(enumerate(axes))
    figure.xaxis.major_label_orientation = _SLANT  # side by side they do not fit a narrow screen
    figure.multi_line("xs", "ys", color="color", line_width=3, alpha=0.8, source=plotting.ColumnDataSource(rows))
    for position, axis in enumerate(axes.values()):
        figure.line([position, position], [0, 1], color="#1a1a1a")
        heights, texts = list(axis.ticks), list(axis.ticks.values())
        figure.text(
            [position] * len(texts),
            heights,
            text=texts,
            x_offset=6,
            text_baseline="middle",
            text_font_size="12px",
            background_fill_color="white",  # lines pass behind it
            background_fill_alpha=0.8,
        )
    return figure


def _means(averages: Sequence[SeedAverage]) -> Any:
    """The mean of each group of seeds with a bar of one standard deviation to both sides."""
    plotting = import_module("bokeh.plotting")
    names = [average.name for average in averages]
    values = [average.value for average in averages if average.value is not None]
    means = [value.mean for value in values]
    deviations = [value.deviation or _NO_DEVIATION for value in values]
    figure = plotting.figure(
        height=max(160, 60 + 40 * len(names)),
        sizing_mode="stretch_width",
        y_range=names[::-1],
        tools="pan,reset,save",
        x_axis_label="value: mean and standard deviation",
    )
    figure.toolbar.logo = None
    low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
    high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
    figure.hbar(y=names, left=low, right=high, height=0.25, color="#2b6cb0", alpha=0.35)
    figure.scatter(means, names, size=10, color="#2b6cb0")
    return figure


def _averages_table(averages: Sequence[SeedAverage], measured: Sequence[str]) -> str:
    if not averages:
        return ""
    rows = []
    for average in averages:
        spreads = {**average.metrics, **({} if average.value is None else {_VALUE: average.value})}
        cells = [_spread_text(spreads.get(name)) for name in measured]
        count = max((spread.count for spread in spreads.values()), default=0)
        rows.append([html.escape(cell) for cell in (average.name, str(count), *cells)])
    return _table(["settings", "seeds", *measured], rows)


def _jobs_table(jobs: Sequence[JobOutcome], settings: Sequence[str], measured: Sequence[str], folder: Path) -> str:
    rows, notes = [], []
    for job in jobs:
        told = [_text(_told(job, name)) for name in (*settings, *measured)]
        seconds = "-" if job.seconds is None else f"{job.seconds:.0f}"
        rows.append([_link(job, folder), *(html.escape(cell) for cell in (job.state, *told, seconds))])
        notes.append(job.sentence)
    return _table(["job", "state", *settings, *measured, "seconds"], rows, notes)


def _reasons(jobs: Sequence[JobOutcome], folder: Path) -> str:
    """Why jobs did not end well, at the head of the page: each reason once, with the jobs that gave it."""
    by_reason: dict[str, list[JobOutcome]] = {}
    for job in jobs:
        if job.sentence is not None:
            by_reason.setdefault(job.sentence, []).append(job)
    if not by_reason:
        return ""
    lines = [
        f"<li>job {', '.join(_link(job, folder) for job in those)}: {html.escape(reason)}</li>"
        for reason, those in list(by_reason.items())[:_MOST_REASONS]
    ]
    if len(by_reason) > _MOST_REASONS:
        lines.append("<li>others in the table of jobs</li>")
    return f"<ul>{''.join(lines)}</ul>"


def _link(job: JobOutcome, folder: Path) -> str:
    """The job's number, which leads to the page of its run, or to its folder where it has none."""
    page = Path(job.folder) / REPORT_NAME
    target = page if page.is_file() else page.parent
    place = quote(Path(os.path.relpath(target, folder)).as_posix())
    return f'<a href="{place}">{job.number}</a>'


def _spread_text(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.mean:.4g}" if spread.deviation is None else f"{spread.mean:.4g} ± {spread.deviation:.2g}"


def _text(told: str | float | None) -> str:
    if told is None:
        return "-"
    number = _number(told) if isinstance(told, float) or "." in told else None
    return str(told) if number is None else f"{number:.4g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str | None] = ()) -> str:
    """A table whose cells are HTML already; its head and its notes are not.

    Args:
        head: Names of the columns.
        rows: Their cells.
        notes: Text below a row, from its second column on and over as many lines as it takes; None for none.
    """
    top = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    lines = []
    for row, note in zip_longest(rows, notes):
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
        if note is not None:
            lines.append(f'<tr><td></td><td colspan="{len(head) - 1}">{_paragraph(note)}</td></tr>')
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="wide" style="white-space:nowrap">{table}</div>'


def _paragraph(text: str) -> str:
    """Text in a table wider than the screen, all of which is seen without scrolling sideways."""
    return f'<div style="white-space:normal;max-width:min(70ch,75vw)">{html.escape(text)}</div>'
