"""LARS as large-batch probes use it."""

from typing import Any

import timm.optim
from torch import Tensor


class LARS(timm.optim.Lars):  # type: ignore[misc]  # timm is not annotated
    """SGD with momentum whose steps are scaled, tensor by tensor, to the size of the weights (arXiv:1708.03888).

    With g the gradient plus `weight_decay` times w: `q = trust * |w| / |g|`, 1 where either norm is 0;
    `m = momentum * m + q * g`; `w = w - lr * m`. Biases and other vectors take plain steps, without q and without
    decay, as in MAE's linear probe.

    Differs: with weight decay the denominator of q is `|gradient| + weight_decay * |w|`, as the paper has it and timm
    computes it, where MAE takes the norm of the sum; its probe has no decay.

    Args:
        params: Tensors or groups of them, as every optimizer of torch takes them.
        lr: Learning rate.
        momentum: Fraction of the last step kept; MAE A.2 Table 10: 0.9.
        weight_decay: L2 penalty of tensors with two axes or more.
        trust: Size of a step, relative to the weights, at a learning rate of 1; MAE's code: 0.001.
    """

    def __init__(
        self, params: Any, *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, trust_coeff=trust, eps=0.0)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Parts a group into what is scaled and what is not."""
        given = param_group["params"]
        tensors = [given] if isinstance(given, Tensor) else list(given)
        vectors = [tensor for tensor in tensors if tensor.ndim <= 1]
        others = [tensor for tensor in tensors if tensor.ndim > 1]
        if others:
            super().add_param_group({**param_group, "params": others, "always_adapt": True})
        if vectors:
            # timm scales whatever decays, so both are switched off.
            super().add_param_group({**param_group, "params": vectors, "always_adapt": False, "weight_decay": 0.0})
