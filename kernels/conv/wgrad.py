"""Gradient of a convolution with respect to its weights: its private op, over the family that
serves the problem."""

from .._common import empty_in, op
from .dispatch import reduce
from .geometry import SCHEMA


@op(
    "conv2d_wgrad(Tensor dy, Tensor x, SymInt[] w_shape, MemoryFormat memory_format, "
    f"{SCHEMA}, ScalarType? dtype=None) -> Tensor",
    lambda dy, x, w_shape, memory_format, _, dtype=None: empty_in(w_shape, x, memory_format, dtype),
)
def conv2d_wgrad(dy, x, w_shape, memory_format, geometry, dtype=None):
    """In dtype, or else x's."""
    return reduce(dy, x, w_shape, memory_format, geometry, dtype)
