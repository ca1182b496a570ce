"""Creates timm models for the adapters."""

import difflib
import re
from typing import Any

import timm
from torch import nn

from unmask.backbones.drop_path import share_drop_path

_NAME = re.compile(r"[a-z0-9_.]+")  # timm also takes names that lead to the hub or to a folder; a setting may not


def is_model_name(name: str) -> bool:
    """Whether timm itself has an architecture of that name."""
    return bool(_NAME.fullmatch(name)) and bool(timm.is_model(name))


def create_timm_model(
    name: str, *, family: str, classes: tuple[type, ...], norm_eps: float | None = None, **arguments: Any
) -> Any:
    """Creates a timm model, an untyped `nn.Module`, without its classifier and without weights.

    Args:
        name: A timm model name.
        family: The prefix the adapter serves, such as "swin" or "vit"; used to suggest names.
        classes: Of timm, that the adapter serves.
        norm_eps: Added to variances by every LayerNorm; None means timm's own value.
        arguments: Passed to timm; None means timm's own value for that name.

    Raises:
        ValueError: timm has no model of that name, or it is of another family; the sentence names near ones.
    """
    if not is_model_name(name):
        raise ValueError(f"timm knows no model {name!r}; nearest: {_near(name, family)}")
    given = {key: value for key, value in arguments.items() if value is not None}
    refusal = f"{name} is a model of another family than this backbone adapts; nearest: {_near(name, family)}"
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, **given)
    except TypeError as error:  # its constructor has other arguments
        raise ValueError(refusal) from error
    if not any(isinstance(model, each) for each in classes):
        raise ValueError(refusal)
    if norm_eps is not None:
        for norm in (part for part in model.modules() if isinstance(part, nn.LayerNorm)):
            norm.eps = norm_eps
    share_drop_path(model)
    return model


def _near(name: str, family: str) -> str:
    known = timm.list_models(f"{family}*")
    return ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3])
