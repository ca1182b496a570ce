"""Training inside an evaluation: the last epoch is the result, the best one stands beside it."""

from collections.abc import Callable
from typing import Any, cast

from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from unmask.evaluation.base import EvalReport, EvaluationData, MakeTrainer
from unmask.evaluation.describe import describe
from unmask.evaluation.score import run_test


def train_and_report(
    module: LightningModule,
    data: EvaluationData,
    make_trainer: MakeTrainer,
    *,
    evaluation: str,
    what: str,
    classifier: Callable[..., Any],
    epochs: int,
    chosen: str = "",
) -> EvalReport:
    """Trains a module and reports it with the weights of its last epoch and, beside it, of its best.

    For the last epoch nothing is selected. The best is that of the highest `val/top1`, of equals the first: the number
    upstream logs print, reported as `<metric>_best_epoch`.

    Args:
        module: Logs `val/top1`, `test/top1` and `test/top5`; keeps the weights of the best epoch.
        data: Its training split is learned from, with augmentation.
        make_trainer: Configured callbacks stay.
        evaluation: Name of the protocol, for the report and messages.
        what: What is trained, for the report.
        classifier: What the module was built by, for the report.
        epochs: Passes over the training split.
        chosen: Which training images are learned from, for the report; empty for all.

    Raises:
        ValueError: No validation ran.
    """
    best = _BestEpoch()
    trainer = make_trainer(max_epochs=epochs, check_val_every_n_epoch=1)
    trainer.callbacks.append(best)  # type: ignore[attr-defined]
    trainer.fit(module, datamodule=cast(LightningDataModule, data))
    if not best.weights:
        raise ValueError(
            f"eval={evaluation} compares epochs by val/top1, but no validation ran; "
            "let trainer.limit_val_batches be above 0"
        )
    last_metrics = run_test(trainer, module, data)
    module.load_state_dict(best.weights)
    best_metrics = run_test(trainer, module, data)
    sizes = {split: len(data.dataset(split)) for split in ("train", "val", "test")}
    return EvalReport(
        protocol=(
            f"{evaluation}: {what}, {epochs} epochs, last epoch, train ({sizes['train']}{chosen}), test "
            f"({sizes['test']}), {data.image_size[0]}x{data.image_size[1]} px, batch {data.global_batch_size}, "
            f"{describe(data.augmentation)}, {describe(classifier)}"
        ),
        metrics=last_metrics | {f"{name}_best_epoch": value for name, value in best_metrics.items()},
        num_train_images=sizes["train"],
        num_test_images=sizes["test"],
        settings={
            "selected": f"epoch {best.epoch} for top1_best_epoch",
            "selected_on": f"val ({sizes['val']})",
            "best_epoch": best.epoch,
            "best_epoch_val_top1": 100.0 * best.top1,
            "precision": str(trainer.precision),
        },
    )


class _BestEpoch(Callback):
    """Keeps the weights of the epoch with the highest `val/top1`; of equals the first."""

    def __init__(self) -> None:
        self.top1 = -1.0  # fraction of hits
        self.epoch = 0  # counted from 1
        self.weights: dict[str, Tensor] = {}  # in main memory

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        top1 = float(trainer.callback_metrics["val/top1"])
        if top1 > self.top1:
            self.top1, self.epoch = top1, trainer.current_epoch + 1
            self.weights = {name: value.detach().cpu().clone() for name, value in pl_module.state_dict().items()}
