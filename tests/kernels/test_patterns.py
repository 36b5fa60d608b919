"""What other people's models are made of: each pattern fused, and equal to torch in float64."""

import copy
import io
import math
import pickle
import types

import pytest
import torch
import tritonconv
from reference import Dispatched
from torch import nn
from torch.nn import functional as F
from tritonconv import _others, as_torch, convert, fold, fuse


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's."""

    def __init__(self, channels, act_layer=nn.ReLU):
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = act_layer()

    def forward(self, x):
        if self.training:
            self.num_batches_tracked.add_(1)
        running = self.running_mean, self.running_var
        x = F.batch_norm(
            x, *running, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return self.act(self.drop(x))


class Conv2dSame(nn.Conv2d):
    """As timm's."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options, padding=0)

    def forward(self, x):
        pads = []
        for n, k, s in zip(x.shape[2:], self.kernel_size, self.stride, strict=True):
            pad = max((math.ceil(n / s) - 1) * s + k - n, 0)
            pads = [pad // 2, pad - pad // 2, *pads]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's."""

    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((channels,), float(value)))

    def forward(self, x):
        w, b, var, mean = (
            t.reshape(1, -1, 1, 1)
            for t in (self.weight, self.bias, self.running_var, self.running_mean)
        )
        scale = w * (var + self.eps).rsqrt()
        return x * scale + (b - mean * scale)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The layers here, as if they were those of the other libraries."""
    for kind in (BatchNormAct2d, Conv2dSame, FrozenBatchNorm2d):
        ours = getattr(_others, kind.__name__)
        monkeypatch.setitem(_others.KNOWN, f"{kind.__module__}.{kind.__qualname__}", ours)


class Depthwise(nn.Conv2d):
    """Computes what Conv2d does."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, padding=1, groups=channels, bias=False)

    def extra_repr(self):
        return "depthwise"


class Helped(nn.Module):
    """As Hugging Face's MobileNet: a function pads, as sizes tell."""

    def __init__(self):
        super().__init__()
        self.config = types.SimpleNamespace(padded=True)
        self.conv = nn.Conv2d(3, 4, 3, 2, bias=False)
        self.bn, self.act = nn.BatchNorm2d(4), nn.ReLU6()

    def forward(self, x):
        if self.config.padded:
            x = padded(x, self.conv)
        return self.act(self.bn(self.conv(x)))


def padded(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """For windows at all pixels."""
    h, w = x.shape[-2:]
    along_h, along_w = conv.kernel_size[0] - 1, conv.kernel_size[1] - 1
    if h % conv.stride[0] == 0:
        along_h = max(conv.kernel_size[0] - conv.stride[0], 0)
    if w % conv.stride[1] == 0:
        along_w = max(conv.kernel_size[1] - conv.stride[1], 0)
    return nn.functional.pad(x, (0, along_w, 0, along_h), "constant", 0.0)


class Optional(nn.Module):
    """As timm's ConvNormAct: a child that may be missing, and identities all around."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.drop_block, self.act, self.drop_path = nn.Identity(), nn.ReLU(), nn.Identity()

    def forward(self, x):
        torch._assert(x.ndim == 4, f"expected images, got {x.ndim} axes")
        y = self.act(self.drop_block(self.bn(self.conv(x))))
        aa = getattr(self, "aa", None)
        if aa is not None:
            y = aa(y)
        return F.relu(self.drop_path(self.bn(self.conv(y))) + x)


class Plain(nn.Module):
    """Convolutions without batch norm, and an addition."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.drop = nn.Identity()

    def forward(self, x):
        return self.drop(self.conv2(F.relu(self.conv1(x)))) + x


class Gated(nn.Module):
    """As a squeeze-and-excitation block: two convolutions of the means make a gate for each channel."""

    def __init__(self, act=nn.ReLU, gate=nn.Sigmoid):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x):
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


