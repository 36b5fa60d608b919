import itertools

import pytest
import torch
import tritonconv
from reference import DTYPE_OF_SIZE, EVERY_TILE, Dispatched
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from tritonconv import _common, conv_bn_relu
from tritonconv.conv import dispatch
from tritonconv.conv.dispatch import force_family
from tritonconv.conv.general import tiles as general_tiles
from tritonconv.conv.general.tiles import HOPPER, Tile
from tritonconv.norm import stats

SHAPES = {  # input, weight and options
    "3x3": ((3, 4, 7, 6), (6, 4, 3, 3), {"padding": 1}),
    "1x1": ((2, 20, 5, 5), (18, 20, 1, 1), {}),
    "1x1 of stride 2": ((2, 8, 5, 6), (6, 8, 1, 1), {"stride": 2}),
    "strided groups": ((2, 4, 9, 8), (6, 2, 3, 3), {"stride": 2, "padding": 1, "groups": 2}),
    "depthwise": ((2, 6, 7, 7), (6, 1, 3, 3), {"padding": 1, "groups": 6}),
    "dilated": ((2, 3, 9, 8), (5, 3, 3, 2), {"padding": 2, "dilation": 2}),
    "stem": ((2, 3, 15, 16), (8, 3, 7, 7), {"stride": 2, "padding": 3}),
    "same": ((2, 3, 6, 7), (4, 3, 3, 5), {"padding": "same"}),
}
ACTIVATIONS = {
    None: lambda y: y,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "leaky_relu(0.2)": lambda y: F.leaky_relu(y, 0.2),
    "leaky_relu(-0.5)": lambda y: F.leaky_relu(y, -0.5),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "sigmoid": F.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}
NAMES = ("output", "x", "w", "bias", "bn_weight", "bn_bias", "residual")


def torchs(x, w, b, mean, var, scale, shift, residual, training, activation, eps=1e-5, **options):
    y = F.conv2d(x, w, b, **options)
    y = F.batch_norm(y, mean, var, scale, shift, training, eps=eps)
    return ACTIVATIONS[activation](y if residual is None else y + residual)


def ours(x, w, b, mean, var, scale, shift, residual, training, activation, eps=1e-5, **options):
    return conv_bn_relu(
        x, w, b, mean, var, scale, shift,
        training=training, residual=residual, activation=activation, eps=eps, **options,
    )  # fmt: skip


class Call:
    """conv_bn_relu's tensors: those that take gradients, and [running_mean, running_var]."""

    def __init__(self, shape, residual: bool) -> None:
        x, w, self.options = shape
        C = w[0]
        self.tensors = [torch.randn(s, dtype=torch.float64) for s in (x, w, (C,), (C,), (C,))]
        y = F.conv2d(*self.tensors[:2], **self.options)
        self.tensors.append(torch.randn(y.shape, dtype=torch.float64) if residual else None)
        self.running = [torch.randn(C).double(), torch.rand(C).double() + 0.5]
        self.dy = torch.randn(y.shape, dtype=torch.float64)

    def run(self, f, device, dtype=None, vectors=None, **how) -> list[torch.Tensor]:
        """Output, gradients and running statistics, on device and in dtype if given."""
        dtypes = [dtype, dtype, dtype, vectors, vectors, dtype]
        given = [
            None if t is None else t.to(device, d or t.dtype, copy=True).requires_grad_()
            for t, d in zip(self.tensors, dtypes, strict=True)
        ]
        running = [t.to(device, vectors or t.dtype, copy=True) for t in self.running]
        x, w, b, scale, shift, residual = given
        y = f(x, w, b, *running, scale, shift, residual, **self.options, **how)
        wanted = [t for t in given if t is not None]
        return [y.detach(), *torch.autograd.grad(y, wanted, self.dy.to(y)), *running]


