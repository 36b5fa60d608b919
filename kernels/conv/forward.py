"""Convolution forward: its private ops, over the family that serves the problem."""

from .._common import empty_in, op
from .._split import sum_dtype
from . import epilogue
from .dispatch import convolve, convolve_normalised
from .epilogue import Epilogue
from .geometry import SCHEMA, from_flat


def _fake(x, w, memory_format, geometry):
    return empty_in(from_flat(geometry).y_shape(x.shape, w.shape), x, memory_format)


@op(
    f"conv2d(Tensor x, Tensor w, Tensor? bias, MemoryFormat memory_format, {SCHEMA}) -> Tensor",
    lambda x, w, bias, *how: _fake(x, w, *how),
)
def conv2d_forward(x, w, bias, *how):
    return convolve("forward", x, w, x.shape, Epilogue(bias), False, *how)[0]


@op(
    "conv2d_stats(Tensor x, Tensor w, Tensor? bias, MemoryFormat memory_format, "
    f"{SCHEMA}) -> (Tensor, Tensor)",
    lambda x, w, bias, *how: (
        _fake(x, w, *how),
        x.new_empty((2, w.shape[0]), dtype=sum_dtype(x.dtype)),
    ),
)
def conv2d_stats(x, w, bias, *how):
    """y, which has elements, and [mean, var] of its channels."""
    return convolve("forward", x, w, x.shape, Epilogue(bias), True, *how)


def _fake_normalised_stats(c, mean, var, scale, shift, eps, activation, w, bias, *how):
    return _fake(c, w, *how), c.new_empty((2, w.shape[0]), dtype=sum_dtype(c.dtype))


@op(
    "conv2d_normalised_stats(Tensor c, Tensor? mean, Tensor? var, Tensor? scale, Tensor? shift, "
    "float eps, str activation, Tensor w, Tensor? bias, MemoryFormat memory_format, "
    f"{SCHEMA}) -> (Tensor, Tensor)",
    _fake_normalised_stats,
)
def conv2d_normalised_stats(c, mean, var, scale, shift, eps, activation, *how):
    """conv2d_stats of activation(normalised c)."""
    return convolve_normalised(c, (mean, var, scale, shift, eps), activation, *how)


@op(
    f"conv2d_fused(Tensor x, Tensor w, {epilogue.SCHEMA}, MemoryFormat memory_format, "
    f"{SCHEMA}) -> Tensor",
    lambda x, w, *args: _fake(x, w, *args[-2:]),
)
def conv2d_fused(x, w, *args):
    """As the epilogue says."""
    *end, memory_format, geometry = args
    return convolve("forward", x, w, x.shape, Epilogue(*end), False, memory_format, geometry)[0]
