"""A copy of the backbone is trained; last and best epoch stand side by side."""

import functools

import pytest
import torch
import torch.nn.functional as F
from lightning import Callback
from torch import nn

from unmask.data.augmentation.transforms import Augmentation
from unmask.evaluation.finetune import FineTune
from unmask.heads.classifier import LinearClassifier
from unmask.methods.supervised import Supervised
from unmask.optim.schedules import warmup_cosine

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # Lightning 2.6 with torch 2.14
]


def make_classifier(**changes):
    return functools.partial(
        changes.pop("kind", Supervised),
        **{
            "head": functools.partial(LinearClassifier, weight_std=0.02),
            "optimizer": functools.partial(torch.optim.AdamW, lr=1e-3),
            "schedule": functools.partial(warmup_cosine, warmup_epochs=0.0),
            "mixup": 0.0,
            "cutmix": 0.0,
        }
        | changes,
    )


class BestInTheSecondEpoch(Supervised):
    """Says class 1 after its second epoch, which val likes best, and class 0 after the others.

    The check before training scores higher than any epoch.
    """

    def on_validation_start(self):
        said = 1 if self.current_epoch == 1 else 0
        nn.init.zeros_(self.head.linear.weight)
        self.head.linear.bias.data.copy_(9.0 * F.one_hot(torch.tensor(said), 3))

    def validation_step(self, batch, batch_idx):
        is_second = bool(self.head.linear.bias[1] > 8.0)
        score = 1.0 if self.trainer.sanity_checking else 0.9 if is_second else 0.1
        self.log("val/top1", score, batch_size=len(batch.image))


@pytest.fixture
def data(make_data, draw_splits):
    splits = draw_splits((24, 9, 10), num_classes=3, spread=10.0, side=32)
    whole = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip_prob=0.0)
    statistics = {"pixel_mean": (0.5, 0.5, 0.5), "pixel_std": (0.15, 0.15, 0.15)}
    return make_data(splits, num_classes=3, image_size=32, global_batch_size=8, augmentation=whole, **statistics)


def test_the_given_backbone_is_left_alone_and_its_copy_begins_fine_tuning(make_vit, data, make_trainer):
    backbone = make_vit().train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    built = []

    def classifier(**arguments):
        built.append(make_classifier()(**arguments))
        return built[0]

    FineTune(classifier=classifier, epochs=1).evaluate(backbone, data, make_trainer)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert not backbone.norm_after_pooling
    trained = built[0].backbone
    assert trained.norm_after_pooling
    assert not torch.equal(trained.vit.blocks[0].mlp.fc1.weight, before["vit.blocks.0.mlp.fc1.weight"])


def test_last_and_best_epoch_are_measured_each_with_its_own_weights(make_vit, data, make_trainer):
    def with_rare_validations(**arguments):
        return make_trainer(**{"check_val_every_n_epoch": 3} | arguments)

    report = FineTune(classifier=make_classifier(kind=BestInTheSecondEpoch), epochs=3).evaluate(
        make_vit(), data, with_rare_validations
    )
    assert report.metrics["top1"] == pytest.approx(40.0)  # 4 of the 10 test images are of class 0
    assert report.metrics["top1_best_epoch"] == pytest.approx(30.0)  # and 3 of class 1
    assert report.metrics["top1_ci95_low"] < 40.0 < report.metrics["top1_ci95_high"]
    assert report.settings["selected"] == "epoch 2 for top1_best_epoch"
    assert report.settings["selected_on"] == "val (9)"
    assert report.settings["best_epoch_val_top1"] == pytest.approx(90.0)
    assert (report.num_train_images, report.num_test_images) == (24, 10)


def test_it_learns_and_keeps_the_configured_callbacks(make_vit, data, make_trainer):
    class Counter(Callback):
        epochs = 0

        def on_train_epoch_end(self, trainer, pl_module):
            self.epochs += 1

    counter = Counter()

    def with_counter(**arguments):
        return make_trainer(callbacks=[counter], **arguments)

    classifier = make_classifier(optimizer=functools.partial(torch.optim.AdamW, lr=3e-3), label_smoothing=0.0)
    report = FineTune(classifier=classifier, epochs=10).evaluate(make_vit(), data, with_counter)
    assert counter.epochs == 10
    assert report.metrics["top1"] > 90.0


