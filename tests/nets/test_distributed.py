"""Several processes on the CPU, by gloo, as torchrun starts them; ranks.py is what they run."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_net import SmallNet, SmallNetDropout
from tritonconv.nets import _arguments, _train_command
from tritonconv.nets.__main__ import main
from tritonconv.nets._train_command import Training
from tritonconv.nets.registry import NETWORKS, Network
from tritonconv.nets.training.data import digits
from tritonconv.nets.training.distributed import Ranks
from tritonconv.nets.training.metrics import RESULTS
from tritonconv.nets.training.saved import About

RANKS = Path(__file__).with_name("ranks.py")
# 40 images are 20 steps of two processes with an image each
LENET = ["train", "lenet", "--dtype", "float64", "--epochs", "1"]
# batch norm in evaluation, for the frozen part keeps its statistics; 5 steps of 2 x 2 x 2 images
FROZEN = ["train", "resnet34", "--size", "28", "--dtype", "float64", "--freeze", "6", "--epochs", "2",
          "--accumulate", "2", "--clip", "0.1", "--optimizer", "adam", "--lr", "0.01",
          "--seed", "4"]  # fmt: skip
# what each rank draws is its own: augmentation, dropout; batch norm's statistics, too
DRAWING = ["train", "resnet50", "--size", "28", "--augment", "--batch-size", "2", "--epochs", "2",
           "--checkpoint-every", "0", "--ema", "0.5"]  # fmt: skip


def torchrun(*commands: list[str], **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", RANKS, json.dumps(commands)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(write_idx_set_to, tmp_path_factory, device) -> list[str]:
    if device == "cuda":
        pytest.skip("gloo's processes are for the CPU")
    folder = write_idx_set_to(tmp_path_factory.mktemp("ranks") / "data", train=40, test=7)
    return ["--data", "fashion-mnist", "--data-dir", str(folder)]


@pytest.fixture(scope="module")
def two(data, tmp_path_factory) -> Path:
    """What two processes have learnt, in a folder for each of the trainings."""
    out = tmp_path_factory.mktemp("two")
    done = torchrun(
        [*LENET, *data, "--batch-size", "1", "--out", str(out / "lenet")],
        [*FROZEN, *data, "--batch-size", "2", "--out", str(out / "frozen")],
        [*DRAWING, *data, "--out", str(out / "drawing")],
        ["fsdp", str(out / "fsdp.pt")],
    )
    assert done.returncode == 0, done.stderr
    (out / "said").write_text(done.stdout)
    return out


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setitem(NETWORKS, "resnet34", Network(SmallNet, 224))
    monkeypatch.setitem(NETWORKS, "resnet50", Network(SmallNetDropout, 224))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pt", weights_only=True)


def results(folder: Path) -> list[list[float]]:
    lines = (folder / "metrics.csv").read_text().splitlines()[1:]
    return [[float(value) for value in line.split(",")[: len(RESULTS)]] for line in lines]


@pytest.mark.parametrize(
    ("name", "argv"),
    [("lenet", [*LENET, "--batch-size", "2"]), ("frozen", [*FROZEN, "--batch-size", "4"])],
)
def test_two_processes_are_one_with_twice_the_batch(two, data, small, tmp_path, name, argv):
    main([*argv, *data, "--out", str(tmp_path)])
    ours, theirs = weights(two / name), weights(tmp_path)
    assert max((ours[key] - theirs[key]).abs().max().item() for key in ours) <= 1e-9
    assert len(ours) == len(theirs)
    for row, other in zip(results(two / name), results(tmp_path), strict=True):
        assert row == pytest.approx(other, abs=1e-9)


def test_one_process_writes_for_both(two):
    said = (two / "said").read_text()
    assert said.count("epoch 1/1") == 1
    assert "Adam 0.002, batch 1, in each of 2 processes; 40 training images" in said
    assert "batch 2, in each of 2 processes, 2 batches a step; 40" in said
    assert sorted(path.name for path in (two / "lenet").iterdir()) == [
        "checkpoint-1.pt",
        "checkpoint.pt",
        "curves.png",
        "metrics.csv",
        "weights.pt",
    ]


def test_a_killed_rank_ends_all_and_both_resume_to_the_same_bits(
    two, data, tmp_path, capsys, small
):
    argv = [*DRAWING, *data, "--out", str(tmp_path)]
    done = torchrun(argv, KILLED="1", AT="14")  # in the second epoch
    assert done.returncode == 1
    causes = done.stderr[done.stderr.index("Root Cause") :]
    assert re.search(r"rank +: 1 .*\n.*exitcode +: -9 .*SIGKILL", causes)
    with pytest.raises(SystemExit):
        main([*argv, "--resume"])
    assert "expected to resume with processes 2, got 1" in capsys.readouterr().err
    done = torchrun([*argv, "--resume"])
    assert done.returncode == 0, done.stderr
    assert "resumed after 1 epochs and 3 batches" in done.stdout
    whole, broken = weights(two / "drawing"), weights(tmp_path)
    assert all(torch.equal(whole[key], broken[key]) for key in whole)
    assert results(two / "drawing") == results(tmp_path)


def test_fsdp2_shards_models_fused_and_not(two):
    plain, reached = torch.load(two / "fsdp.pt")
    warnings = {
        "root": [],
        "layers": [],
        "fused": [],
        # the part that is sharded by itself runs fused, and what holds it does not
        "fused containers": ["FSDPNet runs unfused: block has hooks"],
        "fused layers": [
            "Sequential runs unfused: 0 is a FSDPConv2d, not a Conv2d",
            "FSDPNet runs unfused: conv1 is a FSDPConv2d, not a Conv2d",
        ],
    }
    for way, (sharded, warned) in reached.items():
        assert sorted(warned) == sorted(warnings.pop(way))
        for name, value in plain.items():
            torch.testing.assert_close(sharded[name], value, rtol=0, atol=1e-12)
    assert not warnings


def test_sync_bn_is_torchs_and_said(small, capsys, tmp_path):
    """Torch's SyncBatchNorm has no kernel for the CPU: there the network is made and not trained."""
    parser = argparse.ArgumentParser()
    _train_command.add_to(parser.add_subparsers())
    argv = ["train", "resnet34", "--size", "28", "--sync-bn", "--out", str(tmp_path)]
    args = parser.parse_args([*argv, "--device", "cpu"])
    with pytest.raises(ValueError, match="--sync-bn needs a GPU"):
        Training(args, Ranks())
    training = object.__new__(Training)
    recipe, data = _arguments.recipe(args), digits()
    training.args, training.ranks, training.notes = args, Ranks(), []
    training.about = About(recipe, "digits", data.classes, data.view)
    (model,) = training._models(torch.float32, data)
    assert type(model[1]) is torch.nn.SyncBatchNorm
    assert training.notes == ["batch norm is torch's SyncBatchNorm, and its blocks run unfused"]


def test_one_process_alone_agrees_with_itself():
    ranks = Ranks()
    assert [ranks.agreed(wish) for wish in (0, 15, 1)] == [0, 15, 1]
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(ranks.total(values), values)
    assert torch.equal(ranks.gathered(values), values.view(1, 2))
