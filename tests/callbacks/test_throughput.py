from unittest.mock import Mock

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from unmask.callbacks.throughput import Throughput
from unmask.types import ImageBatch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # Lightning 2.6 with torch 2.14
]


class RecordMetrics(Callback):
    def __init__(self):
        self.values = {}

    def on_train_batch_end(self, trainer, *_):
        if "system/images_per_s" in trainer.callback_metrics:
            value = trainer.callback_metrics["system/images_per_s"].item()
            self.values.setdefault(trainer.global_step, value)


def test_batches_alone_count_not_the_first_nor_pauses(fit, pass_time):
    recorded = RecordMetrics()
    fit(pass_time(batch=0.5), Throughput(), recorded, log_every_n_steps=4, val_check_interval=3)
    assert list(recorded.values) == list(range(4, 13))
    assert set(recorded.values.values()) == {8.0}  # 4 images in 0.5 s


def test_images_of_all_devices_and_the_wait_for_them_are_counted_over_each_interval(monkeypatch):
    now = 0.0
    monkeypatch.setattr("unmask.callbacks.throughput.perf_counter", lambda: now)
    throughput, module = Throughput(), LightningModule()
    module.log = Mock()
    batch = ImageBatch(torch.zeros(10, 3, 4, 4), torch.zeros(10, dtype=torch.int64), torch.arange(10))
    for step, (start, end) in enumerate(
        ((99.0, 100.0), (100.25, 101.0), (101.0, 103.0), (104.0, 105.0), (106.0, 108.0)), start=1
    ):
        trainer = Mock(
            spec=Trainer,
            world_size=3,
            accumulate_grad_batches=1,
            is_last_batch=False,
            global_step=step,
            log_every_n_steps=2,
        )
        now = start
        throughput.on_train_batch_start(trainer, module, batch, step - 1)
        now = end
        throughput.on_train_batch_end(trainer, module, None, batch, step - 1)
    # 30 images a step: one in 1 s up to step 2, two in 4 s up to step 4. Waited: 0.25 s of the one, 1 s of the four.
    assert [call.args for call in module.log.call_args_list] == [
        ("system/images_per_s", 30.0),
        ("system/data_wait", 0.25),
        ("system/images_per_s", 15.0),
        ("system/data_wait", 0.25),
    ]
