"""Evaluates checkpoints and writes their report."""

import copy
import json
import logging
import re
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from unmask.backbones.base import MaskedBackbone
from unmask.callbacks.provenance import Provenance, describe_git
from unmask.data.datamodule import ImageDataModule
from unmask.evaluation.base import EvalReport
from unmask.evaluation.features import FrozenFeatures
from unmask.evaluation.report import (
    Measurement,
    csv_report,
    labelled,
    latex_report,
    markdown_report,
    report_dict,
    summary_dicts,
)
from unmask.inference.base import Inference
from unmask.interchange.files import read_weights
from unmask.interchange.importers.unmask import RECORD_KEY
from unmask.runtime.builders import as_plain, build, build_entries, build_trainer, build_untrusted
from unmask.runtime.checkpoint import build_backbone, load_backbone, load_method, read_checkpoint
from unmask.runtime.console import describe_batch
from unmask.runtime.inference import run_inference
from unmask.runtime.secrets import redacted

_log = logging.getLogger("unmask")
_CHECKPOINT, _RANDOM = "checkpoint", "random"  # names of rows; compare= adds others
_NAME = re.compile(r"[\w.+-][\w .+-]*")  # of folders as well

MakeTrainer = Callable[..., Trainer]
DataFor = Callable[[MaskedBackbone, int], tuple[ImageDataModule, dict[str, Any]]]


class Subject(NamedTuple):
    """What is measured: one file, or random weights."""

    name: str  # of its row
    ckpt_path: str | None  # None: random weights of the first checkpoint's backbone
    label: str  # tells it from others of the row


class Outcome(NamedTuple):
    """One report and what it was made from."""

    subject: Subject
    seed: int
    report: EvalReport
    fingerprints: Mapping[str, str]  # of the splits that were read


def evaluate(config: DictConfig) -> float | None:
    """Measures checkpoints, others beside them where `compare` names any, and a random backbone where asked for.

    Prints a table and writes it into the run's folder as `report.md`, `report.csv` and `report.tex`, and all that was
    measured as `report.json`. Every file is opened before anything is computed, and nothing is written unless all was
    measured.

    Returns:
        The top-1 accuracy in percent of the checkpoint, which a sweep may maximise; None for a protocol without one.
    """
    git = describe_git()
    seeds = _seeds(config)
    seed_everything(seeds[0], workers=True, verbose=False)
    evaluators = {seed: build(_seeded(config, seed).eval) for seed in seeds}
    evaluator, subjects = evaluators[seeds[0]], _subjects(config)
    if isinstance(evaluator, Inference):  # it shows what was learned and measures nothing
        _require_one_file(config)
        run_inference(config, evaluator, lambda config, backbone: _build_data(config, backbone)[0])
        return None
    if hasattr(evaluator, "evaluate_module"):
        outcomes = _test_modules(config, evaluator, subjects)
    else:
        backbones = _open_backbones(config, subjects)
        if evaluator.baseline:
            subjects.append(Subject(_RANDOM, None, _RANDOM))
        measure = _measure_features if hasattr(evaluator, "protocols") else _evaluate_backbones
        outcomes = measure(config, evaluators, subjects, backbones)
    measurements = [
        Measurement(
            backbone=outcome.subject.name,
            ckpt_path=outcome.subject.ckpt_path,
            seed=outcome.seed,
            report=outcome.report,
            data=outcome.fingerprints,
            git=git,
        )
        for outcome in outcomes
    ]
    _write(Path(config.paths.run_dir), measurements)
    return _top1(measurements)


def _seeds(config: DictConfig) -> list[int]:
    seeds = [config.seed] if config.seeds is None else list(config.seeds)
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(seed, int) for seed in seeds):
        raise ValueError(f"seeds must be different whole numbers such as [0,1,2], got {seeds}")
    return seeds


