"""What every operator and module must do under torch's machinery, whatever it computes."""

import copy
import pickle
import random

import pytest
import torch
import tritonconv
from reference import Dispatched, assert_equal, forward_backward
from samples import CONVOLUTION, MODULES, OPERATORS, inputs, module_input, small_model
from torch import nn
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensorMode
from tritonconv import _common

CONVOLUTIONS = [name for name in OPERATORS if name.startswith(("conv1d", "conv2d", "conv_tr"))]


def raw_ops(device):
    """Each private op with arguments as the Functions pass them."""
    ops = torch.ops.tritonconv
    last, first = torch.channels_last, torch.contiguous_format
    x, w, b = inputs([(2, 4, 7, 6), (6, 2, 3, 3), (6,)], device)
    conv = [2, 2, 1, 1, 1, 1, 1, 1, 2]
    dy = torch.randn(2, 6, 4, 3, device=device)
    pool = ([3, 3], [2, 2], [1, 1], [1, 1], False)
    dp, tap = torch.randn(2, 4, 4, 3, device=device), ops.max_pool2d(x, True, *pool)[1]
    mean, var, sums = (
        torch.zeros(4, device=device),
        torch.ones(4, device=device),
        torch.ones(2, 4, device=device),
    )
    norm, pair = (mean, var, var, mean, 1e-5), (mean, var, var, 1e-5)
    of_y = torch.zeros(6, device=device), torch.ones(6, device=device), b, b
    nothing = (None,) * 5
    at = ops.adaptive_max_pool2d(x, list(dp.shape[2:]), True)[1]
    return {
        "conv2d": (x.to(memory_format=last), w, b, last, conv),
        "conv2d_dgrad": (dy, w, torch.randn(4, device=device), list(x.shape), last, conv),
        "conv2d_stats": (x, w, None, last, conv),
        "conv2d_normalised_stats": (x, *norm, "relu", w, b, last, conv),
        "conv2d_fused": (x, w, b, *of_y, dy, None, 1e-5, "relu6", last, conv),
        "conv2d_dgrad_stats": (dy, w, None, list(x.shape), first, conv),
        "conv2d_dgrad_fused": (dy, w, *nothing, x, x, 0.0, "relu", list(x.shape), first, conv),
        "conv2d_dgrad_undone": (dy, w, x, *norm, "relu", conv),
        "conv2d_wgrad": (dy, x, list(w.shape), first, conv),
        "conv2d_dbias": (dy,),
        "max_pool2d": (x, True, *pool),
        "max_pool2d_scatter": (dp, tap, list(x.shape), last, *pool),
        "max_pool2d_gather": (x, tap, *pool),
        "avg_pool2d": (x, *pool, True, None),
        "avg_pool2d_bwd": (dp, list(x.shape), last, *pool, False, 2),
        "adaptive_max_pool2d": (x, [3, 2], True),
        "adaptive_max_pool2d_scatter": (dp, at, list(x.shape), last),
        "batch_norm_stats": (x,),
        "batch_norm": (x, *norm, x, *norm, "relu6", last),
        "batch_norm_sums": (x, x, *norm, "relu", x),
        "batch_norm_sums_and_y": (x, x, *norm, "relu"),
        "batch_norm_sums_and_g": (x, x, *norm, "relu", x),
        "batch_norm_bwd_and_g": (x, x, *norm, "relu", x),
        "batch_norm_g": (x, x, "relu"),
        "batch_norm_bwd": (x, x, *norm, "relu6", None, sums, last),
        "batch_norm_pair_sums": (x, x, x, mean, var, 1e-5, x, mean, var, 1e-5, "relu"),
        "batch_norm_pair_bwd": (x, x, x, *pair, x, *pair, "relu", torch.ones(4, 4, device=device)),
        "adaptive_avg_pool2d": (x, [3, 2]),
        "adaptive_avg_pool2d_bwd": (dp, list(x.shape), first),
        "corr2d": (x[0, 0], w[0, 0], [0, 1]),
    }


