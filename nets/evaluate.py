"""What a classifier takes for what."""

import torch
from torch import Tensor, nn

from .training.data import CLASSES, NO_CLASS, Split


@torch.no_grad()
def confusion(model: nn.Module, split: Split, batch_size: int, classes: int = CLASSES) -> Tensor:
    """How many images of class i the model, in evaluation mode, takes for class j: [i, j]."""
    model.eval()
    table = torch.zeros(classes, classes, dtype=torch.int64)
    for images, labels in split.batches(torch.arange(len(split.labels)).split(batch_size)):
        taken = model(images).argmax(1)
        pairs = (labels * classes + taken)[labels != NO_CLASS]
        table += torch.bincount(pairs.cpu(), minlength=classes**2).view(classes, classes)
    return table


def confusion_table(table: Tensor) -> str:
    """A line for every class, under a line of what they were taken for; recall at the end."""
    width = max(5, len(str(table.max().item())) + 2)
    head = "".join(f"{j:{width}}" for j in range(len(table)))
    lines = [f"true \\ taken for{head}  recall"]
    for i, row in enumerate(table.tolist()):
        recall = f"{row[i] / sum(row):.3f}" if sum(row) else "-"
        lines.append(f"{i:15}{''.join(f'{n:{width}}' for n in row)}  {recall:>6}")
    return "\n".join(lines)
