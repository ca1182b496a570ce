"""Evaluates checkpoints and writes their report."""

import copy
import json
import logging
import re
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from unmask.atomic_write import atomic_write
from unmask.backbones.base import MaskedBackbone
from unmask.callbacks.provenance import Provenance, describe_git
from unmask.data.datamodule import ImageDataModule
from unmask.evaluation.base import EvalReport
from unmask.evaluation.evaluator import BackboneEvaluator, FeatureEvaluator, ModuleEvaluator
from unmask.evaluation.features import FrozenFeatures
from unmask.evaluation.report import (
    EvalResult,
    csv_report,
    labeled,
    latex_report,
    markdown_report,
    report_dict,
    summary_dicts,
)
from unmask.inference.base import Inference
from unmask.interchange.files import read_weights
from unmask.runtime.builders import (
    STEP_OPTIONS,
    backbone_changes,
    build,
    build_entries,
    build_loggers,
    build_trainer,
    idle_settings,
    resolve_config,
)
from unmask.runtime.checkpoint import build_backbone, find_run, load_backbone, load_module
from unmask.runtime.console import describe_batch
from unmask.runtime.effect import require_effect
from unmask.runtime.follow_data import announce_followed, is_following, tell_rules
from unmask.runtime.inference import run_inference
from unmask.runtime.named_preprocessing import prepare_as_named
from unmask.runtime.run_record import describe_run, own_data, recall_places, remember_places
from unmask.runtime.secrets import redacted
from unmask.runtime.setting_types import require_types

_log = logging.getLogger("unmask")
_CHECKPOINT, _RANDOM = "checkpoint", "random"  # names of rows; compare= adds others
# What every evaluation reads of a configuration; all else in it is there to be referred to from these.
_READ = (
    "eval",
    "trainer",
    "data",
    "own_data",
    "ckpt_path",
    "resume",  # by the sweep
    "compare",
    "seed",
    "seeds",
    "crop_pct",
    "interpolation",
    "global_batch_size",
)
_READ_WITH_BACKBONES = ("backbone", "allow_partial", "use_ema_weights", "callbacks", "logger")
_READ_IN_TRAINING = ("augmentation", "images_per_device", "follow_data")
_OF_TRAINING = tuple(
    f"trainer.{name}"
    for name in ("max_epochs", "max_steps", "gradient_clip_val", "accumulate_grad_batches", *STEP_OPTIONS)
)
_NAME = re.compile(r"[\w.+-][\w .+-]*")  # of folders as well

MakeTrainer = Callable[..., Trainer]
_Evaluator = TypeVar("_Evaluator", BackboneEvaluator, FeatureEvaluator)

DataFor = Callable[[MaskedBackbone, int], tuple[ImageDataModule, dict[str, Any]]]


class Subject(NamedTuple):
    """What is measured: one file, or random weights."""

    name: str  # of its row
    ckpt_path: str | None  # None: random weights of the first checkpoint's backbone
    label: str  # tells it from others of the row


@runtime_checkable
class Evaluation(Protocol):
    """What `eval=` chooses: an evaluator, which measures, or an inference, which shows."""

    def run_on(self, run: "CheckpointRun") -> list[EvalResult]:
        """Runs itself by one of the ways of the run."""
        ...


def evaluate(config: DictConfig) -> float | None:
    """Measures checkpoints, others beside them where `compare` names any, and a random backbone where asked for.

    Prints a table and writes it into the run's folder as `report.md`, `report.csv` and `report.tex`, and all that was
    measured as `report.json`. Every file is opened before anything is computed, and nothing is written unless all was
    measured.

    Returns:
        The top-1 accuracy in percent of the checkpoint, which a sweep may maximize; None for a protocol without one.
    """
    require_types(config)
    seeds = _seeds(config)
    seed_everything(seeds[0], workers=True, verbose=False)
    _join_group(config)
    evaluator: Evaluation = build(_seeded(config, seeds[0]).eval)
    results = evaluator.run_on(CheckpointRun(config, seeds))
    if not results:  # it wrote files of its own
        return None
    _write(Path(config.paths.run_dir), results)
    _log_results(config, results)
    return _mean_top1(results)


