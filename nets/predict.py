"""What a classifier takes an image for."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def best(
    model: nn.Module, image: Tensor, classes: Sequence[str], number: int = 5
) -> list[tuple[str, float]]:
    """The likeliest classes of image [1, C, H, W] with their probabilities, the first one first."""
    probabilities = model.eval()(image).softmax(1)[0]
    values, places = probabilities.topk(min(number, len(classes)))
    return [(classes[i], p) for i, p in zip(places.tolist(), values.tolist(), strict=True)]
