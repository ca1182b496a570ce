"""Results as files that are whole or not there, and as tables on a terminal."""

from collections.abc import Sequence
from pathlib import Path

from unmask.atomic_write import atomic_write


def write_atomically(path: Path, content: bytes) -> Path:
    """Writes all of a file or nothing."""
    with atomic_write(path) as partial:
        partial.write_bytes(content)
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays cells out in columns that are as wide as their longest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
