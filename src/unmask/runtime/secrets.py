"""Keeps passwords and access tokens out of everything a run writes."""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf

REDACTED = "<redacted>"
_EXIT_FIXABLE = 2

# Of settings, by the last part of a dotted name; `mask_token` and `token_size` are none.
_SECRET_NAME = re.compile(
    r"(^|[._])(pass(word|wd|phrase)?|secret|credentials?|private_key|(api|access|auth|secret|account|kaggle)_?key"
    r"|(api|access|auth|bearer|hf|hub|wandb|session|refresh)_?token)$|(^|\.)token$",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)$", re.IGNORECASE)
_LOGIN_IN_URL = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")  # user:password
_MIN_LENGTH = 6  # characters; a shorter value of such a variable would also be found in words that are no secret


class RefuseSecrets(Callback):
    """Stops a command whose configuration holds a secret in plain text, before Hydra writes that configuration."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        _refuse(config)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _refuse(config)


def require_no_secrets(config: DictConfig) -> None:
    """Refuses settings that are secrets by their name and hold their value, not the name of a variable.

    Raises:
        ValueError: There is one.
    """
    for name, value in _literals(config):
        if (_SECRET_NAME.search(name) and value) or _LOGIN_IN_URL.search(value):
            raise ValueError(
                f"{name} looks like a secret or holds a password, and a run writes its settings into its folder and "
                "its logs; set it in the environment (WANDB_API_KEY, HF_TOKEN) and leave it out here, or write "
                f"{name}='${{oc.env:NAME_OF_A_VARIABLE}}'"
            )


def redacted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Copies resolved settings without secrets.

    A secret is the value of a setting or of an environment variable that is one by its name (`api_key`,
    WANDB_API_KEY), and a login in a URL; it is replaced wherever it stands, also within other strings.
    """
    secrets = _values_of_secrets(settings)
    return {name: _without(secrets, value, name) for name, value in settings.items()}


def redacted_for_its_owner(part: str, settings: Mapping[str, Any]) -> Any:
    """Copies one of the resolved settings for the object that is built of it.

    What is a secret by its own name is what the object logs in with, and stays. A secret within another string, the tag
    of a run for example, would be sent or written where everyone reads it.
    """
    return _without(_values_of_secrets(settings), settings[part], part, keeps_named=True)


def _values_of_secrets(settings: Mapping[str, Any]) -> list[str]:
    """Longest first, since one may be part of another."""
    values = {value for name, value in _strings(settings) if _SECRET_NAME.search(name)}
    values |= {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)}
    return sorted((value for value in values if len(value) >= _MIN_LENGTH), key=len, reverse=True)


def _without(secrets: Sequence[str], value: Any, name: str, *, keeps_named: bool = False) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(secrets, item, str(key), keeps_named=keeps_named) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without(secrets, item, name, keeps_named=keeps_named) for item in value]
    if not isinstance(value, str):
        return value
    if value and _SECRET_NAME.search(name):
        return value if keeps_named else REDACTED
    for secret in secrets:
        value = value.replace(secret, REDACTED)
    return _LOGIN_IN_URL.sub(REDACTED, value)


def _strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yields every string of nested containers by its key."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(item, str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item, name)
    elif isinstance(value, str):
        yield name, value


def _refuse(config: DictConfig) -> None:
    try:
        require_no_secrets(config)
    except ValueError as error:
        # Hydra turns exceptions of a callback into warnings and goes on; it does not catch this one.
        sys.stderr.write(f"error: {error}\n")
        sys.exit(_EXIT_FIXABLE)


def _literals(node: DictConfig | ListConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields every setting written as a string, by its dotted name; interpolations are not resolved."""
    keys = range(len(node)) if isinstance(node, ListConfig) else list(node)
    for key in keys:
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        name = prefix.removesuffix(".") if isinstance(node, ListConfig) else f"{prefix}{key}"
        value = node[key]
        if isinstance(value, DictConfig | ListConfig):
            yield from _literals(value, f"{name}.")
        elif isinstance(value, str):
            yield name, value
