"""GoogLeNet (Inception v1): Szegedy et al., Going deeper with convolutions, 2014.

With batch normalisation and the paper's two auxiliary heads, or plain, in d2l's form.  Names and
initialisation are torchvision's.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tritonconv import AdaptiveAvgPool2d, AvgPool2d, BatchNorm2d, Conv2d, MaxPool2d


class BasicConv2d(nn.Module):
    """relu(bn(conv(x))), padded to keep the size at stride 1."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = Conv2d(c_in, c_out, kernel_size, stride, kernel_size // 2, bias=False)
        self.bn = BatchNorm2d(c_out, eps=0.001)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # [N, c_in, H, W]
        return self.relu(self.bn(self.conv(x)))  # [N, c_out, H / stride, W / stride]


class PlainConv2d(nn.Module):
    """relu(conv(x)), padded to keep the size at stride 1."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = Conv2d(c_in, c_out, kernel_size, stride, kernel_size // 2)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # [N, c_in, H, W]
        return self.relu(self.conv(x))  # [N, c_out, H / stride, W / stride]


class Inception(nn.Module):
    """Four branches side by side: 1x1, 3x3 and 5x5 behind narrowing 1x1, and 1x1 behind a pool."""

    def __init__(
        self,
        c_in: int,
        c1: int,
        c3_reduced: int,
        c3: int,
        c5_reduced: int,
        c5: int,
        c_pool: int,
        conv: type[BasicConv2d] | type[PlainConv2d] = BasicConv2d,
        largest: int = 5,
    ) -> None:
        super().__init__()
        self.branch1 = conv(c_in, c1, 1)
        self.branch2 = nn.Sequential(conv(c_in, c3_reduced, 1), conv(c3_reduced, c3, 3))
        self.branch3 = nn.Sequential(conv(c_in, c5_reduced, 1), conv(c5_reduced, c5, largest))
        self.branch4 = nn.Sequential(MaxPool2d(3, 1, padding=1), conv(c_in, c_pool, 1))

    def forward(self, x: Tensor) -> Tensor:  # [N, c_in, H, W]
        branches = self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)
        return torch.cat(branches, 1)  # [N, c1 + c3 + c5 + c_pool, H, W]


class InceptionAux(nn.Module):
    """An auxiliary head: [N, c_in, 14, 14] -> logits [N, num_classes]."""

    def __init__(
        self,
        c_in: int,
        num_classes: int,
        dropout: float = 0.7,
        as_torchvision: bool = False,
    ) -> None:
        super().__init__()
        self.avgpool = AdaptiveAvgPool2d(4) if as_torchvision else AvgPool2d(5, 3)
        self.conv = BasicConv2d(c_in, 128, 1) if as_torchvision else PlainConv2d(c_in, 128, 1)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, c_in, 14, 14]
        x = self.conv(self.avgpool(x))  # [N, 128, 4, 4]
        x = self.relu(self.fc1(self.flatten(x)))  # [N, 1024]
        return self.fc2(self.dropout(x))  # [N, num_classes]


class GoogLeNetOutputs(NamedTuple):
    """What GoogLeNet returns in training: each [N, num_classes], the heads' loss weight is 0.3."""

    logits: Tensor
    aux_logits2: Tensor
    aux_logits1: Tensor


class GoogLeNet(nn.Module):
    """[N, in_channels, 224, 224] -> logits [N, num_classes]; in training, GoogLeNetOutputs.

    as_torchvision: where torchvision departs from the paper (3x3 for 5x5, the last pool 2x2, heads
    pooled to 4x4 and batch normalised), as it does; its published weights take images in -1..1.
    plain: no batch normalisation, and pools that pad.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.4,
        dropout_aux: float = 0.7,
        aux_logits: bool = True,
        as_torchvision: bool = False,
        plain: bool = False,
    ) -> None:
        super().__init__()
        conv = PlainConv2d if plain else BasicConv2d
        pool = (
            partial(MaxPool2d, 3, 2, padding=1)
            if plain
            else partial(MaxPool2d, 3, 2, ceil_mode=True)
        )
        block = partial(Inception, conv=conv, largest=3 if as_torchvision else 5)
        self.conv1 = conv(in_channels, 64, 7, stride=2)
        self.maxpool1 = pool()
        self.conv2 = conv(64, 64, 1)
        self.conv3 = conv(64, 192, 3)
        self.maxpool2 = pool()
        self.inception3a = block(192, 64, 96, 128, 16, 32, 32)
        self.inception3b = block(256, 128, 128, 192, 32, 96, 64)
        self.maxpool3 = pool()
        self.inception4a = block(480, 192, 96, 208, 16, 48, 64)
        self.inception4b = block(512, 160, 112, 224, 24, 64, 64)
        self.inception4c = block(512, 128, 128, 256, 24, 64, 64)
        self.inception4d = block(512, 112, 144, 288, 32, 64, 64)
        self.inception4e = block(528, 256, 160, 320, 32, 128, 128)
        self.maxpool4 = MaxPool2d(2, ceil_mode=True) if as_torchvision else pool()
        self.inception5a = block(832, 256, 160, 320, 32, 128, 128)
        self.inception5b = block(832, 384, 192, 384, 48, 128, 128)
        self.aux1 = self.aux2 = None
        if aux_logits:
            self.aux1 = InceptionAux(512, num_classes, dropout_aux, as_torchvision)
            self.aux2 = InceptionAux(528, num_classes, dropout_aux, as_torchvision)
        self.avgpool = AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, num_classes)
        for module in self.modules():
            if isinstance(module, Conv2d | nn.Linear) and not plain:
                nn.init.trunc_normal_(module.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:  # [N, in_channels, 224, 224]
        heads = self.training and self.aux1 is not None
        x = self.maxpool1(self.conv1(x))  # [N, 64, 56, 56]
        x = self.maxpool2(self.conv3(self.conv2(x)))  # [N, 192, 28, 28]
        x = self.inception3b(self.inception3a(x))  # [N, 480, 28, 28]
        x = self.inception4a(self.maxpool3(x))  # [N, 512, 14, 14]
        aux1 = self.aux1(x) if heads else None
        x = self.inception4d(self.inception4c(self.inception4b(x)))  # [N, 528, 14, 14]
        aux2 = self.aux2(x) if heads else None
        x = self.maxpool4(self.inception4e(x))  # [N, 832, 7, 7]
        x = self.inception5b(self.inception5a(x))  # [N, 1024, 7, 7]
        x = self.dropout(self.flatten(self.avgpool(x)))  # [N, 1024]
        x = self.fc(x)  # [N, num_classes]
        return GoogLeNetOutputs(x, aux2, aux1) if heads else x


def googlenet(**options: Any) -> GoogLeNet:
    """With batch normalisation; as_torchvision=True loads torchvision's weights.

    options: GoogLeNet's.
    """
    return GoogLeNet(**options)


def googlenet_plain(num_classes: int = 10, in_channels: int = 1, dropout: float = 0.0) -> GoogLeNet:
    """d2l's: [N, in_channels, 96, 96] -> logits [N, num_classes], without heads."""
    return GoogLeNet(num_classes, in_channels, dropout, aux_logits=False, plain=True)
