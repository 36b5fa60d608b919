"""2-D convolution (cross-correlation, as in all of deep learning), dense, grouped and depthwise.

    y[n, o, oh, ow] = b[o] + sum_{c, kh, kw} w[o, c, kh, kw] * x[n, g*CG + c, h, w]
        where h = oh*SH - PH + kh*DH, w = ow*SW - PW + kw*DW, and g is o's group

and x is zero outside its bounds.  Sums run in float32 (float64 for float64);
float32 products take TF32 where torch.backends.cudnn.conv.fp32_precision says so.  The kernels are
in conv/: convolution, dgrad and wgrad are each other's derivatives.
"""

import torch
from torch import Tensor

from ._common import (
    Size2,
    apply,
    autocast,
    batched,
    check_tensor,
    layout,
    pair,
    require_at_least,
)
from .conv.dbias import conv2d_dbias
from .conv.dgrad import conv2d_dgrad
from .conv.forward import conv2d_forward
from .conv.geometry import Geometry
from .conv.wgrad import conv2d_wgrad


class Conv2dFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, bias, geometry):
        needs_dx, needs_dw = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if needs_dw else None, w if needs_dx else None)
        ctx.x_like, ctx.w_like = (x.shape, layout(x)), (w.shape, layout(w))
        ctx.geometry = geometry
        return conv2d_forward(x, w, bias, *geometry)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = Conv2dDgradFunction.apply(dy, w, None, *ctx.x_like, ctx.geometry)
        if ctx.needs_input_grad[1]:
            dw = Conv2dWgradFunction.apply(dy, x, *ctx.w_like, ctx.geometry)
        if ctx.needs_input_grad[2]:
            db = Conv2dDbiasFunction.apply(dy)
        return dx, dw, db, None


class Conv2dDgradFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, w, bias, x_shape, memory_format, geometry):
        needs_ddy, needs_dw = ctx.needs_input_grad[:2]
        ctx.save_for_backward(dy if needs_dw else None, w if needs_ddy else None)
        ctx.w_like = w.shape, layout(w)
        ctx.geometry = geometry
        return conv2d_dgrad(dy, w, bias, x_shape, memory_format, *geometry)

    @staticmethod
    def backward(ctx, ddx):
        dy, w = ctx.saved_tensors
        ddy = dw = db = None
        if ctx.needs_input_grad[0]:
            ddy = Conv2dFunction.apply(ddx, w, None, ctx.geometry)
        if ctx.needs_input_grad[1]:
            dw = Conv2dWgradFunction.apply(dy, ddx, *ctx.w_like, ctx.geometry)
        if ctx.needs_input_grad[2]:
            db = Conv2dDbiasFunction.apply(ddx)
        return ddy, dw, db, None, None, None


class Conv2dWgradFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, x, w_shape, memory_format, geometry):
        ctx.save_for_backward(dy, x)
        ctx.geometry = geometry
        return conv2d_wgrad(dy, x, w_shape, memory_format, *geometry)

    @staticmethod
    def backward(ctx, ddw):
        dy, x = ctx.saved_tensors
        ddy = dx = None
        if ctx.needs_input_grad[0]:
            ddy = Conv2dFunction.apply(x, ddw, None, ctx.geometry)
        if ctx.needs_input_grad[1]:
            dx = Conv2dDgradFunction.apply(dy, ddw, None, x.shape, layout(x), ctx.geometry)
        return ddy, dx, None, None, None


class Conv2dDbiasFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy):
        ctx.shape = dy.shape
        return conv2d_dbias(dy)

    @staticmethod
    def backward(ctx, ddb):
        return ddb[None, :, None, None].expand(ctx.shape)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: Size2 | str = 0,
    dilation: Size2 = 1,
    groups: int = 1,
) -> Tensor:
    """As torch.nn.functional.conv2d.

    input [N, C, H, W] or [C, H, W], weight [CO, C / groups, KH, KW], bias [CO] -> [N, CO, OH, OW]
    or [CO, OH, OW], with OH = floor((H + 2*padding - dilation*(KH - 1) - 1) / stride) + 1, in
    channels_last if input or weight is.  float32, float16, bfloat16 or float64, all alike; padding
    may be 'valid' or, at stride 1, 'same'.  Raises RuntimeError for shapes, dtypes or options that
    do not fit, NotImplementedError for other dtypes.
    """
    check_tensor("conv2d", "input", input, (3, 4))
    check_tensor("conv2d", "weight", weight, (4,))
    if bias is not None:
        check_tensor("conv2d", "bias", bias, (1,))
    x, w, bias = autocast(input, weight, bias)
    geometry = _geometry(x, w, stride, padding, dilation, groups)
    _check(x, w, bias, geometry)
    y = apply("conv2d", Conv2dFunction, batched(x), w, bias, geometry)
    return y if x.dim() == 4 else y.squeeze(0)


def _geometry(x, w, stride, padding, dilation, groups) -> Geometry:
    stride, dilation = pair("conv2d", "stride", stride), pair("conv2d", "dilation", dilation)
    require_at_least("conv2d", "stride", stride, 1)
    require_at_least("conv2d", "dilation", dilation, 1)
    require_at_least("conv2d", "groups", (groups,), 1)
    if not isinstance(padding, str):
        before = after = pair("conv2d", "padding", padding)
        require_at_least("conv2d", "padding", before, 0)
    elif padding == "valid":
        before = after = (0, 0)
    elif padding == "same":
        if stride != (1, 1):
            raise RuntimeError(
                f"conv2d: padding='same' is not supported for strided convolutions, got stride "
                f"{stride}; pass the padding as numbers"
            )
        total = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
        before = tuple(t // 2 for t in total)
        after = tuple(t - b for t, b in zip(total, before, strict=True))
    else:
        raise RuntimeError(f"conv2d: padding must be 'same', 'valid' or ints, got {padding!r}")
    return Geometry(stride, before, after, dilation, groups)


def _check(x, w, bias, g: Geometry) -> None:
    C, (CO, CG, KH, KW) = x.shape[-3], w.shape
    tensors = {"input": x, "weight": w} | ({} if bias is None else {"bias": bias})
    if (
        len({t.dtype for t in tensors.values()}) > 1
        or len({t.device for t in tensors.values()}) > 1
    ):
        got = ", ".join(f"{name} {t.dtype} on {t.device}" for name, t in tensors.items())
        raise RuntimeError(
            f"conv2d: input, weight and bias must have the same dtype and device, got {got}; "
            "convert with .to()"
        )
    if CO % g.groups or CO == 0:
        raise RuntimeError(
            f"conv2d: expected weight's first size to be a multiple of groups={g.groups}, got "
            f"weight {tuple(w.shape)}"
        )
    if CG * g.groups != C or C == 0:
        raise RuntimeError(
            f"conv2d: given groups={g.groups} and weight {tuple(w.shape)}, expected input to have "
            f"{CG * g.groups} channels, got {C} in input {tuple(x.shape)}"
        )
    if bias is not None and bias.shape[0] != CO:
        raise RuntimeError(
            f"conv2d: expected bias of shape ({CO},) for weight {tuple(w.shape)}, got "
            f"{tuple(bias.shape)}"
        )
    for size, k, before, after, d in zip(
        x.shape[-2:], (KH, KW), g.before, g.after, g.dilation, strict=True
    ):
        if k == 0 or size + before + after < d * (k - 1) + 1:
            raise RuntimeError(
                f"conv2d: expected a kernel of at least 1 that fits the padded input, got kernel "
                f"{(KH, KW)} with dilation {g.dilation} for input {tuple(x.shape)} padded by "
                f"{g.before} before and {g.after} after"
            )
