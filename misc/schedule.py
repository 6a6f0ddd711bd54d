"""SGD with a polynomially falling learning rate, as both CAM branches and IRNet are trained."""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class PolySGD(torch.optim.SGD):
    """SGD whose step k (from 0) uses lr = lr0 * (1 - k / max_step) ** power.

    From `max_step` on the rate stays at its last value. Every parameter group keeps its own lr0.
    The published optimiser passes its weight decay where SGD expects momentum, so the published
    runs have momentum 1e-4 beside the weight decay of 1e-4; here both are arguments of their own.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float,
        momentum: float,
        max_step: int,
        power: float = 0.9,
    ) -> None:
        """Set up the optimiser.

        Args:
            params: parameters, or groups that may override `lr`, `weight_decay` and `momentum`.
            lr: lr0 of groups without their own.
            weight_decay: L2 penalty.
            momentum: real momentum of SGD; the published runs have 1e-4.
            max_step: number of planned steps, at least 1.
            power: exponent of the decay.

        Raises:
            ValueError: `max_step` is below 1.
        """
        if max_step < 1:
            raise ValueError(f"max_step is {max_step}; a schedule needs at least one step")
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.max_step = max_step
        self.power = power
        self.global_step = 0
        for group in self.param_groups:
            group["initial_lr"] = group["lr"]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Set the rate of this step, then update the parameters."""
        if self.global_step < self.max_step:
            factor = (1 - self.global_step / self.max_step) ** self.power
            for group in self.param_groups:
                group["lr"] = group["initial_lr"] * factor
        loss = super().step(closure)
        self.global_step += 1
        return loss

    def state_dict(self) -> dict[str, Any]:
        """State of SGD plus `global_step`, so that a resumed schedule goes on where it stopped."""
        return {**super().state_dict(), "global_step": self.global_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self.global_step = int(state_dict["global_step"])
