"""tritonconv: convolution, pooling and batch norm for PyTorch in Triton, verified against torch.nn.

Functions have torch.nn.functional's names, signatures and results; modules are drop-ins for
torch.nn's.  Without a CUDA device the kernels run in Triton's interpreter: slow, and exact enough
to test and to learn on.
"""

import os
from importlib.metadata import version

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any of our files imports triton

from .adaptive_avg_pool2d import adaptive_avg_pool1d, adaptive_avg_pool2d
from .adaptive_max_pool2d import adaptive_max_pool1d, adaptive_max_pool2d
from .avg_pool2d import avg_pool1d, avg_pool2d
from .batch_norm import batch_norm
from .conv.dispatch import force_family
from .conv1d import conv1d, conv_transpose1d
from .conv2d import conv2d
from .conv_bn_relu import conv_bn_relu
from .conv_transpose2d import conv_transpose2d
from .corr2d import corr2d
from .explain import explain
from .fold import fold
from .fuse import fuse
from .fused import ConvBNReLU
from .max_pool2d import max_pool1d, max_pool2d
from .modules import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AvgPool1d,
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    Conv1d,
    Conv2d,
    ConvTranspose1d,
    ConvTranspose2d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyConv1d,
    LazyConv2d,
    LazyConvTranspose1d,
    LazyConvTranspose2d,
    MaxPool1d,
    MaxPool2d,
)
from .twins import as_torch, convert

__version__ = version("tritonconv")

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv1d",
    "Conv2d",
    "ConvBNReLU",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "MaxPool1d",
    "MaxPool2d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "as_torch",
    "avg_pool1d",
    "avg_pool2d",
    "batch_norm",
    "conv1d",
    "conv2d",
    "conv_bn_relu",
    "conv_transpose1d",
    "conv_transpose2d",
    "convert",
    "corr2d",
    "explain",
    "fold",
    "force_family",
    "fuse",
    "max_pool1d",
    "max_pool2d",
]
