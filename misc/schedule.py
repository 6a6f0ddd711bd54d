"""Optimisers with a polynomially falling learning rate, as all networks here are trained."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

Params = Iterable[torch.Tensor] | Iterable[dict[str, Any]]


class _PolyDecay(torch.optim.Optimizer):
    """Mixin: step k (from 0) uses lr = lr0 * (1 - k / max_step) ** power.

    From `max_step` on the rate stays at its last value. Every parameter group keeps its own lr0.
    """

    max_step: int
    power: float
    global_step: int

    def _start_schedule(self, max_step: int, power: float) -> None:
        if max_step < 1:
            raise ValueError(f"max_step is {max_step}; a schedule needs at least one step")
        self.max_step, self.power, self.global_step = max_step, power, 0
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
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self._start_schedule(max_step, power)


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
