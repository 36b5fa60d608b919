"""Gradient of a convolution with respect to its input, which with a bias is the transposed
convolution: its private ops, over the family that serves the problem."""

from .._common import empty_in, op
from .._split import sum_dtype
from . import epilogue
from .dispatch import convolve
from .epilogue import Epilogue
from .geometry import SCHEMA


@op(
    "conv2d_dgrad(Tensor dy, Tensor w, Tensor? bias, SymInt[] x_shape, "
    f"MemoryFormat memory_format, {SCHEMA}) -> Tensor",
    lambda dy, w, bias, x_shape, memory_format, _: empty_in(x_shape, dy, memory_format),
)
def conv2d_dgrad(dy, w, bias, x_shape, *how):
    return convolve("dgrad", dy, w, x_shape, Epilogue(bias), False, *how)[0]


@op(
    "conv2d_dgrad_stats(Tensor dy, Tensor w, Tensor? bias, SymInt[] x_shape, "
    f"MemoryFormat memory_format, {SCHEMA}) -> (Tensor, Tensor)",
    lambda dy, w, bias, x_shape, memory_format, _: (
        empty_in(x_shape, dy, memory_format),
        dy.new_empty((2, x_shape[1]), dtype=sum_dtype(dy.dtype)),
    ),
)
def conv2d_dgrad_stats(dy, w, bias, x_shape, *how):
    """dx, which has elements, and [mean, var] of its channels."""
    return convolve("dgrad", dy, w, x_shape, Epilogue(bias), True, *how)


@op(
    f"conv2d_dgrad_fused(Tensor dy, Tensor w, {epilogue.SCHEMA}, SymInt[] x_shape, "
    f"MemoryFormat memory_format, {SCHEMA}) -> Tensor",
    lambda dy, w, *args: empty_in(args[-3], dy, args[-2]),
)
def conv2d_dgrad_fused(dy, w, *args):
    """As the epilogue says."""
    *end, x_shape, memory_format, geometry = args
    return convolve("dgrad", dy, w, x_shape, Epilogue(*end), False, memory_format, geometry)[0]
