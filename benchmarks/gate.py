"""No call is timed whose result is wrong."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

TF32_EPS = 2.0**-11
FAR = 0.02
CLOSE = 3.0
SUMS = 1e-5  # what float32's sums may differ by, relatively, in another order


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


def require_as_close(
    name: str, actual: Sequence[Tensor], expected: Sequence[Tensor], torchs: Sequence[Tensor]
) -> None:
    """Each of actual is nearly as close to `expected`, which is more precise, as torch's own is.

    For results of several roundings one after another, whose sum has no bound of its own: a ReLU
    passes or not by the last bit.  Where torch's own is further off than half of what is expected,
    rounding alone decides, and anything finite passes.
    """
    for i, (a, e, t) in enumerate(zip(actual, expected, torchs, strict=True)):
        norm = e.norm()
        error, torchs_error = _error(name, a, e).norm(), _error(name, t, e).norm()
        known = torchs_error <= norm / 2
        bound = CLOSE * torchs_error + (torch.finfo(a.dtype).eps + SUMS) * norm
        if not (error <= bound if known else error.isfinite()):
            raise WrongResultError(
                f"{name}: result {i} is {float(error / norm):.2g} away, relatively, and torch's "
                f"{float(torchs_error / norm):.2g}"
            )


def _error(name: str, actual: Tensor, expected: Tensor) -> Tensor:
    """NaN where actual is."""
    if actual.shape != expected.shape:
        raise WrongResultError(
            f"{name}: expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}"
        )
    return (actual - expected).abs()
