"""The test split as a trained module's own test step sees it."""

from typing import cast

from lightning import LightningDataModule, LightningModule, Trainer

from unmask.evaluation.base import EvalReport, EvaluationData, MakeTrainer
from unmask.evaluation.evaluator import ModuleEvaluator
from unmask.evaluation.metrics import reported_ranks, top1_interval


class TestEvaluator(ModuleEvaluator):
    """Measures a trained module as it is: a classifier's accuracy, or a method's loss under its fixed masks.

    Raises:
        ValueError: The test split is empty or missing.
    """

    def evaluate_module(self, module: LightningModule, data: EvaluationData, make_trainer: MakeTrainer) -> EvalReport:
        num_images = len(data.dataset("test"))
        return EvalReport(
            protocol=f"test: test step of {type(module).__name__}, test ({num_images})",
            metrics=run_test(make_trainer(), module, data),
            num_train_images=0,
            num_test_images=num_images,
        )


def run_test(trainer: Trainer, module: LightningModule, data: EvaluationData) -> dict[str, float]:
    """Runs the test loop and names what the module logged, `test/` removed.

    The fractions of hits `test/top1` and `test/top5` become percent with an interval; all else is passed on.
    """
    (logged,) = trainer.test(module, datamodule=cast(LightningDataModule, data), verbose=False)
    metrics = {name.removeprefix("test/"): float(value) for name, value in logged.items()}
    for rank in (1, 5):
        fraction = metrics.pop(f"top{rank}", None)
        if fraction is not None and rank in reported_ranks(data.num_classes):
            metrics[f"top{rank}"] = 100.0 * fraction
    if "top1" in metrics:
        metrics |= top1_interval(metrics["top1"], len(data.dataset("test")))
    return metrics
