"""fuse(model, check=...) finds what is planted, passes what is right, and changes nothing."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from tritonconv import BatchNorm2d, Conv2d, fuse
from tritonconv.fused import run_chain
from tritonconv.nets.resnet import BasicBlock


class Net(nn.Module):
    """Two blocks that run fused, a layer that draws, and two that are not reached."""

    def __init__(self):
        super().__init__()
        self.first, self.second = BasicBlock(3, 4, 2), BasicBlock(4, 4)
        self.drop = nn.Dropout(0.5)
        self.unused = BasicBlock(4, 4)
        self.listed = Listed()

    def forward(self, x):
        if x.sum() > 1e9:
            return self.unused(x)
        return self.listed([self.drop(self.second(self.first(x)))])


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = Conv2d(4, 4, 1), BatchNorm2d(4)

    def forward(self, xs):
        return F.relu(self.bn(self.conv(xs[0])))


def images(device, dtype):
    return torch.randn(2, 3, 6, 6).to(device, dtype)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_check_passes_what_is_right_and_changes_nothing(dtype, training, device):
    model, x = Net().to(device, dtype).train(training), images(device, dtype)
    model.second.bn1.eval()
    before, given, chance = copy.deepcopy(model.state_dict()), x.clone(), torch.get_rng_state()
    lines = []
    fused = fuse(model, report=lines.append, check=(x,))
    assert torch.equal(torch.get_rng_state(), chance)
    assert torch.equal(x, given)
    assert not x.requires_grad
    for m in (model, fused):
        assert all(torch.equal(v, before[name]) for name, v in m.state_dict().items())
        assert all(p.grad is None for p in m.parameters())
        assert [m.training, m.second.bn1.training] == [training, False]
        assert not any(module._forward_hooks for module in m.modules())
    assert lines[-2:] == [
        "unused: not checked, for no call of it ran fused",
        "listed: not checked, for no call of it ran fused",
    ]


class Skewed(torch.autograd.Function):
    """The identity, with another gradient."""

    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, dy):
        return dy * 1.001


def moves_statistics(blocks, recompute, x, residual, *layers):
    y = run_chain(blocks, recompute, x, residual, *layers)
    layers[1].running_var *= 1.01
    return y


def in_dtype(blocks, recompute, x, residual, *layers):
    y = run_chain(blocks, recompute, x, residual, *layers)
    return y * 1.25 if x.dtype == torch.bfloat16 else y


FAULTS = {
    "output": (lambda *a: run_chain(*a) * 1.00001, "another output 0 "),
    "dtype of output": (lambda *a: run_chain(*a).float(), "another output 0 .torch.float32 .* for torch.bfloat16"),
    "output in bfloat16": (in_dtype, "another output 0 .torch.bfloat16"),
    "gradient": (lambda *a: Skewed.apply(run_chain(*a)), "another gradient of"),
    "no gradient": (lambda *a: run_chain(*a).detach(), "no gradient of"),
    "statistics": (moves_statistics, "another buffer bn.*running_var"),
    "argument": (lambda b, r, x, *a: run_chain(b, r, x, *a) + 0 * x.mul_(2).sum(), "RuntimeError .*modified by an inplace"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_check_names_the_first_container_that_differs(fault, device, monkeypatch):
    wrong, what = FAULTS[fault]

    def planted(blocks, recompute, x, residual, *layers):
        run = wrong if layers[0].in_channels == 4 else run_chain
        return run(blocks, recompute, x, residual, *layers)

    monkeypatch.setattr("tritonconv._stand_in.run_chain", planted)
    model, x = Net().to(device, torch.bfloat16), images(device, torch.bfloat16)
    with pytest.raises(RuntimeError, match=f"fuse: second, a BasicBlock, gives {what}"):
        fuse(model, check=(x,))


def test_check_looks_at_evaluation_too(device, monkeypatch):
    def wrong(blocks, recompute, x, residual, *layers):
        y = run_chain(blocks, recompute, x, residual, *layers)
        return y if torch.is_grad_enabled() else y + 1

    monkeypatch.setattr("tritonconv._stand_in.run_chain", wrong)
    with pytest.raises(
        RuntimeError, match=r"fuse: first, .* output 0 .* in evaluation; if a larger"
    ):
        fuse(Net().to(device), check=(images(device, torch.float32),))


def test_check_refuses_what_it_cannot_take(device):
    with pytest.raises(TypeError, match=r"fuse: check must be a tuple .*, got Tensor; write check"):
        fuse(Net(), check=torch.ones(1))

    class Silent(Net):
        def forward(self, x):
            return None

    with pytest.raises(TypeError, match="found no tensor in what Silent returns"):
        fuse(Silent().to(device), check=(images(device, torch.float32),))
