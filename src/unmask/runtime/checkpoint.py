"""Reads and writes what a run leaves behind: training checkpoints and exported backbones."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from unmask.atomic_write import atomic_write
from unmask.backbones.base import MaskedBackbone
from unmask.interchange.detect_format import convert
from unmask.interchange.files import WeightFile, read_weights
from unmask.interchange.importers.unmask import RECORD_KEY
from unmask.interchange.infer_config import with_changes
from unmask.interchange.load_weights import load_backbone_weights
from unmask.runtime.builders import AnyMethod, build_untrusted

_log = logging.getLogger("unmask")
EXPORT_NAME = "backbone.safetensors"
_NUM_DIFFERENCES_SHOWN = 4


class SavedRun(NamedTuple):
    """A training checkpoint read without running code."""

    config: Mapping[str, Any]  # the run's, resolved
    num_classes: int  # of the run's data; 0 without labels
    class_names: tuple[str, ...]  # in the order of the labels; empty without labels, or where an older file names none
    backbone: Mapping[str, Any]  # settings that rebuild it
    state_dict: Mapping[str, torch.Tensor]
    origin: Mapping[str, Any]  # `versions`, `git`, `images_seen` as `Provenance` writes them, and `steps`


def read_checkpoint(path: str | Path) -> SavedRun:
    """Reads a `.ckpt` of a training run.

    Raises:
        ValueError: The file is missing, cut short, asks to run code, or is not a checkpoint of this package.
    """
    file = read_weights(path)
    saved = find_run(file)
    if saved is None:
        raise ValueError(
            f"{file.path} was not written by this program (it has no {RECORD_KEY!r} record); of another program's "
            "checkpoint the backbone alone is taken, by eval=knn, linear or finetune and by method.init_from"
        )
    return saved


def find_run(file: WeightFile) -> SavedRun | None:
    """Finds the training run in a file that was read; None in an exported backbone or another program's file."""
    content = file.content
    if RECORD_KEY not in content or "state_dict" not in content:
        return None
    written = content[RECORD_KEY]
    run = written["record"]
    origin = {name: written.get(name) for name in ("versions", "git", "images_seen")}
    origin["steps"] = content.get("global_step")  # of the optimizer
    return SavedRun(
        config=run["config"],
        num_classes=run["num_classes"],
        class_names=tuple(run.get("class_names", ())),
        backbone=written["backbone"],
        state_dict=content["state_dict"],
        origin=origin,
    )


def load_method(path: str | Path) -> AnyMethod:
    """Rebuilds the method of a training checkpoint, heads included, from the file alone."""
    return rebuild_method(read_checkpoint(path), path)


def rebuild_method(saved: SavedRun, path: str | Path) -> AnyMethod:
    """Rebuilds the method of a checkpoint already read from `path`, in eval mode."""
    config = dict(saved.config["method"])
    if config.pop("_partial_", False):
        config["num_classes"] = saved.num_classes
    config["backbone"] = saved.backbone  # as it was when saved: fine-tuning changes its form
    method: AnyMethod = build_untrusted(config)
    _load_weights(method, saved.state_dict, path)
    return method.eval()


def load_backbone(
    path: str | Path, *, allow_partial: bool = False, use_ema_weights: bool = False, **changes: Any
) -> MaskedBackbone:
    """Loads a backbone in eval mode, recognised from the file alone; logs what was loaded and what was not.

    Args:
        path: A training checkpoint or export of this program, or a file or folder of MAE, SimMIM, mmpretrain, FlyEgle,
            DDMIM, lightly, solo-learn, timm or Hugging Face.
        allow_partial: Accept a file that lacks part of the backbone, which then stays random.
        use_ema_weights: Take the averaged teacher where a file holds one beside the trained weights (DDMIM v9).
        changes: Settings of the backbone in place of the file's, such as `image_size=448`; positions are resized.

    Raises:
        ValueError: The file cannot be read safely, is of no known program, or does not fill the backbone.
    """
    conversion = convert(read_weights(path), use_ema_weights=use_ema_weights)
    backbone = build_backbone(with_changes(conversion, changes))
    coverage = load_backbone_weights(backbone, conversion, allow_partial=allow_partial)
    _log.info(f"{path}\n{coverage.describe()}")
    return backbone.eval()


def build_backbone(settings: Mapping[str, Any]) -> MaskedBackbone:
    """Builds a backbone with random weights from the settings it was saved with."""
    backbone: MaskedBackbone = build_untrusted(settings)
    return backbone


def export_weights(backbone: MaskedBackbone, path: Path) -> Path:
    """Writes one self-contained safetensors file: the weights, and in its header what rebuilds the backbone."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    with atomic_write(path) as partial:
        save_file(weights, partial, metadata={RECORD_KEY: json.dumps({"backbone": dict(backbone.settings)})})
    return path


def require_same_backbone(method: AnyMethod, path: str | Path) -> None:
    """Refuses to resume from a checkpoint whose backbone has other settings than the configured one."""
    saved = read_checkpoint(path).backbone
    configured = method.exported_backbone.settings
    different = [
        f"{name} {saved.get(name)!r} there, {configured.get(name)!r} here"
        for name in sorted({*saved, *configured})
        if saved.get(name) != configured.get(name)
    ]
    if different:
        raise ValueError(
            f"{path} was saved with another model than the configured one: "
            f"{'; '.join(different[:_NUM_DIFFERENCES_SHOWN])}. Resume with the run's own settings"
        )


def _load_weights(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], path: str | Path) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not hold the weights its description promises: {error}".split("\n")[0]
        ) from error
