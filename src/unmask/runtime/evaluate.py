"""Evaluates a checkpoint and writes its report."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from unmask.backbones.base import MaskedBackbone
from unmask.callbacks.provenance import Provenance, describe_git
from unmask.data.datamodule import ImageDataModule
from unmask.evaluation.base import EvalReport
from unmask.evaluation.report import report_dict, report_table
from unmask.interchange.files import read_weights
from unmask.interchange.importers.unmask import RECORD_KEY
from unmask.runtime.builders import as_plain, build, build_entries, build_trainer, build_untrusted
from unmask.runtime.checkpoint import build_backbone, load_backbone, load_method, read_checkpoint
from unmask.runtime.console import describe_batch
from unmask.runtime.use.tool import Tool, use

_log = logging.getLogger("unmask")


def evaluate(config: DictConfig) -> float | None:
    """Runs one protocol on a checkpoint, and on a random backbone beside where the protocol asks for it.

    Writes `report.json` and `report.md` into the run's folder and prints the table.

    Returns:
        The top-1 accuracy in percent, which a sweep may maximise; None for a protocol without one.
    """
    seed_everything(config.seed, workers=True, verbose=False)
    evaluator = build(config.eval)
    if isinstance(evaluator, Tool):  # it shows what was learned and measures nothing
        use(config, evaluator, lambda config, backbone: _build_data(config, backbone)[0])
        return None
    if hasattr(evaluator, "evaluate_module"):
        module = load_method(config.ckpt_path)
        data, settings = _build_data(config, module.exported_backbone)
        make_trainer = _trainers(config, data, settings, "checkpoint")
        reports = {"checkpoint": evaluator.evaluate_module(module, data, make_trainer)}
    else:
        changes = {name: value for name, value in as_plain(config.backbone).items() if value is not None}
        backbone = load_backbone(
            config.ckpt_path,
            allow_partial=config.allow_partial,
            take_teacher=config.take_teacher,
            **changes,
        )
        data, settings = _build_data(config, backbone)
        make_trainer = _trainers(config, data, settings, "checkpoint")
        reports = {"checkpoint": evaluator.evaluate(backbone, data, make_trainer)}
        if evaluator.baseline:
            seed_everything(config.seed, workers=True, verbose=False)
            untrained = build_backbone(backbone.settings)
            make_trainer = _trainers(config, data, settings, "random")
            reports["random"] = evaluator.evaluate(untrained, data, make_trainer)
    _write(config, reports)
    top1: float | None = reports["checkpoint"].metrics.get("top1")
    return top1


def _build_data(config: DictConfig, backbone: MaskedBackbone) -> tuple[ImageDataModule, dict[str, Any]]:
    """Builds the configured data, or the checkpoint's own, served as the backbone was trained to see it.

    Returns:
        The data module and the plain settings that rebuild it.
    """
    served: dict[str, Any] = {
        "image_size": list(backbone.image_size),
        "channels": backbone.in_channels,
        "statistics": "given",
        "pixel_mean": list(backbone.pixel_mean),
        "pixel_std": list(backbone.pixel_std),
    }
    if config.eval_crop_share is not None:
        served["eval_crop_share"] = config.eval_crop_share
    if config.get("data") is not None:
        settings = as_plain(config.data) | served
        return build(settings), settings
    settings = _data_of_checkpoint(config.ckpt_path) | served
    settings |= {
        "augmentation": as_plain(config.augmentation),
        "global_batch_size": config.global_batch_size,
        "seed": config.seed,
    }
    return build_untrusted(settings), settings


def _data_of_checkpoint(path: str) -> dict[str, Any]:
    if RECORD_KEY not in read_weights(path).content:
        raise ValueError(f"{path} does not remember the data it was trained on; add data=NAME data.root=DIR")
    return dict(read_checkpoint(path).config["data"])


def _trainers(
    config: DictConfig, data: ImageDataModule, data_settings: dict[str, Any], name: str
) -> Callable[..., Trainer]:
    """Makes trainers for one backbone; a classifier they fit is kept under `checkpoints/<name>`."""
    run_dir = Path(config.paths.run_dir)
    plain = as_plain(config)
    kept_config = plain | {"method": plain["eval"].get("classifier"), "data": data_settings}
    if name == "random":
        kept_config["ckpt_path"] = None  # its weights started from nothing
    record = {"config": kept_config, "num_classes": data.num_classes, "class_names": list(data.class_names)}

    def make_trainer(**arguments: Any) -> Trainer:
        kept = ModelCheckpoint(dirpath=run_dir / "checkpoints" / name, filename="last", enable_version_counter=False)
        callbacks = [Provenance(record=record), *build_entries(config.callbacks), kept]
        trainer = build_trainer(config, **{"callbacks": callbacks, **arguments})
        if "max_epochs" in arguments and trainer.is_global_zero:  # it will train
            _log.info(f"batch  {describe_batch(config, trainer)}")
        return trainer

    return make_trainer


def _write(config: DictConfig, reports: dict[str, EvalReport]) -> None:
    run_dir = Path(config.paths.run_dir)
    table = report_table(reports)
    content = {
        "reports": {name: report_dict(report) for name, report in reports.items()},
        "ckpt_path": str(config.ckpt_path),
        "git": describe_git(),
    }
    (run_dir / "report.json").write_text(json.dumps(content, indent=2) + "\n")
    (run_dir / "report.md").write_text(table + "\n")
    _log.info(f"\n{table}\n")
    _log.info(f"report written to {run_dir / 'report.json'} and report.md")
