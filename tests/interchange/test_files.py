import argparse
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from unmask.interchange.files import read_weights

WEIGHTS = {"blocks.0.weight": torch.arange(3.0)}


class Settings(dict):
    """As yacs' node: a dict with attributes of its own."""

    def __init__(self, *pairs: Any) -> None:
        super().__init__(*pairs)
        self.__dict__["__immutable__"] = True


@pytest.mark.parametrize("name", ["yacs.config.CfgNode", "pytorch_lightning.utilities.parsing.AttributeDict"])
def test_settings_of_absent_programs_are_read_as_plain_mappings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    module, _, class_name = name.rpartition(".")
    node = type(class_name, (Settings,), {"__module__": module})
    content = {"model": WEIGHTS, "config": node({"DATA": node({"IMG_SIZE": 192})}), "epoch": 3}
    with monkeypatch.context() as while_saving:
        for length in range(1, module.count(".") + 2):
            package = ".".join(module.split(".")[:length])
            while_saving.setitem(sys.modules, package, types.ModuleType(package))
        setattr(sys.modules[module], class_name, node)
        torch.save(content, tmp_path / "ckpt.pth")
    file = read_weights(tmp_path / "ckpt.pth")
    assert torch.equal(file.weights["blocks.0.weight"], WEIGHTS["blocks.0.weight"])
    assert file.content["config"]["DATA"]["IMG_SIZE"] == 192


def test_what_training_programs_leave_beside_weights_is_not_built(tmp_path: Path) -> None:
    beside = {
        "args": argparse.Namespace(lr=0.1, output=Path("runs")),
        "loss": np.float64(0.3),
        "history": np.arange(3),
        "hyper_parameters": OmegaConf.create({"method": {"name": "mae"}, "sizes": [1, 2]}),
    }
    torch.save({"model": WEIGHTS, **beside}, tmp_path / "ckpt.pth")
    file = read_weights(tmp_path / "ckpt.pth")
    assert list(file.weights) == ["blocks.0.weight"]
    assert not isinstance(file.content["history"], np.ndarray)


class Intruder:
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (Path("intruded"),)


@pytest.mark.parametrize("where", ["beside", "inside"])
def test_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"model": WEIGHTS, "config": Intruder()} if where == "beside" else {"model": {"a": Intruder()}}
    torch.save(content, "evil.pth")
    with pytest.raises(
        ValueError, match=r"evil\.pth contains Python objects besides weights and is refused: getattr would"
    ):
        read_weights("evil.pth")
    assert not Path("intruded").exists()


@pytest.mark.parametrize("holder", ["model", "state_dict", "module", None])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_weights_are_found_under_the_usual_keys_and_wrappers(tmp_path: Path, holder: str | None, wrapper: str) -> None:
    weights = {f"{wrapper}{name}": weight for name, weight in WEIGHTS.items()}
    torch.save(weights if holder is None else {"epoch": 3, holder: weights}, tmp_path / "w.pth")
    assert list(read_weights(tmp_path / "w.pth").weights) == ["blocks.0.weight"]


def test_the_format_before_torch_1_6_is_read(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert list(read_weights(tmp_path / "old.pth").weights) == ["blocks.0.weight"]


def test_safetensors_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "weights.bin", metadata={"format": "pt"})
    file = read_weights(tmp_path / "weights.bin")
    assert (list(file.weights), file.metadata["format"]) == (["blocks.0.weight"], "pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"just a text, of some length", r"is not a complete checkpoint \(it is a file of another kind\)"),
        (b"", r"is not a complete checkpoint"),
        (pickle.dumps({"model": 1}), "a file of another kind"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "notes.pth").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path / "notes.pth")


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_file_cut_short_is_refused(tmp_path: Path, is_old: bool, share: float) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"model": {"weight": torch.zeros(500)}}, path, _use_new_zipfile_serialization=not is_old)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    said = "cannot be read, it may be damaged" if is_old else "its final index is missing: the file is truncated"
    with pytest.raises(ValueError, match=said) as refusal:
        read_weights(path)
    assert "\n" not in str(refusal.value)


def test_folders_without_weights_and_broken_descriptions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"is a folder; name a file in it, .* holds model.safetensors or pytorch_model"
    ):
        read_weights(tmp_path)
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not valid JSON"):
        read_weights(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere.pth does not exist"):
        read_weights(tmp_path / "nowhere.pth")
