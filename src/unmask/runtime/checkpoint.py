"""Reads and writes what a run leaves behind: training checkpoints and exported backbones."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.errors import HydraException
from safetensors.torch import save_file

from unmask.atomic_write import atomic_write
from unmask.backbones.base import MaskedBackbone
from unmask.evaluation.base import Outputs
from unmask.interchange.classifier import Classifier
from unmask.interchange.conversion import Conversion
from unmask.interchange.detect_format import convert
from unmask.interchange.files import WeightFile, read_weights, refusing_nonsense
from unmask.interchange.infer_config import with_changes
from unmask.interchange.limits import bounded_networks
from unmask.interchange.load_weights import load_backbone_weights
from unmask.interchange.preprocessing import Preprocessing
from unmask.interchange.record import FORMAT, RECORD_KEY, printable, require_format, require_plain, shown
from unmask.methods.backbone_module import BackboneModule
from unmask.methods.supervised import Supervised
from unmask.runtime.builders import build
from unmask.runtime.kinds import BACKBONE, METHOD, from_record

_log = logging.getLogger("unmask")
EXPORT_NAME = "backbone.safetensors"
_NUM_DIFFERENCES_SHOWN = 4
_MAX_CLASSES = 10_000_000
_MAX_NAME = 200  # characters of a class


class SavedRun(NamedTuple):
    """A training checkpoint read without running code; every part is checked where it is used to build something."""

    record: Mapping[str, Any]  # as `describe_run` writes it
    num_classes: int  # of the run's data; 0 without labels
    class_names: tuple[str, ...]  # in the order of the labels; empty without labels
    backbone: Mapping[str, Any]  # its kind and settings
    state_dict: Mapping[str, torch.Tensor]
    origin: Mapping[str, Any]  # `versions`, `git`, `images_seen` as `Provenance` writes them, and `steps`
    num_bytes: int  # of all weights


def read_checkpoint(path: str | Path) -> SavedRun:
    """Reads a `.ckpt` of a training run.

    Raises:
        ValueError: The file is missing, cut short, asks to run code, or is not a checkpoint of this package.
    """
    file = read_weights(path)
    saved = find_run(file)
    if saved is None:
        raise ValueError(
            f"{file.path} was not written by this program (it has no {RECORD_KEY!r} record); use its backbone by "
            "eval=knn, linear or finetune and by method.init_from, a classifier in it by eval=test or predict"
        )
    return saved


def find_run(file: WeightFile) -> SavedRun | None:
    """Finds the training run in a file that was read; None in an exported backbone or another program's file.

    Raises:
        ValueError: The record is of another format, or not as this package writes it.
    """
    content = file.content
    if RECORD_KEY not in content or "state_dict" not in content:
        return None
    written = require_format(content[RECORD_KEY], file.path)
    record, weights = written.get("record"), content["state_dict"]
    if not isinstance(record, Mapping) or not isinstance(weights, Mapping):
        raise ValueError(f"{file.path} does not describe the run it is of; it is incomplete or was changed")
    for name, part in written.items():
        if name != "record":
            require_plain(part, f"{file.path}: {name}")
    for name, part in record.items():
        if name != "class_names":
            require_plain(part, f"{file.path}: {name}")
    _require_shapes(written, record, file.path)
    num_classes = record.get("num_classes")
    if type(num_classes) is not int or not 0 <= num_classes <= _MAX_CLASSES:
        raise ValueError(f"{file.path} says it has {shown(num_classes)} classes; refused")
    return SavedRun(
        record=record,
        num_classes=num_classes,
        class_names=_class_names(record, file.path),
        backbone=written.get("backbone") or {},
        state_dict=weights,
        origin={
            **{name: written.get(name) for name in ("versions", "git", "images_seen")},
            "steps": _steps(content.get("global_step")),  # of the optimizer
        },
        num_bytes=file.num_bytes,
    )


def _require_shapes(written: Mapping[str, Any], record: Mapping[str, Any], path: Path) -> None:
    """Refuses facts of another kind than this program writes; what is built is checked by its own classes."""
    mappings = {"backbone": written, "versions": written, "git": written, "data": record, "training": record}
    for name, part in mappings.items():
        if not isinstance(part.get(name), Mapping | None):
            raise ValueError(
                f"{path} gives {name} as {shown(part[name])}, and it is a list of names and values; refused"
            )
    images_seen = written.get("images_seen")
    if images_seen is not None and (type(images_seen) is not int or images_seen < 0):
        raise ValueError(f"{path} was trained on {shown(images_seen)} images, which is not a number of images; refused")


def _class_names(record: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    names = record.get("class_names", ())
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} names its classes by {shown(names)} and not by a list of names; refused")
    if len(names) > _MAX_CLASSES:
        raise ValueError(f"{path} names {len(names)} classes; refused")
    return tuple(printable(name[:_MAX_NAME]) for name in names)


def _steps(steps: Any) -> int | None:
    return steps if type(steps) is int and 0 <= steps < 2**63 else None


class LoadedModule(NamedTuple):
    """A module with its heads, in eval mode, what its outputs stand for, and how its program prepares images."""

    module: BackboneModule
    outputs: Outputs
    preprocessing: Preprocessing = Preprocessing()


def load_method(path: str | Path, **changes: Any) -> BackboneModule:
    """Rebuilds a method with its heads, in eval mode, from the file alone.

    Args:
        path: A training checkpoint of this program; or a file of another program that `load_backbone` reads and that
            holds a classifier, of which a `Supervised` is made that gives the same logits.
        changes: Of another program's file alone: settings of the backbone in place of the file's, as of
            `load_backbone`.

    Raises:
        ValueError: The file cannot be read safely, or it holds a backbone alone.
    """
    return load_module(path, **changes).module


def load_module(path: str | Path, **changes: Any) -> LoadedModule:
    """As `load_method`, with what the outputs stand for."""
    file = read_weights(path)
    saved = find_run(file)
    if saved is None:
        return _load_classifier(file, path, changes)
    if changes:
        raise ValueError(
            f"{path} is a training checkpoint, which states all settings of the backbone its head was trained on; "
            f"leave out {', '.join(sorted(changes))}"
        )
    module = rebuild_method(saved, path)
    num_outputs = saved.num_classes if module.is_classifier else 0
    return LoadedModule(module, Outputs(num_outputs, class_names=saved.class_names))


def holds_classifier(path: str | Path) -> bool:
    """Whether a file of another program holds a classifier that can be loaded."""
    file = read_weights(path)
    with refusing_nonsense(path):
        classifier = convert(file).classifier
    return classifier is not None and classifier.pooling is not None


def _load_classifier(file: WeightFile, path: str | Path, changes: Mapping[str, Any]) -> LoadedModule:
    """Puts the classifier of another program's file on its backbone."""
    with refusing_nonsense(path):
        conversion = convert(file)
        classifier = _require_classifier(conversion, path)
        if "pooling" in conversion.settings:
            conversion = replace(conversion, settings={**conversion.settings, "pooling": classifier.pooling})
        with bounded_networks(file.num_bytes):
            backbone = build_backbone(with_changes(conversion, changes))
            module = Supervised(
                backbone=backbone,
                num_classes=classifier.num_outputs,
                head=classifier.head,
                mixup=0.0,
                cutmix=0.0,
                label_smoothing=0.0,
                optimizer=_is_not_trained,
                schedule=_is_not_trained,
            )
        report = load_backbone_weights(backbone, conversion)
        module.head.load_state_dict(classifier.weights)
    assumed = [classifier.assumed] if classifier.assumed and "pooling" not in changes else []
    report = replace(
        report,
        heads=classifier.names,
        left_out={name: why for name, why in report.left_out.items() if name not in classifier.names},
        notes=(*report.notes, *assumed),
    )
    _log.info(f"{path}\n{report.describe()}")
    outputs = Outputs(classifier.num_outputs, classifier.num_unused, classifier.class_names)
    module.eval()
    return LoadedModule(module, outputs, conversion.preprocessing)


