"""Whole networks in benchmarks: what is measured, and that every side trains the same one."""

import functools
import subprocess
import sys

import pytest
import torch
from reference import Dispatched
from tritonconv import AdaptiveAvgPool2d, BatchNorm2d, Conv2d
from tritonconv.nets import GoogLeNetOutputs
from tritonconv.nets.registry import NETWORKS, Network

from benchmarks import device, measure, networks
from benchmarks.cases import DTYPES, HALF, HERE
from benchmarks.gate import WrongResultError, require_as_close, require_same_problem
from benchmarks.networks import NetworkRow, network_rows

TIMER = functools.partial(device.times, rounds=4)
ROWS = {str(row): row for row in network_rows()}


class Small(torch.nn.Module):
    """[N, 3, 6, 6] -> logits [N, num_classes], through a residual block."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = Conv2d(in_channels, 8, 3, bias=False), BatchNorm2d(8)
        self.conv2, self.bn2 = Conv2d(8, 8, 3, padding=1, bias=False), BatchNorm2d(8)
        self.relu, self.pool = torch.nn.ReLU(), AdaptiveAvgPool2d(1)
        self.dropout, self.fc = torch.nn.Dropout(), torch.nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(self.dropout(self.pool(x).flatten(1)))


@pytest.fixture
def small(monkeypatch):
    """A row of a small network, by pass and dtype."""
    monkeypatch.setitem(NETWORKS, "small", Network(Small, 6))
    return functools.partial(NetworkRow, "small", "Small", 3)


def outcome(row, side, given):
    return measure.listed(networks.MAKE[side](row, given)())


@pytest.mark.parametrize("side", ["ours", "unfused"])
@pytest.mark.parametrize("direction", ["training", "inference"])
def test_every_side_gives_the_same(side, direction, small, device):
    row = small(direction, "fp32")
    given = networks.inputs(row, device)
    expected = measure.listed(networks.expected(row, given))
    assert len(expected) == (
        1 if direction == "inference" else 1 + len([*given.model.parameters()])
    )
    require_as_close(str(row), outcome(row, side, given), expected, outcome(row, "eager", given))


@pytest.mark.parametrize("direction", ["training", "inference"])
def test_the_compiled_side_gives_the_same(direction, small, device, monkeypatch):
    """On another compiler's back end, which is here and quick."""
    compile, modes = torch.compile, []

    def quick(call, mode, dynamic):
        modes.append(mode)
        return compile(call, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", quick)
    row = small(direction, "fp32")
    given = networks.inputs(row, device)
    expected = measure.listed(networks.expected(row, given))
    require_as_close(
        str(row), outcome(row, "compile", given), expected, outcome(row, "eager", given)
    )
    assert modes == [networks.MODE]


@pytest.mark.parametrize("direction", ["training", "inference"])
def test_ours_runs_fused_and_the_others_as_they_are_written(direction, small, device):
    row = small(direction, "fp32")
    given = networks.inputs(row, device)
    called = {}
    for side in ("ours", "unfused", "eager"):
        with Dispatched() as seen:
            outcome(row, side, given)
        called[side] = set(seen.ours)
    assert not called["eager"]
    fused = "conv2d_stats" if direction == "training" else "conv2d_fused"
    assert fused in called["ours"] - called["unfused"]
    folded = "batch_norm" not in called["ours"]
    assert folded == (direction == "inference")


@pytest.mark.parametrize("dtype", HALF)
def test_inference_has_weights_in_half_precision(dtype, small, device):
    row = small("inference", dtype)
    given = networks.inputs(row, device)
    (actual,), expected = outcome(row, "ours", given), networks.expected(row, given)
    assert (actual.dtype, expected.dtype) == (DTYPES[dtype], torch.float32)
    require_same_problem(str(row), actual, expected)


def test_training_runs_under_autocast_with_float32_weights(small, device):
    row, dtypes = small("training", "bf16"), []
    given = networks.inputs(row, device)
    given.model.conv1.register_forward_hook(lambda *call: dtypes.append(call[-1].dtype))
    loss, *gradients = outcome(row, "unfused", given)
    assert dtypes == [torch.bfloat16]
    assert {loss.dtype, *(gradient.dtype for gradient in gradients)} == {torch.float32}


def test_inputs_are_the_same_and_draw_no_masks(small, device):
    row = small("training", "fp32")
    a, b = (networks.inputs(row, device) for _ in range(2))
    assert torch.equal(a.images, b.images)
    assert all(map(torch.equal, a.model.parameters(), b.model.parameters()))
    assert a.model.dropout.p == 0


def test_running_statistics_are_those_of_the_images(small, device):
    model, images, _ = networks.inputs(small("inference", "fp32"), device)
    convolved = model.conv1(images)
    torch.testing.assert_close(model.bn1.running_mean, convolved.mean((0, 2, 3)))
    torch.testing.assert_close(model.bn1.running_var, convolved.var((0, 2, 3)))


def test_the_loss_has_auxiliary_heads():
    logits, labels = torch.randn(3, 2, 5), torch.tensor([1, 4])
    each = [torch.nn.functional.cross_entropy(head, labels) for head in logits]
    expected = each[0] + 0.3 * (each[1] + each[2])
    torch.testing.assert_close(networks.loss(GoogLeNetOutputs(*logits), labels), expected)
    torch.testing.assert_close(networks.loss(logits[0], labels), each[0])


@pytest.mark.parametrize("direction", ["training", "inference_graph"])
def test_a_right_network_is_timed(direction, small, done):
    figures = measure.measure(small(direction, "fp32"), "ours", TIMER)
    assert figures["us"] == pytest.approx(1000)
    assert figures["graph"] == ("graph" in direction) == bool(done["captured"])
    assert figures["host_ms"] == 1


def test_a_wrong_network_is_never_timed(small, done, monkeypatch):
    def broken(row, given):
        loss, *gradients = networks.ours(row, given)()
        return lambda: (loss, *gradients[:-1], 1.1 * gradients[-1])

    monkeypatch.setitem(networks.MAKE, "ours", broken)
    with pytest.raises(WrongResultError, match=r"result 8 is 0\.1 away"):
        measure.measure(small("training", "fp32"), "ours", TIMER)
    assert not done


def test_networks_are_measured_at_their_own_sizes():
    assert ROWS["resnet50_b256-training-bf16"].x_shape == (256, 3, 224, 224)
    assert ROWS["d2l-resnet18_b256-training-bf16"].x_shape == (256, 1, 96, 96)
    assert ROWS["d2l-lenet_b1-inference_graph-fp16"].x_shape == (1, 1, 28, 28)
    for name in ("resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2", "vgg16", "googlenet"):
        batches = {
            row.batch for row in ROWS.values() if row.network == name and not row.how.training
        }
        assert batches == {1, 32, 256}


def test_each_side_is_a_test_and_the_compiled_ones_come_last():
    command = [sys.executable, "-m", "pytest", HERE / "test_networks.py", "--collect-only", "-q"]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    names = [line[:-1].partition("[")[2] for line in done.stdout.splitlines() if "::" in line]
    assert sorted(names) == sorted(f"{row}-{side}" for row in ROWS.values() for side in row.sides)
    compiled = [name.endswith("-compile") for name in names]
    assert compiled == sorted(compiled)  # it takes minutes, which no other waits for
