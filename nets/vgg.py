"""VGG: Simonyan and Zisserman, Very deep convolutional networks for large-scale recognition, 2014.

Names and initialisation are torchvision's, whose weights load.
"""

from typing import Any

from torch import Tensor, nn
from tritonconv import AdaptiveAvgPool2d, BatchNorm2d, Conv2d, MaxPool2d

WIDTHS = (64, 128, 256, 512, 512)  # of the five blocks


def _vgg_block(depth: int, c_in: int, c_out: int, batch_norm: bool) -> list[nn.Module]:
    """depth 3x3 convolutions that keep the size, then a pool that halves it."""
    layers: list[nn.Module] = []
    for c in (c_in, *[c_out] * (depth - 1)):
        layers.append(Conv2d(c, c_out, 3, padding=1))
        if batch_norm:
            layers.append(BatchNorm2d(c_out))
        layers.append(nn.ReLU())
    return [*layers, MaxPool2d(2)]


class VGG(nn.Module):
    """[N, in_channels, 224, 224] -> logits [N, num_classes].

    depths: the convolutions of each block; width_divisor: by how much narrower they all are.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int, int],
        batch_norm: bool = False,
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.5,
        width_divisor: int = 1,
    ) -> None:
        super().__init__()
        if width_divisor < 1 or WIDTHS[0] % width_divisor:
            raise ValueError(
                f"VGG: width_divisor must divide {WIDTHS[0]}, got width_divisor={width_divisor}"
            )
        layers: list[nn.Module] = []
        c = in_channels
        for depth, width in zip(depths, WIDTHS, strict=True):
            layers += _vgg_block(depth, c, width // width_divisor, batch_norm)
            c = width // width_divisor
        self.features = nn.Sequential(*layers)
        self.avgpool = AdaptiveAvgPool2d(7)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Linear(c * 7 * 7, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )
        for module in self.modules():
            if isinstance(module, Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:  # [N, in_channels, 224, 224]
        x = self.features(x)  # [N, 512 / width_divisor, 7, 7]
        x = self.flatten(self.avgpool(x))  # [N, 25088 / width_divisor]
        return self.classifier(x)  # [N, num_classes]


# options: VGG's num_classes, in_channels, dropout and width_divisor (4 makes d2l's small VGG-11)


def vgg11(**options: Any) -> VGG:
    return VGG((1, 1, 2, 2, 2), **options)


def vgg13(**options: Any) -> VGG:
    return VGG((2, 2, 2, 2, 2), **options)


def vgg16(**options: Any) -> VGG:
    return VGG((2, 2, 3, 3, 3), **options)


def vgg19(**options: Any) -> VGG:
    return VGG((2, 2, 4, 4, 4), **options)


def vgg11_bn(**options: Any) -> VGG:
    return VGG((1, 1, 2, 2, 2), batch_norm=True, **options)


def vgg13_bn(**options: Any) -> VGG:
    return VGG((2, 2, 2, 2, 2), batch_norm=True, **options)


def vgg16_bn(**options: Any) -> VGG:
    return VGG((2, 2, 3, 3, 3), batch_norm=True, **options)


def vgg19_bn(**options: Any) -> VGG:
    return VGG((2, 2, 4, 4, 4), batch_norm=True, **options)
