import copy
import inspect
import io
import linecache
import pickle
import random
import warnings

import pytest
import torch
import tritonconv
from beside import beside
from reference import Dispatched
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from tritonconv import BatchNorm2d, Conv2d, ConvTranspose2d, as_torch, fold, fuse, nets
from tritonconv.nets.mobilenet_v2 import InvertedResidual
from tritonconv.nets.resnet import BasicBlock, Bottleneck


def conv_bn(c_in, c_out, k=3, stride=1, **options):
    conv = Conv2d(c_in, c_out, k, stride, padding=k // 2, bias=False, **options)
    return [conv, BatchNorm2d(c_out)]


class Trunk(nn.Module):
    """A stem and some blocks, as the networks have them, but small."""

    def __init__(self, *blocks: nn.Module, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8, stride=2), act())
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.LazyLinear(3)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


TRUNKS = {
    "ResNet": lambda: Trunk(BasicBlock(8, 8), BasicBlock(8, 6, 2), BasicBlock(6, 6)),
    "ResNet of bottlenecks": lambda: Trunk(Bottleneck(8, 2), Bottleneck(8, 2, 2), Bottleneck(8, 2)),
    "MobileNetV2": lambda: Trunk(
        InvertedResidual(8, 8, 1, 1), InvertedResidual(8, 6, 2, 2), InvertedResidual(6, 6, 1, 2),
        act=nn.ReLU6,
    ),
}  # fmt: skip


def made(model: nn.Module, device: str, size: int = 8) -> nn.Module:
    """model in float64, its lazy layers initialised, its batch norms not the identity."""
    model = model.double().to(device)
    model(torch.zeros(2, 3, size, size, dtype=torch.float64, device=device))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model


def images(device, *shape):
    return torch.randn(shape or (2, 3, 8, 8), dtype=torch.float64, device=device)


def results(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, input's gradient, parameters' gradients and buffers, on the CPU."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [t.detach().cpu().clone() for t in (y, x.grad, *gradients, *model.buffers())]


def assert_same(a: nn.Module, b: nn.Module, x: torch.Tensor, b_x: torch.Tensor | None = None):
    pairs = zip(results(a, x), results(b, x if b_x is None else b_x), strict=True)
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def ops(model: nn.Module, x: torch.Tensor) -> list[str]:
    """What runs in a forward, of a copy: model's statistics stay."""
    model = copy.deepcopy(model)
    with Dispatched() as dispatched, torch.no_grad():
        model(x)
    return dispatched.ours


@pytest.mark.parametrize(
    ("blocks", "act"),
    [
        ((BasicBlock(8, 8), BasicBlock(8, 6, 2)), nn.ReLU),
        ((InvertedResidual(8, 8, 1, 2),), nn.ReLU6),
    ],
    ids=["ResNet", "MobileNetV2"],
)
def test_fused_network_trains_in_lockstep_with_torch(blocks, act, device):
    model = made(Trunk(*copy.deepcopy(blocks), act=act), device)
    fused, twin = fuse(model), as_torch(model).cpu()
    both = [
        (net, torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)) for net in (fused, twin)
    ]
    for _ in range(50):
        x, target = images("cpu", 4, 3, 8, 8), torch.randint(3, (4,))
        for net, optimizer in both:
            on = device if net is fused else "cpu"
            optimizer.zero_grad()
            F.cross_entropy(net(x.to(on)), target.to(on)).backward()
            optimizer.step()
    for (name, a), e in zip(fused.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    ("training", "recompute"),
    [(True, False), (True, True), (False, False)],
    ids=["training", "training, recompute", "evaluation"],
)
@pytest.mark.parametrize("name", TRUNKS)
def test_fused_network_equals_torch(name, training, recompute, device):
    model = made(TRUNKS[name](), device).train(training)
    x = images(device)
    assert_same(fuse(model, recompute), as_torch(model).cpu(), x, x.cpu())


def test_recompute_goes_through_several_segments(device, monkeypatch):
    monkeypatch.setattr("tritonconv._chain.SEGMENT", 2)
    model = made(Trunk(*(BasicBlock(8, 8) for _ in range(5))), device)
    x = images(device)
    assert_same(fuse(model, recompute=True), as_torch(model).cpu(), x, x.cpu())


def kept_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """Of the tensors that a forward keeps for the backward, but for the parameters."""
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    storages = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage._cdata not in parameters:
            storages[storage._cdata] = storage  # kept alive, lest another gets its place
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize(
    ("name", "goal", "recomputed_goal"), [("resnet50", 0.80, 0.54), ("resnet18", 0.67, 0.52)]
)
def test_fused_network_keeps_fewer_bytes(name, goal, recomputed_goal):
    options = {"device": "meta", "dtype": torch.bfloat16}
    with torch.device("meta"):
        model = getattr(nets, name)().to(torch.bfloat16).to(memory_format=torch.channels_last)
    x = torch.empty(8, 3, 224, 224, **options).to(memory_format=torch.channels_last)
    torchs = kept_bytes(as_torch(model), x)
    assert kept_bytes(fuse(model), x) <= goal * torchs
    assert kept_bytes(fuse(model, recompute=True), x) <= recomputed_goal * torchs


