"""1-D convolution and its transpose: those of images with a single row."""

from torch import Tensor

from ._common import Size, public
from .conv2d import convolution
from .conv_transpose2d import transposed_convolution


@public
def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """As torch.nn.functional.conv1d.

    input [N, C, L] or [C, L], weight [CO, C / groups, K], bias [CO] -> [N, CO, OL] or [CO, OL],
    with OL = floor((L + 2*padding - dilation*(K - 1) - 1) / stride) + 1.  Otherwise as conv2d.
    """
    given = input, weight, bias
    return convolution("conv1d", given, 1, stride, padding, dilation, groups)


@public
def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """As torch.nn.functional.conv_transpose1d.

    input [N, C, L] or [C, L], weight [C, CO / groups, K], bias [CO] -> [N, CO, OL] or [CO, OL],
    with OL = (L - 1)*stride - 2*padding + dilation*(K - 1) + output_padding + 1.  Otherwise as
    conv_transpose2d.
    """
    given, options = (input, weight, bias), (stride, padding, output_padding, groups, dilation)
    return transposed_convolution("conv_transpose1d", given, 1, *options)