def _require_classifier(conversion: Conversion, path: str | Path) -> Classifier:
    classifier = conversion.classifier
    advice = "use its backbone by eval=knn, linear or finetune and by method.init_from"
    if classifier is None:
        raise ValueError(
            f"{path} ({conversion.source_format}) is no training checkpoint of this program and holds no classifier; "
            f"{advice}"
        )
    if classifier.pooling is None:
        raise ValueError(
            f"{path} ({conversion.source_format}) holds a classifier that reads neither the class token nor the mean "
            f"over the patches, which are computed here; {advice}"
        )
    if classifier.num_outputs < 2:
        raise ValueError(f"{path} ({conversion.source_format}) holds a head of one output, not a classifier; {advice}")
    return classifier


def _is_not_trained(*_: Any, **__: Any) -> Any:
    raise ValueError("a classifier of another program is measured as it is and not trained; use eval=finetune")


def rebuild_method(saved: SavedRun, path: str | Path) -> BackboneModule:
    """Rebuilds the method of a checkpoint already read from `path`, in eval mode.

    Raises:
        ValueError: The record names what is not installed, does not fit its weights, or would need far more memory.
    """
    with refusing_nonsense(path), bounded_networks(saved.num_bytes):
        config = from_record(saved.record.get("method"), METHOD)
        if config.pop("_partial_", False):
            config["num_classes"] = saved.num_classes
        config["backbone"] = from_record(saved.backbone, BACKBONE)  # as saved: fine-tuning changes its form
        method: BackboneModule = _build(config)
        _load_weights(method, saved.state_dict, path)
    return method.eval()


