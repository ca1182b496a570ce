import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unmask.callbacks.provenance import Provenance
from unmask.data.sources.synthetic import CLASS_NAMES
from unmask.runtime.builders import build, build_module, resolve_config
from unmask.runtime.checkpoint import (
    export_weights,
    load_backbone,
    load_method,
    read_checkpoint,
    require_same_backbone,
)
from unmask.runtime.config import compose_config
from unmask.runtime.run_record import describe_run

VIT = ["model=vit_mini", "model.embed_dim=24", "model.depth=2"]
OVERRIDES = {
    "mae": [*VIT, "method.decoder.embed_dim=24", "method.decoder.depth=1", "method.decoder.num_heads=3"],
    "simmim": ["model=swin_mini", "model.embed_dim=12", "model.depths=[1,1,1]", "model.num_heads=[1,2,4]"],
    "hiera": ["model=hiera_mini", "model.embed_dim=8", "model.depths=[1,1,1]", "method.decoder.embed_dim=24"],
    "swin": ["model=swinv2_mini", "model.embed_dim=8", "model.depths=[1,2]", "method.decoder.embed_dim=24"],
    "supervised": VIT,
    "fine-tuned": VIT,
}
DATA = ["data.num_train=8", "data.num_val=2", "data.num_test=2", "global_batch_size=4", "optimizer.lr=0.01"]


def trained(method: str, folder: Path) -> tuple[Any, Path]:
    """A method after two steps, and the checkpoint its trainer wrote."""
    name = {"fine-tuned": "supervised", "hiera": "mae", "swin": "mae"}.get(method, method)
    config = compose_config("run", [f"method={name}", *OVERRIDES[method], *DATA, "schedule=constant"])
    data = build(config.data)
    module = build_module(config.method, data)
    if method == "fine-tuned":
        module.backbone.prepare_for_finetuning(drop_path_rate=0.25)
    names = list(data.class_names)
    plain = {"method": resolve_config(config.method), "data": resolve_config(config.data)}
    record = describe_run(plain, num_classes=len(names), class_names=names)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        limit_val_batches=0,
        callbacks=[Provenance(record)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=data)
    path = folder / f"{method}.ckpt"
    trainer.save_checkpoint(path)
    return module.eval(), path


