"""Pre-trains, or trains from scratch, as one configuration says."""

import contextlib
import copy
import logging
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig

from unmask.callbacks.process_watch import ProcessWatch, lost_process
from unmask.callbacks.provenance import Provenance, describe_git
from unmask.callbacks.restricted_state import RestrictedState
from unmask.callbacks.run_settings import RunSettings
from unmask.callbacks.run_status import RunStatus, write_status
from unmask.callbacks.settings_card import SettingsCard
from unmask.callbacks.stopping import RunStopped, launched_processes
from unmask.data.datamodule import ImageDataModule
from unmask.methods.backbone_module import BackboneModule
from unmask.runtime.builders import (
    build_data,
    build_entries,
    build_module,
    build_trainer,
    idle_settings,
    resolve_config,
    write_statistics,
)
from unmask.runtime.checkpoint import EXPORT_NAME, export_weights, require_same_backbone
from unmask.runtime.console import describe_learning_rate, describe_limit
from unmask.runtime.effect import require_effect
from unmask.runtime.follow_data import announce_length, follow_training_images
from unmask.runtime.follow_steps import follow_steps
from unmask.runtime.initialize import initialize
from unmask.runtime.job_outcome import report_to_sweep
from unmask.runtime.optuna_sweeper import build_pruning
from unmask.runtime.own_commands import sibling_command
from unmask.runtime.probes import build_probes
from unmask.runtime.reference import find_reference, tell_how_to_compare
from unmask.runtime.resume import (
    find_resume_point,
    is_complete,
    require_same_images,
    require_same_run,
    settings_of_run,
)
from unmask.runtime.run_folder import locked
from unmask.runtime.run_record import describe_run, remember_places
from unmask.runtime.secrets import redacted
from unmask.runtime.setting_types import require_types
from unmask.runtime.shared_cores import describe_waiting
from unmask.runtime.typed import typed

_EXIT_TIMEOUT = 15.0  # seconds
_log = logging.getLogger("unmask")
# What is built or read of a configuration; all else in it is there to be referred to from these.
_READ = (
    "method",
    "data",
    "trainer",
    "callbacks",
    "logger",
    "probes",
    "seed",
    "resume",
    "ckpt_path",
    "global_batch_size",
    "images_per_device",
    "follow_data",
)
_READ_WITH_WEIGHTS = ("allow_partial", "use_ema_weights")


def pretrain(config: DictConfig) -> float | None:
    """Trains and exports the backbone.

    Returns:
        The last loss on held-out images, which a sweep may minimize; None where there was no validation.
    """
    with locked(Path(config.paths.run_dir)):
        return _pretrain(config)


def _pretrain(config: DictConfig) -> float | None:
    require_types(config)
    resolve_config(config)  # refuses what its rules cannot compute with, before data are built from it
    data = build_data(config)
    follow_training_images(config, data)
    follow_steps(config, num_train_images=data.num_train_images)
    learning_rate = describe_learning_rate(config)
    settings = settings_of_run(redacted(resolve_config(config)))
    point = find_resume_point(config)
    changes = [] if point is None else require_same_run(point, settings)
    if point is not None and is_complete(point, config):
        _log.info(f"already complete at step {point.step:,}: {config.paths.run_dir}")
        return None
    config.resumed_step = None if point is None else point.step
    config.reference = find_reference(config)
    composed = copy.deepcopy(config)  # building replaces rules by their values
    seed_everything(config.seed, workers=True, verbose=False)
    write_statistics(config, data)
    method = build_module(config.method, data)
    require_effect(
        composed,
        read=[*_READ, *(_READ_WITH_WEIGHTS if config.method.get("init_from") is not None else ())],
        built={"data": data, "method": method},
        idle=idle_settings(config),
        by="method",
    )
    if method.is_classifier:
        _require_labels(data)
    fingerprints = {split: data.dataset(split).fingerprint for split in ("train", "val")}
    if point is not None:
        require_same_backbone(method, point.path)
        require_same_images(point, fingerprints)
    else:
        initialize(
            method,
            class_names=data.class_names if method.is_classifier else (),
            allow_partial=config.allow_partial,
            use_ema_weights=config.use_ema_weights,
        )
    plain = redacted(resolve_config(config))
    record = describe_run(plain, num_classes=data.num_classes, class_names=data.class_names)
    provenance = Provenance(record)
    run_dir = Path(config.paths.run_dir)
    kept = RunSettings(settings=settings, fingerprints=fingerprints)
    watching = [RunStatus(folder=run_dir), ProcessWatch(folder=run_dir)]
    card = SettingsCard(
        learning_rate=learning_rate,
        seed=config.seed,
        limits_batch=describe_limit(config),
        waiting=describe_waiting(),
    )
    beside = [*build_probes(config, data), *build_entries(config.callbacks)]
    callbacks = [card, provenance, RestrictedState(), kept, *beside, *build_pruning(), *watching]
    trainer = build_trainer(config, callbacks=callbacks)
    trainer.datamodule = data  # type: ignore[attr-defined]
    if trainer.is_global_zero:
        announce_length(composed, num_images=data.num_train_images)
        for line in [] if point is None else [point.describe(), *(f"changed: {change}" for change in changes)]:
            _log.info(line)
    _log_settings(trainer, config, method, fingerprints)

    if trainer.is_global_zero:
        remember_places(record, plain)
    _fit(trainer, method, data, run_dir, resumed=None if point is None else point.path.absolute())

    if trainer.is_global_zero and trainer.state.finished and not config.trainer.get("fast_dev_run"):
        tell_how_to_compare(config, run_dir)
        _export(method, run_dir, is_labeled=data.dataset("train").is_labeled)
        write_status(run_dir, "complete", step=trainer.global_step, epoch=trainer.current_epoch)
    report_to_sweep(metrics={name: float(metric) for name, metric in trainer.callback_metrics.items() if "/" in name})
    loss = trainer.callback_metrics.get("val/loss")
    return None if loss is None else float(loss)


