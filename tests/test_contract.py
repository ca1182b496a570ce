"""What every method under conf/method promises, whoever wrote it."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

CONF = Path(__file__).parents[1] / "conf"
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
DATA = ["data.num_train=40", "data.num_val=8", "data.num_test=8", "global_batch_size=8"]
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
}


Build = Callable[..., tuple[Any, Any]]


@pytest.fixture
def build(tiny_overrides: Callable[[str], list[str]]) -> Build:
    """Builds a tiny method and its data: `build("mae", "base_lr=0.1")`."""

    def built(method: str, *overrides: str) -> tuple[LightningModule, Any]:
        from lightning import seed_everything

        from unmask.runtime.builders import build as build_node
        from unmask.runtime.builders import build_module
        from unmask.runtime.config import compose_config

        seed_everything(0, verbose=False)
        config = compose_config("run", [*tiny_overrides(method), *DATA, *overrides])
        data = build_node(config.data)
        return build_module(config.method, data), data

    return built


@pytest.fixture
def build_masking(build: Build) -> Callable[[str], Any]:
    """Builds a tiny method in eval mode; one that masks nothing is passed over."""

    def built(method: str) -> Any:
        module, _ = build(method)
        if module.held_out_mask(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64)) is None:
            pytest.skip(f"{method} masks nothing")
        return module.eval()

    return built


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", METHODS)
def test_masked_pixels_cannot_reach_the_prediction(
    method: str,
    images: torch.Tensor,
    refill_masked: Callable[..., torch.Tensor],
    build_masking: Callable[[str], Any],
) -> None:
    module = build_masking(method)
    mask = module.mask_generator(images)
    scrambled = refill_masked(images, mask)

    tolerance = 0.0 if module.borrowed_statistics(images) is None else 1e-5  # of dividing what was multiplied
    with torch.no_grad():
        found, expected = _output(module, scrambled, mask), _output(module, images, mask)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_visible_pixels_do_reach_the_prediction(
    method: str, images: torch.Tensor, build_masking: Callable[[str], Any]
) -> None:
    module = build_masking(method)
    mask = module.mask_generator(images)
    scrambled = torch.where(mask.at_pixels(), images, torch.randn_like(images))

    with torch.no_grad():
        assert not torch.allclose(_output(module, scrambled, mask), _output(module, images, mask))


def _output(module: Any, images: torch.Tensor, mask: Any) -> torch.Tensor:
    """The network's own output, without the statistics of the true pixels that its picture is shown with."""
    prediction, borrowed = module(images, mask).prediction, module.borrowed_statistics(images)
    return prediction if borrowed is None else (prediction - borrowed.mean) / borrowed.std


@pytest.mark.parametrize("method", METHODS)
def test_the_same_mask_gives_the_same_loss(
    method: str, images: torch.Tensor, build_masking: Callable[[str], Any]
) -> None:
    module = build_masking(method)
    mask = module.mask_generator(images)

    assert torch.equal(module(images, mask).loss, module(images, mask).loss)
    assert not torch.equal(module(images, mask).loss, module(images, module.mask_generator(images)).loss)


@pytest.mark.parametrize("method", METHODS)
def test_every_trainable_parameter_gets_a_gradient(method: str, build: Build) -> None:
    module, data = build(method)
    trainer = Trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0, **QUIET, enable_checkpointing=False)
    gradients: dict[str, bool] = {}

    def note_gradients(*_: Any) -> None:
        gradients.update({name: p.grad is not None for name, p in module.named_parameters() if p.requires_grad})

    module.on_before_optimizer_step = note_gradients
    trainer.fit(module, datamodule=data)

    assert [name for name, has_gradient in gradients.items() if not has_gradient] == []
    assert gradients


