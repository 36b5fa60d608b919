"""Pictures of what a network's layers hold and see."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ._extras import demo_extra
from ._files import replacing

with demo_extra():
    from matplotlib.figure import Figure


def write_filters(path: Path, model: nn.Module) -> None:
    """A PNG of the first convolution's filters: in colour for 3 channels, else their mean."""
    name, layer = first_convolution(model)
    weight = layer.weight.detach().float().cpu()  # [CO, C, KH, KW]
    if weight.shape[1] == 3:
        low, high = weight.amin((1, 2, 3), keepdim=True), weight.amax((1, 2, 3), keepdim=True)
        pictures = ((weight - low) / (high - low).clamp_min(1e-12)).permute(0, 2, 3, 1)
    else:
        pictures = weight.mean(1)
    _write(path, pictures, f"{name}: {len(pictures)} filters of {tuple(weight.shape[1:])}")


@torch.no_grad()
def write_features(path: Path, model: nn.Module, image: Tensor, layer: str | None = None) -> None:
    """A PNG of image [C, H, W]'s feature maps after a layer, the first convolution by default.

    Raises ValueError for a layer that is not in model, or has no maps.
    """
    name = layer or first_convolution(model)[0]
    modules = dict(model.named_modules())
    if name not in modules:
        names = ", ".join(n for n, module in modules.items() if n and not any(module.children()))
        raise ValueError(f"layer {name} is not in the network, which has {names}")
    maps = []
    hook = modules[name].register_forward_hook(lambda _, __, y: maps.append(y))
    try:
        model.eval()(image.unsqueeze(0))
    finally:
        hook.remove()
    if not maps or not isinstance(maps[0], Tensor) or maps[0].ndim != 4:
        raise ValueError(f"layer {name} puts out no feature maps; name a convolution or a pooling")
    pictures = maps[0][0].float().cpu()  # [C, H, W]
    _write(path, pictures, f"{name}: {len(pictures)} maps of {tuple(pictures.shape[1:])}")


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    return next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))


def _write(path: Path, pictures: Tensor, title: str) -> None:
    """A grid of pictures [N, H, W] or [N, H, W, 3], each stretched over all greys."""
    columns = min(16, max(4, round(len(pictures) ** 0.5)))
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(columns * 0.7, rows * 0.7 + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, picture in zip(grid, pictures, strict=False):
        axes.imshow(picture.numpy(), cmap="gray")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
