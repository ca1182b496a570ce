"""Refuses values of another type for the keys that no constructor takes by themselves."""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from omegaconf import DictConfig

_LARGEST_SEED = 2**32 - 1  # that NumPy's generators take
_LARGEST_COUNT = 2**31 - 1


class _Kind(NamedTuple):
    words: str  # what a value must be, behind "must be"
    is_one: Callable[[Any], bool]


def _whole(smallest: int, largest: int) -> _Kind:
    return _Kind(
        f"a whole number from {smallest} to {largest}",
        lambda value: type(value) is int and smallest <= value <= largest,
    )


_NUMBER = _Kind(
    "a number", lambda value: isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)
)
_SWITCH = _Kind("true or false", lambda value: type(value) is bool)


def _or_null(kind: _Kind) -> _Kind:
    return _Kind(f"{kind.words}, or null", lambda value: value is None or kind.is_one(value))


_COUNT = _whole(1, _LARGEST_COUNT)
_POSITIVE = _Kind("a number above 0", lambda value: _NUMBER.is_one(value) and value > 0)
# Of keys at the top of run.yaml, eval.yaml, inspect.yaml or pack.yaml; ranges are looked at where values are used.
_KINDS = {
    "seed": _whole(0, _LARGEST_SEED),
    "global_batch_size": _COUNT,
    "images_per_device": _or_null(_COUNT),
    "base_lr": _NUMBER,
    "base_batch_size": _NUMBER,
    "drop_path_rate": _NUMBER,
    "mixup": _NUMBER,
    "cutmix": _NUMBER,
    "crop_pct": _or_null(_NUMBER),
    "checkpoint_every_minutes": _or_null(_NUMBER),
    "checkpoint_every_n_epochs": _or_null(_COUNT),
    "follow_data": _or_null(_SWITCH),
    "allow_partial": _SWITCH,
    "use_ema_weights": _SWITCH,
    "decoded_images": _COUNT,
    "seconds_of_loading": _POSITIVE,
    "timed_steps": _whole(0, _LARGEST_COUNT),
    "size": _or_null(_COUNT),
    "jpeg_quality": _COUNT,
    "images_per_shard": _COUNT,
    "timing_seconds": _NUMBER,
}


def require_types(config: DictConfig, names: Collection[str] = tuple(_KINDS)) -> None:
    """Looks at the types of the top-level keys.

    Args:
        config: Of a command.
        names: Of the keys; those that the command does not have are left out.

    Raises:
        ValueError: A value is of another type, not finite, or beyond what any run could take.
    """
    for name in names:
        kind = _KINDS[name]
        if name in config and not kind.is_one(config[name]):
            raise ValueError(f"{name} must be {kind.words}, got {config[name]!r}")
