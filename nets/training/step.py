"""One step of training: forward, loss, backward, and what the optimizer makes of it."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..recipes import Recipe
from .data import NO_CLASS
from .distributed import Ranks
from .graph import graph_step, on
from .metrics import counts, score

AUXILIARY_WEIGHT = 0.3  # of the losses of GoogLeNet's auxiliary heads
WARMUP = {
    False: 3,
    True: 11,
}  # steps before a graph; torch asks for 11 where there are several GPUs


class Learner:
    """A model that is trained in place, and all that its next step depends on.

    A step is one of the optimizer, over one or more batches: its gradient is the mean over all of
    their images, on all ranks, scaled to a norm of at most clip.  `graph` runs steps as CUDA
    graphs.  `totals` are on the device, for to read them is to wait for it.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        device: torch.device,
        amp: torch.dtype | None = None,
        ranks: Ranks | None = None,
        clip: float | None = None,
        graph: bool = False,
    ) -> None:
        self.model, self.recipe, self.amp, self.clip = model, recipe, amp, clip
        self.ranks = ranks or Ranks()
        self.learnt = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = recipe.make_optimizer(self.learnt)
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == torch.float16)
        self.average = copy.deepcopy(model).requires_grad_(False) if recipe.ema else None
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)  # as metrics.counts
        self.frozen = [
            m for m in model.modules()
            if list(m.parameters(False)) and not any(p.requires_grad for p in m.parameters(False))
        ]  # fmt: skip
        # of all steps, for gradients come together on the stream that they once did on
        self.stream = torch.cuda.Stream() if graph else None
        with torch.cuda.stream(self.stream):
            self.wrapped = self.ranks.wrap(model)
        self.step = self._step
        if graph:
            self.step = graph_step(self._step, WARMUP[self.ranks.size > 1], self.stream)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is tested and kept: the average of the steps' models, if there is one."""
        return self.model if self.average is None else self.average

    def autocast(self) -> torch.autocast:
        device = self.totals.device.type
        return torch.autocast(device, self.amp, enabled=self.amp is not None)

    def train(self) -> None:
        """Training mode; layers that are frozen keep their statistics, too."""
        self.model.train()
        for module in self.frozen:
            module.eval()

    def learn(self, batches: Sequence[tuple[Tensor, Tensor]], lr: float) -> None:
        """A step over batches of images and labels; waits for nothing."""
        if isinstance(self.lr, Tensor):
            self.lr.fill_(lr)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
        self.step(*(tensor for batch in batches for tensor in batch))

    def rehearse(self, images: Tensor) -> None:
        """A backward that changes nothing, over images of any values.

        DistributedDataParallel adds gradients up in the order in which the first backward brings
        them, and in that first one in another: several ranks' sums would differ after a resume.
        """
        kept = [buffer.clone() for buffer in self.model.buffers()]
        labels = torch.full((len(images),), NO_CLASS, device=images.device)
        self.train()
        on(self.stream, self._backward, images, labels, 1)
        self.optimizer.zero_grad()
        for buffer, value in zip(self.model.buffers(), kept, strict=True):
            buffer.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """But for totals, which is another one on each rank."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average and self.average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("model", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if isinstance(self.lr, Tensor):
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr

    def _step(self, *tensors: Tensor) -> None:
        batches = list(zip(tensors[::2], tensors[1::2], strict=True))
        images_of_step = sum(len(labels) for _, labels in batches)
        self.optimizer.zero_grad()
        for images, labels in batches[:-1]:
            with self.ranks.no_sync(self.wrapped):
                self._backward(images, labels, images_of_step)
        self._backward(*batches[-1], images_of_step)
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.learnt, self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self._follow()

    def _backward(self, images: Tensor, labels: Tensor, images_of_step: int) -> None:
        smoothing = self.recipe.label_smoothing
        with self.autocast():
            output = self.wrapped(images)
            logits = output if isinstance(output, Tensor) else output.logits
            loss, hits = score(logits, labels, smoothing)
            total = loss
            if logits is not output:
                heads = (output.aux_logits1, output.aux_logits2)
                others = sum(score(head, labels, smoothing)[0] for head in heads)
                total = loss + AUXILIARY_WEIGHT * others
        self.scaler.scale(total / images_of_step).backward()
        self.totals += counts(loss, hits, labels)

    @torch.no_grad()
    def _follow(self) -> None:
        """Moves the average: parameters and statistics by the recipe's decay, counts at once."""
        ours = self.average.state_dict().values()
        pairs = list(zip(ours, self.model.state_dict().values(), strict=True))
        moved = [(a, b) for a, b in pairs if a.is_floating_point()]
        get_ema_multi_avg_fn(self.recipe.ema)(*map(list, zip(*moved, strict=True)), None)
        for a, b in pairs:
            if not a.is_floating_point():
                a.copy_(b)