def _seeded(config: DictConfig, seed: int) -> DictConfig:
    seeded = copy.deepcopy(config)
    seeded.seed = seed
    return seeded


def _subjects(config: DictConfig) -> list[Subject]:
    """Reads `ckpt_path` and `compare`, each one path or a list of them."""
    named: dict[str, Any] = {_CHECKPOINT: config.ckpt_path}
    for name, paths in (config.compare or {}).items():
        if not _NAME.fullmatch(str(name)) or name in (_CHECKPOINT, _RANDOM):
            raise ValueError(
                f"compare has the name {str(name)!r}; a name is letters, digits and . + - _, and {_CHECKPOINT} and "
                f"{_RANDOM} are taken"
            )
        named[str(name)] = paths
    subjects = []
    for name, given in named.items():
        paths = [str(given)] if not OmegaConf.is_list(given) else [str(path) for path in given]
        if not paths or len(set(paths)) < len(paths):
            raise ValueError(f"{name} must name different files, got {paths}")
        labels = [name] if len(paths) == 1 else [f"{name}_{number}" for number in range(1, len(paths) + 1)]
        subjects += [Subject(name, path, label) for path, label in zip(paths, labels, strict=True)]
    return subjects


def _require_one_file(config: DictConfig) -> None:
    if config.seeds is not None or config.compare is not None or OmegaConf.is_list(config.ckpt_path):
        raise ValueError("this works on one file and draws nothing; leave out seeds, compare and all but one ckpt_path")


def _load(config: DictConfig, path: str) -> MaskedBackbone:
    changes = {name: value for name, value in as_plain(config.backbone).items() if value is not None}
    return load_backbone(path, allow_partial=config.allow_partial, use_ema_weights=config.use_ema_weights, **changes)


def _open_backbones(config: DictConfig, subjects: Sequence[Subject]) -> dict[str, MaskedBackbone]:
    """Opens every file; files of one row must hold the same backbone, since their figures are averaged."""
    opened: dict[str, MaskedBackbone] = {}
    first: dict[str, Subject] = {}
    for subject in subjects:
        assert subject.ckpt_path is not None
        opened[subject.ckpt_path] = _load(config, subject.ckpt_path)
        before = first.setdefault(subject.name, subject).ckpt_path
        assert before is not None
        if dict(opened[before].settings) != dict(opened[subject.ckpt_path].settings):
            raise ValueError(
                f"{before} and {subject.ckpt_path} hold different backbones, so their figures cannot be averaged; set "
                "one beside the other by compare={NAME: PATH}"
            )
    return opened


def _test_modules(config: DictConfig, evaluator: Any, subjects: Sequence[Subject]) -> list[Outcome]:
    if config.seeds is not None:
        raise ValueError("this protocol tests a module as it is and draws nothing; leave seeds out")
    modules = [load_method(str(subject.ckpt_path)) for subject in subjects]
    data_for = _data_builder(config)
    outcomes = []
    for subject, module in zip(subjects, modules, strict=True):
        data, settings = data_for(module.exported_backbone, config.seed)
        report = evaluator.evaluate_module(module, data, _trainers(config, data, settings, subject))
        outcomes.append(Outcome(subject, config.seed, report, data.fingerprints()))
    return outcomes


def _evaluate_backbones(
    config: DictConfig,
    evaluators: Mapping[int, Any],
    subjects: Sequence[Subject],
    backbones: Mapping[str, MaskedBackbone],
) -> list[Outcome]:
    """Runs a protocol of its own training, once for each file and seed."""
    data_for = _data_builder(config)
    outcomes = []
    for subject in subjects:
        for seed, evaluator in evaluators.items():
            seed_everything(seed, workers=True, verbose=False)
            backbone = _load(config, subject.ckpt_path) if subject.ckpt_path is not None else _untrained(backbones)
            data, settings = data_for(backbone, seed)
            run = subject._replace(label=subject.label if len(evaluators) == 1 else f"{subject.label}_seed_{seed}")
            make_trainer = _trainers(_seeded(config, seed), data, settings, run)
            report = evaluator.evaluate(backbone, data, make_trainer)
            outcomes.append(Outcome(subject, seed, report, data.fingerprints()))
    return outcomes


