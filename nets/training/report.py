"""What a training run leaves behind: weights, a CSV of metrics and a PNG of learning curves.

Each file is replaced as a whole, or not at all.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from .._extras import demo_extra
from .._files import replacing
from .metrics import Metrics
from .saved import packed

with demo_extra():
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator


def write_weights(path: Path, model: nn.Module) -> None:
    """The state_dict, on the CPU: torch.load(path, weights_only=True) reads it anywhere."""
    values = {name: value.cpu() for name, value in model.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(packed(values))


def write_metrics(path: Path, history: Sequence[Metrics]) -> None:
    """A CSV with a line for every epoch, under a line of Metrics' names."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Metrics._fields)
        writer.writerows(history)


def write_curves(path: Path, history: Sequence[Metrics], title: str) -> None:
    """A PNG of loss and accuracy by epoch, on training and test images; needs no display."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(title)
    epochs = [m.epoch for m in history]
    for axes, measure in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part in ("train", "test"):
            values = [getattr(m, f"{part}_{measure}") for m in history]
            axes.plot(epochs, values, marker="o", label=part)
        axes.set(xlabel="epoch", ylabel="loss (nats)" if measure == "loss" else measure)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


class Scalars:
    """Metrics by epoch for TensorBoard, in folder; ModuleNotFoundError without tensorboard."""

    def __init__(self, folder: Path, past_epochs: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "tensorboard is not installed; pip install tensorboard, or leave out --tensorboard"
            ) from error
        self.writer = SummaryWriter(folder, purge_step=past_epochs + 1)  # hides later ones

    def write(self, metrics: Metrics) -> None:
        for name, value in metrics._asdict().items():
            if name != "epoch":
                self.writer.add_scalar(name, value, metrics.epoch)
        self.writer.flush()
