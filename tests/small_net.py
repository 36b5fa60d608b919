"""A network of torch's layers, where the training program is tested and not the kernels."""

from torch import nn


class SmallNet(nn.Sequential):
    """A convolution, a norm and a head; dropout between makes it draw random numbers."""

    def __init__(
        self, num_classes: int, in_channels: int, dropout: float = 0.0, **_: object
    ) -> None:  # and the ResNets' options, in whose place it is
        super().__init__(
            nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, num_classes),
        )  # fmt: skip


class SmallNetDropout(SmallNet):
    def __init__(self, num_classes: int, in_channels: int, **_: object) -> None:
        super().__init__(num_classes, in_channels, 0.2)
