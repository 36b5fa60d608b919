"""How a network is trained, as data: one line a recipe."""

from typing import NamedTuple

import torch
from torch import nn
from tritonconv import AvgPool2d, MaxPool2d

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
POOLS = {"avg": AvgPool2d, "max": MaxPool2d}


class Recipe(NamedTuple):
    activation: str
    pool: str
    optimizer: type[torch.optim.Adam] | type[torch.optim.SGD]
    lr: float
    batch_size: int
    epochs: int

    def __str__(self) -> str:
        return (
            f"{self.activation}, {self.pool} pool, {self.optimizer.__name__} {self.lr:g}, "
            f"batch {self.batch_size}"
        )


RECIPES = {
    "lenet": Recipe("tanh", "avg", torch.optim.Adam, lr=2e-3, batch_size=64, epochs=5),
    "d2l-lenet": Recipe("sigmoid", "avg", torch.optim.SGD, lr=0.9, batch_size=256, epochs=10),
}