def _join_group(config: DictConfig) -> None:
    """Lets loggers that group runs put this one beside the run whose checkpoint it measures."""
    if not any("group" in str(entry) for entry in (config.logger or {}).values()):
        return
    first = config.ckpt_path[0] if OmegaConf.is_list(config.ckpt_path) else config.ckpt_path
    saved = find_run(read_weights(first))
    name = None if saved is None else recall_places(saved.record.get("run")).get("name")
    if isinstance(name, str):
        config.trained_as = name


def _log_results(config: DictConfig, results: Sequence[EvalResult]) -> None:
    """Tells every logger but those of files, beside which `report.csv` lies, what was measured."""
    figures = {
        f"eval/{result.protocol}/{label}/{metric}": value
        for label, result in labeled(results).items()
        for metric, value in result.report.metrics.items()
    }
    for logger in build_loggers(config):
        if not isinstance(logger, CSVLogger):
            logger.log_hyperparams({"ckpt_path": str(config.ckpt_path), "evaluation": config.name})
            logger.log_metrics(figures)
            logger.finalize("success")


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


def _load(config: DictConfig, path: str) -> MaskedBackbone:
    return load_backbone(
        path,
        allow_partial=config.allow_partial,
        use_ema_weights=config.use_ema_weights,
        **backbone_changes(config),
    )


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


