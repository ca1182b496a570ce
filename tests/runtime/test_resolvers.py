import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from unmask.backbones.timm_swin import TimmSwin
from unmask.runtime import backbone_shape
from unmask.runtime.config import compose_config
from unmask.runtime.resolvers import (
    auto_precision,
    auto_workers,
    fit_mask_patch,
    fit_normalize_window,
    fit_patch,
    fit_swin_patch,
    fit_window,
    fraction,
    register_resolvers,
    times,
)


def is_accepted(window: int, patch_size: int, image_size: int | Sequence[int], num_stages: int = 4) -> bool:
    settings: dict[str, Any] = {"depths": (1,) * num_stages, "num_heads": (1,) * num_stages, "embed_dim": 4}
    try:
        with torch.device("meta"):
            TimmSwin(
                name="swin_tiny_patch4_window7_224",
                image_size=image_size,
                patch_size=patch_size,
                window_size=window,
                **settings,
            )
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "image_size", [16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 288, 384, [64, 128], [192, 256], [320, 160]]
)
def test_the_window_is_the_nearest_one_a_swin_accepts(image_size: int | list[int]) -> None:
    patch_size = fit_swin_patch(4, image_size)
    window = fit_window(7, patch_size, image_size, 4)
    distance = abs(window - 7)
    assert is_accepted(window, patch_size, image_size)
    for nearer in range(7 - distance + 1, 7 + distance):
        assert not is_accepted(nearer, patch_size, image_size), nearer


@pytest.mark.parametrize("image_size", [24, 32, 48, 64, 96])
def test_three_stages_find_their_own_window(image_size: int) -> None:
    patch_size = fit_swin_patch(4, image_size)
    assert is_accepted(fit_window(4, patch_size, image_size, 3), patch_size, image_size, num_stages=3)


def test_the_usual_window_stays_where_it_fits_and_where_none_does() -> None:
    assert fit_window(7, 4, 224, 4) == 7
    assert fit_window(8, 4, 256, 4) == 8
    assert fit_window(7, 4, 4 * 8 * 17, 4) == 17  # the last grid, which tiles the others
    assert fit_window(7, 4, 100, 4) == 7  # 12 and a half tokens in its second stage


def test_small_images_get_an_eighth_of_their_side_as_patch() -> None:
    assert [fit_patch(16, side) for side in (224, 160, 144, 96, 32, 8, 4)] == [16, 16, 18, 12, 4, 1, 1]
    assert [fit_patch(16, side) for side in (28, 36, 100, 150)] == [4, 4, 10, 15]  # nearest that divides the side
    assert fit_patch(16, (28, 42)) == 2  # 7 is farther from 3.5 than 2
    assert fit_patch(16, 29) == 3  # nothing does: left for the backbone to refuse
    assert fit_patch(14, 224) == 14
    assert fit_patch(16, (64, 224)) == fit_patch(16, (224, 64)) == 8  # by the shorter side
    assert [fit_swin_patch(4, side) for side in (224, 128, 127, 32)] == [4, 4, 2, 2]
    assert fit_swin_patch(1, 32) == 1
    assert fit_swin_patch(4, (256, 64)) == 2


def test_a_share_of_an_unlimited_run_is_nothing() -> None:
    assert fraction(0.05, 800) == pytest.approx(40)
    assert fraction(0.5, None) == fraction(0.5, -1) == fraction(0.5, 0) == 0.0


