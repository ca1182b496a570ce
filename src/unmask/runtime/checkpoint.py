"""Reads and writes what a run leaves behind: training checkpoints and exported backbones."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from unmask.backbones.base import MaskedBackbone
from unmask.runtime.builders import AnyMethod, build_untrusted

RECORD_KEY = "unmask"  # where a training checkpoint keeps its record, and a safetensors file its description
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
    file = _require_file(path)
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is not a complete checkpoint (no closing index): cut short, or another kind of file")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{file} holds Python objects beside weights and is refused: {error}".split("\n")[0]
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{file} cannot be read, it may be damaged: {error}".split("\n")[0]) from error
    if not isinstance(content, dict) or RECORD_KEY not in content or "state_dict" not in content:
        raise ValueError(f"{file} was not written by this program (it has no {RECORD_KEY!r} record)")
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


def load_backbone(path: str | Path) -> MaskedBackbone:
    """Rebuilds a backbone from an exported `.safetensors` file or a training checkpoint, in eval mode."""
    if Path(path).suffix == ".safetensors":
        return _load_exported(path)
    saved = read_checkpoint(path)
    backbone = build_backbone(saved.backbone)
    prefix = "backbone."
    weights = {name.removeprefix(prefix): w for name, w in saved.state_dict.items() if name.startswith(prefix)}
    _load_weights(backbone, weights, path)
    return backbone.eval()


def build_backbone(settings: Mapping[str, Any]) -> MaskedBackbone:
    """Builds a backbone with random weights from the settings it was saved with."""
    backbone: MaskedBackbone = build_untrusted(settings)
    return backbone


def export_weights(backbone: MaskedBackbone, path: Path) -> Path:
    """Writes one self-contained safetensors file: the weights, and in its header what rebuilds the backbone."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(weights, partial, metadata={RECORD_KEY: json.dumps({"backbone": dict(backbone.settings)})})
    partial.replace(path)
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


def _load_exported(path: str | Path) -> MaskedBackbone:
    file = _require_file(path)
    try:
        with safe_open(str(file), framework="pt") as opened:
            described = (opened.metadata() or {}).get(RECORD_KEY)
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read as safetensors: {error}") from error
    if described is None:
        raise ValueError(f"{file} does not say which backbone it holds; expected a file exported by this program")
    backbone = build_backbone(json.loads(described)["backbone"])
    _load_weights(backbone, weights, path)
    return backbone.eval()


def _load_weights(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], path: str | Path) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not hold the weights its description promises: {error}".split("\n")[0]
        ) from error


def _require_file(path: str | Path) -> Path:
    file = Path(path).expanduser()
    if file.is_dir():
        raise ValueError(f"ckpt_path={path} is a folder; name a file in it, such as checkpoints/last.ckpt")
    if not file.is_file():
        raise ValueError(f"ckpt_path={path} does not exist (looked in {Path.cwd()})")
    return file
