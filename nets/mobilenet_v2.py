"""MobileNetV2: Sandler et al., Inverted residuals and linear bottlenecks, 2018.

Names and initialisation are torchvision's, whose weights load.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from tritonconv import AdaptiveAvgPool2d, BatchNorm2d, Conv2d

# expansion, channels, blocks, stride of the first: the paper's table 2
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv_bn_relu6(
    c_in: int, c_out: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        Conv2d(c_in, c_out, kernel_size, stride, kernel_size // 2, groups=groups, bias=False),
        BatchNorm2d(c_out),
        nn.ReLU6(),
    )


def _scaled(channels: int, width_mult: float) -> int:
    """channels * width_mult to the nearest multiple of 8, and not below 0.9 of it."""
    wanted = channels * width_mult
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


class InvertedResidual(nn.Module):
    """A depthwise separable convolution of widened channels, and a shortcut where shapes allow."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        c = c_in * expansion
        widen = [] if expansion == 1 else [_conv_bn_relu6(c_in, c, 1)]
        self.conv = nn.Sequential(
            *widen,
            _conv_bn_relu6(c, c, 3, stride, groups=c),
            Conv2d(c, c_out, 1, bias=False),
            BatchNorm2d(c_out),
        )
        self.shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:  # [N, c_in, H, W]
        y = self.conv(x)  # [N, c_out, H / stride, W / stride]
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """[N, in_channels, 224, 224] -> logits [N, num_classes].

    width_mult scales all channels; stages: as STAGES.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.2,
        width_mult: float = 1.0,
        stages: Sequence[tuple[int, int, int, int]] = STAGES,
    ) -> None:
        super().__init__()
        c = _scaled(32, width_mult)
        layers: list[nn.Module] = [_conv_bn_relu6(in_channels, c, 3, stride=2)]
        for expansion, channels, blocks, stride in stages:
            c_out = _scaled(channels, width_mult)
            for number in range(blocks):
                layers.append(InvertedResidual(c, c_out, stride if number == 0 else 1, expansion))
                c = c_out
        last = _scaled(1280, max(1.0, width_mult))
        self.features = nn.Sequential(*layers, _conv_bn_relu6(c, last, 1))
        self.avgpool = AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        for module in self.modules():
            if isinstance(module, Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:  # [N, in_channels, 224, 224]
        x = self.features(x)  # [N, 1280, 7, 7]
        x = self.flatten(self.avgpool(x))  # [N, 1280]
        return self.classifier(x)  # [N, num_classes]


def mobilenet_v2(
    num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.2, width_mult: float = 1.0
) -> MobileNetV2:
    """torchvision's mobilenet_v2, whose weights it loads."""
    return MobileNetV2(num_classes, in_channels, dropout, width_mult)
