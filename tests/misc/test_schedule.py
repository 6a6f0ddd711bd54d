"""The polynomial schedule against the published optimiser, and its resumption."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch

from misc.schedule import PolyAdamW, PolySGD, scale_learning_rates

Golden = Callable[[str], dict[str, np.ndarray]]


def _minimise(
    optimiser: PolySGD, parameter: torch.nn.Parameter, steps: int
) -> tuple[list[list[float]], list[float]]:
    values, rates = [], []
    for _ in range(steps):
        optimiser.zero_grad()
        (parameter**2).sum().backward()
        optimiser.step()
        values.append(parameter.tolist())
        rates.append(optimiser.param_groups[0]["lr"])
    return values, rates


def _start(momentum: float = 0.01, max_step: int = 7) -> tuple[PolySGD, torch.nn.Parameter]:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    return PolySGD([parameter], 0.1, 0.01, momentum, max_step), parameter


def test_golden(golden: Golden) -> None:
    expected = golden("poly_sgd")
    values, rates = _minimise(*_start(), steps=9)
    np.testing.assert_allclose(values, expected["params"], rtol=1e-6)
    np.testing.assert_allclose(rates, expected["lrs"], rtol=1e-6)


def test_momentum_is_an_option_that_matters(golden: Golden) -> None:
    values, _ = _minimise(*_start(momentum=0.9), steps=3)
    assert not np.allclose(values, golden("poly_sgd")["params"][:3], rtol=1e-3)


def test_rate_falls_by_the_formula_and_then_stays() -> None:
    _, rates = _minimise(*_start(max_step=4), steps=6)
    expected = [0.1 * (1 - min(step, 3) / 4) ** 0.9 for step in range(6)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_groups_keep_their_own_rate() -> None:
    a, b = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimiser = PolySGD([{"params": [a]}, {"params": [b], "lr": 1.0}], 0.1, 0.0, 0.0, max_step=4)
    for _ in range(3):
        optimiser.step()
    rates = [group["lr"] for group in optimiser.param_groups]
    np.testing.assert_allclose(rates, [0.1 * 0.5**0.9, 0.5**0.9])


def test_resumed_equals_uninterrupted() -> None:
    whole, _ = _minimise(*_start(momentum=0.9), steps=9)
    optimiser, parameter = _start(momentum=0.9)
    _minimise(optimiser, parameter, steps=4)
    state, stopped = copy.deepcopy(optimiser.state_dict()), parameter.detach().clone()
    optimiser, parameter = _start(momentum=0.9)
    parameter.data.copy_(stopped)
    optimiser.load_state_dict(state)
    rest, _ = _minimise(optimiser, parameter, steps=5)
    assert rest == whole[4:]


def test_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        _start(max_step=0)
    with pytest.raises(ValueError, match="interval is 0"):
        _stepwise(max_step=4, interval=0)


# --------------------------------------------------------------------- a rate that falls in steps


def _stepwise(max_step: int, interval: int) -> PolySGD:
    parameter = torch.nn.Parameter(torch.ones(1))
    return PolySGD([parameter], 2.5e-4, 0.0, 0.9, max_step, interval=interval)


def _rates(optimiser: torch.optim.Optimizer, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        optimiser.step()
        rates.append(optimiser.param_groups[0]["lr"])
    return rates


def test_deeplab_golden(golden: Golden) -> None:
    # The rate after iteration k is that of step k, counted from 0.
    expected = golden("deeplab")["poly_lr"]
    rates = _rates(_stepwise(max_step=200, interval=10), len(expected) + 1)
    assert rates[0] == 2.5e-4
    np.testing.assert_allclose(rates[1:], expected, rtol=1e-5)


def test_rate_changes_at_multiples_of_the_interval_only() -> None:
    factors = [1, 1, 1, 0.4**0.9, 0.4**0.9, 0.4**0.9, 0.4**0.9]  # 5 is no multiple of 3
    np.testing.assert_allclose(
        _rates(_stepwise(max_step=5, interval=3), 7), [2.5e-4 * factor for factor in factors]
    )


def test_resumed_stepwise_schedule_goes_on() -> None:
    whole = _rates(_stepwise(max_step=20, interval=4), 20)
    first, second = (_stepwise(max_step=20, interval=4) for _ in range(2))
    _rates(first, 6)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert _rates(second, 14) == whole[6:]


def test_scaled_rates_start_from_the_first_ones() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in (0.1, 1.0)]
    optimiser = torch.optim.SGD(groups, 0.1)
    for factor in (0.5, 0.1, 0.1):
        scale_learning_rates(optimiser, factor)
    assert [group["lr"] for group in optimiser.param_groups] == [0.1 * 0.1, 0.1]


def test_scaled_rates_survive_a_resumption() -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    first, second = (torch.optim.AdamW([parameter], 0.1) for _ in range(2))
    scale_learning_rates(first, 0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.param_groups[0]["lr"] == 0.1 * 0.1
    scale_learning_rates(second, 0.5)
    assert second.param_groups[0]["lr"] == 0.1 * 0.5


def test_adamw_has_the_same_schedule() -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    rates = _rates(PolyAdamW([parameter], 0.1, 0.0, max_step=4), 5)
    np.testing.assert_allclose(rates, [0.1 * (1 - min(k, 3) / 4) ** 0.9 for k in range(5)])
