"""Numbers that are not finite end no other way than in a black box."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer


class _Plant(Callback):
    """Puts a bad number in the images, the loss or a gradient of some optimizer steps; notes the weights before."""

    def __init__(self, where: str, steps: set[int], value: float = float("nan")) -> None:
        self.where, self.steps, self.value = where, steps, value
        self.weights: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in self.steps:
            self.weights = {name: weight.clone() for name, weight in module.state_dict().items()}
            if self.where == "images":
                batch.image[1, 0, 3, 3] = self.value

    def on_before_backward(self, trainer: Trainer, module: Any, loss: torch.Tensor) -> None:
        if trainer.global_step in self.steps and self.where == "loss":
            loss.data.fill_(self.value)

    def on_after_backward(self, trainer: Trainer, module: Any) -> None:
        if trainer.global_step in self.steps and self.where == "gradient":
            next(p for p in module.parameters() if p.grad is not None).grad.view(-1)[0] = self.value


@pytest.fixture
def guarded(fit: Callable[..., Trainer], tmp_path: Path) -> Callable[..., Trainer]:
    def run(plant: Callback, method: LightningModule, **settings: Any) -> Trainer:
        from unmask.callbacks.durable_checkpoint import DurableCheckpointIO
        from unmask.callbacks.last_checkpoint import LastCheckpoint
        from unmask.callbacks.nonfinite_guard import NonfiniteGuard
        from unmask.callbacks.step_seeding import StepSeeding

        trainer_settings = {
            key: settings.pop(key) for key in list(settings) if key in ("precision", "gradient_clip_val")
        }
        guard = NonfiniteGuard(folder=tmp_path, **settings)
        last = LastCheckpoint(dirpath=tmp_path / "checkpoints")
        plugins = [DurableCheckpointIO()]
        callbacks = [StepSeeding(seed=0), plant, guard, last]
        return fit(*callbacks, method=method, enable_checkpointing=True, plugins=plugins, **trainer_settings)

    return run


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["images", "loss", "gradient"])
def test_the_step_is_not_made_and_the_run_stops(
    where: str,
    value: float,
    precision: str,
    *,
    guarded: Callable[..., Trainer],
    make_mae: Callable[..., LightningModule],
    tmp_path: Path,
) -> None:
    from unmask.callbacks.stopping import NumbersFailed

    method, plant = make_mae(), _Plant(where, {8}, value)
    with pytest.raises(
        NumbersFailed, match=r"is not finite .* at step 8 \(epoch 2\); the step was not taken"
    ) as stopped:
        guarded(plant, method, precision=precision)

    assert stopped.value.exit_code == 3
    for name, weight in method.state_dict().items():
        assert torch.equal(weight, plant.weights[name]), name
    box = torch.load(tmp_path / "nonfinite" / "step_00000008.ckpt", weights_only=True)["nonfinite"]
    assert (box["step"], box["epoch"], box["batch_idx"]) == (8, 1, 2)
    assert str(box["indices"].tolist()) in str(stopped.value)
    assert (box["first_layer"] == "the images") == (where == "images")
    assert bool(box["bad_gradients"]) or where == "loss"
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


def test_the_first_layer_with_a_bad_output_is_named(
    guarded: Callable[..., Trainer], make_mae: Callable[..., LightningModule]
) -> None:
    from unmask.callbacks.stopping import NumbersFailed

    method = make_mae()
    name, layer = [(name, part) for name, part in method.named_modules() if name.endswith("mlp.fc2")][1]
    layer.register_forward_hook(lambda module, inputs, output: output / 0 if method.global_step == 3 else output)
    with pytest.raises(NumbersFailed, match=f"first in {name}, images"):
        guarded(_Plant("none", set()), method)


def test_skipped_steps_leave_the_weights_and_the_run_goes_on(
    guarded: Callable[..., Trainer], make_mae: Callable[..., LightningModule], tmp_path: Path
) -> None:
    class Compare(_Plant):
        def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step - 1 in self.steps:
                for name, weight in module.state_dict().items():
                    assert torch.equal(weight, self.weights[name]), name

    method = make_mae()
    trainer = guarded(Compare("images", {2, 5, 6, 7}), method, on_nonfinite="skip", max_skips=3, gradient_clip_val=1.0)

    assert trainer.global_step == 12
    assert all(bool(weight.isfinite().all()) for weight in method.state_dict().values())
    boxes = sorted(path.name for path in (tmp_path / "nonfinite").iterdir())
    assert boxes == ["step_00000002.ckpt", "step_00000005.ckpt"]  # the first of each row


def test_too_many_skipped_steps_in_a_row_end_the_run(
    guarded: Callable[..., Trainer], make_mae: Callable[..., LightningModule]
) -> None:
    from unmask.callbacks.stopping import NumbersFailed

    with pytest.raises(NumbersFailed, match=r"at step 7 .*; 3 steps in a row were skipped before it"):
        guarded(_Plant("loss", {4, 5, 6, 7}), make_mae(), on_nonfinite="skip", max_skips=3)


def test_a_guard_without_anything_bad_changes_nothing(
    fit: Callable[..., Trainer], make_mae: Callable[..., LightningModule], tmp_path: Path
) -> None:
    from unmask.callbacks.nonfinite_guard import NonfiniteGuard
    from unmask.callbacks.step_seeding import StepSeeding

    weights = []
    for extra in ([], [NonfiniteGuard(folder=tmp_path)]):
        torch.manual_seed(0)
        weights.append(fit(StepSeeding(seed=0), *extra).lightning_module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("settings", "sentence"), [({"on_nonfinite": "ignore"}, "'stop' or 'skip'"), ({"max_skips": 0}, "max_skips")]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    from unmask.callbacks.nonfinite_guard import NonfiniteGuard

    with pytest.raises(ValueError, match=sentence):
        NonfiniteGuard(folder=tmp_path, **settings)
