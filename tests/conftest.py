"""Tiny networks and images.

`unmask` is imported inside the fixtures: this file is read before the run-time shape checks are switched on.
"""

import functools
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what runs remember out of the user's own cache, in processes that tests start too."""
    fonts = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "matplotlib"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR", str(fonts)))  # slow to make anew
        environment.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _logging_as_found() -> Iterator[None]:
    """Undoes the set-up of logging by a command run in this process: its files are gone with the test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _hydra_as_found() -> Iterator[None]:
    """Forgets the job of a command run in this process, which later ones would take for theirs."""
    yield
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.fixture
def make_swin() -> Callable[..., nn.Module]:
    """Swin of 64 px: token grids of 16, 8 and 4; windows of 4, shifted in the first stage, global in the last."""

    def make(**changes: Any) -> nn.Module:
        from unmask.backbones.timm_swin import TimmSwin  # noqa: PLC0415

        settings: dict[str, Any] = {
            "name": "swin_tiny_patch4_window7_224",
            "image_size": 64,
            "window_size": 4,
            "embed_dim": 24,
            "depths": (2, 1, 1),
            "num_heads": (3, 3, 3),
        }
        return TimmSwin(**settings | changes)

    return make


@pytest.fixture
def make_vit() -> Callable[..., nn.Module]:
    """ViT of 32 px: 4 x 4 patches of 8 px, four blocks."""

    def make(**changes: Any) -> nn.Module:
        from unmask.backbones.timm_vit import TimmViT  # noqa: PLC0415

        settings: dict[str, Any] = {
            "name": "vit_tiny_patch16_224",
            "image_size": 32,
            "patch_size": 8,
            "embed_dim": 24,
            "depth": 4,
            "num_heads": 3,
        }
        return TimmViT(**settings | changes)

    return make


@pytest.fixture
def make_beit() -> Callable[..., nn.Module]:
    """BEiT of 32 px: 4 x 4 patches of 8 px, four blocks."""

    def make(**changes: Any) -> nn.Module:
        from unmask.backbones.timm_beit import TimmBeit  # noqa: PLC0415

        settings: dict[str, Any] = {
            "name": "beit_base_patch16_224",
            "image_size": 32,
            "patch_size": 8,
            "embed_dim": 24,
            "depth": 4,
            "num_heads": 3,
        }
        return TimmBeit(**settings | changes)

    return make


@pytest.fixture(scope="session")
def tiny_overrides() -> Callable[[str], list[str]]:
    """Shrinks a method and the model it brings, whatever they are, to what trains in moments: `["method=mae", ...]`.

    What there is to shrink is read off the composed configuration, so a new method needs no entry anywhere.
    """

    @functools.cache
    def overrides_of(method: str) -> tuple[str, ...]:
        from unmask.runtime.builders import build  # noqa: PLC0415
        from unmask.runtime.config import compose_config  # noqa: PLC0415

        config = compose_config("run", [f"method={method}"])
        with torch.device("meta"):
            num_stages = len(build(config.model).stages)
        found = [f"method={method}"]
        for path, node in ("model", config.model), *_nodes_within("method", config.method):
            found += [f"{path}.{key}={value}" for key, value in _tiny_sizes(node, num_stages).items()]
        return tuple(found)

    return lambda method: list(overrides_of(method))


def _tiny_sizes(node: Any, num_stages: int) -> dict[str, Any]:
    is_staged = "depths" in node
    heads = [2**stage for stage in range(num_stages)] if is_staged else node.get("num_heads") or 3
    width = math.lcm(4, heads if isinstance(heads, int) else 1)
    sizes = {
        "embed_dim": width * math.ceil(24 / width),
        "num_heads": heads,
        "depths": [1] * num_stages,
        "depth": num_stages if "image_size" in node else 1,  # of a backbone, of a decoder
        "hidden_features": 16,
        "out_features": 8,
    }
    return {key: str(value).replace(" ", "") for key, value in sizes.items() if key in node}


def _nodes_within(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    """The nodes of a method that are built, without the backbone, which is the model's."""
    from omegaconf import DictConfig  # noqa: PLC0415

    for key in node:
        inner = node._get_node(key)
        if isinstance(inner, DictConfig) and not inner._is_none() and not inner._is_interpolation():
            yield f"{path}.{key}", inner
            yield from _nodes_within(f"{path}.{key}", inner)


@pytest.fixture
def randomise() -> Callable[[nn.Module], nn.Module]:
    """Makes every trainable number count: fresh networks have zero biases, unit norms and tiny weights."""

    @torch.no_grad()
    def fill(module: nn.Module) -> nn.Module:
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        return module.eval()

    return fill


@pytest.fixture
def refill_masked() -> Callable[[Tensor, Any], Tensor]:
    """Writes other pixels under a mask and leaves the visible ones alone."""

    def refill(images: Tensor, mask: Any) -> Tensor:
        return torch.where(mask.at_pixels(), 5.0 * torch.randn_like(images), images)

    return refill
