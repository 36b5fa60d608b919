import csv
import re
from pathlib import Path

import pytest
import torch
from small_net import SmallNet
from torch import nn
from tritonconv.nets.__main__ import main
from tritonconv.nets.registry import NETWORKS, Network
from tritonconv.nets.training.folder import VIEW, BadImageError, image_folder
from tritonconv.nets.training.metrics import evaluate

pytest.importorskip("PIL.Image", reason="Pillow is not installed")


@pytest.fixture(scope="module")
def shared(write_image_folder, tmp_path_factory) -> Path:
    """12 images to train on and 6 to test with, of 3 classes; not to be changed."""
    return write_image_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture
def folder(write_image_folder, tmp_path) -> Path:
    return write_image_folder(tmp_path / "folder")


def opened(root: Path, workers: int = 0, skip_bad: bool = False):
    data = image_folder(root, workers, skip_bad)
    return data.to(torch.device("cpu"), torch.float32).resized(24)


def test_a_folder_is_its_classes_and_their_images_in_order(shared):
    data = opened(shared)
    assert data.classes == ("blue", "green", "red")
    assert data.view == VIEW._replace(size=24)
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [Path(path).name for path in data.test.paths] == ["0.png", "1.jpg"] * 3
    assert data.train.channels == 3
    images, labels = data.train.batch(torch.tensor([9, 0]))
    assert images.shape == (2, 3, 24, 24)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [2, 0]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (VIEW.mean, VIEW.std))
    colours = ((images * std + mean) * 255).mean((2, 3))
    expected = torch.tensor([[200.0, 50, 40], [40, 60, 200]])
    torch.testing.assert_close(colours, expected, atol=3, rtol=0)


def test_an_image_changes_by_the_draw_and_its_number_alone(shared):
    train = opened(shared).train
    index = torch.arange(12)

    def taken(parts, draw, train=train):
        return torch.cat([x for x, _ in train.batches(parts, True, draw)])

    whole = taken(index.split(12), 1)
    assert torch.equal(taken(index.split(5), 1), whole)
    assert torch.equal(taken(index.flip(0).split(4), 1).flip(0), whole)
    assert torch.equal(taken(index.split(5), 1, opened(shared, workers=2).train), whole)
    other = taken(index.split(12), 2)
    assert not any(torch.equal(a, b) for a, b in zip(whole, other, strict=True))
    plain = torch.cat([x for x, _ in train.batches(index.split(12))])
    assert not any(torch.equal(a, b) for a, b in zip(whole, plain, strict=True))


