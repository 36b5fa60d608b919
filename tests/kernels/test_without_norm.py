"""Convolutions with activations and no batch norm, fused in training."""

import itertools

import pytest
import torch
from reference import Dispatched
from torch import nn
from torch.nn import functional as F
from tritonconv import convert, fuse


class Block(nn.Module):
    """Two convolutions and a third one's shortcut, or a given one, or its input."""

    def __init__(self, act, shortcut):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
        if shortcut == "unit":
            self.conv3 = nn.Conv2d(3, 3, 1)
        self.act, self.shortcut = act, shortcut

    def forward(self, x, given):
        y = self.conv2(self.act(self.conv1(x)))
        if self.shortcut == "unit":
            y = y + self.conv3(x)
        if self.shortcut == "identity":
            y = y + x
        if self.shortcut == "given":
            y = y + given
        return self.act(y)


SHORTCUTS = ["none", "identity", "given", "unit"]
ACTS = {"relu": F.relu, "leaky_relu": F.leaky_relu, "sigmoid": F.sigmoid, "silu": F.silu}


def inputs(device="cpu", dtype=torch.float64) -> list[torch.Tensor]:
    return [torch.randn(2, 3, 5, 4, dtype=dtype, device=device) for _ in range(2)]


def gradients(model, given, wanted, dy):
    y = model(*given)
    found = torch.autograd.grad(y, wanted, dy.to(y), allow_unused=True)
    return [t if t is None else t.cpu() for t in (y.detach(), *found)]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_each_gradient_alone_and_all(shortcut, act, device):
    model = Block(ACTS[act], shortcut).double()
    ours = fuse(convert(model)).to(device)
    given, dy = inputs(), torch.randn(2, 3, 5, 4)
    n = 2 + len(list(model.parameters()))
    for needed in (*itertools.combinations(range(n), 1), *itertools.combinations(range(n), n)):
        results = []
        for m, on in ((ours, device), (model, "cpu")):
            here = [t.to(on, copy=True) for t in given]
            tensors = [*here, *m.parameters()]
            for i, t in enumerate(tensors):
                t.requires_grad_(i in needed)
            wanted = [tensors[i] for i in needed]
            if not m(*here).requires_grad:  # nothing comes of it
                continue
            results.append(gradients(m, here, wanted, dy))
        if results:
            torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_second_gradients(shortcut, act, device):
    model = Block(ACTS[act], shortcut).double()
    ours = fuse(convert(model)).to(device)
    given, dy, results = inputs(), torch.randn(2, 3, 5, 4).double(), []
    for m, on in ((ours, device), (model, "cpu")):
        here = [t.to(on, copy=True).requires_grad_() for t in given]
        wanted = [here[0], *m.parameters()]
        gradient = dy.to(on).requires_grad_()
        first = torch.autograd.grad(m(*here), wanted, gradient, create_graph=True)
        total = sum(t.square().sum() for t in first)
        second = torch.autograd.grad(total, [m.conv1.weight, here[0], gradient])
        results.append([t.detach().cpu() for t in (*first, *second)])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_calls_repeat_bit_for_bit_and_keep_the_format(shortcut, memory_format, device):
    ours = fuse(convert(Block(F.relu, shortcut))).to(device)
    given = [
        t.to(memory_format=memory_format).requires_grad_() for t in inputs(device, torch.float32)
    ]
    wanted, dy = [given[0], *ours.parameters()], torch.randn(2, 3, 5, 4, device=device)
    first, *others = [gradients(ours, given, wanted, dy) for _ in range(3)]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    y = ours(*given)
    assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_rounds_as_the_layers_one_by_one(dtype, device):
    model = convert(Block(F.relu, "given")).to(device)
    fused, given = fuse(model), inputs(device, torch.float32)
    results = []
    for m in (fused, model):
        here = [t.clone().requires_grad_() for t in given]
        with torch.autocast(device, dtype):
            y = m(here[0], here[1].to(dtype))
        y.float().square().sum().backward()
        assert y.dtype == dtype
        assert all(p.grad.dtype == torch.float32 for p in m.parameters())
        results.append(
            [t.detach().cpu().float() for t in (y, here[0].grad, *(p.grad for p in m.parameters()))]
        )
    bound = 16 * torch.finfo(dtype).eps
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= bound * b.abs().max()


def test_activations_are_part_of_other_passes(device):
    """The last one's gradient comes with the sum for its bias, the others' in dgrad's epilogue."""
    ours = fuse(
        convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.ReLU()))
    )
    x = torch.randn(2, 3, 6, 6, device=device).to(memory_format=torch.channels_last)
    with Dispatched() as dispatched:
        y = ours.to(device)(x)
        y.backward(torch.ones_like(y))
    backward = ["batch_norm_sums_and_g", "conv2d_dgrad_fused", "conv2d_dbias"]
    forward, wgrad = ["conv2d_fused"] * 2, ["conv2d_wgrad"] * 2
    assert dispatched.ours == [*forward, *backward, *wgrad]


def test_what_is_kept_is_what_convolutions_gave(device):
    ours = fuse(
        convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU()))
    )
    x, kept = torch.randn(2, 3, 6, 6, device=device), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = ours.to(device)(x)
    parameters = {p.data_ptr() for p in ours.parameters()}
    shapes = sorted(t.shape for t in kept if t.data_ptr() not in parameters)
    assert shapes == sorted([x.shape, (2, 4, 4, 4), y.shape])


def test_result_that_was_changed_is_noticed(device):
    ours = fuse(convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))).to(device)
    y = ours(torch.randn(2, 3, 6, 6, device=device))
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("act", [nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Hardswish, nn.GELU])
def test_not_a_number_and_infinity_go_as_torchs(act, device):
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1), act()
    ).double()  # torch's gelu of inf is nan in float32
    for p in model.parameters():
        nn.init.constant_(p, 1 if p.ndim > 1 else 0)
    values = [float("nan"), float("inf"), -float("inf"), -200.0, -3.0, -0.0, 0.0, 3.0, 6.0, 200.0]
    results = []
    for m, on in ((fuse(convert(model)), device), (model, "cpu")):
        x = torch.tensor(values, device=on).double().reshape(1, 1, 2, 5).requires_grad_()
        y = m.to(on)(x)
        y.backward(torch.ones_like(y))
        results.append([y.detach().cpu(), x.grad.cpu()])
    torch.testing.assert_close(*results, equal_nan=True)