def assert_rounded(actual: list[torch.Tensor], expected: list[torch.Tensor], dtype) -> None:
    """The convolution's result and its gradient are rounded once each, and so are the results."""
    pixels = expected[0].numel() // expected[0].shape[1]
    for name, a, e in zip(NAMES, actual, expected, strict=False):
        bound = 8 * torch.finfo(dtype).eps * max(float(e.abs().max()), 1.0)
        if name == "bias":  # before a batch norm its gradient is what rounding leaves of a sum
            bound *= pixels**0.5
        wrong = (a.cpu().double() - e).abs() > bound
        tipped = 4 if dtype in (torch.float16, torch.bfloat16) else 0  # ReLUs, by rounding
        assert wrong.sum() <= tipped, name


@pytest.mark.covers("forward", "gradients", operator="conv_bn_relu", option="training, evaluation")
@pytest.mark.parametrize(
    ("name", "activation"),
    [*((name, "relu") for name in SHAPES), *(("1x1", name) for name in ACTIVATIONS)],
)
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_conv_bn_relu_equals_torch(name, activation, training, residual, device):
    call = Call(SHAPES[name], residual)
    how = {"training": training, "activation": activation, "eps": 1e-3}
    actual, expected = call.run(ours, device, **how), call.run(torchs, "cpu", **how)
    bound = 1e-7 if activation == "hardsigmoid" else 1e-10  # torch's 1 / 6 there is a float32
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=bound, atol=bound)


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_conv_bn_relu_in_evaluation_is_one_kernel(shape, residual, device):
    call = Call(shape, residual)
    x, w, b, scale, shift, r = (None if t is None else t.to(device) for t in call.tensors)
    running = [t.to(device) for t in call.running]
    how = {"training": False, "activation": "relu6"}
    with Dispatched() as dispatched:
        y = ours(x, w, b, *running, scale, shift, r, **call.options, **how)
    assert dispatched.ours == ["conv2d_fused"]
    expected = torchs(*call.tensors[:3], *call.running, *call.tensors[3:], **call.options, **how)
    torch.testing.assert_close(y.cpu(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.covers("forward", "gradients", operator="conv_bn_relu", option="training, evaluation")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("dtype", "vectors"),
    [
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
    ids=str,
)
def test_conv_bn_relu_rounds_as_its_dtype(dtype, vectors, training, device):
    call = Call(SHAPES["3x3"], residual=True)
    call.tensors = [t.to(dtype).double() for t in call.tensors]
    call.running = [t.to(vectors).double() for t in call.running]
    how = {"training": training, "activation": "relu"}
    actual = call.run(ours, device, dtype, vectors, **how)
    assert_rounded(actual, call.run(torchs, "cpu", **how), dtype)


def test_statistics_are_accurate_far_from_zero(device):
    x = torch.randn(8, 1, 16, 16) + 1e4
    w, running = torch.ones(3, 1, 1, 1), [torch.zeros(3), torch.zeros(3)]
    running = [t.to(device) for t in running]
    how = {"training": True, "momentum": 1.0, "activation": None}
    with force_family("general", Tile(32, 16, 16, 4, 2)):
        y = conv_bn_relu(x.to(device), w.to(device), None, *running, **how)
    expected = F.batch_norm(x.double().expand(8, 3, 16, 16), None, None, training=True)
    assert (y.cpu().double() - expected).abs().max() < 2e-3  # float32 at 1e4
    torch.testing.assert_close(
        running[1].cpu().double(), x.double().var().expand(3), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("family", ["general", "depthwise", "columns"])
def test_statistics_of_large_values(family, device, monkeypatch):
    """A mean whose square float32 does not hold, and more parts than one program combines."""
    monkeypatch.setattr(stats, "BLOCK_PARTS", 2)
    x = (3e19 + 4e18 * torch.randn(8, 4, 16, 16, dtype=torch.float64)).float()
    w = torch.ones(4, 1, 1, 1) if family != "general" else torch.eye(4)[..., None, None]
    running = [torch.zeros(4, device=device), torch.zeros(4, device=device)]
    how = {"training": True, "momentum": 1.0, "activation": None, "groups": 4 // w.shape[1]}
    with force_family(family, Tile(32, 16, 16, 4, 2) if family == "general" else None):
        y = conv_bn_relu(x.to(device), w.to(device), None, *running, **how)
    expected = F.batch_norm(x.double(), None, None, training=True)
    torch.testing.assert_close(y.cpu().double(), expected, rtol=1e-4, atol=1e-4)
    values = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(running[0].cpu().double(), values.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(running[1].cpu().double(), values.var(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("parts", [2, 16, 64])
def test_statistics_do_not_depend_on_how_they_are_combined(parts, device, monkeypatch):
    """Many small tiles, and several levels of combination."""
    monkeypatch.setattr(stats, "BLOCK_PARTS", parts)
    call = Call(((2, 4, 12, 14), (9, 4, 3, 3), {"padding": 1}), residual=False)
    how = {"training": True, "activation": "relu"}
    with force_family("general", Tile(16, 16, 16, 4, 2)):
        actual = call.run(ours, device, **how)
    expected = call.run(torchs, "cpu", **how)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("size", "tile"), EVERY_TILE, ids=str)
def test_epilogue_with_every_tile(size, tile, device):
    """Statistics, normalisation and gated residual, of more than one tile, in integers' range."""
    dtype = DTYPE_OF_SIZE[size]
    call = Call(((2, 5, 13, 9), (17, 5, 3, 3), {"padding": 1}), residual=True)
    call.tensors[0] = torch.randint(-2, 3, (2, 5, 13, 9)).double()
    call.tensors[1] = torch.randint(-2, 3, (17, 5, 3, 3)).double()
    for training in (True, False):
        how = {"training": training, "activation": "relu"}
        vectors = torch.promote_types(dtype, torch.float32)
        with force_family("general", tile):
            actual = call.run(ours, device, dtype, vectors, **how)
        expected = call.run(torchs, "cpu", **how)
        assert_rounded(actual, expected, dtype)


@pytest.mark.parametrize("training", [True, False])
def test_epilogue_in_pieces(training, device, monkeypatch):
    """Statistics, normalisation and gated residual, of a tile that is stored half by half."""
    tile = HOPPER[2][0]
    call = Call(((2, 64, 7, 5), (192, 64, 3, 3), {"padding": 1}), residual=True)
    call.tensors[0] = torch.randint(-2, 3, (2, 64, 7, 5)).double()
    call.tensors[1] = torch.randint(-2, 3, (192, 64, 3, 3)).double()
    constants = []
    prepared = general_tiles.room
    monkeypatch.setattr(
        general_tiles, "room", lambda *args: constants.append(prepared(*args)) or constants[-1]
    )
    dispatch.forget()
    how = {"training": training, "activation": "relu"}
    with force_family("general", tile):
        actual = call.run(ours, device, torch.float16, torch.float32, **how)
    assert {found["PIECES"] for found in constants} == {2}
    assert_rounded(actual, call.run(torchs, "cpu", **how), torch.float16)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_epilogue_of_the_pass_after_toeplitz_products(training, residual, device):
    call = Call(((2, 6, 9, 11), (6, 1, 3, 9), {"padding": (1, 4), "groups": 6}), residual)
    call.tensors[0] = torch.randint(-2, 3, (2, 6, 9, 11)).double()
    call.tensors[1] = torch.randint(-2, 3, (6, 1, 3, 9)).double()
    how = {"training": training, "activation": "relu"}
    with force_family("toeplitz"):
        actual = call.run(ours, device, torch.float16, torch.float32, **how)
    assert_rounded(actual, call.run(torchs, "cpu", **how), torch.float16)


def test_conv_bn_relu_with_64_bit_offsets(device, monkeypatch):
    monkeypatch.setattr(_common, "WIDE_FROM", 0)
    call = Call(SHAPES["strided groups"], residual=True)
    how = {"training": True, "activation": "relu"}
    for a, e in zip(call.run(ours, device, **how), call.run(torchs, "cpu", **how), strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-10, atol=1e-10)


@pytest.mark.covers("second gradients", operator="conv_bn_relu", option="training, evaluation")
@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "silu", "sigmoid", None])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_conv_bn_relu_second_gradients(training, activation, device):
    call = Call(((2, 2, 4, 3), (2, 2, 3, 3), {"padding": 1}), residual=True)
    how = {"training": training, "activation": activation} | call.options
    results = []
    for f, on in ((ours, device), (torchs, "cpu")):
        given = [t.to(on, copy=True).requires_grad_() for t in call.tensors]
        running = [t.to(on, copy=True) for t in call.running]
        dy = call.dy.to(on, copy=True).requires_grad_()
        x, w, b, scale, shift, residual = given
        y = f(x, w, b, *running, scale, shift, residual, **how)
        first = torch.autograd.grad(y, given, dy, create_graph=True)
        generator = torch.Generator().manual_seed(3)
        weights = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in first]
        total = sum((t * weight.to(on)).sum() for t, weight in zip(first, weights, strict=True))
        wanted = (x, w, scale, dy)  # the others come into no gradient but by the mask
        results.append([t.cpu() for t in torch.autograd.grad(total, wanted)])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


# of x, w, bn_weight, bn_bias and residual: each alone, all but one, all and none
NEEDED = [
    (n, training)
    for n in itertools.product([False, True], repeat=5)
    for training in (True, False)
    if sum(n) in ((0, 1, 4, 5) if training else (1,))
]


@pytest.mark.parametrize(("needed", "training"), NEEDED, ids=str)
def test_conv_bn_relu_computes_only_needed_gradients(needed, training, device):
    call = Call(SHAPES["3x3"], residual=True)
    how = {"training": training, "activation": "relu"}
    results = []
    for f, on in ((ours, device), (torchs, "cpu")):
        given = [t.to(on, copy=True) for t in call.tensors]
        places = (0, 1, 3, 4, 5)  # all but the convolution's bias
        wanted = [given[i].requires_grad_() for i, n in zip(places, needed, strict=True) if n]
        x, w, b, scale, shift, residual = given
        running = [t.to(on, copy=True) for t in call.running]
        y = f(x, w, b, *running, scale, shift, residual, **call.options, **how)
        if not wanted:
            assert not y.requires_grad
            continue
        with Dispatched() as dispatched:
            found = torch.autograd.grad(y, wanted, call.dy.to(y))
        results.append([t.cpu() for t in found])
        if f is ours:
            assert ("conv2d_wgrad" in dispatched.ours) == needed[1]
            assert ("conv2d_dgrad_fused" in dispatched.ours) == needed[0]
            assert ("batch_norm_bwd" in dispatched.ours) == (needed[0] or needed[1])
    if results:
        torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


class Passes(TorchDispatchMode):
    """The ops whose results have as many elements as y, but for views and empty ones."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.names = numel, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        written = any(isinstance(t, torch.Tensor) and t.numel() == self.numel for t in results)
        if written and not func.is_view and "empty" not in func.name():
            self.names.append(func._schema.name.split("::")[1])
        return result


# what needs gradients beside the residual, whether in training, and the ops that give tensors like y
RESIDUAL_PASSES = {
    "training": ("x w scale shift", True, ["batch_norm_sums_and_g", "batch_norm_bwd"]),
    "evaluation": ("x w scale shift", False, ["batch_norm_sums_and_g", "batch_norm_bwd"]),
    "frozen": ("x w", False, ["batch_norm_bwd_and_g"]),
    "frozen scale and shift": ("x w", True, ["batch_norm_sums_and_g", "batch_norm_bwd"]),
    "scale alone": ("scale", False, ["batch_norm_sums_and_g"]),
    "nothing else": ("", False, ["batch_norm_g"]),
}


@pytest.mark.parametrize("dy_format", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("residual_format", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("name", RESIDUAL_PASSES)
def test_gate_of_a_residual_is_part_of_another_kernel(name, residual_format, dy_format, device):
    """No pass of its own: a conversion of dy, where that is not channels_last, serves all."""
    needed, training, expected = RESIDUAL_PASSES[name]
    call = Call(((2, 4, 5, 6), (7, 4, 1, 1), {}), residual=True)  # x has another size than y
    results = []
    for f, on in ((ours, device), (torchs, "cpu")):
        given = dict(zip(("x", "w", "b", "scale", "shift", "residual"), call.tensors, strict=True))
        given = {n: t.to(on, copy=True) for n, t in given.items()}
        given["residual"] = given["residual"].to(memory_format=residual_format)
        wanted = [given[n].requires_grad_() for n in (*needed.split(), "residual")]
        x, w, b, scale, shift, residual = given.values()
        x = x.to(memory_format=torch.channels_last)
        running = [t.to(on, copy=True) for t in call.running]
        y = f(x, w, b, *running, scale, shift, residual, training=training, activation="relu6")
        dy = call.dy.to(on).to(memory_format=dy_format)
        with Passes(y.numel()) as passes:
            found = torch.autograd.grad(y, wanted, dy)
        results.append([t.cpu() for t in found])
        if f is ours:
            converted = [format != torch.channels_last for format in (dy_format, residual_format)]
            assert passes.names.count("clone") == sum(converted)
            assert [n for n in passes.names if n != "clone"] == expected
            assert found[-1].stride() == residual.stride()
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@pytest.mark.covers("forward", "gradients", operator="conv_bn_relu", option="unbatched")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_conv_bn_relu_of_one_image(training, device):
    x, w = torch.randn(3, 6, 5), torch.randn(4, 3, 3, 3)
    residual = torch.randn(4, 4, 3)
    running = torch.zeros(4), torch.ones(4)
    expected = F.batch_norm(F.conv2d(x, w)[None], *(t.clone() for t in running), training=training)
    expected = F.relu(expected[0] + residual)
    y = conv_bn_relu(
        x.to(device), w.to(device), None, *(t.to(device) for t in running),
        training=training, residual=residual.to(device),
    )  # fmt: skip
    torch.testing.assert_close(y.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.covers("forward", "gradients", operator="conv_bn_relu", option="empty batch")
def test_conv_bn_relu_of_no_images(device):
    x = torch.randn(0, 3, 6, 5, device=device, requires_grad=True)
    w = torch.randn(4, 3, 3, 3, device=device, requires_grad=True)
    running = torch.zeros(4, device=device), torch.ones(4, device=device)
    y = conv_bn_relu(x, w, None, *running)
    y.sum().backward()
    assert y.shape == (0, 4, 4, 3)
    assert (x.grad.shape, w.grad.abs().sum()) == (x.shape, 0)


@pytest.mark.parametrize("x_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("w_format", [torch.contiguous_format, torch.channels_last])
def test_conv_bn_relu_follows_the_formats_it_is_given(x_format, w_format, device):
    call = Call(SHAPES["3x3"], residual=False)
    call.tensors[0] = call.tensors[0].contiguous(memory_format=x_format)
    call.tensors[1] = call.tensors[1].contiguous(memory_format=w_format)
    how = {"training": True, "activation": "relu"}
    y, dx, dw, *_ = call.run(ours, device, **how)
    assert y.stride() == call.run(torchs, "cpu", **how)[0].stride()
    assert (dx.stride(), dw.stride()) == tuple(t.stride() for t in call.tensors[:2])


def test_conv_bn_relu_repeats_bit_for_bit(device):
    call = Call(SHAPES["stem"], residual=True)
    how = {"training": True, "activation": "relu"}
    first, second = (call.run(ours, device, torch.float32, torch.float32, **how) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_not_a_number_stays_one(device):
    x, w = torch.randn(2, 3, 4, 4), torch.randn(4, 3, 1, 1)
    x[0, 0, 1, 2] = float("nan")
    running = torch.zeros(4, device=device), torch.ones(4, device=device)
    y = conv_bn_relu(x.to(device), w.to(device), None, *running, activation="relu6")
    assert torch.equal(y.isnan().cpu()[0, :, 1, 2], torch.ones(4, dtype=torch.bool))
    assert y.isnan().sum() == 4


def test_autocast_casts_as_the_operators_it_fuses(device):
    call = Call(SHAPES["3x3"], residual=False)
    x, w, b, scale, shift, _ = (None if t is None else t.float().to(device) for t in call.tensors)
    running = [t.float().to(device) for t in call.running]
    with torch.autocast(device, torch.bfloat16):
        y = conv_bn_relu(x, w, b, *running, scale, shift, padding=1)
        c = tritonconv.conv2d(x, w, b, padding=1)
        expected = F.relu(tritonconv.batch_norm(c, *running, scale, shift))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"activation": "elu"}, ValueError, "conv_bn_relu: activation must be relu, relu6"),
        ({"activation": "none"}, ValueError, "or None, got 'none'"),
        ({"activation": "leaky_relu(.1)"}, ValueError, r"got 'leaky_relu\(.1\)'"),
        ({"activation": "silu(0.1)"}, ValueError, "got 'silu"),
        ({"residual": torch.zeros(2, 4, 5, 5)}, RuntimeError, "residual must have the output's"),
        ({"residual": 1.0}, TypeError, "conv_bn_relu: residual must be a Tensor, got float"),
        ({"running_var": None}, RuntimeError, "conv_bn_relu: running_var must be given in eval"),
        ({"bn_weight": torch.ones(3)}, RuntimeError, r"conv_bn_relu: expected bn_weight of shape"),
        ({"weight": torch.ones(4, 2, 3, 3)}, RuntimeError, "conv_bn_relu: given groups=1"),
        ({"input": torch.ones(2, 3, 2, 2)}, RuntimeError, "conv_bn_relu: expected a non-empty"),
        ({"eps": -1.0}, ValueError, "conv_bn_relu: eps must be non-negative"),
        ({"bias": torch.ones(4).double()}, RuntimeError, "conv_bn_relu: input, weight and bias"),
        (
            {"training": True, "input": torch.ones(1, 3, 3, 3)},
            ValueError,
            "conv_bn_relu: Expected more than 1 value per channel",
        ),
    ],
)
def test_conv_bn_relu_refuses_by_name(change, error, message, device):
    given = {
        "input": torch.ones(2, 3, 6, 6),
        "weight": torch.ones(4, 3, 3, 3),
        "running_mean": torch.zeros(4),
        "running_var": torch.ones(4),
    } | change
    given = {n: t.to(device) if isinstance(t, torch.Tensor) else t for n, t in given.items()}
    with pytest.raises(error, match=message):
        conv_bn_relu(**given)


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_module_is_its_children_one_after_another(training, residual, device):
    module = tritonconv.ConvBNReLU(3, 4, 3, padding=1, activation="relu6", device=device)
    module.train(training)
    twin = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
    twin.load_state_dict(dict(zip(twin.state_dict(), module.state_dict().values(), strict=True)))
    twin.train(training)
    x, r = torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5) if residual else None
    y = module(x.to(device), None if r is None else r.to(device))
    expected = F.relu6(twin(x) + (r if residual else 0))
    torch.testing.assert_close(y.cpu(), expected, rtol=1e-5, atol=1e-5)
    for a, e in zip(module.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-5, atol=1e-5)


def test_module_calls_children_that_have_hooks(device):
    module = tritonconv.ConvBNReLU(3, 4, 3, device=device)
    x, seen = torch.randn(2, 3, 5, 5, device=device), []
    before = module.eval()(x)
    handle = module.bn.register_forward_hook(lambda *args: seen.append(args[-1].shape))
    with pytest.warns(UserWarning, match="ConvBNReLU runs unfused: a child has hooks"):
        after = module(x)
    module(x)  # warns once
    assert seen == [(2, 4, 3, 3)] * 2
    torch.testing.assert_close(after, before)
    handle.remove()
    with Dispatched() as dispatched, torch.no_grad():
        module(x)
    assert dispatched.ours == ["conv2d_fused"]