def test_fuse_reports_every_convolution():
    model = nn.Sequential(
        nn.Sequential(*conv_bn(3, 4), nn.ReLU6()),
        Conv2d(4, 4, 3),
        BasicBlock(4, 6),
        nn.Conv2d(6, 6, 1),
        Conv2d(6, 6, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        Conv2d(6, 6, 1),
        nn.ReLU(),
    )
    lines = []
    fuse(model, report=lines.append)
    assert lines == [
        "0: 0, 1, 2 fused",
        "1: kept, for nothing that could be fused with it uses its result alone",
        "2: conv1, bn1, relu, conv2, bn2, downsample.0, downsample.1, add, relu fused",
        "3: kept, for it is a torch.nn.modules.conv.Conv2d; convert() the model first",
        "4: kept, for it pads with circular",
        "model: 6, 7 fused",
    ]


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "googlenet", "mobilenet_v2", "vgg11_bn", "vgg11", "nin", "alexnet"])  # fmt: skip
def test_all_of_our_networks_fuse(name):
    with torch.device("meta"):
        model = getattr(nets, name)()
    lines = []
    fused = fuse(model, report=lines.append)
    assert lines
    assert all(" fused" in line for line in lines)
    assert list(fused.state_dict()) == list(model.state_dict())
    assert isinstance(fused, type(model))
    assert [n for n, _ in fused.named_modules()] == [n for n, _ in model.named_modules()]


def test_fused_model_survives_copying_and_pickling(device):
    model = fuse(made(TRUNKS["ResNet"](), device))
    x = images(device)
    expected = ops(model, x)
    assert "conv2d_stats" in expected
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert ops(copied, x) == expected
        assert_same(copied, copy.deepcopy(model), x)


class Altered:
    """What may be done to a layer after fusing, and what it must then show."""

    @staticmethod
    def hook(layer):
        layer.register_forward_hook(lambda module, args, y: y * 2)

    @staticmethod
    def pre_hook(layer):
        layer.register_forward_pre_hook(lambda module, args: (args[0] * 2,))

    @staticmethod
    def parametrization(layer):
        nn.utils.parametrizations.weight_norm(layer)
        layer.parametrizations.weight.original0.data *= 2

    @staticmethod
    def subclass(layer):
        kind = type(layer)
        layer.__class__ = type("Twice", (kind,), {"forward": lambda s, x: 2 * kind.forward(s, x)})

    @staticmethod
    def own_forward(layer):
        layer.forward = lambda x: 2 * type(layer).forward(layer, x)


ALTERATIONS = [
    *(
        (alter.__func__, "blocks.1.conv2")
        for name, alter in vars(Altered).items()
        if name[0] != "_"
    ),
    (Altered.hook, "blocks.1.downsample.0"),
    (Altered.pre_hook, "stem.0"),
]


@pytest.mark.parametrize(("alter", "path"), ALTERATIONS)
def test_altered_layer_is_called_itself(alter, path, device):
    model = made(TRUNKS["ResNet"](), device)
    fused = fuse(model)
    for m in (model, fused):
        alter(m.get_submodule(path))
    x = images(device)
    with pytest.warns(UserWarning, match="runs unfused: "):
        assert_same(fused, model, x)
    assert_same(fused, model, x)  # warns once
    assert "conv2d_stats" in ops(fused, x)  # the other blocks stay fused


def test_hooks_of_containers_and_activations_are_called(device):
    fused = fuse(made(TRUNKS["ResNet"](), device))
    called = []
    for path in ("blocks.0", "blocks.1.downsample", "blocks.2.relu"):
        hook = lambda module, args, y, path=path: called.append(path)  # noqa: E731
        fused.get_submodule(path).register_forward_hook(hook)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fused(images(device))
    assert called == ["blocks.0", "blocks.1.downsample", *["blocks.2.relu"] * 2]
    told = [warning for warning in caught if warning.category is UserWarning]
    # two blocks call their layers; the first needs not, but what was one with it is one no more
    assert len(told) == 3


def test_frozen_batch_norm_in_training(device):
    model = made(TRUNKS["ResNet"](), device)
    for path in ("blocks.0.bn1", "blocks.1.downsample.1", "stem.1"):
        model.get_submodule(path).eval().requires_grad_(False)
    x = images(device)
    assert_same(fuse(model), as_torch(model).cpu(), x, x.cpu())


@pytest.mark.parametrize("options", [{"momentum": None}, {"track_running_stats": False}, {"affine": False}], ids=str)  # fmt: skip
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_batch_norms_options(options, training, device):
    model = nn.Sequential(Conv2d(3, 4, 3), BatchNorm2d(4, **options), nn.ReLU()).double().to(device)
    model.train(training)
    fused, twin = fuse(model), as_torch(model).cpu()
    for _ in range(2):
        x = images(device)
        assert_same(fused, twin, x, x.cpu())
    assert "conv2d_stats" in ops(fused.train(), images(device))


class Branches(nn.Module):
    """As Inception's: two branches, one of two units."""

    def __init__(self):
        super().__init__()
        unit = lambda *c: nn.Sequential(*conv_bn(*c), nn.ReLU())  # noqa: E731
        self.one, self.two = unit(3, 4, 1), nn.Sequential(unit(3, 2, 1), unit(2, 5, 3))

    def forward(self, x):
        return torch.cat([self.one(x), self.two(x)], 1)


class TwoForms(nn.Module):
    """As RepVGG's: both operands of the sum are normalised convolutions."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Sequential(*conv_bn(3, 4)), nn.Sequential(*conv_bn(3, 4, 1))

    def forward(self, x):
        return F.relu(self.wide(x) + self.narrow(x))


class GivenResidual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.other = *conv_bn(3, 3), nn.Tanh()

    def forward(self, x):
        y = self.bn(self.conv(x))
        y += self.other(x)
        return F.relu(y, inplace=True)


class BroadcastResidual(nn.Module):
    """As diffusion models have it: a number for each channel is added."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv_bn(3, 3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)) + x.mean((2, 3), keepdim=True))


class WritesToItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv_bn(3, 3)

    def forward(self, x):
        x = x * 1
        x += self.bn(self.conv(x.clone()))
        return torch.relu(x)


