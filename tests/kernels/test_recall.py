"""Calls that are recalled by their signatures: the same bits, and only where nothing else is asked."""

import gc
import weakref

import pytest
import torch
import tritonconv
from launched import repeats, stub
from samples import OPERATORS, inputs
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from tritonconv import _plan, _recall

RECALLED = [name for name in OPERATORS if name != "conv_bn_relu"]


@pytest.fixture(autouse=True)
def nothing_recalled():
    _recall._calls.clear()


@pytest.fixture
def replays(monkeypatch) -> list:
    """The plans that are replayed from here on."""
    seen, call = [], _plan.Plan.__call__

    def counted(plan, tensors):
        seen.append(plan)
        return call(plan, tensors)

    monkeypatch.setattr(_plan.Plan, "__call__", counted)
    return seen


def step(f, given, dy) -> list[torch.Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in given]
    y = f(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def assert_repeats(actual, expected) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert repeats(a, e)
        assert (a.stride(), a.dtype) == (e.stride(), e.dtype)


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("operator", RECALLED)
def test_replayed_passes_give_the_same_bits(operator, autocast, device, replays):
    f, shapes = OPERATORS[operator]
    given = inputs(shapes, device)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        dy = torch.randn_like(f(*given))
        first, recorded = step(f, given, dy), step(f, given, dy)
        assert not replays
        replayed = step(f, given, dy)
    assert len(replays) == 2
    assert_repeats(recorded, first)
    assert_repeats(replayed, first)


@pytest.mark.parametrize("operator", RECALLED)
def test_replayed_inference(operator, device, replays):
    f, shapes = OPERATORS[operator]
    given = inputs(shapes, device)
    with torch.no_grad():
        first, _, replayed = (f(*given) for _ in range(3))
    assert len(replays) == 1
    assert repeats(replayed, first)
    assert not replayed.requires_grad


@pytest.mark.parametrize("operator", RECALLED)
def test_second_gradients_of_a_replayed_call(operator, device, replays):
    """Those of a first one; a plan has no derivative."""
    f, shapes = OPERATORS[operator]
    given = [t.double() for t in inputs(shapes, device)]

    def second() -> list[torch.Tensor]:
        leaves = [t.clone().requires_grad_() for t in given]
        y = f(*leaves)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    expected = second()
    for _ in range(3):
        actual = second()
    assert replays  # the forward's
    assert_repeats(actual, expected)


def test_gradients_that_are_asked_for_one_by_one(device):
    f, shapes = OPERATORS["conv2d"]
    for _ in range(3):
        leaves = [t.requires_grad_() for t in inputs(shapes, device)]
        y = f(*leaves).square().sum()
        whole = torch.autograd.grad(y, leaves, retain_graph=True)
        for leaf, expected in zip(leaves, whole, strict=True):
            (alone,) = torch.autograd.grad(y, leaf, retain_graph=True)
            assert repeats(alone, expected)


@pytest.mark.parametrize("frozen", [{0}, {1}, {2}, {0, 1}])
def test_only_what_is_needed_is_saved(frozen, device):
    """The input for the weight's gradient, the weight for the input's."""
    x, w, b = inputs([(2, 3, 6, 6), (4, 3, 3, 3), (4,)], device)
    for i, t in enumerate((x, w, b)):
        t.requires_grad_(i not in frozen)
    saved = []
    for _ in range(3):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            tritonconv.conv2d(x, w, b)
        needed = [t for t, other in ((x, w), (w, x)) if other.requires_grad]
        assert [t.data_ptr() for t in saved] == [t.data_ptr() for t in needed]


def test_what_is_saved_must_not_be_changed(device):
    x, w = inputs([(1, 3, 6, 6), (4, 3, 3, 3)], device)
    w.requires_grad_()
    for _ in range(3):
        given = x.clone()
        y = tritonconv.conv2d(given, w)
        given += 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_one_tensor_in_two_roles(device):
    x = torch.randn(3, 3, 3, 3, device=device)
    expected = tritonconv.conv2d(x, x.clone())
    for _ in range(3):
        assert repeats(tritonconv.conv2d(x, x), expected)
        assert repeats(tritonconv.conv2d(x, x.clone()), expected)


def test_indices_are_recalled_and_alone_have_no_gradient(device, replays):
    x = torch.randn(2, 3, 7, 6, device=device)
    expected = F.max_pool2d(x.cpu(), 3, 2, 1, return_indices=True)
    for _ in range(3):
        leaf = x.clone().requires_grad_()
        y, indices = tritonconv.max_pool2d(leaf, 3, 2, 1, return_indices=True)
        assert indices.dtype == torch.int64
        assert not indices.requires_grad
        y.sum().backward()
        assert leaf.grad.shape == x.shape
        if stub() is None:
            assert torch.equal(indices.cpu(), expected[1])
            assert torch.equal(y.detach().cpu(), expected[0])
    assert len(replays) == 2


def test_running_statistics_are_moved_by_replays_and_seen_by_autograd(device, replays):
    mean, var = torch.zeros(3, device=device), torch.ones(3, device=device)
    theirs = mean.cpu().double(), var.cpu().double()
    for _ in range(4):
        x = torch.randn(2, 3, 4, 4, device=device)
        before = mean._version
        tritonconv.batch_norm(x, mean, var, training=True, momentum=0.3)
        assert mean._version > before
        F.batch_norm(x.cpu().double(), *theirs, training=True, momentum=0.3)
        if stub() is None:
            torch.testing.assert_close((mean.cpu().double(), var.cpu().double()), theirs, rtol=1e-5, atol=1e-6)  # fmt: skip
    assert len(replays) == 2


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_layer_counts_batches_in_its_kernel(rank, momentum, device, replays):
    layer = getattr(tritonconv, "BatchNorm2d" if rank == 4 else "BatchNorm1d")(
        3, momentum=momentum, device=device, dtype=torch.float64
    )
    theirs = getattr(nn, type(layer).__name__)(3, momentum=momentum, dtype=torch.float64)
    for _ in range(4):
        x = torch.randn((5, 3, 4, 2)[:rank], dtype=torch.float64, device=device)
        layer(x), theirs(x.cpu())
    assert len(replays) == 2
    for ours, expected in zip(layer.buffers(), theirs.buffers(), strict=True):
        if stub() is None:
            torch.testing.assert_close(ours.cpu(), expected)


def test_saved_tensors_may_come_back_laid_out_otherwise(device):
    f, shapes = OPERATORS["conv2d"]
    given = [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in inputs(shapes, device)]  # fmt: skip
    dy = torch.randn_like(f(*given))
    expected = [step(f, given, dy) for _ in range(3)][-1]
    for _ in range(3):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: t.contiguous().clone(), lambda t: t
        ):
            actual = step(f, given, dy)
        assert all(repeats(a, e) for a, e in zip(actual, expected, strict=True))