def test_the_protocol_spells_the_recipe_out(make_vit, data, make_trainer):
    classifier = make_classifier(layer_decay=0.65)
    protocol = FineTune(classifier=classifier, epochs=1).evaluate(make_vit(), data, make_trainer).protocol
    assert protocol == (
        "finetune: all weights, drop path 0.1, 1 epochs, last epoch, train (24), test (10), 32x32 px, batch 8, "
        "Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), interpolation=bicubic, hflip_prob=0.0, "
        "random_erasing_prob=0.0), "
        "Supervised(head=LinearClassifier(weight_std=0.02), optimizer=AdamW(lr=0.001), "
        "schedule=warmup_cosine(warmup_epochs=0), mixup=0, cutmix=0, layer_decay=0.65)"
    )


def test_unlabeled_images_are_refused(make_vit, data, make_trainer):
    data.splits["val"][1][:] = -1
    with pytest.raises(ValueError, match="eval=finetune needs labels, but the val split of InMemory has none"):
        FineTune(classifier=make_classifier(), epochs=1).evaluate(make_vit(), data, make_trainer)


def test_a_run_without_validation_is_refused(make_vit, data, make_trainer):
    def without_validation(**arguments):
        return make_trainer(limit_val_batches=0, **arguments)

    with pytest.raises(ValueError, match=r"no validation ran; let trainer.limit_val_batches be above 0"):
        FineTune(classifier=make_classifier(), epochs=1).evaluate(make_vit(), data, without_validation)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"eval.epochs must be at least 1, got 0"):
        FineTune(classifier=make_classifier(), epochs=0)


class ModeRecorder(Supervised):
    """Notes whether its backbone is in training mode in each training step."""

    def training_step(self, batch, batch_idx):
        self.modes = {*getattr(self, "modes", set()), self.backbone.training}
        return super().training_step(batch, batch_idx)


def test_a_backbone_loaded_at_rest_trains(make_vit, data, make_trainer):
    built = []

    def classifier(**arguments):
        built.append(make_classifier(kind=ModeRecorder)(**arguments))
        return built[0]

    FineTune(classifier=classifier, epochs=1).evaluate(make_vit().eval(), data, make_trainer)
    assert built[0].modes == {True}


def test_a_share_of_the_labels_is_even_over_the_classes_and_only_trains(data, make_backbone, make_trainer):
    whole = data.dataset("train")
    seen = []

    class Counting(Supervised):
        def training_step(self, batch, batch_idx):
            seen.extend(batch.label.tolist())
            return super().training_step(batch, batch_idx)

    backbone = make_backbone()
    backbone.linear = nn.Linear(3 * 32 * 32, 8, bias=False)
    evaluator = FineTune(classifier=make_classifier(kind=Counting), epochs=2, label_fraction=0.25)
    data.global_batch_size = 3
    for _ in range(2):  # a second evaluation, of the baseline say, gets the same quarter and not a sixteenth
        seen.clear()
        report = evaluator.evaluate(backbone, data, make_trainer)
        assert sorted(seen) == [0] * 4 + [1] * 4 + [2] * 4
        assert (report.num_train_images, report.num_test_images) == (6, 10)
    assert "train (6 of seed 0)" in report.protocol
    data.loaded_splits.limit_training(1.0)
    assert data.dataset("train") is whole


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"label_fraction must lie above 0 and at most 1, got 0"):
        FineTune(classifier=make_classifier(), epochs=1, label_fraction=0.0)


@pytest.mark.parametrize(("family", "expected"), [("vit", 0.65), ("beit", 0.65), ("swin", 0.9)])
def test_a_layer_decay_left_open_is_the_familys(request, data, make_trainer, family, expected):
    sizes = {"image_size": 32, "patch_size": 2} if family == "swin" else {}
    backbone = request.getfixturevalue(f"make_{family}")(**sizes)
    decays = []

    class Noting(Supervised):
        def on_fit_start(self):
            decays.append(self.layer_decay)

    evaluator = FineTune(classifier=make_classifier(kind=Noting, layer_decay=None), epochs=1)
    report = evaluator.evaluate(backbone, data, make_trainer)
    assert decays == [expected]
    assert f"layer_decay={expected}" in report.protocol