class UsedTwice(nn.Module):
    """One convolution and batch norm called twice, and a result that two read."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv_bn(3, 3)

    def forward(self, x):
        y = F.relu(self.bn(self.conv(x)))
        return F.relu6(self.bn(self.conv(y))) + y


class BothModes(nn.Module):
    """Does something else in training than in evaluation."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv_bn(3, 3)

    def forward(self, x):
        y = self.bn(self.conv(x)).relu()
        return y * 3 if self.training else y


CONTAINERS = {
    "branches": (Branches, {"conv2d_stats": 3}),
    "two forms": (TwoForms, {"conv2d_stats": 2, "batch_norm": 1}),
    "given residual": (GivenResidual, {"conv2d_stats": 1, "batch_norm": 1}),
    "broadcast residual": (BroadcastResidual, {"conv2d_stats": 1, "batch_norm": 1}),
    "writes to its input": (WritesToItsInput, {"conv2d_stats": 1, "batch_norm": 1}),
    "used twice": (UsedTwice, {"conv2d_stats": 2}),
    "both modes": (BothModes, {"conv2d_stats": 1}),
    "transposed": (
        lambda: nn.Sequential(
            ConvTranspose2d(3, 4, 4, 2, 1, bias=False), BatchNorm2d(4), nn.ReLU(),
            ConvTranspose2d(4, 6, 3, 2, output_padding=1, groups=2, bias=False), BatchNorm2d(6), nn.ReLU6(),
        ),
        {"conv2d_dgrad_stats": 2, "batch_norm": 2},
    ),
    "linear bottleneck": (
        lambda: nn.Sequential(*conv_bn(3, 4), *conv_bn(4, 3), nn.ReLU()),
        {"conv2d_stats": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", CONTAINERS)
def test_container_is_fused_and_equals_torch(name, training, device):
    make, expected = CONTAINERS[name]
    model = made(make(), device).train(training)
    fused, x = fuse(model), images(device)
    assert_same(fused, as_torch(model).cpu(), x, x.cpu())
    called = ops(fused.train(), x)
    assert {op: called.count(op) for op in expected} == expected


def test_without_batch_norm_groups_are_fused_in_inference(device):
    model = nn.Sequential(Conv2d(3, 4, 3), nn.ReLU(), Conv2d(4, 5, 3, bias=False), nn.ReLU6())
    fused, x = fuse(model.double().to(device)), images(device)
    assert ops(fused, x) == ["conv2d_fused", "conv2d_fused"]
    with torch.no_grad():
        torch.testing.assert_close(fused(x).cpu(), as_torch(model).cpu()(x.cpu()))
    assert_same(fused, as_torch(model).cpu(), x, x.cpu())


class ReadsShape(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = BasicBlock(3, 3)

    def forward(self, x):
        return self.block(x) if x.shape[0] > 1 else x


class KeepsState(ReadsShape):
    def forward(self, x):
        self.last = x
        return self.block(x)


class Draws(ReadsShape):
    def forward(self, x):
        return self.block(x) if random.random() < 2 else x


@pytest.mark.parametrize("kind", [ReadsShape, KeepsState, Draws])
def test_forward_that_is_not_understood_stays(kind, device):
    model = made(nn.Sequential(kind(), *conv_bn(3, 3), nn.ReLU()), device)
    fused, x = fuse(model), images(device)
    assert type(fused[0]) is kind  # its block, and the rest around it, are fused
    assert ops(fused, x).count("conv2d_stats") == 3
    assert_same(fused, as_torch(model).cpu(), x, x.cpu())
    assert kind is not KeepsState or isinstance(fused[0].last, torch.Tensor)


class Unit(nn.Module):
    """A group, and what a forward may find beside it."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv_bn(3, 3)
        self.relu = nn.ReLU(inplace=True)
        self.seen, self.steps = [], 0

    def unit(self, x):
        return F.relu(self.bn(self.conv(x)))


TOTAL = 3


class NotUnderstood:
    """Forwards of a Unit, and what the report says of each."""

    def tests_a_value(self, x):
        """branches on a value"""
        return self.unit(x) if x.sum() > 0 else x

    def tests_a_size(self, x):
        """branches on a value"""
        if x.shape[0] == 2:
            return self.unit(x) + 1
        return self.unit(x)

    def no_grad(self, x):
        """has a statement 'with'"""
        with torch.no_grad():
            return self.unit(x)

    def tries(self, x):
        """has a statement 'try'"""
        try:
            return self.unit(x)
        finally:
            pass

    def loops(self, x):
        """has a statement 'while'"""
        while self.steps:
            x = self.unit(x)
        return self.unit(x)

    def declares(self, x):
        """declares variables that are not its own"""
        global TOTAL
        TOTAL = 3
        return self.unit(x)

    def keeps(self, x):
        """writes to an attribute"""
        self.last = self.unit(x)
        return self.last

    def counts(self, x):
        """writes to what is not a variable"""
        self.steps += 1
        return self.unit(x)

    def appends(self, x):
        """reads append of a list that an attribute holds"""
        self.seen.append(1)
        return self.unit(x)

    def writes(self, x):
        """writes to an element"""
        y = self.unit(x)
        y[0] = 0
        return y

    def prints(self, x):
        """calls print"""
        print(end="")
        return self.unit(x)

    def switches(self, x):
        """calls set_grad_enabled"""
        torch.set_grad_enabled(True)
        return self.unit(x)

    def draws(self, x):
        """calls Random.random"""
        return self.unit(x) * random.random()

    def reads_a_global(self, x):
        """reads a variable that is not its own"""
        return self.unit(x) * TOTAL

    def yields(self, x):
        """is no Python function that returns"""
        yield self.unit(x)

    @torch.no_grad()
    def is_decorated(self, x):
        """has a decorator"""
        return self.unit(x)

    def iterates(self, x):
        """iterates over a value"""
        for image in x:
            x = self.unit(x) + image
        return x

    def defines(self, x):
        """has what is not read, a Lambda"""
        return (lambda y: y)(self.unit(x))

    def calls_itself(self, x):
        """calls itself"""
        return self.unit(self.forward(x))

    def calls_a_method_of_none(self, x):
        """calls a method of None"""
        y = None
        return self.unit(x) + y.sum()

    def reads_the_mode_of_another(self, x):
        """reads another module's mode"""
        return self.unit(x) if self.bn.training else x


@pytest.mark.parametrize("name", [name for name in vars(NotUnderstood) if name[0] != "_"])
def test_report_names_the_line_that_is_not_understood(name):
    forward = vars(NotUnderstood)[name]
    kind = type("Own", (Unit,), {"forward": forward})
    lines = []
    fused = fuse(nn.Sequential(kind()), report=lines.append)
    assert type(fused[0]) is kind
    (line,) = lines
    assert line.startswith("0.conv: kept, for ")
    assert inspect.unwrap(forward).__doc__ in line
    assert (
        "decorator" in line
        or "no Python" in line
        or "declares" in line
        or "(line " in line
        or "itself" in line
    )


def test_code_that_is_not_what_its_file_says_stays():
    """As where the file was written to after it was imported."""
    text = "def forward(self, x):\n    return self.unit(x){}\n"
    linecache.cache["written_to.py"] = (
        1,
        None,
        text.format(" * 2").splitlines(True),
        "written_to.py",
    )
    names = {}
    exec(compile(text.format(""), "written_to.py", "exec"), names)
    lines = []
    fuse(type("Own", (Unit,), {"forward": names["forward"]})(), report=lines.append)
    assert lines == ["conv: kept, for forward does not do what its source says"]
    exec(compile(text.format(" * 2"), "written_to.py", "exec"), names)
    lines = []
    fuse(type("Own", (Unit,), {"forward": names["forward"]})(), report=lines.append)
    assert lines == ["model: conv, bn, relu fused"]


def doubled(x, by=2):
    """A function beside the model's classes."""
    return x * by


class Understood:
    """Forwards of Blocks: each is fused, and equals its own."""

    def loops(self, x):
        for i, layer in enumerate(self.layers):
            x = F.relu(layer[1](layer[0](x)), inplace=True)
            if i + 1 < len(self.layers):
                continue
        return x

    def gathers(self, x):
        found = [x]
        for conv, bn in self.layers:
            found.append(torch.relu(bn(conv(found[-1]))))
        return torch.cat([doubled(y) for y in found], dim=1)

    def unpacks(self, x):
        a, b = self.layers
        y = a[1](a[0](x)).relu_()
        (c, _), d = [y, y + 1], y
        return b[1](b[0](c)) + d

    def tests(self, x):
        a, _b = list(self.layers)
        if self.shortcut is not None and isinstance(x, torch.Tensor):
            x = self.shortcut(x)
        y = a[1](a[0](x)) if self.training or self.scale == 2 else x
        y = F.relu(y) * self.scale
        return getattr(self, f"l{'ayers'}")[-1][0](y)

    def keeps(self, x):
        a, b = self.layers
        y = a[1](a[0](x))
        identity = y
        y = y + 1
        y += identity
        z = b[1](b[0](x))
        z += y
        return F.relu(z) + identity

    def interleaves(self, x):
        (a, b), (c, d) = self.layers
        y, z = b(a(x)), d(c(x))
        y = self.act(y)
        z = self.act(z)
        return y * z

    def splits(self, x):
        (a, bn), _ = self.layers
        n, c, h, w = x.shape
        y = F.relu(bn(a(x))).reshape(n, c, h * w)
        first, second = y.chunk(2, dim=2)
        return {"first": first, "all": (y, second[:, 1:])}


class Blocks(nn.Module):
    def __init__(self, shortcut=None):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(*conv_bn(3, 3)) for _ in range(2))
        self.shortcut, self.scale, self.act = shortcut, 2, nn.ReLU(inplace=True)


def leaves(y) -> list[torch.Tensor]:
    return torch.utils._pytree.tree_leaves(y)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", [name for name in vars(Understood) if name[0] != "_"])
def test_forward_that_is_understood_is_fused(name, training, device):
    kind = type("Own", (Blocks,), {"forward": vars(Understood)[name]})
    model = kind().double().to(device).train(training)
    fused, twin, x = fuse(model), as_torch(model).cpu(), images(device, 2, 3, 4, 4)
    assert {"interleaves": 2, "gathers": 2}.get(name, 1) <= ops(fused, x).count(
        "conv2d_stats" if training else "conv2d_fused"
    )
    for _ in range(2):
        for a, b in zip(leaves(fused(x.clone())), leaves(twin(x.cpu())), strict=True):
            torch.testing.assert_close(a.cpu(), b)
    for a, b in zip(fused.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a.cpu(), b)


class Dense(nn.Module):
    """As DenseNet's layers: called with a list, which no fused forward of their own takes."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv_bn(3, 3)

    def forward(self, xs):
        return F.relu(self.bn(self.conv(sum_of(xs))))


def sum_of(xs):
    total = xs[0]
    for x in xs[1:]:
        total = total + x
    return total


class DenseBlock(nn.ModuleDict):
    def forward(self, x):
        found = [x]
        for _, layer in self.items():
            found.append(layer(found))
        return sum_of(found)


def test_containers_called_with_lists_are_fused_with_their_caller(device):
    model, lines = made(DenseBlock({"a": Dense(), "b": Dense()}), device), []
    fused, x = fuse(model, report=lines.append), images(device)
    assert lines == ["model: a.conv, a.bn, relu fused", "model: b.conv, b.bn, relu_1 fused"]
    assert_same(fused, as_torch(model).cpu(), x, x.cpu())
    assert ops(fused, x) == ["conv2d_stats", "batch_norm"] * 2


class ReadsAttributes(Unit):
    """Of each kind that a forward may depend on."""

    scale = 2

    def __init__(self):
        super().__init__()
        self.act, self.order, self.extra = F.relu, [1, 2], None

    def forward(self, x):
        y = self.act(self.bn(self.conv(x))) * self.scale
        for factor in self.order:
            y = y * factor
        return y if self.extra is None else self.extra(y)


@pytest.mark.parametrize(
    ("name", "value"),
    [("act", torch.sigmoid), ("order", [1, 3]), ("extra", nn.Tanh()), ("scale", 3), ("conv", nn.Identity())],
    ids=["function", "list", "child", "class", "layer"],
)  # fmt: skip
def test_attributes_that_were_read_are_looked_at_again(name, value, device):
    model = ReadsAttributes().double().to(device)
    fused, x = fuse(model), images(device)
    torch.testing.assert_close(fused(x), model(x))
    for m in (model, fused):
        setattr(m, name, copy.deepcopy(value))
    with pytest.warns(UserWarning, match=f"ReadsAttributes runs unfused: .*{name}"):
        y = fused(x)
    torch.testing.assert_close(y, model(x))
    torch.testing.assert_close(fused(x), model(x))  # warns once


def test_arguments_with_defaults(device):
    class Own(Unit):
        def forward(self, x, identity=None, other=None, twice=False):
            y = self.bn(self.conv(x))
            if identity is not None:
                y += identity
            y = F.relu(y)
            if other is None:
                other = y
            return y + other * 2 if twice else y + other

    model = Own().eval().double().to(device)
    fused, x = fuse(model), images(device)
    calls = [((x,), {}), ((x, x), {}), ((x, None), {}), ((x,), {"identity": x}), ((x, None, x), {}),
             ((x, x, x), {}), ((x, x, x, True), {}), ((), {"identity": x, "x": x})]  # fmt: skip
    for args, kwargs in calls:
        with torch.no_grad():
            torch.testing.assert_close(fused(*args, **kwargs), model(*args, **kwargs))
    assert [ops(Called(fused, *n), x) for n in ((), (x,))] == [["conv2d_fused"]] * 2
    assert inspect.signature(fused.forward) == inspect.signature(model.forward)
    with pytest.raises(TypeError, match="multiple values"):
        fused(x, x=x)


def test_arguments_without_defaults_may_be_none(device):
    """As diffusers' residual blocks: an embedding, or none."""

    class Own(Unit):
        def forward(self, x, shift):
            y = self.bn(self.conv(x))
            if shift is not None:
                shift = shift[:, :, None, None]
                if shift is not None:
                    y = y + shift
            return F.relu(y)

    model, x = Own().eval().double().to(device), images(device)
    fused, shift = fuse(model), torch.randn(2, 3, dtype=torch.float64, device=device)
    for given in (None, shift):
        with torch.no_grad():
            torch.testing.assert_close(fused(x, given), model(x, given))
        assert ops(Called(fused, given), x) == ["conv2d_fused"]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'shift'"):
        fused(x)


def test_elements_of_what_a_module_returns_may_be_none():
    class Own(Unit):
        def forward(self, x):
            y = self.relu(x)[0]
            return F.relu(self.bn(self.conv(x))) if y is not None else x

    lines = []
    fuse(Own(), report=lines.append)
    assert lines[0].startswith("conv: kept, for ")
    assert "branches on a value" in lines[0]


class Called(nn.Module):
    def __init__(self, model, *others):
        super().__init__()
        self.model, self.others = model, others

    def forward(self, x):
        return self.model(x, *self.others)


class Mutated:
    """Forwards of a Unit that write in place to what a group reads, or others hold."""

    def input_between(self, x):
        y = self.bn(self.conv(x))
        i = self.relu(x)
        return F.relu(y + i)

    def alias_of_input_between(self, x):
        v = x.view(x.shape)
        y = self.conv(x)
        v *= 2
        return F.relu(self.bn(y)) + v

    def output_later(self, x):
        y = F.relu(self.bn(self.conv(x)))
        keep = y
        y += x
        return torch.cat((y, keep), 1)

    def added_to_what_is_held(self, x):
        z = x * 2
        keep = z
        z += self.bn(self.conv(x))
        return torch.cat((F.relu(z), keep), 1)

    def statistics_between(self, x):
        c = self.conv(x)
        z = self.bn(x)
        return F.relu(self.bn(c)) + z

    def by_a_layer_of_unknown_effect(self, x):
        c = self.conv(x)
        self.writer(x)
        return F.relu(self.bn(c)) + x


class Writer(nn.Module):
    def forward(self, x):
        x.mul_(3)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", [name for name in vars(Mutated) if name[0] != "_"])
def test_values_written_to_in_place(name, training, device):
    model = type("Own", (Unit,), {"forward": vars(Mutated)[name]})().train(training)
    model.writer = Writer()
    model = model.double().to(device)
    fused, x = fuse(model), images(device)
    a, b = x.clone(), x.clone()
    with torch.no_grad():
        torch.testing.assert_close(fused(a), model(b))
    torch.testing.assert_close(a, b)
    for u, v in zip(fused.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(u, v)


def test_addition_in_place_keeps_the_dtype(device):
    class Own(Unit):
        def forward(self, x, y):
            z = self.bn(self.conv(x))
            z += y
            return F.relu(z)

    model = Own().to(device).eval()
    fused = fuse(model)
    x, y = images(device).float(), images(device)
    with torch.no_grad():
        assert fused(x, y).dtype == model(x, y).dtype == torch.float32


def test_fusing_changes_nothing_and_draws_nothing(device):
    class Own(Unit):
        def forward(self, x):
            return F.relu(self.bn(self.conv(x))) * torch.rand_like(x)

    model = Own().double().to(device)
    before, chance = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    fused, x = fuse(model), images(device)
    torch.set_rng_state(chance)
    y = fused(x)
    torch.set_rng_state(chance)
    assert not torch.equal(y, fused(x) * 0)
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    torch.set_rng_state(chance)
    torch.testing.assert_close(model(x), y)
    assert ops(fused, x) == ["conv2d_stats", "batch_norm"]


def sequential(device):
    layers = [*conv_bn(3, 4), nn.ReLU(), *conv_bn(4, 4), nn.ReLU()]
    return nn.Sequential(*layers).double().to(device).eval()


CHANGES = {
    "append": lambda m: m.append(nn.Tanh()),
    "extend": lambda m: m.extend([nn.Tanh()]),
    "insert": lambda m: m.insert(0, nn.Tanh()),
    "delete": lambda m: m.__delitem__(slice(3, 6)),
    "replace": lambda m: m.__setitem__(2, nn.Tanh()),
    "pop": lambda m: m.pop(5),
    "add": lambda m: m.add_module("last", nn.Tanh()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_sequential_that_changes(change, device):
    model = sequential(device)
    fused, x = fuse(model), images(device)
    fused(x)
    for m in (model, fused):
        CHANGES[change](m)
    with pytest.warns(UserWarning, match="Sequential runs unfused: "), torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))  # warns once


def test_fused_sequential_is_one(device):
    model = sequential(device)
    fused, x = fuse(model), images(device)
    with torch.no_grad():
        for part in (fused[:2], fused[3:], type(fused)(*fused), fused + fused[3:]):
            layers = nn.Sequential(*part)
            torch.testing.assert_close(part(x if part[0].in_channels == 3 else model[:3](x)),
                                       layers(x if part[0].in_channels == 3 else model[:3](x)))  # fmt: skip
    assert [*fused] == [*fused.children()]
    assert len(fused) == 6
    assert isinstance(fused, nn.Sequential)
    assert repr(fused) == repr(model)
    assert pickle.loads(pickle.dumps(fused[:2]))[0].out_channels == 4


def test_no_generated_class_is_pickled(device):
    fused = fuse(sequential(device))
    file = io.BytesIO()
    torch.save(fused, file)
    found = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            found.add((module, name))
            return super().find_class(module, name)

    Unpickler(io.BytesIO(pickle.dumps(fused))).load()
    assert ("torch.nn.modules.container", "Sequential") in found
    assert {name for module, name in found if module.startswith("tritonconv")} == {
        "Conv2d", "BatchNorm2d", "_blank", "Fusion",
    }  # fmt: skip
    file.seek(0)
    loaded, x = torch.load(file, weights_only=False), images(device)
    assert ops(loaded, x) == ops(fused, x) == ["conv2d_fused"] * 2


def test_loading_tells_what_it_cannot_fuse_again(monkeypatch):
    data = pickle.dumps(fuse(Nested()))
    monkeypatch.setattr("tritonconv._source._definition", lambda code: "has no source")
    with pytest.warns(UserWarning, match="runs unfused: .*forward has no source"):
        loaded = pickle.loads(data)
    assert type(loaded) is Nested
    assert "_fusion" not in vars(loaded)


def test_state_that_a_class_leaves_out_stays_out(device):
    class Own(Unit):
        def forward(self, x):
            return self.unit(x)

        def __getstate__(self):
            return {name: value for name, value in vars(self).items() if name != "seen"}

    fused = fuse(Own())
    assert type(copy.deepcopy(fused)).unfused is Own
    assert "seen" not in vars(copy.deepcopy(fused))


class Nested(nn.Module):
    """A group across containers, beside groups of one that is entered for it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 4), nn.ReLU(), Conv2d(4, 4, 3, bias=False))
        self.bn = BatchNorm2d(4)

    def forward(self, x):
        return F.relu(self.bn(self.stem(x)))


class ThreeBranches(nn.Module):
    """As RepVGG's: a residual that is the end of another group."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Sequential(*conv_bn(3, 3)) for _ in range(3))

    def forward(self, x):
        return F.relu(self.a(x) + self.b(x) + self.c(x))


@pytest.mark.parametrize(("kind", "kernels"), [(Nested, 2), (ThreeBranches, 3)])
def test_groups_beside_groups_all_run_fused(kind, kernels, device):
    model = made(kind(), device).eval()
    fused, x = fuse(model), images(device)
    assert ops(fused, x) == ["conv2d_fused"] * kernels
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))


def test_forwards_are_read_once_and_kept(device, monkeypatch):
    """Once for both modes, where it does not depend on them, and a copy reads nothing."""
    reads = []

    def counted(container, *args):
        reads.append(container)
        return read(container, *args)

    model, read = made(TRUNKS["ResNet"](), device), tritonconv._stand_in.read
    monkeypatch.setattr("tritonconv._stand_in.read", counted)
    fused = fuse(model)
    containers = tritonconv._reading.containers(fused)
    assert len(containers) == 7
    assert sorted(map(id, reads)) == sorted(map(id, containers))
    reads.clear()
    assert type(copy.deepcopy(fused).blocks[0]) is type(fused.blocks[0])
    assert reads == []
    fuse(BothModes())
    assert len(reads) == 2


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = BasicBlock(3, 3)

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False)


def test_checkpointed_block_is_computed_again(device):
    model, x = made(Checkpointed(), device), images(device)
    fused = fuse(model)
    with Dispatched() as dispatched:
        fused(x).sum().backward()
    assert dispatched.ours.count("conv2d_stats") == 4
    model.zero_grad()
    assert_same(fuse(model), as_torch(model).cpu(), x, x.cpu())


def test_hooks_that_keep_what_they_see_keep_tensors(device):
    """As timm's feature extractors: a fused model is copied and saved with them."""
    model, x = made(TRUNKS["ResNet"](), device), images(device)
    keep = Keeps()
    model.blocks[0].register_forward_hook(keep)
    fused = fuse(model)
    assert keep.seen == []
    fused(x)
    (hook,) = fused.blocks[0]._forward_hooks.values()
    assert [type(y) for y in hook.seen] == [torch.Tensor]
    hook.seen.clear()
    for copied in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert ops(copied, x) == ops(fused, x)


class Keeps:
    def __init__(self):
        self.seen = []

    def __call__(self, module, args, y):
        self.seen.append(y.detach())


def test_graph_module_is_kept_and_copied(device):
    """Its class is generated, and it is copied in a way of its own."""
    model, lines = made(TRUNKS["ResNet"](), device), []
    fused, x = fuse(torch.fx.symbolic_trace(model), report=lines.append), images(device)
    assert lines[0] == "stem.0: kept, for GraphModule is copied in a way of its own"
    torch.testing.assert_close(copy.deepcopy(fused)(x), model(x))


class TwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv_bn(3, 3)
        self.again = self.conv

    def forward(self, x):
        return F.relu(self.bn(self.again(x)))


def test_a_layer_of_two_names_is_reported_by_the_one_that_is_called():
    lines = []
    fuse(TwoNames(), report=lines.append)
    assert lines == ["model: again, bn, relu fused"]


def test_layers_with_hooks_are_left_out_when_fusing(device):
    model = made(TRUNKS["ResNet"](), device)
    model.blocks[0].conv2.register_forward_hook(lambda module, args, y: y * 2)
    model.blocks[1].downsample.register_forward_hook(lambda module, args, y: y * 2)
    lines = []
    fused, x = fuse(model, report=lines.append), images(device)
    assert "blocks.0.conv2: kept, for it has hooks" in lines
    assert_same(fused, model, x)  # nothing warns


def test_fusing_copying_and_loading_beside_other_threads():
    """Modules that other threads call are called as always."""
    model = tritonconv.convert(nn.Sequential(BasicBlock(3, 3), nn.Conv2d(3, 4, 3), nn.ReLU()))
    fused = fuse(model)
    data, plain, x = (
        pickle.dumps(fused),
        nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
        torch.ones(2, 4),
    )
    right = plain(x)

    def fuse_and_copy():
        for made in (fuse(model), copy.deepcopy(fused), pickle.loads(data), fold(model)):
            assert type(made) is not nn.Sequential or made[0] is not None

    def call():
        assert torch.equal(plain(x), right)

    beside(fuse_and_copy, call, call)
    call()  # for good


def test_a_fused_model_in_several_threads(device):
    """One warning, and the same bits, whoever calls."""
    model = fuse(sequential(device))
    x = images(device, 1, 3, 5, 5)
    with torch.no_grad():
        right = model(x)

        def call():
            with torch.no_grad():
                assert torch.equal(model(x), right)

        beside(call, call, call)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_what_the_kernels_do_not_cover_goes_through_the_layers(training, device):
    model = made(Trunk(BasicBlock(8, 8)), device).train(training)
    fused, twin = fuse(model), as_torch(model).cpu()
    x = images(device, 2, 3, 8, 8)
    mixed = copy.deepcopy(fused).float()
    with pytest.raises(RuntimeError, match="conv2d: input, weight and bias must have the same"):
        mixed(x)
    with pytest.raises(RuntimeError, match="conv2d: given groups=1 and weight"):
        fused(images(device, 2, 4, 8, 8))
    assert copy.deepcopy(fused)(images(device, 0, 3, 8, 8)).shape == (0, 3)
    if training:
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            copy.deepcopy(fused).blocks(images(device, 1, 8, 1, 1))
    else:
        block = fused.blocks[0]
        unbatched = images(device, 8, 4, 4)
        y = block.conv1(unbatched)
        assert y.shape == (8, 4, 4)
        with pytest.raises(ValueError, match="expected 4D input"):
            block(unbatched)
    assert_same(fused, twin, x, x.cpu())


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_fused_network_under_autocast(training, device):
    model = made(TRUNKS["ResNet"](), device).float().train(training)
    fused, x = fuse(model), images(device).float()
    with torch.autocast(device, torch.bfloat16):
        y, expected = fused(x), copy.deepcopy(model)(x)
        block = fused.blocks[0](images(device, 2, 8, 4, 4).float())
    assert y.dtype == expected.dtype
    assert block.dtype == torch.float32  # what is added to it is not cast
    torch.testing.assert_close(y.float(), expected.float(), rtol=0.1, atol=0.1)
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in fused.parameters())


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
def test_fused_network_compiles_whole(training, backend, device):
    torch._dynamo.reset()
    model = fuse(made(Trunk(BasicBlock(8, 6, 2)), device)).train(training)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend=backend)
    x = images(device)
    assert_same(compiled, model, x)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_fused_network_in_channels_last(device):
    model = made(TRUNKS["ResNet"](), device).to(memory_format=torch.channels_last)
    fused = fuse(model)
    x = images(device).to(memory_format=torch.channels_last)
    alike = copy.deepcopy(fused)
    assert alike.blocks(alike.stem(x)).is_contiguous(memory_format=torch.channels_last)
    assert_same(fused, model, x)
    strides = [p.grad.stride() for p in model.parameters()]
    assert [p.grad.stride() for p in fused.parameters()] == strides