class Functions(nn.Module):
    """Activations called as functions and methods, with options."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(7))

    def forward(self, x):
        x = F.leaky_relu(self.convs[0](x), 0.2)
        x = F.leaky_relu(self.convs[1](x), negative_slope=0.3, inplace=True)
        x = F.gelu(self.convs[2](x), approximate="tanh")
        x = F.silu(self.convs[3](x), inplace=True)
        x = F.hardswish(self.convs[4](x), False)
        x = torch.sigmoid(self.convs[5](x))
        return self.convs[6](x).sigmoid()


class Rectified(nn.Module):
    """A given shortcut, and one through a convolution, without batch norm."""

    def __init__(self, act=F.relu):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(4, 4, 1),
            nn.Conv2d(3, 4, 1),
        )
        self.act = act

    def forward(self, x):
        y = self.act(self.conv2(self.act(self.conv1(x))) + self.conv3(x))
        return self.act(self.conv2(y) + F.max_pool2d(y, 1))


class Dense(nn.Module):
    """As a layer of DenseNet's: what comes is kept beside what comes of it."""

    def __init__(self, channels):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 2, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv1(F.relu(self.norm1(x), inplace=True))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


class PreActivated(nn.Module):
    """As ResNetV2's: batch norm and ReLU before each convolution, and the input added."""

    def __init__(self, projected):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1, bias=False)
        self.projection = nn.Conv2d(3, 3, 1) if projected else None

    def forward(self, x):
        y = F.relu(self.bn1(x))
        shortcut = x if self.projection is None else self.projection(y)
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + shortcut


DENSE = ["batch_norm_stats", "conv2d_normalised_stats", "batch_norm", "conv2d_fused"]
PREACTIVATED = ["conv2d_stats", "batch_norm", "conv2d_fused"]


class OwnGate(nn.Module):
    """As timm's: an activation in a class of its own."""

    def forward(self, x):
        return x.sigmoid()


class DropPath(nn.Module):
    """As timm's: leaves whole images out, in training."""

    def __init__(self, probability):
        super().__init__()
        self.probability = probability

    def forward(self, x):
        if self.probability == 0 or not self.training:
            return x
        kept = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.probability)
        return x * kept


class Stochastic(nn.Module):
    def __init__(self, probability):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.drop_path = DropPath(probability)

    def forward(self, x):
        return F.relu(self.drop_path(self.bn(self.conv(x))) + x)


class Silu(Rectified):
    def __init__(self):
        super().__init__(F.silu)


def conv(c_in=3, c_out=4):
    return nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)