def test_memory_format_is_read_as_torch_reads_it():
    generator = random.Random(0)
    memory = torch.empty(1000)
    for _ in range(5000):
        shape = [generator.choice((0, 1, 1, 2, 3, 4)) for _ in range(4)]
        strides = [generator.choice((0, 1, 1, 2, 3, 4, 6, 8, 12, 24, 48)) for _ in range(4)]
        x = memory.as_strided(shape, strides)
        assert _common.layout(x) == suggest_memory_format(x), (shape, strides)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 1, 5), (2, 1, 4, 1), (0, 3, 4, 5), (2, 3, 0, 5)])  # fmt: skip
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_results_leave_with_the_strides_of_their_format(shape, memory_format):
    expected = torch.empty(shape).to(memory_format=memory_format)
    expected = torch.empty_like(expected, memory_format=memory_format).stride()
    for y in (torch.empty(shape), torch.empty(shape[::-1]).permute(3, 2, 1, 0)):
        assert _common.leave(y, memory_format).stride() == expected


def test_opcheck_knows_every_op(device):
    registered = {
        name.removeprefix("tritonconv::").removesuffix(".traced")
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


@pytest.mark.covers(
    "forward", "gradients", option="torch.compile(fullgraph=True)", dtype=torch.float32
)
@pytest.mark.parametrize(
    ("backend", "dynamic"),
    [("aot_eager", False), ("aot_eager", True), ("inductor", False), ("inductor", True)],
)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
def test_operator_compiles_whole(operator, backend, dynamic, device):
    f, shapes = OPERATORS[operator]
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


@pytest.mark.covers("forward", "gradients", option="autocast")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("operator", CONVOLUTIONS)
def test_convolution_under_autocast(operator, dtype, device):
    f, shapes = OPERATORS[operator]
    given = [t.requires_grad_() for t in inputs(shapes, device)]
    with torch.autocast(device, dtype):
        y = f(*given)
        wide = f(*[t.double() for t in given])
    y.sum().backward()
    assert (y.dtype, wide.dtype, given[1].grad.dtype) == (dtype, torch.float64, torch.float32)
    torch.testing.assert_close(y, f(*[t.to(dtype) for t in given]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pools_keep_their_dtype_under_autocast(dtype, device):
    x = torch.randn(1, 2, 6, 6, device=device)
    with torch.autocast(device, dtype):
        assert tritonconv.max_pool2d(x, 2).dtype == torch.float32
        assert tritonconv.avg_pool2d(x.to(dtype), 2).dtype == dtype


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's forward_ad
@pytest.mark.parametrize("operator", OPERATORS)
def test_operator_refuses_transforms_by_name(operator, device):
    f, shapes = OPERATORS[operator]
    x, *others = inputs(shapes, device)
    with pytest.raises(NotImplementedError, match=rf"{operator}: torch\.func transforms"):
        torch.func.grad(lambda x: f(x, *others).sum())(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match=f"{operator}: forward-mode"):
            f(dual, *others)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torch_jit_script_is_refused_by_name():
    def user(x):
        return tritonconv.max_pool2d(x, 2)

    with pytest.raises(NotImplementedError, match=r"max_pool2d: torch\.jit\.script is not"):
        torch.jit.script(user)
    for name in OPERATORS:
        with pytest.raises(NotImplementedError, match=rf"{name}: torch\.jit\.script is not"):
            torch.jit.script(getattr(tritonconv, name))
    for name, options in MODULES.items():
        model = nn.Sequential(getattr(tritonconv, name)(**options))
        with pytest.raises(NotImplementedError, match=rf"{name}: torch\.jit\.script is not"):
            torch.jit.script(model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
# make_graphed_callables keeps its warm-up's autograd graph, of another stream, while it captures
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match")
@pytest.mark.parametrize("operator", OPERATORS)
def test_operator_is_captured_in_a_cuda_graph(operator, device):
    f, shapes = OPERATORS[operator]
    given = inputs(shapes, device)
    leaves = [t.clone().requires_grad_() for t in given]
    graphed = torch.cuda.make_graphed_callables(f, tuple(leaves))
    y = graphed(*leaves)
    dy = torch.randn_like(y)
    actual = [y.detach().clone(), *torch.autograd.grad(y, leaves, dy)]
    assert_equal(actual, forward_backward(f, *given, dy=dy))


@pytest.mark.parametrize("name", MODULES)
def test_module_is_its_torch_base(name, device):
    kind, options = getattr(tritonconv, name), MODULES[name]
    torch.manual_seed(3)
    ours = kind(**options)
    torch.manual_seed(3)
    theirs = getattr(nn, name)(**options)
    assert isinstance(ours, getattr(nn, name))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    x = module_input(name)
    expected = theirs(x)
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(module) is kind
        torch.testing.assert_close(module.to(device)(x.to(device)).cpu(), expected)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_module_takes_device_and_dtype(name):
    kind = getattr(tritonconv, {"conv1d": "Conv1d", "conv2d": "Conv2d"}.get(
        name, f"ConvTranspose{name[-2:]}"
    ))  # fmt: skip
    module = kind(**CONVOLUTION, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.float64)}
    x = torch.empty((2, 4, 7, 8)[: 1 + int(name[-2]) + 1], device="meta", dtype=torch.float64)
    assert module(x).dtype == torch.float64


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
def test_batch_norm_module_compiles_whole_with_its_statistics(device):
    x = torch.randn(2, 4, 5, 5, device=device)
    eager = tritonconv.BatchNorm2d(4).to(device)
    model = copy.deepcopy(eager)
    compiled = torch.compile(model, fullgraph=True)
    for _ in range(2):
        assert_equal(forward_backward(compiled, x), forward_backward(eager, x))
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d"])
def test_lazy_batch_norm_becomes_ours(name, device):
    lazy = getattr(tritonconv, f"Lazy{name}")(device=device)
    lazy(module_input(name).to(device))
    assert type(lazy) is getattr(tritonconv, name)
    assert lazy.num_features == 4


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "ConvTranspose1d", "ConvTranspose2d"])
def test_lazy_module_becomes_ours(name, device):
    lazy = getattr(tritonconv, f"Lazy{name}")(6, 3, device=device)
    x = module_input(name).to(device)
    y = lazy(x)
    assert type(lazy) is getattr(tritonconv, name)
    assert lazy.in_channels == 4
    assert_equal([y], [lazy(x)])


@pytest.mark.covers("forward", option="padding_mode", dtype=torch.float32)
@pytest.mark.parametrize("padding", [2, "same"])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("operator", ["conv1d", "conv2d"])
def test_convolution_module_pads_as_torch(operator, padding_mode, padding, device):
    name = operator.capitalize()
    options = {"padding": padding, "padding_mode": padding_mode, "dilation": 2}
    theirs = getattr(nn, name)(4, 3, 3, **options)
    ours = getattr(tritonconv, name)(4, 3, 3, **options)
    ours.load_state_dict(theirs.state_dict())
    x = module_input(name)
    torch.testing.assert_close(ours.to(device)(x.to(device)).cpu(), theirs(x))


def test_transposed_module_refuses_other_padding_modes():
    with pytest.raises(ValueError, match='Only "zeros" padding mode is supported'):
        tritonconv.ConvTranspose2d(2, 3, 3, padding_mode="reflect")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("MaxPool1d", {"kernel_size": 2}),
        ("MaxPool2d", {"kernel_size": 2}),
        ("AdaptiveMaxPool1d", {"output_size": 2}),
        ("AdaptiveMaxPool2d", {"output_size": 2}),
    ],
)
def test_max_pool_module_returns_indices(name, options, device):
    x = module_input(name)
    ours = getattr(tritonconv, name)(**options, return_indices=True)(x.to(device))
    theirs = getattr(nn, name)(**options, return_indices=True)(x)
    assert_equal(list(ours), list(theirs))


