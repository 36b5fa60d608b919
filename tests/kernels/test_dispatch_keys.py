"""What torch does before an op of its own runs, it does before ours: lazy tensors, overrides, traces."""

import pickle

import pytest
import torch
import tritonconv
from launched import of_numbers
from reference import assert_equal
from samples import MODULES, OPERATORS, inputs, module_input, small_model
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode


def negated(x):
    """-x, which memory does not hold: it has the negative bit."""
    lazily = torch.complex(torch.zeros_like(x), x).conj().imag
    assert lazily.is_neg()
    return lazily


@pytest.mark.parametrize("operator", OPERATORS)
def test_operator_resolves_the_negative_bit(operator, device):
    f, shapes = OPERATORS[operator]
    given = inputs(shapes, device)
    y = f(*(-t for t in given))
    assert_equal([f(*map(negated, given))], [y])
    leaves = [negated(t).requires_grad_() for t in given]
    plain = [(-t).requires_grad_() for t in given]
    dy = torch.randn_like(y)
    actual = torch.autograd.grad(f(*leaves), leaves, negated(dy))
    assert_equal(actual, torch.autograd.grad(f(*plain), plain, -dy))


def test_fused_operator_resolves_the_negative_bit(device):
    x, residual = torch.randn(2, 2, 3, 5, 5, device=device)
    w = torch.randn(3, 3, 1, 1, device=device)
    norm = torch.zeros(3, device=device), torch.ones(3, device=device)
    given = x, w, norm[1], *norm, residual

    def f(x, w, bias, mean, var, residual):
        return tritonconv.conv_bn_relu(x, w, bias, mean, var, residual=residual)

    assert_equal([f(*(negated(-t) for t in given))], [f(*given)])


@pytest.mark.parametrize("operator", OPERATORS)
def test_operator_resolves_lazy_zeros(operator, device):
    f, shapes = OPERATORS[operator]
    x, *others = inputs(shapes, device)
    zero = torch._efficientzerotensor(x.shape, device=device)
    assert_equal([f(zero, *others)], [f(torch.zeros_like(x), *others)])


class Marked(torch.Tensor):
    """A subclass without any override."""


class Recorded(torch.Tensor):
    """A subclass that sees every op of its data."""

    ops: tuple[str, ...] = ()

    @staticmethod
    def __new__(cls, data):
        made = torch.Tensor._make_wrapper_subclass(
            cls, data.shape, strides=data.stride(), dtype=data.dtype, device=data.device
        )
        made.data_of = data
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        Recorded.ops = (*Recorded.ops, str(func))
        data = [a.data_of if isinstance(a, Recorded) else a for a in args]
        return func(*data, **(kwargs or {}))


@pytest.mark.parametrize("operator", OPERATORS)
def test_operator_gives_the_subclass_it_was_given(operator, device):
    f, shapes = OPERATORS[operator]
    given = inputs(shapes, device)
    y = f(*(t.as_subclass(Marked) for t in given))
    assert type(y) is Marked
    assert_equal([y.as_subclass(torch.Tensor)], [f(*given)])


@pytest.mark.parametrize("operator", ["conv2d", "max_pool2d", "batch_norm"])
def test_subclass_sees_the_ops(operator, device):
    f, shapes = OPERATORS[operator]
    x, *others = inputs(shapes, device)
    Recorded.ops = ()
    with torch.no_grad():
        f(Recorded(x), *others)
    assert f"tritonconv.{operator}.default" in Recorded.ops