# a model, and its operators in training and in evaluation
PATTERNS = {
    "batch norm and ReLU in one": (
        lambda: nn.Sequential(conv(), BatchNormAct2d(4), conv(4), BatchNormAct2d(4)),
        ["conv2d_stats", "batch_norm"] * 2,
        ["conv2d_fused"] * 2,
    ),
    "batch norm and SiLU in one": (
        lambda: nn.Sequential(conv(), BatchNormAct2d(4, nn.SiLU)),
        ["conv2d_stats", "batch_norm"],
        ["conv2d_fused"],
    ),
    "batch norm and ReLU in one, before": (
        lambda: nn.Sequential(BatchNormAct2d(3, nn.ReLU6), conv(), BatchNormAct2d(4, nn.Identity)),
        ["batch_norm_stats", "batch_norm", "conv2d_stats", "batch_norm"],
        ["batch_norm", "conv2d_fused"],
    ),
    "batch norm before": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), conv(), nn.BatchNorm2d(4), nn.SiLU(), conv(4)),
        ["batch_norm_stats", "batch_norm", "conv2d_stats", "batch_norm", "conv2d_fused"],
        ["batch_norm", "conv2d_fused", "conv2d_fused"],
    ),
    "dense": (
        lambda: nn.Sequential(Dense(3), Dense(5)),
        DENSE * 2,
        ["batch_norm", "conv2d_fused", "conv2d_fused"] * 2,
    ),
    "before a shortcut": (
        lambda: nn.Sequential(PreActivated(True), PreActivated(False)),
        ["batch_norm_stats", "batch_norm", "conv2d", *PREACTIVATED, *DENSE],
        ["batch_norm", *["conv2d_fused"] * 3, "batch_norm", *["conv2d_fused"] * 2],
    ),
    "same padding": (
        lambda: nn.Sequential(Conv2dSame(3, 4, 3, stride=2), BatchNormAct2d(4), Conv2dSame(4, 4, 2)),
        ["conv2d_stats", "batch_norm", "conv2d"],
        ["conv2d_fused", "conv2d"],
    ),
    "frozen batch norm": (
        lambda: nn.Sequential(conv(), FrozenBatchNorm2d(4), nn.ReLU(), FrozenBatchNorm2d(4)),
        ["conv2d_fused", "batch_norm"],
        ["conv2d_fused", "batch_norm"],
    ),
    "subclass": (
        lambda: nn.Sequential(Depthwise(3), nn.BatchNorm2d(3), nn.ReLU()),
        ["conv2d_stats", "batch_norm"],
        ["conv2d_fused"],
    ),
    "helper": (Helped, ["conv2d_stats", "batch_norm"], ["conv2d_fused"]),
    "identities": (Optional, ["conv2d_stats", "batch_norm"] * 2, ["conv2d_fused"] * 2),
    "addition": (Plain, ["conv2d_fused"] * 2, ["conv2d_fused"] * 2),
    "gates": (
        Gated, ["adaptive_avg_pool2d", *["conv2d_fused"] * 2], ["adaptive_avg_pool2d", *["conv2d_fused"] * 2],
    ),
    "gates of SiLU": (
        lambda: Gated(nn.SiLU), ["adaptive_avg_pool2d", *["conv2d_fused"] * 2],
        ["adaptive_avg_pool2d", *["conv2d_fused"] * 2],
    ),
    "gates of its own": (
        lambda: Gated(nn.ReLU, OwnGate),
        ["adaptive_avg_pool2d", *["conv2d_fused"] * 2],
        ["adaptive_avg_pool2d", *["conv2d_fused"] * 2],
    ),
    "paths that none leaves": (
        lambda: Stochastic(0.0),
        ["conv2d_stats", "batch_norm"],
        ["conv2d_fused"],
    ),
    "functions": (Functions, ["conv2d_fused"] * 7, ["conv2d_fused"] * 7),
    "shortcuts without batch norm": (Rectified, ["conv2d_fused"] * 4, ["conv2d_fused"] * 4),
    "SiLU behind shortcuts": (Silu, ["conv2d_fused"] * 4, ["conv2d_fused"] * 4),
    "rows of ReLU": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.ReLU(True)),
        ["conv2d_fused"] * 2,
        ["conv2d_fused"] * 2,
    ),
    **{
        f"batch norm and {act.__name__}": (
            lambda act=act: nn.Sequential(conv(), nn.BatchNorm2d(4), act(), conv(4), nn.BatchNorm2d(4), act()),
            ["conv2d_stats", "batch_norm"] * 2,
            ["conv2d_fused"] * 2,
        )
        for act in (nn.SiLU, nn.Hardswish, nn.GELU, nn.LeakyReLU, nn.Sigmoid)
    },
}  # fmt: skip


def made(name: str) -> nn.Module:
    """The pattern in float64, its buffers not those of an identity."""
    model = PATTERNS[name][0]().double()
    for module in model.modules():
        if hasattr(module, "running_var"):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def images(n: int = 7) -> torch.Tensor:
    return torch.randn(2, 3, n, n, dtype=torch.float64)