def test_a_configuration_computes_them_by_name() -> None:
    register_resolvers()
    register_resolvers()
    config = OmegaConf.create(
        {
            "image_size": [64, 128],
            "epochs": None,
            "patch": "${fit_patch:16,${image_size}}",
            "token": "${fit_swin_patch:4,${image_size}}",
            "window": "${fit_window:7,${token},${image_size},4}",
            "warmup": "${fraction:0.1,${epochs}}",
            "lr": "${scale_lr:1.5e-4,256,512}",
        }
    )
    computed = OmegaConf.to_container(config, resolve=True)
    assert computed == {
        "image_size": [64, 128],
        "epochs": None,
        "patch": 8,
        "token": 2,
        "window": 8,
        "warmup": 0.0,
        "lr": pytest.approx(3e-4),
    }


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes torch report another machine."""

    def report(*, cpu: dict[str, bool], has_gpu: bool = False, gpu_bfloat16: bool = False) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: gpu_bfloat16)

    return report


@pytest.mark.parametrize("instructions", ["avx512_bf16", "amx_bf16"])
def test_a_cpu_computes_in_bfloat16_where_it_has_the_instructions(machine: Any, instructions: str) -> None:
    machine(cpu={"avx512_bf16": False, "amx_bf16": False} | {instructions: True})
    assert auto_precision("cpu") == auto_precision("auto") == "bf16-mixed"
    assert auto_precision("mps") == "32-true"
    machine(cpu={instructions: False, "avx512_f": True})
    assert auto_precision("cpu") == auto_precision("auto") == "32-true"


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_a_gpu_decides_for_itself(machine: Any, accelerator: str) -> None:
    machine(cpu={}, has_gpu=True, gpu_bfloat16=True)
    assert auto_precision(accelerator) == "bf16-mixed"
    assert auto_precision("cpu") == "32-true"  # the GPU beside it is not used
    machine(cpu={"amx_bf16": True}, has_gpu=True, gpu_bfloat16=False)
    assert auto_precision(accelerator) == "32-true"
    assert auto_precision("cpu") == "bf16-mixed"


def test_the_real_machine_gets_one_of_two_precisions() -> None:
    assert auto_precision("cpu") in ("bf16-mixed", "32-true")
    assert auto_precision("mps") == "32-true"


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (3, 3), (8, 8), (64, 8)])
def test_workers_are_as_many_as_the_cores_up_to_eight(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert auto_workers() == workers


def test_a_patch_that_is_no_number_is_left_for_the_backbone_to_refuse() -> None:
    assert fit_window(7, [4, 8], 224, 4) == 7
    assert times(4, [4, 8]) == [4, 8]


@pytest.mark.parametrize(
    ("image_size", "patch_size", "unit"),
    [
        (32, 4, 8),
        (64, 4, 16),
        (96, 2, 24),
        (28, 4, 4),  # 7 would cut patches in two
        (36, 2, 6),  # 8 would not tile the side
        (40, 5, 10),
        ([32, 48], 4, 8),
        (160, 4, 32),
        (224, 16, 32),
        ([224, 448], 16, 32),
    ],
)
def test_a_unit_of_masking_is_a_quarter_of_a_small_image_in_whole_patches(image_size, patch_size, unit) -> None:
    assert fit_mask_patch(32, image_size, patch_size) == unit


def test_patches_that_are_no_number_are_left_to_their_owner() -> None:
    assert fit_mask_patch(32, 32, [4, 8]) == 8
    assert fit_mask_patch(32, 224, None) == 32


def test_rules_build_a_backbone_once_for_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = backbone_shape.build
    monkeypatch.setattr(backbone_shape, "build", lambda settings: built.append(settings) or build(settings))
    for depths, ratios in (("[1,1,3]", [0.5, 0.5, 0.0]), ("[1,3]", [0.5, 0.0])):
        config = compose_config(
            "run",
            ["method=ddmim", "model=swinv2_mini", "image_size=32", f"model.depths={depths}", "model.num_heads=null"],
        )
        for _ in range(3):
            assert list(config.method.mask_generator.ratios) == ratios
            assert len(config.method.features.weights) == len(ratios)
    assert [len(settings["depths"]) for settings in built] == [3, 2]


@pytest.mark.parametrize(("image_size", "window"), [(32, 17), ([64, 32], 17), (28, 15), (224, 113), (3, 3), (4, 3)])
def test_targets_are_normalized_by_half_an_image(image_size: Any, window: int) -> None:
    assert fit_normalize_window(image_size) == window
