"""Exports a checkpoint, with a model card that states what is known of it."""

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from unmask.backbones.base import MaskedBackbone
from unmask.interchange.exporters.base import Exporter, ExportSource
from unmask.interchange.exporters.folder import Export, require_free, write_export
from unmask.interchange.exporters.huggingface import HuggingFaceExporter
from unmask.interchange.exporters.location import ExportLocation
from unmask.interchange.exporters.onnx import OnnxExporter
from unmask.interchange.exporters.swin_simmim import SwinSimMIMExporter
from unmask.interchange.exporters.timm import TimmExporter
from unmask.interchange.exporters.torch_export import TorchExporter
from unmask.interchange.exporters.vitmae import ViTMAEExporter
from unmask.interchange.files import read_weights
from unmask.interchange.hub import HubUpload
from unmask.interchange.model_card import NO_RECORD
from unmask.interchange.preprocessing import LEAST_CROP, Preprocessing
from unmask.interchange.record import shown
from unmask.interchange.training_record import Measurement, TrainingRun, accuracy_section, training_section
from unmask.runtime.checkpoint import SavedRun, find_run, holds_classifier, load_backbone, load_module, rebuild_method
from unmask.runtime.kinds import DATA, from_record
from unmask.runtime.run_record import recall_places

_log = logging.getLogger("unmask")
_REPORT_NAME = "report.json"
_KEYS_OF_A_REPORT = {"ckpt_path", "data", "git", "metrics", "num_test_images", "protocol", "seed"}
_BACKBONE_EXPORTERS: tuple[Exporter, ...] = (HuggingFaceExporter(), TimmExporter(), TorchExporter(), OnnxExporter())
_EXPORTERS = (*_BACKBONE_EXPORTERS, ViTMAEExporter(), SwinSimMIMExporter())


def export(config: DictConfig) -> None:
    """Writes one export and, if asked to, sends it to the hub; what can be refused is refused before any work."""
    exporter = _exporter(str(config.format), _EXPORTERS)
    path = Path(config.ckpt_path).expanduser()
    beside = path.parent / f"{path.stem}_{exporter.name}"
    directory = beside if config.directory is None else Path(config.directory)
    directory = directory.expanduser()
    require_free(directory)
    hub = None if config.push_to is None else HubUpload(config.push_to, private=config.push_private)
    source = checkpoint_source(
        path,
        reports=None if config.reports is None else list(config.reports),
        reports_root=Path(config.reports_root),
        keep_classifier=config.classifier,
    )
    location = None if hub is None else ExportLocation(hub.repository, is_on_hub=True)
    _tell(write_export(exporter, source, directory, location=location), directory)
    _log.info(f"\n{exporter.usage(source, ExportLocation(str(directory)))}\n")
    if hub is not None:
        _log.info(f"sent to {hub.send(directory)}")


def export_backbone(
    backbone: MaskedBackbone,
    directory: str | Path,
    format: str = "huggingface",  # noqa: A002 (what the command calls it)
) -> list[Path]:
    """Writes a backbone in the form other programs open, loads it back and compares.

    Args:
        backbone: Left as it is; its weights are written in single precision.
        directory: Made here; it may exist if it is empty.
        format: "huggingface" (transformers and timm), "timm" (a state dict), "torch_export" or "onnx".

    Returns:
        The paths written.

    Raises:
        ValueError: The format is unknown or cannot hold this backbone, the directory holds something, or the files
            compute something else. Nothing is left behind then.
    """
    exporter = _exporter(format, _BACKBONE_EXPORTERS)
    source = ExportSource(backbone=copy.deepcopy(backbone).cpu().float().eval())
    return write_export(exporter, source, Path(directory).expanduser()).paths


def checkpoint_source(
    path: Path, *, reports: Sequence[str] | None = None, reports_root: Path = Path("runs"), keep_classifier: bool = True
) -> ExportSource:
    """Reads a checkpoint and what is known of it.

    Args:
        path: A training checkpoint, or any file `load_backbone` reads.
        reports: `report.json` files to quote; None takes the checkpoint's own and those under `reports_root`.
        reports_root: Folder of runs.
        keep_classifier: Whether a classifier is exported with its backbone.

    Raises:
        ValueError: The file cannot be read, or a report is not one of this checkpoint.
    """
    if reports is None:
        measurements = _found_measurements(path, reports_root)
    else:
        measurements = [found for report in reports for found in _given_measurements(Path(report).expanduser(), path)]
    accuracy = accuracy_section(measurements)
    saved = find_run(read_weights(path))
    if saved is None:
        return _foreign_source(path, card=f"{NO_RECORD}\n\n{accuracy}", keep_classifier=keep_classifier)
    module = rebuild_method(saved, path)
    classifier = module.exported_classifier if keep_classifier else None
    return ExportSource(
        backbone=module.exported_backbone,
        classifier=classifier,
        class_names=() if classifier is None else saved.class_names,
        crop_pct=_crop_pct(saved),
        interpolation=_interpolation(saved),
        method=module,
        card="\n\n".join([*_training_sections(saved), accuracy]),
        tags=[type(module).__name__.lower()],
    )


def _foreign_source(path: Path, *, card: str, keep_classifier: bool) -> ExportSource:
    """Reads a file of another program, with its classifier where it holds one."""
    if not keep_classifier or not holds_classifier(path):
        return ExportSource(backbone=load_backbone(path), card=card)
    module, outputs, preprocessing = load_module(path)
    return ExportSource(
        backbone=module.exported_backbone,
        classifier=module.exported_classifier,
        class_names=outputs.class_names,
        card=card,
        **_prepared(preprocessing),
    )


