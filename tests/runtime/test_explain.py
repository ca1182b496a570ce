"""Which file or argument set a value."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import re
from pathlib import Path

import pytest
from PIL import Image

CONF = Path(__file__).parents[2] / "conf"


def explained(key: str, *overrides: str) -> list[str]:
    from unmask.runtime.explain import explain

    return explain("run", key, list(overrides))


def line_at(place: str) -> str:
    """What stands where an explanation points, as `conf/recipe/mae.yaml:3`."""
    path, number = re.fullmatch(r"set by (.+):(\d+): .*", place.strip()).groups()
    return (CONF.parent / path).read_text().splitlines()[int(number) - 1].strip()


def test_a_rate_is_traced_to_its_rule_and_to_each_number_in_it() -> None:
    said = explained("optimizer.lr", "method=simmim", "model=vit_tiny", "base_lr=0.001", "global_batch_size=128")

    assert said[0] == "optimizer.lr = 0.00025"
    assert line_at(said[1]).startswith("lr: ${scale_lr:")
    told = {line.strip().partition(" = ")[0]: number for number, line in enumerate(said) if " = " in line}
    assert said[told["base_lr"] + 1].strip() == "set by the command line: base_lr=0.001"
    assert re.match(r"in place of conf/recipe/simmim.yaml:\d+: ", said[told["base_lr"] + 2].strip())
    assert line_at(said[told["base_batch_size"] + 1]) == "base_batch_size: 512"
    assert said[told["global_batch_size"] + 1].strip() == "set by the command line: global_batch_size=128"


@pytest.mark.parametrize(
    ("key", "overrides", "value", "place"),
    [
        ("trainer.max_epochs", ["experiment=mae_cifar10"], "18", "conf/experiment/mae_cifar10.yaml"),
        ("method.mask_generator.ratio", ["method=mae", "data=synthetic"], "0.75", "conf/method/mae.yaml"),
        ("data.num_val", ["data=cifar10", "data.root=x", "method=mae"], "5000", "conf/data/cifar10.yaml"),
        ("model.depth", ["experiment=quickstart"], "4", "conf/experiment/quickstart.yaml"),
    ],
)
def test_the_last_file_that_sets_a_key_is_named_with_its_line(
    key: str, overrides: list[str], value: str, place: str
) -> None:
    first, second, *_ = explained(key, *overrides)

    assert first == f"{key} = {value}"
    assert second.strip().startswith(f"set by {place}:")
    assert line_at(second).startswith(f"{key.rpartition('.')[2]}: ")


def test_each_number_is_explained_once() -> None:
    said = explained("optimizer.lr", "method=simmim", "model=vit_tiny")
    keys = [line.strip().partition(" = ")[0] for line in said if " = " in line]
    assert len(keys) == len(set(keys)) > 3


def test_a_published_recipe_is_explained_as_published_and_over_the_steps_that_are_made() -> None:
    recipe = ["experiment=mae_cifar10", "data=synthetic", "data.num_train=45000"]  # 87 steps of 512 an epoch
    unstated = ["experiment=mae_vit-tiny_4096b-400e_in1k-224px", "data=synthetic", "data.num_train=9000"]
    assert explained("base_lr", *unstated)[0] == "base_lr = 0.00015"
    assert explained("schedule.warmup_epochs", *recipe)[0] == "schedule.warmup_epochs = 0.9"
    _, _, epochs = explained("schedule.warmup_epochs", *recipe, "trainer.max_steps=20")[0].partition(" = ")
    assert float(epochs) * 87 == pytest.approx(1.0)


def test_a_key_of_an_evaluation_is_explained_and_a_misspelled_one_is_answered_with_those_it_has() -> None:
    from unmask.runtime.explain import explain

    first, second, *_ = explain("eval", "eval.k", ["eval=knn", "ckpt_path=x"])
    assert first == "eval.k = 20"
    assert line_at(second).startswith("k: 20")
    rule = explain("eval", "base_lr", ["eval=finetune", "ckpt_path=x"])
    assert not any("no images were counted" in line for line in rule)  # those of the run are not known here
    with pytest.raises(ValueError, match=r"explain=eval\.also_j names no key; nearest: eval\.also_k"):
        explain("eval", "eval.also_j", ["eval=knn", "ckpt_path=x"])


def test_what_has_to_be_given_is_not_shown_as_a_value_and_a_node_is_shown_resolved() -> None:
    said = explained("data.root", "data=folder", "data.root=nowhere", "model=vit_mini")
    assert said == ["data.root = nowhere", "  set by the command line: data.root=nowhere"]
    value = explained("optimizer", "method=mae", "model=vit_mini")[0]
    assert "'betas': [0.9, 0.95]" in value
    assert "$" not in value


def test_one_key_of_a_node_typed_whole_is_traced_to_the_command_line() -> None:
    typed = "method.decoder={embed_dim: 24, depth: 1, num_heads: 3}"
    said = explained("method.decoder.depth", "method=mae", "model=vit_mini", typed)
    assert said[:2] == ["method.decoder.depth = 1", f"  set by the command line: {typed}"]


def test_a_part_of_a_node_that_stands_for_another_is_explained_as_that_one() -> None:
    said = explained("method.backbone.depth", "experiment=quickstart")
    assert said[:2] == ["method.backbone.depth is model.depth", "model.depth = 4"]


def test_a_value_that_no_file_sets_is_its_constructors() -> None:
    said = explained("trainer.max_steps", "method=mae")
    assert said == ["trainer.max_steps = -1", "  set by the constructor of lightning.pytorch.Trainer, by default"]


def test_what_follows_the_images_is_explained_for_those_that_are_there(tmp_path: Path) -> None:
    from unmask.small_sets import batch_size_for

    for number in range(50):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / f"{number}.png")
    said = explained("global_batch_size", "method=mae", "model=vit_mini", "data=folder", f"data.root={tmp_path}")
    assert said[0] == f"global_batch_size = {batch_size_for(40)}"
    assert said[2:4] == ["  num_train_images = 40", "    set by the program: counted in the images or the model"]

    nowhere = explained("global_batch_size", "method=mae", "model=vit_mini", "data=folder", "data.root=nowhere")
    assert nowhere[0] == "global_batch_size = 256"
    assert nowhere[-1].startswith(
        "(no images were counted, so rules give what large sets get: data.root=nowhere does not"
    )


def test_the_command_prints_it_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from unmask.runtime import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["run.py", "method=mae", "explain=seed", "seed=4", "explain=mixup"])
    cli.run()
    assert capsys.readouterr().out.splitlines()[:2] == ["seed = 4", "  set by the command line: seed=4"]

    monkeypatch.setattr("sys.argv", ["run.py", "method=mae", "explain=optimizer.rl"])
    with pytest.raises(SystemExit) as stopped:
        cli.run()
    assert stopped.value.code == 2
    assert "explain=optimizer.rl names no key; nearest: optimizer.lr" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_generated_pictures_are_counted_without_being_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("pictures were drawn")

    monkeypatch.setattr("unmask.data.sources.synthetic.Synthetic.load_split", refuse)
    assert explained("num_train_images", "method=mae", "data.num_train=300")[0] == "num_train_images = 300"


@pytest.mark.parametrize("key", ["seed.x", "method.init_from.x.y", "data.nowhere.x", "data.nowhere", "nowhere.x.y"])
def test_a_key_within_a_value_or_nowhere_is_no_key(key: str) -> None:
    with pytest.raises(ValueError, match=f"explain={re.escape(key)} names no key|no key is called {re.escape(key)}"):
        explained(key, "method=mae")


@pytest.mark.parametrize("length", [160, 161])
def test_a_long_value_is_cut_to_a_line(length: int) -> None:
    name = "n" * length
    shown = name if length == 160 else f"{'n' * 157}..."
    assert explained("name", "method=mae", f"name={name}")[0] == f"name = {shown}"
