"""Fine-tuning on few labels: each list is learned from alone."""

import functools

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from unmask.data.augmentation.transforms import Augmentation
from unmask.evaluation.fewshot_finetune import FewShotFineTune
from unmask.evaluation.finetune import FineTune
from unmask.heads.classifier import LinearClassifier
from unmask.methods.supervised import Supervised
from unmask.optim.schedules import constant


def _pixels(image):
    """Tells one drawn image from another."""
    return tuple((255.0 * image.flatten()[:9]).round().int().tolist())


@pytest.fixture
def data(make_data, draw_splits):
    splits = draw_splits((30, 6, 10), num_classes=3, spread=20.0, side=32)
    plain = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip_prob=0.0)
    return make_data(splits, num_classes=3, image_size=32, global_batch_size=3, augmentation=plain)


@pytest.fixture
def make_evaluator(tmp_path):
    def make(kind=Supervised, **changes):
        classifier = functools.partial(
            kind,
            head=LinearClassifier,
            optimizer=functools.partial(torch.optim.AdamW, lr=1e-3),
            schedule=constant,
            mixup=0.0,
            cutmix=0.0,
        )
        settings = {
            "label_fractions": (),
            "per_class": (1, 2),
            "seeds": (0, 3),
            "directory": tmp_path / "lists",
        } | changes
        return FewShotFineTune(fine_tune=FineTune(classifier=classifier, epochs=1), **settings)

    return make


def test_each_list_is_trained_on_alone_and_the_whole_split_is_back_afterwards(
    make_evaluator, make_vit, data, make_trainer, tmp_path
):
    whole, seen = data.dataset("train"), []

    class Recorder(Supervised):
        def on_train_start(self):
            seen.append([])

        def training_step(self, batch, batch_idx):
            seen[-1] += [_pixels(image) for image in batch.image]
            return super().training_step(batch, batch_idx)

    def with_checkpoints(**arguments):
        callbacks = [ModelCheckpoint(dirpath=tmp_path / "weights")]
        return make_trainer(**{"enable_checkpointing": True, "callbacks": callbacks, **arguments})

    report = make_evaluator(Recorder).evaluate(make_vit(), data, with_checkpoints)
    served = whole.images / 255.0
    listed = []
    for shots in (1, 2):
        for seed in (0, 3):
            lines = (tmp_path / "lists" / f"train_{shots}shot_seed{seed}.txt").read_text().splitlines()[1:]
            listed.append(sorted(_pixels(served[int(line.split(",")[0])]) for line in lines))
    assert [sorted(images) for images in seen] == listed
    assert data.dataset("train") is whole
    assert not (tmp_path / "weights").exists()
    assert (report.num_train_images, report.num_test_images) == (6, 10)
    assert {"top1_1shot", "top1_1shot_std", "top1_2shot"} <= set(report.metrics)
    assert report.protocol.startswith(
        "fewshot_finetune: 1shot (3), 2shot (6) of train (30), seeds 0, 3, each as finetune: all weights, "
    )


def test_means_are_those_of_the_last_epochs(make_evaluator, make_vit, data, make_trainer):
    class Scripted(Supervised):
        """Says class 0 for the first list and class 1 for the second; 4 and 3 of the 10 test images are theirs."""

        runs = 0

        def on_train_epoch_end(self):
            type(self).runs += 1

        def forward(self, images):
            logits = super().forward(images) * 0.0
            return logits + torch.eye(3)[(self.runs + 1) % 2]

    report = make_evaluator(Scripted, per_class=(1,)).evaluate(make_vit(), data, make_trainer)
    assert report.metrics == {"top1_1shot": pytest.approx(35.0), "top1_1shot_std": pytest.approx(50.0**0.5)}


def test_a_list_smaller_than_a_batch_is_refused_before_anything_is_written(
    make_evaluator, make_vit, data, make_trainer, tmp_path
):
    data.global_batch_size = 4
    with pytest.raises(ValueError, match=r"smallest list has 3 images, .* a batch of 4; set global_batch_size=3 or"):
        make_evaluator().evaluate(make_vit(), data, make_trainer)
    assert not (tmp_path / "lists").exists()
