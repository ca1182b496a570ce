"""Operations counted by torch against formulas, for every method on every family of backbones it can train."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # as Python does for a script

LARGEST_GAP = 1e-3  # of the count
DAILY = [
    *("method=mae model=vit_mini", "method=mae model=hiera_mini", "method=mae model=swinv2_mini"),
    *("method=simmim model=beit_mini", "method=simmim model=swin_mini"),
    *("method=ddmim model=swinv2_mini", "method=ddmim_sparse model=swinv2_mini", "method=supervised model=hiera_mini"),
]
NIGHTLY = [
    *("method=simmim model=vit_mini", "method=simmim model=swinv2_mini", "method=ddmim model=vit_mini"),
    *("method=ddmim model=beit_mini", "method=ddmim model=swin_mini", "method=supervised model=vit_mini"),
    *("method=supervised model=beit_mini", "method=supervised model=swin_mini", "method=supervised model=swinv2_mini"),
    *("method=mae model=vit_base image_size=224", "method=mae model=hiera_base image_size=224"),
    *("method=mae model=swin_tiny image_size=224", "method=ddmim_sparse model=swin_tiny image_size=224"),
    "method=simmim model=swin_base image_size=192 model.window_size=6",
]


@pytest.fixture
def build_method() -> Callable[..., Any]:
    """Builds a method without storage."""

    def build(*overrides: str) -> Any:
        from unmask.runtime.builders import build as build_node
        from unmask.runtime.config import compose_config

        config = compose_config("run", [*overrides, "callbacks=none"]).method
        with torch.device("meta"):
            built = build_node(config)
            return built(num_classes=10) if config.get("_partial_") else built

    return build


@pytest.fixture
def make_mae(make_vit: Callable[..., Any]) -> Callable[..., Any]:
    """MAE on a small ViT, with a decoder of one block."""

    def make(*, ratio: float = 0.75, **sizes: Any) -> Any:
        from unmask.heads.mae_decoder import MAEDecoder
        from unmask.masking.random import RandomMaskGenerator
        from unmask.methods.mae import MAE

        return MAE(
            backbone=make_vit(**sizes),
            mask_generator=RandomMaskGenerator(ratio=ratio, patch_size=8),
            decoder=functools.partial(MAEDecoder, embed_dim=24, depth=1, num_heads=3),
            optimizer=functools.partial(torch.optim.AdamW, lr=1e-3),
            schedule=lambda *_, **__: None,
            seed=0,
        )

    return make


def gap(method: Any) -> float:
    """The difference of formula and count, of the count."""
    from flop_formulas import step_flops

    from unmask.callbacks.model_flops import count_flops

    counted = count_flops(method)
    assert counted
    return abs(sum(step_flops(method, num_images=2).values()) / 2 - counted) / counted


@pytest.mark.parametrize("overrides", [*DAILY, *(pytest.param(case, marks=pytest.mark.nightly) for case in NIGHTLY)])
def test_the_count_is_that_of_the_formula(overrides: str, build_method: Callable[..., Any]) -> None:
    assert gap(build_method("image_size=64", *overrides.split())) < LARGEST_GAP


def test_blocks_grow_with_depth_and_attention_with_pairs_of_tokens(make_mae: Callable[..., Any]) -> None:
    from flop_formulas import step_flops

    def flops(**sizes: Any) -> Any:
        return step_flops(make_mae(**sizes), num_images=4)

    shallow, deep, large = flops(depth=4), flops(depth=8), flops(depth=4, image_size=64)
    assert deep["blocks"] == 2 * shallow["blocks"]
    assert deep["attention"] == 2 * shallow["attention"]
    assert deep["embedding"] == shallow["embedding"]
    visible, more = 4 + 1, 16 + 1  # of 16 and 64 patches at ratio 0.75, and the class token
    assert large["blocks"] == pytest.approx(shallow["blocks"] * more / visible)
    assert large["attention"] == pytest.approx(shallow["attention"] * (more / visible) ** 2)


def test_the_encoder_follows_the_visible_fraction_and_the_batch_all(make_mae: Callable[..., Any]) -> None:
    from flop_formulas import step_flops

    def flops(ratio: float, num_images: int = 4) -> Any:
        return step_flops(make_mae(ratio=ratio), num_images=num_images)

    few, many = flops(0.75), flops(0.25)
    assert many["embedding"] == 3 * few["embedding"]
    assert many["blocks"] == pytest.approx(few["blocks"] * (12 + 1) / (4 + 1))
    embedded, predicted = 2 * 24 * 24, 2 * 24 * (2 * 96 + 192)  # in front of the decoder; the last MLP and the pixels
    assert few["decoder"] - many["decoder"] == 3 * 4 * (12 - 4) * (predicted - embedded)
    assert sum(flops(0.75, 8).values()) == 2 * sum(few.values())
