"""2-D transposed convolution: the gradient of conv2d with respect to its input, as an operator.

    y[n, g*COG + o, h, w] = b + sum_{c, kh, kw} x[n, c, ih, iw] * weight[c, o, kh, kw]
        where h = ih*SH - PH + kh*DH, w = iw*SW - PW + kw*DW, and g is c's group

The kernels are conv2d's own: dgrad computes y, forward and wgrad its gradients.
"""

from collections.abc import Sequence

from torch import Tensor

from ._common import Size, ints, public, require_at_least
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
from .conv.geometry import Formats, Geometry
from .conv2d import Conv2dDgradFunction


@public
def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """As torch.nn.functional.conv_transpose2d.

    input [N, C, H, W] or [C, H, W], weight [C, CO / groups, KH, KW], bias [CO] -> [N, CO, OH, OW]
    or [CO, OH, OW], with OH = (H - 1)*stride - 2*padding + dilation*(KH - 1) + output_padding + 1,
    in channels_last if input or weight is.  float32, float16, bfloat16 or float64, all alike.
    Raises RuntimeError for shapes, dtypes or options that do not fit, NotImplementedError for other
    dtypes.
    """
    given, options = (input, weight, bias), (stride, padding, output_padding, groups, dilation)
    return transposed_convolution("conv_transpose2d", given, 2, *options)


@recalled(depends_on)
def transposed_convolution(
    name, given, dims, stride, padding, output_padding, groups, dilation
) -> Applied:
    """conv_transpose1d or conv_transpose2d, by the number of spatial axes."""
    input, weight, _ = given
    used = operands(name, dims, *given)
    extra = ints(name, "output_padding", output_padding, dims)
    require_at_least(name, "output_padding", extra, 0)
    g = geometry(
        name, weight.shape[2:], stride, ints(name, "padding", padding, dims), dilation, groups
    )
    check_channels(name, used, weight.shape[0], weight.shape[1] * g.groups, g.groups)
    _check_output_padding(name, g, extra)
    spatial = used.x.shape[2 - used.w.dim() :]
    if 0 in weight.shape or 0 in spatial:
        raise RuntimeError(
            f"{name}: input and weight must not be empty but for the batch, got input "
            f"{tuple(input.shape)} and weight {tuple(weight.shape)}"
        )
    g = leading_back(g, extra)
    sizes = g.x_shape((1, 1, *spatial), weight.shape)[2:]
    if min(sizes) < 1:
        raise RuntimeError(
            f"{name}: output would be empty: size {tuple(sizes)} for input {tuple(input.shape)} "
            f"and kernel {tuple(weight.shape[2:])} with padding {g.before}; reduce the padding"
        )
    g = fitted(name, sizes, weight.shape[2:], g).of_images()

    x, w, b = as_images(*used, dims)
    of = formats(x, w)
    of = Formats(x=of.y, w=of.w, y=of.x)  # to conv2d this output is the input
    options = None, of, g
    return as_applied(Conv2dDgradFunction, dims, (x, w, b), options, given)


def _check_output_padding(name: str, g: Geometry, extra: tuple[int, ...]) -> None:
    if any(not 0 <= e < max(s, d) for e, s, d in zip(extra, g.stride, g.dilation, strict=True)):
        raise RuntimeError(
            f"{name}: output_padding must be non-negative and smaller than either stride or "
            f"dilation, got {extra} for stride {g.stride} and dilation {g.dilation}"
        )


def leading_back(g: Geometry, extra: Sequence[int]) -> Geometry:
    """The convolution from output to input, which reads so much less at the end."""
    return g._replace(after=tuple(p - e for p, e in zip(g.before, extra, strict=True)))
