import csv
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from tritonconv import Conv2d, as_torch
from tritonconv.nets import LeNet
from tritonconv.nets.__main__ import main
from tritonconv.nets.compare import compare, error_table
from tritonconv.nets.evaluate import confusion, confusion_table
from tritonconv.nets.recipes import RECIPES
from tritonconv.nets.registry import NETWORKS
from tritonconv.nets.training.data import Split, fashion_mnist
from tritonconv.nets.training.metrics import Metrics, evaluate
from tritonconv.nets.training.run import Run

COMMANDS = [
    "list", "summary", "receptive-field", "evaluate", "predict", "compare", "show", "train",
]  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n"


def said(argv: list[str], capsys) -> list[str]:
    capsys.readouterr()
    main(argv)
    return capsys.readouterr().out.splitlines()


@pytest.fixture(scope="module")
def run(write_idx_set_to, tmp_path_factory, device) -> tuple[Path, Path]:
    """Weights of a LeNet, and the folder of its Fashion-MNIST."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = LeNet().to(device)
    model(torch.rand(1, 1, 28, 28, device=device))  # the interpreter says now that it is slow
    torch.save(model.state_dict(), folder / "weights.pt")
    return folder / "weights.pt", write_idx_set_to(folder / "data", test=5)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_gives_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    example = re.search(r"example: python -m tritonconv.nets (.+)", capsys.readouterr().out)[1]
    assert example.split()[0] == command


def test_list_names_every_network_and_recipe(capsys):
    lines = said(["list"], capsys)
    names = [line.split()[0] for line in lines if line]
    assert names == ["network", *NETWORKS, "recipe", *RECIPES]
    assert "resnet18           3x224x224" in lines
    assert "d2l-vgg11          vgg11, widths / 4, 224x224, SGD 0.05, batch 128, 10 epochs" in lines


def test_summary_counts_parameters_and_multiply_adds(capsys):
    lines = said(["summary", "lenet"], capsys)
    row = next(line for line in lines if "[1, 16, 10, 10]" in line)
    assert row.split()[-2:] == ["2,416", "241,600"]
    assert "Total params: 61,706" in lines
    lines = said(["summary", "resnet18", "--classes", "1000"], capsys)
    assert "Total params: 11,689,512" in lines


def test_receptive_field_prints_every_layer(capsys):
    lines = said(["receptive-field", "lenet"], capsys)
    assert [line.split() for line in lines] == [
        ["layer", "kernel", "stride", "dilation", "sees"],
        ["conv1", "5x5", "1x1", "1x1", "5x5"],
        ["pool1", "2x2", "2x2", "1x1", "6x6"],
        ["conv2", "5x5", "1x1", "1x1", "14x14"],
        ["pool2", "2x2", "2x2", "1x1", "16x16"],
    ]


class Says(nn.Module):
    """Takes every image for the class that its first pixel names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.one_hot(x[:, 0, 0, 0].long(), 10).float()


def test_confusion_counts_true_against_taken():
    labels, taken = torch.tensor([0, 1, 1, 1, 9]), torch.tensor([0, 1, 3, 3, 0])
    images = taken.float().view(5, 1, 1, 1).expand(5, 1, 2, 2)
    table = confusion(Says(), Split(images, labels), batch_size=2)
    expected = torch.zeros(10, 10, dtype=torch.int64)
    expected[0, 0], expected[1, 1], expected[1, 3], expected[9, 0] = 1, 1, 2, 1
    assert torch.equal(table, expected)
    lines = confusion_table(table).splitlines()
    assert lines[2].split() == ["1", "0", "1", "0", "2", *["0"] * 6, "0.333"]
    assert lines[3].split() == ["2", *["0"] * 10, "-"]


def test_evaluate_prints_the_accuracy_and_the_table(run, capsys):
    weights, data = run
    lines = said(["evaluate", "lenet", "--weights", str(weights), "--activation", "sigmoid",
                  "--data", "fashion-mnist", "--data-dir", str(data)], capsys)  # fmt: skip
    model = LeNet()
    model.load_state_dict(torch.load(weights, weights_only=True))
    _, accuracy = evaluate(as_torch(model), fashion_mnist(data).test, 5)
    right = round(accuracy * 5)
    assert lines[0] == f"accuracy {accuracy:.4f}: {right} of 5 test images of fashion-mnist"
    table = [[int(n) for n in line.split()[1:11]] for line in lines[2:]]
    assert [sum(row) for row in table] == [1] * 5 + [0] * 5
    assert sum(table[i][i] for i in range(10)) == right


