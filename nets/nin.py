"""NiN: Lin et al., Network in network, 2013.

In d2l's form, with AlexNet's windows, and in the paper's for CIFAR.
"""

from torch import nn
from tritonconv import AdaptiveAvgPool2d, AvgPool2d, Conv2d, MaxPool2d


def _nin_block(
    c_in: int, widths: tuple[int, int, int], kernel_size: int, stride: int = 1, padding: int = 0
) -> nn.Sequential:
    """A convolution and two of 1x1, which are a fully connected network at every pixel."""
    c1, c2, c3 = widths
    return nn.Sequential(
        Conv2d(c_in, c1, kernel_size, stride, padding),
        nn.ReLU(),
        Conv2d(c1, c2, 1),
        nn.ReLU(),
        Conv2d(c2, c3, 1),
        nn.ReLU(),
    )


def nin(num_classes: int = 10, in_channels: int = 1, dropout: float = 0.5) -> nn.Sequential:
    """d2l's: [N, in_channels, 224, 224] -> logits [N, num_classes]."""
    return nn.Sequential(
        _nin_block(in_channels, (96, 96, 96), 11, stride=4),  # [N, 96, 54, 54]
        MaxPool2d(3, 2),
        _nin_block(96, (256, 256, 256), 5, padding=2),  # [N, 256, 26, 26]
        MaxPool2d(3, 2),
        _nin_block(256, (384, 384, 384), 3, padding=1),  # [N, 384, 12, 12]
        MaxPool2d(3, 2),
        nn.Dropout(dropout),
        _nin_block(384, (num_classes,) * 3, 3, padding=1),  # [N, num_classes, 5, 5]
        AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def nin_cifar(num_classes: int = 10, in_channels: int = 3, dropout: float = 0.25) -> nn.Sequential:
    """The paper's for CIFAR: [N, in_channels, 32, 32] -> logits [N, num_classes]."""
    return nn.Sequential(
        _nin_block(in_channels, (192, 160, 96), 5, padding=2),  # [N, 96, 32, 32]
        MaxPool2d(3, 2),
        nn.Dropout(dropout),
        _nin_block(96, (192, 192, 192), 5, padding=2),  # [N, 192, 15, 15]
        MaxPool2d(3, 2),
        nn.Dropout(dropout),
        _nin_block(192, (192, 192, num_classes), 3, padding=1),  # [N, num_classes, 7, 7]
        AvgPool2d(7),
        nn.Flatten(),
    )
