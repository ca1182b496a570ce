"""One sentence for what a user got wrong, with what to write instead."""

import difflib
import errno
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import InstantiationException, OverrideParseException

from unmask.runtime.typed import typed

# What other programs of this kind, and older ones of this field, call our settings.
_KEYS_ELSEWHERE = {  # by the last part of the key
    "batch_size": "global_batch_size",
    "train_batch_size": "global_batch_size",
    "per_device_train_batch_size": "images_per_device",
    "lr": "optimizer.lr",
    "learning_rate": "optimizer.lr",
    "blr": "base_lr",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "gpus": "trainer.devices",
    "num_gpus": "trainer.devices",
    "nodes": "trainer.num_nodes",
    "accum_iter": "trainer.accumulate_grad_batches",
    "clip_grad": "trainer.gradient_clip_val",
    "mask_ratio": "method.mask_generator.ratio",
    "img_size": "image_size",
    "input_size": "image_size",
    "drop_path": "drop_path_rate",
    "workers": "data.num_workers",
    "data_dir": "data.root",
    "data_path": "data.root",
    "data.path": "data.root",
    "checkpoint": "ckpt_path",
    "resume_from_checkpoint": "ckpt_path",
    "output_dir": "hydra.run.dir",
    "output": "hydra.run.dir",
    "out": "hydra.run.dir",
    "arch": "model",
    "backbone": "model",
    "scheduler": "schedule",
    "optim": "optimizer",
    "protocol": "eval",
    "wd": "optimizer.weight_decay",
    "dataset": "data",
}
_IN_OTHER_COMMANDS = {  # where they have such a key
    "trainer.max_epochs": ("eval.epochs",),
    "hydra.run.dir": ("directory", "out"),
}
_PARTS_ELSEWHERE = {"datamodule": "data", "module": "model"}
_WHOLE_ELSEWHERE = {  # settings that are written in another way altogether
    "hydra/launcher=joblib": "hydra/launcher=local hydra.launcher.n_jobs=2, or install hydra-joblib-launcher",
    "hydra/launcher=submitit_slurm": "pip install 'unmask[cluster]' first, which brings it",
    "debug=fdr": "debug=fast",
    "debug=default": "debug=fast",
    "debug=profiler": "debug=profile",
    "debug=limit": "trainer.limit_train_batches=10",
    "logger=many_loggers": "logger=wandb",
    "amp": "trainer.precision=bf16-mixed",
    "eval": "the other command, python eval.py eval=NAME ckpt_path=FILE",
    "head": "the other command, python eval.py eval=frozen head=NAME ckpt_path=FILE",
    "method": "the other command, python run.py method=NAME; an evaluation takes the method of ckpt_path",
    "model": "the other command, python run.py model=NAME; an evaluation takes the model of ckpt_path",
    "test": "the other command, python eval.py eval=NAME ckpt_path=FILE",
    "train": "python eval.py eval=NAME ckpt_path=FILE to measure without training",
    "wandb": "logger=wandb",
    "hparams_search": "sweep=optuna and what is searched: 'base_lr=tag(log,interval(1e-4,1e-2))'",
}
_ONE_OF_SEVERAL = {"optimizer.lr": "which is the peak as it is; base_lr={value} is scaled by the batch"}

