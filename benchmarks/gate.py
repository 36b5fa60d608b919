"""No call is timed whose result is wrong."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

TF32_EPS = 2.0**-11
FAR = 0.02


class WrongResultError(AssertionError):
    """A call's result is not the operator's."""


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty returns NaN: an element that nobody wrote is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def require_right(name: str, actual: Tensor, expected: Tensor, tf32: bool = False) -> None:
    """actual equals the float64 `expected` within the rounding of its dtype and of its sums.

    With normal inputs a sum of K products has the deviation sqrt(K), as many roundings as that add
    up to one, so the deviation of `expected` tells K.
    """
    error = _error(name, actual, expected)
    deviation = expected.std()
    sums = 8 * torch.finfo(torch.float32).eps * deviation.clamp(min=1) + 8 * TF32_EPS * tf32
    bound = torch.finfo(actual.dtype).eps * expected.abs() + sums * deviation
    if not (error <= bound).all():
        unwritten = int(torch.isnan(error).sum())
        raise WrongResultError(
            f"{name}: {(error / bound).nan_to_num().max():.3g} times the bound, {unwritten} NaN of "
            f"{error.numel()}"
        )


def require_same_problem(name: str, actual: Tensor, expected: Tensor) -> None:
    """actual is the operator's result in some arithmetic: another may sum as it likes."""
    distance = float(_error(name, actual, expected).norm() / expected.norm())
    if not distance <= FAR:
        raise WrongResultError(f"{name}: {distance:.2g} away from the result, relatively")


def _error(name: str, actual: Tensor, expected: Tensor) -> Tensor:
    """NaN where actual is."""
    if actual.shape != expected.shape:
        raise WrongResultError(
            f"{name}: expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}"
        )
    return (actual - expected).abs()
