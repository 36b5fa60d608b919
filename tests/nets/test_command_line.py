import csv
import os
import re
import subprocess
import sys

import pytest
import torch
from tritonconv.nets import LeNet
from tritonconv.nets.__main__ import main
from tritonconv.nets.recipes import POOLS

TRAIN = ["train", "lenet", "--batch-size", "4"]


def metrics(folder) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_train_writes_weights_metrics_and_curves(write_idx_set, tmp_path, capsys):
    data, out = write_idx_set(zipped=True), tmp_path / "out"
    main([*TRAIN, "--epochs", "2", "--pool", "max", "--data", "fashion-mnist",
          "--data-dir", str(data), "--out", str(out)])  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint-1.pt",
        "checkpoint.pt",
        "curves.png",
        "metrics.csv",
        "weights.pt",
    ]

    model = LeNet(pool=POOLS["max"])
    model.load_state_dict(torch.load(out / "weights.pt", weights_only=True))

    rows = metrics(out)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        assert float(row["train_loss"]) > 0
        assert float(row["test_loss"]) > 0
        assert 0 <= float(row["train_accuracy"]) <= 1
        assert 0 <= float(row["test_accuracy"]) <= 1
        assert float(row["examples_per_second"]) > 0
        step, host, wait = (float(row[f"{name}_ms"]) for name in ("step", "host", "data_wait"))
        assert 0 < host < step
        assert 0 < wait < host + wait <= step

    curves = (out / "curves.png").read_bytes()
    assert curves.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(curves) > 10_000

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "lenet on fashion-mnist: tanh, max pool, Adam 0.002, batch 4; "
        "8 training images, 4 test images"
    )
    for line in lines[1:3]:
        assert re.fullmatch(
            r"epoch [12]/2  train loss \d\.\d{3} acc \d\.\d{3}  test loss \d\.\d{3} acc \d\.\d{3}  "
            r"\d+\.\d examples/s",
            line,
        )
    assert [line.split()[1] for line in lines[3:]] == [
        str(out / name) for name in ("weights.pt", "metrics.csv", "curves.png")
    ]


def test_train_compares_with_the_torch_twin(write_idx_set, tmp_path, capsys):
    main([*TRAIN, "--epochs", "1", "--dtype", "float64", "--compare", "--data", "fashion-mnist",
          "--data-dir", str(write_idx_set()), "--out", str(tmp_path / "out")])  # fmt: skip
    ours, theirs = capsys.readouterr().out.splitlines()[1:3]
    losses = r"(train loss \d\.\d{3} acc \d\.\d{3}  test loss \d\.\d{3} acc \d\.\d{3})"
    assert re.search(losses, ours)[1] == re.search(losses, theirs)[1]
    assert theirs.startswith("torch.nn")
    assert float(re.search(r"weights within (\S+)$", theirs)[1]) < 1e-9
    weights = torch.load(tmp_path / "out" / "weights.pt", weights_only=True)
    assert weights["conv1.weight"].dtype == torch.float64


def test_train_repeats_bit_for_bit_from_a_seed(write_idx_set, tmp_path):
    data = write_idx_set()
    results = []
    for number, seed in enumerate(("7", "7", "8")):
        out = tmp_path / str(number)
        main([*TRAIN, "--epochs", "1", "--seed", seed, "--data", "fashion-mnist",
              "--data-dir", str(data), "--out", str(out)])  # fmt: skip
        results.append(torch.load(out / "weights.pt", weights_only=True))
    first, same, other = results
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def refusal(argv: list[str], capsys) -> str:
    """What main says when it refuses argv: one line on stderr."""
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert re.fullmatch(r"tritonconv\.nets: error: .+\n", err)
    return err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["fly"], "'fly'"),
        (["train"], "network"),
        (["train", "lenot"], "'lenot'"),
        ([*TRAIN, "--fast"], "--fast"),
        ([*TRAIN, "--epochs", "0"], "--epochs: invalid positive_int value: '0'"),
        ([*TRAIN, "--epochs", "1.5"], "--epochs"),
        ([*TRAIN, "--batch-size", "-1"], "--batch-size"),
        ([*TRAIN, "--lr", "nan"], "--lr: invalid positive_float value: 'nan'"),
        ([*TRAIN, "--lr", "inf"], "--lr"),
        ([*TRAIN, "--seed", "-1"], "--seed"),
        ([*TRAIN, "--seed", str(2**63)], "--seed"),
        ([*TRAIN, "--dtype", "float16"], "--dtype"),
        ([*TRAIN, "--recipe", "d2l"], "--recipe"),
        ([*TRAIN, "--activation", "gelu"], "--activation"),
        ([*TRAIN, "--pool", "sum"], "--pool"),
        ([*TRAIN, "--device", "gpu"], "--device: invalid device value: 'gpu'"),
        ([*TRAIN, "--device", "meta"], "--device: expected cpu or cuda, got meta"),
        ([*TRAIN, "--device", "cuda:99"], "--device: cuda:99 is not on this machine"),
        ([*TRAIN, "--data", "mnist"], "--data"),
        ([*TRAIN, "--data", "fashion-mnist"], "needs --data-dir"),
        ([*TRAIN, "--download"], "goes with --data fashion-mnist"),
        ([*TRAIN, "--data-dir", "."], "goes with --data fashion-mnist, cifar10, imagefolder"),
        ([*TRAIN, "--data", "fashion-mnist", "--data-dir", "no\nwhere"], "got neither"),
        ([*TRAIN, "--out", __file__], "exists"),
        ([*TRAIN, "--out", f"{__file__}/below"], "Not a directory"),
    ],
)
def test_command_line_refuses_in_one_line(argv, message, capsys):
    assert message in refusal(argv, capsys)


def test_train_refuses_a_damaged_file_in_one_line(write_idx_set, capsys):
    data = write_idx_set()
    path = data / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    argv = [*TRAIN, "--data", "fashion-mnist", "--data-dir", str(data)]
    assert "expected 12 bytes" in refusal(argv, capsys)


@pytest.mark.parametrize("package", ["sklearn.datasets", "tqdm", "matplotlib.figure"])
def test_train_without_the_demo_packages_names_the_remedy(package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    for ours in ("tritonconv.nets.training.run", "tritonconv.nets.training.report"):
        monkeypatch.delitem(sys.modules, ours, raising=False)
    assert f'{package} is not installed; pip install "tritonconv[demo]"' in refusal(TRAIN, capsys)


def test_train_refuses_a_device_that_cannot_run_the_kernels(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tritonconv.nets",
            *TRAIN,
            "--device",
            "cpu",
            "--out",
            str(tmp_path),
        ],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert re.fullmatch(r"tritonconv\.nets: error: .*set TRITON_INTERPRET=1.*\n", done.stderr)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"]])
def test_help_gives_an_example(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 0
    assert "example: python -m tritonconv.nets train" in capsys.readouterr().out