def test_module_under_weight_norm(device):
    theirs = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3))
    ours = nn.utils.parametrizations.weight_norm(tritonconv.Conv2d(4, 6, 3))
    ours.load_state_dict(theirs.state_dict())
    x = module_input("Conv2d")
    expected = forward_backward(lambda x, *_: theirs(x), x)
    actual = forward_backward(lambda x, *_: ours.to(device)(x), x.to(device))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.cpu(), e)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_have_the_strides_that_data_parallel_training_expects(
    memory_format, process_group, device
):
    """DistributedDataParallel warns, and copies, where a gradient's strides are not its weight's."""
    model = nn.Sequential(
        tritonconv.Conv2d(4, 8, 3),
        tritonconv.Conv2d(8, 6, 1),
        tritonconv.Conv2d(6, 6, 3, groups=6),
        tritonconv.ConvTranspose2d(6, 4, 2),
    ).to(device, memory_format=memory_format)
    parallel = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        parallel(torch.randn(2, 4, 9, 9, device=device)).sum().backward()
    for p in model.parameters():
        assert p.grad.stride() == p.stride()


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


def test_model_is_summarised_on_the_meta_device():
    torchinfo = pytest.importorskip("torchinfo", reason="torchinfo is not installed")
    summary = torchinfo.summary(small_model(), (2, 2, 8, 8), device="meta", verbose=0)
    assert summary.total_params == sum(p.numel() for p in small_model().parameters())
    sizes = [layer.output_size for layer in summary.summary_list if layer.is_leaf_layer]
    assert sizes[0] == [2, 4, 8, 8]
    assert sizes[-1] == [2, 3]


