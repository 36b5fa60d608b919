import hashlib
import http.client
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from tritonconv.nets.training import data
from tritonconv.nets.training.data import (
    augmented,
    cifar10,
    digits,
    download_fashion_mnist,
    fashion_mnist,
    read_idx,
)

TRAIN_IMAGES = "FashionMNIST/raw/train-images-idx3-ubyte"
TRAIN_LABELS = "FashionMNIST/raw/train-labels-idx1-ubyte"


def test_digits_are_split_in_stratified_halves_that_share_no_image():
    from sklearn.datasets import load_digits

    train, test, *_ = digits()
    assert train.images.shape == (1437, 1, 28, 28)
    assert test.images.shape == (360, 1, 28, 28)
    assert train.images.min() == 0
    assert train.images.max() == 1
    classes, of_class = load_digits().target, torch.bincount(test.labels)
    for label in range(10):
        assert abs(of_class[label] - 0.2 * (classes == label).sum()) < 1
    both = torch.cat([train.images, test.images]).flatten(1)
    assert len(both.unique(dim=0)) == len(load_digits().data) == 1797


def test_digits_are_the_same_every_time():
    for a, b in zip(digits()[:2], digits()[:2], strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


def test_digits_without_scikit_learn_name_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "tritonconv\[demo\]"'):
        digits()


@pytest.mark.parametrize("zipped", [False, True])
def test_fashion_mnist_reads_back_what_was_written(write_idx_set, zipped):
    folder = write_idx_set(train=13, test=5, zipped=zipped)
    train, test, *_ = fashion_mnist(folder)
    assert train.images.shape == (13, 1, 28, 28)
    assert test.images.shape == (5, 1, 28, 28)
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    stored = read_idx(folder / TRAIN_IMAGES, 3)
    assert torch.equal((train.images.squeeze(1) * 255).round().byte(), stored)


def test_fashion_mnist_of_another_size_is_resized(write_idx_set):
    train, *_ = fashion_mnist(write_idx_set(size=8))
    assert train.images.shape == (8, 1, 28, 28)


def remove(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:7])


def empty(path):
    path.write_bytes(b"")


def hold_nothing(path):
    path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 0]))


def hold_labels(path):
    path.write_bytes((path.parent / "train-labels-idx1-ubyte").read_bytes())


def drop_a_label(path):
    path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 7]) + bytes(7))


def hold_label_10(path):
    path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 8]) + bytes([10] * 8))


@pytest.mark.parametrize(
    ("damage", "name", "error", "message"),
    [
        (remove, TRAIN_IMAGES, FileNotFoundError, "got neither"),
        (truncate, TRAIN_IMAGES, ValueError, r"expected 6288 bytes .* \[8, 28, 28\], got 6287"),
        (lengthen, TRAIN_IMAGES, ValueError, "expected 6288 bytes .* got 6289"),
        (cut_in_the_header, TRAIN_LABELS, ValueError, "got 7"),
        (empty, TRAIN_LABELS, ValueError, "expected IDX magic 00000801 .* got an empty file"),
        (hold_nothing, TRAIN_LABELS, ValueError, "expected .* a non-empty array"),
        (hold_labels, TRAIN_IMAGES, ValueError, "expected IDX magic 00000803 .* got 00000801"),
        (drop_a_label, TRAIN_LABELS, ValueError, "each of the 8 train images, got 7 labels"),
        (hold_label_10, TRAIN_LABELS, ValueError, "expected labels below 10, got 10"),
    ],
)
def test_fashion_mnist_refuses_a_bad_file_by_name(write_idx_set, damage, name, error, message):
    folder = write_idx_set()
    damage(folder / name)
    with pytest.raises(error, match=message) as raised:
        fashion_mnist(folder)
    assert str(folder / "FashionMNIST" / "raw") in str(raised.value)


def not_gzip(content: bytes) -> bytes:
    return b"plain" + content


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [not_gzip, cut, flip_a_bit])
def test_fashion_mnist_refuses_a_bad_gzip_file_by_name(write_idx_set, damage):
    folder = write_idx_set(zipped=True)
    path = folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ValueError, match=r"train-images-idx3-ubyte\.gz: expected a whole gzip file"
    ):
        fashion_mnist(folder)


@pytest.fixture
def mirror(write_idx_set, monkeypatch):
    """A folder of files that stands for the mirror, with their checksums."""
    raw = write_idx_set(zipped=True) / "FashionMNIST" / "raw"
    monkeypatch.setattr(data, "MIRROR", f"{raw.as_uri()}/")
    sums = {name: hashlib.md5((raw / name).read_bytes()).hexdigest() for name in data.MD5}
    monkeypatch.setattr(data, "MD5", sums)
    return raw


def test_download_fetches_the_four_files(mirror, tmp_path):
    download_fashion_mnist(tmp_path / "new")
    fetched = sorted((tmp_path / "new" / "FashionMNIST" / "raw").iterdir())
    assert [path.name for path in fetched] == sorted(data.MD5)
    assert len(fashion_mnist(tmp_path / "new").train.labels) == 8


