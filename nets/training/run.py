"""The loop: epochs of steps on the same batches, with losses and accuracies after every one."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from .._extras import demo_extra
from ..recipes import Recipe
from .data import Dataset
from .distributed import Ranks
from .metrics import Metrics, evaluate
from .step import Learner

with demo_extra():
    from tqdm import tqdm


def initialise(model: nn.Module) -> None:
    """Xavier-uniform weights (Glorot and Bengio, 2010) in convolutions and linear layers."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)


class Run:
    """Models that are trained in place, and all that their next step depends on.

    All see the same batches, and draw the same random numbers from torch's generators, which are
    set before every step: equal models stay equal.  The seed, the rank and how far the run is
    decide on both alone.  Models and data are of one device and dtype; `amp` is the dtype of
    automatic mixed precision, a step takes `accumulate` batches, and step.Learner has the rest.

    state_dict() between any two steps, loaded into a Run made from the same arguments on as many
    ranks, leads to the same bits on the same device.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        data: Dataset,
        recipe: Recipe,
        seed: int,
        amp: torch.dtype | None = None,
        ranks: Ranks | None = None,
        accumulate: int = 1,
        **options: Any,
    ) -> None:
        self.data, self.recipe, self.seed, self.accumulate = data, recipe, seed, accumulate
        self.ranks = ranks or Ranks()
        self.device = next(models[0].parameters()).device
        self.learners = [
            Learner(model, recipe, self.device, amp, self.ranks, **options) for model in models
        ]
        self.sampler = DistributedSampler(
            range(len(data.train.labels)), self.ranks.size, self.ranks.rank, seed=seed
        )
        if self.ranks.size > 1:
            like = next(models[0].parameters())
            shape = 2, data.train.channels, recipe.size, recipe.size
            for learner in self.learners:
                learner.rehearse(like.new_zeros(shape))
        self.history: list[list[Metrics]] = []  # of past epochs, for every model
        self.reached: list[Metrics] = []  # in this epoch, by the models that are through
        self._begin_pass()

    def epochs(
        self,
        after_step: Callable[[], object] = lambda: None,
        after_test: Callable[[], object] = lambda: None,
    ) -> Iterator[list[Metrics]]:
        """Trains to the recipe's end, and after every epoch yields what each model has reached.

        Calls after_step after every step and after_test after every batch of test images; a run
        that these end by an exception is between two steps.
        """
        while len(self.history) < self.recipe.epochs:
            self.sampler.set_epoch(len(self.history))
            batches = torch.tensor(list(self.sampler)).split(self.recipe.batch_size)
            while len(self.reached) < len(self.learners):
                self.reached.append(self._learn(batches, after_step, after_test))
                self._begin_pass()
            self.history.append(self.reached)
            self.reached = []
            yield self.history[-1]

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and names in dicts and lists; all ranks have to ask for theirs."""
        return {
            "learners": [learner.state_dict() for learner in self.learners],
            "history": [[list(metrics) for metrics in epoch] for epoch in self.history],
            "reached": [list(metrics) for metrics in self.reached],
            "pass": [self.step, self.seconds, self.host, self.waited],
            "totals": self.ranks.gathered(self.learner.totals).tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for learner, saved in zip(self.learners, state["learners"], strict=True):
            learner.load_state_dict(saved)
        self.history = [[Metrics(*metrics) for metrics in epoch] for epoch in state["history"]]
        self.reached = [Metrics(*metrics) for metrics in state["reached"]]
        self.step, self.seconds, self.host, self.waited = state["pass"]
        totals = state["totals"][self.ranks.rank]
        self.learner.totals.copy_(torch.tensor(totals, dtype=torch.float64))

    @property
    def learner(self) -> Learner:
        """Whose turn it is."""
        return self.learners[min(len(self.reached), len(self.learners) - 1)]

    def _begin_pass(self) -> None:
        self.step, self.seconds, self.host, self.waited = 0, 0.0, 0.0, 0.0
        for learner in self.learners:
            learner.totals.zero_()

    def _learn(
        self,
        batches: Sequence[Tensor],
        after_step: Callable[[], object],
        after_test: Callable[[], object],
    ) -> Metrics:
        """One model's way, or the rest of it, through the training images of an epoch."""
        learner, epoch = self.learner, len(self.history) + 1
        steps = -(-len(batches) // self.accumulate)
        left = batches[self.step * self.accumulate :]
        loaded = (
            self.data.train.batches(left, self.recipe.augment, self.draw(epoch)) if left else ()
        )
        loaded = iter(loaded)
        learner.train()
        progress = tqdm(
            total=sum(map(len, batches)) * self.ranks.size,
            desc=f"epoch {epoch}/{self.recipe.epochs}",
            initial=sum(map(len, batches[: self.step * self.accumulate])) * self.ranks.size,
            unit=" examples",
            leave=False,
            disable=True if self.ranks.rank else None,
        )
        with progress:
            while self.step < steps:
                start = time.perf_counter()
                torch.manual_seed(self.draw(epoch, self.step, self.ranks.rank))
                first = self.step * self.accumulate
                part = [next(loaded) for _ in batches[first : first + self.accumulate]]
                there = time.perf_counter()
                learner.learn(part, self.recipe.lr_in(epoch, (self.step + 1) / steps))
                asked = time.perf_counter()
                self.step += 1
                if self.step == steps:
                    learner.totals.tolist()  # waits for the device
                self.waited += there - start
                self.host += asked - there
                self.seconds += time.perf_counter() - start
                progress.set_postfix_str(
                    f"step {self._ms(self.seconds)}, host {self._ms(self.host)}, "
                    f"data {self._ms(self.waited)} ms",
                    refresh=False,
                )
                progress.update(sum(len(labels) for _, labels in part) * self.ranks.size)
                after_step()
        loss, hits, images = self.ranks.total(learner.totals).tolist()
        self.ranks.follow_first(learner.evaluated)
        with learner.autocast():
            test = evaluate(
                learner.evaluated, self.data.test, self.recipe.batch_size, self.ranks, after_test
            )
        times = (1e3 * seconds / steps for seconds in (self.seconds, self.host, self.waited))
        return Metrics(epoch, loss / images, hits / images, *test, images / self.seconds, *times)

    def _ms(self, seconds: float) -> str:
        return f"{1e3 * seconds / self.step:.1f}"

    def draw(self, *place: int) -> int:
        """The number that random ones at a place in the run are drawn with."""
        state = np.random.SeedSequence((self.seed, *place)).generate_state(1, np.uint64)
        return int(state[0] >> np.uint64(1))


def largest_difference(a: nn.Module, b: nn.Module) -> float:
    """max |p - q| over the parameters p of a and q of b, which are in the same order."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max((p - q).abs().max().item() for p, q in pairs)
