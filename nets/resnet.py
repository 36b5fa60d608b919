"""ResNet: He et al., Deep residual learning for image recognition, 2015.

Also ResNeXt (Xie et al., 2016) and Wide ResNet (Zagoruyko and Komodakis, 2016).  As torchvision's,
whose weights load: a bottleneck's stride sits on its 3x3 convolution (v1.5).
"""

from typing import Any

from torch import Tensor, nn
from tritonconv import AdaptiveAvgPool2d, BatchNorm2d, Conv2d, MaxPool2d


def _downsample(c_in: int, c_out: int, stride: int) -> nn.Sequential | None:
    """The shortcut's projection, where the shape changes."""
    if stride == 1 and c_in == c_out:
        return None
    return nn.Sequential(Conv2d(c_in, c_out, 1, stride, bias=False), BatchNorm2d(c_out))


class BasicBlock(nn.Module):
    """relu(f(x) + shortcut(x)), where f is two 3x3 convolutions."""

    expansion = 1

    def __init__(
        self, c_in: int, width: int, stride: int = 1, groups: int = 1, width_per_group: int = 64
    ) -> None:
        super().__init__()
        if groups != 1 or width_per_group != 64:
            raise ValueError(
                "BasicBlock: groups must be 1 and width_per_group 64, got "
                f"groups={groups} and width_per_group={width_per_group}; use Bottleneck"
            )
        self.conv1 = Conv2d(c_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(width)
        self.downsample = _downsample(c_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:  # [N, c_in, H, W]
        y = self.relu(self.bn1(self.conv1(x)))  # [N, width, H / stride, W / stride]
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """relu(f(x) + shortcut(x)), where f is a 3x3 convolution between two of 1x1."""

    expansion = 4

    def __init__(
        self, c_in: int, width: int, stride: int = 1, groups: int = 1, width_per_group: int = 64
    ) -> None:
        super().__init__()
        c_out = width * self.expansion
        c = width * width_per_group // 64 * groups
        self.conv1 = Conv2d(c_in, c, 1, bias=False)
        self.bn1 = BatchNorm2d(c)
        self.conv2 = Conv2d(c, c, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = BatchNorm2d(c)
        self.conv3 = Conv2d(c, c_out, 1, bias=False)
        self.bn3 = BatchNorm2d(c_out)
        self.relu = nn.ReLU()
        self.downsample = _downsample(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:  # [N, c_in, H, W]
        y = self.relu(self.bn1(self.conv1(x)))  # [N, c, H, W]
        y = self.relu(self.bn2(self.conv2(y)))  # [N, c, H / stride, W / stride]
        y = self.bn3(self.conv3(y))  # [N, c_out, H / stride, W / stride]
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """[N, in_channels, 224, 224] -> logits [N, num_classes].

    zero_init_residual: the last batch normalisation of every block starts with weight 0, and so the
    block as the identity (Goyal et al., 2017).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_channels: int = 3,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
    ) -> None:
        super().__init__()

        def stage(c_in: int, width: int, depth: int, stride: int) -> nn.Sequential:
            first = block(c_in, width, stride, groups, width_per_group)
            c = width * block.expansion
            rest = [block(c, width, 1, groups, width_per_group) for _ in range(depth - 1)]
            return nn.Sequential(first, *rest)

        self.conv1 = Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = MaxPool2d(3, 2, padding=1)
        self.layer1 = stage(64, 64, depths[0], stride=1)
        self.layer2 = stage(64 * block.expansion, 128, depths[1], stride=2)
        self.layer3 = stage(128 * block.expansion, 256, depths[2], stride=2)
        self.layer4 = stage(256 * block.expansion, 512, depths[3], stride=2)
        self.avgpool = AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, block) and zero_init_residual:
                last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:  # [N, in_channels, 224, 224]
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # [N, 64, 56, 56]
        x = self.layer1(x)  # [N, 64 * expansion, 56, 56]
        x = self.layer2(x)  # [N, 128 * expansion, 28, 28]
        x = self.layer3(x)  # [N, 256 * expansion, 14, 14]
        x = self.layer4(x)  # [N, 512 * expansion, 7, 7]
        x = self.flatten(self.avgpool(x))  # [N, 512 * expansion]
        return self.fc(x)  # [N, num_classes]


# options: ResNet's num_classes, in_channels and zero_init_residual


def resnet18(**options: Any) -> ResNet:
    return ResNet(BasicBlock, (2, 2, 2, 2), **options)


def resnet34(**options: Any) -> ResNet:
    return ResNet(BasicBlock, (3, 4, 6, 3), **options)


def resnet50(**options: Any) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3), **options)


def resnet101(**options: Any) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 23, 3), **options)


def resnet152(**options: Any) -> ResNet:
    return ResNet(Bottleneck, (3, 8, 36, 3), **options)


def resnext50_32x4d(**options: Any) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3), groups=32, width_per_group=4, **options)


def wide_resnet50_2(**options: Any) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3), width_per_group=128, **options)
