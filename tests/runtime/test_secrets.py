"""Secrets reach neither the run's folder nor its logs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from unmask.runtime.builders import build_trainer
from unmask.runtime.config import compose_config
from unmask.runtime.secrets import REDACTED, redacted, require_no_secrets

RUN = Path(__file__).parents[2] / "run.py"
TINY = [
    "method=mae", "model=vit_mini", "model.embed_dim=24", "model.depth=2", "data.num_train=16", "data.num_val=4",
    "method.decoder.embed_dim=24", "method.decoder.depth=1", "method.decoder.num_heads=3", "global_batch_size=8",
    "trainer.accelerator=cpu", "trainer.max_epochs=1", "hydra.run.dir=out",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("api_key", True),
        ("logger.wandb.api_key", True),
        ("password", True),
        ("hf_token", True),
        ("token", True),
        ("client.secret", True),
        ("kaggle_key", True),
        ("mask_token", False),
        ("token_size", False),
        ("num_prefix_tokens", False),
        ("image_key", False),
        ("monitor", False),
        ("class_token", False),
    ],
)
def test_a_secret_is_known_by_its_name(name: str, is_secret: bool) -> None:
    config = OmegaConf.create({})
    OmegaConf.update(config, name, "canary-in-plain-text")
    if is_secret:
        with pytest.raises(ValueError, match=rf"{name} looks like a secret .*set it in the environment"):
            require_no_secrets(config)
    else:
        require_no_secrets(config)


def test_the_name_of_a_variable_is_no_secret_and_its_value_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMETHING", "canary-by-key")
    monkeypatch.setenv("MY_API_KEY", "canary-by-variable")
    config = OmegaConf.create(
        {
            "logger": {"api_key": "${oc.env:SOMETHING}", "tags": ["a", "${oc.env:MY_API_KEY}"]},
            "note": "seen: ${logger.api_key}",
            "url": "https://ada:canary-in-url@host/path",
            "seed": 3,
            "mask_token": "learned",
        }
    )
    with pytest.raises(ValueError, match="url looks like a secret or holds a password"):
        require_no_secrets(config)
    del config.url
    require_no_secrets(config)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    written = redacted({**plain, "url": "https://ada:canary-in-url@host/path"})
    assert written == {
        "logger": {"api_key": REDACTED, "tags": ["a", REDACTED]},
        "note": f"seen: {REDACTED}",
        "url": f"https://{REDACTED}@host/path",
        "seed": 3,
        "mask_token": "learned",
    }


@pytest.mark.slow
@pytest.mark.parametrize("where", ["file", "sweep"])
def test_a_secret_in_plain_text_stops_the_command_before_anything_is_written(where: str, tmp_path: Path) -> None:
    overrides = [*TINY, "logger=none"]
    if where == "file":
        folder = tmp_path / "own" / "debug"
        folder.mkdir(parents=True)
        (folder / "mine.yaml").write_text("# @package _global_\nservice: {password: canary-1234}\n")
        overrides = ["--config-dir", "own", *overrides, "debug=mine"]
    else:
        overrides = ["-m", *overrides, "+service.token=[canary-1234]", "hydra.sweep.dir=sweep"]
    done = subprocess.run([sys.executable, RUN, *overrides], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "looks like a secret" in done.stderr
    assert "Traceback" not in done.stderr
    assert "canary" not in done.stderr + done.stdout
    assert not list(tmp_path.glob("out")) + list(tmp_path.glob("sweep")) + list(tmp_path.glob("runs"))


def test_a_logger_is_given_its_own_secrets_and_none_to_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    monkeypatch.setattr("unmask.runtime.builders.build_entries", lambda entries, **_: built.append(entries) or [])
    monkeypatch.setenv("SERVICE_TOKEN", "canary-1234")
    overrides = ["logger=wandb", "logger.wandb.tags=['${oc.env:SERVICE_TOKEN}', mine]", "name=x", "data.root=x"]
    overrides += ["+logger.wandb.api_key=${oc.env:SERVICE_TOKEN}", "logger.wandb.group=for ${oc.env:SERVICE_TOKEN}"]
    config = compose_config("run", ["method=mae", *overrides, f"paths.run_dir={tmp_path}", "data=folder"])
    build_trainer(config, callbacks=[])
    (entries,) = built
    assert list(entries.wandb.tags) == [REDACTED, "mine"]
    assert entries.wandb.group == f"for {REDACTED}"
    assert entries.wandb.api_key == "canary-1234"


@pytest.mark.slow
def test_secrets_of_the_environment_are_in_no_file_of_a_run(tmp_path: Path) -> None:
    canaries = {"WANDB_API_KEY": "c" * 20 + "anaryone" + "d" * 12, "HF_TOKEN": "hf_canarytwo", "X": "canary-three"}
    environment = {
        **os.environ, **canaries, "WANDB_MODE": "offline", "WANDB_SILENT": "true"
    }  # fmt: skip
    folder = tmp_path / "own" / "debug"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "# @package _global_\nnote: key ${oc.env:WANDB_API_KEY}\nhub: {token: '${oc.env:HF_TOKEN}'}\n"
        "service: {password: '${oc.env:X}'}\nagain: ${service.password}\n"
    )
    overrides = ["--config-dir", "own", *TINY, "logger=wandb", "debug=mine", "logger.wandb.tags=['${oc.env:HF_TOKEN}']"]
    done = subprocess.run(
        [sys.executable, RUN, *overrides], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".ckpt" for path in written)
    assert any(path.suffix == ".wandb" for path in written)
    for canary in canaries.values():
        assert canary not in done.stdout + done.stderr
        assert [path for path in written if canary.encode() in path.read_bytes()] == []
