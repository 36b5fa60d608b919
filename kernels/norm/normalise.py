"""Normalisation with given mean and variance, a residual added and the whole through an activation.

    y = act((x - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c] + residual)

Without mean and variance it is act(x + residual).  The residual is a tensor like x, taken as it is
or itself normalised.  A program owns a tile of pixels by channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._common import (
    accumulator,
    empty_in,
    empty_nhwc,
    index_type,
    leave,
    nhwc,
    op,
    pixel_blocks,
    tile,
    units,
)
from .._launch import launch
from .activation import activated


@triton.jit
def vector(ptr, c, inside, other, ACC: tl.constexpr):
    """What channels c have in a vector [C]; `other` for all where there is none."""
    if ptr is None:
        values = tl.full(c.shape, other, ACC)
    else:
        values = tl.load(ptr + c, mask=inside, other=other).to(ACC)
    return values


@triton.jit
def coefficients(
    mean_ptr, var_ptr, w_ptr, b_ptr, c, inside, EPS: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Of channels c: mean, 1 / sqrt(var + eps), that times weight, and bias."""
    rstd = tl.rsqrt(vector(var_ptr, c, inside, 1.0, ACC) + EPS)
    scale = rstd
    if w_ptr is not None:
        scale *= vector(w_ptr, c, inside, 0.0, ACC)
    mean = vector(mean_ptr, c, inside, 0.0, ACC)
    return mean, rstd, scale, vector(b_ptr, c, inside, 0.0, ACC)


@triton.jit
def normalised(
    x, mean_ptr, var_ptr, w_ptr, b_ptr, c, inside, EPS: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """x [P, C] of channels c, normalised; inside tells which of the channels there are."""
    mean, _, scale, shift = coefficients(mean_ptr, var_ptr, w_ptr, b_ptr, c, inside, EPS, ACC)
    return (x - mean[None, :]) * scale[None, :] + shift[None, :]


@triton.jit(do_not_specialize=("pixels",))
def _batch_norm_fwd_kernel(
    x_ptr, mean_ptr, var_ptr, w_ptr, b_ptr,  # x [pixels, C], the others [C]
    r_ptr, r_mean_ptr, r_var_ptr, r_w_ptr, r_b_ptr,  # the residual's
    y_ptr, pixels, C,
    ACTIVATION: tl.constexpr, EPS: tl.constexpr, R_EPS: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
    UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    _, c, offs, inside = tile(pixels, C, INDEX, BLOCK_P, BLOCK_C)
    x = tl.load(x_ptr + offs, mask=inside, other=0.0).to(ACC)
    y = normalised(x, mean_ptr, var_ptr, w_ptr, b_ptr, c, c < C, EPS, ACC)
    if r_ptr is not None:
        r = tl.load(r_ptr + offs, mask=inside, other=0.0).to(ACC)
        if r_mean_ptr is not None:
            r = normalised(r, r_mean_ptr, r_var_ptr, r_w_ptr, r_b_ptr, c, c < C, R_EPS, ACC)
        y += r
    tl.store(y_ptr + offs, activated(y, ACTIVATION), mask=inside)


def row(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def elements(dtype: torch.dtype) -> int:
    """Of a program's tile: 32 bytes of each tensor for each of 128 threads, 64 of float32."""
    return 512 if dtype == torch.float64 else 2048


NO_RESIDUAL = (None, None, None, None, None, 0.0)  # and its mean, variance, weight, bias and eps


@op(
    "batch_norm(Tensor x, Tensor? mean, Tensor? var, Tensor? w, Tensor? b, float eps, "
    "Tensor? r, Tensor? r_mean, Tensor? r_var, Tensor? r_w, Tensor? r_b, float r_eps, "
    "str activation, MemoryFormat memory_format) -> Tensor",
    lambda x, *args: empty_in(x.shape, x, args[-1]),
)
def batch_norm(
    x, mean, var, w, b, eps, r, r_mean, r_var, r_w, r_b, r_eps, activation, memory_format
):
    N, C, H, W = x.shape
    y = empty_nhwc(x.shape, x, memory_format)
    programs, blocks = pixel_blocks(N * H * W, C, elements(y.dtype))
    launch(
        _batch_norm_fwd_kernel, programs,
        nhwc(x), row(mean), row(var), row(w), row(b),
        None if r is None else nhwc(r), row(r_mean), row(r_var), row(r_w), row(r_b),
        y, N * H * W, C,
        activation, eps, r_eps, accumulator(x.dtype), index_type(x),
        out=y, **blocks,
    )  # fmt: skip
    return leave(y, memory_format)
