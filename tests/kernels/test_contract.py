"""What every operator and module must do under torch's machinery, whatever it computes."""

import copy
import pickle

import pytest
import torch
import tritonconv
from reference import assert_equal, forward_backward
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

OPERATORS = {
    "conv2d": (
        lambda x, w, b: tritonconv.conv2d(x, w, b, stride=2, padding=1, groups=2),
        [(2, 4, 7, 6), (6, 2, 3, 3), (6,)],
    ),
    "max_pool2d": (lambda x: tritonconv.max_pool2d(x, 3, 2, 1), [(2, 3, 7, 6)]),
    "avg_pool2d": (lambda x: tritonconv.avg_pool2d(x, 3, 2, 1), [(2, 3, 7, 6)]),
    "adaptive_avg_pool2d": (lambda x: tritonconv.adaptive_avg_pool2d(x, (3, 2)), [(2, 3, 7, 6)]),
    "corr2d": (tritonconv.corr2d, [(7, 6), (3, 2)]),
}
MODULES = {
    "Conv2d": (
        tritonconv.Conv2d,
        {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2},
    ),
    "MaxPool2d": (tritonconv.MaxPool2d, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "AvgPool2d": (tritonconv.AvgPool2d, {"kernel_size": 3, "count_include_pad": False}),
    "AdaptiveAvgPool2d": (tritonconv.AdaptiveAvgPool2d, {"output_size": (2, 3)}),
}


def inputs(shapes, device):
    return [torch.randn(shape, device=device) for shape in shapes]


def raw_ops(device):
    """Each private op with arguments as the Functions pass them."""
    ops = torch.ops.tritonconv
    last, first = torch.channels_last, torch.contiguous_format
    x, w, b = inputs([(2, 4, 7, 6), (6, 2, 3, 3), (6,)], device)
    conv = ([2, 2], [1, 1], [1, 1], [1, 1], 2)
    dy = torch.randn(2, 6, 4, 3, device=device)
    pool = ([3, 3], [2, 2], [1, 1], [1, 1], False)
    dp, tap = torch.randn(2, 4, 4, 3, device=device), ops.max_pool2d(x, True, *pool)[1]
    return {
        "conv2d": (x.to(memory_format=last), w, b, last, *conv),
        "conv2d_dgrad": (dy, w, torch.randn(4, device=device), list(x.shape), last, *conv),
        "conv2d_wgrad": (dy, x, list(w.shape), first, *conv),
        "conv2d_dbias": (dy,),
        "max_pool2d": (x, True, *pool),
        "max_pool2d_scatter": (dp, tap, list(x.shape), last, *pool),
        "max_pool2d_gather": (x, tap, *pool),
        "avg_pool2d": (x, *pool, True, None),
        "avg_pool2d_bwd": (dp, list(x.shape), last, *pool, False, 2),
        "adaptive_avg_pool2d": (x, [3, 2]),
        "adaptive_avg_pool2d_bwd": (dp, list(x.shape), first),
        "corr2d": (x[0, 0], w[0, 0], [0, 1]),
    }


def test_opcheck_knows_every_op(device):
    registered = {
        name.removeprefix("tritonconv::")
        for name in torch._C._dispatch_get_registrations_for_dispatch_key(
            "CompositeExplicitAutograd"
        )
        if name.startswith("tritonconv::")
    }
    assert set(raw_ops(device)) == registered


@pytest.mark.parametrize("name", raw_ops("meta"))
def test_op_passes_opcheck(name, device):
    op = getattr(torch.ops.tritonconv, name).default
    torch.library.opcheck(op, raw_ops(device)[name])


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
def test_operator_compiles_whole(name, backend, dynamic, device):
    f, shapes = OPERATORS[name]
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend=backend, dynamic=dynamic)
    for rows in (7, 9):
        sizes = [tuple(rows if n == 7 else n for n in shape) for shape in shapes]
        given = inputs(sizes, device)
        assert_equal(forward_backward(compiled, *given), forward_backward(f, *given))


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_has_the_same_shape_and_strides_on_meta(name, device):
    f, shapes = OPERATORS[name]
    given = inputs(shapes, device)
    real = f(*given)
    meta = f(*[t.to("meta") for t in given])
    with FakeTensorMode() as mode:
        fake = f(*[mode.from_tensor(t) for t in given])
    for other in (meta, fake):
        assert (other.shape, other.stride(), other.dtype) == (real.shape, real.stride(), real.dtype)


@pytest.mark.parametrize("name", MODULES)
def test_module_is_its_torch_base(name, device):
    kind, options = MODULES[name]
    torch.manual_seed(3)
    ours = kind(**options)
    torch.manual_seed(3)
    theirs = getattr(nn, name)(**options)
    assert isinstance(ours, getattr(nn, name))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    x = torch.randn(2, 4, 7, 8)
    expected = theirs(x)
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(module) is kind
        torch.testing.assert_close(module.to(device)(x.to(device)).cpu(), expected)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_conv2d_module_pads_as_torch(padding_mode, device):
    options = {"padding": (2, 1), "padding_mode": padding_mode}
    theirs = nn.Conv2d(2, 3, 3, **options)
    ours = tritonconv.Conv2d(2, 3, 3, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 2, 5, 6)
    torch.testing.assert_close(ours.to(device)(x.to(device)).cpu(), theirs(x))


def test_max_pool2d_module_returns_indices(device):
    x = torch.randn(1, 2, 6, 6)
    ours = tritonconv.MaxPool2d(2, return_indices=True)(x.to(device))
    theirs = nn.MaxPool2d(2, return_indices=True)(x)
    assert_equal(list(ours), list(theirs))


def small_model():
    return nn.Sequential(
        tritonconv.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        tritonconv.MaxPool2d(2),
        tritonconv.AvgPool2d(2),
        tritonconv.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def test_model_exports(device):
    model, x = small_model().to(device), torch.randn(2, 2, 8, 8, device=device)
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))


def test_model_trains_under_checkpointing(device):
    model, x = small_model().to(device), torch.randn(2, 2, 8, 8, device=device)

    def gradients(run):
        return torch.autograd.grad(run().square().sum(), list(model.parameters()))

    plain = gradients(lambda: model(x))
    again = gradients(lambda: torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False))
    assert_equal(list(again), list(plain))