def test_ops_are_seen_by_who_looks(device):
    """A call skips torch's dispatcher only where nobody would notice."""
    x, w = torch.randn(1, 2, 5, 5, device=device), torch.randn(3, 2, 3, 3, device=device)
    with Dispatched() as mode:
        tritonconv.conv2d(x, w)
    assert mode.ours == ["conv2d"]
    with torch.profiler.profile(acc_events=True) as profile:
        tritonconv.conv2d(x, w)
    assert "tritonconv::conv2d" in [event.key for event in profile.key_averages()]


def test_a_call_is_checked_whatever_was_called_before(device):
    """What calls are remembered by tells apart all that the checks look at."""
    x, w = torch.randn(1, 4, 5, 5, device=device), torch.randn(4, 4, 3, 3, device=device)
    b = torch.randn(4, device=device)
    for _ in range(2):
        y = tritonconv.conv2d(x, w, b, padding=1)
    with pytest.raises(TypeError, match="padding"):
        tritonconv.conv2d(x, w, b, padding=1.0)
    with pytest.raises(RuntimeError, match="same dtype"):
        tritonconv.conv2d(x, w, b.double(), padding=1)
    with pytest.raises(RuntimeError, match="bias"):
        tritonconv.conv2d(x, w, b[:3], padding=1)
    with pytest.raises(RuntimeError, match="groups"):
        tritonconv.conv2d(x, w, b, padding=1, groups=2)
    with pytest.raises(NotImplementedError, match="dense"):
        tritonconv.conv2d(x.to_sparse(), w, b, padding=1)
    last = x.to(memory_format=torch.channels_last)
    assert tritonconv.conv2d(last, w, b, padding=1).stride() != y.stride()
    with torch.autocast(device, torch.bfloat16):
        assert tritonconv.conv2d(x, w, b, padding=1).dtype == torch.bfloat16
    assert tritonconv.conv2d(x, w, b, padding=1).dtype == torch.float32
    torch.testing.assert_close(tritonconv.conv2d(x, w, b, padding=[1, 1]), y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_holds_the_op(device):
    block = tritonconv.ConvBNReLU(3, 4, 3).to(device).eval()
    x, other = torch.randn(2, 1, 3, 5, 5, device=device)
    with torch.no_grad():
        traced = torch.jit.trace(block, x, check_trace=False)
        torch.testing.assert_close(traced(other), block(other))
    assert "tritonconv::conv2d_fused" in str(traced.graph)
