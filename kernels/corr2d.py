"""Cross-correlation of two plain matrices: the definition the library starts from.

    y[i, j] = sum_{a, b} x[i + a - PH, j + b - PW] * k[a, b],    x zero outside its bounds

Sums run in float32 (float64 for float64).  A program owns BLOCK consecutive elements of y.  Both
gradients are cross-correlations again, of dy with the flipped k and of x with dy, so every
derivative is this one kernel.  conv2d is the operator for batches and channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import accumulator, check_tensor, index_type, op, public
from ._launch import INTERPRETED, INTERPRETED_BLOCK, launch
from ._recall import Applied, recalled

BLOCK = INTERPRETED_BLOCK if INTERPRETED else 256


@triton.jit
def _corr2d_kernel(
    x_ptr, k_ptr, y_ptr, H, W, KH, KW, OH, OW, PH, PW,  # x [H, W], k [KH, KW], y [OH, OW]
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.cast(tl.program_id(0), INDEX) * BLOCK + tl.arange(0, BLOCK)
    i, j = offs // OW - PH, offs % OW - PW
    acc = tl.zeros((BLOCK,), ACC)
    for a in range(KH):
        for b in range(KW):
            h, w = i + a, j + b
            inside = (offs < OH * OW) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            acc += tl.load(x_ptr + h * W + w, mask=inside, other=0.0).to(ACC) * tl.load(
                k_ptr + a * KW + b
            ).to(ACC)
    tl.store(y_ptr + offs, acc, mask=offs < OH * OW)


def _y_shape(x, k, padding):
    return [n + 2 * p - m + 1 for n, m, p in zip(x.shape, k.shape, padding, strict=True)]


@op(
    "corr2d(Tensor x, Tensor k, SymInt[] padding) -> Tensor",
    lambda x, k, padding: x.new_empty(_y_shape(x, k, padding)),
)
def _corr2d(x, k, padding):
    y = x.new_empty(_y_shape(x, k, padding))
    x, k = x.contiguous(), k.contiguous()
    block = min(BLOCK, triton.next_power_of_2(y.numel()))
    launch(
        _corr2d_kernel, triton.cdiv(y.numel(), block),
        x, k, y, *x.shape, *k.shape, *y.shape, *padding,
        accumulator(x.dtype), index_type(x, k, y), block, out=y,
    )  # fmt: skip
    return y


class Corr2dFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, k, padding):
        ctx.save_for_backward(x, k)
        ctx.padding = padding
        return _corr2d(x, k, padding)

    @staticmethod
    def backward(ctx, dy):
        x, k = ctx.saved_tensors
        dx = dk = None
        if ctx.needs_input_grad[0]:
            full = tuple(m - 1 - p for m, p in zip(k.shape, ctx.padding, strict=True))
            dx = Corr2dFunction.apply(dy, k.flip(0, 1), full)
        if ctx.needs_input_grad[1]:
            dk = Corr2dFunction.apply(x, dy, ctx.padding)
        return dx, dk, None


@public
def corr2d(x: Tensor, k: Tensor) -> Tensor:
    """Cross-correlates two matrices: [H, W], [KH, KW] -> [H - KH + 1, W - KW + 1].

    float32, float16, bfloat16 or float64, both the same.  Raises RuntimeError for other ranks,
    mixed dtypes or devices, and a kernel larger than x (Dive into Deep Learning, section 7.2).
    """
    return _corr2d_of("corr2d", (x, k))


@recalled()
def _corr2d_of(name, given) -> Applied:
    x, k = given
    check_tensor(name, "x", x, (2,))
    check_tensor(name, "k", k, (2,))
    if x.dtype != k.dtype or x.device != k.device:
        raise RuntimeError(
            f"{name}: x and k must have the same dtype and device, got "
            f"{x.dtype} on {x.device} and {k.dtype} on {k.device}; convert one of them"
        )
    if not all(0 < m <= n for n, m in zip(x.shape, k.shape, strict=True)):
        raise RuntimeError(
            f"{name}: k must be non-empty and no larger than x, got k {tuple(k.shape)} for "
            f"x {tuple(x.shape)}"
        )
    return Applied(Corr2dFunction, given, ((0, 0),))
