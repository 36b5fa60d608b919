"""What a classifier takes for what."""

import torch
from torch import Tensor, nn

from .data import CLASSES, Split


@torch.no_grad()
def confusion(model: nn.Module, split: Split, batch_size: int) -> Tensor:
    """How many images of class i the model, in evaluation mode, takes for class j: [i, j]."""
    model.eval()
    table = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    for batch in torch.arange(len(split.labels)).split(batch_size):
        images, labels = split.batch(batch)
        pairs = labels * CLASSES + model(images).argmax(1)
        table += torch.bincount(pairs.cpu(), minlength=CLASSES**2).view(CLASSES, CLASSES)
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
