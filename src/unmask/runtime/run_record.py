"""What a run writes about itself: for every reader into its checkpoints, for this machine where its data lie."""

import json
import logging
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_object

from unmask.atomic_write import atomic_write
from unmask.data.datamodule import ImageDataModule
from unmask.interchange.record import is_plain_text, shown
from unmask.runtime.kinds import DATA, METHOD, from_record, to_record, unlisted
from unmask.runtime.resolvers import auto_workers
from unmask.runtime.secrets import REDACTED

_log = logging.getLogger("unmask")
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_TRAINING_KEYS = ("seed", "image_size", "global_batch_size", "base_lr", "base_batch_size")
_ELSEWHERE = ("backbone", "init_from")  # of a method: stored as it is built, and a place on this machine


def describe_run(config: Mapping[str, Any], *, num_classes: int, class_names: Iterable[str]) -> dict[str, Any]:
    """Makes the record of a run that is about to start, with a random name; its places are kept by `remember_places`.

    Args:
        config: Resolved, as plain containers: `method`, `data`, `trainer` and the run's own keys.
        num_classes, class_names: Of the data.

    Raises:
        ValueError: An object would be named in the file as another one is.
    """
    method, data = config.get("method"), config["data"]
    described = {
        "method": None if method is None else to_record(_without(method, _ELSEWHERE), METHOD),
        "data": to_record(_without(data, [*_places(data), *ImageDataModule.machine_settings]), DATA),
    }
    for name, node in described.items():
        for found in unlisted(node or {}, name):
            _log.warning(
                f"{found} stands in no configuration file, so this run's checkpoints give their weights to others but "
                "cannot be rebuilt with it; name it in a YAML file of a folder passed by --config-dir"
            )
    return {
        **described,
        "run": secrets.token_hex(16),
        "places": sorted(name for name, value in _places(data).items() if value is not None),
        "uses_workers": bool(data.get("num_workers")),
        "training": _training(config),
        "num_classes": num_classes,
        "class_names": list(class_names),
    }


def remember_places(record: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Keeps on this machine where a run's images lie, under the run's random name; says so where that fails."""
    data = config["data"]
    kept = {name: data[name] for name in ImageDataModule.machine_settings if name in data} | _places(data)
    content: dict[str, Any] = {
        "data": {name: _absolute(value) for name, value in kept.items() if REDACTED not in str(value)}
    }
    content["name"] = config.get("name")
    if config.get("ckpt_path") is not None:
        content["ckpt_path"] = _absolute(config["ckpt_path"])
    try:
        with atomic_write(_file_of(record["run"])) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        _log.warning(f"where the images lie could not be kept for eval.py, which will ask for data.root=DIR: {error}")


def recall_places(run: Any) -> Mapping[str, Any]:
    """Reads what this machine knows of a run: `data`, `name`, perhaps `ckpt_path`; of one of another, nothing."""
    if not isinstance(run, str) or not _RUN_ID.fullmatch(run):
        return {}
    try:
        content = json.loads(_file_of(run).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def own_data(record: Mapping[str, Any], changes: Mapping[str, Any], path: Any) -> dict[str, Any]:
    """Makes the configuration of the data a checkpoint's run was trained on, as this machine can read them.

    Args:
        record: Of the run, from its checkpoint.
        changes: Settings the user gives in place of the record's.
        path: Of the checkpoint, for the message.

    Raises:
        ValueError: A place is neither known here nor given, or the record holds what it may not, a place among it.
    """
    config = from_record(record.get("data"), DATA)
    for name in (*get_object(config["_target_"]).place_settings, *ImageDataModule.machine_settings):
        if name in config:
            raise ValueError(
                f"{path} sets data.{name} to {shown(config[name])}, and where images lie and what this machine does is "
                "only told by the command; add data=NAME data.root=DIR"
            )
    known = recall_places(record.get("run")).get("data", {})
    if record.get("uses_workers") is True:
        known = {"num_workers": auto_workers()} | known
    places = record.get("places", ())
    if not isinstance(places, list | tuple) or not all(isinstance(name, str) for name in places):
        raise ValueError(f"{path} does not describe its data; add data=NAME data.root=DIR")
    for name in places:
        if name not in known and name not in changes:
            raise ValueError(
                f"{path} does not say where its images lie, and nothing on this machine does; add data.{name}="
                f"{'DIR' if name == 'root' else 'VALUE'}"
            )
    return {**dict.fromkeys(places), **config, **known}


def _places(data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that say where the images lie, and every string that no file may carry."""
    own = get_object(data["_target_"]).place_settings
    return {
        name: value
        for name, value in data.items()
        if not name.startswith("_") and (name in own or (isinstance(value, str) and not is_plain_text(value)))
        if name not in ImageDataModule.machine_settings
    }


def _training(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a model card says of the run beside its method and data."""
    trainer, evaluation = config.get("trainer") or {}, config.get("eval")
    facts = {name: config[name] for name in _TRAINING_KEYS if name in config}
    planned = trainer.get("max_epochs") if evaluation is None else evaluation.get("epochs")
    return {
        **facts,
        "epochs": planned,
        "is_finetuning": evaluation is not None,
        "starts_from_file": config.get("ckpt_path") is not None,
        "trainer": {
            name: value
            for name, value in trainer.items()
            if not isinstance(value, Mapping | list) and not name.startswith("_")
            if not isinstance(value, str) or is_plain_text(value)
        },
    }


def _without(node: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if name not in names}


def _absolute(value: Any) -> Any:
    """A path that exists, from the root of the file system; anything else as it was typed."""
    if not isinstance(value, str) or not Path(value).expanduser().exists():
        return value
    return str(Path(value).expanduser().absolute())


def _file_of(run: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "unmask" / "runs" / f"{run}.json"
