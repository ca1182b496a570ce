"""The test split as a trained module's own test step sees it."""

from typing import Literal, Protocol, cast, runtime_checkable

from jaxtyping import Int
from lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from unmask.evaluation.base import EvalReport, EvaluationData, MakeTrainer, Outputs
from unmask.evaluation.class_order import VERIFIED, ClassOrder, assume_order, match_classes
from unmask.evaluation.evaluator import ModuleEvaluator
from unmask.evaluation.features import describe_images, require_labels
from unmask.evaluation.metrics import reported_ranks, top1_interval


@runtime_checkable
class Reorderable(Protocol):
    """A classifier whose test step can read its outputs in another order."""

    def reorder_outputs(self, order: Int[Tensor, " classes"]) -> None:
        """Lets the output numbered `order[k]` stand for class k."""
        ...


class TestEvaluator(ModuleEvaluator):
    """Measures a trained module as it is: a classifier's accuracy, or a method's loss under its fixed masks.

    Args:
        class_order: How a classifier's outputs and the data's classes are matched: "names" compares the names of both
            (`match_classes`); "data" takes the outputs in the order of the data, on your word.

    Raises:
        ValueError: The order is neither; the test split is empty or missing, or a classifier's outputs and the classes
            of the data cannot be matched.
    """

    def __init__(self, *, class_order: Literal["names", "data"] = "names") -> None:
        if class_order not in ("names", "data"):
            raise ValueError(f"eval.class_order must be 'names' or 'data', got {class_order!r}")
        self.class_order = class_order

    def evaluate_module(
        self,
        module: LightningModule,
        data: EvaluationData,
        make_trainer: MakeTrainer,
        outputs: Outputs = Outputs(),  # noqa: B008 (it cannot change)
    ) -> EvalReport:
        num_images = len(data.dataset("test"))
        order = self._match(outputs, data) if outputs.num else None
        if order is not None and order.positions is not None:
            cast(Reorderable, module).reorder_outputs(order.positions)
        told = f", {order.finding}" if order is not None and order.finding != VERIFIED else ""
        trainer = make_trainer()
        prepared = {"images": describe_images(data), "precision": str(trainer.precision)}
        return EvalReport(
            protocol=f"test: test step of {type(module).__name__}, test ({num_images}){told}",
            metrics=run_test(trainer, module, data),
            num_train_images=0,
            num_test_images=num_images,
            settings=prepared if order is None else {"class_order": order.finding, **prepared},
        )

    def _match(self, outputs: Outputs, data: EvaluationData) -> ClassOrder:
        require_labels(data, ("test",), evaluation="test")
        if self.class_order == "data":
            return assume_order(outputs, data.class_names, because="that of the data, by eval.class_order=data")
        return match_classes(outputs, data.class_names)


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
