import functools
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


def idx(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture(scope="session")
def write_idx_set_to() -> Callable[..., Path]:
    """Writes random images as Fashion-MNIST's four files under a folder, and returns the folder."""

    def write(
        folder: Path, train: int = 8, test: int = 4, size: int = 28, zipped: bool = False
    ) -> Path:
        random = np.random.default_rng(0)
        raw = folder / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for part, number in (("train", train), ("t10k", test)):
            images = random.integers(0, 256, (number, size, size))
            labels = np.arange(number) % 10
            for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
                path = raw / f"{part}-{kind}-ubyte"
                if zipped:
                    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(array)))
                else:
                    path.write_bytes(idx(array))
        return folder

    return write


@pytest.fixture
def write_idx_set(write_idx_set_to, tmp_path) -> Callable[..., Path]:
    return functools.partial(write_idx_set_to, tmp_path / "data")


@pytest.fixture(scope="session")
def write_image_folder() -> Callable[..., Path]:
    """Writes a folder of images as torchvision lays them out: each class is one colour, and noise.

    Odd numbers are wide JPEG files, even ones high PNG files; returns the folder.
    """
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    colours = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 40)}

    def write(folder: Path, train: int = 4, test: int = 2) -> Path:
        random = np.random.default_rng(0)
        for part, number in (("train", train), ("val", test)):
            for name, colour in colours.items():
                (folder / part / name).mkdir(parents=True)
                for i in range(number):
                    shape = (36, 48, 3) if i % 2 else (50, 34, 3)
                    pixels = np.array(colour) + random.integers(-30, 30, shape)
                    file = folder / part / name / f"{i}.{'jpg' if i % 2 else 'png'}"
                    Image.fromarray(pixels.astype(np.uint8)).save(file)
        return folder

    return write
