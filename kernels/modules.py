"""Drop-in modules: each is its torch.nn base with our operator in place of torch's.

Constructor, state_dict, repr, initialisation and pickling are torch's.
"""

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.overrides import has_torch_function_variadic

from ._common import no_script
from .adaptive_avg_pool2d import adaptive_avg_pool1d, adaptive_avg_pool2d
from .adaptive_max_pool2d import adaptive_max_pool1d, adaptive_max_pool2d
from .avg_pool2d import avg_pool1d, avg_pool2d
from .batch_norm import batch_norm, normalised
from .conv1d import conv1d, conv_transpose1d
from .conv2d import conv2d
from .conv_transpose2d import conv_transpose2d
from .max_pool2d import max_pool1d, max_pool2d

RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def held(module: torch.nn.Module, name: str) -> Tensor | None:
    """module's parameter or buffer of that name: its attribute, found in a fifth of the time."""
    for tensors in (module._parameters, module._buffers):
        if name in tensors:
            return tensors[name]
    return getattr(module, name)


class _Layer:
    """What torch's tools see of a layer; what it computes is in _run."""

    def forward(self, input: Tensor, *args, **kwargs) -> Tensor | tuple[Tensor, Tensor]:
        if isinstance(input, fx.Proxy):  # a leaf of the graph that is traced, as torch.nn's are
            path = input.tracer.path_of_module(self)
            return input.tracer.create_proxy("call_module", path, (input, *args), kwargs)
        return self._run(input, *args, **kwargs)

    def __prepare_scriptable__(self) -> None:
        no_script(type(self).__name__)


class _Conv(_Layer):
    def _run(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, held(self, "weight"), held(self, "bias"))

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return self._operator(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class _ConvTranspose(_Layer):
    def _run(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,
            self.padding,
            self.kernel_size,
            len(self.kernel_size),
            self.dilation,
        )
        return self._operator(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
        )


class _MaxPool(_Layer):
    def _run(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self._operator(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class _BatchNorm(_Layer):
    def _run(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if has_torch_function_variadic(input):  # who sees functions sees the public one
            *running, of_batch, momentum = self.statistics()
            return batch_norm(input, *running, self.weight, self.bias, of_batch, momentum, self.eps)
        running = self.running
        if not self.training:
            running = held(self, "running_mean"), held(self, "running_var"), None
        momentum = 0.0 if running[2] is None and self.momentum is None else self.momentum
        given = input, held(self, "weight"), held(self, "bias"), *running
        return normalised("batch_norm", given, self.of_batch, momentum, self.eps)

    def statistics(self) -> tuple[Tensor | None, Tensor | None, bool, float]:
        """Running mean and variance, whether to take the batch's instead, and the momentum.

        A call counts the batch, in training.
        """
        momentum = self.momentum or 0.0
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average of all batches so far
                momentum = 1.0 / float(self.num_batches_tracked)
        running = self.running_mean, self.running_var
        if self.training and not self.track_running_stats:
            running = None, None
        return *running, self.of_batch, momentum

    @property
    def running(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What a batch moves: running mean and variance, and the number of batches."""
        if self.training and self.track_running_stats:
            return tuple(held(self, name) for name in RUNNING)
        return None, None, None

    @property
    def of_batch(self) -> bool:
        """Whether it normalises with the batch's own statistics."""
        return self.training or (self.running_mean is None and self.running_var is None)


class Conv1d(_Conv, torch.nn.Conv1d):
    """As torch.nn.Conv1d, on conv1d's kernels."""

    _operator = staticmethod(conv1d)


class Conv2d(_Conv, torch.nn.Conv2d):
    """As torch.nn.Conv2d, on conv2d's kernels."""

    _operator = staticmethod(conv2d)


class ConvTranspose1d(_ConvTranspose, torch.nn.ConvTranspose1d):
    """As torch.nn.ConvTranspose1d, on conv_transpose1d's kernels."""

    _operator = staticmethod(conv_transpose1d)


class ConvTranspose2d(_ConvTranspose, torch.nn.ConvTranspose2d):
    """As torch.nn.ConvTranspose2d, on conv_transpose2d's kernels."""

    _operator = staticmethod(conv_transpose2d)


class LazyConv1d(torch.nn.LazyConv1d, Conv1d):
    """As torch.nn.LazyConv1d; becomes our Conv1d."""

    cls_to_become = Conv1d


class LazyConv2d(torch.nn.LazyConv2d, Conv2d):
    """As torch.nn.LazyConv2d; becomes our Conv2d."""

    cls_to_become = Conv2d


class LazyConvTranspose1d(torch.nn.LazyConvTranspose1d, ConvTranspose1d):
    """As torch.nn.LazyConvTranspose1d; becomes our ConvTranspose1d."""

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(torch.nn.LazyConvTranspose2d, ConvTranspose2d):
    """As torch.nn.LazyConvTranspose2d; becomes our ConvTranspose2d."""

    cls_to_become = ConvTranspose2d


class MaxPool1d(_MaxPool, torch.nn.MaxPool1d):
    """As torch.nn.MaxPool1d, on max_pool1d's kernels."""

    _operator = staticmethod(max_pool1d)


class MaxPool2d(_MaxPool, torch.nn.MaxPool2d):
    """As torch.nn.MaxPool2d, on max_pool2d's kernels."""

    _operator = staticmethod(max_pool2d)


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """As torch.nn.BatchNorm1d, on batch_norm's kernels."""


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """As torch.nn.BatchNorm2d, on batch_norm's kernels."""


class LazyBatchNorm1d(torch.nn.LazyBatchNorm1d, BatchNorm1d):
    """As torch.nn.LazyBatchNorm1d; becomes our BatchNorm1d."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(torch.nn.LazyBatchNorm2d, BatchNorm2d):
    """As torch.nn.LazyBatchNorm2d; becomes our BatchNorm2d."""

    cls_to_become = BatchNorm2d


class AvgPool1d(_Layer, torch.nn.AvgPool1d):
    """As torch.nn.AvgPool1d, on avg_pool1d's kernels."""

    def _run(self, input: Tensor) -> Tensor:
        return avg_pool1d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
        )


class AvgPool2d(_Layer, torch.nn.AvgPool2d):
    """As torch.nn.AvgPool2d, on avg_pool2d's kernels."""

    def _run(self, input: Tensor) -> Tensor:
        return avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveAvgPool1d(_Layer, torch.nn.AdaptiveAvgPool1d):
    """As torch.nn.AdaptiveAvgPool1d, on adaptive_avg_pool1d's kernels."""

    def _run(self, input: Tensor) -> Tensor:
        return adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(_Layer, torch.nn.AdaptiveAvgPool2d):
    """As torch.nn.AdaptiveAvgPool2d, on adaptive_avg_pool2d's kernels."""

    def _run(self, input: Tensor) -> Tensor:
        return adaptive_avg_pool2d(input, self.output_size)


class AdaptiveMaxPool1d(_Layer, torch.nn.AdaptiveMaxPool1d):
    """As torch.nn.AdaptiveMaxPool1d, on adaptive_max_pool1d's kernels."""

    def _run(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(_Layer, torch.nn.AdaptiveMaxPool2d):
    """As torch.nn.AdaptiveMaxPool2d, on adaptive_max_pool2d's kernels."""

    def _run(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return adaptive_max_pool2d(input, self.output_size, self.return_indices)
