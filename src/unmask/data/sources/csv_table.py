"""Images listed in CSV tables, as competitions hand them out."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unmask.data.sources.filelist import FileList, ListedImage, decode_line


class CSVTable(FileList):
    """Images named in CSV tables with a header.

    Args:
        path_column: Header of the column that names the files.
        label_column: Header of the column of labels; None takes the images unlabeled. A table without that column,
            as of a competition's test images, is unlabeled too.
        suffix: Added to each name, such as ".jpg" where the table has identifiers alone.
        delimiter: Between columns.
        lists: See `FileList`: `train`, `val`, `test`, `root`.

    Raises:
        ValueError: As for `FileList`, or a column is missing or a row has another number of fields than the header.
    """

    def __init__(
        self,
        *,
        path_column: str,
        label_column: str | None = None,
        suffix: str = "",
        delimiter: str = ",",
        **lists: Any,
    ) -> None:
        super().__init__(**lists)
        if len(delimiter) != 1:
            raise ValueError(f"data.delimiter must be one character, got {delimiter!r}")
        self.path_column, self.label_column = path_column, label_column
        self.suffix = suffix
        self.delimiter = delimiter

    def read_list(self, path: Path) -> Iterator[ListedImage]:
        lines = path.read_bytes().split(b"\n")
        text = "\n".join(decode_line(raw, path, number) for number, raw in enumerate(lines, start=1))
        rows = csv.reader(io.StringIO(text), delimiter=self.delimiter)
        header = next(rows, [])
        if self.path_column not in header:
            columns = ", ".join(header) or "none"
            raise ValueError(f"{path} has no column {self.path_column!r}; set data.path_column to one of {columns}")
        path_at = header.index(self.path_column)
        if self.label_column is not None and self.label_column not in header and path == self.lists["train"]:
            raise ValueError(
                f"{path} has no column {self.label_column!r}; set data.label_column to one of {', '.join(header)}, or "
                "to null for images without labels"
            )
        label_at = header.index(self.label_column) if self.label_column in header else None
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(f"{path}:{rows.line_num}: expected {len(header)} fields, got {len(row)}: {row}")
            label = None if label_at is None else row[label_at].strip() or None
            yield ListedImage(rows.line_num, row[path_at] + self.suffix, label)
