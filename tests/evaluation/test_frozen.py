"""A head learns; nothing else moves."""

import functools
import hashlib
import math

import pytest
import torch

from unmask.data.augmentation.transforms import Augmentation
from unmask.evaluation.frozen import Frozen
from unmask.heads.logistic_regression import LogisticRegression
from unmask.heads.probes import AttentiveClassifier, BatchNormLinearClassifier, MLPClassifier
from unmask.methods.frozen import FrozenBackbone
from unmask.optim.schedules import warmup_cosine


def make_evaluator(head, *, built=None, kind=FrozenBackbone, epochs=1, lr=1e-2, **changes):
    """An evaluator; `built` receives the modules it trains."""
    factory = functools.partial(
        kind,
        head=head,
        optimizer=functools.partial(torch.optim.AdamW, lr=lr),
        schedule=functools.partial(warmup_cosine, warmup_epochs=0.0),
        **changes,
    )

    def classifier(**arguments):
        module = factory(**arguments)
        if built is not None:
            built.append(module)
        return module

    return Frozen(name="frozen", head=head, classifier=classifier if built is not None else factory, epochs=epochs)


@pytest.fixture
def data(make_data, draw_splits):
    splits = draw_splits((24, 9, 10), num_classes=3, spread=10.0, side=32)
    whole = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip_prob=0.0)
    statistics = {"pixel_mean": (0.5, 0.5, 0.5), "pixel_std": (0.15, 0.15, 0.15)}
    return make_data(splits, num_classes=3, image_size=32, global_batch_size=8, augmentation=whole, **statistics)


def served(data, split):
    """The stored images as a backbone sees them without augmentation."""
    return (data.dataset(split).images / 255.0 - 0.5) / 0.15


def digest(module) -> str:
    """Hashes every weight and buffer, bit for bit, and every module's mode."""
    content = hashlib.sha256()
    for name, value in module.state_dict().items():
        content.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    content.update(repr([(name, part.training) for name, part in module.named_modules()]).encode())
    return content.hexdigest()


class ModeRecorder(FrozenBackbone):
    """Notes whether a part of its backbone is in training mode in any training step."""

    def training_step(self, batch, batch_idx):
        self.modes = {*getattr(self, "modes", set()), *(part.training for part in self.backbone.modules())}
        assert self.head.training
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    "head", [MLPClassifier, AttentiveClassifier, functools.partial(BatchNormLinearClassifier, weight_std=0.01)]
)
def test_every_head_learns_and_the_backbone_stays_bit_for_bit(head, make_vit, data, make_trainer):
    backbone = make_vit(drop_path_rate=0.5).train()
    backbone.vit.blocks[1].eval()
    before, built = digest(backbone), []
    report = make_evaluator(head, built=built, kind=ModeRecorder, epochs=12).evaluate(backbone, data, make_trainer)
    assert report.metrics["top1"] > 80.0
    assert digest(backbone) == before
    (module,) = built
    assert module.modes == {False}
    assert digest(module.backbone) == digest(backbone.eval())
    assert all(parameter.grad is None for parameter in module.backbone.parameters())


def test_last_and_best_epoch_stand_side_by_side(make_vit, data, make_trainer):
    report = make_evaluator(MLPClassifier, epochs=2).evaluate(make_vit(), data, make_trainer)
    assert {"top1", "top1_ci95_low", "top1_best_epoch"} <= set(report.metrics)
    assert report.settings["selected_on"] == "val (9)"
    assert (report.num_train_images, report.num_test_images) == (24, 10)


def test_training_images_are_augmented_and_test_images_are_not(make_vit, data, make_trainer):
    seen = {"train": [], "test": []}

    class Recorder(FrozenBackbone):
        def training_step(self, batch, batch_idx):
            seen["train"] += [image for _, image in sorted(zip(batch.index.tolist(), batch.image, strict=True))]
            return super().training_step(batch, batch_idx)

        def test_step(self, batch, batch_idx):
            seen["test"] += list(batch.image)
            super().test_step(batch, batch_idx)

    data.augmentation = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip_prob=1.0)
    data.global_batch_size = 24
    make_evaluator(MLPClassifier, kind=Recorder).evaluate(make_vit(), data, make_trainer)
    stored = {split: served(data, split) for split in seen}
    torch.testing.assert_close(torch.stack(seen["train"]), stored["train"].flip(3))
    torch.testing.assert_close(torch.stack(seen["test"][:10]), stored["test"])


