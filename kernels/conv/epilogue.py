"""What a convolution does with its accumulator before it stores it.

    y = act(normalised (acc + bias) + residual)

each step where it is asked for.  Or y = acc + bias, with the statistics of y's channels, as batch
norm in training wants them.  Or y = acc + residual where the gate is open: the gradient of a block
that adds its input to its output, whose act passed gradients only there.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .._common import nhwc
from ..norm.normalise import activated, normalised, row, shut, vector
from ..norm.stats import block_statistics, store_statistics


@triton.jit
def finish(
    acc, y_ptr, offs, rows, n, c, C, channels, part,
    bias_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Stores a tile of y: acc [M, N] at offs, of channels c [N] of all C.

    rows [M], which are n, and channels [N] tell what is inside y; the tile's statistics go to row
    `part` of partial [parts, 3, C].
    """
    inside = rows[:, None] & channels[None, :]
    if bias_ptr is not None:
        acc += vector(bias_ptr, c, channels, 0.0, ACC)[None, :]
    if mean_ptr is not None:
        acc = normalised(acc, mean_ptr, var_ptr, scale_ptr, shift_ptr, c, channels, EPS, ACC)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + offs, mask=inside, other=0.0).to(ACC)
        if gate_ptr is not None:
            gate = tl.load(gate_ptr + offs, mask=inside, other=0.0)
            residual = tl.where(shut(gate, ACTIVATION), 0.0, residual)
        acc += residual
    if gate_ptr is None:
        acc = activated(acc, ACTIVATION)
    tl.store(y_ptr + offs, acc, mask=inside)
    if partial_ptr is not None:
        stored = acc.to(y_ptr.dtype.element_ty).to(ACC)
        mean, m2 = block_statistics(stored, rows[:, None], n.to(ACC))
        store_statistics(partial_ptr, part, c, C, channels, n.to(ACC), mean, m2)


class Epilogue(NamedTuple):
    """The tensors that finish() reads, where given, and how."""

    bias: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: Tensor | None = None
    gate: Tensor | None = None
    eps: float = 0.0
    activation: str = "none"

    def arguments(self, partial: Tensor | None) -> tuple:
        vectors = map(row, self[:5])
        images = (None if t is None else nhwc(t) for t in (self.residual, self.gate))
        return *vectors, *images, partial, self.eps, self.activation


SCHEMA = (
    "Tensor? bias, Tensor? mean, Tensor? var, Tensor? scale, Tensor? shift, Tensor? residual, "
    "Tensor? gate, float eps, str activation"
)
