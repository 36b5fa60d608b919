"""How a file becomes a network's input: read, cropped, resized, mirrored.

torchvision's v2 transforms do it where torchvision can be imported.  What stands in for them needs
Pillow and torch alone, draws the same random numbers and gives the same pixels: bilinear, each
pixel of the result an average over all those it covers.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Image = Any  # Pillow's, which is imported where it is used
Transform = Callable[[Image], Image]


class View(NamedTuple):
    """What a network is shown of an image: its middle, in values of mean 0 and deviation 1.

    The shorter side is resized to size / middle, and the middle size x size pixels are cut out.
    mean and std, a number a channel, are of values in [0, 1].
    """

    size: int = 28
    middle: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def normalised(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """Bytes [N, size, size, C] -> [N, C, size, size] in dtype, channels_last in memory."""
        mean, std = (
            torch.tensor(values, dtype=dtype).to(pixels.device, non_blocking=True)
            for values in (self.mean, self.std)
        )
        return pixels.to(dtype).div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)

    def read(self, path: str | Path, draw: int | None = None) -> Tensor:
        """The bytes [size, size, C] of an image file; with draw, of a random part of it.

        Raises ValueError for what cannot be read as an image, ModuleNotFoundError without Pillow.
        """
        image = opened(path, len(self.mean))
        if draw is None:
            return _bytes(evaluation(self)(image))
        # torchvision draws from torch's CPU generator; others draw from it, too
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(draw)
        try:
            return _bytes(training(self.size)(image))
        finally:
            torch.set_rng_state(state)


def pillow() -> Any:
    """PIL.Image; ModuleNotFoundError names the remedy."""
    try:
        import PIL.Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{error.name} is not installed; pip install "tritonconv[images]"', name=error.name
        ) from error
    return PIL.Image


def opened(path: str | Path, channels: int) -> Image:
    library = pillow()
    try:
        with library.open(path) as image:
            return image.convert("RGB" if channels == 3 else "L")
    except Exception as error:  # each of Pillow's formats has errors of its own
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error


def training(size: int, plain: bool = False) -> Transform:
    """A random part of 8% to 100% of the area, size x size, mirrored or not."""
    v2 = None if plain else _torchvision()
    if v2 is None:
        return lambda image: _mirrored(_part(image, size))
    return v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])


def evaluation(view: View, plain: bool = False) -> Transform:
    """The middle of the image."""
    shorter = round(view.size / view.middle)
    v2 = None if plain else _torchvision()
    if v2 is None:
        return lambda image: _centre(_resized(image, shorter), view.size)
    return v2.Compose([v2.Resize(shorter, antialias=True), v2.CenterCrop(view.size)])


def _torchvision() -> Any:
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError):  # RuntimeError: it was built for another torch
        return None
    return v2


def _bytes(image: Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels if pixels.ndim == 3 else pixels.unsqueeze(2)


def _scaled(image: Image, width: int, height: int) -> Image:
    return image.resize((width, height), pillow().Resampling.BILINEAR)


def _resized(image: Image, shorter: int) -> Image:
    width, height = image.size
    if width <= height:
        return _scaled(image, shorter, int(shorter * height / width))
    return _scaled(image, int(shorter * width / height), shorter)


def _centre(image: Image, size: int) -> Image:
    left, top = (round((length - size) / 2) for length in image.size)
    return image.crop((left, top, left + size, top + size))


def _part(image: Image, size: int) -> Image:
    """As torchvision.transforms.v2.RandomResizedCrop, number by number."""
    width, height = image.size
    lowest, highest = 3 / 4, 4 / 3
    logs = torch.log(torch.tensor((lowest, highest)))
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(0.08, 1.0).item()
        ratio = torch.exp(torch.empty(1).uniform_(logs[0].item(), logs[1].item())).item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = torch.randint(0, height - h + 1, (1,)).item()
            left = torch.randint(0, width - w + 1, (1,)).item()
            break
    else:  # too long or too high an image: its middle
        w, h = width, height
        if width / height < lowest:
            h = round(width / lowest)
        elif width / height > highest:
            w = round(height * highest)
        top, left = (height - h) // 2, (width - w) // 2
    return _scaled(image.crop((left, top, left + w, top + h)), size, size)


def _mirrored(image: Image) -> Image:
    left_right = pillow().Transpose.FLIP_LEFT_RIGHT
    return image if torch.rand(1) >= 0.5 else image.transpose(left_right)
