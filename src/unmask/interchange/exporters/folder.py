"""Writes an export as a whole or not at all."""

import tempfile
from pathlib import Path
from typing import NamedTuple

from unmask.interchange.exporters.base import Comparison, Exporter, ExportSource
from unmask.interchange.exporters.location import ExportLocation
from unmask.interchange.model_card import CARD_NAME, model_card


class Export(NamedTuple):
    """What was written, and how it compared."""

    paths: list[Path]
    comparisons: list[Comparison]


def write_export(
    exporter: Exporter, source: ExportSource, directory: Path, *, location: ExportLocation | None = None
) -> Export:
    """Writes a folder of files with a model card, loads them back, and keeps them if they compute the same.

    Args:
        exporter: The format.
        source: What is exported.
        directory: Made here, its parents too; it may exist if it is empty.
        location: Where the card says the files lie; None = in a folder of that name, wherever it is moved.

    Raises:
        ValueError: The directory holds something or is a file, the format cannot hold this network, or the files
            compute something else. Nothing is left behind then.
    """
    require_free(directory)
    made_parents = _make_parents(directory)
    try:
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
            folder = Path(scratch) / directory.name
            folder.mkdir()
            exporter.write(source, folder)
            comparisons = exporter.compare(source, folder)
            _require_close(comparisons)
            named = ExportLocation(directory.name) if location is None else location
            usage = exporter.usage(source, named)
            card = model_card(source, usage, comparisons, title=Path(named.name).name, library=exporter.library)
            (folder / CARD_NAME).write_text(card, encoding="utf-8")
            for file in folder.iterdir():  # safetensors makes files that nobody else may read
                file.chmod((folder / CARD_NAME).stat().st_mode)
            if directory.is_dir():
                directory.rmdir()  # empty, or it would have been refused; some systems rename onto nothing else
            folder.rename(directory)
    except BaseException:
        for parent in made_parents:
            if not any(parent.iterdir()):
                parent.rmdir()
        raise
    return Export(sorted(path for path in directory.rglob("*") if path.is_file()), comparisons)


def require_free(directory: Path) -> None:
    """Refuses a directory that holds what a user made."""
    if directory.is_file():
        raise ValueError(f"directory={directory} is a file; name a folder that does not exist yet")
    if directory.is_dir() and any(directory.iterdir()):
        raise ValueError(
            f"directory={directory} holds files already, and nothing is overwritten; name another folder or remove it"
        )


def _make_parents(directory: Path) -> list[Path]:
    """Makes the folders above; returns the new ones, innermost first."""
    missing = [parent for parent in directory.parents if not parent.exists()]
    directory.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _require_close(comparisons: list[Comparison]) -> None:
    for comparison in comparisons:
        if not comparison.is_close:
            raise ValueError(
                f"the exported files do not compute what the network does: {comparison.what} differ by "
                f"{comparison.difference:.3g}, where {comparison.allowed:.3g} is allowed; "
                "nothing was kept. This is a defect, or a timm model with parts of its own: use format=torch_export"
            )
