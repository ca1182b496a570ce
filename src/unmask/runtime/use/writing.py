"""Results as files that are whole or not there, and as tables on a terminal."""

import os
from collections.abc import Sequence
from pathlib import Path


def write_whole(path: Path, content: bytes) -> Path:
    """Writes beside the file first, so that an interruption leaves no half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays cells out in columns that are as wide as their longest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