def test_workers_that_stay_read_epoch_after_epoch(shared):
    train = opened(shared, workers=1).train
    for part in ([3, 1], [0, 11]):
        assert train.batch(torch.tensor(part))[1].tolist() == [n // 4 for n in part]
    pids = [worker.pid for worker in train.loader._iterator._workers]
    train.batch(torch.tensor([5]))
    assert [worker.pid for worker in train.loader._iterator._workers] == pids


class Brightest(nn.Module):
    """Takes an image for the class whose colour it has."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (VIEW.mean, VIEW.std))
        return self.scale * (x * std + mean).mean((2, 3)).flip(1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_is_named_or_skipped_and_counted(folder, capsys, workers):
    bad = folder / "val" / "green" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(BadImageError, match=r"green/1\.jpg: cannot be read .* --skip-bad"):
        opened(folder, workers).test.batch(torch.arange(6))
    test = opened(folder, workers, skip_bad=True).test
    for _ in range(2):
        images, labels = test.batch(torch.tensor([2, 3]))
        assert labels.tolist() == [1, -1]
        assert torch.equal(images[0], images[1])
    assert re.fullmatch(
        r"skipped .*green/1\.jpg: cannot be read as an image: .* \(1 so far\)\n",
        capsys.readouterr().err,
    )
    assert test.batch(torch.tensor([3]))[1].tolist() == [-1]  # none of the batch can be read
    _, accuracy = evaluate(Brightest(), test, 4)
    assert accuracy == 1
    (folder / "val" / "red" / "0.png").write_bytes((folder / "val/blue/0.png").read_bytes())
    assert evaluate(Brightest(), test, 4)[1] == 4 / 5


def no_train(root: Path) -> None:
    (root / "train").rename(root / "training")


def no_class(root: Path) -> None:
    for part in (root / "train").iterdir():
        part.rename(root / part.name)


def unknown_class(root: Path) -> None:
    (root / "val" / "red").rename(root / "val" / "rot")


def empty_class(root: Path) -> None:
    for path in (root / "train" / "green").iterdir():
        path.rename(path.with_suffix(".txt"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_train, "train: expected a folder with one folder a class, got none"),
        (no_class, "train: expected one folder a class, got none"),
        (unknown_class, r"val/rot: expected one of 3 known classes \(blue, green, red"),
        (empty_class, r"train/green: expected images \(.jpg"),
    ],
)
def test_a_folder_of_another_layout_is_refused(folder, damage, message):
    damage(folder)
    with pytest.raises((OSError, ValueError), match=message):
        opened(folder)


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setitem(NETWORKS, "resnet50", Network(SmallNet, 224))


def test_the_imagenet_recipe_learns_from_a_folder(small, folder, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["train", "--recipe", "imagenet-resnet50", "--size", "32", "--batch-size", "4",
            "--epochs", "6", "--ema", "0.5", "--workers", "1", "--lr", "0.5", "--skip-bad",
            "--data", "imagefolder", "--data-dir", str(folder), "--out", str(out)]  # fmt: skip
    (folder / "train" / "red" / "0.png").write_bytes(b"no image")
    main(argv)
    lines, errors = capsys.readouterr()
    lines = lines.splitlines()
    assert errors.count("skipped") == 1
    assert lines[0] == (
        "resnet50 on imagefolder: 32x32, SGD 0.5, momentum 0.9, weight decay 0.0001 not on norms "
        "and biases, warm-up 5, cosine schedule, label smoothing 0.1, average 0.5, batch 4, flips "
        "and crops; 12 training images, 6 test images"
    )
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert float(rows[-1]["test_accuracy"]) >= 5 / 6
    assert {round(float(row["train_accuracy"]) * 11, 6) % 1 for row in rows} == {0}  # of 11 images

    # a checkpoint and an image are enough
    saved, images = (
        str(out / "checkpoint.pt"),
        [str(folder / f"val/{c}/0.png") for c in ("red", "blue")],
    )
    main(["predict", saved, *images, "--top", "2"])
    said = capsys.readouterr().out.splitlines()
    assert [said[0], said[3]] == images
    for line in (*said[1:3], *said[4:]):
        assert re.fullmatch(r"  [01]\.\d{4}  (red|green|blue)", line)
    main(["evaluate", "--checkpoint", saved, "--data-dir", str(folder)])
    said = capsys.readouterr().out.splitlines()
    right = round(float(rows[-1]["test_accuracy"]) * 6)
    assert said[0] == f"accuracy {right / 6:.4f}: {right} of 6 test images of imagefolder"
    assert len(said) == 2 + 3
    picture = tmp_path / "maps.png"
    main(["show", "features", "--checkpoint", saved, "--image", images[0], "--out", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_stopped_epoch_of_files_resumes_to_the_same_bits(small, shared, tmp_path, monkeypatch):
    from tritonconv.nets.training.step import Learner

    def argv(out: str) -> list[str]:
        return ["train", "resnet50", "--size", "16", "--batch-size", "4", "--augment", "--workers",
                "1", "--epochs", "2", "--checkpoint-every", "0", "--data", "imagefolder",
                "--data-dir", str(shared), "--out", str(tmp_path / out)]  # fmt: skip

    main(argv("whole"))
    learn, steps = Learner.learn, []

    def stopping(self, *args):
        steps.append(args)
        if len(steps) == 5:
            raise KeyboardInterrupt
        learn(self, *args)

    monkeypatch.setattr(Learner, "learn", stopping)
    with pytest.raises(SystemExit):
        main(argv("broken"))
    monkeypatch.undo()
    monkeypatch.setitem(NETWORKS, "resnet50", Network(SmallNet, 224))
    main([*argv("broken"), "--resume"])
    whole, broken = (torch.load(tmp_path / f"{n}/weights.pt") for n in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_train_names_a_bad_file_and_leaves_a_checkpoint(small, folder, tmp_path, capsys):
    (folder / "train" / "red" / "0.png").write_bytes(b"no image")
    argv = ["train", "resnet50", "--size", "16", "--batch-size", "4", "--workers", "0",
            "--data", "imagefolder", "--data-dir", str(folder), "--out", str(tmp_path)]  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"tritonconv\.nets: error: .*red/0\.png: cannot be read .*--resume\n", err)
    assert (tmp_path / "checkpoint.pt").exists()


def test_the_worked_example_leads_from_a_folder_to_predictions(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (commands,) = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "training.md", "exec"), {})
    said = []
    for command in commands.splitlines():
        assert command.startswith("python -m tritonconv.nets ")
        main(command.split()[3:])
        said.append(capsys.readouterr().out.splitlines())
    trained, predicted, evaluated, shown = said
    assert "32 training images, 8 test images" in trained[0]
    assert predicted[::3] == ["stripes/val/across/0.jpg", "stripes/val/down/0.jpg"]
    assert [line.split()[1] for line in predicted[1::3]] == ["across", "down"]  # the likeliest
    accuracy = re.search(r"test loss \S+ acc (\S+)", trained[4])[1]
    assert evaluated[0].startswith(f"accuracy {accuracy}")
    assert shown == ["features  features.png"]