class CheckpointRun:
    """The checkpoints, seeds and data of one command; see `EvaluationRun` and `InferenceRun` for what it is asked."""

    def __init__(self, config: DictConfig, seeds: Sequence[int]) -> None:
        self.config = config
        self.seeds = list(seeds)
        self._git = describe_git()
        self._subjects = _subjects(config)
        self._data_for = _data_builder(config)

    def show(self, inference: Inference) -> list[EvalResult]:
        config = self.config
        if config.seeds is not None or config.compare is not None or OmegaConf.is_list(config.ckpt_path):
            raise ValueError(
                "this command reads one checkpoint and measures nothing; leave out seeds, compare and all but one "
                "ckpt_path"
            )
        read = [*_READ, "backbone"] if inference.reads_classifier else _READ
        self._require_effect(inference, read, idle=_without_training())
        run_inference(config, inference, lambda config, backbone: _build_data(config, backbone)[0])
        return []

    def test_modules(self, evaluator: ModuleEvaluator) -> list[EvalResult]:
        if self.config.seeds is not None:
            raise ValueError("this evaluation tests a module as it is, so no seed changes its figures; leave seeds out")
        self._require_effect(evaluator, [*_READ, "backbone", "callbacks", "logger"], idle=_without_training())
        changes = backbone_changes(self.config)
        modules = [load_module(str(subject.ckpt_path), **changes) for subject in self._subjects]
        results = []
        for subject, loaded in zip(self._subjects, modules, strict=True):
            config = prepare_as_named(self.config, loaded, str(subject.ckpt_path))
            data_for = self._data_for if config is self.config else _data_builder(config)
            data, settings = data_for(loaded.module.exported_backbone, self.config.seed)
            make_trainer = _trainers(config, data, settings, subject)
            report = evaluator.evaluate_module(loaded.module, data, make_trainer, loaded.outputs)
            results.append(self._result(subject, self.config.seed, report, data))
        return results

    def evaluate_backbones(self, evaluator: BackboneEvaluator) -> list[EvalResult]:
        idle = {"trainer.max_epochs": "eval.epochs says how long is trained"} | idle_settings(self.config)
        self._require_effect(evaluator, [*_READ, *_READ_WITH_BACKBONES, *_READ_IN_TRAINING], idle=idle)
        backbones = _open_backbones(self.config, self._subjects)
        evaluator = self._following_images(evaluator, next(iter(backbones.values())))
        evaluators = self._of_every_seed(evaluator)
        results = []
        for subject in self._with_baseline(evaluator.baseline):
            for seed, own_evaluator in evaluators.items():
                seed_everything(seed, workers=True, verbose=False)
                path = subject.ckpt_path
                backbone = _load(self.config, path) if path is not None else _untrained(backbones)
                data, settings = self._data_for(backbone, seed)
                labeled = subject._replace(
                    label=subject.label if len(evaluators) == 1 else f"{subject.label}_seed_{seed}"
                )
                make_trainer = _trainers(_seeded(self.config, seed), data, settings, labeled)
                report = own_evaluator.evaluate(backbone, data, make_trainer)
                results.append(self._result(subject, seed, report, data))
        return results

    def measure_features(self, evaluator: FeatureEvaluator) -> list[EvalResult]:
        """A protocol without a seed of its own is measured once a file; random weights are drawn anew a seed."""
        self._require_effect(evaluator, [*_READ, *_READ_WITH_BACKBONES], idle=_without_training())
        evaluators = self._of_every_seed(evaluator)
        backbones = _open_backbones(self.config, self._subjects)
        for backbone in backbones.values():
            evaluator.require(backbone, self._data_for(backbone, self.seeds[0])[0])
        results = []
        for subject in self._with_baseline(evaluator.baseline):
            for features, data, seeds in self._features_of(subject, evaluators, backbones):
                for seed in seeds:
                    for protocol in evaluators[seed].protocols:
                        if seed != seeds[0] and not protocol.is_seeded:
                            continue
                        of_seed = f", seed {seed}" if protocol.is_seeded else ""
                        _log.info(f"{subject.label}: {type(protocol).__name__}{of_seed}")
                        results.append(self._result(subject, seed, protocol.measure(features), data))
        return results

    def _following_images(self, evaluator: BackboneEvaluator, backbone: MaskedBackbone) -> BackboneEvaluator:
        """Builds the evaluator again with what follows the number of images it trains on, where anything does."""
        if not is_following(self.config):
            return evaluator
        data, _ = self._data_for(backbone, self.seeds[0])
        num_images = evaluator.num_training_images(data.num_train_images)
        if num_images is None:
            return evaluator
        tell_rules(self.config, num_train_images=num_images, backbone_width=backbone.embed_dim)
        announce_followed(self.config)
        self._data_for = _data_builder(self.config)
        followed: BackboneEvaluator = build(_seeded(self.config, self.seeds[0]).eval)
        return followed

    def _require_effect(self, evaluator: object, read: Sequence[str], *, idle: Mapping[str, str]) -> None:
        require_effect(self.config, read=read, built={"eval": evaluator}, idle=idle, by="eval")

    def _features_of(
        self, subject: Subject, evaluators: Mapping[int, FeatureEvaluator], backbones: Mapping[str, MaskedBackbone]
    ) -> Iterator[tuple[FrozenFeatures, ImageDataModule, Sequence[int]]]:
        """Yields the features of one file with all seeds, or of random weights with each seed in turn."""
        for drawn in [self.seeds] if subject.ckpt_path is not None else [[seed] for seed in self.seeds]:
            seed_everything(drawn[0], workers=True, verbose=False)
            backbone = backbones[subject.ckpt_path] if subject.ckpt_path is not None else _untrained(backbones)
            data, settings = self._data_for(backbone, self.seeds[0])
            layers = [layer for part in evaluators[drawn[0]].protocols for layer in part.pooled_layers(backbone)]
            yield FrozenFeatures(backbone, data, _trainers(self.config, data, settings, subject), layers), data, drawn

    def _of_every_seed(self, evaluator: _Evaluator) -> dict[int, _Evaluator]:
        """Builds the evaluator of each further seed from the same settings."""
        first, *others = self.seeds
        return {first: evaluator} | {seed: build(_seeded(self.config, seed).eval) for seed in others}

    def _with_baseline(self, has_baseline: bool) -> list[Subject]:
        return [*self._subjects, Subject(_RANDOM, None, _RANDOM)] if has_baseline else self._subjects

    def _result(self, subject: Subject, seed: int, report: EvalReport, data: ImageDataModule) -> EvalResult:
        return EvalResult(
            backbone=subject.name,
            ckpt_path=subject.ckpt_path,
            seed=seed,
            report=report,
            data=data.fingerprints(),
            git=self._git,
        )


def _without_training() -> dict[str, str]:
    """Settings that do nothing where no images are trained on."""
    return dict.fromkeys((*_OF_TRAINING, "data.augmentation"), "this evaluation trains on no augmented images")


def _untrained(backbones: Mapping[str, MaskedBackbone]) -> MaskedBackbone:
    """Draws random weights for the backbone of the first checkpoint."""
    return build_backbone(next(iter(backbones.values())).settings)


