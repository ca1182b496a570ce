"""A teacher that follows its student as a moving average."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class EMATeacher(nn.Module):
    """Copies of the student's networks whose weights are an exponential moving average of the student's.

    After an optimizer step over n images `teacher <- m * teacher + (1 - m) * student` with
    `m = exp(-n / time_constant)`, so that neither batch size nor accumulation nor the number of devices changes how
    fast it follows. The first update copies. Its weights get no gradient, and it stays in eval mode whatever mode its
    owner is put in.

    Args:
        networks: The student's, by name; copied.
        time_constant: Images after which a student's weights have faded to 1/e.
        momentum, every_n_steps: In place of `time_constant`: the fraction kept, at the first optimizer step of an
            epoch and every n-th after it (the original DDMIM: 0.999, 32).
        scope: "all" averages every parameter, "stages" those of the backbone's stages alone, as the original DDMIM;
            the others then equal the student's after every step.
        is_of_a_stage: Tells by name, `<network>.<parameter>`, which parameters belong to a stage.
        is_stochastic: Whether the teacher keeps dropping paths in training, as the original DDMIM's does.

    Raises:
        ValueError: Not exactly one of `time_constant` and `momentum` is given, one is out of range, or the scope is
            unknown.
    """

    num_updates: Tensor

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        *,
        time_constant: float | None = None,
        momentum: float | None = None,
        every_n_steps: int = 1,
        scope: str = "all",
        is_of_a_stage: Callable[[str], bool] = lambda _: True,
        is_stochastic: bool = False,
    ) -> None:
        super().__init__()
        if (time_constant is None) == (momentum is None):
            raise ValueError(
                f"a teacher follows by time_constant or by momentum, one of them, got {time_constant} and {momentum}"
            )
        if time_constant is not None and time_constant <= 0:
            raise ValueError(f"the teacher's time_constant must be a positive number of images, got {time_constant}")
        if momentum is not None and not 0.0 <= momentum < 1.0:
            raise ValueError(f"the teacher's momentum must lie in [0, 1), got {momentum}")
        if every_n_steps < 1 or (time_constant is not None and every_n_steps != 1):
            raise ValueError(f"every_n_steps={every_n_steps} must be at least 1, and goes with momentum alone")
        if scope not in ("all", "stages"):
            raise ValueError(f"method.teacher.scope={scope} does not exist; use all or stages")
        self.time_constant = time_constant
        self.momentum = momentum
        self.every_n_steps = every_n_steps
        self.scope = scope
        self.is_of_a_stage = is_of_a_stage
        self.is_stochastic = is_stochastic
        self.networks = nn.ModuleDict({name: copy.deepcopy(network) for name, network in networks.items()})
        self.requires_grad_(False)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self._has_begun = False  # num_updates > 0, known without asking the device
        self.train()

    def __getitem__(self, name: str) -> Any:
        return self.networks[name]

    def train(self, mode: bool = True) -> "EMATeacher":
        return super().train(mode and self.is_stochastic)

    def copy_student(self, networks: Mapping[str, nn.Module]) -> None:
        """Takes the student's weights as they are, as at construction."""
        for name, network in networks.items():
            self.networks[name].load_state_dict(network.state_dict())

    @torch.no_grad()
    def update(self, networks: Mapping[str, nn.Module], *, num_images: int, step_of_epoch: int) -> None:
        """Follows the student; to be called after each optimizer step.

        Args:
            networks: The student's, under the names given at construction.
            num_images: Images the step was taken over, on all devices.
            step_of_epoch: Number of the optimizer step within its epoch, from 0.
        """
        is_due = step_of_epoch % self.every_n_steps == 0
        averaged, copied = [], []
        for name, own, students in self._pairs(networks):
            if self.scope == "stages" and not self.is_of_a_stage(name):
                copied.append((own, students))
            elif is_due:
                averaged.append((own, students))
        if averaged:
            kept = self._fraction_kept(num_images)
            torch._foreach_lerp_(*_columns(averaged), 1.0 - kept)
            self.num_updates += 1
            self._has_begun = True
        if copied:
            torch._foreach_copy_(*_columns(copied))
        for name, network in networks.items():
            for own, students in zip(self.networks[name].buffers(), network.buffers(), strict=True):
                own.copy_(students)

    def time_constant_of(self, num_images: int) -> float:
        """Images after which a student's weights have faded to 1/e, by either setting.

        Args:
            num_images: Images each optimizer step is taken over, on all devices.
        """
        if self.time_constant is not None:
            return self.time_constant
        return -num_images * self.every_n_steps / math.log(self.momentum) if self.momentum else 0.0

    def _fraction_kept(self, num_images: int) -> float:
        if not self._has_begun and not int(self.num_updates):
            return 0.0
        if self.momentum is not None:
            return self.momentum
        assert self.time_constant is not None
        return math.exp(-num_images / self.time_constant)

    def _pairs(self, networks: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor, Tensor]]:
        for network_name, network in networks.items():
            own_parameters = self.networks[network_name].parameters()
            for own, (name, students) in zip(own_parameters, network.named_parameters(), strict=True):
                yield f"{network_name}.{name}", own, students


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    own, students = zip(*pairs, strict=True)
    return list(own), list(students)
