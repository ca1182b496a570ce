"""Which parameters decay, and how fast each depth learns."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import nn

_POSITION_BIAS = ("relative_position_bias_table", "cpb_mlp", "logit_scale")
_POSITIONS = ("pos_embed", *_POSITION_BIAS)
_TOKENS = ("cls_token", "mask_token")
_ALSO_DECAYED = {  # by policy: of what only some decay
    "weights": (),
    "tokens": _TOKENS,
    "position_bias": _POSITION_BIAS,
    "mask_token_and_position_bias": ("mask_token", *_POSITION_BIAS),
}
WEIGHT_DECAY_POLICIES = (*_ALSO_DECAYED, "all")


def is_decayed(name: str, parameter: nn.Parameter, policy: str = "weights") -> bool:
    """Tells whether weight decay applies.

    Args:
        name, parameter: Of the module.
        policy: "weights" spares vectors, biases, tokens, positions and whatever relative positions enter attention by:
            Swin's and BEiT's tables, Swin V2's small networks and scales. "tokens" decays class and mask tokens as
            well, as MAE's pre-training does; "position_bias" those tables, networks and scales (but for their biases),
            as SimMIM's official code does where it pre-trains Swin and fine-tunes ViT;
            "mask_token_and_position_bias" these and the mask token, as where it pre-trains ViT. "all" spares nothing.
    """
    if policy == "all":
        return True
    also = _ALSO_DECAYED[policy]
    if any(part in name for part in _TOKENS):
        return any(part in name for part in also)  # whatever its shape: a token may be kept as a vector
    if parameter.ndim <= 1:
        return False
    return not any(part in name for part in _POSITIONS) or any(part in name for part in also)


def require_weight_decay_policy(policy: str) -> None:
    """Raises a ValueError that lists the policies unless it is one of them."""
    if policy not in WEIGHT_DECAY_POLICIES:
        raise ValueError(f"weight_decay_policy must be one of {', '.join(WEIGHT_DECAY_POLICIES)}, got {policy!r}")


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
    second time; with it goes a `name`, `layer_03`, under which the rate is logged.

    Args:
        module: Its trainable parameters are grouped.
        layer_id: Depth of a parameter by name, 0 .. num_layers (`MaskedBackbone.layer_id`).
        num_layers: The depth that learns at the full rate.
        layer_decay: Factor from one depth to the next shallower, in (0, 1].
        lr: Peak rate of the deepest group; None leaves the optimizer's own, and then `layer_decay` must be 1.
        weight_decay_policy: See `is_decayed`.
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
            **({} if lr is None else {"lr": lr * layer_decay ** (num_layers - depth), "name": f"layer_{depth:02d}"}),
            **({} if decays else {"weight_decay": 0.0}),
        }
        for (depth, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
