"""No training step waits for its device, nor what the data module does to a batch there."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # as Python does for a script

METHODS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf/method").glob("*.yaml"))


@pytest.fixture
def build_method(tiny_overrides: Callable[[str], list[str]]) -> Callable[..., Any]:
    def build(method: str, *overrides: str) -> Any:
        from unmask.runtime.builders import build as build_node
        from unmask.runtime.builders import build_module
        from unmask.runtime.config import compose_config

        config = compose_config("run", [*tiny_overrides(method), "data.num_train=16", *overrides])
        return build_module(config.method, build_node(config.data))

    return build


@pytest.mark.parametrize("method", METHODS)
def test_no_training_step_waits_for_its_device(method: str, build_method: Callable[..., Any]) -> None:
    from host_syncs import require_no_host_sync, training_step

    module = build_method(method)
    require_no_host_sync(training_step(module, num_images=6))


@pytest.mark.parametrize(
    "spoiled",
    [
        lambda loss: loss * float(loss),
        lambda loss: loss if loss > 0 else -loss,
        lambda loss: loss * torch.tensor([1.0, 2.0]).to(loss.device).sum(),
        lambda loss: loss * len(loss[None].nonzero()),
        lambda loss: loss * loss.cpu().to(loss.device),
        lambda loss: loss * loss.tolist(),
    ],
)
def test_a_step_that_waits_is_noticed(spoiled: Callable[..., Any], build_method: Callable[..., Any]) -> None:
    from host_syncs import HostSyncError, require_no_host_sync, training_step

    module = build_method("mae")
    step, plain = training_step(module, num_images=4), module.training_step
    module.training_step = lambda *batch: spoiled(plain(*batch))

    with pytest.raises(HostSyncError):
        require_no_host_sync(step)


@pytest.mark.parametrize("mask", ["method.mask_generator.distribution=bernoulli", "method.mask_generator.nested=false"])
def test_other_masks_of_ddmim_do_not_wait_either(mask: str, build_method: Callable[..., Any]) -> None:
    from host_syncs import require_no_host_sync, training_step

    require_no_host_sync(training_step(build_method("ddmim", mask), num_images=6))


def test_a_teacher_follows_without_waiting(build_method: Callable[..., Any]) -> None:
    from host_syncs import require_no_host_sync

    module = build_method("ddmim")
    update = {"num_images": 8, "step_of_epoch": 0}
    module.teacher.update(module.student_networks(), **update)  # the first asks how many there were
    module.to("meta")

    require_no_host_sync(lambda: module.teacher.update(module.student_networks(), **update))


@pytest.mark.parametrize(
    "augmentation", [[], ["augmentation.random_erasing_prob=0.5", "augmentation.rand_augment=null"]]
)
def test_what_is_done_to_a_batch_on_its_device_does_not_wait(augmentation: list[str]) -> None:
    from host_syncs import require_no_host_sync

    from unmask.runtime.builders import build
    from unmask.runtime.config import compose_config

    sizes = ["image_size=32", "data.num_train=16", "data.num_val=4", "data.num_test=4", "global_batch_size=8"]
    data = build(compose_config("run", [*sizes, *augmentation]).data)
    raw = next(iter(data.train_dataloader()))
    on_device = raw._replace(
        **{name: value.to("meta") for name, value in raw._asdict().items() if torch.is_tensor(value)}
    )
    move = data.to_model_input
    move(on_device, augmented=True)  # keeps its constants on the device

    require_no_host_sync(lambda: move(on_device, augmented=True))