@pytest.mark.parametrize("operator", OPERATORS)
def test_mode_sees_the_operator(operator, device):
    seen = []

    class Seeing(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    f, shapes = OPERATORS[operator]
    given = inputs(shapes, device)
    with Seeing():
        y = f(*given)
    assert getattr(tritonconv, operator) in seen
    assert_equal([y], [f(*given)])


@pytest.mark.parametrize("pre_dispatch", [False, True])
@pytest.mark.parametrize("operator", ["conv2d", "avg_pool2d", "corr2d"])
def test_make_fx_records_the_op(operator, pre_dispatch, device):
    f, shapes = OPERATORS[operator]
    given = inputs(shapes, device)
    graph = make_fx(f, pre_dispatch=pre_dispatch)(*given).graph
    assert f"tritonconv.{operator}.default" in map(str, (node.target for node in graph.nodes))


def test_functional_tensor_reaches_the_op(device):
    x, w = inputs([(1, 2, 5, 5), (3, 2, 3, 3)], device)
    wrapped = torch._to_functional_tensor(x)
    torch._enable_functionalization(reapply_views=True)
    try:
        with torch.no_grad():
            y = tritonconv.conv2d(wrapped, w)
    finally:
        torch._disable_functionalization()
    assert_equal([torch._from_functional_tensor(y)], [tritonconv.conv2d(x, w)])


@pytest.mark.parametrize("operator", OPERATORS)
def test_symbolic_trace_records_the_operator(operator, device):
    f, shapes = OPERATORS[operator]
    given = inputs(shapes, device)
    traced = fx.symbolic_trace(f)
    assert getattr(tritonconv, operator) in [node.target for node in traced.graph.nodes]
    again = pickle.loads(pickle.dumps(fx.GraphModule(nn.Module(), traced.graph)))
    for graph in (traced, again):
        assert_equal([graph(*given)], [f(*given)])


@pytest.mark.parametrize("name", MODULES)
@of_numbers
def test_layer_is_a_leaf_of_a_traced_graph(name, device):
    model = nn.Sequential(getattr(tritonconv, name)(**MODULES[name])).to(device)
    count = getattr(model[0], "num_batches_tracked", torch.zeros(())).clone()
    traced = fx.symbolic_trace(model)
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "output"]
    assert torch.equal(getattr(model[0], "num_batches_tracked", count), count)
    x = module_input(name).to(device)
    assert_equal([traced.eval()(x)], [model.eval()(x)])


def test_converted_model_is_traced(device):
    theirs = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    )
    graphs = [fx.symbolic_trace(m).graph for m in (theirs, tritonconv.convert(theirs))]
    first, second = ([(n.op, str(n.target)) for n in graph.nodes] for graph in graphs)
    assert first == second


FLOPS = {  # a layer and the passes' products, by hand: 2 * N * OH * OW * weights
    "Conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding=1), 2 * 2 * 4 * 4 * 216),
    "Conv2d grouped": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), 2 * 2 * 4 * 4 * 108),
    "Conv1d": (nn.Conv1d(4, 6, 3), 2 * 2 * 5 * 72),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 6, 2, stride=2), 2 * 2 * 7 * 8 * 96),
}


@pytest.mark.parametrize("name", FLOPS)
def test_products_are_counted(name, device):
    theirs, expected = FLOPS[name]
    ours = tritonconv.convert(theirs).to(device)
    x = module_input(name.split()[0].lower()).to(device).requires_grad_()
    with FlopCounterMode(display=False) as forward:
        y = ours(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert forward.get_total_flops() == expected
    assert backward.get_total_flops() == 2 * expected
    if "grouped" not in name:  # of which torch counts all pairs of channels in the backward
        with FlopCounterMode(display=False) as of_torch:
            theirs(x.detach().cpu().requires_grad_()).sum().backward()
        assert of_torch.get_total_flops() == 3 * expected


def test_products_of_a_fused_operator_are_counted(device):
    x, w = inputs([(2, 4, 7, 8), (6, 4, 3, 3)], device)
    running = torch.zeros(6, device=device), torch.ones(6, device=device)
    with FlopCounterMode(display=False) as inference:
        tritonconv.conv_bn_relu(x, w, None, *running)
    leaves = x.requires_grad_(), w.requires_grad_()
    with FlopCounterMode(display=False) as training:
        y = tritonconv.conv_bn_relu(*leaves, training=True)
        torch.autograd.grad(y.sum(), leaves)
    forward = 2 * 2 * 5 * 6 * 216
    assert (inference.get_total_flops(), training.get_total_flops()) == (forward, 3 * forward)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("gradients", [False, True])
def test_evaluated_model_passes_the_check_of_its_jit_trace(gradients, device):
    model = small_model().to(device).eval()
    x = torch.randn(2, 2, 8, 8, device=device)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(model, x)
    more = torch.randn(5, 2, 8, 8, device=device)
    assert_equal([traced(more)], [model(more)])