def test_backward_that_is_looked_on_at_asks_for_ops(device):
    f, shapes = OPERATORS["conv2d"]
    leaves = [t.requires_grad_() for t in inputs(shapes, device)]
    for _ in range(3):
        y = f(*leaves)
        y.sum().backward()
    y, asked = f(*leaves), set()

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            asked.add(str(func))
            return func(*args, **(kwargs or {}))

    with torch.autograd.set_multithreading_enabled(False), Seeing():
        y.sum().backward()
    assert {"tritonconv.conv2d_dgrad.default", "tritonconv.conv2d_wgrad.default"} <= asked


def test_calls_are_bounded_and_hold_no_tensors(device, monkeypatch):
    monkeypatch.setattr(_recall._calls, "most", 3)
    gone = []
    for size in (4, 5, 6, 7, 4, 5):
        for _ in range(3):
            x = torch.randn(1, 2, size, size, device=device, requires_grad=True)
            y = tritonconv.avg_pool2d(x, 2)
            y.sum().backward()
            gone += weakref.ref(x), weakref.ref(y)
        assert 0 < len(_recall._calls) <= 3
    del x, y
    gc.collect()
    assert not any(ref() is not None for ref in gone)


def test_gradient_function_has_the_operators_name(device):
    x = torch.randn(1, 2, 4, 4, device=device, requires_grad=True)
    for _ in range(3):
        assert tritonconv.max_pool2d(x, 2).grad_fn.name() == "MaxPool2dFunctionBackward"


def test_a_number_in_a_tensor_is_read_in_every_call(device):
    x, results = torch.randn(2, 3, 4, 4, device=device), []
    for eps in (1e-5, 10.0, 10.0, 10.0):
        eps = torch.tensor(eps)
        results.append(tritonconv.batch_norm(x, None, None, training=True, eps=eps))
    if stub() is None:
        assert not torch.equal(results[0], results[1])
    assert all(repeats(y, results[1]) for y in results[2:])


def test_options_that_are_sequences_are_told_apart(device):
    """(2), (1, 1) from (2, 1), (1); lists pass for tuples."""
    x, w = inputs([(1, 2, 7, 7), (2, 2, 3, 3)], device)
    for _ in range(3):
        alike = tritonconv.conv2d(x, w, stride=(2,), padding=(1, 1)).shape
        assert alike == tritonconv.conv2d(x, w, stride=[2], padding=[1, 1]).shape == (1, 2, 4, 4)
        assert tritonconv.conv2d(x, w, stride=(2, 1), padding=(1,)).shape == (1, 2, 4, 7)
