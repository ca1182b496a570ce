"""What a constructor has by default is a key of the configuration, though no YAML file says it."""

# ruff: noqa: PLC0415  (`unmask` is imported after its run-time shape checks are switched on)

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig


def composed(*overrides: str, name: str = "run") -> DictConfig:
    from unmask.runtime.config import compose_config

    return compose_config(name, overrides)


MODULE = """
    class Base:
        def __init__(self, *, size, depth=3, kind="plain", late=None):
            self.settings = dict(size=size, depth=depth, kind=kind, late=late)

    class Thing(Base):
        def __init__(self, *, root, scale=(0.2, 1.0), table={"a": [1]}, marker=object(), **shared):
            super().__init__(kind="thing", **shared)
            self.settings |= dict(root=root, scale=scale, table=table)

    class Alone(Base):
        def __init__(self, *, own=1, **further):
            self.further = further

    def make(first, second=2):
        return first + second
"""


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "things_of_a_user.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "things_of_a_user", raising=False)
    from unmask.runtime.constructor_defaults import constructor_defaults

    constructor_defaults.cache_clear()
    return "things_of_a_user"


def test_the_defaults_of_a_class_and_of_the_base_it_hands_on_to_are_found(things: str) -> None:
    from unmask.runtime.constructor_defaults import constructor_defaults

    found = constructor_defaults(f"{things}.Thing")

    # `kind` is settled by the class itself, `marker` is no plain value, `root` and `size` have no default
    assert found == {"scale": [0.2, 1.0], "table": {"a": [1]}, "depth": 3, "late": None}
    assert list(found)[:2] == ["scale", "table"]


def test_the_base_of_a_class_that_hands_nothing_on_is_not_asked(things: str) -> None:
    from unmask.runtime.constructor_defaults import constructor_defaults

    assert constructor_defaults(f"{things}.Alone") == {"own": 1}
    assert constructor_defaults(f"{things}.make") == {"second": 2}
    assert constructor_defaults(f"{things}.Nothing") == {}
    assert constructor_defaults("no_such_module.Thing") == {}


@pytest.mark.parametrize(
    ("overrides", "key", "expected"),
    [
        (["data=folder", "data.cache_dir=elsewhere"], "data.cache_dir", "elsewhere"),
        (["trainer.max_steps=20"], "trainer.max_steps", 20),
        (["callbacks.best_checkpoint.save_weights_only=true"], "callbacks.best_checkpoint.save_weights_only", True),
        (["optimizer.eps=1e-6"], "optimizer.eps", 1e-6),
        (["model.norm_eps=1e-5"], "model.norm_eps", 1e-5),
    ],
)
def test_an_argument_no_file_names_is_changed_without_a_plus(overrides: list[str], key: str, expected: object) -> None:
    from omegaconf import OmegaConf

    assert OmegaConf.select(composed(*overrides), key) == expected


def test_what_a_file_says_is_kept_and_a_misspelled_argument_is_refused() -> None:
    config = composed("experiment=flyegle-mae_vit-tiny_2048b-300e_in1k-224px", "data.root=x")
    assert config.model.norm_eps == 1e-5
    assert config.method.decoder._target_.endswith("TransposedConvDecoder")
    with pytest.raises(Exception, match="exiff"):
        composed("data=folder", "data.exiff=false")


def test_a_class_named_on_the_command_line_is_asked_for_its_own_arguments() -> None:
    import torch

    from unmask.runtime.builders import build

    for override in ("optimizer._target_=torch.optim.RAdam", "optimizer={_target_: torch.optim.RAdam}"):
        optimizer = composed(override).optimizer
        assert "decoupled_weight_decay" in optimizer
        assert "amsgrad" not in optimizer  # which is AdamW's
        assert isinstance(build(optimizer)([torch.nn.Parameter(torch.zeros(1))]), torch.optim.RAdam)


def test_a_node_in_a_folder_of_the_user_gets_its_defaults(
    things: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from unmask.runtime import cli

    folder = tmp_path / "mine" / "callbacks"
    folder.mkdir(parents=True)
    (folder / "ours.yaml").write_text(f"thing:\n  _target_: {things}.Thing\n  root: here\n  size: 1\n")
    arguments = ["method=mae", "callbacks=ours", "callbacks.thing.depth=7"]
    monkeypatch.setattr("sys.argv", ["run.py", *arguments, "--config-dir", str(tmp_path / "mine"), "--cfg", "job"])
    GlobalHydra.instance().clear()
    cli.run()

    printed = capsys.readouterr().out
    assert "    depth: 7\n" in printed
    assert "    late: null\n" in printed


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--info", "defaults"]])
@pytest.mark.parametrize("arguments", [[], ["seed=1"], ["method=ddmim"]])
def test_flags_may_follow_any_setting(
    arguments: list[str], flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from unmask.runtime import cli

    monkeypatch.setattr("sys.argv", ["run.py", *arguments, *flags])
    GlobalHydra.instance().clear()
    cli.run()

    printed = capsys.readouterr().out
    expected: dict[str, Any] = {"--cfg": "max_steps: -1", "--info": "_self_"}
    assert expected[flags[0]] in printed


def test_keys_are_completed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from unmask.runtime import cli

    monkeypatch.setenv("COMP_LINE", "run.py data=folder data.ex")
    monkeypatch.setenv("COMP_POINT", "26")
    monkeypatch.setattr("sys.argv", ["run.py", "-sc", "query=bash"])
    GlobalHydra.instance().clear()
    cli.run()

    assert "data.exif=" in capsys.readouterr().out.split()