def test_compare_sees_an_error_of_ours_alone(device, monkeypatch):
    model = nn.Sequential(Conv2d(1, 2, 3), nn.Dropout(0.5), Conv2d(2, 1, 1)).to(device)
    x = torch.randn(2, 1, 5, 5, device=device)
    good = compare(model, x)
    names = ["output", "gradient of input"]
    names += [f"gradient of {i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
    assert [error.name for error in good] == names
    for error in good:
        assert error.largest > 1e-3
        assert max(error.ours, error.torchs) < 1e-5 * max(1, error.largest)
    right = Conv2d._conv_forward
    monkeypatch.setattr(Conv2d, "_conv_forward", lambda self, *args: right(self, *args) + 1e-3)
    bad = compare(model, x)
    assert bad[0].ours > 9e-4
    assert bad[0].torchs < 1e-5
    table = error_table(good).splitlines()
    assert len(table) == 1 + len(good) + 1
    ours = max(error.ours / error.largest for error in good)
    assert table[-1].split()[-2] == f"{ours:.1e}"


def test_compare_prints_a_table(capsys):
    lines = said(["compare", "lenet", "--batch-size", "1"], capsys)
    assert lines[0] == "lenet in float32 on 1 inputs of (1, 28, 28), against float64"
    assert len(lines) == 2 + 12 + 1
    assert lines[2].startswith("output ")
    for line in lines[2:-1]:
        largest, ours, torchs = (float(value) for value in line.split()[-3:])
        assert largest > 0
        assert ours < 1e-4
        assert torchs < 1e-4


def test_compare_covers_auxiliary_outputs(device):
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = Conv2d(1, 1, 3)

        def forward(self, x: torch.Tensor):
            from tritonconv.nets import GoogLeNetOutputs

            y = self.conv(x)
            return GoogLeNetOutputs(y, 2 * y, 3 * y)

    x = torch.randn(1, 1, 5, 5, device=device)
    errors = {error.name: error for error in compare(Heads().to(device), x)}
    assert list(errors)[:3] == ["logits", "aux_logits2", "aux_logits1"]
    assert errors["aux_logits1"].largest == pytest.approx(3 * errors["logits"].largest)


def test_show_draws_filters_and_features(run, tmp_path, capsys):
    weights, data = run
    base = ["lenet", "--weights", str(weights)]
    images = ["--data", "fashion-mnist", "--data-dir", str(data), "--image", "4"]
    pictures = {}
    for name, argv in {
        "filters": ["filters", *base],
        "features": ["features", *base, *images],
        "pooled": ["features", *base, *images, "--layer", "pool2"],
    }.items():
        out = tmp_path / f"{name}.png"
        assert said(["show", *argv, "--out", str(out)], capsys) == [f"{argv[0]}  {out}"]
        pictures[name] = out.read_bytes()
        assert pictures[name].startswith(PNG)
    assert len(set(pictures.values())) == 3


def refusal(argv: list[str], capsys) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert re.fullmatch(r"tritonconv\.nets: error: .+\n", err)
    return err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["list", "lenet"], "unrecognized arguments: lenet"),
        (["summary"], "NETWORK"),
        (["summary", "lenot"], "'lenot'"),
        (["summary", "vgg11", "--size", "0"], "--size"),
        (["receptive-field", "vgg11", "--size", "8"], "max_pool2d"),
        (["receptive-field", "resnet18", "--channels", "x"], "--channels"),
        (["evaluate"], "name a network or a --recipe"),
        (["evaluate", "lenet", "--weights", "no/where.pt"], "no/where.pt: expected weights"),
        (
            ["evaluate", "lenet", "--weights", __file__],
            "expected weights, got another kind of file",
        ),
        (["evaluate", "resnet18", "--pool", "max"], "go with lenet, got resnet18"),
        (["evaluate", "vgg11", "--recipe", "d2l-nin"], "is one for nin, got vgg11"),
        (["compare", "lenet", "--dtype", "int8"], "--dtype"),
        (["compare", "lenet", "--batch-size", "0"], "--batch-size"),
        (["compare", "nin_cifar", "--size", "4"], "Output size is too small"),
        (["show", "lenet"], "'lenet'"),
        (["show", "weights", "lenet"], "'weights'"),
        (["train", "lenet", "--amp", "bf16", "--dtype", "float64"], "goes with --dtype float32"),
        (["train", "lenet", "--momentum", "0.9"], "--momentum goes with sgd"),
        (["train", "lenet", "--checkpoint-every", "-1"], "--checkpoint-every"),
        (["train", "lenet", "--data", "cifar10"], "needs --data-dir, the folder of cifar-10"),
        (["train", "lenet", "--data", "cifar10", "--data-dir", "no"], "data_batch_1.bin"),
        (["train", "--recipe", "d2l-vgg12"], "--recipe"),
        (["train", "lenet", "--size", "32"], "lenet: cannot train on a batch of (29, 1, 32, 32)"),
        (
            ["train", "googlenet", "--size", "96"],
            "googlenet: cannot train on",
        ),  # its auxiliary heads
        (["train", "resnet18", "--size", "32", "--batch-size", "4"], "more than 1 value"),
    ],
)
def test_commands_refuse_in_one_line(argv, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # train makes the folder of its results
    assert message in refusal(argv, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "5"], "--image must be below 5, got 5"),
        (["--layer", "conv9"], "layer conv9 is not in the network, which has conv1, pool1"),
        (["--layer", "fc1"], "layer fc1 puts out no feature maps"),
    ],
)
def test_show_refuses_in_one_line(run, capsys, options, message):
    weights, data = run
    argv = ["show", "features", "lenet", "--weights", str(weights), "--data", "fashion-mnist",
            "--data-dir", str(data), *options]  # fmt: skip
    assert message in refusal(argv, capsys)


