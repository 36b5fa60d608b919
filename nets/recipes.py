"""How a network is trained, as data: one line a recipe."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import SGD, Adam
from tritonconv import AvgPool2d, MaxPool2d

from .registry import NETWORKS

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
POOLS = {"avg": AvgPool2d, "max": MaxPool2d}
OPTIMIZERS = {"sgd": SGD, "adam": Adam}
# the learning rate's factor, by the part of the epochs that is over
SCHEDULES: dict[str, Callable[[float], float]] = {
    "none": lambda over: 1.0,
    "cosine": lambda over: (1 + math.cos(math.pi * over)) / 2,
    "step": lambda over: 0.1 ** int(3 * over),
}


class Recipe(NamedTuple):
    network: str
    optimizer: str
    lr: float
    batch_size: int
    epochs: int
    size: int = 28  # images are resized to size x size
    activation: str | None = None  # this and pool: for lenet alone
    pool: str | None = None
    width_divisor: int | None = None  # for the VGGs alone
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "none"
    augment: bool = False  # random flips and crops
    warmup: int = 0  # epochs in which the learning rate rises, step by step
    label_smoothing: float = 0.0
    decay_all: bool = True  # or weight decay on neither norms nor biases
    xavier: bool = True  # weights at first, or as the network's constructor draws them
    zero_init_residual: bool = False  # for the ResNets alone
    ema: float = 0.0  # of the averaged weights at a step, which are tested and kept; 0: none

    def __str__(self) -> str:
        parts = [
            self.activation,
            self.pool and f"{self.pool} pool",
            self.width_divisor and f"widths / {self.width_divisor}",
            self.size != 28 and f"{self.size}x{self.size}",
            f"{OPTIMIZERS[self.optimizer].__name__} {self.lr:g}",
            self.momentum and f"momentum {self.momentum:g}",
            self.weight_decay
            and f"weight decay {self.weight_decay:g}"
            + " not on norms and biases" * (not self.decay_all),
            self.warmup and f"warm-up {self.warmup}",
            self.schedule != "none" and f"{self.schedule} schedule",
            self.label_smoothing and f"label smoothing {self.label_smoothing:g}",
            self.ema and f"average {self.ema:g}",
            f"batch {self.batch_size}",
            self.augment and "flips and crops",
        ]
        return ", ".join(part for part in parts if part)

    def make(self, num_classes: int, in_channels: int) -> nn.Module:
        """The network, with the weights of its constructor."""
        options: dict[str, Any] = {}
        if self.activation:
            options["activation"] = ACTIVATIONS[self.activation]
        if self.pool:
            options["pool"] = POOLS[self.pool]
        if self.width_divisor:
            options["width_divisor"] = self.width_divisor
        if self.zero_init_residual:
            options["zero_init_residual"] = True
        make = NETWORKS[self.network].make
        return make(num_classes=num_classes, in_channels=in_channels, **options)

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """On a GPU it waits for nothing, and its learning rate is a tensor: as graphs need it."""
        parameters = list(parameters)
        options: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.optimizer == "sgd":
            options["momentum"] = self.momentum
        if parameters[0].is_cuda:
            options["fused"] = True
            if self.optimizer == "adam":
                options["capturable"] = True
        groups = [{"params": parameters}]
        if not self.decay_all:  # norms and biases are vectors
            groups = [
                {"params": [p for p in parameters if p.ndim > 1]},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ]
        optimizer = OPTIMIZERS[self.optimizer]([g for g in groups if g["params"]], **options)
        if parameters[0].is_cuda:
            lr = torch.tensor(self.lr, device=parameters[0].device)
            for group in optimizer.param_groups:
                group["lr"] = lr
        return optimizer

    def lr_in(self, epoch: int, part: float = 1.0) -> float:
        """The learning rate of an epoch, counted from 1, whose steps are in part over."""
        if epoch <= self.warmup:
            return self.lr * (epoch - 1 + part) / self.warmup
        over = (epoch - 1 - self.warmup) / (self.epochs - self.warmup)
        return self.lr * SCHEDULES[self.schedule](over)


RECIPES = {
    "lenet": Recipe("lenet", "adam", 2e-3, 64, 5, 28, "tanh", "avg"),
    "d2l-lenet": Recipe("lenet", "sgd", 0.9, 256, 10, 28, "sigmoid", "avg"),
    "d2l-alexnet": Recipe("alexnet_two_tower", "sgd", 0.01, 128, 10, 224),
    "d2l-vgg11": Recipe("vgg11", "sgd", 0.05, 128, 10, 224, width_divisor=4),
    "d2l-nin": Recipe("nin", "sgd", 0.1, 128, 10, 224),
    "d2l-googlenet": Recipe("googlenet_plain", "sgd", 0.1, 128, 10, 96),
    "d2l-resnet18": Recipe("resnet18", "sgd", 0.05, 256, 10, 96),
    "seed-resnet18": Recipe("resnet18", "adam", 1e-3, 128, 5, 96),
    # Goyal et al., 2017; smoothing and cosine as in He et al., Bag of tricks, 2019
    "imagenet-resnet50": Recipe(
        "resnet50",
        "sgd",
        0.1,
        256,
        90,
        224,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="cosine",
        augment=True,
        warmup=5,
        label_smoothing=0.1,
        decay_all=False,
        xavier=False,
        zero_init_residual=True,
    ),
}


def recipe_of(network: str) -> Recipe:
    """The recipe under the network's name, or what trains most of them."""
    usual = Recipe(
        network, "sgd", 0.01, 128, 10, NETWORKS[network].size,
        momentum=0.9, weight_decay=5e-4, schedule="cosine",
    )  # fmt: skip
    return RECIPES.get(network, usual)