def test_second_gradients_of_a_fused_network(device):
    model = made(TRUNKS["ResNet"](), device)
    penalties = []
    for net, on in ((fuse(model), device), (as_torch(model).cpu(), "cpu")):
        x = torch.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=torch.float64).view(2, 3, 8, 8).to(on)
        x.requires_grad_()
        (dx,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        dx.square().sum().backward()
        penalties.append([x.grad.cpu(), *(p.grad.cpu() for p in net.parameters())])
    torch.testing.assert_close(*penalties, rtol=1e-8, atol=1e-8)


def test_as_torch_unfuses(device):
    model = made(TRUNKS["MobileNetV2"](), device)
    twin = as_torch(fuse(model)).cpu()
    x = images(device)
    with Dispatched() as dispatched:
        twin(x.cpu()).sum().backward()
    assert dispatched.ours == []
    assert [type(m) for m in twin.modules()] == [type(m) for m in as_torch(model).modules()]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", ""])
def test_fold_leaves_one_kernel_a_convolution(fused, device):
    model = made(TRUNKS["ResNet"](), device)
    for _ in range(3):
        model(images(device))
    lines = []
    folded = fold(fuse(model) if fused else model, report=lines.append)
    x = images(device)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)
    called = ops(folded, x)
    assert called == (["conv2d_fused"] if fused else ["conv2d"]) * 8
    assert lines[0] == "blocks.2.bn1: folded into blocks.2.conv1"
    assert not any(isinstance(m, BatchNorm2d) for m in folded.modules())
    assert model.blocks[0].conv1.bias is None