def load_backbone(
    path: str | Path, *, allow_partial: bool = False, use_ema_weights: bool = False, **changes: Any
) -> MaskedBackbone:
    """Loads a backbone in eval mode, recognized from the file alone; logs what was loaded and what was not.

    Args:
        path: A training checkpoint or export of this program, or a file or folder of MAE, SimMIM, mmpretrain, FlyEgle,
            DDMIM, lightly, solo-learn, timm or Hugging Face.
        allow_partial: Accept a file that lacks part of the backbone, which then stays random.
        use_ema_weights: Take the averaged teacher where a file holds one beside the trained weights (DDMIM v9).
        changes: Settings of the backbone in place of the file's, such as `image_size=448`; positions are resized.

    Raises:
        ValueError: The file cannot be read safely, is of no known program, or does not fill the backbone.
    """
    file = read_weights(path)
    with refusing_nonsense(path):
        conversion = convert(file, use_ema_weights=use_ema_weights)
        with bounded_networks(file.num_bytes):
            backbone = build_backbone(with_changes(conversion, changes))
        report = load_backbone_weights(backbone, conversion, allow_partial=allow_partial)
    _log.info(f"{path}\n{report.describe()}")
    return backbone.eval()


def build_backbone(settings: Mapping[str, Any]) -> MaskedBackbone:
    """Builds a backbone with random weights from the kind and settings it was saved with."""
    backbone: MaskedBackbone = _build(from_record(settings, BACKBONE))
    return backbone


def export_weights(backbone: MaskedBackbone, path: Path) -> Path:
    """Writes one self-contained safetensors file: the weights, and in its header what rebuilds the backbone."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    with atomic_write(path) as partial:
        described = {"format": FORMAT, "backbone": dict(backbone.settings)}
        save_file(weights, partial, metadata={RECORD_KEY: json.dumps(described)})
    return path


def require_same_backbone(method: BackboneModule, path: str | Path) -> None:
    """Refuses to resume from a checkpoint whose backbone has other settings than the configured one."""
    saved = read_checkpoint(path).backbone
    configured = method.exported_backbone.settings
    different = [
        f"{name} {shown(saved.get(name))} in the checkpoint, {shown(configured.get(name))} in this run"
        for name in sorted({*saved, *configured})
        if saved.get(name) != configured.get(name)
    ]
    if different:
        raise ValueError(
            f"{path} was saved with another model than the configured one: "
            f"{'; '.join(different[:_NUM_DIFFERENCES_SHOWN])}. Resume with the run's own settings"
        )


def _build(config: Mapping[str, Any]) -> Any:
    """Builds a node; what a constructor raises comes as it is and not as Hydra wraps it."""
    try:
        return build(config)
    except HydraException as error:
        raise error.__cause__ or ValueError(str(error)) from None


def _load_weights(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], path: str | Path) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not contain the weights its record describes: {error}".split("\n")[0]) from error