def _measure_features(
    config: DictConfig,
    evaluators: Mapping[int, Any],
    subjects: Sequence[Subject],
    backbones: Mapping[str, MaskedBackbone],
) -> list[Outcome]:
    """Measures frozen features by one protocol or several, which share one pass over the images for each backbone.

    A protocol without a seed of its own is measured once for each file; random weights are drawn anew for each seed.
    """
    first_seed = next(iter(evaluators))
    data_for = _data_builder(config)
    for backbone in backbones.values():
        evaluators[first_seed].require(backbone, data_for(backbone, first_seed)[0])
    outcomes = []
    for subject in subjects:
        for features, data, seeds in _features_of(config, evaluators, subject, backbones, data_for):
            for seed in seeds:
                for protocol in evaluators[seed].protocols:
                    if seed != seeds[0] and not protocol.is_seeded:
                        continue
                    _log.info(
                        f"{subject.label}: {type(protocol).__name__}{f', seed {seed}' if protocol.is_seeded else ''}"
                    )
                    report = protocol.measure(features)
                    outcomes.append(Outcome(subject, seed, report, data.fingerprints()))
    return outcomes


def _features_of(
    config: DictConfig,
    evaluators: Mapping[int, Any],
    subject: Subject,
    backbones: Mapping[str, MaskedBackbone],
    data_for: DataFor,
) -> Iterator[tuple[FrozenFeatures, ImageDataModule, Sequence[int]]]:
    """Yields the features of one file with all seeds, or of random weights with each seed in turn."""
    seeds = list(evaluators)
    for drawn in [seeds] if subject.ckpt_path is not None else [[seed] for seed in seeds]:
        seed_everything(drawn[0], workers=True, verbose=False)
        backbone = backbones[subject.ckpt_path] if subject.ckpt_path is not None else _untrained(backbones)
        data, settings = data_for(backbone, seeds[0])
        views = [view for protocol in evaluators[drawn[0]].protocols for view in protocol.views(backbone)]
        yield FrozenFeatures(backbone, data, _trainers(config, data, settings, subject), views), data, drawn


def _untrained(backbones: Mapping[str, MaskedBackbone]) -> MaskedBackbone:
    """Draws random weights for the backbone of the first checkpoint."""
    return build_backbone(next(iter(backbones.values())).settings)


def _data_builder(config: DictConfig) -> DataFor:
    """Makes data as a backbone was trained to see them; backbones that see the same share them."""
    built: dict[Any, tuple[ImageDataModule, dict[str, Any]]] = {}

    def data_for(backbone: MaskedBackbone, seed: int) -> tuple[ImageDataModule, dict[str, Any]]:
        key = str((_served(config, backbone), seed))
        if key not in built:
            built[key] = _build_data(_seeded(config, seed), backbone)
        return built[key]

    return data_for


def _build_data(config: DictConfig, backbone: MaskedBackbone) -> tuple[ImageDataModule, dict[str, Any]]:
    """Builds the configured data, or the first checkpoint's own.

    Returns:
        The data module and the plain settings that rebuild it.
    """
    served = _served(config, backbone)
    if config.get("data") is not None:
        settings = as_plain(config.data) | served
        return build(settings), settings
    first = config.ckpt_path[0] if OmegaConf.is_list(config.ckpt_path) else config.ckpt_path
    served |= {
        "augmentation": as_plain(config.augmentation),
        "global_batch_size": config.global_batch_size,
        "seed": config.seed,
    }
    own = _data_of_checkpoint(first)
    changes = as_plain(config.own_data)
    _require_settings_of(own, changes, fixed=served)
    settings = own | changes | served
    return build_untrusted(settings), settings