# What the system says of a path that a user gave.
WRONG_PLACES = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
# What it says of disks, and of what else a machine has too little of.
_OF_THE_MACHINE = frozenset(
    getattr(errno, name)
    for name in (
        *("EROFS", "ENOSPC", "EDQUOT", "EFBIG", "EIO", "EREMOTEIO", "ESTALE", "ENODEV", "ENXIO", "ENOTCONN"),
        *("EMFILE", "ENFILE", "ENOMEM"),
    )
    if hasattr(errno, name)  # systems differ
)
_NUMBER_IN_TEXT = re.compile(r"(?:\[Errno |\(os error )(\d+)[\])]")  # of an error of another language or process
_COMPUTING_FAILED = re.compile(r"\w+ raised while resolving interpolation: ")
_LACKS_VALUE = re.compile(r"Error parsing override '([\w./-]+)[^']*'\s+missing EQUAL")
_SEVERAL_VALUES = re.compile(r"Ambiguous value for argument '(([^'=]+)=([^']*))'")
_NESTED = re.compile(r"[\[{'\"]|\w+\(")  # how values begin that have a grammar of their own
_CERTAIN = 0.8  # likeness by `difflib`: the only name so near is the one that was meant
_MAX_OPTIONS = 20  # shown in one sentence
_OMEGACONF_DETAILS = ("full_key:", "object_type=", "reference_type=")
_FROM_WORKER = re.compile(r"Caught \w+ in DataLoader worker process")
_UNKNOWN_ARGUMENT = re.compile(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")
_ALL_KEYS = "all keys are listed by --cfg job"


def one_sentence(error: BaseException, known_keys: Sequence[str], groups: Sequence[str]) -> str:
    """Says what a user got wrong, with the nearest valid names where a name is unknown.

    Args:
        error: As raised.
        known_keys: Dotted, of the default configuration.
        groups: Whose choices are files.
    """
    if isinstance(error, OverrideParseException) and "=" in error.override:
        return _of_unread(error.override)
    text = _innermost(error)
    if type(error).__module__.startswith("wandb."):
        return f"logger=wandb: {text.rstrip('.')}; log in by `wandb login`, or set WANDB_MODE=offline to keep it here"
    other_command = re.search(r"In '(experiment|base)/([^']+)': Could not override '(\w+)'", text)
    if other_command:
        name = f"experiment={other_command[2]}" if other_command[1] == "experiment" else "this experiment"
        command = "eval.py" if other_command[3] == "eval" else "run.py"
        return f"{name} is for the other command; use python {command} experiment=NAME"
    unknown_key = re.search(r"Could not override '([^']+)'", text)
    if unknown_key:
        value = re.search(rf"use \+{re.escape(unknown_key[1])}=(.*)", text)
        return _unknown_key(unknown_key[1], "VALUE" if value is None else value[1], known_keys, groups)
    unknown_choice = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if unknown_choice:
        return _unknown_choice(unknown_choice[1], unknown_choice[2], text)
    return _of_a_value(text)


def without_dashes(word: str) -> str:
    """Says how a setting is written that was typed as an option of other programs, as `--lr=0.1` is."""
    key, _, value = word.lstrip("-").replace("-", "_").partition("=")
    return f"{word} is no option (all are listed by --hydra-help); settings have no dashes: {key}={value or 'VALUE'}"


def machine_failure(error: BaseException) -> str | None:
    """Says what the system could not write or read for a reason that is neither a setting nor a defect; else None."""
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        said = _NUMBER_IN_TEXT.search(str(cause)) if number is None else None
        number = int(said[1]) if said is not None else number
        if number in _OF_THE_MACHINE:
            assert number is not None
            name = getattr(cause, "filename", None)
            where = "" if name is None else f"{os.fsdecode(name) if isinstance(name, bytes) else name}: "
            return f"{where}{os.strerror(number)}; see to the disk or the machine"
        cause = cause.__cause__ or cause.__context__
    return None


def _of_unread(override: str) -> str:
    """Says how a setting is written that Hydra's grammar does not take, as `ckpt_path=epoch=3.ckpt` and `root=~/a`."""
    key, _, value = override.partition("=")
    if _NESTED.match(value):
        quoted = shlex.quote(f'{key}=["a=b"]')
        return (
            f"{override} cannot be read: close every bracket and quotation mark, and quote names with other characters "
            f"than letters, digits and / . _ - + % @ :, as in {quoted}"
        )
    if value.startswith("~"):
        return f"{override} cannot be read as it stands; write {shlex.quote(typed(key, Path(value).expanduser()))}"
    return f"{override} cannot be read as it stands; write {shlex.quote(typed(key, value))}"


def _of_a_value(text: str) -> str:
    lacks_value = _LACKS_VALUE.search(text)
    if lacks_value:
        return f"{lacks_value[1]} has no value; write {lacks_value[1]}=VALUE, without spaces around ="
    several_values = _SEVERAL_VALUES.search(text)
    if several_values:
        written, key, values = several_values.groups()
        is_place = "/" in values or " " in values
        one = f", {shlex.quote(typed(key, values))} for one name with a comma" if is_place else ""
        return (
            f"{written} names several values; add -m for a run with each, or write '{key}=[{values}]' for a list{one}"
        )
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"{missing[1]} must be given; add {missing[1]}=VALUE to the command"
    unknown_argument = _UNKNOWN_ARGUMENT.fullmatch(text)
    if unknown_argument:
        return f"{unknown_argument[1]} takes no argument {unknown_argument[2]!r}; leave it out ({_ALL_KEYS})"
    lines = (line.strip() for line in _COMPUTING_FAILED.sub("", text).splitlines())
    return " ".join(line for line in lines if line and not line.startswith(_OMEGACONF_DETAILS))


def _innermost(error: BaseException) -> str:
    """The text of the error, unpacked where Hydra wrapped a constructor's into its own."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, WRONG_PLACES) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; name another file or folder"
    text = str(error) or type(error).__name__
    if not _FROM_WORKER.match(text):
        return text
    last = text.strip().rpartition("\n")[2]  # torch puts the traceback of the worker before its error
    return last.partition(": ")[2] or last


def _unknown_key(key: str, value: str, known_keys: Sequence[str], groups: Sequence[str]) -> str:
    known = list(dict.fromkeys([*known_keys, *groups]))
    if key in _WHOLE_ELSEWHERE:
        return f"unknown key {key!r}; use {_WHOLE_ELSEWHERE[key]}"
    if key in known:
        return f"{key} is not a key of the chosen configuration; add it by +{key}=..., {_ALL_KEYS}"
    meant = _name_meant(key, known)
    if meant is not None:
        more = f", {_ONE_OF_SEVERAL[meant].format(value=value)}" if meant in _ONE_OF_SEVERAL else ""
        return f"unknown key {key!r}; write {meant}={value}{more}"
    near = names_near(key, known)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    return f"unknown key {key!r}{hint}. A new key is added by +{key}=..., {_ALL_KEYS}"


def names_near(key: str, known: Sequence[str]) -> list[str]:
    """Up to three names that a key may be called here, the nearest first."""
    meant = _name_meant(key, known)
    if meant is not None:
        return [meant]
    renamed, public = _renamed(key), _public(known)
    as_deep = difflib.get_close_matches(renamed, _as_deep(renamed, public))
    return list(dict.fromkeys([*_same_last(key, public), *as_deep, *difflib.get_close_matches(renamed, public)]))[:3]


def _name_meant(key: str, known: Sequence[str]) -> str | None:
    """What a key is called here, where that is certain."""
    renamed = _renamed(key)
    elsewhere = _KEYS_ELSEWHERE.get(key) or _KEYS_ELSEWHERE.get(key.rpartition(".")[2], "")
    elsewhere = next((name for name in _IN_OTHER_COMMANDS.get(elsewhere, ()) if name in known), elsewhere)
    alike = difflib.get_close_matches(renamed, _as_deep(renamed, _public(known)), cutoff=_CERTAIN)
    for certain in ([renamed], [elsewhere], _same_last(key, known), alike):
        if len(certain) == 1 and certain[0] in (*known, "hydra.run.dir"):
            return str(certain[0])
    return None


def _renamed(key: str) -> str:
    return ".".join(_PARTS_ELSEWHERE.get(part, part) for part in key.split("."))


def _public(known: Sequence[str]) -> list[str]:
    return [name for name in known if not name.rpartition(".")[2].startswith("_")]


def _as_deep(key: str, known: Sequence[str]) -> list[str]:
    return [name for name in known if name.count(".") == key.count(".")]


def _same_last(key: str, known: Sequence[str]) -> list[str]:
    return [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]


def _unknown_choice(group: str, choice: str, text: str) -> str:
    if f"{group}={choice}" in _WHOLE_ELSEWHERE:
        return f"{group}={choice} does not exist; use {_WHOLE_ELSEWHERE[f'{group}={choice}']}"
    available = re.search(r"Available options in '[^']*':\s*(.*)", text, flags=re.DOTALL)
    options = re.findall(r"[\w.-]+", available[1].split("Config search path")[0]) if available else []
    near = difflib.get_close_matches(choice.lower(), options, n=3, cutoff=0.4)
    if not near:
        return f"{group}={choice} does not exist; choose from {', '.join(options)}"
    if len(options) > _MAX_OPTIONS:
        return f"{group}={choice} does not exist; nearest: {', '.join(near[:3])} (all {len(options)} by --help)"
    return f"{group}={choice} does not exist; nearest: {', '.join(near)} (of {', '.join(options)})"