def results(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    gradients = [p.grad for p in model.parameters()]
    return [t.detach().cpu() for t in (y, x.grad, *gradients, *model.buffers())]


def launched(model: nn.Module, x: torch.Tensor) -> list[str]:
    model = copy.deepcopy(model)
    with Dispatched() as dispatched, torch.no_grad():
        model(x)
    return dispatched.ours


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_is_fused_and_equals_torch(name, training, device):
    model = made(name).train(training)
    fused = fuse(convert(model)).to(device)
    expected = PATTERNS[name][1 if training else 2]
    assert launched(fused, images().to(device)) == expected
    for n in (7, 8, 7):  # the third by the plan of the first
        x = images(n)
        pairs = zip(results(fused, x.to(device)), results(model, x), strict=True)
        for actual, right in pairs:
            torch.testing.assert_close(actual, right, rtol=1e-9, atol=1e-9)
        model.zero_grad()
        fused.zero_grad()


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_converts_and_back_and_is_pickled(name, device):
    model, x = made(name).eval(), images()
    ours = convert(model)
    with torch.no_grad():
        right = model(x)
        for copied in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            torch.testing.assert_close(copied.to(device)(x.to(device)).cpu(), right)
            assert [type(m) for m in copied.modules()] == [type(m) for m in ours.modules()]
    back = as_torch(fuse(ours))
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    assert all(isinstance(a, type(b)) for a, b in zip(ours.modules(), model.modules(), strict=True))
    assert repr(ours) == repr(model)


LEFT = {  # batch norms that are behind no convolution of their own
    "batch norm and ReLU in one, before": 1,
    "frozen batch norm": 1,
    "batch norm before": 1,
    "dense": 2,
    "before a shortcut": 2,
}
WITHOUT_NORM = {
    "addition",
    "gates",
    "gates of SiLU",
    "gates of its own",
    "functions",
    "rows of ReLU",
} | {
    "shortcuts without batch norm",
    "SiLU behind shortcuts",
}


@pytest.mark.parametrize("name", [name for name in PATTERNS if name not in WITHOUT_NORM])
def test_pattern_folds(name, device):
    model, x, lines = made(name).eval(), images(), []
    folded = fold(convert(model), report=lines.append)
    if name == "identities":  # whose convolution is called twice
        assert lines == ["bn: left, for conv is used more than once"]
        return
    assert any("folded into" in line for line in lines)
    with torch.no_grad():
        for m in (folded, fuse(folded)):
            torch.testing.assert_close(m.to(device)(x.to(device)).cpu(), model(x))
    left = [m for m in folded.modules() if "BatchNorm" in type(m).__name__]
    assert len(left) == LEFT.get(name, 0)


@pytest.mark.parametrize("child", ["1", "1.drop", "1.act"])
def test_hooks_within_a_batch_norm_with_activation(child, device):
    model = convert(made("batch norm and ReLU in one"))
    fused, x = fuse(model).to(device), images().to(device)
    for m in (model.to(device), fused):
        m.get_submodule(child).register_forward_hook(lambda module, args, y: y * 2)
    with pytest.warns(UserWarning, match=rf"Sequential runs unfused: {child} has hooks"):
        y = fused(x)
    torch.testing.assert_close(y, model(x))
    lines = []
    again = fuse(model, report=lines.append)  # the rest is fused, and nothing warns
    torch.testing.assert_close(again(x), model(x))
    assert "model: 2, 3, 3.drop, 3.act fused" in lines


def test_subclass_that_computes_something_else_is_kept():
    class Scaled(nn.Conv2d):
        def _conv_forward(self, x, w, b):
            return super()._conv_forward(x, w * 2, b)

    class Property(nn.Conv2d):
        scale = property(lambda self: 2)

    class Mixed(nn.Conv2d, type("Mixin", (), {"forward": lambda self, x: x})):  # is not first
        pass

    model = nn.Sequential(Scaled(3, 3, 1), Property(3, 3, 1), Mixed(3, 3, 1), nn.Conv2d(3, 3, 1))
    ours = convert(model)
    assert [type(layer) for layer in ours[:2]] == [Scaled, Property]
    assert [isinstance(layer, tritonconv.Conv2d) for layer in ours] == [False, False, True, True]
    assert isinstance(ours[2], Mixed)


def test_converted_layer_of_another_library_is_saved(device):
    model, file = convert(made("same padding")).eval(), io.BytesIO()
    torch.save(fuse(model), file)
    file.seek(0)
    x = images().to(device)
    loaded = torch.load(file, weights_only=False).to(device)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model.to(device)(x))
    assert launched(loaded, x) == PATTERNS["same padding"][2]


