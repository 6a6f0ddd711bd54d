"""Learning rates: optimisers with a polynomially falling one, and any other schedule."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

Params = Iterable[torch.Tensor] | Iterable[dict[str, Any]]


def scale_learning_rates(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set the rate of every parameter group to `factor` times its first one.

    The first rate is kept in the group as `initial_lr`, which the optimiser's state carries along.
    """
    for group in optimiser.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


class _PolyDecay(torch.optim.Optimizer):
    """Mixin: step k (from 0) uses lr = lr0 * (1 - k / max_step) ** power.

    With an interval n the rate changes every n steps only: k is rounded down to a multiple of n.
    Every parameter group keeps its own lr0.

    Steps beyond the plan go as in the two published codes: with interval 1 (CAM and IRNet) the
    rate stays at that of step max_step - 1, with a longer one (DeepLab) at that of step max_step,
    which is 0 when n divides max_step.
    """

    max_step: int
    power: float
    interval: int
    global_step: int

    def _start_schedule(self, max_step: int, power: float, interval: int = 1) -> None:
        if max_step < 1:
            raise ValueError(f"max_step is {max_step}; a schedule needs at least one step")
        if interval < 1:
            raise ValueError(f"interval is {interval}; it must be at least one step")
        self.max_step, self.power, self.interval = max_step, power, interval
        self.global_step = 0
        scale_learning_rates(self, 1.0)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Set the rate of this step, then update the parameters."""
        scale_learning_rates(self, self._factor())
        loss = super().step(closure)
        self.global_step += 1
        return loss

    def _factor(self) -> float:
        last = self.max_step - 1 if self.interval == 1 else self.max_step
        step = min(self.global_step, last)
        return (1 - (step - step % self.interval) / self.max_step) ** self.power

    def state_dict(self) -> dict[str, Any]:
        """State of the optimiser plus `global_step`, so that a resumed schedule goes on."""
        return {**super().state_dict(), "global_step": self.global_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self.global_step = int(state_dict["global_step"])


class PolySGD(_PolyDecay, torch.optim.SGD):
    """SGD with poly decay, the published optimiser.

    The published code passes its weight decay where SGD expects momentum, so the published runs
    have momentum 1e-4 beside the weight decay of 1e-4; here both are arguments of their own.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        weight_decay: float,
        momentum: float,
        max_step: int,
        power: float = 0.9,
        interval: int = 1,
    ) -> None:
        """Set up the optimiser.

        Args:
            params: parameters, or groups that may override `lr`, `weight_decay` and `momentum`.
            lr: lr0 of groups without their own.
            weight_decay: L2 penalty.
            momentum: real momentum of SGD; the published runs have 1e-4.
            max_step: number of planned steps, at least 1.
            power: exponent of the decay.
            interval: number of steps between two changes of the rate.

        Raises:
            ValueError: `max_step` or `interval` is below 1.
        """
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self._start_schedule(max_step, power, interval)


class PolyAdamW(_PolyDecay, torch.optim.AdamW):
    """AdamW with poly decay, for transformers that start from random weights."""

    def __init__(
        self, params: Params, lr: float, weight_decay: float, max_step: int, power: float = 0.9
    ) -> None:
        """Set up the optimiser; see `PolySGD` for the arguments and errors.

        The weight decay is decoupled from the gradient.
        """
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self._start_schedule(max_step, power)
