"""Inception-v3's first block: Szegedy et al., Rethinking the Inception architecture, 2015."""

import torch
from torch import Tensor, nn
from tritonconv import AvgPool2d

from .googlenet import BasicConv2d


class InceptionA(nn.Module):
    """[N, in_channels, H, W] -> [N, 224 + pool_features, H, W], under torchvision's names."""

    def __init__(self, in_channels: int, pool_features: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(in_channels, 64, 1)
        self.branch5x5_1 = BasicConv2d(in_channels, 48, 1)
        self.branch5x5_2 = BasicConv2d(48, 64, 5)
        self.branch3x3dbl_1 = BasicConv2d(in_channels, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3)
        self.avgpool = AvgPool2d(3, 1, padding=1)
        self.branch_pool = BasicConv2d(in_channels, pool_features, 1)

    def forward(self, x: Tensor) -> Tensor:  # [N, in_channels, H, W]
        branches = (
            self.branch1x1(x),  # [N, 64, H, W]
            self.branch5x5_2(self.branch5x5_1(x)),  # [N, 64, H, W]
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),  # [N, 96, H, W]
            self.branch_pool(self.avgpool(x)),  # [N, pool_features, H, W]
        )
        return torch.cat(branches, 1)
