"""Which checkpoint a run continues from, and with which settings it may."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

TINY = ["model=vit_mini", "model.embed_dim=24", "model.depth=2", "trainer.accelerator=cpu", "logger=csv"]
TINY += [
    "method.decoder.embed_dim=24",
    "method.decoder.depth=1",
    "method.decoder.num_heads=3",
    "callbacks.reconstruction=null",
]
TINY += ["data.num_train=16", "data.num_val=4", "data.num_test=4", "global_batch_size=8", "trainer.precision=32-true"]
TINY += ["callbacks.terminal_progress=null", "schedule=constant", "trainer.log_every_n_steps=1"]


def configure(folder: Path, *overrides: str) -> Any:
    from unmask.runtime.config import compose_config

    return compose_config("run", ["method=mae", *TINY, f"paths.run_dir={folder}", "name=x", *overrides])


def run(folder: Path, *overrides: str) -> float | None:
    from unmask.runtime.pretrain import pretrain

    folder.mkdir(parents=True, exist_ok=True)
    return pretrain(configure(folder, *overrides))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of two epochs of a run, which tests continue copies of."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    run(folder, "trainer.max_epochs=2")
    return folder


@pytest.fixture
def copied(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


def point_of(folder: Path, *overrides: str) -> Any:
    from unmask.runtime.resume import find_resume_point

    return find_resume_point(configure(folder, *overrides))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """Changes one bit of the largest record; what lies between records is read by nobody."""
    with zipfile.ZipFile(path) as archive:
        record = archive.read(max(archive.infolist(), key=lambda member: member.file_size))
    content = bytearray(path.read_bytes())
    content[content.index(record) + len(record) // 2] ^= 4
    path.write_bytes(content)


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone.ckpt")


def replace_by_other(path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


@pytest.mark.parametrize("damage", [truncate, empty, flip, dangle, replace_by_other])
def test_a_damaged_newest_file_falls_back_to_the_one_before_with_one_warning(
    damage: Callable[[Path], None], copied: Path, caplog: Any
) -> None:
    assert point_of(copied, "resume=auto").step == 4
    damage(copied / "checkpoints" / "last.ckpt")
    point = point_of(copied, "resume=auto")

    assert (point.path.name, point.step, point.epochs_done) == ("last-previous.ckpt", 2, 1)
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "last.ckpt " in warning
    assert warning.endswith("last-previous.ckpt is used instead")


def test_a_run_without_any_whole_file_is_refused(copied: Path) -> None:
    for path in (copied / "checkpoints").iterdir():
        flip(path)
    with pytest.raises(
        ValueError, match=r"no checkpoint can be continued from: .*last.ckpt is damaged.*best.ckpt is dam"
    ):
        point_of(copied, "resume=auto")


def test_an_older_file_is_found_where_the_last_ones_are_gone(copied: Path) -> None:
    for name in ("last.ckpt", "last-previous.ckpt"):
        (copied / "checkpoints" / name).unlink()
    assert point_of(copied, "resume=must").path.name == "best.ckpt"


def test_what_each_choice_does_with_an_empty_folder_and_a_used_one(copied: Path, tmp_path: Path) -> None:
    file = f"ckpt_path={copied / 'checkpoints' / 'best.ckpt'}"
    fresh = tmp_path / "fresh"
    assert point_of(fresh, "resume=auto") is None
    assert point_of(fresh, "resume=never") is None
    assert point_of(fresh, "resume=auto", file).path.name == "best.ckpt"
    assert point_of(copied, "resume=auto", file).path.name == "last.ckpt"  # its own is newer
    assert point_of(copied, "resume=never", file).path.name == "best.ckpt"
    with pytest.raises(ValueError, match=r"resume=must, but .* holds no checkpoint"):
        point_of(fresh, "resume=must")
    with pytest.raises(ValueError, match="holds the checkpoints of an earlier run, which this one would replace"):
        point_of(copied, "resume=never")
    with pytest.raises(ValueError, match="resume must be auto, never or must, got 'always'"):
        point_of(fresh, "resume=always")


def test_a_file_from_elsewhere_does_not_replace_another_run(copied: Path, begun: Path) -> None:
    with pytest.raises(ValueError, match="holds the checkpoints of an earlier run"):
        point_of(copied, f"ckpt_path={begun / 'checkpoints' / 'last.ckpt'}")


def test_a_finished_run_says_so_and_stays_as_it_is(copied: Path, caplog: Any) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file() and path.name != "run.lock"}
    status = json.loads((copied / "status.json").read_text())
    assert [status[name] for name in ("state", "step", "epoch")] == ["complete", 4, 2]
    caplog.set_level(logging.INFO)
    assert run(copied, "trainer.max_epochs=2", "resume=auto") is None

    assert f"already complete at step 4: {copied}" in caplog.text
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # of the copy
def test_more_epochs_are_the_run_that_was_asked_for_more_at_once(
    copied: Path, tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.runtime import pretrain
    from unmask.runtime.run_record import recall_places

    told: list[dict[str, float]] = []
    monkeypatch.setattr(pretrain, "report_to_sweep", lambda *, metrics: told.append(metrics))
    caplog.set_level(logging.INFO)
    run(tmp_path / "whole", "trainer.max_epochs=3")
    last_loss = run(copied, "trainer.max_epochs=3", "resume=auto")

    assert "resumed from " in caplog.text
    assert "last.ckpt (step 4, 2 epochs done, 32 images seen)" in caplog.text
    assert "changed: trainer.max_epochs 2 in the checkpoint, 3 in this run" in caplog.text
    loads = [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (tmp_path / "whole", copied)
    ]
    assert [content["global_step"] for content in loads] == [6, 6]
    for name, weight in loads[0]["state_dict"].items():
        assert torch.equal(weight, loads[1]["state_dict"][name]), name
    losses = [
        [line.split(",") for line in (folder / "csv" / "metrics.csv").read_text().splitlines()]
        for folder in (tmp_path / "whole", copied)
    ]
    names = [rows[0] for rows in losses]
    wanted = [
        [[row[name.index(key)] for key in ("step", "train/loss", "val/loss")] for row in rows]
        for name, rows in zip(names, losses, strict=True)
    ]
    assert wanted[0] == wanted[1]
    assert last_loss == pytest.approx(float(next(loss for _, _, loss in reversed(wanted[1]) if loss)), rel=1e-4)
    assert recall_places(loads[1]["unmask"]["record"]["run"])["name"] == "x"
    assert told[1]["val/loss"] == last_loss
    assert all("/" in name for name in told[1])  # no name of a progress bar


REFUSED = {
    "base_lr=0.5": "base_lr 0.016 in the checkpoint, 0.5 in this run",
    "optimizer.weight_decay=0.3": "optimizer.weight_decay",
    "betas=[0.9,0.9]": "betas [0.9, 0.95] in the checkpoint, [0.9, 0.9] in this run",
    "seed=7": "seed 0 in the checkpoint, 7 in this run",
    "global_batch_size=4": "global_batch_size 8 in the checkpoint, 4 in this run",
    "method.mask_generator.ratio=0.5": "method.mask_generator.ratio 0.75 in the checkpoint, 0.5 in this run",
    "method.decoder.depth=2": "method.decoder.depth 1 in the checkpoint, 2 in this run",
    "model.depth=3": "depth 2 in the checkpoint, 3 in this run",
    "data.num_train=24": "data.num_train 16 in the checkpoint, 24 in this run",
    "augmentation.hflip_prob=0": "augmentation.hflip_prob",
    "optimizer=sgd": "optimizer._target_",
    "schedule=warmup_cosine": "schedule._target_",
    "+trainer.limit_train_batches=1": "trainer.limit_train_batches None in the checkpoint, 1 in this run",
}
TAKING_EFFECT = {
    "trainer.max_epochs=4": "trainer.max_epochs 2 in the checkpoint, 4 in this run",
    "trainer.gradient_clip_val=1": "trainer.gradient_clip_val None in the checkpoint, 1 in this run",
    "images_per_device=2": "images_per_device None in the checkpoint, 2 in this run",
    "trainer.precision=bf16-mixed": "trainer.precision '32-true' in the checkpoint, 'bf16-mixed' in this run",
    "data.on_bad_image=skip": "data.on_bad_image 'raise' in the checkpoint, 'skip' in this run",
    "data.num_workers=3": "data.num_workers 0 in the checkpoint, 3 in this run",
    "data.worker_timeout=5": "data.worker_timeout 600.0 in the checkpoint, 5 in this run",
    "checkpoint_every_minutes=1": "checkpoint_every_minutes 10 in the checkpoint, 1 in this run",
}
WITHOUT_EFFECT = [
    "logger=none",
    "callbacks.plain_progress.every_n_steps=3",
    "name=another",
    "callbacks.loss_curve=null",
]


@pytest.mark.parametrize("change", REFUSED)
def test_a_setting_that_makes_the_run_what_it_is_is_refused_with_both_values(change: str, begun: Path) -> None:
    with pytest.raises(ValueError, match="was trained with other settings") as refusal:
        verdict(begun, change)
    assert REFUSED[change] in str(refusal.value)
    assert "method.init_from=FILE" in str(refusal.value)


@pytest.mark.parametrize("change", TAKING_EFFECT)
def test_a_setting_that_takes_effect_is_listed(change: str, begun: Path) -> None:
    assert verdict(begun, change) == [TAKING_EFFECT[change]]


@pytest.mark.parametrize("change", WITHOUT_EFFECT)
def test_where_things_are_written_may_change_silently(change: str, begun: Path) -> None:
    assert verdict(begun, change) == []


def verdict(folder: Path, change: str) -> list[str]:
    from unmask.runtime.builders import build_data, resolve_config
    from unmask.runtime.follow_data import follow_training_images
    from unmask.runtime.resume import find_resume_point, require_same_run, settings_of_run

    config = configure(folder, "trainer.max_epochs=2", "resume=auto", change)
    follow_training_images(config, build_data(config))
    point = find_resume_point(config)
    assert point is not None
    return require_same_run(point, settings_of_run(resolve_config(config)))


def test_other_images_under_the_same_name_are_refused(copied: Path) -> None:
    from unmask.runtime.resume import require_same_images

    point = point_of(copied, "resume=auto")
    require_same_images(point, point.fingerprints)
    with pytest.raises(ValueError, match="those of the train split have changed since"):
        require_same_images(point, {**point.fingerprints, "train": "0"})
    assert set(point.fingerprints) == {"train", "val"}


def _rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def test_a_run_is_not_continued_on_other_images_with_another_network_or_settings(copied: Path) -> None:
    path = copied / "checkpoints" / "last.ckpt"
    more = ["trainer.max_epochs=3", "resume=auto"]
    with pytest.raises(ValueError, match="was trained with other settings"):
        run(copied, *more, "seed=7")
    _rewrite(path, lambda content: content["callbacks"]["RunSettings"]["fingerprints"].update(val="0"))
    with pytest.raises(ValueError, match="was trained on other images: those of the val split have changed since"):
        run(copied, *more)
    _rewrite(path, lambda content: content["unmask"]["backbone"].update(norm_eps=0.5))
    with pytest.raises(ValueError, match=r"saved with another model than the configured one: norm_eps 0\.5"):
        run(copied, *more)


@pytest.mark.parametrize("count", [-1, 2**63, True, 4.0, "4", None])
def test_a_number_of_steps_that_is_none_is_refused(count: Any, copied: Path) -> None:
    from unmask.runtime.resume import read_resume_point

    path = copied / "checkpoints" / "last.ckpt"
    _rewrite(path, lambda content: content.update(global_step=count))
    with pytest.raises(ValueError, match=r"it lacks a number of steps or images, and holds .*method\.init_from=FILE"):
        read_resume_point(path)


def test_what_is_set_above_is_named_before_what_lies_within(begun: Path) -> None:
    from unmask.runtime.resume import require_same_run

    point = point_of(begun, "resume=auto")
    changed = dict.fromkeys(["b.c.d", "a.b", "seed", "a.a", "a.a.a", "z"], 1)
    with pytest.raises(ValueError, match=r": seed .*; z .*; a\.a .*; a\.b [^;]*\. Leave them"):
        require_same_run(point._replace(settings={"seed": 0}), changed)


def test_a_run_that_may_still_go_on_is_not_complete(copied: Path) -> None:
    from unmask.runtime.resume import is_complete

    finished, config = point_of(copied, "resume=auto"), configure(copied, "trainer.max_epochs=2")
    assert is_complete(finished, config)
    assert not is_complete(finished, configure(copied, "trainer.max_epochs=3"))
    assert not is_complete(finished, configure(copied, "trainer.max_epochs=null", "trainer.max_steps=9"))
    status = json.loads((copied / "status.json").read_text())
    (copied / "status.json").write_text(json.dumps(status | {"state": "failed"}))
    assert not is_complete(finished, config)


def test_a_trial_of_the_program_replaces_nothing_and_leaves_nothing(copied: Path, tmp_path: Path) -> None:
    trial = "trainer.fast_dev_run=true"
    assert point_of(copied, "resume=never", trial) is None
    run(tmp_path / "trial", trial)
    assert not (tmp_path / "trial" / "backbone.safetensors").exists()
    assert not (tmp_path / "trial" / "checkpoints").exists()


def test_of_older_files_the_newest_is_taken_and_a_partial_one_never(copied: Path) -> None:
    folder = copied / "checkpoints"
    for name in ("last.ckpt", "last-previous.ckpt"):
        (folder / name).unlink()
    for age, name in enumerate(("epoch_0002.ckpt", "epoch_0001.ckpt", ".last.ckpt.part.ckpt")):
        shutil.copy(folder / "best.ckpt", folder / name)
        os.utime(folder / name, (2e9 - age * (-1) ** (age == 2), 2e9 - age if age < 2 else 3e9))
    assert point_of(copied, "resume=auto").path.name == "epoch_0002.ckpt"


def test_a_home_folder_and_a_file_of_the_run_itself_are_understood(
    copied: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(begun.parent))
    point = point_of(copied.parent / "fresh", "resume=must", "ckpt_path='~/run/checkpoints/last.ckpt'")
    assert point.step == 4
    own = copied / "checkpoints" / "best.ckpt"
    monkeypatch.chdir(copied.parent)
    assert point_of(copied, "resume=never", f"ckpt_path={own.relative_to(copied.parent)}").path.name == "best.ckpt"


def test_images_may_have_moved_and_a_setting_may_be_new(begun: Path) -> None:
    from unmask.runtime.resume import require_same_run, settings_of_run

    point = point_of(begun, "resume=auto")
    with pytest.raises(ValueError, match=r"data\.novelty None in the checkpoint, 1 in this run"):
        require_same_run(point, {**point.settings, "data.novelty": 1})
    assert require_same_run(point._replace(settings={}), {"seed": 1}) == []
    before, after = ({"schedule.power": power, "method.schedule.power": power} for power in (1, 2))
    assert require_same_run(point._replace(settings=before), after) == [
        "schedule.power 1 in the checkpoint, 2 in this run"  # not twice
    ]
    data = {"_target_": "unmask.data.sources.folder.ImageFolder", "root": "here", "seed": 1}
    assert settings_of_run({"data": data}) == {"data._target_": data["_target_"], "data.seed": 1}


def test_a_folder_in_use_is_refused_with_the_process_that_uses_it(tmp_path: Path) -> None:
    from unmask.runtime.run_folder import locked

    with locked(tmp_path), pytest.raises(ValueError, match=rf"is in use by a run of process {os.getpid()} on "):
        run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) in (["run.lock"], [])
    with locked(tmp_path):
        pass


def test_what_a_killed_run_left_half_written_is_removed_when_the_next_begins(tmp_path: Path) -> None:
    from unmask.atomic_write import atomic_write
    from unmask.runtime.run_folder import locked

    places = ["status.json", "checkpoints/last.ckpt", "nonfinite/step_00000012.ckpt", "csv/metrics.csv"]
    places += ["panels/epoch_0001.png", "features/epoch_0001.png", "neighbors/epoch_0001.png"]
    for place in places:
        with atomic_write(tmp_path / place) as partial:
            partial.write_bytes(b"whole")
        partial.write_bytes(b"half")  # as a process that is killed leaves it
    own = tmp_path / "mine" / ".notes.partial.txt"
    own.parent.mkdir()
    own.write_text("of the user's")
    with locked(tmp_path):
        left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted([*places, "mine/.notes.partial.txt", "run.lock", "running.json"])


def test_the_lock_of_a_killed_run_is_free_again_although_its_workers_live(tmp_path: Path) -> None:
    from unmask.runtime.run_folder import locked

    for _ in range(3):
        ready, answer = os.pipe()
        holder = os.fork()
        if holder == 0:
            with locked(tmp_path):
                worker = os.fork()
                if worker == 0:
                    os.write(answer, f"{os.getpid()}\n".encode())
                os.read(os.pipe()[0], 1)
        worker = int(os.read(ready, 20))
        os.kill(holder, 9)
        os.waitpid(holder, 0)
        try:
            with locked(tmp_path):
                pass
        finally:
            os.kill(worker, 9)


def test_a_url_is_refused_as_a_url() -> None:
    from unmask.runtime.config import compose_config
    from unmask.runtime.resume import find_resume_point

    config = compose_config("run", ["ckpt_path=http://host/last.ckpt", "name=x", "paths.run_dir=nowhere"])
    with pytest.raises(ValueError, match=r"http://host/last\.ckpt is a URL, and URLs are not fetched"):
        find_resume_point(config)
