"""2-D convolution (cross-correlation, as in all of deep learning), dense, grouped and depthwise.

    y[n, o, oh, ow] = b[o] + sum_{c, kh, kw} w[o, c, kh, kw] * x[n, g*CG + c, h, w]
        where h = oh*SH - PH + kh*DH, w = ow*SW - PW + kw*DW, and g is o's group

and x is zero outside its bounds.  Sums run in float32 (float64 for float64);
float32 products take TF32 where torch.backends.cudnn.conv.fp32_precision says so.  The kernels are
in conv/: convolution, dgrad and wgrad are each other's derivatives.
"""

import torch
from torch import Tensor

from ._common import Size, as_given, public
from ._conv import (
    as_applied,
    as_images,
    check_channels,
    depends_on,
    fitted,
    formats,
    geometry,
    operands,
)
from ._recall import Applied, recalled
from .conv import flops  # noqa: F401  what torch counts of the ops
from .conv.dbias import conv2d_dbias
from .conv.dgrad import conv2d_dgrad
from .conv.forward import conv2d_forward
from .conv.wgrad import conv2d_wgrad


class Conv2dFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, bias, formats, geometry):
        needs_dx, needs_dw = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if needs_dw else None, w if needs_dx else None)
        ctx.of_call = x.shape, w.shape, (formats, geometry)
        return conv2d_forward(x, w, bias, formats.y, geometry.flat)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        x_shape, w_shape, how = ctx.of_call
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = Conv2dDgradFunction.apply(dy, w, None, x_shape, *how)
        if ctx.needs_input_grad[1]:
            dw = Conv2dWgradFunction.apply(dy, x, w_shape, *how)
        if ctx.needs_input_grad[2]:
            db = Conv2dDbiasFunction.apply(dy)
        return dx, dw, db, None, None


class Conv2dDgradFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, w, bias, x_shape, formats, geometry):
        """x_shape is None for the transposed convolution's."""
        if x_shape is None:
            x_shape = geometry.x_shape(dy.shape, w.shape)
        needs_ddy, needs_dw = ctx.needs_input_grad[:2]
        ctx.save_for_backward(dy if needs_dw else None, w if needs_ddy else None)
        ctx.w_shape = w.shape
        ctx.how = formats, geometry
        return conv2d_dgrad(dy, w, bias, x_shape, formats.x, geometry.flat)

    @staticmethod
    def backward(ctx, ddx):
        dy, w = ctx.saved_tensors
        ddy = dw = db = None
        if ctx.needs_input_grad[0]:
            ddy = Conv2dFunction.apply(ddx, w, None, *ctx.how)
        if ctx.needs_input_grad[1]:
            dw = Conv2dWgradFunction.apply(dy, ddx, ctx.w_shape, *ctx.how)
        if ctx.needs_input_grad[2]:
            db = Conv2dDbiasFunction.apply(ddx)
        return ddy, dw, db, None, None, None


class Conv2dWgradFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, x, w_shape, formats, geometry):
        needs_ddy, needs_dx = ctx.needs_input_grad[:2]
        ctx.save_for_backward(dy if needs_dx else None, x if needs_ddy else None)
        ctx.x_shape = x.shape
        ctx.how = formats, geometry
        return conv2d_wgrad(dy, x, w_shape, formats.w, geometry.flat)

    @staticmethod
    def backward(ctx, ddw):
        dy, x = ctx.saved_tensors
        ddy = dx = None
        if ctx.needs_input_grad[0]:
            ddy = Conv2dFunction.apply(x, ddw, None, *ctx.how)
        if ctx.needs_input_grad[1]:
            dx = Conv2dDgradFunction.apply(dy, ddw, None, ctx.x_shape, *ctx.how)
        return ddy, dx, None, None, None


class Conv2dDbiasFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy):
        ctx.shape = dy.shape
        return conv2d_dbias(dy)

    @staticmethod
    def backward(ctx, ddb):
        return ddb[None, :, None, None].expand(ctx.shape)


@public
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """As torch.nn.functional.conv2d.

    input [N, C, H, W] or [C, H, W], weight [CO, C / groups, KH, KW], bias [CO] -> [N, CO, OH, OW]
    or [CO, OH, OW], with OH = floor((H + 2*padding - dilation*(KH - 1) - 1) / stride) + 1, in
    channels_last if input or weight is.  float32, float16, bfloat16 or float64, all alike; padding
    may be 'valid' or, at stride 1, 'same'.  Raises RuntimeError for shapes, dtypes or options that
    do not fit, NotImplementedError for other dtypes.
    """
    given = input, weight, bias
    return convolution("conv2d", given, 2, stride, padding, dilation, groups)


@recalled(depends_on)
def convolution(name, given, dims, stride, padding, dilation, groups) -> Applied | Tensor:
    """conv1d or conv2d, by the number of spatial axes."""
    input, weight, _ = given
    used = operands(name, dims, *given)
    g = geometry(name, weight.shape[2:], stride, padding, dilation, groups)
    check_channels(name, used, weight.shape[1] * g.groups, weight.shape[0], g.groups)
    g = fitted(name, input.shape[-dims:], weight.shape[2:], g).of_images()
    x, w, b = as_images(*used, dims)
    if x.shape[1] == 0:
        return as_given(_nothing(x, w, b, g), dims, input.dim())
    options = formats(x, w), g
    return as_applied(Conv2dFunction, dims, (x, w, b), options, given)


def _nothing(x, w, bias, g) -> Tensor:
    """torch's answer to an input of no channels: an output of none, which all gradients reach."""
    N, _, OH, OW = g.y_shape(x.shape, w.shape)
    return x.new_zeros(N, 0, OH, OW) + sum(t.sum() for t in (x, w, bias) if t is not None)