def test_a_head_fitted_at_once_reads_cached_features_of_full_images(make_vit, data, make_trainer):
    backbone = make_vit()
    head = functools.partial(LogisticRegression, inverse_strengths=(0.01, 1.0))
    data.augmentation = Augmentation(scale=(0.1, 0.1))  # which must not matter
    report = make_evaluator(head, pool="cls").evaluate(backbone, data, make_trainer)
    by_hand = head(in_features=24, num_classes=3)
    labels = {split: data.dataset(split).labels for split in ("train", "val", "test")}
    with torch.no_grad():
        splits = {split: backbone.eval().vit.forward_features(served(data, split))[:, 0] for split in labels}
    choice = by_hand.fit_best(splits["train"], labels["train"], splits["val"], labels["val"])
    hits = (by_hand(splits["test"]).argmax(dim=1) == labels["test"]).float().mean()
    assert report.metrics["top1"] == pytest.approx(100.0 * hits.item())
    assert report.settings["selected"] == f"inverse strength {choice.inverse_strength:g}"
    assert report.protocol.startswith("frozen: logistic: L-BFGS")
    assert "TimmViT block 4, cls (24)" in report.protocol


def test_the_protocol_spells_out_what_changes_the_number(make_vit, data, make_trainer):
    protocol = make_evaluator(MLPClassifier, lr=0.1, pool="auto").evaluate(make_vit(), data, make_trainer).protocol
    assert protocol == (
        "frozen: frozen backbone, head on cls, 1 epochs, last epoch, train (24), test (10), 32x32 px, batch 8, "
        "Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), interpolation=bicubic, hflip_prob=0.0, "
        "random_erasing_prob=0.0), "
        "FrozenBackbone(head=MLPClassifier, optimizer=AdamW(lr=0.1), schedule=warmup_cosine(warmup_epochs=0), "
        "pool=auto)"
    )


def test_unlabeled_images_are_refused_before_anything_is_trained(make_vit, data, make_trainer):
    data.splits["train"][1][3] = -1
    with pytest.raises(ValueError, match="eval=frozen needs labels, but the train split of InMemory has none for 1"):
        make_evaluator(MLPClassifier).evaluate(make_vit(), data, make_trainer)


def test_no_epochs_are_refused():
    with pytest.raises(ValueError, match=r"eval.epochs must be at least 1, got 0"):
        make_evaluator(MLPClassifier, epochs=0)


def maes_rate(step, *, peak, steps_per_epoch, epochs, warmup):
    """MAE's code: the rate at a fractional epoch (`methods.md` 2.4)."""
    epoch = step / steps_per_epoch
    if epoch < warmup:
        return peak * epoch / warmup
    return peak / 2 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


def test_maes_probe_is_configured_as_maes_code_runs_it(make_vit):
    from unmask.runtime.builders import build  # noqa: PLC0415
    from unmask.runtime.config import compose_config  # noqa: PLC0415

    config = compose_config("eval", ["eval=linear_mae", "global_batch_size=16384", "ckpt_path=x"])
    evaluator = build(config.eval)
    module = evaluator.classifier(backbone=make_vit(), num_classes=5)
    optimizer = module.optimizer_factory(module.head.parameters())
    schedule = module.schedule_factory(optimizer, total_steps=90 * 78, steps_per_epoch=78)
    assert (module.what_is_read, evaluator.epochs, module.head.norm.affine) == ("cls", 90, False)
    assert {(group["momentum"], group["weight_decay"], group["trust_coeff"]) for group in optimizer.param_groups} == {
        (0.9, 0.0, 0.001)
    }
    rates = []
    for _ in range(90 * 78):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    for step in (0, 1, 779, 780, 781, 90 * 78 - 1):
        expected = maes_rate(step, peak=6.4, steps_per_epoch=78, epochs=90, warmup=10)
        assert rates[step] == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert (rates[0], rates[780]) == (0.0, pytest.approx(6.4))
    augmentation = build(config.augmentation)
    assert (augmentation.scale, augmentation.interpolation, augmentation.hflip_prob) == ((0.08, 1.0), "bicubic", 0.5)
