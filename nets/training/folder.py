"""Folders of images, as torchvision lays them out: train/CLASS/*.jpg and val/CLASS/*.jpg."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .data import NO_CLASS, Dataset
from .transforms import View, pillow

# torchvision's; the means and deviations are ImageNet's
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
VIEW = View(224, 0.875, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Item = tuple[int, int | None]  # an image's number, and the number that its changes are drawn with


class BadImageError(ValueError):
    """A file that cannot be read as an image."""


def image_folder(
    root: Path, workers: int, skip_bad: bool, classes: Sequence[str] | None = None
) -> Dataset:
    """root/train and root/val, which need not have all of train's classes.

    workers processes read ahead; skip_bad leaves out what cannot be read as an image, where
    BadImageError would name it.  With classes, those of an earlier training, root/train may be
    missing.  Raises OSError for folders that are not there, ValueError for classes without images
    and for unknown ones, ModuleNotFoundError without Pillow.
    """
    pillow()
    if classes is None:
        classes = _folders(root / "train")
    parts = []
    for part in ("train", "val"):
        if part == "train" and not (root / part).is_dir():
            parts.append(Folder([], [], workers, skip_bad))
            continue
        known = {name: number for number, name in enumerate(classes)}
        paths, labels = [], []
        for name in _folders(root / part):
            if name not in known:
                raise ValueError(
                    f"{root / part / name}: expected one of {len(classes)} known classes "
                    f"({', '.join(classes[:5])}, ...); training and validation have the same"
                )
            found = _images(root / part / name)
            if not found:
                raise ValueError(
                    f"{root / part / name}: expected images ({', '.join(ENDINGS)}), got none; "
                    "remove the folder or fill it"
                )
            paths += found
            labels += [known[name]] * len(found)
        parts.append(Folder(paths, labels, workers, skip_bad))
    return Dataset(*parts, tuple(classes), VIEW)


def _folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: expected a folder with one folder a class, got none; --data-dir names the "
            "folder of train/CLASS/*.jpg and val/CLASS/*.jpg"
        )
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not names:
        raise ValueError(f"{root}: expected one folder a class, got none; make them")
    return names


def _images(root: Path) -> list[str]:
    return sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
        if name.lower().endswith(ENDINGS)
    )


class Folder:
    """Image files, in batches that are read and changed in other processes."""

    channels = len(VIEW.mean)

    def __init__(
        self,
        paths: list[str],
        labels: list[int],
        workers: int,
        skip_bad: bool,
        view: View = VIEW,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.paths, self.labels = paths, torch.tensor(labels, dtype=torch.int64)
        self.workers, self.skip_bad = workers, skip_bad
        self.view, self.device, self.dtype = view, device or torch.device("cpu"), dtype
        self.skipped: set[str] = set()
        self.plan = Plan()
        self.loader: DataLoader | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> "Folder":
        return self._with(device=device, dtype=dtype)

    def resized(self, size: int) -> "Folder":
        return self._with(view=self.view._replace(size=size))

    def _with(self, **changed) -> "Folder":
        now = {"view": self.view, "device": self.device, "dtype": self.dtype}
        labels = self.labels.tolist()
        return Folder(self.paths, labels, self.workers, self.skip_bad, **(now | changed))

    def batches(
        self, index: Sequence[Tensor], augment: bool = False, draw: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels at each of index [B]: [B, 3, size, size] on the device, and [B].

        Each image's changes are drawn from draw and its number.  An image that is skipped has the
        label -1, and another one's pixels.
        """
        self.plan.index, self.plan.draw = index, draw if augment else None
        if self.loader is None:
            reading = _Reading(self.paths, self.labels, self.view)
            self.loader = DataLoader(
                reading,
                batch_sampler=self.plan,
                collate_fn=reading.collate,
                num_workers=self.workers,
                pin_memory=self.device.type == "cuda",
                persistent_workers=self.workers > 0,
                worker_init_fn=_stay,
            )
        for pixels, labels, bad in self.loader:
            self._note(bad)
            pixels, labels = (t.to(self.device, non_blocking=True) for t in (pixels, labels))
            yield self.view.normalised(pixels, self.dtype), labels

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        (batch,) = self.batches([index])
        return batch

    def _note(self, bad: list[tuple[str, str]]) -> None:
        for path, message in bad:
            if not self.skip_bad:
                raise BadImageError(f"{message}; remove it, or leave such files out by --skip-bad")
            if path not in self.skipped:
                self.skipped.add(path)
                print(f"skipped {message} ({len(self.skipped)} so far)", file=sys.stderr)


class Plan:
    """The batches of an epoch that are still to come, for the DataLoader."""

    index: Sequence[Tensor] = ()
    draw: int | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[list[Item]]:
        for batch in self.index:
            yield [(i, self.draw) for i in batch.tolist()]


class _Reading:
    """For the DataLoader: an image's bytes and label, or its path and what is wrong with it."""

    def __init__(self, paths: list[str], labels: Tensor, view: View) -> None:
        self.paths, self.labels, self.view = paths, labels, view

    def __getitem__(self, item: Item) -> tuple[Tensor, int] | tuple[str, str]:
        i, draw = item
        if draw is not None:
            draw = int(np.random.SeedSequence((draw, i)).generate_state(1, np.uint64)[0])
        try:
            return self.view.read(self.paths[i], draw), int(self.labels[i])
        except ValueError as error:
            return self.paths[i], str(error)

    def collate(self, items: list) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
        good = [item[0] for item in items if isinstance(item[0], Tensor)]
        bad = [item for item in items if not isinstance(item[0], Tensor)]
        size, channels = self.view.size, len(self.view.mean)
        other = good[0] if good else torch.zeros(size, size, channels, dtype=torch.uint8)
        pixels = [item[0] if isinstance(item[0], Tensor) else other for item in items]
        labels = [item[1] if isinstance(item[0], Tensor) else NO_CLASS for item in items]
        return torch.stack(pixels), torch.tensor(labels), bad


def _stay(_: int) -> None:
    """The process that reads for a training ends when that does, whoever else gets its signals."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
