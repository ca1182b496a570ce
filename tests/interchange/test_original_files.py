"""Files as the original programs write them: every tensor has a place, or is listed with a reason."""

import pickletools
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unmask
from unmask.interchange.detect_format import convert
from unmask.interchange.files import read_weights
from unmask.interchange.load_weights import load_backbone_weights
from unmask.runtime.checkpoint import build_backbone

OriginalFile = Callable[..., tuple[Path, dict[str, Tensor]]]

KINDS = {
    "ddmim-v9": "DDMIM v9",
    "ddmim-v9-classifier": "DDMIM v9",
    "flyegle-tiny": "FlyEgle's MAE",
    "flyegle-tiny-classifier": "FlyEgle's MAE",
    "mae-encoder": "MAE, encoder",
    "mae-finetuned": "MAE, fine-tuned",
    "mae-pretrain": "MAE, encoder and decoder",
    "mmpretrain-mae-vit-base": "mmpretrain's ViT",
    "mmpretrain-simmim-swin-base": "mmpretrain's Swin",
    "simmim-swin-finetuned": "SimMIM's Swin, or Microsoft's Swin, fine-tuned",
    "simmim-swin-pretrain": "SimMIM's Swin, pre-trained",
    "simmim-vit-finetuned": "SimMIM's ViT, fine-tuned",
    "simmim-vit-pretrain": "SimMIM's ViT, pre-trained",
}
COMPUTED = {"flyegle-tiny": 2, "flyegle-tiny-classifier": 1}  # tensors that are in no file: positions, of a decoder too


def test_every_list_is_imported(original_lists: dict[str, Any]) -> None:
    assert KINDS.keys() == original_lists.keys()


def content_of(weight: Tensor) -> tuple[int, int]:
    """Names the numbers of a tensor, in whatever order and shape they are."""
    numbers = weight.contiguous().view(torch.int32 if weight.element_size() == 4 else torch.int64)
    return weight.numel(), int(numbers.sum(dtype=torch.int64))


def contents(weights: Mapping[str, Tensor]) -> Counter[tuple[int, int]]:
    return Counter(map(content_of, weights.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_loaded_or_listed(kind: str, original_file: OriginalFile) -> None:
    path, weights = original_file(kind)
    read = read_weights(path)
    conversion = convert(read)
    assert conversion.source_format == KINDS[kind]
    with torch.device("meta"):
        backbone = build_backbone(conversion.settings)
    backbone.to_empty(device="cpu")
    report = load_backbone_weights(backbone, conversion)
    assert not report.resized
    assert not report.unexpected_keys
    placed = contents(backbone.state_dict()) + contents(conversion.heads)
    unplaced = [name for name, weight in weights.items() if not placed[content_of(weight)]]
    names = {name.removeprefix("module."): name for name in weights}
    listed = {names[name] for name in conversion.left_out}
    assert sorted(unplaced) == sorted(listed)
    assert all(reason for reason in conversion.left_out.values())
    assert len(backbone.state_dict()) + len(conversion.heads) + len(listed) == len(weights) + COMPUTED.get(kind, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_pickled_as_the_program_does(
    kind: str, original_file: OriginalFile, original_lists: dict[str, Any]
) -> None:
    """What stand-ins write is what was found in the real file; they are gone when it is read."""
    small = {name: torch.zeros(1) for name in original_lists[kind]["tensors"]}
    path, _ = original_file(kind, weights=small)
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
    found = {
        str(argument).replace(" ", ".") for code, argument, _ in pickletools.genops(pickled) if code.name == "GLOBAL"
    }
    own = re.compile(r"torch\..*|collections\.OrderedDict")
    assert {name for name in found if not own.fullmatch(name)} == set(original_lists[kind]["classes_pickled_inside"])
    assert not {"yacs.config", "models.ddmimv9"} & set(sys.modules)
    read_weights(path)


def test_the_teacher_of_ddmim_is_taken_whole(original_file: OriginalFile) -> None:
    path, weights = original_file("ddmim-v9")
    conversion = convert(read_weights(path), use_ema_weights=True)
    teacher = {name: weight for name, weight in weights.items() if name.startswith("modelEMA.module.")}
    assert contents(conversion.backbone) <= contents(teacher)
    assert conversion.left_out["encoder.norm.weight"].startswith("the trained weights")
    assert "modelEMA.module.norm.weight" not in conversion.left_out
    assert len(conversion.left_out) + len(conversion.heads) + len(conversion.backbone) == len(weights)


def test_a_class_among_the_settings_of_ddmim_is_never_called(original_file: OriginalFile) -> None:
    path, _ = original_file("ddmim-v9-classifier")
    held = read_weights(path).content["hyper_parameters"]["model"]
    assert not issubclass(held, nn.Module)
    assert "models" not in sys.modules
    backbone = unmask.load_backbone(path)
    assert (backbone.image_size, backbone.settings["window_size"]) == ((224, 224), 7)


def test_a_class_of_another_name_is_refused(original_file: OriginalFile) -> None:
    path, _ = original_file("mae-finetuned", beside={"hyper_parameters": {"model": Path}})
    with pytest.raises(ValueError, match=r"contains Python objects besides weights and is refused: pathlib"):
        read_weights(path)


FEW = ["data=synthetic", "data.num_train=4", "data.num_val=2", "data.num_test=2"]  # 224 px are slow to draw
VIT = ["model=vit_tiny", "image_size=64", "model.patch_size=16", "model.depth=4"]
DECODER = ["method.decoder.embed_dim=128", "method.decoder.depth=2", "method.decoder.num_heads=4"]
SWIN = ["model=swin_tiny", "image_size=192", "model.patch_size=4", "model.window_size=6", "model.embed_dim=32"]
BEIT = ["model=beit_base", "image_size=224", "model.patch_size=16", "model.embed_dim=128", "model.depth=4"]
STARTS = {  # kind -> the configured method, tensors of its heads that the file holds
    "mae-pretrain": (["method=mae", *VIT, *DECODER], 32),
    "simmim-swin-pretrain": (["method=simmim", *SWIN, "model.depths=[2,2,4,2]", "model.num_heads=[1,2,4,8]"], 3),
    "simmim-vit-pretrain": (["method=simmim", *BEIT, "model.num_heads=4"], 3),
    "ddmim-v9": (["experiment=ddmim-v9_swinv2-tiny_52b-50e_in1k-224px", "model.depths=[2,2,2,2]"], 8),
}


@pytest.mark.parametrize("kind", STARTS)
def test_a_run_starts_from_the_whole_file(
    kind: str, original_file: OriginalFile, caplog: pytest.LogCaptureFixture
) -> None:
    overrides, num_heads = STARTS[kind]
    path, _ = original_file(kind)
    with caplog.at_level("INFO", logger="unmask"):
        method = unmask.build_method([*overrides, *FEW, f"method.init_from={path}"])
    conversion = convert(read_weights(path))
    weights = method.state_dict()
    assert f"heads: {num_heads} tensors loaded" in caplog.text
    assert len(conversion.heads) == num_heads
    assert all(torch.equal(weights[name], weight) for name, weight in conversion.heads.items())
    assert all(torch.equal(weights[f"backbone.{name}"], weight) for name, weight in conversion.backbone.items())
    assert "missing keys" not in caplog.text
    assert ("teacher: a copy of the student as loaded" in caplog.text) == (kind == "ddmim-v9")
    assert ("the averaged teacher; use_ema_weights=true takes it" in caplog.text) == (kind == "ddmim-v9")
