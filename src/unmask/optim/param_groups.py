"""Which parameters decay, and how fast each depth learns."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import nn

_POSITIONS = ("pos_embed", "relative_position_bias_table", "cpb_mlp", "logit_scale")
_TOKENS = ("cls_token", "mask_token")
WEIGHT_DECAY_POLICIES = ("weights", "tokens", "all")


def is_decayed(name: str, parameter: nn.Parameter, rule: str = "weights") -> bool:
    """Tells whether weight decay applies.

    Args:
        name, parameter: Of the module.
        rule: "weights" spares vectors, biases, tokens, positions and tables of relative positions, as SimMIM; "tokens"
            decays class and mask tokens as well, as MAE's pre-training; "all" spares nothing.
    """
    if rule == "all":
        return True
    if any(part in name for part in _TOKENS):
        return rule == "tokens"
    return parameter.ndim > 1 and not any(part in name for part in _POSITIONS)


def decay_groups(module: nn.Module, *, weight_decay_policy: str = "weights") -> list[dict[str, Any]]:
    """Sorts the trainable parameters into one decayed and one undecayed group for an optimizer."""
    return layer_decay_groups(
        module, layer_id=lambda _: 0, num_layers=0, layer_decay=1.0, lr=None, weight_decay_policy=weight_decay_policy
    )


def layer_decay_groups(
    module: nn.Module,
    *,
    layer_id: Callable[[str], int],
    num_layers: int,
    layer_decay: float,
    lr: float | None,
    weight_decay_policy: str = "weights",
) -> list[dict[str, Any]]:
    """Groups parameters by depth and decay; depth i learns at `lr * layer_decay ** (num_layers - i)`.

    The rate is written into each group as `lr`, never as timm's `lr_scale`, which timm's own schedulers would apply a
    second time.

    Args:
        module: Its trainable parameters are grouped.
        layer_id: Depth of a parameter by name, 0 .. num_layers (`MaskedBackbone.layer_id`).
        num_layers: The depth that learns at the full rate.
        layer_decay: Factor from one depth to the next shallower, in (0, 1].
        lr: Peak rate of the deepest group; None leaves the optimizer's own, and then `layer_decay` must be 1.
        weight_decay_policy: Rule of `is_decayed`.
    """
    if not 0.0 < layer_decay <= 1.0:
        raise ValueError(f"layer_decay must lie above 0 and at most 1, got {layer_decay}")
    if lr is None and layer_decay != 1.0:
        raise ValueError(f"layer_decay={layer_decay} needs the learning rate it is to be taken of")
    groups: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[layer_id(name), is_decayed(name, parameter, weight_decay_policy)].append(parameter)
    return [
        {
            "params": parameters,
            **({} if lr is None else {"lr": lr * layer_decay ** (num_layers - depth)}),
            **({} if decays else {"weight_decay": 0.0}),
        }
        for (depth, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
