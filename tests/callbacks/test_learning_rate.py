import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from unmask.callbacks.learning_rate import LearningRate

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # Lightning 2.6 with torch 2.14
]


def rows_of(logger: CSVLogger) -> list[dict[str, str]]:
    with Path(logger.log_dir, "metrics.csv").open(newline="") as lines:
        return [row for row in csv.DictReader(lines) if row["train/lr"]]


def falling(optimizer, **_):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))


def test_the_rate_of_the_logged_step_stands_in_its_row(fit, make_mae, tmp_path):
    logger = CSVLogger(tmp_path / "csv")
    method = make_mae(schedule=falling)
    fit(LearningRate(), logger=logger, log_every_n_steps=2, max_epochs=1, method=method)

    rows = rows_of(logger)
    peak = method.optimizers().optimizer.defaults["lr"]
    assert [float(row["train/lr"]) for row in rows] == pytest.approx([peak / 2, peak / 4, peak / 6])  # steps 2, 4, 6
    assert all(row["train/loss"] for row in rows)
    assert not [name for name in rows[0] if name.startswith("lr")]


def test_layers_with_rates_of_their_own_are_named(fit, make_mae, tmp_path):
    method, logger = make_mae(), CSVLogger(tmp_path / "csv")

    def two_rates(groups):
        first, second = (dict(group) for group in groups)
        return torch.optim.SGD([first | {"name": "layer_00", "lr": 0.1}, second | {"name": "layer_01", "lr": 0.4}])

    method.optimizer_factory = two_rates
    fit(LearningRate(), logger=logger, log_every_n_steps=1, max_epochs=1, method=method)

    first = rows_of(logger)[0]
    assert (float(first["train/lr"]), float(first["lr/layer_00"]), float(first["lr/layer_01"])) == (0.4, 0.1, 0.4)
