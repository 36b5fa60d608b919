"""Gradient of a convolution with respect to its input, which with a bias is the transposed
convolution: its private ops, over the family that serves the problem."""

import torch

from .._common import empty_in, op
from .._split import sum_dtype
from ..norm.backward import batch_norm_sums_and_y
from . import epilogue
from .dispatch import convolve, takes_sums, undone
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


def _fake_undone(dy, w, c, *args):
    z = empty_in(c.shape, c, torch.channels_last)
    return z, torch.empty_like(z), c.new_empty((2, c.shape[1]), dtype=sum_dtype(c.dtype))


@op(
    "conv2d_dgrad_undone(Tensor dy, Tensor w, Tensor c, Tensor? mean, Tensor? var, Tensor? scale, "
    f"Tensor? shift, float eps, str activation, {SCHEMA}) -> (Tensor, Tensor, Tensor)",
    _fake_undone,
)
def conv2d_dgrad_undone(dy, w, c, *args):
    """Where w was convolved with z = activation(norm(c)): z's gradient, z, and the sums for c's.

    The gradient may be passed back through the activation already, which must be one that does the
    same to it once more.
    """
    *norm, activation, geometry = args
    choice = takes_sums(dy, w, c.shape, geometry)
    if choice is not None:
        return undone(choice, dy, w, c, norm, activation)
    dz = conv2d_dgrad(dy, w, None, c.shape, torch.channels_last, geometry)
    sums, z = batch_norm_sums_and_y(dz, c, *norm, activation)
    return dz, z, sums