def _prepared(preprocessing: Preprocessing) -> dict[str, Any]:
    """The crop and the interpolation that a file names; none, with a line, where they are not computed here."""
    try:
        return preprocessing.settings(chosen=())
    except ValueError as error:
        _log.info(f"{error}; the export names a whole image resized bicubic")
        return {}


def _exporter(name: str, exporters: Sequence[Exporter]) -> Exporter:
    found = next((exporter for exporter in exporters if exporter.name == name), None)
    if found is None:
        raise ValueError(f"format must be one of {', '.join(exporter.name for exporter in exporters)}, got {name!r}")
    return found


def _tell(exported: Export, directory: Path) -> None:
    for comparison in exported.comparisons:
        _log.info(f"checked: {comparison.what} differ by {comparison.difference:.3g} at most")
    names = ", ".join(str(path.relative_to(directory)) for path in exported.paths)
    _log.info(f"exported to {directory}: {names}")


def _training_sections(saved: SavedRun) -> list[str]:
    """Describes the run, and the one its weights started from where that checkpoint can still be read."""
    run = TrainingRun(saved.record, saved.origin)
    training = saved.record.get("training") or {}
    if not training.get("is_finetuning"):
        return [training_section(run, title="Training")]
    sections = [training_section(run, title="Fine-tuning")]
    if not training.get("starts_from_file"):
        return [*sections, "The weights fine-tuning started from were random."]
    start = recall_places(saved.record.get("run")).get("ckpt_path")
    if start is None:
        return [*sections, "Which checkpoint fine-tuning started from is not known on the machine that wrote this."]
    if not Path(start).exists():
        return [*sections, f"Fine-tuning started from `{_short(start)}`, which was not found."]
    first = find_run(read_weights(start))
    if first is None:
        return [*sections, f"Fine-tuning started from `{_short(start)}`, which has no record of its training."]
    return [training_section(TrainingRun(first.record, first.origin), title="Pre-training"), *sections]


def _crop_pct(saved: SavedRun) -> float:
    crop_pct = from_record(saved.record.get("data"), DATA).get("crop_pct", 1.0)
    if not LEAST_CROP <= crop_pct <= 1.0:
        raise ValueError(f"the checkpoint's data have crop_pct={shown(crop_pct)}, which must lie in [{LEAST_CROP}, 1]")
    return float(crop_pct)


def _interpolation(saved: SavedRun) -> str:
    interpolation = from_record(saved.record.get("data"), DATA).get("interpolation", "bicubic")
    if interpolation not in ("bicubic", "bilinear"):
        raise ValueError(
            f"the checkpoint's data have interpolation={shown(interpolation)}, which must be bicubic or bilinear"
        )
    return str(interpolation)


def _found_measurements(path: Path, root: Path) -> list[Measurement]:
    """Reads the report of the checkpoint's own run, then those under the root that measured the checkpoint."""
    own = [folder / _REPORT_NAME for folder in path.resolve().parents[1:3]]
    under_root = sorted([*root.glob(f"*/{_REPORT_NAME}"), *root.glob(f"*/*/{_REPORT_NAME}")])
    reports = {file.resolve(): file for file in [*own, *under_root] if file.is_file()}
    return [found for report in reports.values() for found in _of_checkpoint(_entries(report), report, path)]


def _given_measurements(report: Path, path: Path) -> list[Measurement]:
    entries = _entries(report)
    if not entries:
        raise ValueError(f"reports={report} is no report.json of eval.py")
    found = _of_checkpoint(entries, report, path)
    moved = [entry for entry in entries.values() if entry["ckpt_path"] and not Path(entry["ckpt_path"]).exists()]
    if not found and moved:  # the card says which path was measured
        found = [_measurement(entry, entries, report) for entry in moved]
    if not found:
        measured = ", ".join({str(entry["ckpt_path"]) for entry in entries.values()})
        raise ValueError(f"reports={report} measured {measured}, not {path}; leave it out")
    return found


def _of_checkpoint(entries: Mapping[str, Any], report: Path, path: Path) -> list[Measurement]:
    """Finds what a report measured of a checkpoint, or what it measured when fine-tuning kept the checkpoint."""
    here = path.resolve()
    kept_as = here.parent.name if here.parent.parent == report.resolve().parent / "checkpoints" else None
    return [
        _measurement(entry, entries, report)
        for name, entry in entries.items()
        if name == kept_as or (entry["ckpt_path"] and Path(entry["ckpt_path"]).resolve() == here)
    ]


def _measurement(entry: Mapping[str, Any], entries: Mapping[str, Any], report: Path) -> Measurement:
    untrained = [other for other in entries.values() if other["ckpt_path"] is None and entry["ckpt_path"] is not None]
    comparable = [other for other in untrained if _what(other) == _what(entry)]
    measured = "random weights" if entry["ckpt_path"] is None else f"`{_short(entry['ckpt_path'])}`"
    return Measurement(
        protocol=f"{entry['protocol']}, seed {entry['seed']}",
        metrics=entry["metrics"],
        num_test_images=entry["num_test_images"],
        baseline_top1=comparable[0]["metrics"].get("top1") if comparable else None,
        commit=(entry["git"] or {}).get("commit"),
        report=f"`{_short(report)}` of {measured}",
    )


def _what(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["protocol"], entry["seed"], entry["data"]


def _entries(report: Path) -> Mapping[str, Any]:
    """Reads what `eval.py` measured, by name; nothing from a file of another kind."""
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries: Any = content.get("reports") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all(set(entry) >= _KEYS_OF_A_REPORT for entry in entries.values()):
        return {}
    return entries


def _short(path: str | Path) -> str:
    """The end of a path: where a folder of runs lies is nobody's business."""
    return "/".join(Path(path).parts[-3:])
