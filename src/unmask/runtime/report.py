"""Pages of runs from what lies in their folders."""

import logging
from collections.abc import Sequence
from pathlib import Path

from unmask.callbacks.report_page import REPORT_NAME, is_evaluation, read_run, write_report

_COMPARISON_NAME = "comparison.html"
_log = logging.getLogger("unmask")


def report(arguments: Sequence[str]) -> None:
    """Writes the page of a run into its folder, or that of several into `comparison.html` or `out=FILE`.

    Folders of evaluations among several, as `runs/*/*` names them, are left out, and a line says which.

    Args:
        arguments: Folders of runs, and perhaps `out=FILE`.

    Raises:
        ValueError: No folder of a run is named, one holds neither run nor evaluation, or the file exists and is no
            report.
    """
    folders = [Path(argument) for argument in arguments if not argument.startswith("out=")]
    named = [Path(argument.removeprefix("out=")) for argument in arguments if argument.startswith("out=")]
    if not folders:
        raise ValueError("name the folder of a run, such as runs/mae_vit_mini_synthetic/2026-11-29_10-00-00-000000")
    evaluations = [folder for folder in folders if is_evaluation(folder)]
    folders = [folder for folder in folders if folder not in evaluations]
    if not folders:
        raise ValueError(f"{evaluations[0]} is the folder of an evaluation; its report.md says what was measured")
    if evaluations:
        _log.info(f"left out, since they hold evaluations: {', '.join(map(str, evaluations))}")
    by_default = folders[0] / REPORT_NAME if len(folders) == 1 else Path(_COMPARISON_NAME)
    path = named[-1] if named else by_default
    write_report(path, [read_run(folder) for folder in folders])
    _log.info(f"{path}: {len(folders)} run(s); open it in a browser")
