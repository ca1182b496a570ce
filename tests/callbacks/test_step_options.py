"""Options of the step change how it is computed, not what, nor what a checkpoint holds."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


@pytest.fixture
def trained(
    make_mae: Callable[..., LightningModule],
    make_vit: Callable[..., torch.nn.Module],
    fit: Callable[..., Trainer],
    training_losses: Callable[[LightningModule], list[float]],
) -> Callable[..., tuple[list[float], dict[str, Any]]]:
    """Trains with these options and returns the losses and the weights."""

    def run(**options: Any) -> tuple[list[float], dict[str, Any]]:
        from unmask.callbacks.step_options import StepOptions
        from unmask.callbacks.step_seeding import StepSeeding

        torch.manual_seed(0)
        method = make_mae(backbone=make_vit(drop_path_rate=options.pop("drop_path_rate", 0.3)))
        losses = training_losses(method)
        fit(StepSeeding(seed=0), StepOptions(**options), method=method, max_epochs=1)
        return losses, method.state_dict()

    return run


def test_blocks_that_are_computed_again_give_the_same_weights_bit_by_bit(trained: Callable[..., Any]) -> None:
    losses, weights = trained()
    losses_again, weights_again = trained(activation_checkpointing=True)

    assert losses_again == losses
    assert list(weights_again) == list(weights)
    assert all(torch.equal(weights_again[name], weight) for name, weight in weights.items())


def test_of_a_block_that_is_computed_again_the_input_alone_is_kept(make_vit: Callable[..., Any]) -> None:
    from unmask.callbacks.step_options import compute_again

    def kept_bytes(vit: Any) -> int:
        kept = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            vit.forward_pooled(torch.zeros(8, 3, 32, 32)).sum()
        return sum(kept.values()) - sum(weight.nbytes for weight in vit.parameters())

    plain = make_vit()
    again = make_vit()
    for block in again.blocks:
        compute_again(block)
    assert kept_bytes(again) < 0.3 * kept_bytes(plain)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch's own, while it compiles
def test_compiled_blocks_learn_the_same_and_keep_their_names(trained: Callable[..., Any]) -> None:
    counters = torch._dynamo.utils.counters
    losses, weights = trained(drop_path_rate=0.0)
    counters.clear()
    losses_compiled, weights_compiled = trained(drop_path_rate=0.0, compile=True, backend="aot_eager")

    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]
    assert losses_compiled == pytest.approx(losses, rel=1e-5)
    assert list(weights_compiled) == list(weights)


def test_after_training_the_blocks_are_as_they_were(
    make_mae: Callable[..., LightningModule], make_trainer: Callable[..., Trainer]
) -> None:
    from unmask.callbacks.step_options import StepOptions

    method, options = make_mae(), StepOptions(compile=True, activation_checkpointing=True)
    before = [vars(block).keys() for block in method.blocks]
    trainer = make_trainer(options)
    options.setup(trainer, method, "fit")
    assert all(block._compiled_call_impl is not None and "forward" in vars(block) for block in method.blocks)
    options.teardown(trainer, method, "fit")
    assert [vars(block).keys() for block in method.blocks] == before
    assert all(block._compiled_call_impl is None for block in method.blocks)
    assert len(method.blocks) == 4 + 1  # the encoder's and the decoder's


def test_convolutions_lie_channels_last(
    make_mae: Callable[..., LightningModule], make_trainer: Callable[..., Trainer]
) -> None:
    from unmask.callbacks.step_options import StepOptions

    method = make_mae()
    StepOptions(channels_last=True).setup(make_trainer(), method, "fit")
    assert method.backbone.vit.patch_embed.proj.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_backbone_without_blocks_is_refused(make_trainer: Callable[..., Trainer]) -> None:
    from unmask.callbacks.step_options import StepOptions

    class NoBlocks(LightningModule):
        blocks = ()

    with pytest.raises(ValueError, match=r"trainer\.compile=true applies to transformer blocks"):
        StepOptions(compile=True).setup(make_trainer(), NoBlocks(), "fit")


def test_what_is_neither_true_nor_false_is_refused() -> None:
    from unmask.runtime.builders import build_trainer
    from unmask.runtime.config import compose_config

    config = compose_config("run", ["name=x", "paths.run_dir=x", "callbacks=none", "trainer.compile=inductor"])
    with pytest.raises(ValueError, match=r"trainer\.compile must be true or false, got 'inductor'"):
        build_trainer(config)


@pytest.mark.parametrize("option", ["compile", "activation_checkpointing", "channels_last"])
def test_a_key_of_the_trainer_reaches_the_callback(option: str) -> None:
    from unmask.callbacks.step_options import StepOptions
    from unmask.runtime.builders import build_trainer
    from unmask.runtime.config import compose_config

    quiet = ["name=x", "paths.run_dir=x", "callbacks=none", "logger=none"]
    trainer = build_trainer(compose_config("run", [*quiet, f"trainer.{option}=true"]))
    plain = build_trainer(compose_config("run", quiet))

    (found,) = [callback for callback in trainer.callbacks if isinstance(callback, StepOptions)]
    assert getattr(found, option)
    assert not any(isinstance(callback, StepOptions) for callback in plain.callbacks)


def test_operations_are_counted_of_what_is_encoded_alone(
    make_mae: Callable[..., LightningModule], make_simmim: Callable[[], LightningModule]
) -> None:
    from unmask.callbacks.model_flops import count_flops
    from unmask.masking.random import RandomMaskGenerator

    def expected(visible: int) -> int:
        """Of the tiny MAE: 16 patches of 192 numbers, width 24, four blocks and one of the decoder."""

        def blocks(tokens: int, count: int) -> int:
            return count * (2 * tokens * 12 * 24**2 + 4 * tokens**2 * 24)

        embedding, masked = 2 * visible * 192 * 24, 16 - visible
        decoder = 2 * 17 * 4 * 24**2 + 4 * 17**2 * 24 + 2 * masked * 8 * 24**2  # its MLP is of the masked patches alone
        forward = blocks(visible + 1, 4) + 2 * (visible + 1) * 24**2 + decoder + 2 * masked * 24 * 192
        return 3 * forward + 2 * embedding  # no gradient of the images

    for ratio, visible in ((0.75, 4), (0.25, 12)):
        method = make_mae(mask_generator=RandomMaskGenerator(ratio=ratio, patch_size=8))
        state = torch.get_rng_state()
        assert count_flops(method) == expected(visible)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(parameter.grad is None for parameter in method.parameters())
    assert count_flops(make_simmim())


def test_a_method_that_looks_at_values_is_not_counted(make_mae: Callable[..., LightningModule]) -> None:
    from unmask.callbacks.model_flops import count_flops
    from unmask.masking.bernoulli import BernoulliMaskGenerator

    method = make_mae()
    method.mask_generator = BernoulliMaskGenerator(ratio=0.5, patch_size=8)  # MAE counts its visible patches
    assert count_flops(method) is None


def test_utilization_is_that_of_all_devices(
    fit: Callable[..., Trainer], pass_time: Callable[..., Any], make_mae: Callable[..., LightningModule]
) -> None:
    from unmask.callbacks.model_flops import count_flops
    from unmask.callbacks.throughput import Throughput

    metrics = fit(pass_time(batch=0.5), Throughput(peak_tflops=2.0), max_epochs=1).callback_metrics
    tflops = 8 * count_flops(make_mae()) * 1e-12  # 4 images in 0.5 s
    assert float(metrics["system/model_tflops"]) == pytest.approx(tflops)
    assert float(metrics["system/mfu"]) == pytest.approx(tflops / 2.0)
    with pytest.raises(ValueError, match="peak_tflops must be above 0"):
        Throughput(peak_tflops=0)
