"""The README.md that travels with an export."""

import json
from collections.abc import Sequence

from unmask.interchange.exporters.base import Comparison, ExportSource
from unmask.interchange.record import KIND_KEY

CARD_NAME = "README.md"
NO_RECORD = "## Training\n\nThe source of this export has no record of its training."
_NUM_NAMES_SHOWN = 20


def model_card(source: ExportSource, usage: str, comparisons: Sequence[Comparison], *, title: str, library: str) -> str:
    """Writes the card: how to load the files, what they hold, and what is known of how they came about.

    Nothing is stated that the source does not know.

    Args:
        source: The network and what is known of it.
        usage: How the files are loaded; Markdown.
        comparisons: With which the files were checked.
        title: Of the page.
        library: That opens the files, as Hugging Face names it.
    """
    task = "image-feature-extraction" if source.classifier is None else "image-classification"
    header = ["---", f"library_name: {library}", f"pipeline_tag: {task}", "tags:"]
    header += [f"- {json.dumps(tag)}" for tag in ("unmask", *source.tags)]
    parts = [
        "\n".join([*header, "---"]),
        f"# {title}",
        _summary(source),
        "## Use",
        usage,
        "## What it is",
        _network_table(source),
        source.card or NO_RECORD,
        "## Check",
        "\n".join(_checked(comparison) for comparison in comparisons),
        "## License",
        "No license is stated. Whoever publishes these weights should add one; the terms of the training images may "
        "apply too.",
    ]
    return "\n\n".join(parts) + "\n"


def _summary(source: ExportSource) -> str:
    height, width = source.backbone.image_size
    count = sum(parameter.numel() for parameter in source.backbone.parameters())
    kind = "A backbone without a classifier" if source.classifier is None else "An image classifier"
    return f"{kind} for {height}x{width} px images; the backbone has {count:,} parameters."


def _network_table(source: ExportSource) -> str:
    backbone = source.backbone
    settings = {name: value for name, value in backbone.settings.items() if value is not None}
    architecture = settings.pop("name", settings[KIND_KEY])
    shown = {name: value for name, value in settings.items() if name not in _SHOWN_ELSEWHERE}
    height, width = backbone.image_size
    mean, std = _numbers(backbone.pixel_mean), _numbers(backbone.pixel_std)
    crop = f"a centered crop of {source.crop_pct:.4g} of the tighter side, resized {source.interpolation}"
    rows = {
        "architecture": f"`{architecture}` with {', '.join(f'{name} {value}' for name, value in shown.items())}",
        "features": f"{backbone.embed_dim} numbers an image: {_POOLED[backbone.pooling]}",
        "images": f"{height}x{width} px, {_channels(source)}: {crop}",
        "normalization": f"mean {mean}, deviation {std} of values in 0..1",
    }
    if source.class_names:
        names = list(source.class_names)
        rest = f" and {len(names) - _NUM_NAMES_SHOWN} more" if len(names) > _NUM_NAMES_SHOWN else ""
        rows[f"{len(names)} classes"] = f"{', '.join(names[:_NUM_NAMES_SHOWN])}{rest}"
    return markdown_table(rows)


def _channels(source: ExportSource) -> str:
    count = source.backbone.in_channels
    return "RGB" if count == 3 else f"{count} channel(s)"


def _checked(comparison: Comparison) -> str:
    return (
        f"- {comparison.what}: largest absolute difference {comparison.difference:.3g} to the network exported "
        f"(random images, values up to {comparison.largest:.3g})"
    )


def markdown_table(rows: dict[str, str]) -> str:
    """Lays out names and values as a table of two columns."""
    cells = ["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items())]
    return "\n".join(cells)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


_POOLED = {"mean": "the mean over its patches", "cls": "its class token"}
_SHOWN_ELSEWHERE = (KIND_KEY, "image_size", "in_channels", "pixel_mean", "pixel_std", "drop_path_rate", "num_stages")
