from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from timm.data import Mixup
from torch import Tensor, nn
from torch.utils.data import DataLoader

from unmask.heads.classifier import BatchNormMLPClassifier, LinearClassifier
from unmask.methods.supervised import Supervised
from unmask.optim.schedules import constant
from unmask.types import ImageBatch

NUM_CLASSES = 10
PEAK = 0.02
PLAIN = {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0}


def make_supervised(backbone: nn.Module, **changes: Any) -> Supervised:
    settings: dict[str, Any] = {
        "num_classes": NUM_CLASSES,
        "head": partial(LinearClassifier, weight_std=0.5),
        "optimizer": partial(torch.optim.AdamW, lr=PEAK),
        "schedule": constant,
    }
    return Supervised(backbone=backbone, **settings | changes)


def make_batch(count: int) -> ImageBatch:
    return ImageBatch(torch.randn(count, 3, 32, 32), torch.randint(NUM_CLASSES, (count,)), torch.arange(count))


def make_loader(batch: ImageBatch, batch_size: int) -> DataLoader:
    return DataLoader([ImageBatch(*row) for row in zip(*batch, strict=True)], batch_size)


def make_trainer(*callbacks: Callback, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(callbacks=list(callbacks), **settings | changes)


def training_loss(method: Supervised, batch: ImageBatch) -> Tensor:
    """The loss of one training step outside a trainer; what it logs must be that loss."""
    logged: dict[str, Tensor] = {}
    method.log_training = lambda readings, *_: logged.update(
        {f"train/{name}": value for name, value in readings.items()}
    )
    loss = method.training_step(batch, 0)
    assert logged["train/loss"] == loss
    return loss


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * (logits - logits.logsumexp(dim=1, keepdim=True))).sum(dim=1).mean()


def smoothed(labels: Tensor, smoothing: float) -> Tensor:
    one_hot = torch.zeros(len(labels), NUM_CLASSES)
    one_hot[torch.arange(len(labels)), labels] = 1.0
    return (1.0 - smoothing) * one_hot + smoothing / NUM_CLASSES


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("count", [6, 5])
def test_loss_without_mixing_is_label_smoothed_cross_entropy(make_vit, randomize, smoothing, count) -> None:
    method = randomize(make_supervised(make_vit(), mixup=0.0, cutmix=0.0, label_smoothing=smoothing))
    batch = make_batch(count)
    expected = soft_cross_entropy(method(batch.image), smoothed(batch.label, smoothing))
    torch.testing.assert_close(training_loss(method, batch), expected)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("seed", [0, 2, 3])  # where both are on, 2 cuts and the others blend
def test_mixed_loss_equals_timms_mixup_under_the_same_draw(make_vit, randomize, mixup, cutmix, seed) -> None:
    method = randomize(make_supervised(make_vit(), mixup=mixup, cutmix=cutmix, label_smoothing=0.1))
    batch = make_batch(6)
    mix = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.1, num_classes=NUM_CLASSES)
    np.random.seed(seed)  # noqa: NPY002 (timm draws from this stream)
    mirrored = [0, 1, 2, 5, 4, 3]  # timm mixes with the mirror, we with the image half a batch away
    images, targets = mix(batch.image[mirrored], batch.label[mirrored])
    expected = soft_cross_entropy(method(images), targets)
    unmixed = soft_cross_entropy(method(batch.image), smoothed(batch.label, 0.1))

    np.random.seed(seed)  # noqa: NPY002
    loss = training_loss(method, batch)
    torch.testing.assert_close(loss, expected)
    assert not torch.isclose(loss, unmixed)


def test_mixup_blends_each_image_of_an_odd_batch_with_the_one_half_a_batch_away(make_vit, randomize) -> None:
    method = randomize(make_supervised(make_vit(), mixup=0.8, cutmix=0.0, label_smoothing=0.1))
    batch = make_batch(5)
    np.random.seed(0)  # noqa: NPY002
    np.random.rand()  # noqa: NPY002 (decides to mix)
    share = np.random.beta(0.8, 0.8)  # noqa: NPY002
    partner = [3, 4, 4, 0, 1]  # the last image also stands in for the missing sixth
    images = share * batch.image + (1.0 - share) * batch.image[partner]
    own, other = smoothed(batch.label, 0.1), smoothed(batch.label[partner], 0.1)
    expected = soft_cross_entropy(method(images), share * own + (1.0 - share) * other)

    np.random.seed(0)  # noqa: NPY002
    torch.testing.assert_close(training_loss(method, batch), expected)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_the_slices_of_two_devices_are_mixed_as_the_whole_batch(make_vit, mixup: float, cutmix: float) -> None:
    method = make_supervised(make_vit(), mixup=mixup, cutmix=cutmix)
    whole = make_batch(8)

    def mixed(batch: ImageBatch) -> tuple[Tensor, Tensor]:
        np.random.seed(3)  # noqa: NPY002 (one draw for all devices)
        return method._mix(batch.image, batch.label)

    images, targets = mixed(whole)
    for rank in range(2):
        own_images, own_targets = mixed(ImageBatch(*(column[rank::2] for column in whole)))
        assert torch.equal(own_images, images[rank::2])
        assert torch.equal(own_targets, targets[rank::2])