class Unhelpful:
    """Functions around a convolution that are not called as a whole."""

    def writes(self, x):
        x[0] = 0
        return x if x.shape[0] > 1 else x + 1

    def writes_in_place(self, x):
        return x.add_(1) if x.shape[0] > 1 else x

    def takes_out(self, x):
        return torch.add(x, 1, out=x) if x.shape[0] > 1 else x

    def prints(self, x):
        return print(x) if x.shape[0] > 1 else x

    def calls_the_module(self, x):
        return self(x) if x.shape[0] > 1 else x

    def reads_the_weight(self, x):
        return x * self.weight.sum() if x.shape[0] > 1 else x

    def reads_a_global(self, x):
        return x * COUNT if x.shape[0] > 1 else x


COUNT = [1]


@pytest.mark.parametrize("name", [name for name in vars(Unhelpful) if name[0] != "_"])
def test_helper_that_does_more_is_not_understood(name):
    helper = vars(Unhelpful)[name]

    class Own(Helped):
        def forward(self, x):
            return self.act(self.bn(self.conv(helper(self.conv, x))))

    lines = []
    assert type(fuse(convert(Own()), report=lines.append)) is Own
    (line,) = lines
    assert line.startswith("conv: kept, for ")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.config, "padded", False),
        lambda m: setattr(m, "config", types.SimpleNamespace(padded=())),
    ],
    ids=["value", "object"],
)
def test_what_was_read_of_a_configuration_is_looked_at_again(change, device):
    fused, x = fuse(convert(made("helper"))).to(device), images().to(device)
    fused(x)
    change(fused)
    with pytest.warns(UserWarning, match="Helped runs unfused: it has another config.padded"):
        assert fused(x).shape == (2, 4, 3, 3)


def test_child_that_was_missing_is_called_when_it_comes(device):
    fused, x = fuse(convert(made("identities"))).to(device).eval(), images().to(device)
    before = fused(x)
    fused.aa = nn.Tanh()
    with pytest.warns(UserWarning, match="Optional runs unfused: it has another aa"):
        assert not torch.equal(fused(x), before)


class Tests:
    """Forwards that depend on what is not looked at again."""

    def a_configuration(self, x):
        """branches on a SimpleNamespace"""
        return self.act(self.bn(self.conv(x))) if self.config is not None else x

    def what_configurations_hold(self, x):
        """reads sizes of a SimpleNamespace"""
        return self.act(self.bn(self.conv(x))) * self.config.sizes[0]

    def an_attribute_that_is_made(self, x):
        """looks an attribute up in its own way"""
        return self.act(self.bn(self.conv(x))) * getattr(self, "scale", 1)

    def an_attribute_that_is_missing(self, x):
        """reads missing, which there is not"""
        return self.act(self.bn(self.conv(x))) * getattr(self, "missing")  # noqa: B009