def _data_builder(config: DictConfig) -> DataFor:
    """Makes data as a backbone was trained to see them; backbones that see the same share them."""
    built: dict[Any, tuple[ImageDataModule, dict[str, Any]]] = {}

    def data_for(backbone: MaskedBackbone, seed: int) -> tuple[ImageDataModule, dict[str, Any]]:
        key = str((_image_settings(config, backbone), seed))
        if key not in built:
            built[key] = _build_data(_seeded(config, seed), backbone)
        return built[key]

    return data_for


def _build_data(config: DictConfig, backbone: MaskedBackbone) -> tuple[ImageDataModule, dict[str, Any]]:
    """Builds the configured data, or the first checkpoint's own.

    Returns:
        The data module and the plain settings that rebuild it.
    """
    images = _image_settings(config, backbone)
    if config.get("data") is not None:
        settings = resolve_config(config.data) | images
        return build(settings), settings
    first = config.ckpt_path[0] if OmegaConf.is_list(config.ckpt_path) else config.ckpt_path
    images |= {
        "augmentation": resolve_config(config.augmentation),
        "global_batch_size": config.global_batch_size,
        "seed": config.seed,
    }
    changes = resolve_config(config.own_data)
    own = _data_of_checkpoint(first, changes)
    _require_settings_of(own, changes, fixed=images)
    settings = own | changes | images
    return build(settings), settings


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


def _image_settings(config: DictConfig, backbone: MaskedBackbone) -> dict[str, Any]:
    """Says how images must be served for a backbone to see them as it was trained to."""
    images: dict[str, Any] = {
        "image_size": list(backbone.image_size),
        "channels": backbone.in_channels,
        "statistics": "given",
        "pixel_mean": list(backbone.pixel_mean),
        "pixel_std": list(backbone.pixel_std),
    }
    for name in ("crop_pct", "interpolation"):
        if config[name] is not None:
            images[name] = config[name]
    return images


def _data_of_checkpoint(path: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    saved = find_run(read_weights(path))
    if saved is None:
        raise ValueError(f"{path} does not record the data it was trained on; add data=NAME data.root=DIR")
    return own_data(saved.record, changes, path)


def _trainers(
    config: DictConfig, data: ImageDataModule, data_settings: dict[str, Any], subject: Subject
) -> MakeTrainer:
    """Makes trainers for one backbone; a classifier they fit is kept under `checkpoints/<label>`."""
    folder = Path(config.paths.run_dir) / "checkpoints" / subject.label
    plain = redacted(resolve_config(config))
    kept_config = plain | {
        "method": plain["eval"].get("classifier"),
        "data": data_settings,
        "ckpt_path": subject.ckpt_path,  # None where its weights started from nothing
    }
    record = describe_run(kept_config, num_classes=data.num_classes, class_names=data.class_names)

    def make_trainer(**arguments: Any) -> Trainer:
        kept = ModelCheckpoint(dirpath=folder, filename="last", enable_version_counter=False)
        callbacks = [Provenance(record=record), *build_entries(config.callbacks), kept]
        trainer = build_trainer(config, **{"callbacks": callbacks, **arguments})
        if "max_epochs" in arguments and trainer.is_global_zero:  # it will train
            remember_places(record, kept_config)
            _log.info(f"batch  {describe_batch(config, trainer)}")
        return trainer

    return make_trainer


@rank_zero_only
def _write(run_dir: Path, results: Sequence[EvalResult]) -> None:
    table = markdown_report(results)
    content = {
        "reports": {label: report_dict(result) for label, result in labeled(results).items()},
        "summary": summary_dicts(results),
    }
    texts = {
        "report.json": json.dumps(content, indent=2) + "\n",
        "report.md": table + "\n",
        "report.csv": csv_report(results),
        "report.tex": latex_report(results) + "\n",
    }
    _log.info(f"\n{table}\n")  # before the disk may refuse the files
    for name, text in texts.items():
        with atomic_write(run_dir / name) as partial:
            partial.write_text(text, encoding="utf-8")
    _log.info(f"report written to {run_dir / 'report.json'} and report.md, .csv and .tex beside it")


def _mean_top1(results: Sequence[EvalResult]) -> float | None:
    """Averages the checkpoint's top-1 by the first protocol that has one."""
    found = [m for m in results if m.backbone == _CHECKPOINT and "top1" in m.report.metrics]
    same = [m.report.metrics["top1"] for m in found if m.protocol == found[0].protocol]
    return statistics.fmean(same) if same else None
