"""The networks by name: how each is made, and what it looks at unless told otherwise."""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from .alexnet import alexnet, alexnet_two_tower
from .googlenet import googlenet, googlenet_plain
from .lenet import LeNet
from .mobilenet_v2 import mobilenet_v2
from .nin import nin, nin_cifar
from .resnet import (
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50_32x4d,
    wide_resnet50_2,
)
from .vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn


class Network(NamedTuple):
    make: Callable[..., nn.Module]  # accepts num_classes and in_channels
    size: int  # of its square input
    channels: int = 3


NETWORKS = {
    "lenet": Network(LeNet, 28, 1),
    "alexnet": Network(alexnet, 224),
    "alexnet_two_tower": Network(alexnet_two_tower, 224, 1),
    "vgg11": Network(vgg11, 224),
    "vgg11_bn": Network(vgg11_bn, 224),
    "vgg13": Network(vgg13, 224),
    "vgg13_bn": Network(vgg13_bn, 224),
    "vgg16": Network(vgg16, 224),
    "vgg16_bn": Network(vgg16_bn, 224),
    "vgg19": Network(vgg19, 224),
    "vgg19_bn": Network(vgg19_bn, 224),
    "nin": Network(nin, 224, 1),
    "nin_cifar": Network(nin_cifar, 32),
    "googlenet": Network(googlenet, 224),
    "googlenet_plain": Network(googlenet_plain, 96, 1),
    "resnet18": Network(resnet18, 224),
    "resnet34": Network(resnet34, 224),
    "resnet50": Network(resnet50, 224),
    "resnet101": Network(resnet101, 224),
    "resnet152": Network(resnet152, 224),
    "resnext50_32x4d": Network(resnext50_32x4d, 224),
    "wide_resnet50_2": Network(wide_resnet50_2, 224),
    "mobilenet_v2": Network(mobilenet_v2, 224),
}
