"""One page, in one file, of what a run or several runs have written into their folders."""

import base64
import csv
import html
import io
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from unmask.atomic_write import atomic_write
from unmask.callbacks.feature_pictures import FEATURES_FOLDER, NEIGHBORS_FOLDER
from unmask.callbacks.judge import Verdict
from unmask.callbacks.run_status import read_status
from unmask.callbacks.step_profile import read_profile
from unmask.callbacks.verdict import CODE, read_verdicts

REPORT_NAME = "report.html"
_GENERATOR = '<meta name="generator" content="unmask">'  # marks a file that may be written again
_COLORS = ("#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#c53030", "#00838f", "#6b6b6b", "#b7791f")
_MOST_POINTS = 1000  # of a curve
_FEW_POINTS = 60  # up to here each point is marked
_PANEL_WIDTH, _JPEG_QUALITY = 900, 80  # pixels; of 100
_MOST_FEATURE_BYTES = 600_000  # of each of two kinds of pictures
_MOST_PANELS, _MOST_PANEL_BYTES = 24, 2_000_000  # so that the page, with 1.3 MB of script, stays below 5 MB
_PLOT_HEIGHT = 260  # pixels
_MOST_VERDICTS, _MOST_WARNINGS = 200, 50
_NUMBERS_MEAN = {CODE: f" ({', '.join(f'{verdict.value} is {verdict.name.lower()}' for verdict in Verdict)})"}
_WARNING = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (?:WARNING|ERROR) (.*)")  # as conf/hydra formats run.log

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;margin:0 auto;padding:1rem}
body{max-width:1200px;overflow-wrap:anywhere}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr));gap:1rem}
figure{margin:0;min-width:0}figcaption,.small{font-size:.85rem;color:#595959}
table{border-collapse:collapse;font-size:.9rem}th,td{text-align:left;padding:.2rem .8rem .2rem 0;vertical-align:top}
.wide{overflow-x:auto}pre{background:#f4f4f4;padding:.6rem;overflow-x:auto}
img{max-width:100%;height:auto}input[type=range]{display:block;width:100%;max-width:30rem;margin:0}
"""
_SLIDER = """
for(const panels of document.querySelectorAll('.panels')){
  const pictures=[...panels.querySelectorAll('figure')],slider=panels.querySelector('input');
  const show=()=>{pictures.forEach((picture,n)=>{picture.hidden=n!=slider.value});
    slider.setAttribute('aria-valuetext',pictures[slider.value].dataset.name)};
  slider.addEventListener('input',show);show();
}
"""

Series = list[tuple[int, float]]
"""(optimizer steps done, value), in the order of the steps."""


@dataclass(frozen=True)
class RunFiles:
    """What a run's folder holds for a reader.

    Attributes:
        folder: The run's.
        series: Readings by the name they were logged under; empty where the run kept no `csv/metrics.csv`.
        panels: Pictures of reconstructions by the epochs done; likewise `features` and `neighbors`.
        overrides: The settings typed; None where Hydra kept none.
        state: Of `status.json`, unless the run goes on.
        reason: Likewise, why it ended early.
        verdicts: Lines of `verdicts.csv`.
        warnings: Of `run.log`, each once.
        profile: Of `step_profile.json`; None where there is none.
    """

    folder: Path
    series: Mapping[str, Series]
    panels: Mapping[int, Path]
    features: Mapping[int, Path]
    neighbors: Mapping[int, Path]
    overrides: Sequence[str] | None
    state: str | None
    reason: str | None
    verdicts: Sequence[Mapping[str, str]]
    warnings: Sequence[str]
    profile: Mapping[str, Any] | None


@dataclass(frozen=True)
class _Curve:
    label: str
    series: Series
    color: str
    is_dashed: bool


def read_run(folder: Path) -> RunFiles:
    """Reads a run's folder, whole or in the making.

    Raises:
        ValueError: It is the folder of no run.
    """
    status = read_status(folder) or {}
    metrics = folder / "csv" / "metrics.csv"
    if not status and not metrics.is_file() and not (folder / ".hydra").is_dir():
        raise ValueError(f"{folder} is the folder of no run; name one that holds csv/metrics.csv, as runs/... does")
    reached = status.get("state") not in (None, "running")
    return RunFiles(
        folder=folder,
        series=_read_series(metrics) if metrics.is_file() else {},
        panels=_by_epoch(folder / "panels"),
        features=_by_epoch(folder / FEATURES_FOLDER),
        neighbors=_by_epoch(folder / NEIGHBORS_FOLDER),
        overrides=_read_overrides(folder / ".hydra" / "overrides.yaml"),
        state=str(status["state"]) if reached else None,
        reason=str(status["reason"]) if reached and status.get("reason") else None,
        verdicts=read_verdicts(folder),
        warnings=_read_warnings(folder / "run.log"),
        profile=read_profile(folder),
    )


def is_evaluation(folder: Path) -> bool:
    """Whether a folder is that of `eval.py`, whole or in the making, which has no curves of its own."""
    if (folder / "report.json").is_file():
        return True
    job = folder / ".hydra" / "hydra.yaml"
    content = _read_yaml(job)
    for part in ("hydra", "job", "name"):
        content = content.get(part) if isinstance(content, dict) else None
    return bool(content == "eval")


def write_report(path: Path, runs: Sequence[RunFiles]) -> None:
    """Writes a page; one that it has written before is replaced.

    Raises:
        ValueError: There is another file at `path`.
    """
    write_page(path, report_html(runs))


def write_page(path: Path, page: str) -> None:
    """Writes a page of `html_page`; one that was written before is replaced.

    Raises:
        ValueError: There is another file at `path`.
    """
    if path.exists() and _GENERATOR not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise ValueError(f"{path} exists and is no report of Unmask; name another file")
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8")


def html_page(title: str, body: str, scripts: tuple[str, str] = ("", "")) -> str:
    """Frames a page that needs no server and no other file.

    Args:
        title: Plain text.
        body: As HTML.
        scripts: Elements for the head, and for the end of the page.
    """
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">{_GENERATOR}'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style>{scripts[0]}</head>'
        f"<body>{body}{scripts[1]}</body></html>\n"
    )


def report_html(runs: Sequence[RunFiles]) -> str:
    """Makes a page that needs no server and no other file: curves that zoom, panels behind a slider, settings.

    Args:
        runs: One, or several that are compared: their curves share plots, and the settings in which they differ are
            listed.
    """
    names = _names(runs)
    scripts, plots = _plots(runs, names)
    title = names[0] if len(runs) == 1 else f"{len(runs)} runs"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _overview(runs, names),
        *(_verdicts(run, name, is_alone=len(runs) == 1) for run, name in zip(runs, names, strict=True)),
        "<h2>Readings</h2>",
        plots or "<p>The run kept no readings; logger=csv does.</p>",
        *(_panels(run, name, is_alone=len(runs) == 1) for run, name in zip(runs, names, strict=True)),
        *(_profile(run, name, is_alone=len(runs) == 1) for run, name in zip(runs, names, strict=True)),
        *(_warnings(run, name, is_alone=len(runs) == 1) for run, name in zip(runs, names, strict=True)),
        _settings(runs, names),
    ]
    return html_page(title, f"{''.join(parts)}<script>{_SLIDER}</script>", scripts)


def _names(runs: Sequence[RunFiles]) -> list[str]:
    """The shortest endings of the folders that tell the runs apart."""
    parts = [run.folder.absolute().parts for run in runs]
    for length in range(2, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(run.folder.absolute()) for run in runs]


def _overview(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    rows = [["run", "state", "verdict", "steps", "loss", "smallest val/loss", "images/s"]]
    for run, name in zip(runs, names, strict=True):
        val = [value for _, value in run.series.get("val/loss", []) if math.isfinite(value)]
        state = "not ended" if run.state is None else run.state
        rows.append(
            [
                name,
                state if run.reason is None else f"{state}: {run.reason}",
                run.verdicts[-1]["verdict"] if run.verdicts else "-",
                f"{steps:,}" if (steps := max((series[-1][0] for series in run.series.values()), default=0)) else "-",
                _last(run.series.get("train/loss")),
                f"{min(val):.4g}" if val else "-",
                _last(run.series.get("system/images_per_s")),
            ]
        )
    if len(runs) == 1 and runs[0].state is None:  # a run writes its own page before it can know its end
        rows = [[name, *rest] for name, _, *rest in rows]
    return _table(rows)


def _plots(runs: Sequence[RunFiles], names: Sequence[str]) -> tuple[tuple[str, str], str]:
    """The scripts for the head and for the end of the page, and the places of the plots; one plot a quantity."""
    quantities: dict[str, list[_Curve]] = {}
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        for key, series in run.series.items():
            split, _, quantity = key.partition("/")
            quantity = quantity if split in ("train", "val") else key
            label = key if len(runs) == 1 else f"{name} {key}"
            color = _COLORS[(int(split == "val") if len(runs) == 1 else number) % len(_COLORS)]
            quantities.setdefault(quantity, []).append(_Curve(label, series, color, is_dashed=split == "val"))
    if not quantities:
        return ("", ""), ""
    resources, embed = import_module("bokeh.resources"), import_module("bokeh.embed")
    in_order = sorted(quantities, key=lambda quantity: (quantity != "loss", quantity.startswith("system/"), quantity))
    figures = dict(zip(in_order, _linked_figures([quantities[name] for name in in_order]), strict=True))
    script, places = embed.components(figures)
    parts = []
    for quantity in in_order:
        said = [_described(curve) + _NUMBERS_MEAN.get(quantity, "") for curve in quantities[quantity]]
        spoken = html.escape(f"{quantity} over optimizer steps: {'; '.join(said)}".replace('"', "'"))
        legend = "<br>".join(
            f'<span style="color:{curve.color}">{"- -" if curve.is_dashed else "&mdash;"}</span> {html.escape(text)}'
            for curve, text in zip(quantities[quantity], said, strict=True)
        )
        parts.append(
            f'<figure><strong>{html.escape(quantity)}</strong><div role="img" aria-label="{spoken}">'
            f"{places[quantity]}</div><figcaption>{legend}</figcaption></figure>"
        )
    head = resources.Resources(mode="inline", components=["bokeh"]).render_js()
    return (str(head), str(script)), f'<div class="plots">{"".join(parts)}</div>'


def _linked_figures(plots: Iterable[Sequence[_Curve]]) -> list[Any]:
    """One figure a quantity; all zoom along the steps together."""
    plotting, models = import_module("bokeh.plotting"), import_module("bokeh.models")
    figures: list[Any] = []
    for curves in plots:
        shared = {"x_range": figures[0].x_range} if figures else {}
        values = [value for curve in curves for _, value in curve.series if math.isfinite(value)]
        spans_decades = bool(values) and min(values) > 0 and max(values) >= 10 * min(values)
        figure = plotting.figure(
            height=_PLOT_HEIGHT,
            sizing_mode="stretch_width",
            tools="pan,box_zoom,wheel_zoom,reset",
            y_axis_type="log" if spans_decades else "linear",
            x_axis_label="optimizer step",
            **shared,
        )
        figure.toolbar.logo = None
        four_digits = {"tooltips": [("step", "@x"), ("value", "@y{%.4g}")], "formatters": {"@y": "printf"}}
        figure.add_tools(models.HoverTool(**four_digits))  # of a learning rate of 1e-6 as well
        for curve in curves:
            steps, means = (list(column) for column in zip(*_thinned(curve.series), strict=True))
            dash = "dashed" if curve.is_dashed else "solid"
            figure.line(steps, means, color=curve.color, line_width=2, line_dash=dash)
            if len(steps) <= _FEW_POINTS:
                figure.scatter(steps, means, color=curve.color, size=5)
        figures.append(figure)
    return figures


def _thinned(series: Series) -> Series:
    """Means over as many neighbors each as leave at most a thousand points; each stands at its last step."""
    size = max(1, math.ceil(len(series) / _MOST_POINTS))
    parts = [series[start : start + size] for start in range(0, len(series), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _described(curve: _Curve) -> str:
    values = [value for _, value in curve.series if math.isfinite(value)]
    if not values:
        return f"{curve.label} was never finite"
    now = f"{curve.label} {_last(curve.series)} at step {curve.series[-1][0]:,}"
    return f"{now}, first {values[0]:.4g}, smallest {min(values):.4g}"


def _verdicts(run: RunFiles, name: str, *, is_alone: bool) -> str:
    """The last verdict in full, and the lines before it where a reader opens them."""
    if not run.verdicts:
        return ""
    last = run.verdicts[-1]
    said = f"{last['verdict']} after epoch {last['epoch']}: {last['reason']}"
    rows = [[line[key] for key in ("epoch", "step", "verdict", "reason")] for line in reversed(run.verdicts)]
    kept = rows[:_MOST_VERDICTS]
    shown = f"all {len(rows)}" if len(kept) == len(rows) else f"the last {len(kept)} of {len(rows)}"
    return (
        f"{_heading('Verdict', name, is_alone=is_alone)}<p><strong>{html.escape(said)}</strong></p>"
        f"<details><summary>{shown}</summary>{_table([['epoch', 'steps', 'verdict', 'why'], *kept])}</details>"
    )


def _profile(run: RunFiles, name: str, *, is_alone: bool) -> str:
    if run.profile is None:
        return ""
    parts: Mapping[str, float] = run.profile["parts"]
    total = sum(parts.values()) or 1.0
    rows = [[part, f"{1000 * seconds:.2f}", f"{seconds / total:.1%}"] for part, seconds in parts.items()]
    return (
        f"{_heading('Time of a step', name, is_alone=is_alone)}<p>{html.escape(run.profile['bottleneck'])}</p>"
        f"{_table([['part', 'ms a batch', 'of the time'], *rows])}"
    )


def _warnings(run: RunFiles, name: str, *, is_alone: bool) -> str:
    if not run.warnings:
        return ""
    items = "".join(f"<li>{html.escape(warning)}</li>" for warning in run.warnings[-_MOST_WARNINGS:])
    left_out = len(run.warnings) - _MOST_WARNINGS
    before = f"<p>{left_out:,} earlier ones stand in run.log.</p>" if left_out > 0 else ""
    return f"{_heading('Warnings', name, is_alone=is_alone)}{before}<ul>{items}</ul>"


def _heading(text: str, name: str, *, is_alone: bool) -> str:
    return f"<h2>{html.escape(text if is_alone else f'{text} of {name}')}</h2>"


def _by_epoch(folder: Path) -> dict[int, Path]:
    found = {path.stem.removeprefix("epoch_"): path for path in sorted(folder.glob("epoch_*.png"))}
    return {int(number): path for number, path in found.items() if number.isdecimal()}


def _panels(run: RunFiles, name: str, *, is_alone: bool) -> str:
    return "".join(
        _slider(pictures, _heading(title, name, is_alone=is_alone), shown=shown, most_bytes=most_bytes)
        for title, pictures, shown, most_bytes in (
            (
                "Reconstructions",
                run.panels,
                "Held-out images, what was masked of them, and what the network filled in",
                _MOST_PANEL_BYTES,
            ),
            (
                "Features of patches",
                run.features,
                "Held-out images and, below each, the first three principal components of its patches' features as "
                "red, green and blue: patches of alike color have alike features",
                _MOST_FEATURE_BYTES,
            ),
            (
                "Nearest neighbors",
                run.neighbors,
                "In each row a held-out image and, to its right, those of most alike features, the nearest first",
                _MOST_FEATURE_BYTES,
            ),
        )
    )


def _slider(found: Mapping[int, Path], heading: str, *, shown: str, most_bytes: int) -> str:
    """Pictures behind a slider over the epochs; nothing where there are none."""
    pictures = _encoded(found, most_bytes=most_bytes)
    if not pictures:
        return ""
    epochs = list(pictures)
    figures = "".join(
        f'<figure data-name="epoch {epoch}"{" hidden" if epoch != epochs[-1] else ""}>'
        f'<img src="data:image/jpeg;base64,{picture}" alt="{html.escape(shown)}; after epoch {epoch}">'
        f"<figcaption>epoch {epoch}</figcaption></figure>"
        for epoch, picture in pictures.items()
    )
    last = len(epochs) - 1
    return (
        f'{heading}<p class="small">{html.escape(shown)}.</p><div class="panels"><label>epoch '
        f'<input type="range" min="0" max="{last}" value="{last}" step="1"></label>{figures}</div>'
    )


def _encoded(panels: Mapping[int, Path], *, most_bytes: int) -> dict[int, str]:
    """Pictures as JPEG in base64, evenly spread over the epochs, the last one always; as many as the page can carry."""
    epochs = _spread(sorted(panels), _MOST_PANELS)
    encoded = {epoch: _jpeg(panels[epoch]) for epoch in epochs}
    total = sum(map(len, encoded.values()))
    kept = epochs if total <= most_bytes else _spread(epochs, max(1, len(epochs) * most_bytes // total))
    return {epoch: encoded[epoch] for epoch in kept}


def _spread(items: Sequence[int], most: int) -> list[int]:
    if len(items) <= most:
        return list(items)
    return [items[(number + 1) * len(items) // most - 1] for number in range(most)]


def _jpeg(path: Path) -> str:
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((_PANEL_WIDTH, picture.height))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_JPEG_QUALITY)
    return base64.b64encode(stream.getvalue()).decode()


def _settings(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    told = [(run, name) for run, name in zip(runs, names, strict=True) if run.overrides is not None]
    if not told:
        return ""
    if len(runs) == 1:
        command = shlex.join(["python", "run.py", *(told[0][0].overrides or [])])
        return f"<h2>Settings</h2><p>The command that repeats the run:</p><pre>{html.escape(command)}</pre>"
    values = {
        name: dict(override.split("=", 1) for override in run.overrides or [] if "=" in override) for run, name in told
    }
    keys = dict.fromkeys(key for given in values.values() for key in given)
    differing = [key for key in keys if len({given.get(key) for given in values.values()}) > 1]
    rows = [["setting", *values], *([key, *(given.get(key, "-") for given in values.values())] for key in differing)]
    return f"<h2>Settings that differ</h2>{_table(rows)}" if differing else "<h2>Settings</h2><p>All alike.</p>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[html.escape(str(cell)) for cell in row] for row in rows]
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body)
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _last(series: Series | None) -> str:
    return f"{series[-1][1]:.4g}" if series else "-"


def _read_series(path: Path) -> dict[str, Series]:
    """Reads the finite and other readings of a table, one series a column; rows cut short are left out.

    Raises:
        ValueError: It is no table of readings.
    """
    found: dict[str, Series] = {}
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                step = row.get("step") or ""
                for name, text in row.items():
                    if name not in (None, "step", "epoch") and text and step.isdigit():
                        found.setdefault(name, []).append((int(step) + 1, float(text)))  # loggers count from 0
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is no table of readings ({error}); remove it, or name another run") from error
    return found


def _read_warnings(path: Path) -> list[str]:
    """The lines of a log that were written as warnings or errors, each once, without those of the verdict."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        said = _WARNING.fullmatch(line)
        if said and not said[1].startswith("verdict  "):
            found.append(said[1])
    return list(dict.fromkeys(found))


def _read_overrides(path: Path) -> list[str] | None:
    content = _read_yaml(path)
    return [override for override in content if isinstance(override, str)] if isinstance(content, list) else None


def _read_yaml(path: Path) -> Any:
    """What Hydra has kept; None where there is nothing, or nothing that can be read."""
    if not path.is_file():
        return None
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
