"""How far few labels go where all weights learn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint

from unmask.backbones.base import MaskedBackbone
from unmask.evaluation.base import EvalReport, EvaluationData, MakeTrainer
from unmask.evaluation.evaluator import BackboneEvaluator
from unmask.evaluation.features import require_labels
from unmask.evaluation.few_labels import FewLabels, mean_and_std
from unmask.evaluation.finetune import FineTune


class FewShotFineTune(BackboneEvaluator):
    """Fine-tunes on a few labeled images, once for each list of `FewShot`.

    `top1_1pct` and the like are means over the seeds of the last epoch's accuracy on the whole test split, with their
    deviation beside as `top1_1pct_std`. Epochs count passes over a list, so smaller budgets take fewer steps. The
    validation split stays whole but chooses nothing. No weights are kept.

    Args:
        fine_tune: How each list is learned from.
        label_fractions, per_class, seeds, directory: See `FewShot`.
        baseline: Whether a random backbone is to be fine-tuned beside, on the same lists.

    Raises:
        ValueError: As `FewShot`; or the smallest list does not fill a batch.
    """

    def __init__(
        self,
        *,
        fine_tune: FineTune,
        label_fractions: Sequence[float] = (0.01, 0.1),
        per_class: Sequence[int] = (),
        seeds: Sequence[int] = (0, 1, 2),
        directory: str | Path,
        baseline: bool = False,
    ) -> None:
        self.few = FewLabels(label_fractions=label_fractions, per_class=per_class, seeds=seeds, directory=directory)
        self.fine_tune = fine_tune
        self.baseline = baseline

    def evaluate(self, backbone: MaskedBackbone, data: EvaluationData, make_trainer: MakeTrainer) -> EvalReport:
        require_labels(data, ("train", "val", "test"), evaluation="fewshot_finetune")
        self.few.require(data, evaluation="fewshot_finetune")
        labels = data.dataset("train").labels
        lists = {
            (budget.name, seed): self.few.choose(labels, budget, seed)
            for budget in self.few.budgets
            for seed in self.few.seeds
        }
        _require_whole_batch(min(map(len, lists.values())), data.global_batch_size)
        for budget in self.few.budgets:
            for seed in self.few.seeds:
                self.few.write(data, budget, seed, lists[budget.name, seed])
        reports: dict[str, list[EvalReport]] = {budget.name: [] for budget in self.few.budgets}
        try:
            for (name, _), positions in lists.items():
                data.loaded_splits.choose_training(positions)
                reports[name].append(self.fine_tune.evaluate(backbone, data, _without_checkpoints(make_trainer)))
        finally:
            data.loaded_splits.choose_training(None)
        metrics: dict[str, float] = {}
        for name, measured in reports.items():
            spreads = mean_and_std([report.metrics["top1"] for report in measured])
            metrics |= {f"top1_{name}{suffix}": value for suffix, value in spreads.items()}
        listed = ", ".join(f"{name} ({measured[0].num_train_images})" for name, measured in reports.items())
        one = next(iter(reports.values()))[0]
        return EvalReport(
            protocol=(
                f"fewshot_finetune: {listed} of train ({len(labels)}), seeds {', '.join(map(str, self.few.seeds))}, "
                f"each as {one.protocol}"
            ),
            metrics=metrics,
            num_train_images=max(map(len, lists.values())),
            num_test_images=one.num_test_images,
            settings={"lists": str(self.few.directory)},
            headline=tuple(f"top1_{name}" for name in reports),
        )


def _require_whole_batch(smallest: int, batch_size: int) -> None:
    if smallest < batch_size:
        raise ValueError(
            f"the smallest list has {smallest} images, which do not fill a batch of {batch_size}; "
            f"set global_batch_size={smallest} or less, or ask for more labels"
        )


def _without_checkpoints(make_trainer: MakeTrainer) -> MakeTrainer:
    """Makes the configured trainers, but ones that keep no weights: of many runs only the last would remain."""

    def make(**arguments: Any) -> Trainer:
        trainer = make_trainer(**arguments)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
        return trainer

    return make