@pytest.mark.parametrize("count", [1, 3, 5])
def test_every_image_of_an_odd_batch_is_trained_on(make_vit, randomize, count) -> None:
    method = randomize(make_supervised(make_vit()))
    images, labels, index = make_batch(count)
    images.requires_grad_(True)
    np.random.seed(0)  # noqa: NPY002
    (gradient,) = torch.autograd.grad(training_loss(method, ImageBatch(images, labels, index)), images)
    assert (gradient.flatten(1).abs().amax(dim=1) > 0).all()


class _Rates(Callback):
    """Notes the rate and the decay of every parameter as training starts."""

    def __init__(self) -> None:
        self.by_name: dict[str, tuple[float, float]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Supervised) -> None:
        names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        for group in trainer.optimizers[0].param_groups:
            for parameter in group["params"]:
                self.by_name[names[id(parameter)]] = group["lr"], group["weight_decay"]


@pytest.mark.parametrize("family", ["vit", "swin"])
@pytest.mark.parametrize("layer_decay", [0.5, 1.0])
def test_rates_of_the_optimizer_fall_with_depth(
    make_vit: Callable[..., nn.Module], make_swin: Callable[..., nn.Module], family: str, layer_decay: float
) -> None:
    backbone = {"vit": make_vit, "swin": partial(make_swin, patch_size=2, image_size=32)}[family]()  # four blocks
    rates = _Rates()
    method, loader = make_supervised(backbone, layer_decay=layer_decay, **PLAIN), make_loader(make_batch(2), 2)
    make_trainer(rates, limit_val_batches=0).fit(method, loader, loader)

    depths = {
        "vit": {
            "backbone.vit.patch_embed.proj.weight": 0,
            "backbone.vit.cls_token": 0,
            "backbone.vit.blocks.0.attn.qkv.weight": 1,
            "backbone.vit.blocks.3.mlp.fc2.bias": 4,
            "backbone.vit.norm.weight": 5,
            "head.linear.weight": 5,
        },
        "swin": {
            "backbone.swin.patch_embed.proj.weight": 0,
            "backbone.swin.layers.0.blocks.1.mlp.fc1.weight": 2,
            "backbone.swin.layers.2.downsample.norm.weight": 3,
            "backbone.swin.layers.2.blocks.0.norm1.bias": 4,
            "backbone.swin.norm.weight": 5,
            "head.linear.bias": 5,
        },
    }[family]
    for name, depth in depths.items():
        assert rates.by_name[name][0] == pytest.approx(PEAK * layer_decay ** (4 + 1 - depth)), name
    trainable = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    assert rates.by_name.keys() == trainable
    expected = {depth: PEAK * layer_decay ** (5 - depth) for depth in range(6)}
    for name in trainable:
        inside = name.removeprefix("backbone.")
        depth = 5 if inside == name else backbone.layer_id(inside)
        assert rates.by_name[name][0] == pytest.approx(expected[depth]), name
    assert rates.by_name["head.linear.weight"][1] > rates.by_name["head.linear.bias"][1] == 0.0


@pytest.mark.parametrize(
    ("policy", "decaying"),
    [
        ("weights", {"qkv.weight"}),
        ("position_bias", {"qkv.weight", "table"}),
        ("all", {"qkv.weight", "table", "v_bias"}),
    ],
)
def test_the_policy_decides_what_decays_in_fine_tuning(make_beit, policy: str, decaying: set[str]) -> None:
    backbone = make_beit()
    backbone.prepare_for_finetuning(drop_path_rate=0.0)
    rates = _Rates()
    method = make_supervised(backbone, weight_decay_policy=policy, **PLAIN)
    loader = make_loader(ImageBatch(torch.randn(2, 3, *backbone.image_size), *make_batch(2)[1:]), 2)
    make_trainer(rates, limit_val_batches=0).fit(method, loader, loader)
    for ending in ("qkv.weight", "table", "v_bias"):
        found = {name: decay for name, (_, decay) in rates.by_name.items() if name.endswith(ending)}
        assert len(found) == backbone.num_blocks
        assert set(found.values()) == ({0.01} if ending in decaying else {0.0}), ending


