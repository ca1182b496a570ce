"""Numbers that are not finite end no other way than in a black box."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer


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
        if trainer.global_step in self.steps and self.where == "all gradients":
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.grad *= self.value


@pytest.fixture
def guarded(fit: Callable[..., Trainer], tmp_path: Path) -> Callable[..., Trainer]:
    def run(plant: Callback, method: LightningModule, **settings: Any) -> Trainer:
        from unmask.callbacks.durable_checkpoint import DurableCheckpointIO
        from unmask.callbacks.last_checkpoint import LastCheckpoint
        from unmask.callbacks.nonfinite_guard import NonfiniteGuard
        from unmask.callbacks.step_seeding import StepSeeding

        trainer_settings = {
            key: settings.pop(key) for key in list(settings) if key in ("precision", "gradient_clip_val", "max_epochs")
        }
        plugins = [DurableCheckpointIO(), *settings.pop("plugins", [])]
        guard = NonfiniteGuard(folder=tmp_path, **settings)
        last = LastCheckpoint(dirpath=tmp_path / "checkpoints")
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


DDMIM = ["method=ddmim", "image_size=32", "model=swin_mini", "model.embed_dim=24", "model.depths=[1,1]"]
DDMIM += ["model.num_heads=[1,2]", "method.mask_generator.ratios=[0.5,0.5]", "method.mask_generator.patch_size=8"]
DDMIM += ["method.features.weights=[1,0.1]", "global_batch_size=4", "schedule=constant"]
SPIKE = 24  # of 30 steps; the first 20 tell what is usual


@pytest.mark.parametrize("on_spike", ["warn", "stop", "skip"])
def test_a_gradient_far_above_the_usual_is_kept_and_treated_as_chosen(
    on_spike: str,
    guarded: Callable[..., Trainer],
    make_mae: Callable[..., LightningModule],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from unmask.callbacks.stopping import NumbersFailed

    class Note(_Plant):
        def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step - 1 == SPIKE:
                changed.append(any(not torch.equal(w, self.weights[name]) for name, w in module.state_dict().items()))

    changed: list[bool] = []
    plant = Note("all gradients", {SPIKE, SPIKE + 2}, 1000.0)
    settings = {"on_spike": on_spike, "spike_factor": 300.0, "max_epochs": 5}
    if on_spike == "stop":
        with pytest.raises(NumbersFailed, match=rf"the gradient's norm is .*, usual is .* at step {SPIKE} ") as stopped:
            guarded(plant, make_mae(), **settings)
        assert "on_spike=skip" in str(stopped.value)
    else:
        assert guarded(plant, make_mae(), **settings).global_step == 30
        assert changed == [on_spike == "warn"]
        assert "the gradient's norm is" in caplog.text
    box = torch.load(tmp_path / "nonfinite" / f"step_{SPIKE:08d}.ckpt", weights_only=True)["nonfinite"]
    assert 300 < box["gradient_norm"] / box["usual_norm"] < 3000


def test_no_spike_is_seen_below_the_factor_nor_before_enough_steps_nor_when_unwanted(
    guarded: Callable[..., Trainer], make_mae: Callable[..., LightningModule], tmp_path: Path
) -> None:
    early, late = _Plant("all gradients", {10}, 1000.0), _Plant("all gradients", {22}, 1000.0)
    guarded(early, make_mae(), on_spike="stop", max_epochs=4)
    guarded(late, make_mae(), on_spike="stop", spike_factor=1e5, max_epochs=4)
    guarded(late, make_mae(), on_spike="stop", spike_factor=None, max_epochs=4)
    assert not (tmp_path / "nonfinite").exists()


def test_few_steps_that_are_made_all_the_same_are_kept(
    guarded: Callable[..., Trainer], make_mae: Callable[..., LightningModule], tmp_path: Path
) -> None:
    guarded(_Plant("all gradients", {21, 23, 25, 27, 29}, 1000.0), make_mae(), max_epochs=5)
    assert [path.name for path in sorted((tmp_path / "nonfinite").iterdir())] == [
        f"step_000000{step}.ckpt" for step in (21, 23, 25)
    ]


@pytest.mark.parametrize("where", ["images", "gradient"])
def test_a_skipped_step_leaves_running_statistics_and_the_teacher(
    where: str, guarded: Callable[..., Trainer], make_data: Callable[..., LightningDataModule]
) -> None:
    from unmask.runtime.builders import build_module
    from unmask.runtime.config import compose_config

    class Compare(_Plant):
        def on_before_backward(self, trainer: Trainer, module: Any, loss: torch.Tensor) -> None:
            super().on_before_backward(trainer, module, loss)
            module.norm(torch.full((2, 3), float("nan") if trainer.global_step in self.steps else 1.0))

        def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step - 1 in self.steps:
                state = module.state_dict()
                assert [name for name, value in state.items() if not torch.equal(value, self.weights[name])] == []
                compared.append(trainer.global_step)

    compared: list[int] = []
    method = build_module(compose_config("run", DDMIM).method, make_data())
    method.norm = torch.nn.BatchNorm1d(3)
    assert any(name.startswith("teacher.") for name in method.state_dict())
    guarded(Compare(where, {3, 4}), method, on_nonfinite="skip")
    assert compared == [4, 5]
    assert int(method.norm.num_batches_tracked) == 10  # of 12 steps
    assert all(bool(value.isfinite().all()) for value in method.state_dict().values())


@pytest.mark.parametrize("is_fused", [False, True])
def test_a_step_that_a_gradient_scaler_leaves_out_leaves_the_teacher(
    is_fused: bool, guarded: Callable[..., Trainer], make_data: Callable[..., LightningDataModule], tmp_path: Path
) -> None:
    from lightning.pytorch.plugins import MixedPrecision

    from unmask.runtime.builders import build_module
    from unmask.runtime.config import compose_config

    class Compare(_Plant):
        def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
            state = module.state_dict()
            if trainer.global_step - 1 in self.steps:
                assert [name for name, value in state.items() if not torch.equal(value, self.weights[name])] == []
            counts.append(int(state["teacher.num_updates"]))

    counts: list[int] = []
    fused = ["optimizer._target_=torch.optim.AdamW", "+optimizer.fused=true"] if is_fused else []
    method = build_module(compose_config("run", [*DDMIM, *fused]).method, make_data())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    half = MixedPrecision("16-mixed", "cpu", scaler)
    guarded(Compare("gradient", {3, 4}, float("inf")), method, plugins=[half])
    assert method.optimizers().optimizer.defaults.get("fused") in ((True,) if is_fused else (None, False))
    assert counts == [1, 2, 3, 3, 3, *range(4, 11)]
    assert scaler.get_scale() == 1.0  # halved with each of the two
    assert not (tmp_path / "nonfinite").exists()


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
    ("settings", "sentence"),
    [
        ({"on_nonfinite": "ignore"}, "'stop' or 'skip'"),
        ({"on_spike": "ignore"}, "'warn', 'stop' or 'skip'"),
        ({"spike_factor": 1.0}, "above 1"),
        ({"max_skips": 0}, "max_skips"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    from unmask.callbacks.nonfinite_guard import NonfiniteGuard

    with pytest.raises(ValueError, match=sentence):
        NonfiniteGuard(folder=tmp_path, **settings)