@pytest.fixture(scope="module", params=list(OVERRIDES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    return trained(request.param, tmp_path_factory.mktemp("run"))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32)


def test_a_method_rebuilt_from_its_checkpoint_computes_the_same(run: tuple[Any, Path], images: Tensor) -> None:
    method, path = run
    torch.manual_seed(1)
    loaded = load_method(path)

    assert type(loaded) is type(method)
    assert not loaded.training
    with torch.no_grad():
        if hasattr(method, "mask_generator"):
            mask = method.mask_generator(images)
            expected, computed = method(images, mask), loaded(images, mask)
            assert torch.equal(computed.loss, expected.loss)
            assert torch.equal(computed.prediction, expected.prediction)
            keys = torch.arange(3)
            assert torch.equal(loaded.held_out_mask(images, keys).masked, method.held_out_mask(images, keys).masked)
        else:
            assert torch.equal(loaded(images), method(images))
            assert loaded.mix.label_smoothing == method.mix.label_smoothing == 0.1
    assert dict(loaded.backbone.settings) == dict(method.backbone.settings)
    assert str(loaded.backbone) == str(method.backbone)  # stochastic depth included


def test_a_backbone_rebuilt_from_a_checkpoint_or_an_export_computes_the_same(
    run: tuple[Any, Path], images: Tensor, tmp_path: Path
) -> None:
    method, path = run
    export = export_weights(method.backbone, tmp_path / "backbone.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["backbone.safetensors"]
    for file in (path, export, str(export)):
        backbone = load_backbone(file)
        assert not backbone.training
        with torch.no_grad():
            assert torch.equal(backbone.forward_pooled(images), method.backbone.forward_pooled(images))


def test_plain_torch_reads_the_file_without_running_code(run: tuple[Any, Path]) -> None:
    method, path = run
    content = torch.load(path, weights_only=True)
    assert content["state_dict"].keys() == method.state_dict().keys()
    record = content["unmask"]["record"]
    assert content["unmask"]["format"] == 1
    assert record["method"]["kind"] == type(method).__name__
    assert "backbone" not in record["method"]
    assert record["num_classes"] == 10
    assert content["unmask"]["backbone"] == dict(method.backbone.settings)


def test_a_checkpoint_tells_its_run(run: tuple[Any, Path]) -> None:
    method, path = run
    saved = read_checkpoint(str(path))
    assert saved.num_classes == 10
    assert saved.class_names == CLASS_NAMES
    assert saved.origin["images_seen"] == 8
    assert saved.origin["steps"] == 2
    assert saved.record["method"]["optimizer"]["lr"] == 0.01
    for name, weight in method.state_dict().items():
        assert torch.equal(saved.state_dict[name], weight), name


def test_a_run_goes_on_only_with_its_own_backbone(run: tuple[Any, Path], make_vit: Callable[..., nn.Module]) -> None:
    method, path = run
    require_same_backbone(method, path)
    method.backbone, own = make_vit(depth=8), method.backbone
    try:
        with pytest.raises(ValueError, match=r"another model than the configured one: .*Resume with the run's own"):
            require_same_backbone(method, path)
    finally:
        method.backbone = own


@pytest.fixture
def backbone(make_vit: Callable[..., nn.Module], randomize: Callable[[nn.Module], nn.Module]) -> Any:
    return randomize(make_vit(depth=2))


def write_checkpoint(path: Path, backbone: Any, **changes: Any) -> Path:
    """A checkpoint, whatever it holds."""
    method = {"kind": "Supervised", "layer_decay": 1.0}
    entry = {
        "format": 1,
        "record": {"method": changes.pop("method", method), "num_classes": 10},
        "backbone": changes.pop("settings", dict(backbone.settings)),
    }
    weights = {f"backbone.{name}": weight for name, weight in backbone.state_dict().items()}
    torch.save({"unmask": entry, "state_dict": changes.pop("weights", weights)}, path)
    return path


def write_export(path: Path, weights: dict[str, Tensor], settings: Any) -> Path:
    save_file(weights, path, metadata={"unmask": json.dumps({"format": 1, "backbone": settings})})
    return path


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_weights_without_a_description_are_refused(
    backbone: Any, tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    save_file(backbone.state_dict(), tmp_path / "weights.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=r"weights\.safetensors has an unknown format"):
        load_backbone(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_an_export_cut_short_is_refused(backbone: Any, tmp_path: Path, share: float) -> None:
    file = export_weights(backbone, tmp_path / "cut.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut\.safetensors cannot be read as safetensors"):
        load_backbone(file)


def test_a_checkpoint_cut_short_is_refused(backbone: Any, tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path / "cut.ckpt", backbone)
    file.write_bytes(file.read_bytes()[:-100])
    for load in (load_backbone, load_method, read_checkpoint):
        with pytest.raises(ValueError, match=r"cut\.ckpt is not a complete checkpoint"):
            load(file)


@pytest.mark.parametrize("damage", ["a weight missing", "a weight too many", "a weight of another shape"])
@pytest.mark.parametrize("kind", ["export", "checkpoint"])
def test_other_weights_than_described_are_refused(backbone: Any, tmp_path: Path, damage: str, kind: str) -> None:
    path = export_weights(backbone, tmp_path / "backbone.safetensors")
    weights = load_file(path)
    if damage == "a weight missing":
        del weights["vit.blocks.1.mlp.fc1.weight"]
    elif damage == "a weight too many":
        weights["vit.blocks.2.mlp.fc1.weight"] = torch.zeros(2)
    else:
        weights["vit.norm.weight"] = torch.zeros(25)
    if kind == "export":
        write_export(path, weights, dict(backbone.settings))
    else:
        named = {f"backbone.{name}": weight for name, weight in weights.items()}
        path = write_checkpoint(tmp_path / "backbone.ckpt", backbone, weights=named)
    said = {
        "a weight missing": r"lacks 1 weights of the backbone \(vit\.blocks\.1\.mlp\.fc1\.weight\)",
        "a weight too many": r"holds 1 weights unknown to this backbone \(vit\.blocks\.2\.mlp\.fc1\.weight\)",
        "a weight of another shape": r"have other sizes .*: vit\.norm\.weight 25 in the file, 24 in the model",
    }
    with pytest.raises(ValueError, match=said[damage]):
        load_backbone(path)


def test_a_head_that_is_missing_is_refused(tmp_path: Path) -> None:
    _, path = trained("supervised", tmp_path)
    content = torch.load(path, weights_only=True)
    del content["state_dict"]["head.linear.bias"]
    torch.save(content, path)
    with pytest.raises(ValueError, match="does not contain the weights its record describes"):
        load_method(path)


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    for content in ({"state_dict": {}}, {"unmask": {}}, [1, 2]):
        torch.save(content, tmp_path / "other.ckpt")
        with pytest.raises(ValueError, match="was not written by this program"):
            read_checkpoint(tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (None, "no format number"),
        (True, "no format number"),
        ("1", "no format number"),
        (2, "has format 2, and this"),
    ],
)
@pytest.mark.parametrize("kind", ["export", "checkpoint"])
def test_another_format_is_told_in_one_sentence(
    backbone: Any, tmp_path: Path, number: Any, said: str, kind: str
) -> None:
    described = {"backbone": dict(backbone.settings), "record": {}} | ({} if number is None else {"format": number})
    file = tmp_path / "other.ckpt"
    if kind == "export":
        file = file.with_suffix(".safetensors")
        save_file(backbone.state_dict(), file, metadata={"unmask": json.dumps(described)})
    else:
        torch.save({"state_dict": {}, "unmask": described}, file)
    with pytest.raises(ValueError, match=said):
        load_backbone(file)


@pytest.mark.parametrize("load", [load_backbone, load_method])
def test_a_path_that_is_no_file_is_refused(load: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; name a file in it"):
        load(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "missing.ckpt")
