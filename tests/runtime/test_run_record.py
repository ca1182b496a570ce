"""What a checkpoint says of its run, what stays on the machine, and that both lead back to the same objects."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import unmask
from unmask.callbacks.restricted_state import restrict_paths
from unmask.runtime.builders import resolve_config
from unmask.runtime.checkpoint import read_checkpoint
from unmask.runtime.config import compose_config, config_directory, list_experiments
from unmask.runtime.kinds import DATA, METHOD, Kinds, from_record, to_record, unlisted
from unmask.runtime.run_record import describe_run, own_data, recall_places, remember_places

FORMAT_1 = Path(__file__).parents[1] / "format_1"
FEATURES = [-0.315987, -1.056461, -0.565846, -0.275627, -1.126302, 0.202846, 0.463136, 2.177449]  # of a ramp
LOSS = 1.7101927995681763  # likewise, under the mask of key 0


def names_a_class(experiment: str) -> bool:
    """Whether it trains and names a class, in place of those of its groups."""
    text = (config_directory() / "experiment" / f"{experiment}.yaml").read_text()
    return "_target_" in text and "override /eval" not in text


METHODS = sorted(file.stem for file in (config_directory() / "method").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def composed(*overrides: str) -> dict[str, Any]:
    return resolve_config(compose_config("run", [*overrides, "name=x", "paths.run_dir=x"]))


def described(plain: dict[str, Any]) -> dict[str, Any]:
    return describe_run(plain, num_classes=2, class_names=["cat", "dog"])


def built_from(node: Any) -> Any:
    """A node without what Hydra reads as the default anyway."""
    if not isinstance(node, dict):
        return node
    return {key: built_from(value) for key, value in node.items() if (key, value) != ("_partial_", False)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_a_method_comes_back_from_its_record_as_it_was_configured(method: str, optimizer: str) -> None:
    node = composed(f"method={method}", f"optimizer={optimizer}", "trainer.max_epochs=7")["method"]
    del node["backbone"], node["init_from"]
    record = json.loads(json.dumps(to_record(node, METHOD)))
    assert "_target_" not in str(record)
    assert "_partial_" not in str(record)
    assert from_record(record, METHOD) == built_from(node)


@pytest.mark.parametrize("name", [name for name in list_experiments() if names_a_class(name)])
def test_an_experiment_that_names_classes_of_its_own_comes_back(name: str) -> None:
    plain = composed(f"experiment={name}", "data.root=photos")
    record = described(plain)
    node = {key: value for key, value in plain["method"].items() if key not in ("backbone", "init_from")}
    assert not list(unlisted(record["method"], "method"))
    assert from_record(record["method"], METHOD) == built_from(node)


def test_the_record_names_no_place_and_the_machine_remembers_them(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    plain = composed("data=folder", "data.root=photos", "data.num_workers=3", "data.cache_dir=here")
    record = described(plain)
    remember_places(record, plain)
    assert "photos" not in json.dumps(record)
    assert record["places"] == ["root"]
    own = own_data(record, {}, "last.ckpt")
    assert own["root"] == str(tmp_path / "photos")  # found from any folder
    assert (own["num_workers"], own["cache_dir"]) == (3, "here")
    assert own["_target_"] == plain["data"]["_target_"]


def test_a_checkpoint_of_another_machine_asks_for_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    record = described(composed("data=csv", "data.train=a/list.csv", "data.path_column=file", "data.delimiter='\t'"))
    assert record["places"] == ["delimiter", "train"]  # a tab is no plain text, and must not be lost in silence
    with pytest.raises(ValueError, match=r"does not say where its images lie.*add data\.delimiter=VALUE"):
        own_data(record, {"train": "list.csv"}, "last.ckpt")
    own = own_data(record, {"train": "list.csv", "delimiter": "\t"}, "last.ckpt")
    assert own["path_column"] == "file"


@pytest.mark.parametrize("run", ["../../etc/passwd", "A" * 32, "0" * 31, "0" * 33, 7, None, {"a": 1}, "0" * 31 + "\n"])
def test_a_name_that_is_none_is_not_looked_up(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("a file was read"))
    assert recall_places(run) == {}


def test_a_class_that_no_file_names_is_told_as_training_starts(caplog: pytest.LogCaptureFixture) -> None:
    plain = composed("optimizer._target_=torch.optim.RMSprop", "~optimizer.betas")
    record = described(plain)
    assert "method.optimizer: torch.optim.RMSprop stands in no configuration file" in caplog.text
    with pytest.raises(ValueError, match=r"names the kind 'torch\.optim\.RMSprop' for optimizer, which no"):
        from_record(record["method"], METHOD)


def test_a_kind_that_would_lead_to_another_class_is_refused() -> None:
    plain = composed()
    plain["method"]["optimizer"]["_target_"] = "elsewhere.AdamW"
    with pytest.raises(ValueError, match=r"optimizer is elsewhere\.AdamW, and a checkpoint would name it AdamW"):
        described(plain)


def test_a_folder_of_configuration_adds_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "method"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text("_target_: mine.Own\npart: {_target_: mine.Part, _partial_: true}\n")
    kinds = Kinds([config_directory(), tmp_path / "mine"])
    assert kinds.find(METHOD, "Own") == ("mine.Own", False)
    assert kinds.find(kinds.below(METHOD, "part"), "Part") == ("mine.Part", True)
    with pytest.raises(ValueError, match=r"names the kind 'Part' for method, which no configuration knows there"):
        kinds.find(METHOD, "Part")
    (folder / "clash.yaml").write_text("_target_: theirs.MAE\n")
    with pytest.raises(ValueError, match=r"could be theirs\.MAE and unmask\.methods\.mae\.MAE"):
        Kinds([config_directory(), tmp_path / "mine"]).find(METHOD, "MAE")


def test_a_setting_its_class_does_not_have_is_refused() -> None:
    record = to_record({**composed()["data"], "streaming": True}, DATA)
    with pytest.raises(ValueError, match=r"gives data \(Synthetic\) the setting 'streaming', which it does not have"):
        from_record(record, DATA)


def test_a_state_names_checkpoints_of_its_own_run_alone(tmp_path: Path) -> None:
    own = tmp_path / "run" / "checkpoints"
    own.mkdir(parents=True)
    (tmp_path / "victim.ckpt").touch()
    (own / "link.ckpt").symlink_to(tmp_path / "victim.ckpt")
    (own / "folder.ckpt").mkdir()
    inside = str(own / "best.ckpt")
    foreign = [str(tmp_path / "victim.ckpt"), f"{own}/../../victim.ckpt", f"{own}/link.ckpt", f"{own}/folder.ckpt"]
    foreign += ["s3://bucket/x.ckpt", str(tmp_path / "run" / "backbone.safetensors"), str(tmp_path), "", "a\0.ckpt"]
    state = {
        "monitor": "val/loss",
        "dirpath": str(own),
        "best_model_path": inside,
        "best_k_models": {inside: torch.tensor(1.0)} | {path: torch.tensor(2.0) for path in foreign[:4]},
        "kth_value": torch.tensor(1.0),
    }
    assert restrict_paths(state, tmp_path / "run") == state | {"best_k_models": {inside: torch.tensor(1.0)}}
    for path in [*foreign, ["x"], 7]:
        changed = {"kth_best_model_path": path, "last_model_path": path, "dirpath": str(tmp_path)}
        assert set(restrict_paths(changed, tmp_path / "run").values()) == {""}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_resuming_removes_nothing_that_the_file_names(tmp_path: Path) -> None:
    """Lightning removes the worst of the best checkpoints once a better one comes; the file says which that is."""
    from lightning import LightningModule, Trainer  # noqa: PLC0415
    from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: PLC0415

    from unmask.callbacks.restricted_state import RestrictedState  # noqa: PLC0415

    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").touch()
    folder = tmp_path / "run" / "checkpoints"
    saving = ModelCheckpoint(dirpath=folder, monitor="val/loss", save_top_k=1)
    hostile = f"{folder}/../../victim"
    of_another_run = str(victim / "last.ckpt")
    named = dict.fromkeys((hostile, of_another_run), torch.tensor(9.0))
    state = saving.state_dict() | {"best_k_models": named, "kth_best_model_path": of_another_run}
    state |= {"best_model_path": hostile, "last_model_path": hostile}
    checkpoint = {"callbacks": {saving.state_key: state}, "pytorch-lightning_version": "2.6.6"}
    trainer = Trainer(default_root_dir=tmp_path / "run", callbacks=[RestrictedState(), saving], logger=False)
    trainer.strategy.connect(LightningModule())
    trainer._checkpoint_connector._loaded_checkpoint = checkpoint
    trainer._checkpoint_connector.restore_callbacks()
    assert (victim / "file").exists()
    assert saving.best_k_models == {}
    assert saving.kth_best_model_path == saving.last_model_path == saving.best_model_path == ""


def test_files_of_format_1_open_and_compute_what_they_did() -> None:
    """They were written when the format was fixed; every later version opens them. They are never written again."""
    assert sum(file.stat().st_size for file in FORMAT_1.iterdir()) < 100_000
    ramp = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    expected = torch.tensor(FEATURES)
    for name in ("last.ckpt", "backbone.safetensors"):
        with torch.no_grad():
            features = unmask.load_backbone(FORMAT_1 / name).forward_pooled(ramp)[0]
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    method = unmask.load_method(FORMAT_1 / "last.ckpt")
    with torch.no_grad():
        loss = method(ramp, method.mask_generator(ramp, torch.arange(1))).loss
    assert float(loss) == pytest.approx(LOSS, rel=1e-4)
    saved = read_checkpoint(FORMAT_1 / "last.ckpt")
    assert saved.num_classes == 10
    assert saved.record["training"]["global_batch_size"] == 4
    assert own_data(saved.record, {}, "last.ckpt")["num_train"] == 4