@pytest.mark.parametrize("method", METHODS)
def test_it_overfits_eight_images(method: str, build: Build) -> None:
    overrides = ["data.num_train=8", "base_lr=0.1", "schedule=constant", "optimizer.weight_decay=0"]
    overrides += ["augmentation.scale=[1,1]", "augmentation.hflip_prob=0"]
    overrides += ["augmentation.random_erasing_prob=0", "drop_path_rate=0"]
    module, data = build(method, *overrides)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.0)
    batch = data.to_model_input(next(iter(data.train_dataloader())), augmented=False)
    losses = []
    for _ in range(150):
        loss = _training_loss(module, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.5 * losses[0]


def _training_loss(module: Any, batch: Any) -> torch.Tensor:
    mask = module.held_out_mask(batch.image, batch.index)
    if mask is not None:
        return module(batch.image, mask).loss
    return torch.nn.functional.cross_entropy(module(batch.image), batch.label)


class _StopAfter(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.should_stop = True


class _Recorder(Callback):
    """Notes the loss and the samples of every step."""

    def __init__(self) -> None:
        self.steps: dict[int, tuple[str, tuple[int, ...]]] = {}

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = float(outputs["loss"])
        self.steps[trainer.global_step] = (loss.hex(), tuple(batch.index.tolist()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "interrupted_at", [3, 5, 7]
)  # five steps an epoch: within the first, at its end, in the second
def test_a_resumed_run_is_the_uninterrupted_one(method: str, interrupted_at: int, tmp_path: Path, build: Build) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    from unmask.callbacks.step_seeding import StepSeeding

    def run(recorder: _Recorder, *extra: Any, ckpt_path: Path | None = None) -> LightningModule:
        module, data = build(method)
        trainer = Trainer(max_epochs=3, callbacks=[StepSeeding(seed=0), recorder, *extra], **QUIET)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return module

    whole, first, second = _Recorder(), _Recorder(), _Recorder()
    uninterrupted = run(whole, ModelCheckpoint(dirpath=tmp_path / "unused", save_top_k=0))
    saved = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=interrupted_at, save_top_k=-1)
    run(first, saved, _StopAfter(interrupted_at))
    (checkpoint,) = [path for path in tmp_path.glob("*.ckpt") if f"step={interrupted_at}." in path.name]
    resumed = run(second, ModelCheckpoint(dirpath=tmp_path / "unused", save_top_k=0), ckpt_path=checkpoint)

    assert {step: whole.steps[step] for step in second.steps} == second.steps
    assert sorted(second.steps) == list(range(interrupted_at + 1, 16))
    for name, weight in uninterrupted.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_rebuilds_the_method_with_its_weights(
    method: str, tmp_path: Path, build: Build, tiny_overrides: Callable[[str], list[str]]
) -> None:
    from unmask.callbacks.provenance import Provenance
    from unmask.runtime.builders import resolve_config
    from unmask.runtime.checkpoint import load_method
    from unmask.runtime.config import compose_config
    from unmask.runtime.run_record import describe_run

    module, data = build(method)
    config = compose_config("run", [*tiny_overrides(method), *DATA, "name=x", "paths.run_dir=x"])
    record = describe_run(resolve_config(config), num_classes=data.num_classes, class_names=data.class_names)
    trainer = Trainer(
        max_epochs=1, limit_val_batches=0, callbacks=[Provenance(record=record)], enable_checkpointing=False, **QUIET
    )
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    restored = load_method(tmp_path / "last.ckpt")

    for name, weight in module.state_dict().items():
        assert torch.equal(weight, restored.state_dict()[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_the_exported_backbone_computes_the_same_features(
    method: str, images: torch.Tensor, tmp_path: Path, build: Build
) -> None:
    from unmask.runtime.checkpoint import export_weights, load_backbone

    module, _ = build(method)
    backbone = module.exported_backbone.eval()
    restored = load_backbone(export_weights(backbone, tmp_path / "backbone.safetensors"))

    with torch.no_grad():
        assert torch.equal(restored.forward_pooled(images), backbone.forward_pooled(images))
    assert dict(restored.settings) == dict(backbone.settings)
