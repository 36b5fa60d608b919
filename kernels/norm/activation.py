"""What stands behind a normalisation or a convolution, and its gradient.

An activation is a string, named as in torch.nn.functional; gelu_tanh is gelu by tanh, and the slope
of leaky_relu may stand behind its name: "leaky_relu(0.1)", in place of 0.01.
"""

from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "sigmoid": F.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}


def name_of(activation: str) -> str:
    return activation.partition("(")[0]


def slope_of(activation: str) -> float:
    """leaky_relu's below zero."""
    slope = activation.partition("(")[2]
    return float(slope.removesuffix(")")) if slope else 0.01


def leaky_relu(slope: float) -> str:
    return f"leaky_relu({float(slope)!r})"


def is_activation(value: object) -> bool:
    """Whether value is the name of one."""
    if not isinstance(value, str) or name_of(value) not in FUNCTIONS:
        return False
    if "(" not in value:
        return True
    try:
        return value == leaky_relu(slope_of(value))
    except ValueError:
        return False


def activate(y: Tensor, activation: str) -> Tensor:
    """torch's function, with gradients of every order."""
    if "(" in activation:
        return F.leaky_relu(y, slope_of(activation))
    return FUNCTIONS[activation](y)


def told(activation: str) -> bool:
    """Whether the result alone tells the gradient."""
    return gates(activation) or activation in ("sigmoid", "hardsigmoid")


def gates(activation: str) -> bool:
    """Whether the result alone tells the gradient, which is a step of it."""
    if name_of(activation) == "leaky_relu":
        return slope_of(activation) >= 0
    return passes_once(activation)


def passes_once(activation: str) -> bool:
    """Whether what it has passed back it leaves as it is."""
    return activation in ("none", "relu", "relu6")


def passed_back(dy: Tensor, y: Tensor, activation: str) -> Tensor:
    """The gradient before one that gates, told by its result y; as a function of dy."""
    if activation == "none":
        return dy
    if name_of(activation) == "leaky_relu":
        return dy.where(y > 0, dy * slope_of(activation))
    return dy.masked_fill((y <= 0) | (y >= 6) if activation == "relu6" else y <= 0, 0)


NAME, SLOPE = triton.constexpr_function(name_of), triton.constexpr_function(slope_of)


@triton.jit
def activated(y, ACTIVATION: tl.constexpr):
    """y [...], in the dtype it is computed in, through ACTIVATION; NaN stays."""
    KIND: tl.constexpr = NAME(ACTIVATION)
    if KIND == "relu" or KIND == "relu6":
        y = tl.where(y < 0, 0.0, y)
    if KIND == "relu6":
        y = tl.where(y > 6, 6.0, y)
    if KIND == "leaky_relu":
        y = tl.where(y > 0, y, y * SLOPE(ACTIVATION))
    if KIND == "silu":
        y = y / (1 + tl.exp(-y))
    if KIND == "hardswish":
        y = y * _hardsigmoid(y)
    if KIND == "gelu" or KIND == "gelu_tanh":
        y = y * _gelu_share(y, KIND)
    if KIND == "sigmoid":
        y = tl.sigmoid(y)
    if KIND == "hardsigmoid":
        y = _hardsigmoid(y)
    return y


@triton.jit
def passed(dy, y, ACTIVATION: tl.constexpr, RESULT: tl.constexpr):
    """The gradient before ACTIVATION, dy [...] being that behind it.

    y is its result where RESULT says so, which must be one that tells, and else its argument.
    """
    KIND: tl.constexpr = NAME(ACTIVATION)
    if KIND == "relu":
        dy = tl.where(y <= 0, 0.0, dy)
    if KIND == "relu6":
        dy = tl.where((y <= 0) | (y >= 6), 0.0, dy)
    if KIND == "leaky_relu":
        dy = tl.where(y > 0, dy, dy * SLOPE(ACTIVATION))
    if KIND == "silu":
        share = tl.sigmoid(y)
        dy *= share * (1 + y * (1 - share))
    if KIND == "hardswish":
        dy *= tl.where(y <= -3, 0.0, tl.where(y < 3, y / 3 + 0.5, 1.0))
    if KIND == "gelu":
        dy *= _gelu_share(y, KIND) + y * tl.exp(y * y * -0.5) * 0.3989422804014327
    if KIND == "gelu_tanh":
        share = _gelu_share(y, KIND)
        inner = 1.5957691216057308 + 0.21406444881780076 * y * y
        dy *= share + y * share * (1 - share) * inner
    if KIND == "sigmoid":
        share = y if RESULT else tl.sigmoid(y)
        dy *= share * (1 - share)
    if KIND == "hardsigmoid":
        inside = (y > 0) & (y < 1) if RESULT else (y > -3) & (y < 3)
        dy = tl.where(inside, dy / 6, 0.0)
    return dy


@triton.jit
def _hardsigmoid(y):
    share = y / 6 + 0.5
    share = tl.where(share < 0, 0.0, share)
    return tl.where(share > 1, 1.0, share)


@triton.jit
def _gelu_share(y, KIND: tl.constexpr):
    """Of y what gelu leaves: the normal distribution's integral up to y, or near it by tanh."""
    if KIND == "gelu":
        share = 0.5 + 0.5 * tl.erf(y * 0.7071067811865476)
    else:  # (1 + tanh(a)) / 2 is the sigmoid of 2 a
        share = tl.sigmoid(y * (1.5957691216057308 + 0.07135481627260025 * y * y))
    return share