def _require_settings_of(own: Mapping[str, Any], changes: Mapping[str, Any], *, fixed: Collection[str]) -> None:
    """Refuses changes to the data of a checkpoint's run that would do nothing."""
    free = sorted(set(own) - set(fixed) - {"_target_"})
    for name in changes:
        if name in fixed:
            raise ValueError(
                f"data.{name} follows the checkpoint and the keys of the evaluation; leave it out "
                "(image_size: backbone.image_size; batch, seed, augmentation: without data.)"
            )
        if name not in free:
            kind = str(own["_target_"]).rpartition(".")[2]
            raise ValueError(
                f"data.{name} is no setting of the {kind} data this checkpoint was trained on; use one of "
                f"{', '.join(free)}, or name other data by data=NAME"
            )


def _served(config: DictConfig, backbone: MaskedBackbone) -> dict[str, Any]:
    """Says how images must be served for a backbone to see them as it was trained to."""
    served: dict[str, Any] = {
        "image_size": list(backbone.image_size),
        "channels": backbone.in_channels,
        "statistics": "given",
        "pixel_mean": list(backbone.pixel_mean),
        "pixel_std": list(backbone.pixel_std),
    }
    if config.crop_pct is not None:
        served["crop_pct"] = config.crop_pct
    return served


def _data_of_checkpoint(path: str) -> dict[str, Any]:
    if RECORD_KEY not in read_weights(path).content:
        raise ValueError(f"{path} does not remember the data it was trained on; add data=NAME data.root=DIR")
    return dict(read_checkpoint(path).config["data"])


def _trainers(
    config: DictConfig, data: ImageDataModule, data_settings: dict[str, Any], subject: Subject
) -> MakeTrainer:
    """Makes trainers for one backbone; a classifier they fit is kept under `checkpoints/<label>`."""
    folder = Path(config.paths.run_dir) / "checkpoints" / subject.label
    plain = redacted(as_plain(config))
    kept_config = plain | {
        "method": plain["eval"].get("classifier"),
        "data": data_settings,
        "ckpt_path": subject.ckpt_path,  # None where its weights started from nothing
    }
    record = {"config": kept_config, "num_classes": data.num_classes, "class_names": list(data.class_names)}

    def make_trainer(**arguments: Any) -> Trainer:
        kept = ModelCheckpoint(dirpath=folder, filename="last", enable_version_counter=False)
        callbacks = [Provenance(record=record), *build_entries(config.callbacks), kept]
        trainer = build_trainer(config, **{"callbacks": callbacks, **arguments})
        if "max_epochs" in arguments and trainer.is_global_zero:  # it will train
            _log.info(f"batch  {describe_batch(config, trainer)}")
        return trainer

    return make_trainer


@rank_zero_only
def _write(run_dir: Path, measurements: Sequence[Measurement]) -> None:
    table = markdown_report(measurements)
    content = {
        "reports": {label: report_dict(measured) for label, measured in labelled(measurements).items()},
        "summary": summary_dicts(measurements),
    }
    texts = {
        "report.json": json.dumps(content, indent=2) + "\n",
        "report.md": table + "\n",
        "report.csv": csv_report(measurements),
        "report.tex": latex_report(measurements) + "\n",
    }
    for name, text in texts.items():
        (run_dir / name).write_text(text)
    _log.info(f"\n{table}\n")
    _log.info(f"report written to {run_dir / 'report.json'} and report.md, .csv and .tex beside it")


def _top1(measurements: Sequence[Measurement]) -> float | None:
    """Averages the checkpoint's top-1 by the first protocol that has one."""
    found = [m for m in measurements if m.backbone == _CHECKPOINT and "top1" in m.report.metrics]
    same = [m.report.metrics["top1"] for m in found if m.protocol == found[0].protocol]
    return statistics.fmean(same) if same else None
