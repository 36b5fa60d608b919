"""Drop-in modules: each is its torch.nn base with our operator in place of torch's.

Constructor, state_dict, repr, initialisation and pickling are torch's.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .adaptive_avg_pool2d import adaptive_avg_pool2d
from .avg_pool2d import avg_pool2d
from .conv2d import conv2d
from .max_pool2d import max_pool2d


class Conv2d(torch.nn.Conv2d):
    """As torch.nn.Conv2d, on conv2d's kernels."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class MaxPool2d(torch.nn.MaxPool2d):
    """As torch.nn.MaxPool2d, on max_pool2d's kernels."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class AvgPool2d(torch.nn.AvgPool2d):
    """As torch.nn.AvgPool2d, on avg_pool2d's kernels."""

    def forward(self, input: Tensor) -> Tensor:
        return avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """As torch.nn.AdaptiveAvgPool2d, on adaptive_avg_pool2d's kernels."""

    def forward(self, input: Tensor) -> Tensor:
        return adaptive_avg_pool2d(input, self.output_size)
