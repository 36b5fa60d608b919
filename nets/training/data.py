"""The images to learn from: scikit-learn's digits, Fashion-MNIST in its IDX files and CIFAR-10.

All have ten classes and values in [0, 1]: grey 28x28 images, or CIFAR-10's coloured 32x32.
"""

import gzip
import hashlib
import http.client
import math
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .._extras import demo_extra
from .._files import replacing
from .transforms import View

# Where torchvision.datasets.FashionMNIST fetches them, with the md5 sums it publishes.
MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
CLASSES = 10
NO_CLASS = -1  # of an image that could not be read: it does not count
DIGITS = tuple(map(str, range(CLASSES)))
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
           "Bag", "Ankle boot")  # fmt: skip
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Split(NamedTuple):
    images: Tensor  # [N, C, H, W], floating
    labels: Tensor  # [N], int64
    size: int | None = None  # of a batch's square images, if it is not that of the stored ones

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    def to(self, device: torch.device, dtype: torch.dtype) -> "Split":
        return self._replace(images=self.images.to(device, dtype), labels=self.labels.to(device))

    def resized(self, size: int) -> "Split":
        return self._replace(size=size)

    def batches(
        self, index: Sequence[Tensor], augment: bool = False, draw: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels at each of index [B], changed, then resized: [B, C, size, size].

        On a GPU the images are channels_last.  draw is for data whose changes are not drawn from
        torch's generators, as a batch is asked for.
        """
        place = self.images.device
        for part in (
            torch.cat(list(index)).to(place, non_blocking=True).split(list(map(len, index)))
        ):
            images = self.images[part]
            if augment:
                images = augmented(images)
            if self.size not in (None, images.shape[-1]):
                images = F.interpolate(images, size=self.size, mode="bilinear")
            if images.is_cuda:
                images = images.contiguous(memory_format=torch.channels_last)
            yield images, self.labels[part]

    def batch(self, index: Tensor, augment: bool = False) -> tuple[Tensor, Tensor]:
        (batch,) = self.batches([index], augment)
        return batch


class Dataset(NamedTuple):
    """What to learn from, and what to be tested with: Splits, or folder.Folders."""

    train: Split
    test: Split
    classes: tuple[str, ...] = DIGITS
    view: View = View()

    def to(self, device: torch.device, dtype: torch.dtype) -> "Dataset":
        """The same data on a device, images in a dtype."""
        return self._replace(train=self.train.to(device, dtype), test=self.test.to(device, dtype))

    def resized(self, size: int) -> "Dataset":
        """The same data in batches of size x size images."""
        return self._replace(
            train=self.train.resized(size),
            test=self.test.resized(size),
            view=self.view._replace(size=size),
        )


def augmented(images: Tensor) -> Tensor:
    """Each image, mirrored or not, cropped from itself in a frame of zeros H // 8 wide.

    What is drawn comes from torch's CPU generator.
    """
    N, _, H, W = images.shape
    frame = H // 8
    top, left = torch.randint(2 * frame + 1, (2, N, 1))
    h, w = top + torch.arange(H), left + torch.arange(W)  # [N, H], [N, W]
    w = torch.where(torch.rand(N, 1) < 0.5, w.flip(1), w)
    n = torch.arange(N).view(N, 1, 1)
    n, h, w = (i.to(images.device, non_blocking=True) for i in (n, h, w))
    framed = F.pad(images, [frame] * 4)
    return framed[n, :, h.unsqueeze(2), w.unsqueeze(1)].permute(0, 3, 1, 2)


def digits() -> Dataset:
    """scikit-learn's bundled handwritten digits (UCI, 8x8): 1437 to train on, 360 to test on.

    The split is stratified and always the same.  Raises ModuleNotFoundError without scikit-learn.
    """
    with demo_extra():
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)  # [1797, 64] in 0..16, [1797]
    train, test = train_test_split(
        range(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    images = torch.from_numpy(images).float().reshape(-1, 8, 8) / 16
    labels = torch.from_numpy(labels)
    return Dataset(*(Split(_resized(images[part]), labels[part]) for part in (train, test)))


def fashion_mnist(folder: Path) -> Dataset:
    """Fashion-MNIST (Xiao et al., 2017) from folder/FashionMNIST/raw, as torchvision lays it out.

    The four files may hold any number of images, and may be gzipped (.gz).  Raises OSError for a
    file that cannot be read, ValueError for one that is not what its name says.
    """
    return Dataset(_split(_raw(folder), "train"), _split(_raw(folder), "t10k"), FASHION)


def cifar10(folder: Path) -> Dataset:
    """CIFAR-10 (Krizhevsky, 2009) from folder/cifar-10-batches-bin, its published binary version.

    The six files may hold any number of images.  Raises OSError for a file that cannot be read,
    ValueError for one that is not what its name says.
    """
    files = [folder / "cifar-10-batches-bin" / f"data_batch_{i}.bin" for i in range(1, 6)]
    parts = [read_cifar10(path) for path in files]
    images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    test = read_cifar10(files[0].with_name("test_batch.bin"))
    return Dataset(
        Split(images, labels), Split(*test), CIFAR, View(32, 1.0, (0.0,) * 3, (1.0,) * 3)
    )


def read_cifar10(path: Path) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 32, 32] and labels [N] of one of CIFAR-10's binary files.

    Format: https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected this file, got none; name the folder that holds {path.parent.name}"
        )
    content, record = path.read_bytes(), 1 + 3 * 32 * 32
    if not content or len(content) % record:
        raise ValueError(
            f"{path}: expected images of {record} bytes each (30730000 bytes as published), got "
            f"{len(content)} bytes; fetch cifar-10-binary.tar.gz again"
        )
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, record)
    labels = records[:, 0].long()
    if labels.max() >= CLASSES:
        raise ValueError(
            f"{path}: expected labels below {CLASSES}, got {labels.max()}; fetch it again"
        )
    return records[:, 1:].view(-1, 3, 32, 32) / 255, labels


def download_fashion_mnist(folder: Path) -> None:
    """Fetches those of Fashion-MNIST's four files (30 MB) that folder/FashionMNIST/raw lacks.

    Raises OSError if one cannot be fetched, ValueError if its checksum is not the published one.
    """
    for name, md5 in MD5.items():
        path = _raw(folder) / name
        if path.exists() or path.with_suffix("").exists():
            continue
        print(f"downloading {MIRROR}{name}", flush=True)
        try:
            with urllib.request.urlopen(f"{MIRROR}{name}", timeout=60) as response:
                content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise OSError(f"could not download {MIRROR}{name}: {error}") from error
        got = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if got != md5:
            raise ValueError(
                f"{MIRROR}{name}: expected a file with md5 {md5}, got {got}; try again"
            )
        with replacing(path) as temporary:
            temporary.write_bytes(content)


def read_idx(path: Path, dims: int) -> Tensor:
    """The unsigned bytes of an IDX file in `dims` dimensions, read from path or path.gz.

    Format: http://yann.lecun.com/exdb/mnist.  Raises OSError for a file that cannot be read,
    ValueError for one that does not hold a non-empty array of that kind.
    """
    path, content = _content(path)
    header = 4 + 4 * dims  # the magic number, then the sizes, big-endian
    magic, expected = content[:4].hex(), f"{0x0800 + dims:08x}"
    if magic != expected:
        raise ValueError(
            f"{path}: expected IDX magic {expected} (unsigned bytes in {dims} dimensions), got "
            f"{magic or 'an empty file'}; check the file's name and contents"
        )
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    size = header + math.prod(shape)
    if len(content) != size or size == header:
        raise ValueError(
            f"{path}: expected {size} bytes for a non-empty array of {shape}, got {len(content)}; "
            "delete the file and fetch it again"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(shape)


def _raw(folder: Path) -> Path:
    return folder / "FashionMNIST" / "raw"


def _split(raw: Path, part: str) -> Split:
    images = read_idx(raw / f"{part}-images-idx3-ubyte", 3)
    labels = read_idx(raw / f"{part}-labels-idx1-ubyte", 1).long()
    if len(images) != len(labels):
        raise ValueError(
            f"{raw}: expected a label for each of the {len(images)} {part} images, got "
            f"{len(labels)} labels; fetch both files again"
        )
    if labels.max() >= CLASSES:
        raise ValueError(
            f"{raw / part}-labels-idx1-ubyte: expected labels below {CLASSES}, got {labels.max()}; "
            "check the file's contents"
        )
    return Split(_resized(images / 255), labels)


def _content(path: Path) -> tuple[Path, bytes]:
    """What is in path, or unpacked from path.gz, and which of the two it was."""
    if path.exists():
        return path, path.read_bytes()
    zipped = path.with_name(f"{path.name}.gz")
    if not zipped.exists():
        raise FileNotFoundError(
            f"{path}: expected this file, plain or with .gz, got neither; name the folder that "
            "holds FashionMNIST/raw, or add --download"
        )
    try:
        with gzip.open(zipped) as file:
            return zipped, file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{zipped}: expected a whole gzip file, got {error}; delete the file and fetch it again"
        ) from error


def _resized(images: Tensor) -> Tensor:
    """[N, H, W] -> [N, 1, 28, 28]"""
    return F.interpolate(images.unsqueeze(1), size=28, mode="bilinear")
