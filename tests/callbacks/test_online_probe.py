import csv
import logging

import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from unmask.callbacks import online_probe
from unmask.callbacks.online_probe import OnlineProbe

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # Lightning 2.6 with torch 2.14
]


class Kept(Callback):
    """Keeps what a run has measured after every epoch."""

    def __init__(self):
        self.found = []

    def on_train_epoch_end(self, trainer, pl_module):
        probes = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("probe/")}
        self.found.append(probes)


@pytest.fixture
def make_labeled():
    """Images of two classes, dark and bright; `swapped` asks for each by the other's name."""

    def make(*, num_train=24, swapped=False, labels=(0, 1)):
        from unmask.data.augmentation.transforms import Augmentation  # noqa: PLC0415
        from unmask.data.datamodule import ImageDataModule  # noqa: PLC0415
        from unmask.data.dataset import InMemoryDataset  # noqa: PLC0415

        class DarkAndBright(ImageDataModule):
            holds_images_in_memory = True

            def load_split(self, split):
                size = num_train if split == "train" else 10
                classes = torch.arange(size) % 2
                noise = torch.randint(60, (size, 3, 32, 32), generator=torch.Generator().manual_seed(size))
                images = (noise + 150 * classes[:, None, None, None]).to(torch.uint8)
                classes = 1 - classes if swapped and split == "val" else classes
                return InMemoryDataset(
                    images, torch.tensor(labels)[classes], ("dark", "bright") if min(labels) >= 0 else ()
                )

        return DarkAndBright(
            image_size=32,
            pixel_mean=(0.5,) * 3,
            pixel_std=(0.25,) * 3,
            augmentation=Augmentation(random_erasing_prob=1.0),  # which a probe must not see
            global_batch_size=4,
        )

    return make


def test_images_that_differ_in_brightness_are_told_apart_and_their_names_are_those_of_the_bank(fit, make_labeled):
    right, wrong = make_labeled(), make_labeled(swapped=True)
    kept = Kept()
    fit(OnlineProbe(name="a", data=right, k=3), OnlineProbe(name="b", data=wrong, k=3), kept, max_epochs=1)

    assert kept.found[-1] == {
        "probe/a/knn_top1": 100.0,
        "probe/a/logistic_top1": 100.0,
        "probe/b/knn_top1": 0.0,
        "probe/b/logistic_top1": 0.0,
    }


def test_training_is_the_same_with_a_probe_as_without(fit, make_mae, make_labeled):
    def weights(*callbacks):
        torch.manual_seed(0)
        method = make_mae()
        method.backbone.dropout = nn.Dropout(0.5)  # a mode that a probe must give back
        modes = []
        method.register_forward_hook(
            lambda module, *_: modes.append(module.training and module.backbone.dropout.training)
        )
        fit(*callbacks, method=method, max_epochs=2, limit_val_batches=0)
        return method.state_dict(), modes

    without, _ = weights()
    beside, modes = weights(OnlineProbe(name="a", data=make_labeled(), k=3, max_time_fraction=1.0))
    assert all(torch.equal(without[name], beside[name]) for name in without)
    assert all(modes)


def test_a_probe_reads_whole_images_without_a_mask_in_eval_mode(fit, make_mae, make_labeled, monkeypatch):
    method, data, seen = make_mae(), make_labeled(), []
    pooled = type(method.backbone).forward_pooled

    def watch(backbone, images):
        seen.append((images.clone(), backbone.training, torch.is_grad_enabled()))
        return pooled(backbone, images)

    monkeypatch.setattr(type(method.backbone), "forward_pooled", watch)
    fit(OnlineProbe(name="a", data=data, k=3, num_images=8), method=method, max_epochs=1)
    images = torch.cat([images for images, *_ in seen])
    bank, query = (data.dataset(split).images for split in ("train", "val"))
    spread = torch.cat([bank[::3], query[[0, 1, 2, 3, 5, 6, 7, 8]]])  # eight of each split
    torch.testing.assert_close(images, (spread / 255 - 0.5) / 0.25)
    assert all(not training and not has_gradient for _, training, has_gradient in seen)


@pytest.mark.parametrize("split", ["train", "val"])
def test_streamed_images_are_refused_before_the_first_step(fit, make_labeled, split):
    data, kept = make_labeled(), Kept()
    data.dataset(split).is_streamed = True
    with pytest.raises(ValueError, match=f"the {split} split of its data is streamed"):
        fit(OnlineProbe(name="a", data=data, k=3), kept, max_epochs=1)
    assert kept.found == []


def test_readings_are_logged_at_the_step_just_done(fit, make_labeled, tmp_path):
    logger = CSVLogger(tmp_path, name="", version="csv")
    fit(OnlineProbe(name="a", data=make_labeled(), k=3), logger=logger, max_epochs=1)
    with (tmp_path / "csv/metrics.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("probe/a/knn_top1")]
    assert [(row["step"], float(row["probe/a/logistic_top1"])) for row in rows] == [("5", 100.0)]  # the last of six


@pytest.mark.parametrize(("fraction", "probed"), [(0.03, [1, 6]), (0.15, [1, 4, 5, 6]), (1.0, [1, 2, 3, 4, 5, 6])])
def test_epochs_without_a_probe_keep_its_part_of_the_time(fit, make_labeled, monkeypatch, fraction, probed):
    clock = [0.0]
    monkeypatch.setattr(online_probe, "perf_counter", lambda: clock[0])
    probe, epochs = OnlineProbe(name="a", data=make_labeled(), k=3, max_time_fraction=fraction), []
    measure = probe._measure

    def slow(*features):
        clock[0] += 1.0
        return measure(*features)

    probe._measure = slow

    class Pass(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            clock[0] += 4.0

    class Count(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if probe._probed_at_step == trainer.global_step:
                epochs.append(trainer.current_epoch + 1)

        def on_train_end(self, trainer, pl_module):
            if probe._probed_at_step == trainer.global_step and trainer.current_epoch not in epochs:
                epochs.append(trainer.current_epoch)

    fit(Pass(), probe, Count(), max_epochs=6, limit_val_batches=0)
    assert epochs == probed


def test_images_without_labels_and_too_few_are_refused_before_training(fit, make_labeled):
    with pytest.raises(ValueError, match=r"probes.a needs labels, but the train split of its data has none"):
        fit(OnlineProbe(name="a", data=make_labeled(labels=(-1, -1))), max_epochs=1)
    with pytest.raises(ValueError, match=r"set probes.a.k=6 or less"):
        fit(OnlineProbe(name="a", data=make_labeled(num_train=6)), max_epochs=1)
    with pytest.raises(ValueError, match=r"probes.a.max_time_fraction must lie above 0"):
        OnlineProbe(name="a", data=make_labeled(), max_time_fraction=0.0)


def test_a_line_says_both_numbers(fit, make_labeled, caplog):
    caplog.set_level(logging.INFO, logger="unmask")
    fit(OnlineProbe(name="a", data=make_labeled(), k=3), max_epochs=1)
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("probe a")]
    assert line.startswith(
        "probe a  k-NN 100.0 %  logistic regression 100.0 %  (24 training and 10 validation images, "
    )
