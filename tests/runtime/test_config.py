import re

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from unmask.runtime.config import compose_config, config_directory, list_experiments, names_experiment, with_own_data
from unmask.runtime.evaluate import _require_settings_of
from unmask.runtime.resolvers import register_resolvers


@pytest.mark.parametrize(
    ("command", "own", "others"), [("run", "method", {"eval", "head"}), ("eval", "head", {"method", "model"})]
)
def test_the_help_lists_the_groups_of_its_command_and_not_what_their_files_start_from(
    command: str, own: str, others: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    register_resolvers()
    chosen = [] if command == "run" else ["ckpt_path=x"]
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        composed = compose(command, overrides=chosen, return_hydra_config=True)
        monkeypatch.setattr(HydraConfig.instance(), "cfg", composed)
        lines = [line.strip() for line in composed.hydra.help.template.splitlines()]
    for group in (own, "data"):  # the latter is chosen by eval.py where the user names some
        choices = sorted(path.stem for path in (config_directory() / group).glob("*.yaml"))
        assert f"{group}: {', '.join(choices)}" in lines
    listed = next(line for line in lines if line.startswith("experiment: ")).removeprefix("experiment: ").split(", ")
    is_of_evaluation = re.compile("_(finetune|linear|frozen)")  # as their names say
    named = [name for name in list_experiments() if bool(is_of_evaluation.search(name)) == (command == "eval")]
    assert listed == named
    begin = lines.index("Groups and their choices (group=choice):") + 2
    groups = [line.partition(":")[0] for line in lines[begin : lines.index("", begin)]]
    assert groups == sorted(groups)
    assert not {"base", "hydra", *others} & set(groups)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=mae"], False),
        (["seed=1", "experiment=mae_cifar10"], True),
        (["+experiment=mae_cifar10"], True),
        (["experiment=null"], False),
    ],
)
def test_a_command_line_says_whether_it_names_an_experiment(overrides: list[str], expected: bool) -> None:
    assert names_experiment(overrides) is expected


@pytest.mark.parametrize("chosen", ["data=cifar10", "experiment=mae_doges_frozen"])
def test_settings_of_data_named_on_the_command_line_stay_as_written(chosen: str) -> None:
    overrides = [chosen, "data.root=photos", "eval=knn"]
    assert with_own_data(overrides) == overrides


def test_settings_without_a_name_are_those_of_the_checkpoints_data() -> None:
    overrides = ["eval=knn", "data.root=photos", "+data.x=1", "trainer.devices=2"]
    assert with_own_data(overrides) == ["eval=knn", "++own_data.root=photos", "+data.x=1", "trainer.devices=2"]


def test_of_a_setting_that_is_repeated_the_last_counts_also_of_the_checkpoints_data() -> None:
    words = ["ckpt_path=x", "data.root=a", "data.root=b", "seed=1", "seed=2"]
    config = compose_config("eval", with_own_data(words))
    assert (config.own_data.root, config.seed) == ("b", 2)


OWN = {"_target_": "unmask.data.sources.folder.ImageFolder", "root": "a", "num_workers": 2, "image_size": 32, "seed": 0}


def test_a_setting_the_data_have_may_be_changed() -> None:
    _require_settings_of(OWN, {"root": "b", "num_workers": 0}, fixed={"image_size", "seed"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rot", "data.rot is no setting of the ImageFolder data .*; use one of num_workers, root, or name other data"),
        ("_target_", "data._target_ is no setting"),
        ("image_size", "data.image_size follows the checkpoint .*backbone.image_size"),
    ],
)
def test_changes_that_would_do_nothing_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _require_settings_of(OWN, {name: 1}, fixed={"image_size", "seed"})