def test_an_unknown_policy_of_weight_decay_is_refused(make_vit) -> None:
    with pytest.raises(ValueError, match=r"weight_decay_policy must be one of weights, tokens, .* all, got 'some'"):
        make_supervised(make_vit(), weight_decay_policy="some")


@pytest.mark.parametrize("num_classes", [0, 1])
def test_fewer_than_two_classes_are_refused(make_vit, num_classes: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2 classes, the data has {num_classes}; .*method=mae"):
        make_supervised(make_vit(), num_classes=num_classes)


def ranked_batch(method: Supervised, count: int) -> ImageBatch:
    """Images whose labels are by turns the network's first, second, .. tenth choice."""
    images = torch.randn(count, 3, 32, 32)
    with torch.no_grad():
        choices = method(images).argsort(dim=1, descending=True)
    number = torch.arange(count)
    return ImageBatch(images, choices[number, number % NUM_CLASSES], number)


def test_held_out_accuracies_are_shares_of_all_images(make_vit, randomize) -> None:
    method = randomize(make_supervised(make_vit()))
    batch = ranked_batch(method, 23)  # batches of 8, 8 and 7
    with torch.no_grad():
        log_probabilities = method(batch.image).log_softmax(dim=1)
    loss = -log_probabilities[torch.arange(23), batch.label].mean().item()

    trainer = make_trainer()
    (validated,) = trainer.validate(method, make_loader(batch, 8), verbose=False)
    (tested,) = trainer.test(method, make_loader(batch, 8), verbose=False)
    assert validated == {"val/loss": pytest.approx(loss, rel=1e-4), "val/top1": pytest.approx(3 / 23)}
    assert tested == {
        "test/loss": pytest.approx(loss, rel=1e-4),
        "test/top1": pytest.approx(3 / 23),
        "test/top5": pytest.approx((5 + 5 + 3) / 23),
    }


class _Validations(Callback):
    """Counts the hits of each validation by hand, beside what was logged."""

    def __init__(self, batch: ImageBatch) -> None:
        self.batch = batch
        self.logged: list[float] = []
        self.counted: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: Supervised) -> None:
        with torch.no_grad():
            hits = pl_module(self.batch.image).argmax(dim=1) == self.batch.label
        self.counted.append(hits.float().mean().item())
        self.logged.append(trainer.callback_metrics["val/top1"].item())


def test_each_validation_of_a_run_counts_its_own_hits(make_vit) -> None:
    method = make_supervised(make_vit(), **PLAIN)
    batch = make_batch(14)
    validations = _Validations(batch)
    trainer = make_trainer(validations, max_steps=-1, max_epochs=4)
    trainer.fit(method, make_loader(batch, 7), make_loader(batch, 5))
    assert validations.logged == pytest.approx(validations.counted)
    assert len(set(validations.counted)) > 1


def test_with_few_classes_every_image_is_among_the_first_five(make_vit) -> None:
    method = make_supervised(make_vit(), num_classes=3)
    images, _, index = make_batch(6)
    loader = make_loader(ImageBatch(images, index % 3, index), 4)
    (tested,) = make_trainer().test(method, loader, verbose=False)
    assert tested["test/top5"] == 1.0
    assert tested["test/top1"] < 1.0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_in_bfloat16_on_a_cpu_leaves_the_fused_kernel(make_vit, precision) -> None:
    backbone = make_vit()
    before = [block.attn.fused_attn for block in backbone.vit.blocks]
    method, loader = make_supervised(backbone, **PLAIN), make_loader(make_batch(2), 2)
    make_trainer(precision=precision, limit_val_batches=0).fit(method, loader, loader)
    expected = before if precision == "32-true" else [False] * 4
    assert all(before)
    assert [block.attn.fused_attn for block in backbone.vit.blocks] == expected


def test_batch_norm_with_one_image_a_step_is_refused(
    make_vit: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    normed = make_supervised(make_vit(), head=partial(BatchNormMLPClassifier, hidden_features=8), **PLAIN)
    with pytest.raises(ValueError, match="batch norm compares the images of a step, and this step has one on each"):
        normed.training_step(make_batch(1), 0)
    for module, count in ((normed, 2), (make_supervised(make_vit(), **PLAIN), 1)):
        monkeypatch.setattr(module, "log_training", lambda *_: None)
        assert module.training_step(make_batch(count), 0).isfinite()
