"""Tiny networks and images.

`unmask` is imported inside the fixtures: this file is read before the run-time shape checks are switched on.
"""

import argparse
import functools
import gzip
import json
import logging
import math
import os
import re
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
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
    levels = {name: logger.level for name, logger in _own_loggers()}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, logger in _own_loggers():
        logger.setLevel(levels.get(name, logging.NOTSET))


def _own_loggers() -> list[tuple[str, logging.Logger]]:
    named = logging.root.manager.loggerDict.items()
    return [(name, item) for name, item in named if name.startswith("unmask") and isinstance(item, logging.Logger)]


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


@pytest.fixture
def make_hiera() -> Callable[..., nn.Module]:
    """Hiera of 32 px: grids of 16 and 8 tokens, the last not pooled; 4 x 4 mask units of 8 px, of 4 patches each."""

    def make(**changes: Any) -> nn.Module:
        from unmask.backbones.timm_hiera import TimmHiera  # noqa: PLC0415

        settings: dict[str, Any] = {
            "name": "hiera_tiny_224",
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": (1, 1, 2),
            "num_heads": 2,
        }
        return TimmHiera(**settings | changes)

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
def wandb_records() -> Callable[[Path], Iterator[Any]]:
    """Reads the file a run of W&B keeps on this machine."""
    return _wandb_records


def _wandb_records(path: Path) -> Iterator[Any]:
    """Reads what W&B keeps of a run: protobuf records in blocks of LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record  # noqa: PLC0415  (slow, and wanted nightly alone)

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        room = 32768 - place % 32768
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        if room < 7 or kind == 0:
            place += room
            continue
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


@pytest.fixture
def randomize() -> Callable[[nn.Module], nn.Module]:
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


_LISTS = json.loads(gzip.decompress((Path(__file__).parent / "checkpoint_names.json.gz").read_bytes()))
"""What files hold that other programs' own classes have written: names, shapes, containers, pickled classes."""


@pytest.fixture(scope="session")
def original_lists() -> dict[str, Any]:
    """`checkpoint_names.json.gz`: kind of file -> its list."""
    return _LISTS


@pytest.fixture
def original_file(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, Tensor]]]:
    """Writes a file as a list describes it, with random numbers; returns it and its weights.

    Of networks of more than 20 million numbers the first two blocks (of each stage) are written: the others are named
    alike. `weights` replaces tensors by others, `beside` adds to what lies next to the weights.
    """

    def write(kind: str, *, weights: Any = None, beside: Any = None) -> tuple[Path, dict[str, Tensor]]:
        listed = _LISTS[kind]
        shapes = _first_blocks(listed["tensors"])
        tensors = {name: _number(name, shape, dtype, kind) for name, (shape, dtype) in shapes.items()}
        tensors |= weights or {}
        with pytest.MonkeyPatch.context() as stand_ins:
            content = {key: _container(key, kind, listed, stand_ins) for key in listed["top_level"]}
            under = OrderedDict if listed["top_level"][listed["weights_under"]] == "OrderedDict" else dict
            content |= {listed["weights_under"]: under(tensors)} | (beside or {})
            torch.save(content, tmp_path / f"{kind}.pth")
        return tmp_path / f"{kind}.pth", tensors

    return write


def _first_blocks(shapes: dict[str, Any]) -> dict[str, Any]:
    if sum(math.prod(shape) for shape, _ in shapes.values()) < 20_000_000:
        return shapes
    block = re.compile(r"(?:blocks|layers)\.(?!\d+\.(?:blocks|downsample)\.)(\d+)\.(?!weight|bias)")
    numbers = {name: [int(number) for number in block.findall(name)] for name in shapes}
    return {name: listed for name, listed in shapes.items() if max(numbers[name], default=0) < 2}


def _number(name: str, shape: list[int], dtype: str, kind: str) -> Tensor:
    from unmask.positions import sincos_positions  # noqa: PLC0415

    if dtype == "int64":
        return torch.randint(0, 100, shape)
    if name.endswith("pos_embed") and kind.startswith(("mae", "mmpretrain")) and kind != "mae-finetuned":
        side = math.isqrt(shape[1] - 1)  # fixed in pre-training
        return sincos_positions(shape[2], (side, side))
    numbers = torch.empty(shape).uniform_(-0.2, 0.2)
    return numbers.abs_() if name.endswith("running_var") else numbers


def _container(key: str, kind: str, listed: Any, stand_ins: pytest.MonkeyPatch) -> Any:
    """What lies beside the weights, of the classes that the program has pickled there."""
    type_name = listed["top_level"][key]
    if type_name == "Namespace":
        return argparse.Namespace(model="mae_vit_base_patch16", blr=1.5e-4, norm_pix_loss=True)
    if type_name == "CfgNode":
        node = _stand_in("yacs.config", "CfgNode", dict, stand_ins)
        inner, outer = node(IMG_SIZE=192), node(BASE=[""])
        for each in (inner, outer):  # as yacs keeps its books
            vars(each).update(__immutable__=True, __deprecated_keys__=set(), __renamed_keys__={}, __new_allowed__=False)
        outer["DATA"] = inner
        return outer
    if key == "hyper_parameters" and listed["classes_pickled_inside"]:
        return {"model": _stand_in("models.ddmimv9", "DDMIMV9", nn.Module, stand_ins), "learning_rate": 5e-3}
    if key == "optimizer":
        return {"state": {0: {"step": 1, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    plain: dict[str, Any] = {"int": 3, "float": 81.5, "str": "1.5.8", "dict": {"values": [1.0]}, "list": [{"lr": 0.1}]}
    return plain.get(type_name)


def _stand_in(module_name: str, class_name: str, base: type, stand_ins: pytest.MonkeyPatch) -> Any:
    """A class that is pickled under the name of another program's."""
    made = type(class_name, (base,), {"__module__": module_name})
    module = ModuleType(module_name)
    setattr(module, class_name, made)
    stand_ins.setitem(sys.modules, module_name.partition(".")[0], ModuleType(module_name.partition(".")[0]))
    stand_ins.setitem(sys.modules, module_name, module)
    return made
