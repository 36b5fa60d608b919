"""Training classifiers on the same batches, with their losses and accuracies after every epoch."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._extras import demo_extra
from ._interrupt import uninterrupted
from .data import Dataset, Split, augmented
from .recipes import Recipe

with demo_extra():
    from tqdm import tqdm

AUXILIARY_WEIGHT = 0.3  # of the losses of GoogLeNet's auxiliary heads


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


class Run:
    """Models that are trained in place, and all that their next step depends on.

    All see the same batches, in an order that `seed` alone decides, and draw the same random
    numbers from torch's generators: equal models stay equal.  Models and data are of one device
    and dtype; `amp` is the dtype of automatic mixed precision.

    state_dict() between any two steps, loaded into a Run made from the same arguments, leads to
    the same bits on the same device.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        data: Dataset,
        recipe: Recipe,
        seed: int,
        amp: torch.dtype | None = None,
    ) -> None:
        self.models, self.data, self.recipe, self.amp = models, data, recipe, amp
        self.device = data.train.images.device
        self.optimizers = [recipe.make_optimizer(model.parameters()) for model in models]
        self.scalers = [
            torch.amp.GradScaler(self.device.type, enabled=amp == torch.float16) for _ in models
        ]
        self.order = torch.Generator().manual_seed(seed)  # as the epoch begins
        self.random = _random_state(self.device)  # as the epoch begins
        self.history: list[list[Metrics]] = []  # of past epochs, for every model
        self.reached: list[Metrics] = []  # in this epoch, by the models that are through
        self._begin_pass()

    def epochs(self, after_step: Callable[[], object] = lambda: None) -> Iterator[list[Metrics]]:
        """Trains to the recipe's end, and after every epoch yields what each model has reached."""
        while len(self.history) < self.recipe.epochs:
            if not self.reached and not self.step:
                self.random = _random_state(self.device)
            order = torch.Generator().set_state(self.order.get_state())
            batches = torch.randperm(len(self.data.train.labels), generator=order)
            batches = batches.split(self.recipe.batch_size)
            while len(self.reached) < len(self.models):
                metrics = self._learn(batches, after_step)
                with uninterrupted():
                    self.reached.append(metrics)
                    self._begin_pass()
            with uninterrupted():
                self.order = order
                self.history.append(self.reached)
                self.reached = []
            yield self.history[-1]

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and names in dicts and lists."""
        self._settle()
        return {
            "models": [model.state_dict() for model in self.models],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scalers": [scaler.state_dict() for scaler in self.scalers],
            "order": self.order.get_state(),
            "random": self.random,
            "random_now": _random_state(self.device),
            "history": [[list(metrics) for metrics in epoch] for epoch in self.history],
            "reached": [list(metrics) for metrics in self.reached],
            "pass": [self.step, self.loss, self.hits, self.seconds],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("models", "optimizers", "scalers"):
            for part, saved in zip(getattr(self, name), state[name], strict=True):
                part.load_state_dict(saved)
        self.order.set_state(state["order"])
        self.random = state["random"]
        _set_random_state(state["random_now"], self.device)
        self.history = [[Metrics(*metrics) for metrics in epoch] for epoch in state["history"]]
        self.reached = [Metrics(*metrics) for metrics in state["reached"]]
        self.step, self.loss, self.hits, self.seconds = state["pass"]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.amp, enabled=self.amp is not None)

    def _begin_pass(self) -> None:
        self.step, self.loss, self.hits, self.seconds = 0, 0.0, 0, 0.0
        self.scores: list[tuple[Tensor, Tensor]] = []  # not yet in loss and hits

    def _settle(self) -> None:
        """Adds the scores to loss and hits, which waits for the device."""
        with uninterrupted():
            for loss, hits in self.scores:
                self.loss += loss.item()
                self.hits += hits.item()
            self.scores = []

    def _learn(self, batches: Sequence[Tensor], after_step: Callable[[], object]) -> Metrics:
        """One model's way, or the rest of it, through the training images of an epoch."""
        model, epoch = self.models[len(self.reached)], len(self.history) + 1
        optimizer, scaler = (parts[len(self.reached)] for parts in (self.optimizers, self.scalers))
        for group in optimizer.param_groups:
            group["lr"] = self.recipe.lr_in(epoch)
        if not self.step:
            _set_random_state(self.random, self.device)
        model.train()
        images = sum(map(len, batches))
        progress = tqdm(
            total=images,
            desc=f"epoch {epoch}/{self.recipe.epochs}",
            initial=sum(map(len, batches[: self.step])),
            unit=" examples",
            leave=False,
            disable=None,
        )
        with progress:
            for batch in batches[self.step :]:
                with uninterrupted():
                    start = time.perf_counter()
                    self.scores.append(self._train_step(model, optimizer, scaler, batch))
                    self.step += 1
                    if self.step == len(batches):
                        self._settle()
                    self.seconds += time.perf_counter() - start
                progress.update(len(batch))
                after_step()
        with self.autocast():
            test = evaluate(model, self.data.test, self.recipe.batch_size)
        return Metrics(epoch, self.loss / images, self.hits / images, *test, images / self.seconds)

    def _train_step(self, model, optimizer, scaler, batch: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self.data.train.batch(batch, augmented if self.recipe.augment else None)
        optimizer.zero_grad()
        with self.autocast():
            output = model(images)
            logits = output if isinstance(output, Tensor) else output.logits
            loss, hits = _score(logits, labels)
            total = loss
            if logits is not output:
                heads = (output.aux_logits1, output.aux_logits2)
                total = loss + AUXILIARY_WEIGHT * sum(_score(head, labels)[0] for head in heads)
        scaler.scale(total / len(batch)).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach(), hits


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, batch_size: int) -> tuple[float, float]:
    """The mean cross entropy, in nats, and the accuracy of model, in evaluation mode, on split."""
    model.eval()
    scores = []
    for batch in torch.arange(len(split.labels)).split(batch_size):
        images, labels = split.batch(batch)
        scores.append(_score(model(images), labels))
    loss, hits = (sum(total.item() for total in totals) for totals in zip(*scores, strict=True))
    return loss / len(split.labels), hits / len(split.labels)


def largest_difference(a: nn.Module, b: nn.Module) -> float:
    """max |p - q| over the parameters p of a and q of b, which are in the same order."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max((p - q).abs().max().item() for p, q in pairs)


def _score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the losses, and the number of right answers."""
    return F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()


def _random_state(device: torch.device) -> list[Tensor]:
    """Of torch's own generators, from which dropout and augmentation draw."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
