"""Comparing an operator with torch in float64: outputs, gradients, bounds that follow the dtype."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import tritonconv
from launched import repeats, stub
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from tritonconv.conv.dispatch import force_family
from tritonconv.conv.general import tiles

# (element size in bytes, tile) of the tables
EVERY_TILE = sorted(
    {
        (size, tile)
        for tables in (tiles.TILES, tiles.HOPPER, tiles.EXACT, tiles.UNALIGNED)
        for size, table in tables.items()
        for tile in table
    }
)
DTYPE_OF_SIZE = {2: torch.float16, 4: torch.float32, 8: torch.float64}


def integers(*shape: int, most: int = 2, **options) -> Tensor:
    """Small integers: their sums of products are exact in every dtype, whatever the order."""
    return torch.randint(-most, most + 1, shape).to(**options)


class Case(NamedTuple):
    """A call of an operator: the shapes of its tensors (input, weight, bias), and its options."""

    operator: str
    shapes: tuple[tuple[int, ...], ...]
    options: dict[str, Any]

    def tensors(
        self, device: str, dtype=torch.float64, make: Callable = torch.randn
    ) -> list[Tensor]:
        return [make(*shape).to(device, dtype) for shape in self.shapes]

    def ours(self, *tensors: Tensor) -> Tensor:
        return getattr(tritonconv, self.operator)(*tensors, **self.options)

    def theirs(self, *tensors: Tensor) -> Tensor:
        return getattr(F, self.operator)(*tensors, **self.options)

    def expected(self, given: list[Tensor], dy: Tensor | None = None) -> list[Tensor]:
        """torch's output and gradients in float64."""
        dy = None if dy is None else dy.cpu().double()
        return forward_backward(self.theirs, *in_float64(given), dy=dy)

    @property
    def reduced(self) -> int:
        """The most products in a sum: over a window's inputs, or over the pixels for a weight."""
        x, *w = self.shapes
        pixels = math.prod(x) // max(x[-len(w[0]) + 1], 1) if w else 16
        taps = math.prod(w[0]) // max(min(w[0][:2]), 1) if w else 16
        return max(pixels, taps)


def conv2d_case(x_shape, w_shape, bias=True, **options) -> Case:
    """With the groups that the shapes tell."""
    groups = x_shape[1] // w_shape[1]
    shapes = (x_shape, w_shape, w_shape[:1])[: 2 + bias]
    return Case("conv2d", shapes, ({"groups": groups} if groups > 1 else {}) | options)


def assert_family_exact(
    case: Case, family: str, device: str, dtype=torch.float64, config=None
) -> None:
    """Output and every gradient, of small integers."""
    given = case.tensors(device, dtype, integers)
    with force_family(family, config):
        y = case.ours(*given)
        dy = integers(*y.shape, most=1).to(y)
        actual = forward_backward(case.ours, *given, dy=dy)
    assert_equal(actual, [t.to(dtype) for t in case.expected(given, dy)])


def assert_family_fuses(case: Case, family: str, device: str) -> None:
    """conv_bn_relu in training, with a residual: statistics, gradients, all epilogues."""
    x, w, b = case.tensors(device)
    y = case.theirs(x.cpu(), w.cpu(), b.cpu())
    residual = torch.randn(y.shape, dtype=torch.float64, device=device)
    scale, shift = torch.randn(2, y.shape[1], dtype=torch.float64, device=device)

    def ours(x, w, b, scale, shift, residual):
        running = torch.zeros_like(scale), torch.ones_like(scale)
        return tritonconv.conv_bn_relu(
            x, w, b, *running, scale, shift, training=True, residual=residual, **case.options
        )

    def theirs(x, w, b, scale, shift, residual):
        y = F.batch_norm(F.conv2d(x, w, b, **case.options), None, None, scale, shift, True)
        return F.relu(y + residual)

    given = x, w, b, scale, shift, residual
    with force_family(family):
        actual = forward_backward(ours, *given)
    for a, e in zip(actual, forward_backward(theirs, *(t.cpu() for t in given)), strict=True):
        torch.testing.assert_close(a.cpu(), e)


def forward_backward(
    f: Callable, *tensors: Tensor | None, dy: Tensor | None = None
) -> list[Tensor]:
    """f's output and the gradient of every tensor, for the given or a constant random dy."""
    leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
    y = f(*leaves)
    if dy is None:
        dy = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = [t for t in leaves if t is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, dy.to(y))]


def in_float64(tensors: list[Tensor | None]) -> list[Tensor | None]:
    """Contiguous float64 copies on the CPU, where torch's own operators are the oracle."""
    return [t if t is None else t.detach().cpu().to(torch.float64).contiguous() for t in tensors]


def assert_close(
    actual: list[Tensor], expected: list[Tensor], reduced: int, operand_eps: float = 0.0
) -> None:
    """Within the rounding of the result and of a sum of `reduced` products of about 1.

    Such a sum grows with the square root of its length, and so does the error relative to it;
    operand_eps: the rounding of the products' operands (TF32's), whose errors are independent.
    """
    for number, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape, f"result {number} has another shape"
        if stub() is not None:  # its numbers are nobody's
            continue
        eps = torch.finfo(torch.promote_types(a.dtype, torch.float32)).eps
        bound = torch.finfo(a.dtype).eps * e.abs() + 2 * reduced * eps
        bound += 8 * math.sqrt(reduced) * operand_eps
        error = (a.cpu().double() - e).abs()
        assert torch.isfinite(a).all(), f"result {number} is not finite"
        assert (error <= bound).all(), (
            f"result {number}: {(error / bound).max():.3g} times the bound"
        )


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for number, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape, f"result {number} has another shape"
        assert repeats(a.cpu().double(), e.cpu().double()), f"result {number} differs"


class Dispatched(TorchDispatchMode):
    """The names of tritonconv's ops that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "tritonconv":
            self.ours.append(func._schema.name.removeprefix("tritonconv::"))
        return func(*args, **(kwargs or {}))