@pytest.mark.parametrize("name", [name for name in vars(Tests) if name[0] != "_"])
def test_attributes_that_cannot_be_looked_at_again(name):
    forward = vars(Tests)[name]
    members = {"forward": forward}
    if "made" in name:
        members["__getattr__"] = lambda self, n: (
            2 if n == "scale" else nn.Module.__getattr__(self, n)
        )
    kind = type("Own", (Helped,), members)
    model, lines = kind(), []
    model.config.sizes = [2]
    assert type(fuse(convert(model), report=lines.append)) is kind
    assert forward.__doc__ in lines[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # dynamo's own
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_patterns_compile_whole(training, device):
    torch._dynamo.reset()
    model = nn.Sequential(BatchNormAct2d(3), Conv2dSame(3, 4, 3, stride=2), BatchNormAct2d(4))
    fused = fuse(convert(model.double().train(training))).to(device)
    compiled = torch.compile(copy.deepcopy(fused), fullgraph=True, backend="aot_eager")
    x = images().to(device)
    for actual, right in zip(results(compiled, x), results(fused, x), strict=True):
        torch.testing.assert_close(actual, right)


def test_report_tells_where_a_group_is_fused():
    class Modes(Plain):
        def forward(self, x):
            y = self.conv1(x)
            return self.conv2(F.relu(y)) if self.training else F.relu(self.conv2(y))

    lines = []
    fuse(convert(Modes()), report=lines.append)
    assert lines == [
        "model: conv1, relu, conv2 fused in training",
        "model: conv2, relu fused in evaluation",
    ]


UNUSUAL = ["batch norm before", "dense", "before a shortcut", "SiLU behind shortcuts"]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", [*UNUSUAL, "rows of ReLU", "addition"])
def test_pattern_that_is_to_be_recomputed(name, training, device):
    model, x = made(name).train(training), images()
    fused = fuse(convert(model), recompute=True).to(device)
    for actual, right in zip(results(fused, x.to(device)), results(model, x), strict=True):
        torch.testing.assert_close(actual, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", UNUSUAL)
def test_second_gradients_of_patterns(name, training, device):
    model, found = made(name).train(training), []
    for m, on in ((fuse(convert(model)).to(device), device), (model, "cpu")):
        x = torch.linspace(-2, 3, 150, dtype=torch.float64, device=on).sin().view(2, 3, 5, 5)
        x = x.requires_grad_()
        wanted = [x, *m.parameters()]
        first = torch.autograd.grad(m(x).square().sum(), wanted, create_graph=True)
        total = sum(t.square().mean() for t in first)
        second = torch.autograd.grad(total, [x, m.get_parameter(next(iter(m.state_dict())))])
        found.append([t.detach().cpu() for t in (*first, *second)])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("frozen", ["norm1", "conv1", "norm2", "conv2", "input", "all but norm1"])
def test_partial_gradients_behind_a_batch_norm(frozen, device):
    model, found = Dense(3).double(), []
    for m, on in ((fuse(convert(model)).to(device), device), (model, "cpu")):
        x = torch.linspace(-2, 3, 150, dtype=torch.float64, device=on).sin().view(2, 3, 5, 5)
        x.requires_grad_(frozen not in ("input", "all but norm1"))
        for name, p in m.named_parameters():
            inside = name.startswith("norm1") if "all" in frozen else not name.startswith(frozen)
            p.requires_grad_(inside)
        wanted = [t for t in (x, *m.parameters()) if t.requires_grad]
        found.append([t.cpu() for t in torch.autograd.grad(m(x).square().sum(), wanted)])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_batch_norm_in_front_under_autocast(device):
    """What it reads is float32, as is what torch's batch norm gives then."""
    model = convert(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1))).to(device)
    x = 100 + torch.randn(2, 3, 6, 6, device=device)  # in half precision the mean would be lost
    fused = fuse(model)
    with torch.autocast(device, torch.bfloat16):
        torch.testing.assert_close(fused(x), model(x))


def test_paths_that_some_leave(device):
    model = made("paths that none leaves")
    model.drop_path.probability = 0.5
    fused, x, found = fuse(convert(model)).to(device), images().to(device), []
    for m in (fused, convert(model).to(device)):
        torch.manual_seed(0)
        found.append([m.train()(x), m.eval()(x)])
    torch.testing.assert_close(*found)
    assert launched(fused.eval(), x) == ["conv2d_fused"]


def test_mode_of_what_was_read_is_looked_at_again(device):
    model = made("paths that none leaves")
    model.drop_path.probability = 1.0
    fused, x = fuse(convert(model)).to(device), images().to(device)
    fused.drop_path.eval()
    with pytest.warns(UserWarning, match="Stochastic runs unfused: drop_path is in another mode"):
        assert not torch.equal(fused(x), F.relu(x))  # as if every path were left
    fused.drop_path.train()
    fused.drop_path.register_forward_hook(lambda module, args, y: y * 0)
    torch.testing.assert_close(fused.eval()(x), F.relu(x))
