"""Training classifiers on the same batches, with their losses and accuracies after every epoch."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._extras import demo_extra
from .data import Dataset, Split
from .recipes import Recipe

with demo_extra():
    from tqdm import tqdm


class Metrics(NamedTuple):
    """Losses are cross entropies in nats; the training images are scored while they are learnt."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    examples_per_second: float  # of training

    def __str__(self) -> str:
        return (
            f"train loss {self.train_loss:.3f} acc {self.train_accuracy:.3f}  "
            f"test loss {self.test_loss:.3f} acc {self.test_accuracy:.3f}  "
            f"{self.examples_per_second:.1f} examples/s"
        )


def initialise(model: nn.Module) -> None:
    """Xavier-uniform weights (Glorot and Bengio, 2010) in convolutions and linear layers."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)


def train(
    models: Sequence[nn.Module], data: Dataset, recipe: Recipe, seed: int
) -> Iterator[list[Metrics]]:
    """Trains the models in place, and after every epoch yields what each has reached.

    All see the same batches, in an order that `seed` alone decides: equal models stay equal.
    Models and data are of one device and dtype.
    """
    optimizers = [recipe.optimizer(model.parameters(), lr=recipe.lr) for model in models]
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, recipe.epochs + 1):
        order = torch.randperm(len(data.train.labels), generator=generator)
        batches = order.split(recipe.batch_size)
        metrics = []
        for model, optimizer in zip(models, optimizers, strict=True):
            start = time.perf_counter()
            progress = tqdm(batches, f"epoch {epoch}/{recipe.epochs}", leave=False, disable=None)
            train_loss, train_accuracy = _learn(model, optimizer, data.train, progress)
            speed = len(order) / (time.perf_counter() - start)
            test_loss, test_accuracy = evaluate(model, data.test, recipe.batch_size)
            metrics.append(
                Metrics(epoch, train_loss, train_accuracy, test_loss, test_accuracy, speed)
            )
        yield metrics


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, batch_size: int) -> tuple[float, float]:
    """The mean cross entropy, in nats, and the accuracy of model, in evaluation mode, on split."""
    model.eval()
    batches = zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True)
    return _mean([_score(model(images), labels) for images, labels in batches], split)


def largest_difference(a: nn.Module, b: nn.Module) -> float:
    """max |p - q| over the parameters p of a and q of b, which are in the same order."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max((p - q).abs().max().item() for p, q in pairs)


def _learn(model, optimizer, split: Split, batches) -> tuple[float, float]:
    model.train()
    scores = []
    for batch in batches:
        optimizer.zero_grad()
        loss, hits = _score(model(split.images[batch]), split.labels[batch])
        (loss / len(batch)).backward()
        optimizer.step()
        scores.append((loss.detach(), hits))
    return _mean(scores, split)


def _score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the losses, and the number of right answers."""
    return F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()


def _mean(scores: list[tuple[Tensor, Tensor]], split: Split) -> tuple[float, float]:
    loss, hits = (sum(total.item() for total in totals) for totals in zip(*scores, strict=True))
    return loss / len(split.labels), hits / len(split.labels)
