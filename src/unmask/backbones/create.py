"""Creates timm models for the adapters."""

import difflib
from typing import Any

import timm
from torch import nn

from unmask.backbones.drop_path import share_drop_path


def create_timm_model(name: str, *, family: str, norm_eps: float | None = None, **arguments: Any) -> Any:
    """Creates a timm model, an untyped `nn.Module`, without its classifier and without weights.

    Args:
        name: A timm model name.
        family: The prefix the adapter serves, such as "swin" or "vit"; used to suggest names.
        norm_eps: Added to variances by every LayerNorm; None means timm's own value.
        arguments: Passed to timm; None means timm's own value for that name.

    Raises:
        ValueError: timm has no model of that name; the sentence names near ones.
    """
    if not timm.is_model(name):
        known = timm.list_models(f"{family}*")
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
        raise ValueError(f"timm knows no model {name!r}; nearest: {', '.join(near)}")
    given = {key: value for key, value in arguments.items() if value is not None}
    model = timm.create_model(name, pretrained=False, num_classes=0, **given)
    if norm_eps is not None:
        for norm in (part for part in model.modules() if isinstance(part, nn.LayerNorm)):
            norm.eps = norm_eps
    share_drop_path(model)
    return model
