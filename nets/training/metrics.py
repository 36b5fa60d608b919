"""How well a classifier does, and how fast it learns."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import NO_CLASS, Split
from .distributed import Ranks


class Metrics(NamedTuple):
    """Of an epoch.  Losses are in nats; training images are scored while they are learnt.

    The training loss is what is learnt by: with label smoothing, where the recipe has it.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    examples_per_second: float  # of training, by all processes
    step_ms: float  # from one step to the next, in the mean
    host_ms: float  # of it, until all of a step was asked of the device
    data_wait_ms: float  # of it, until a batch was there

    def __str__(self) -> str:
        return (
            f"train loss {self.train_loss:.3f} acc {self.train_accuracy:.3f}  "
            f"test loss {self.test_loss:.3f} acc {self.test_accuracy:.3f}  "
            f"{self.examples_per_second:.1f} examples/s"
        )


RESULTS = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy")


def score(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """The sum of the losses, and the number of right answers."""
    loss = F.cross_entropy(
        logits, labels, reduction="sum", ignore_index=NO_CLASS, label_smoothing=smoothing
    )
    return loss, (logits.argmax(1) == labels).sum()


def counts(loss: Tensor, hits: Tensor, labels: Tensor) -> Tensor:
    """[3] in float64: loss, hits and the number of images that count."""
    return torch.stack([loss.detach().double(), hits.double(), (labels != NO_CLASS).sum().double()])


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    batch_size: int,
    ranks: Ranks | None = None,
    after_batch: Callable[[], object] = lambda: None,
) -> tuple[float, float]:
    """The mean cross entropy, in nats, and the accuracy of model, in evaluation mode, on split.

    Each of ranks takes its share of the images.
    """
    ranks = ranks or Ranks()
    model.eval()
    total = torch.zeros(3, dtype=torch.float64, device=next(model.parameters()).device)
    mine = torch.arange(ranks.rank, len(split.labels), ranks.size)
    for images, labels in split.batches(mine.split(batch_size)) if len(mine) else ():
        total += counts(*score(model(images), labels), labels)
        after_batch()
    loss, hits, images = ranks.total(total).tolist()
    return loss / images, hits / images