def _fit(
    trainer: Trainer, method: BackboneModule, data: ImageDataModule, run_dir: Path, *, resumed: Path | None
) -> None:
    """Trains; an early end leaves no process behind and is told by the exception alone."""
    checkpoint = None if resumed is None else str(resumed)
    try:
        trainer.fit(method, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except RunStopped:
        for process in launched_processes(trainer):  # they have stopped at the same step
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_EXIT_TIMEOUT)
        raise
    except Exception as error:
        failed = lost_process(trainer, error)
        if failed is None:
            raise
        if trainer.is_global_zero:
            write_status(run_dir, "failed", step=trainer.global_step, epoch=trainer.current_epoch, reason=str(failed))
        raise failed from error


def _require_labels(data: ImageDataModule) -> None:
    unlabeled = [split for split in ("train", "val") if not data.dataset(split).is_labeled]
    if unlabeled:
        raise ValueError(
            f"training with labels needs one for every image, but the {' and '.join(unlabeled)} split lacks some; "
            "sort its images into class folders, or pre-train without labels by method=mae or method=simmim"
        )


def _log_settings(
    trainer: Trainer, config: DictConfig, method: BackboneModule, fingerprints: Mapping[str, str]
) -> None:
    """Tells every logger what the run is: its settings, its code, its images and the size of what it trains."""
    settings = {name: value for name, value in redacted(resolve_config(config)).items() if name != "callbacks"}
    facts = {
        "trainable_parameters": sum(p.numel() for p in method.parameters() if p.requires_grad),
        "backbone_parameters": sum(p.numel() for p in method.exported_backbone.parameters()),
        "images": dict(fingerprints),
        "git": describe_git(),
    }
    for logger in trainer.loggers:
        logger.log_hyperparams({**settings, "facts": facts})
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            logger.experiment.define_metric("val/loss", summary="min")
            logger.experiment.define_metric("val/top1", summary="max")
            logger.experiment.define_metric("probe/*", summary="max")
            logger.experiment.define_metric("system/images_per_s", summary="mean")
            logger.experiment.define_metric("system/mfu", summary="mean")


def _export(method: BackboneModule, run_dir: Path, *, is_labeled: bool) -> None:
    exported = export_weights(method.exported_backbone, run_dir / EXPORT_NAME)
    _log.info(f"backbone exported to {exported}")
    checkpoint = exported.parent / "checkpoints" / "last.ckpt"
    evaluation = ["eval=knn"] if is_labeled else ["eval=reconstruct", "image=PHOTO"]  # most protocols need labels
    _log.info(f"next: {shlex.join([*sibling_command('eval'), *evaluation, typed('ckpt_path', checkpoint)])}")
