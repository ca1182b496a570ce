"""What a method leaves to its base: the keys of its masks, what is logged of it, what its weights decay by."""

from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from unmask.masking.random import RandomMaskGenerator
from unmask.methods.base import Method
from unmask.optim.schedules import constant
from unmask.patches import PatchMask
from unmask.types import FILLER_INDEX, ImageBatch, MethodOutput

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class MeanOfImages(Method):
    """Its loss is the mean of the images; notes the mask of every pass."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            mask_generator=RandomMaskGenerator(ratio=0.5, patch_size=4),
            optimizer=partial(torch.optim.SGD, lr=1.0),
            schedule=constant,
            **settings,
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 24))
        self.drawn: list[tuple[bool, Tensor]] = []

    def forward(self, images: Tensor, mask: PatchMask | None = None) -> MethodOutput:
        assert mask is not None
        self.drawn.append((self.training, mask.masked))
        loss = images.mean() + 0.0 * self.mask_token.sum()
        return MethodOutput(
            loss=loss, terms={"term": 2 * loss}, monitors={"monitor": 3 * loss}, mask=mask, prediction=None
        )


def batch_of(index: list[int], seed: int = 0) -> ImageBatch:
    images = torch.randn(len(index), 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return ImageBatch(images, torch.zeros(len(index), dtype=torch.long), torch.tensor(index))


def loader_of(batch: ImageBatch, batch_size: int) -> DataLoader:
    return DataLoader([ImageBatch(*row) for row in zip(*batch, strict=True)], batch_size)


def make_trainer(*callbacks: Callback, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return Trainer(callbacks=list(callbacks), **settings | changes)


def test_masks_of_training_follow_seed_epoch_and_sample(make_vit, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(seed: int, epoch: int, index: list[int]) -> Tensor:
        monkeypatch.setattr(MeanOfImages, "current_epoch", epoch)
        return MeanOfImages(backbone=make_vit(depth=1), seed=seed).training_mask(batch_of(index)).masked

    first = drawn(3, 1, [5, 7])
    assert torch.equal(drawn(3, 1, [9, 7])[1], first[1])
    for other in (drawn(4, 1, [5, 7]), drawn(3, 2, [5, 7]), drawn(3, 1, [6, 8])):
        assert all(not torch.equal(one, another) for one, another in zip(first, other, strict=True))


def test_masks_of_held_out_images_follow_seed_and_sample_alone(make_vit, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(seed: int, epoch: int, index: list[int]) -> Tensor:
        monkeypatch.setattr(MeanOfImages, "current_epoch", epoch)
        method = MeanOfImages(backbone=make_vit(depth=1), seed=seed)
        return method.held_out_mask(batch_of(index).image, torch.tensor(index)).masked

    first = drawn(3, 1, [5, 7])
    assert torch.equal(drawn(3, 2, [5, 7]), first)
    assert torch.equal(drawn(3, 1, [9, 7])[1], first[1])
    for other in (drawn(4, 1, [5, 7]), drawn(3, 1, [6, 8])):
        assert all(not torch.equal(one, another) for one, another in zip(first, other, strict=True))


def test_each_split_is_judged_under_its_own_masks_and_logged_under_its_own_name(make_vit) -> None:
    method = MeanOfImages(backbone=make_vit(depth=1), seed=3)
    train, held_out = batch_of([0, 1, 2]), batch_of([0, 1, 2, FILLER_INDEX], seed=1)
    loaders = loader_of(train, 3), loader_of(held_out, 3)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(method, *loaders)
    validated = dict(trainer.callback_metrics)
    trainer.test(method, loaders[1], verbose=False)

    expected = method.held_out_mask(held_out.image, held_out.index).masked
    judged = [masked for training, masked in method.drawn if not training and len(masked) == 3]
    assert [torch.equal(masked, expected[:3]) for masked in judged] == [True] * 3  # two validations, one test
    trained = [masked for training, masked in method.drawn if training]
    assert not torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], expected[:3])
    mean = held_out.image[:3].mean().item()  # without the filler
    for split, logged in (("val", validated), ("test", trainer.callback_metrics)):
        for factor, name in ((1, "loss"), (2, "term"), (3, "monitor")):
            assert logged[f"{split}/{name}"].item() == pytest.approx(factor * mean, rel=1e-4), name


class Logged(Callback):
    """What is logged of each optimizer step."""

    def __init__(self) -> None:
        self.readings: list[dict[str, float]] = []

    def on_before_zero_grad(self, trainer: Trainer, *_: Any) -> None:
        trainer.callback_metrics.clear()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == trainer.accumulate_grad_batches - 1 or trainer.is_last_batch:
            found = {name: value.item() for name, value in trainer.callback_metrics.items()}
            self.readings.append({name: value for name, value in found.items() if name.startswith("train/")})


@pytest.mark.parametrize(("accumulated", "steps"), [(1, [[0, 1], [2, 3], [4]]), (2, [[0, 1, 2, 3], [4]])])
def test_what_is_logged_of_a_step_is_the_mean_over_its_images(
    make_vit, accumulated: int, steps: list[list[int]]
) -> None:
    method, batch, logged = MeanOfImages(backbone=make_vit(depth=1)), batch_of(list(range(5))), Logged()
    trainer = make_trainer(logged, max_epochs=2, accumulate_grad_batches=accumulated, limit_val_batches=0)
    trainer.fit(method, loader_of(batch, 2), loader_of(batch, 2))

    means = [batch.image[step].mean().item() for step in steps] * 2  # epochs
    for readings, mean in zip(logged.readings, means, strict=True):
        assert readings == {
            "train/loss": pytest.approx(mean, rel=1e-3, abs=1e-6),
            "train/term": pytest.approx(2 * mean, rel=1e-3, abs=1e-6),
            "train/monitor": pytest.approx(3 * mean, rel=1e-3, abs=1e-6),
        }


def test_one_device_logs_every_step_of_accumulated_batches(make_vit) -> None:
    """Progress bars and callbacks read what is between two logged steps."""
    method, batch, logged = MeanOfImages(backbone=make_vit(depth=1)), batch_of(list(range(8))), Logged()
    settings: dict[str, Any] = {"limit_val_batches": 0, "log_every_n_steps": 3}
    for accumulated in (1, 2):
        trainer = make_trainer(logged, max_epochs=1, accumulate_grad_batches=accumulated, **settings)
        trainer.fit(method, loader_of(batch, 2), loader_of(batch, 2))
    assert [set(readings) for readings in logged.readings] == [{"train/loss", "train/term", "train/monitor"}] * (4 + 2)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_several_devices_are_asked_at_logged_steps_alone_and_weighed_by_their_images(
    make_vit, accumulated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, logged = MeanOfImages(backbone=make_vit(depth=1)), []
    asked: list[int] = []

    def reduce(sums: Tensor, reduce_op: str = "mean") -> Tensor:
        asked.append(trainer.global_step)
        other = torch.tensor([10.0, 30.0, 5.0])  # of another device: five images
        return sums + other if reduce_op == "sum" else (sums + other) / 2

    trainer = Mock(spec=Trainer, world_size=2, accumulate_grad_batches=accumulated, log_every_n_steps=3)
    trainer.strategy.reduce = reduce
    monkeypatch.setattr(method, "_trainer", trainer)
    monkeypatch.setattr(
        MeanOfImages, "log_dict", lambda self, means, **_: logged.append({name: float(means[name]) for name in means})
    )
    num_batches = 5 * accumulated + 1  # the last window of an epoch is shorter
    for number in range(num_batches):
        trainer.global_step, trainer.is_last_batch = number // accumulated, number == num_batches - 1
        readings = {"loss": torch.tensor(float(number)), "term": torch.tensor(2.0 * number)}
        method.log_training(readings, batch_of([0, 1]), number)

    assert asked == [2, 5]
    steps = [[2], [5]] if accumulated == 1 else [[4, 5], [10]]
    assert logged == [
        {
            "train/loss": pytest.approx((10 + 2 * sum(step)) / (5 + 2 * len(step))),
            "train/term": pytest.approx((30 + 4 * sum(step)) / (5 + 2 * len(step))),
        }
        for step in steps
    ]


@pytest.mark.parametrize(("policy", "is_decayed"), [("weights", False), ("tokens", True)])
def test_the_policy_decides_what_decays(make_vit, policy: str, is_decayed: bool) -> None:
    method = MeanOfImages(backbone=make_vit(depth=1), weight_decay_policy=policy)
    method.optimizer_factory = partial(torch.optim.SGD, lr=1.0, weight_decay=0.1)
    found = []

    class Note(Callback):
        def on_train_start(self, trainer: Trainer, module: Any) -> None:
            found.extend(trainer.optimizers[0].param_groups)

    loader = loader_of(batch_of([0, 1]), 2)
    make_trainer(Note(), max_steps=1, limit_val_batches=0).fit(method, loader, loader)
    (group,) = [group for group in found if any(p is method.mask_token for p in group["params"])]
    assert (group["weight_decay"] > 0) == is_decayed
