"""What a user's mistakes lead to: one sentence, exit code 2, nothing left behind."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

TINY = ["model.embed_dim=24", "model.depth=2", "data.num_train=16", "data.num_val=4", "data.num_test=4"]
DECODER = ["method.decoder.embed_dim=24", "method.decoder.depth=1", "method.decoder.num_heads=3"]
QUICK = [*TINY, *DECODER, "global_batch_size=8", "trainer.accelerator=cpu", "trainer.max_epochs=1", "logger=none"]


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNMASK_TRACEBACK", raising=False)


def refusal(
    script: str,
    overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    *,
    noise: bool = False,
) -> str:
    """What a command says that refuses; `noise`: of a library before it."""
    from unmask.runtime import cli

    output = "directory=out" if script == "export" else "hydra.run.dir=out"
    monkeypatch.setattr("sys.argv", [f"{script}.py", *overrides, output])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stopped:
        {"run": cli.run, "eval": cli.evaluate, "export": cli.export}[script]()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert noise or said.startswith("error: ")
    assert noise or len(said.splitlines()) == 2
    assert not Path("out").exists()
    return said


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["method=simmin"], "method=simmin does not exist; nearest: simmim"),
        (["experiment=mae_vit-base_4096b-80e_in1k-224px"], "nearest: mae_vit-base_4096b-800e_in1k-224px, "),
        (["experiment=mae_finetune_vit-base_1024b-100e_in1k-224px"], "is for the other command; use python eval.py"),
        (["method=mae", "model=vit_tiny", "schedule.milestones=[1]"], "unknown key 'schedule.milestones'"),
        (["method=mae", "trainer.max_epoch=3"], "nearest: trainer.max_epochs"),
        (["method=mae", "trainer.gpus=3"], "trainer.devices"),
        (["method=mae", "datamodule.batch_size=3"], "write global_batch_size=3"),
        (["method=mae", "optimizer.learning_rate=3"], "write optimizer.lr=3, which is the peak as it is; base_lr=3 is"),
        (["method=mae", "lr=3"], "write optimizer.lr=3, "),
        (["method=mae", "output_dir=there"], "unknown key 'output_dir'; write hydra.run.dir=there"),
        (["modle=vit_mini", "data=synthetic"], "unknown key 'modle'; write model=vit_mini"),
        (["method=mae", "trainer.max_epochs=ten"], "the number of epochs must be a number, got 'ten'"),
        (["method=mae", "datamodule.num_train=3"], "write data.num_train=3"),
        (["method=mae", "image_size=ten"], "image_size must be a number of pixels or [height,width], got 'ten'"),
        (["method=mae", "global_batch_size=ten"], "global_batch_size must be a whole number from 1"),
        (["method=mae", "+trainer.foo=3", "global_batch_size=8", *TINY, *DECODER], "Trainer takes no argument 'foo'"),
        (["metod=mae", "data=synthetic"], "unknown key 'metod'; write method=mae"),
        (["data=cifar10"], "data.root must be given"),
        (["data=cifar10", "data.root=nowhere"], "no CIFAR-10 at data.root=nowhere"),
        (["data=folder", "data.root=nowhere"], "nowhere"),
        (["data=filelist", "data.train=nowhere.txt"], "data.train=nowhere.txt is not a file"),
        (["data=kaggle"], "data.root, what was downloaded, or data.slug=OWNER/NAME"),
        (
            ["method=ddmim", "model=swin_mini", "method.mask_generator.ratios=[0.5,0,0,0]"],
            "ratios=[0.5, 0, 0, 0] has 4 numbers",
        ),
        (["method=ddmim", "method.mask_generator.ratios=[0.5,0.4,0.5,0]"], "nested masks are one mask"),
        (["method=mae", "model=beit_mini"], "which a ViT, Hiera, Swin or Swin V2 can do; use model=vit_tiny"),
        (
            ["method=mae", "model=swin_mini", "method.mask_generator.ratio=0.6"],
            "one visible patch of each 2x2 is a mask ratio of 0.75, not 0.6",
        ),
        (
            ["method=mae", "model=swin_mini", "method.mask_generator.cell=null"],
            "set method.mask_generator.patch_size=4 method.mask_generator.cell=2",
        ),
        (
            ["method=simmim", "model=hiera_mini"],
            "a TimmHiera also reads their pixels through the tokens around them; use method=mae",
        ),
        (
            ["method=ddmim", "model=hiera_mini"],
            "a TimmHiera also reads their pixels through the tokens around them; use method=mae",
        ),
        (["method=mae", "model=hiera_mini", "image_size=36"], "not whole mask units of 8 px"),
        (
            ["method=mae", "model=hiera_mini", "method.mask_generator.patch_size=4"],
            "set method.mask_generator.patch_size=8",
        ),
        (["method=mae", "method.mask_generator.ratio=1.5"], "mask ratio must lie between 0 and 1"),
        (["method=simmim", "method.mask_generator.patch_size=5"], "not whole 5 px patches"),
        (["method=simmim", "model=swin_mini", "model.window_size=5"], "use image_size"),
        (["method=mae", "global_batch_size=64", *TINY, *DECODER], "set global_batch_size=8 or less"),
        (["method=mae", "trainer.accumulate_grad_batches=3", "global_batch_size=8", *TINY, *DECODER], "use 6"),
        (["method=mae", "schedule.warmup_epochs=5", *QUICK], "schedule.warmup_epochs=5 takes 10 steps"),
        (["method=mae", "ckpt_path=nowhere.ckpt", *QUICK], "nowhere.ckpt does not exist"),
        (["data=synthetic", "data.channels=4"], "Synthetic has RGB images; leave data.channels at 3, got 4"),
        (
            ["data=folder", "data.root=.", "data.channels=4"],
            "3 number(s) for data.channels=4; give one a channel, or set",
        ),
        (["data=folder", "data.root=.", "data.channels=17"], "data.channels must lie in 1..16, got 17"),
        (["data=folder", "data.root=.", "data.background=snow-white"], "data.background=snow-white is no color"),
    ],
)
def test_a_mistake_before_training_is_one_sentence(
    overrides: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert sentence in refusal("run", overrides, monkeypatch, capsys)


def test_a_run_without_a_login_says_how_to_log_in_or_stay_offline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(Path.cwd() / "home"))  # without a .netrc
    overrides = ["method=mae", *[setting for setting in QUICK if not setting.startswith("logger")], "logger=wandb"]

    said = refusal("run", overrides, monkeypatch, capsys, noise=True)
    assert "error: logger=wandb: No API key configured" in said
    assert "or set WANDB_MODE=offline" in said


def test_a_run_of_ddmim_shows_its_pictures_in_tensorboard(
    tiny_overrides: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from unmask.runtime import cli

    small = ["data.num_train=16", "data.num_val=4", "data.num_test=4", "global_batch_size=8", "trainer.max_epochs=1"]
    overrides = [*tiny_overrides("ddmim"), *small, "trainer=cpu", "logger=tensorboard", "hydra.run.dir=out"]
    monkeypatch.setattr("sys.argv", ["run.py", *overrides, "image_size=64", "trainer.log_every_n_steps=1"])
    GlobalHydra.instance().clear()
    cli.run()

    shown = EventAccumulator("out/tensorboard").Reload().Tags()
    assert shown["images"] == ["panels/reconstruction"]
    assert "val/reconstruction" in shown["scalars"]  # the term of the loss
    assert "train/lr" in shown["scalars"]
    assert not set(shown["images"]) & set(shown["scalars"])
    logging.shutdown()  # closes run.log


def test_a_folder_that_held_something_is_never_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.runtime import cli

    Path("mine").mkdir()
    Path("mine/notes.log").write_text("kept")
    monkeypatch.setattr("sys.argv", ["run.py", "data=folder", "data.root=nowhere", "hydra.run.dir=mine"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit):
        cli.run()

    assert Path("mine/notes.log").read_text() == "kept"


@pytest.mark.parametrize("command", ["run", "eval"])
def test_a_refused_run_leaves_no_folder_that_it_has_made(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.runtime import cli

    words = {"run": ["data=folder", "data.root=nowhere"], "eval": ["ckpt_path=nowhere"]}[command]
    Path("kept").mkdir()
    for place in ([], ["hydra.run.dir=a/b/c"], ["hydra.run.dir=kept"], ["paths.output_root=kept"]):
        monkeypatch.setattr("sys.argv", [f"{command}.py", *words, "trainer=cpu", *place])
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit) as left:
            {"run": cli.run, "eval": cli.evaluate}[command]()
        assert left.value.code == 2
        assert [str(path) for path in Path().rglob("*")] == ["kept"], place


def test_a_refused_run_leaves_what_others_have_put_into_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.runtime import cli
    from unmask.runtime.run_folder import locked

    def note_and_refuse(_: object) -> None:
        Path("mine/notes.txt").write_text("kept")
        raise ValueError("refused")

    monkeypatch.setattr(cli, "_pretrain", note_and_refuse)
    monkeypatch.setattr("sys.argv", ["run.py", "method=mae", "model=vit_mini", "hydra.run.dir=mine"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit):
        cli.run()
    assert Path("mine/notes.txt").read_text() == "kept"

    def refuse_while_another_begins(_: object) -> None:
        held.enter_context(locked(Path("theirs")))
        raise ValueError("refused")

    monkeypatch.setattr(cli, "_pretrain", refuse_while_another_begins)
    monkeypatch.setattr("sys.argv", ["run.py", "method=mae", "model=vit_mini", "hydra.run.dir=theirs"])
    GlobalHydra.instance().clear()
    with ExitStack() as held:
        with pytest.raises(SystemExit):
            cli.run()
        assert {path.name for path in Path("theirs").iterdir()} == {".hydra", "run.lock", "running.json"}


@pytest.mark.parametrize("folder", ["hydra.run.dir=mine", "resume=auto"])
def test_a_run_that_is_refused_leaves_the_settings_of_the_one_before(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unmask.runtime import cli

    run_dir = Path("mine") if folder.startswith("hydra") else Path("runs/mae_vit_mini_synthetic/auto")
    kept = {run_dir / ".hydra" / f"{name}.yaml": f"{name}: before" for name in ("config", "hydra", "overrides")}
    for path, text in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints/last.ckpt").write_bytes(b"no checkpoint")
    monkeypatch.setattr("sys.argv", ["run.py", "method=mae", "model=vit_mini", "data=synthetic", "trainer=cpu", folder])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as left:
        cli.run()

    assert left.value.code == 2
    assert "last.ckpt" in capsys.readouterr().err or folder.startswith("hydra")
    assert {path: path.read_text() for path in kept} == kept
    logging.shutdown()  # closes run.log


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir", "paths.output_root"])
def test_no_folder_is_called_as_a_shell_calls_a_home(
    key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unmask.runtime import cli

    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setattr("sys.argv", ["run.py", f"{key}='~/runs/a'"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as left:
        cli.run()
    assert left.value.code == 2
    assert f"write {key}=/home/someone/runs/a" in capsys.readouterr().err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (
            "checkpoints/last.ckpt",
            "error: mine holds a training run, whose settings and readings this evaluation would",
        ),
        ("run.log", "error: mine holds a training run, whose settings and readings this evaluation would replace"),
        ("report.json", "error: mine holds the report of an evaluation, which this evaluation would replace"),
        (
            "checkpoints/checkpoint_seed_1/last.ckpt",
            "error: mine holds an evaluation that did not come to its end, which cannot be continued, and this one "
            "would replace its checkpoints/checkpoint_seed_1/last.ckpt; make it again in another folder: "
            "python eval.py eval=knn ckpt_path=last.ckpt data.num_workers=0 hydra.run.dir=mine-2",
        ),
        (
            "csv/metrics.csv",
            "error: mine holds an evaluation that did not come to its end, which cannot be continued, and this one "
            "would replace its csv/metrics.csv; make it again",
        ),
    ],
)
def test_an_evaluation_does_not_write_over_what_another_command_left(
    result: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from unmask.runtime import cli

    kept = {f"mine/{name}": name for name in (result, "csv/metrics.csv", ".hydra/config.yaml")}
    for path, text in kept.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    words = ["eval=knn", "hydra.run.dir=mine", "ckpt_path=last.ckpt", "data.num_workers=0"]
    monkeypatch.setattr("sys.argv", ["eval.py", *words])
    monkeypatch.setattr("sys.orig_argv", ["python", "eval.py"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stopped:
        cli.evaluate()

    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(sentence)
    assert {path: Path(path).read_text() for path in kept} == kept
    assert not Path("mine/eval.log").exists()


@pytest.mark.parametrize("command", ["run", "eval"])
def test_a_folder_that_another_process_uses_is_refused_and_left_as_it_is(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unmask.runtime import cli
    from unmask.runtime.run_folder import locked

    Path("mine/.hydra").mkdir(parents=True)
    Path("mine/.hydra/config.yaml").write_text("of the other")
    words = {"run": ["method=mae", "model=vit_mini", "data=synthetic"], "eval": ["eval=knn", "ckpt_path=last.ckpt"]}
    monkeypatch.setattr("sys.argv", [f"{command}.py", *words[command], "trainer=cpu", "hydra.run.dir=mine"])
    GlobalHydra.instance().clear()
    with locked(Path("mine")):
        held = sorted(Path("mine").iterdir())
        with pytest.raises(SystemExit) as stopped:
            {"run": cli.run, "eval": cli.evaluate}[command]()
        assert sorted(Path("mine").iterdir()) == held

    assert stopped.value.code == 2
    assert f"mine is in use by a run of process {os.getpid()} on " in capsys.readouterr().err
    assert Path("mine/.hydra/config.yaml").read_text() == "of the other"


def test_an_evaluation_begun_beside_another_does_not_replace_its_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other was under way when this one looked at the folder, and has ended before this one could begin."""
    from unmask.runtime import cli, run_folder

    monkeypatch.setattr(run_folder, "require_unmeasured", lambda folder, command: Path(folder).mkdir())
    monkeypatch.setattr(run_folder, "remove_partial", lambda folder: Path("mine/report.json").write_text("kept"))
    monkeypatch.setattr("sys.argv", ["eval.py", "eval=knn", "ckpt_path=last.ckpt", "hydra.run.dir=mine"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit):
        cli.evaluate()

    assert "mine holds the report of an evaluation, which this evaluation" in capsys.readouterr().err
    assert Path("mine/report.json").read_text() == "kept"


def test_an_evaluation_killed_before_it_trained_anything_is_made_again_in_its_folder() -> None:
    from unmask.runtime.run_folder import require_unmeasured

    for name in (".hydra/config.yaml", "eval.log", "checkpoints/checkpoint/.last.1.partial.ckpt"):
        Path("mine", name).parent.mkdir(parents=True, exist_ok=True)
        Path("mine", name).touch()
    require_unmeasured(Path("mine"), command=[])


def test_the_other_processes_of_an_evaluation_take_the_folder_that_the_first_has_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    from unmask.runtime.run_folder import require_unmeasured

    Path("mine/csv").mkdir(parents=True)
    Path("mine/csv/metrics.csv").touch()
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    require_unmeasured(Path("mine"), command=[])


def test_a_place_that_cannot_be_written_to_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from unmask.runtime import cli

    Path("mine/.hydra").mkdir(parents=True)
    Path("file").write_text("kept")
    for argument, reason in (("out=mine", "mine: Is a directory"), ("out=file/page.html", "file: File exists")):
        monkeypatch.setattr("sys.argv", ["report", "mine", argument])
        with pytest.raises(SystemExit) as stopped:
            cli.report()
        assert stopped.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: {reason}; name another file or folder")
    assert Path("file").read_text() == "kept"


def test_an_empty_folder_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    Path("photos").mkdir()

    assert "photos" in refusal("run", ["data=folder", "data.root=photos"], monkeypatch, capsys)


def test_a_damaged_photo_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    Path("photos").mkdir()
    for number in range(8):
        Image.new("RGB", (40, 40)).save(f"photos/{number}.png")
    Path("photos/4.png").write_bytes(b"<html>not found</html>")
    overrides = ["method=mae", *[entry for entry in QUICK if not entry.startswith("data.")], "data=folder"]
    overrides += ["data.root=photos", "image_size=32", "global_batch_size=2", "data.num_workers=0"]
    overrides += ["data.val_fraction=0.2", "data.test_fraction=0.2"]

    assert "photos/4.png" in refusal("run", overrides, monkeypatch, capsys)


@pytest.fixture
def photos() -> list[str]:
    """Twelve photos, one of them cut short, and what to say to train on them."""
    Path("photos").mkdir()
    for number in range(12):
        pixels = torch.randint(256, (40, 40, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(f"photos/{number:02d}.png")
    Path("photos/04.png").write_bytes(Path("photos/04.png").read_bytes()[:1000])
    overrides = ["method=mae", *[entry for entry in QUICK if not entry.startswith("data.")], "data=folder"]
    overrides += ["data.root=photos", "image_size=32", "global_batch_size=2", "data.num_workers=0"]
    return [*overrides, "data.val_fraction=0.1", "data.test_fraction=0.1"]


def test_a_photo_that_a_worker_cannot_read_is_named_without_the_workers_traceback(
    photos: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    said = refusal("run", [*photos, "data.num_workers=1"], monkeypatch, capsys)

    assert "photos/04.png: truncated or corrupt (1000 bytes; " in said
    assert "set data.on_bad_image=skip" in said
    assert "DataLoader" not in said


def test_skipping_ends_where_too_many_photos_are_bad_and_leaves_their_list(
    photos: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from unmask.runtime import cli

    monkeypatch.setattr("sys.argv", ["run.py", *photos, "data.on_bad_image=skip", "hydra.run.dir=out"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit):
        cli.run()

    assert "1 of 10 training images are bad (10.00%), more than data.max_bad_fraction=0.001" in capsys.readouterr().err
    logging.shutdown()
    assert "photos/04.png\ttruncated or corrupt (1000 bytes" in Path("out/bad_images.txt").read_text()


def test_a_look_before_the_run_says_what_is_there_and_draws_it(
    photos: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    from unmask.runtime import cli

    Path("photos/07.png").write_bytes(Path("photos/08.png").read_bytes())
    Path("contact_sheet.png").write_text("mine")
    monkeypatch.setattr("sys.argv", ["inspect", *photos, "seconds_of_loading=0.1", "timed_steps=1"])
    GlobalHydra.instance().clear()
    with caplog.at_level("INFO", logger="unmask"):
        cli.inspect()

    said = caplog.text
    assert "10 images, no labels" in said
    assert "12 PNG RGB" in said
    assert "04.png: truncated or corrupt (1000 bytes" in said
    assert "07.png" in said
    assert "images/s, MAE, TimmViT of 0.0 M, steps of 2 on this CPU" in said
    assert Path("contact_sheet.png").read_text() == "mine"
    with Image.open("contact_sheet_2.png") as sheet:
        assert sheet.width > 400


def test_supervised_training_asks_for_the_labels_of_held_out_images_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("train/cat/1", "train/cat/2", "train/dog/1", "train/dog/2", "val/1", "val/2"):
        Path(f"photos/{name}").parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40)).save(f"photos/{name}.png")
    overrides = ["method=supervised", "data=folder", "data.root=photos", "image_size=32", "global_batch_size=2"]

    assert "the val split lacks some" in refusal("run", overrides, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"weights", "not a complete checkpoint"),
        (b"", "not a complete checkpoint"),
        (pickle.dumps({"state_dict": {}}), "not a complete checkpoint"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(
    content: bytes, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    Path("file.ckpt").write_bytes(content)

    assert sentence in refusal("eval", ["eval=knn", "ckpt_path=file.ckpt"], monkeypatch, capsys)


class _Intruder:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("intruded"),)


def test_a_checkpoint_with_code_is_refused_and_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    torch.save({"state_dict": {}, "unmask": _Intruder()}, "evil.ckpt")

    for command in ("eval", "export"):
        assert "refused" in refusal(command, ["ckpt_path=evil.ckpt"], monkeypatch, capsys)
        assert not Path("intruded").exists()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([], "ckpt_path must be given"),
        (["ckpt_path=nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (["ckpt_path=notes.ckpt"], "notes.ckpt"),
        (["ckpt_path=notes.ckpt", "format=onxx"], "format must be one of huggingface, timm, torch_export, onnx"),
        (["ckpt_path=notes.ckpt", "push_to=mae"], "push_to=mae must be USER/NAME"),
        (["ckpt_path=notes.ckpt", "fromat=onnx"], "unknown key 'fromat'; write format=onnx"),
    ],
)
def test_a_mistake_before_an_export_is_one_sentence(
    overrides: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    Path("notes.ckpt").write_text("no weights")

    assert sentence in refusal("export", overrides, monkeypatch, capsys)
    assert [path.name for path in Path().iterdir()] == ["notes.ckpt"]


def test_the_module_explains_itself() -> None:
    command = [sys.executable, "-m", "unmask.export", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "format: huggingface" in said
    assert "swin_simmim:" in said


def test_a_foreign_checkpoint_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, "foreign.ckpt")

    said = refusal("eval", ["eval=knn", "ckpt_path=foreign.ckpt"], monkeypatch, capsys)
    assert "has an unknown format" in said


def test_a_missing_checkpoint_key_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert "ckpt_path" in refusal("eval", ["eval=knn"], monkeypatch, capsys)


def test_resuming_another_model_names_the_difference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from unmask.runtime import cli

    monkeypatch.setattr("sys.argv", ["run.py", "method=mae", *QUICK, "hydra.run.dir=first"])
    GlobalHydra.instance().clear()
    cli.run()
    capsys.readouterr()
    other = [entry for entry in QUICK if entry != "model.depth=2"]
    said = refusal("run", ["method=mae", *other, "ckpt_path=first/checkpoints/last.ckpt"], monkeypatch, capsys)

    assert "depth 2 in the checkpoint, 6 in this run" in said


def test_the_bare_command_is_the_quickstart_and_a_named_run_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.runtime import cli

    seen = []
    monkeypatch.setattr(cli, "_command", lambda *_: seen.append(list(cli.sys.argv)))
    for arguments in ([], ["seed=1"], ["--cfg", "job", "seed=1"], ["method=mae"], ["--help"]):
        monkeypatch.setattr("sys.argv", ["run.py", *arguments])
        cli.run()

    assert [("experiment=quickstart" in arguments) for arguments in seen] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("seed=1 --cfg job method=mae", "seed=1 method=mae --cfg job"),
        ("--cfg job --resolve seed=1 -p method", "seed=1 --cfg job --resolve -p method"),
        ("--info seed=1", "seed=1 --info"),
        ("--info defaults-tree seed=1", "seed=1 --info defaults-tree"),
        ("seed=1,2 -m method=mae,simmim", "seed=1,2 method=mae,simmim -m"),
        ("--config-dir conf method=mae --cfg=job ~debug", "method=mae ~debug --config-dir conf --cfg=job"),
    ],
)
def test_settings_may_stand_before_and_behind_flags(typed: str, told: str) -> None:
    from unmask.runtime.cli import settings_before_flags

    assert settings_before_flags(typed.split()) == told.split()


@pytest.mark.parametrize("command", ["run", "eval"])
def test_a_flag_between_settings_shows_the_configuration_of_all_of_them(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from unmask.runtime import cli

    monkeypatch.setattr("sys.argv", [f"{command}.py", "seed=7", "--cfg", "job", "global_batch_size=48", "ckpt_path=x"])
    GlobalHydra.instance().clear()
    {"run": cli.run, "eval": cli.evaluate}[command]()

    shown = OmegaConf.create(capsys.readouterr().out)
    assert (shown.seed, shown.global_batch_size) == (7, 48)


@pytest.mark.parametrize(
    ("names", "evaluation"),
    [(["a", "b"], "eval=knn"), ([""], "eval=reconstruct image=PHOTO")],
)
def test_the_command_named_at_the_end_works_on_the_data(
    names: list[str], evaluation: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from unmask.runtime import cli

    for name in names:
        Path("photos", name).mkdir(parents=True, exist_ok=True)
        for shade in range(0, 250, 10):
            Image.new("RGB", (32, 32), (shade, 255 - shade, 60)).save(Path("photos", name, f"{shade}.png"))
    overrides = [setting for setting in QUICK if not setting.startswith("data.")]
    source = ["data=folder", "data.root=photos", "data.num_workers=0", "image_size=32", "hydra.run.dir=out"]
    monkeypatch.setattr("sys.argv", ["run.py", "method=mae", "model=vit_mini", *overrides, *source])
    monkeypatch.setattr("sys.orig_argv", ["python", "run.py"])
    GlobalHydra.instance().clear()
    cli.run()

    last = Path("out/checkpoints/last.ckpt").absolute()
    assert f"next: python eval.py {evaluation} ckpt_path={last}" in capsys.readouterr().out
    logging.shutdown()  # closes run.log


@pytest.mark.parametrize("key", ["output_dir", "out"])
def test_the_folder_of_an_export_is_named_as_the_export_names_it(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refusal("export", ["ckpt_path=a.ckpt", f"{key}=there"], monkeypatch, capsys)
    assert f"unknown key '{key}'; write directory=there" in said


@pytest.mark.parametrize("setting", ["hydra.run.dir=there", "+hydra.job.chdir=true", "hydra/launcher=local"])
def test_a_setting_of_hydra_is_not_ignored_by_an_export(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refusal("export", ["ckpt_path=a.ckpt", setting], monkeypatch, capsys)
    assert f"{setting.lstrip('+').partition('=')[0]} is a setting of run.py and eval.py and would change" in said
