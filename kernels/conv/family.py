"""What a family of convolution kernels tells the dispatcher."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from triton.runtime import KernelInterface

from .problem import Problem

Config = tuple  # a family's own NamedTuple of block sizes


def as_they_are(*operands: Tensor) -> tuple[Tensor, ...]:
    return operands


class Call(NamedTuple):
    """A kernel with everything but its tensors.

    Its arguments are two operands, the result, sizes, for forward and dgrad those of the epilogue,
    and constants by name.
    """

    kernel: KernelInterface
    programs: int
    sizes: tuple
    constants: dict[str, Any]
    parts: int  # of the statistics; for wgrad, of the reduction
    operands: Callable = as_they_are  # of two tensors: what the kernel takes for them
    # of the operands and a dtype: what the kernel takes instead, with sums in that dtype, of which
    # it makes the result; launches what makes the sums
    sums: Callable | None = None


def until_measured(p: Problem) -> bool:
    """A family yields that no measurement has compared with those after it."""
    return True


class Family(NamedTuple):
    """A formulation of one pass."""

    name: str
    declines: Callable[[Problem], str | None]  # why it does not serve a problem, None where it does
    configs: Callable[[Problem], Sequence[Config]]  # all worth trying, the best guess first
    prepare: Callable[[Problem, Config], Call]
    yields: Callable[[Problem], bool] = lambda p: False  # a later family is the better first guess
    undoes: KernelInterface | None = None  # dgrad's, which undoes the batch norm below it, too
    normalised: Callable[[Problem, Config], Call] | None = None  # forward's, of what it normalises