def test_download_leaves_files_that_are_there(mirror, tmp_path):
    raw = tmp_path / "new" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte.gz"):
        (raw / name).write_text("mine")
    download_fashion_mnist(tmp_path / "new")
    assert (raw / "train-images-idx3-ubyte").read_text() == "mine"
    assert not (raw / "train-images-idx3-ubyte.gz").exists()
    assert (raw / "t10k-labels-idx1-ubyte.gz").read_text() == "mine"


def test_download_refuses_a_wrong_checksum_and_leaves_no_file(mirror, tmp_path):
    (mirror / "train-images-idx3-ubyte.gz").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: expected a file with md5"):
        download_fashion_mnist(tmp_path / "new")
    assert not list(tmp_path.glob("new/**/*ubyte*"))


def test_download_says_which_file_cannot_be_fetched(mirror, tmp_path):
    (mirror / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(OSError, match=r"could not download file:.*/t10k-images-idx3-ubyte\.gz"):
        download_fashion_mnist(tmp_path / "new")


def test_download_reports_a_broken_connection(monkeypatch, tmp_path):
    def broken(url, timeout):
        raise http.client.IncompleteRead(b"")

    monkeypatch.setattr(urllib.request, "urlopen", broken)
    with pytest.raises(OSError, match="could not download http"):
        download_fashion_mnist(tmp_path)


RECORD = 1 + 3 * 32 * 32


@pytest.fixture
def cifar_folder(tmp_path) -> Path:
    """CIFAR-10's six files, of two images each: label i, then i for red, 100 green, 200 blue."""
    raw = tmp_path / "cifar-10-batches-bin"
    raw.mkdir()
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        images = [bytes([label, *[label] * 1024, *[100] * 1024, *[200] * 1023, number])
                  for label in (number, 9)]  # fmt: skip
        (raw / f"{name}.bin").write_bytes(b"".join(images))
    return tmp_path


def test_cifar10_reads_back_what_was_written(cifar_folder):
    train, test, *_ = cifar10(cifar_folder)
    assert train.images.shape == (10, 3, 32, 32)
    assert test.images.shape == (2, 3, 32, 32)
    assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert test.labels.tolist() == [5, 9]
    values = (test.images[0] * 255).round()
    assert values[0].unique().tolist() == [5]
    assert values[1].unique().tolist() == [100]
    assert values[2].flatten()[:-1].unique().tolist() == [200]
    assert values[2, 31, 31] == 5


def hold_one_cifar_label_10(path):
    path.write_bytes(bytes([10]) + bytes(RECORD - 1))


@pytest.mark.parametrize(
    ("damage", "name", "error", "message"),
    [
        (remove, "data_batch_3.bin", FileNotFoundError, "expected this file, got none"),
        (truncate, "data_batch_5.bin", ValueError, "3073 bytes each .* got 6145 bytes"),
        (empty, "test_batch.bin", ValueError, "got 0 bytes"),
        (hold_one_cifar_label_10, "test_batch.bin", ValueError, "labels below 10, got 10"),
    ],
)
def test_cifar10_refuses_a_bad_file_by_name(cifar_folder, damage, name, error, message):
    damage(cifar_folder / "cifar-10-batches-bin" / name)
    with pytest.raises(error, match=message) as raised:
        cifar10(cifar_folder)
    assert str(cifar_folder / "cifar-10-batches-bin" / name) in str(raised.value)


def test_batches_are_changed_then_resized(monkeypatch):
    images = torch.arange(6.0).view(3, 2, 1, 1).expand(3, 2, 4, 4)
    split = data.Split(images, torch.tensor([7, 8, 9]), size=6)
    monkeypatch.setattr(data, "augmented", lambda x: x + 10)
    batch, labels = split.batch(torch.tensor([2, 0]), augment=True)
    assert batch.shape == (2, 2, 6, 6)
    assert batch[:, :, 0, 0].tolist() == [[14, 15], [10, 11]]
    assert labels.tolist() == [9, 7]
    plain, same = split.batches([torch.tensor([1]), torch.tensor([1, 0])])
    assert plain[0][0, :, 0, 0].tolist() == [2, 3]
    assert same[1].tolist() == [8, 7]


def test_augmented_images_are_windows_of_the_framed_image_or_its_mirror():
    images = torch.rand(40, 3, 16, 16) + 1
    torch.manual_seed(1)
    changed = augmented(images)
    torch.manual_seed(1)
    assert torch.equal(changed, augmented(images))
    framed = torch.nn.functional.pad(images, [2] * 4)
    seen = set()
    for i in range(40):
        places = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if torch.equal(
                changed[i].flip(2) if mirrored else changed[i],
                framed[i, :, top : top + 16, left : left + 16],
            )
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert {mirrored for _, _, mirrored in seen} == {False, True}
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))
