"""What a run is made of: what it builds, what it may continue from, what its loggers are told."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
import torch
from lightning import Trainer
from torch import nn

TINY = ["model=vit_mini", "model.embed_dim=24", "model.depth=1", "trainer.accelerator=cpu", "name=x", "logger=none"]
TINY += ["trainer.precision=32-true", "data.num_train=16", "data.num_val=4", "data.num_test=4", "global_batch_size=8"]
MAE = ("method=mae", "method.decoder={embed_dim: 24, depth: 1, num_heads: 3}")


class AllBuilt(Exception):  # noqa: N818  (no mistake)
    """Ends a run before its trainer is built."""


class Built(NamedTuple):
    method: Any
    callbacks: list[Any]
    initialized: list[dict[str, Any]]  # with what settings


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Built]:
    """Runs the command as far as its trainer."""
    from unmask.runtime import pretrain
    from unmask.runtime.config import compose_config

    def built(*overrides: str, method: Sequence[str] = MAE) -> Built:
        methods: list[Any] = []
        found: list[Any] = []
        settings: list[dict[str, Any]] = []

        def stop(config: Any, *, callbacks: list[Any]) -> None:
            found.extend(callbacks)
            raise AllBuilt

        def initialize(method: Any, **given: Any) -> None:
            methods.append(method)
            settings.append(given)

        monkeypatch.setattr(pretrain, "build_trainer", stop)
        for described in ("learning_rate", "limit", "waiting"):
            monkeypatch.setattr(pretrain, f"describe_{described}", lambda *_, described=described: described)
        monkeypatch.setattr(pretrain, "initialize", initialize)
        with pytest.raises(AllBuilt):
            pretrain.pretrain(compose_config("run", [*method, *TINY, f"paths.run_dir={tmp_path}", *overrides]))
        return Built(methods[0], found, settings)

    return built


def test_new_weights_and_masks_follow_the_seed(build: Callable[..., Built], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first, again, other = (build(f"seed={seed}") for seed in (3, 3, 4))
    weights = [built.method.state_dict()["backbone.vit.blocks.0.mlp.fc1.weight"] for built in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert [built.method.seed for built in (first, other)] == [3, 4]
    (card,) = [callback for callback in other.callbacks if type(callback).__name__ == "SettingsCard"]
    assert (card.seed, card.learning_rate, card.limits_batch, card.waiting) == (4, "learning_rate", "limit", "waiting")
    assert "Seed set to" not in caplog.text


def test_the_network_sees_images_by_the_statistics_that_were_measured(
    build: Callable[..., Built], tmp_path: Path
) -> None:
    given = build("data.statistics=given")
    measured = build("data.statistics=auto", f"data.cache_dir={tmp_path / 'cache'}")
    assert tuple(measured.method.backbone.pixel_mean) != tuple(given.method.backbone.pixel_mean)


def test_a_file_to_start_from_is_read_as_the_user_says(build: Callable[..., Built]) -> None:
    (given,) = build("method.init_from=a.pth", "allow_partial=true", "use_ema_weights=true").initialized
    assert given == {"class_names": (), "allow_partial": True, "use_ema_weights": True}
    (given,) = build("method.init_from=a.pth", method=["method=supervised"]).initialized
    assert len(given["class_names"]) == 10


def test_what_a_checkpoint_names_is_restricted_before_other_callbacks_read_it(build: Callable[..., Built]) -> None:
    names = [type(callback).__name__ for callback in build().callbacks]
    assert names.index("RestrictedState") < names.index("ModelCheckpoint") < names.index("LastCheckpoint")


@pytest.mark.parametrize("method", ["mae", "supervised"])
def test_labels_are_needed_where_they_are_learned_alone(
    method: str, build: Callable[..., Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.data.datamodule import ImageDataModule

    whole = ImageDataModule.dataset

    def without_labels(data: Any, split: str) -> Any:
        dataset = whole(data, split)
        return Mock(wraps=dataset, is_labeled=split == "train", fingerprint=dataset.fingerprint)

    monkeypatch.setattr(ImageDataModule, "dataset", without_labels)
    chosen = MAE if method == "mae" else ["method=supervised"]
    if method == "mae":
        build(method=chosen)
        return
    with pytest.raises(ValueError, match="one for every image, but the val split lacks some"):
        build(method=chosen)


class Lost(Exception):  # noqa: N818  (of another process)
    """The connection to another process."""


@pytest.mark.parametrize("is_lost", [True, False])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_that_lost_a_process_says_where_and_why(
    rank: int, is_lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.callbacks.run_status import read_status
    from unmask.callbacks.stopping import MachineFailed
    from unmask.data.datamodule import ImageDataModule
    from unmask.methods.backbone_module import BackboneModule
    from unmask.runtime import pretrain

    failed = MachineFailed("process 1 of this run was killed") if is_lost else None
    monkeypatch.setattr(pretrain, "lost_process", lambda trainer, error: failed)
    trainer = Mock(spec=Trainer, is_global_zero=rank == 0, global_step=7, current_epoch=3)
    trainer.fit.side_effect = Lost("connection closed")
    method, data = Mock(spec=BackboneModule), Mock(spec=ImageDataModule)
    with pytest.raises(MachineFailed if is_lost else Lost):
        pretrain._fit(trainer, method, data, tmp_path, resumed=tmp_path / "last.ckpt")

    given = {"datamodule": data, "ckpt_path": str(tmp_path / "last.ckpt"), "weights_only": True}
    trainer.fit.assert_called_once_with(method, **given)
    status = read_status(tmp_path)
    if rank == 0 and is_lost:
        assert status is not None
        told = [status[name] for name in ("state", "step", "epoch", "reason")]
        assert told == ["failed", 7, 3, "process 1 of this run was killed"]
    else:
        assert status is None


@pytest.mark.parametrize("rank", [0, 1])
def test_weights_and_biases_keeps_the_best_of_what_improves(rank: int, make_vit: Callable[..., nn.Module]) -> None:
    from lightning.pytorch.loggers import WandbLogger

    from unmask.methods.backbone_module import BackboneModule
    from unmask.runtime.config import compose_config
    from unmask.runtime.pretrain import _log_settings

    class Plain(BackboneModule):
        """A backbone."""

    method = Plain(backbone=make_vit(depth=1), optimizer=Mock(), schedule=Mock())
    loggers = [Mock(spec=WandbLogger, experiment=Mock()), Mock()]
    config = compose_config("run", [*MAE, *TINY, "paths.run_dir=x"])
    _log_settings(Mock(spec=Trainer, loggers=loggers, is_global_zero=rank == 0), config, method, {})
    kept = {call.args[0]: call.kwargs["summary"] for call in loggers[0].experiment.define_metric.mock_calls}
    best = {"val/loss": "min", "val/top1": "max", "probe/*": "max"}
    assert kept == ({**best, "system/images_per_s": "mean", "system/mfu": "mean"} if rank == 0 else {})
    assert not loggers[1].experiment.mock_calls


@pytest.mark.parametrize(("is_labeled", "choice"), [(True, "eval=knn"), (False, "eval=reconstruct image=PHOTO")])
def test_the_end_of_a_run_says_what_to_do_next(
    is_labeled: bool,
    choice: str,
    *,
    make_vit: Callable[..., nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from unmask.methods.backbone_module import BackboneModule
    from unmask.runtime.pretrain import _export

    class Plain(BackboneModule):
        """A backbone."""

    caplog.set_level("INFO")
    monkeypatch.setattr("sys.argv", ["../unmask/run.py"])
    monkeypatch.setattr("sys.orig_argv", [".venv/bin/python", "../unmask/run.py"])
    _export(Plain(backbone=make_vit(depth=1), optimizer=Mock(), schedule=Mock()), tmp_path, is_labeled=is_labeled)
    assert (
        f"next: .venv/bin/python ../unmask/eval.py {choice} ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}"
        in caplog.text
    )


def test_loggers_are_told_settings_images_and_sizes(make_vit: Callable[..., nn.Module]) -> None:
    from unmask.methods.backbone_module import BackboneModule
    from unmask.runtime.config import compose_config
    from unmask.runtime.pretrain import _log_settings

    class Frozen(BackboneModule):
        """A backbone whose first weight is not trained."""

    backbone = make_vit(depth=1)
    backbone.vit.cls_token.requires_grad_(False)
    method = Frozen(backbone=backbone, optimizer=Mock(), schedule=Mock())
    logger = Mock()
    config = compose_config("run", [*MAE, *TINY, "paths.run_dir=x", "seed=5"])
    _log_settings(Mock(spec=Trainer, loggers=[logger]), config, method, {"train": "a", "val": "b"})

    (told,), _ = logger.log_hyperparams.call_args
    count = sum(parameter.numel() for parameter in backbone.parameters())
    facts = told["facts"]
    assert (facts["backbone_parameters"], facts["trainable_parameters"]) == (count, count - 24 - _fixed(backbone))
    assert facts["images"] == {"train": "a", "val": "b"}
    assert told["seed"] == 5


def _fixed(backbone: nn.Module) -> int:
    """Numbers that are never trained: positions that are computed."""
    fixed = [parameter for name, parameter in backbone.named_parameters() if name == "vit.pos_embed"]
    return sum(parameter.numel() for parameter in fixed if not parameter.requires_grad)
