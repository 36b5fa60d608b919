"""The classic networks on tritonconv's layers; `python -m tritonconv.nets --help` trains them."""

from .alexnet import AlexNet, alexnet, alexnet_two_tower
from .googlenet import GoogLeNet, GoogLeNetOutputs, googlenet, googlenet_plain
from .inception_a import InceptionA
from .lenet import LeNet
from .mobilenet_v2 import MobileNetV2, mobilenet_v2
from .nin import nin, nin_cifar
from .resnet import (
    ResNet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50_32x4d,
    wide_resnet50_2,
)
from .training.graph import graph_step
from .vgg import (
    VGG,
    vgg11,
    vgg11_bn,
    vgg13,
    vgg13_bn,
    vgg16,
    vgg16_bn,
    vgg19,
    vgg19_bn,
)

__all__ = [
    "VGG",
    "AlexNet",
    "GoogLeNet",
    "GoogLeNetOutputs",
    "InceptionA",
    "LeNet",
    "MobileNetV2",
    "ResNet",
    "alexnet",
    "alexnet_two_tower",
    "googlenet",
    "googlenet_plain",
    "graph_step",
    "mobilenet_v2",
    "nin",
    "nin_cifar",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "wide_resnet50_2",
]
