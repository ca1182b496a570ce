"""A hint names what works: the setting it names is one that composes."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import re
import shlex

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf


def sentence_of(overrides: list[str], command: str = "run") -> str:
    from unmask.runtime.config import compose_config, configuration_names
    from unmask.runtime.mistakes import one_sentence

    with pytest.raises(HydraException) as raised:
        compose_config(command, overrides)
    return one_sentence(raised.value, *configuration_names(command, overrides))


@pytest.mark.parametrize(
    ("command", "name", "program"),
    [
        ("run", "mae_finetune_vit-base_1024b-100e_in1k-224px", "eval.py"),
        ("eval", "mae_vit-base_4096b-800e_in1k-224px", "run.py"),
    ],
)
def test_an_experiment_of_the_other_command_names_that_command(command: str, name: str, program: str) -> None:
    overrides = [f"experiment={name}", *(["ckpt_path=none"] if command == "eval" else [])]
    assert sentence_of(overrides, command).endswith(f"is for the other command; use python {program} experiment=NAME")


def test_a_choice_that_does_not_exist_is_answered_with_all_there_are() -> None:
    assert sentence_of(["optimizer=sdg"]) == "optimizer=sdg does not exist; nearest: sgd (of adamw, lars, muon, sgd)"


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("batch_size=32", "global_batch_size=32"),
        ("datamodule.batch_size=32", "global_batch_size=32"),
        ("data.batch_size=32", "global_batch_size=32"),
        ("epochs=5", "trainer.max_epochs=5"),
        ("max_epochs=5", "trainer.max_epochs=5"),
        ("trainer.gpus=2", "trainer.devices=2"),
        ("gpus=2", "trainer.devices=2"),
        ("num_nodes=2", "trainer.num_nodes=2"),
        ("max_steps=20", "trainer.max_steps=20"),
        ("lr=0.1", "optimizer.lr=0.1"),
        ("mask_ratio=0.5", "method.mask_generator.ratio=0.5"),
        ("num_workers=2", "data.num_workers=2"),
        ("weight_decay=0.1", "optimizer.weight_decay=0.1"),
        ("data.path=photos", "data.root=photos"),
        ("modle=vit_tiny", "model=vit_tiny"),
        ("backbone=vit_tiny", "model=vit_tiny"),
        ("scheduler=constant", "schedule=constant"),
        ("metod=mae", "method=mae"),
        ("wd=0.1", "optimizer.weight_decay=0.1"),
        ("amp=true", "trainer.precision=bf16-mixed"),
        ("wandb=true", "logger=wandb"),
        ("debug=fdr", "debug=fast"),
        ("debug=profiler", "debug=profile"),
        ("logger=many_loggers", "logger=wandb"),
        ("hparams_search=ddmim_optuna", "sweep=optuna"),
    ],
)
def test_an_old_habit_names_the_setting_of_today_which_composes(typed: str, named: str) -> None:
    from unmask.runtime.config import compose_config

    chosen = ["method=mae", "model=vit_mini", "data=folder", "data.root=photos"]
    sentence = sentence_of([*chosen, typed])

    assert re.search(rf"(write|use|-m) {re.escape(named)}", sentence), sentence
    config = compose_config("run", [*chosen, *named.split()])
    for setting in named.split():
        key, _, value = setting.partition("=")
        if "." in key:
            assert str(OmegaConf.select(config, key)) == value


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("trainer.max_epoch=3", ["trainer.max_epochs", "trainer.min_epochs", "trainer.max_steps"]),
        ("tags=[a]", ["betas"]),  # the only one that is at all alike, and yet not meant
        ("task_name=x", ["name"]),
    ],
)
def test_the_nearest_names_stand_once_each_the_nearest_first(typed: str, nearest: list[str]) -> None:
    assert f"; nearest: {', '.join(nearest)}. A new key" in sentence_of([typed])


def test_a_launcher_that_is_not_installed_names_what_is_here() -> None:
    from unmask.runtime.mistakes import one_sentence

    unknown = sentence_of(["hydra/launcher=locla"])
    assert "hydra/launcher=locla does not exist; nearest: local" in unknown
    absent = HydraException("Could not find 'hydra/launcher/joblib'\n\nAvailable options in 'hydra/launcher':\n\tlocal")
    assert "use hydra/launcher=local hydra.launcher.n_jobs=2" in one_sentence(absent, (), ())


def test_a_key_of_several_owners_is_named_with_them() -> None:
    sentence = sentence_of(["method=simmim", "model=swin_mini", "patch_size=4"])
    assert {"model.patch_size", "method.mask_generator.patch_size"} <= set(re.findall(r"[\w.]+\w", sentence)), sentence


@pytest.mark.parametrize("key", ["eval", "head", "test", "train"])
def test_what_is_of_the_other_command_names_it(key: str) -> None:
    assert re.search(r"use .*python eval\.py eval=\w+ .*ckpt_path=FILE", sentence_of([f"{key}=anything"]))


@pytest.mark.parametrize("key", ["method", "model"])
def test_what_an_evaluation_takes_from_its_checkpoint_is_of_the_other_command(key: str) -> None:
    sentence = sentence_of(["ckpt_path=x", f"{key}=mae"], "eval")
    assert sentence.endswith(
        f"use the other command, python run.py {key}=NAME; an evaluation takes the {key} of ckpt_path"
    )


def test_epochs_of_a_probe_are_those_of_the_evaluation() -> None:
    named = {eval_: sentence_of(["ckpt_path=x", f"eval={eval_}", "epochs=3"], "eval") for eval_ in ("linear", "knn")}
    assert named["linear"].endswith("write eval.epochs=3")
    assert "eval.epochs" not in named["knn"]  # trains nothing


@pytest.mark.parametrize("typed", ["method", "method:mae", "data.root"])
def test_a_setting_without_a_value_is_named(typed: str) -> None:
    key = typed.partition(":")[0]
    assert sentence_of([typed]) == f"{key} has no value; write {key}=VALUE, without spaces around ="


def test_several_values_without_a_sweep_are_answered_with_both_readings() -> None:
    assert sentence_of(["logger=wandb,csv"]) == (
        "logger=wandb,csv names several values; add -m for a run with each, or write 'logger=[wandb,csv]' for a list"
    )


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("runs/epoch=3-step=10.ckpt", "runs/epoch=3-step=10.ckpt"),
        ("fotos/jürgen & söhne", "fotos/jürgen & söhne"),
        ('a "b" \\ c;d', 'a "b" \\ c;d'),
        ("photos/a, b", "photos/a, b"),
        ("~/photos", "/home/someone/photos"),
        ("~/fotos ü", "/home/someone/fotos ü"),
    ],
)
def test_a_name_that_hydra_does_not_read_is_written_so_that_it_does(
    value: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.runtime.config import compose_config

    monkeypatch.setenv("HOME", "/home/someone")
    sentence = sentence_of(["data=folder", f"data.root={value}"])
    assert "hydra.cc" not in sentence
    words = shlex.split(re.split(r"write |for a list, ", sentence)[-1].removesuffix(" for one name with a comma"))
    assert [word.partition("=")[0] for word in words] == ["data.root"]
    assert compose_config("run", ["data=folder", *words]).data.root == meant


def test_a_list_that_is_not_closed_is_answered_with_how_names_are_quoted_in_one() -> None:
    for typed in ("trainer.devices=[0,1", "trainer.devices=[a=b]"):
        sentence = sentence_of([typed])
        assert sentence.startswith(f"{typed} cannot be read: close every bracket")
        assert sentence.endswith("""as in 'trainer.devices=["a=b"]'""")


def test_choices_none_of_which_is_alike_stand_once_and_capitals_do_not_matter() -> None:
    assert sentence_of(["optimizer=ZZZZ"]) == "optimizer=ZZZZ does not exist; choose from adamw, lars, muon, sgd"
    assert "nearest: mae" in sentence_of(["method=MAE"])


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        ("--lr=0.1", "lr=0.1"),
        ("--batch-size", "batch_size=VALUE"),
        ("--experiment=mae_cifar10", "experiment=mae_cifar10"),
    ],
)
def test_a_setting_with_dashes_is_told_how_it_is_written(
    typed: str, written: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from unmask.runtime.cli import settings_before_flags

    with pytest.raises(SystemExit) as left:
        settings_before_flags(["method=mae", typed, "3"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {typed} is no option ")
    assert said.endswith(f"settings have no dashes: {written}\n")
    assert settings_before_flags(["--config-dir=own", "-m", "seed=1"]) == ["seed=1", "--config-dir=own", "-m"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(30, "Read-only file system", "a/b"), "a/b: Read-only file system; see to the disk or the machine"),
        (OSError(122, "Disk quota exceeded"), "Disk quota exceeded; see to the disk or the machine"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left on device; see to"),
        (
            OSError("Caught OSError in DataLoader worker process 0.\n[Errno 24] Too many open files: 'x'"),
            "Too many open",
        ),
        (OSError(2, "No such file or directory", "a/b"), None),
        (RuntimeError("shapes do not match (error 28)"), None),
    ],
)
def test_what_the_machine_refuses_is_told_from_defects(error: Exception, sentence: str | None) -> None:
    from unmask.runtime.mistakes import machine_failure

    said = machine_failure(error)
    assert (said is None) if sentence is None else str(said).startswith(sentence)
    wrapped = RuntimeError("while saving")
    wrapped.__cause__ = error
    assert machine_failure(wrapped) == said
