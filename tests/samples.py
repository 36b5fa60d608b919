"""A small call of every operator and layer, for what they all must do."""

import torch
import tritonconv
from torch import nn

OPERATORS = {
    "conv1d": (
        lambda x, w, b: tritonconv.conv1d(x, w, b, stride=2, padding=1, groups=2),
        [(2, 4, 7), (6, 2, 3), (6,)],
    ),
    "conv2d": (
        lambda x, w, b: tritonconv.conv2d(x, w, b, stride=2, padding=1, groups=2),
        [(2, 4, 7, 6), (6, 2, 3, 3), (6,)],
    ),
    "conv_transpose1d": (
        lambda x, w, b: tritonconv.conv_transpose1d(x, w, b, stride=2, output_padding=1, groups=2),
        [(2, 4, 7), (4, 3, 3), (6,)],
    ),
    "conv_transpose2d": (
        lambda x, w, b: tritonconv.conv_transpose2d(x, w, b, stride=2, output_padding=1, groups=2),
        [(2, 4, 7, 6), (4, 3, 3, 3), (6,)],
    ),
    "max_pool1d": (lambda x: tritonconv.max_pool1d(x, 3, 2, 1), [(2, 3, 7)]),
    "max_pool2d": (lambda x: tritonconv.max_pool2d(x, 3, 2, 1), [(2, 3, 7, 6)]),
    "avg_pool1d": (lambda x: tritonconv.avg_pool1d(x, 3, 2, 1), [(2, 3, 7)]),
    "avg_pool2d": (lambda x: tritonconv.avg_pool2d(x, 3, 2, 1), [(2, 3, 7, 6)]),
    "adaptive_avg_pool1d": (lambda x: tritonconv.adaptive_avg_pool1d(x, 3), [(2, 3, 7)]),
    "adaptive_avg_pool2d": (lambda x: tritonconv.adaptive_avg_pool2d(x, (3, 2)), [(2, 3, 7, 6)]),
    "adaptive_max_pool1d": (lambda x: tritonconv.adaptive_max_pool1d(x, 3), [(2, 3, 7)]),
    "adaptive_max_pool2d": (lambda x: tritonconv.adaptive_max_pool2d(x, (3, 2)), [(2, 3, 7, 6)]),
    "batch_norm": (
        lambda x, w, b: tritonconv.batch_norm(x, None, None, w, b, training=True),
        [(2, 3, 7, 6), (3,), (3,)],
    ),
    "conv_bn_relu": (
        lambda x, w, b, scale, shift: tritonconv.conv_bn_relu(
            x, w, b, None, None, scale, shift, padding=1, training=True
        ),
        [(2, 4, 7, 6), (6, 4, 3, 3), (6,), (6,), (6,)],
    ),
    "corr2d": (tritonconv.corr2d, [(7, 6), (3, 2)]),
}
CONVOLUTION = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2}
WINDOW = {"kernel_size": 3, "stride": 2, "padding": 1}
MODULES = {
    "Conv1d": CONVOLUTION,
    "Conv2d": CONVOLUTION,
    "ConvTranspose1d": CONVOLUTION | {"output_padding": 1},
    "ConvTranspose2d": CONVOLUTION | {"output_padding": 1},
    "MaxPool1d": WINDOW,
    "MaxPool2d": WINDOW,
    "AvgPool1d": WINDOW | {"count_include_pad": False},
    "AvgPool2d": WINDOW | {"count_include_pad": False},
    "BatchNorm1d": {"num_features": 4, "momentum": 0.2},
    "BatchNorm2d": {"num_features": 4, "momentum": 0.2},
    "AdaptiveAvgPool1d": {"output_size": 2},
    "AdaptiveAvgPool2d": {"output_size": (2, None)},
    "AdaptiveMaxPool1d": {"output_size": 2},
    "AdaptiveMaxPool2d": {"output_size": (2, None)},
}


def module_input(name: str) -> torch.Tensor:
    return torch.randn((2, 4, 7, 8) if name.endswith("2d") else (2, 4, 7))


def inputs(shapes, device):
    return [torch.randn(shape, device=device) for shape in shapes]


def small_model():
    return nn.Sequential(
        tritonconv.Conv2d(2, 4, 3, padding=1),
        tritonconv.BatchNorm2d(4),
        nn.ReLU(),
        tritonconv.ConvTranspose2d(4, 3, 2, stride=2),
        tritonconv.MaxPool2d(2),
        tritonconv.AvgPool2d(2),
        tritonconv.AdaptiveMaxPool2d(3),
        tritonconv.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
