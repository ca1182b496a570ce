import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask.interchange.exporters.base import Comparison, ExportSource, compare_outputs
from unmask.interchange.exporters.folder import write_export
from unmask.interchange.exporters.huggingface import HuggingFaceExporter
from unmask.interchange.exporters.location import ExportLocation
from unmask.interchange.exporters.swin_simmim import SwinSimMIMExporter
from unmask.interchange.exporters.timm import TimmExporter
from unmask.interchange.exporters.vitmae import ViTMAEExporter


@pytest.fixture
def source(make_vit, make_source) -> ExportSource:
    return make_source(make_vit(depth=1))


def test_an_empty_folder_is_filled_and_its_parents_are_made(source: ExportSource, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for directory in (tmp_path / "empty", tmp_path / "new" / "deeper" / "export"):
        exported = write_export(TimmExporter(), source, directory)
        assert exported.paths == [directory / "README.md", directory / "model.safetensors"]
        assert [path.name for path in directory.parent.iterdir() if path.name.startswith(".")] == []
    modes = {stat.S_IMODE(path.stat().st_mode) for path in exported.paths}
    assert len(modes) == 1  # safetensors alone would keep others from reading its file


def test_what_a_user_made_is_never_overwritten(source: ExportSource, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(ValueError, match=r"mine holds files already, and nothing is overwritten"):
        write_export(TimmExporter(), source, tmp_path / "mine")
    with pytest.raises(ValueError, match=r"notes\.txt is a file; name a folder"):
        write_export(TimmExporter(), source, tmp_path / "mine" / "notes.txt")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]
    assert (tmp_path / "mine" / "notes.txt").read_text() == "kept"


@pytest.mark.parametrize("error", [ValueError("no"), OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(
    source: ExportSource, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> list[Comparison]:
        raise error

    monkeypatch.setattr(TimmExporter, "compare", fail)
    (tmp_path / "empty").mkdir()
    for directory in (tmp_path / "a" / "b" / "export", tmp_path / "empty"):
        with pytest.raises(type(error)):
            write_export(TimmExporter(), source, directory)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


MAE = ["method=mae", "model=vit_mini", "model.embed_dim=24", "model.depth=1", "method.decoder.embed_dim=16"]
MAE += ["method.decoder.depth=1", "method.decoder.num_heads=2"]
SIMMIM = ["method=simmim", "model=swin_mini", "model.embed_dim=12", "model.depths=[1,1]", "model.num_heads=[1,2]"]


class _ALittleWrong:
    """Writes as another exporter does, then changes one weight."""

    def __init__(self, exporter: Any, weight: str) -> None:
        self.exporter = exporter
        self.weight = weight

    def __getattr__(self, name: str) -> Any:
        return getattr(self.exporter, name)

    def write(self, source: ExportSource, folder: Path) -> None:
        self.exporter.write(source, folder)
        weights = load_file(folder / "model.safetensors")
        weights[self.weight] += 1e-2 * torch.randn_like(weights[self.weight])
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("exporter", "overrides"),
    [
        (_ALittleWrong(HuggingFaceExporter(), "blocks.0.mlp.fc2.bias"), MAE),
        (_ALittleWrong(TimmExporter(), "pos_embed"), MAE),
        (_ALittleWrong(ViTMAEExporter(), "decoder.decoder_pred.bias"), MAE),
        (_ALittleWrong(SwinSimMIMExporter(), "swin.embeddings.mask_token"), SIMMIM),
    ],
    ids=["huggingface", "timm", "vitmae", "swin_simmim"],
)
def test_files_that_compute_something_else_are_not_kept(
    exporter: Any, overrides: list[str], make_method, make_source, tmp_path: Path
) -> None:
    method = make_method(*overrides)
    source = make_source(method.backbone, classifier=None, method=method)
    with pytest.raises(ValueError, match=r"do not compute what the network does: .* differ by .* nothing was kept"):
        write_export(exporter, source, tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_differences_are_judged_by_the_size_of_what_is_compared() -> None:
    expected = torch.tensor([0.5, -200.0])
    assert compare_outputs(expected + 1.5e-3, expected, what="x").is_close  # 1e-5 of 200
    assert not compare_outputs(expected + 2.5e-3, expected, what="x").is_close
    small = torch.tensor([1e-3])
    assert compare_outputs(small + 9e-6, small, what="x").is_close  # 1e-5 of 1
    assert not compare_outputs(small + 2e-5, small, what="x").is_close
    assert not compare_outputs(torch.tensor([torch.nan]), small, what="x").is_close
    assert not compare_outputs(small.expand(2), small, what="x").is_close


def test_the_card_names_the_place_it_will_be_read_at(source: ExportSource, tmp_path: Path) -> None:
    write_export(HuggingFaceExporter(), source, tmp_path / "here")
    card = (tmp_path / "here" / "README.md").read_text()
    assert 'timm.create_model("local-dir:here", pretrained=True)' in card
    assert str(tmp_path) not in card
    write_export(HuggingFaceExporter(), source, tmp_path / "sent", location=ExportLocation("ada/mae", is_on_hub=True))
    card = (tmp_path / "sent" / "README.md").read_text()
    assert 'timm.create_model("hf-hub:ada/mae", pretrained=True)' in card
    assert 'AutoImageProcessor.from_pretrained("ada/mae")' in card
    assert "\n# mae\n" in card
    write_export(TimmExporter(), source, tmp_path / "weights", location=ExportLocation("ada/mae", is_on_hub=True))
    assert 'hf_hub_download("ada/mae", "model.safetensors")' in (tmp_path / "weights" / "README.md").read_text()
