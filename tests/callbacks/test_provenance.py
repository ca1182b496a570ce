import enum
import subprocess
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from torch import nn

from unmask.callbacks.provenance import Provenance, describe_git, to_plain_containers

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),  # Lightning 2.6 with torch 2.14
]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty folder to work in, with git told nothing of the machine's own settings."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Someone")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "someone@example.org")
    return folder


def git(*arguments):
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_a_checkpoint_says_what_made_it_in_plain_containers(fit, make_mae, save_at_step):
    method, saving = make_mae(), save_at_step(7)
    record = {"seed": 3, "optimizer": {"betas": (0.9, 0.95)}, "note": None, "tags": ["a"]}
    fit(Provenance(record), saving, method=method)

    entry = torch.load(saving.path, weights_only=True)["unmask"]
    assert entry["record"] == {"seed": 3, "optimizer": {"betas": [0.9, 0.95]}, "note": None, "tags": ["a"]}
    assert entry["backbone"] == dict(method.backbone.settings)
    assert list(entry["versions"]) == ["unmask", "torch", "lightning", "timm"]
    assert entry["versions"]["timm"] == version("timm")
    assert entry["images_seen"] == 28  # 7 steps of 4


@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable")  # Lightning cannot know that the sampler is
def test_images_seen_go_on_after_an_interruption(fit, save_at_step):
    saving, resumed = save_at_step(7), Provenance({})
    fit(Provenance({}), saving)
    fit(resumed, ckpt_path=saving.path)
    assert resumed.images_seen == 48  # two epochs of 24


def test_a_module_that_exports_no_backbone_is_recorded_as_such():
    checkpoint = {}
    Provenance({}).on_save_checkpoint(Mock(spec=Trainer), LightningModule(), checkpoint)
    assert checkpoint["unmask"]["backbone"] is None


class Color(enum.IntEnum):
    RED = 1


class Name(str):
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [(np.float64(0.5), 0.5), (Color.RED, 1), (Name("swin"), "swin"), (True, True), (2, 2), (None, None)],
)
def test_scalars_become_pythons_own(value, expected):
    plain = to_plain_containers({"key": [value]}, "record")["key"][0]
    assert plain == expected
    assert type(plain) is type(expected)


@pytest.mark.parametrize("value", [Path("here"), nn.Identity(), np.zeros(2), {1, 2}])
def test_what_a_checkpoint_cannot_hold_is_refused_by_its_place(value):
    with pytest.raises(ValueError, match=rf"record\.paths\[1\]\.root is a {type(value).__name__}"):
        Provenance({"paths": ["fine", {"root": value}]})


def test_keys_must_be_plain_too():
    with pytest.raises(ValueError, match=r"record has the key \(1, 2\)"):
        to_plain_containers({(1, 2): "pair"}, "record")


def test_git_tells_the_commit_and_whether_files_differ_from_it(repository):
    git("init", "--quiet")
    (repository / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "--quiet", "--message", "first")
    for output in ("output.log", "runs/mae/panel.py"):
        (repository / output).parent.mkdir(parents=True, exist_ok=True)
        (repository / output).write_text("what runs leave does not change what ran")
    assert describe_git() == {"commit": git("rev-parse", "HEAD"), "is_dirty": False}
    (repository / "code.py").write_text("2")
    assert describe_git() == {"commit": git("rev-parse", "HEAD"), "is_dirty": True}


@pytest.mark.parametrize("added", ["src/unmask/methods/new.py", "conf/method/new.yaml", "run.py"])
def test_an_untracked_file_of_the_package_is_a_change(repository, monkeypatch, added):
    (repository / "docs").mkdir()
    (repository / "docs" / "page.md").write_text("1")
    (repository / ".gitignore").write_text("__pycache__\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    cache = repository / "src" / "__pycache__"
    cache.mkdir(parents=True)
    (cache / "new.pyc").write_text("")
    monkeypatch.chdir(repository / "docs")
    assert describe_git()["is_dirty"] is False
    (repository / added).parent.mkdir(parents=True, exist_ok=True)
    (repository / added).write_text("")
    assert describe_git()["is_dirty"] is True


def test_without_a_repository_or_git_nothing_is_told(repository, monkeypatch):
    assert describe_git() is None
    git("init", "--quiet")
    assert describe_git() is None  # no commit yet
    monkeypatch.setenv("PATH", "")
    assert describe_git() is None