def test_evaluate_refuses_images_of_other_channels(run, tmp_path, capsys):
    _, data = run
    torch.save(LeNet(in_channels=3).state_dict(), tmp_path / "weights.pt")
    argv = ["evaluate", "lenet", "--weights", str(tmp_path / "weights.pt"),
            "--data", "fashion-mnist", "--data-dir", str(data)]  # fmt: skip
    assert "channels" in refusal(argv, capsys)


def test_summary_without_torchinfo_names_the_remedy(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchinfo", None)
    message = 'torchinfo is not installed; pip install "tritonconv[demo]"'
    assert message in refusal(["summary", "lenet"], capsys)


def test_tensorboard_missing_names_the_remedy(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    argv = ["train", "lenet", "--tensorboard", "--out", str(tmp_path)]
    assert "tensorboard is not installed; pip install tensorboard" in refusal(argv, capsys)


def test_train_writes_scalars_for_tensorboard(run, tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, data = run
    said(["train", "lenet", "--epochs", "2", "--batch-size", "8", "--tensorboard", "--data",
          "fashion-mnist", "--data-dir", str(data), "--out", str(tmp_path)], capsys)  # fmt: skip
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(events.Tags()["scalars"]) == len(Metrics._fields) - 1
    for name in events.Tags()["scalars"]:
        written = [(event.step, event.value) for event in events.Scalars(name)]
        assert written == [(int(row["epoch"]), pytest.approx(float(row[name]))) for row in rows]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_train_in_mixed_precision(run, tmp_path, capsys, amp):
    _, data = run
    lines = said(["train", "lenet", "--epochs", "1", "--batch-size", "8", "--amp", amp, "--data",
                  "fashion-mnist", "--data-dir", str(data), "--out", str(tmp_path)], capsys)  # fmt: skip
    loss = float(re.search(r"train loss (\S+)", lines[1])[1])
    assert 1.5 < loss < 4
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert all(w.dtype == torch.float32 and w.isfinite().all() for w in weights.values())


class TwoHeads(nn.Module):
    """As GoogLeNet, it puts out more in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 10) for _ in range(3))

    def forward(self, x: torch.Tensor):
        from tritonconv.nets import GoogLeNetOutputs

        x = x.flatten(1)
        return GoogLeNetOutputs(self.a(x), self.b(x), self.c(x)) if self.training else self.a(x)


def test_auxiliary_losses_weigh_three_tenths():
    from tritonconv.nets.recipes import Recipe
    from tritonconv.nets.training.data import Dataset

    model = TwoHeads()
    plain = [nn.Linear(4, 10) for _ in range(3)]
    for layer, ours in zip(plain, (model.a, model.b, model.c), strict=True):
        layer.load_state_dict(ours.state_dict())
    split = Split(torch.rand(6, 1, 2, 2), torch.arange(6))
    recipe = Recipe("googlenet", "sgd", 0.5, 6, 1, size=2)
    ((metrics,),) = Run([model], Dataset(split, split), recipe, 0).epochs()
    losses = [F.cross_entropy(layer(split.images.flatten(1)), split.labels) for layer in plain]
    (losses[0] + 0.3 * (losses[1] + losses[2])).backward()
    assert metrics.train_loss == pytest.approx(losses[0].item())
    for layer, ours in zip(plain, (model.a, model.b, model.c), strict=True):
        expected = layer.weight - 0.5 * layer.weight.grad
        torch.testing.assert_close(ours.weight, expected)


def test_train_reads_cifar10_and_a_recipe_by_name(tmp_path, capsys):
    raw = tmp_path / "cifar-10-batches-bin"
    raw.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (raw / f"{name}.bin").write_bytes(bytes([3]) + os.urandom(3072))
    lines = said(["train", "--recipe", "d2l-lenet", "--epochs", "1", "--augment", "--data",
                  "cifar10", "--data-dir", str(tmp_path), "--out", str(tmp_path)], capsys)  # fmt: skip
    assert lines[0] == (
        "lenet on cifar10: sigmoid, avg pool, SGD 0.9, batch 256, flips and crops; "
        "5 training images, 1 test images"
    )
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert weights["conv1.weight"].shape == (6, 3, 5, 5)
