"""Reports as a reader and as a program read them."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from unmask.evaluation.base import EvalReport

_COLUMNS = ("protocol", "backbone", "top-1 [95 % CI]", "top-5", "train images", "test images", "selected")


def report_table(reports: Mapping[str, EvalReport]) -> str:
    """Lays reports out as a Markdown table that also reads well on a terminal, each protocol in full beneath.

    Args:
        reports: By the name of the backbone.
    """
    rows = [_COLUMNS, *(_row(backbone, report) for backbone, report in reports.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [_line([cell.ljust(width) for cell, width in zip(row, widths, strict=True)]) for row in rows]
    rule = _line(["-" * width for width in widths])
    protocols = dict.fromkeys(report.protocol for report in reports.values())
    return "\n".join([lines[0], rule, *lines[1:], "", *(f"- {protocol}" for protocol in protocols)])


def report_dict(report: EvalReport) -> dict[str, Any]:
    """Turns a report into plain values for JSON."""
    return asdict(report)


def _row(backbone: str, report: EvalReport) -> tuple[str, ...]:
    metrics, settings = report.metrics, report.settings
    selected = f"{settings['selected']} on {settings['selected_on']}" if "selected" in settings else "nothing"
    return (
        report.protocol.partition(":")[0],
        backbone,
        _headline(metrics),
        f"{metrics['top5']:.2f}" if "top5" in metrics else "-",
        str(report.num_train_images),
        str(report.num_test_images),
        selected,
    )


def _headline(metrics: Mapping[str, float]) -> str:
    """Shows top-1 with its interval, or the loss of a module that does not classify."""
    if "top1" in metrics:
        return f"{metrics['top1']:.2f} [{metrics['top1_ci95_low']:.2f}, {metrics['top1_ci95_high']:.2f}]"
    return f"loss {metrics['loss']:.4f}" if "loss" in metrics else "-"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