def test_fold_leaves_shared_layers(device):
    model, lines = made(UsedTwice(), device).eval(), []
    folded, x = fold(model, report=lines.append), images(device)
    assert isinstance(folded.bn, BatchNorm2d)
    assert lines == ["bn: left, for conv is used more than once"]
    torch.testing.assert_close(folded(x), model(x))


class Elsewhere(nn.Module):
    """Calls a layer of its block, and the block."""

    def __init__(self):
        super().__init__()
        self.b = type("Own", (Unit,), {"forward": Unit.unit})()

    def forward(self, x):
        return self.b(x) + self.b.conv(x)


class ReadsWeight(Elsewhere):
    def forward(self, x):
        return self.b(x) * self.b.bn.weight.sum()


class Taps(Elsewhere):
    """Not understood, and it may call what it likes of its block."""

    def forward(self, x):
        for layer in list(self.b.children())[:2] if x.sum() < 1e9 else ():
            x = layer(x) + 1
        return self.b(x)


class CallsWhole(Elsewhere):
    """Not understood, but it calls its block as a whole."""

    def forward(self, x):
        return self.b(x) if x.sum() < 1e9 else x


LEFT = {
    "called elsewhere": (Elsewhere, None, "b.conv is used elsewhere"),
    "weight read elsewhere": (ReadsWeight, None, "b.bn is used elsewhere"),
    "may be called": (Taps, None, "b.conv may be used elsewhere: Taps.forward branches on a value"),
    "hook of the convolution": (CallsWhole, lambda m: Altered.hook(m.b.conv), "no convolution that"),
    "hook of the batch norm": (CallsWhole, lambda m: Altered.pre_hook(m.b.bn), "it has hooks"),
    "own forward": (CallsWhole, lambda m: Altered.own_forward(m.b.bn), "it has a forward of its own"),
    "pruned": (CallsWhole, lambda m: prune.l1_unstructured(m.b.conv, "weight", 0.5), "no convolution"),
    "weight norm": (CallsWhole, lambda m: parametrizations.weight_norm(m.b.conv), "no convolution"),
    "spectral norm": (CallsWhole, lambda m: parametrizations.spectral_norm(m.b.conv), "no convolution"),
    "spectral norm's hook": (CallsWhole, lambda m: nn.utils.spectral_norm(m.b.conv), "no convolution"),
    "parametrized batch norm": (CallsWhole, lambda m: parametrizations.weight_norm(m.b.bn, dim=None), "it is a"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_fold_leaves_what_it_must_and_says_why(case, device):
    kind, alter, why = LEFT[case]
    model, lines = made(kind(), device, 6).eval(), []
    model(images(device) / 2)
    if alter is not None:
        alter(model)
    model.eval()
    with torch.no_grad():
        model.b.bn.running_mean += 0.5
        x = images(device)
        expected = model(x)
        torch.testing.assert_close(fold(model, report=lines.append)(x), expected)
        torch.testing.assert_close(fold(fuse(model))(x), expected)
    (line,) = lines
    assert line.startswith(f"b.bn: left, for {why}")


def test_fold_reads_what_calls_blocks_as_a_whole(device):
    model, lines = made(CallsWhole(), device).eval(), []
    fold(model, report=lines.append)
    assert lines == ["b.bn: folded into b.conv"]


def test_fold_across_containers(device):
    model, lines = made(Nested(), device).eval(), []
    model.bn.running_mean += 0.5
    folded, x = fold(model, report=lines.append), images(device)
    assert lines == ["stem.1: folded into stem.0", "bn: folded into stem.3"]
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x))


def test_folded_transposed_convolution(device):
    model = made(CONTAINERS["transposed"][0](), device).eval()
    folded, x = fold(fuse(model)), images(device)
    # torch's folding knows no grouped transposed convolution: its batch norm stays, in the epilogue
    assert [type(folded[i]) for i in (1, 4)] == [nn.Identity, BatchNorm2d]
    assert ops(folded, x) == ["conv2d_dgrad_fused"] * 2
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


def test_converted_model_of_torch_fuses(device):
    """As torchvision writes its blocks: functional additions, shared and in-place activations."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
            self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            identity = x
            out = self.relu(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            out += identity
            return self.relu(out)

    model = nn.Sequential(Block(), Block()).double()
    fused, x = fuse(tritonconv.convert(model)).to(device), images(device)
    assert ops(fused, x).count("conv2d_stats") == 4
    assert_same(fuse(tritonconv.convert(model)).to(device), model, x, x.cpu())
