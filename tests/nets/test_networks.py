"""The networks' shapes and sizes are the published ones, and they compute what torch.nn does."""

import csv
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import tritonconv
from torch import Tensor, nn
from tritonconv import as_torch, fuse, nets
from tritonconv.nets.googlenet import InceptionAux
from tritonconv.nets.resnet import BasicBlock, Bottleneck, ResNet

TORCHVISION_HAS = [
    "alexnet",
    "googlenet",
    "mobilenet_v2",
    "resnet101",
    "resnet152",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext50_32x4d",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "wide_resnet50_2",
]
BUILDERS = [*TORCHVISION_HAS, "alexnet_two_tower", "googlenet_plain", "nin", "nin_cifar"]


def build(name: str, **options: Any) -> nn.Module:
    """The network torchvision calls so, or ours, on the meta device."""
    if name == "googlenet" and "as_torchvision" not in options:
        options["as_torchvision"] = True
    with torch.device("meta"):
        return getattr(nets, name)(**options)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class Published(NamedTuple):
    """Of a network at full size: what it takes, and what comes out of and sits in its modules."""

    build: Any
    takes: tuple[int, int, int]
    shapes: dict[str, tuple[int, ...]]
    parameters: dict[str, int]  # "" is the whole network


PUBLISHED = {
    "alexnet_two_tower": Published(
        nets.alexnet_two_tower,
        (1, 224, 224),
        {"0": (96, 54, 54), "2": (96, 26, 26), "3": (256, 26, 26), "5": (256, 12, 12), "6": (384, 12, 12), "8": (384, 12, 12), "10": (256, 12, 12), "12": (256, 5, 5), "13": (6400,), "14": (4096,), "17": (4096,), "20": (10,)},
        {"": 46_764_746, "0": 11_712, "14": 26_218_496},
    ),
    "alexnet": Published(
        nets.alexnet,
        (3, 224, 224),
        {"features.0": (64, 55, 55), "features.2": (64, 27, 27), "features.5": (192, 13, 13), "features.6": (384, 13, 13), "features.8": (256, 13, 13), "features.12": (256, 6, 6), "flatten": (9216,), "": (1000,)},
        {"": 61_100_840, "features.0": 23_296},
    ),
    "vgg11": Published(
        nets.vgg11,
        (3, 224, 224),
        {"features.0": (64, 224, 224), "features.2": (64, 112, 112), "features.5": (128, 56, 56), "features.10": (256, 28, 28), "features.15": (512, 14, 14), "features": (512, 7, 7), "flatten": (25088,), "": (1000,)},
        {"": 132_863_336},
    ),
    "vgg11 of d2l": Published(
        partial(nets.vgg11, num_classes=10, in_channels=1, width_divisor=4),
        (1, 224, 224),
        {"features.0": (16, 224, 224), "features.5": (32, 56, 56), "features": (128, 7, 7), "flatten": (6272,), "": (10,)},
        {"": 43_093_322, "features": 576_832, "features.0": 160},
    ),
    "vgg13": Published(nets.vgg13, (3, 224, 224), {"features": (512, 7, 7)}, {"": 133_047_848}),
    "vgg16": Published(
        nets.vgg16,
        (3, 224, 224),
        {"features.2": (64, 224, 224), "features.4": (64, 112, 112), "features.9": (128, 56, 56), "features.16": (256, 28, 28), "features.23": (512, 14, 14), "features": (512, 7, 7), "classifier.0": (4096,), "": (1000,)},
        {"": 138_357_544, "features.0": 1_792, "features.2": 36_928, "features.5": 73_856, "features.7": 147_584, "features.10": 295_168, "features.12": 590_080},
    ),
    "vgg19": Published(nets.vgg19, (3, 224, 224), {"features": (512, 7, 7)}, {"": 143_667_240}),
    "vgg11_bn": Published(nets.vgg11_bn, (3, 224, 224), {"features.1": (64, 224, 224), "features": (512, 7, 7)}, {"": 132_868_840}),
    "vgg13_bn": Published(nets.vgg13_bn, (3, 224, 224), {"features": (512, 7, 7)}, {"": 133_053_736}),
    "vgg16_bn": Published(nets.vgg16_bn, (3, 224, 224), {"features": (512, 7, 7)}, {"": 138_365_992}),
    "vgg19_bn": Published(nets.vgg19_bn, (3, 224, 224), {"features": (512, 7, 7)}, {"": 143_678_248}),
    "nin": Published(
        nets.nin,
        (1, 224, 224),
        {"0": (96, 54, 54), "1": (96, 26, 26), "2": (256, 26, 26), "3": (256, 12, 12), "4": (384, 12, 12), "5": (384, 5, 5), "7": (10, 5, 5), "8": (10, 1, 1), "": (10,)},
        {"": 1_992_166},
    ),
    "nin_cifar": Published(
        nets.nin_cifar,
        (3, 32, 32),
        {"0.0": (192, 32, 32), "0.2": (160, 32, 32), "0": (96, 32, 32), "1": (96, 15, 15), "3": (192, 15, 15), "4": (192, 7, 7), "6": (10, 7, 7), "7": (10, 1, 1), "": (10,)},
        {"": 966_986, "0.0": 14_592, "0.2": 30_880, "0.4": 15_456, "3.0": 460_992},
    ),
    "googlenet": Published(
        nets.googlenet,
        (3, 224, 224),
        {"conv1": (64, 112, 112), "maxpool1": (64, 56, 56), "conv3": (192, 56, 56), "maxpool2": (192, 28, 28), "inception3a": (256, 28, 28), "inception3b": (480, 28, 28), "maxpool3": (480, 14, 14), "inception4a": (512, 14, 14), "inception4b": (512, 14, 14), "inception4c": (512, 14, 14), "inception4d": (528, 14, 14), "inception4e": (832, 14, 14), "maxpool4": (832, 7, 7), "inception5a": (832, 7, 7), "inception5b": (1024, 7, 7), "aux1.avgpool": (512, 4, 4), "aux1.flatten": (2048,), "aux1": (1000,), "aux2.avgpool": (528, 4, 4), "aux2": (1000,), "fc": (1000,)},
        {"": 13_385_560, "conv1": 9_536, "conv2": 4_224, "conv3": 110_976, "inception3a": 164_064, "inception3b": 389_376, "inception4a": 376_800, "aux1": 3_188_840},
    ),
    "googlenet of torchvision": Published(
        partial(nets.googlenet, as_torchvision=True),
        (3, 224, 224),
        {"maxpool4": (832, 7, 7), "aux1.avgpool": (512, 4, 4), "fc": (1000,)},
        {"": 13_004_888},
    ),
    "googlenet_plain": Published(
        nets.googlenet_plain,
        (1, 96, 96),
        {"conv1": (64, 48, 48), "maxpool1": (64, 24, 24), "maxpool2": (192, 12, 12), "inception3b": (480, 12, 12), "maxpool3": (480, 6, 6), "inception4e": (832, 6, 6), "maxpool4": (832, 3, 3), "inception5b": (1024, 3, 3), "flatten": (1024,), "": (10,)},
        {"": 5_977_530},
    ),
    "InceptionA": Published(
        partial(nets.InceptionA, 192, 32),
        (192, 35, 35),
        {"branch1x1": (64, 35, 35), "branch5x5_1": (48, 35, 35), "branch5x5_2": (64, 35, 35), "branch3x3dbl_2": (96, 35, 35), "branch3x3dbl_3": (96, 35, 35), "branch_pool": (32, 35, 35), "": (256, 35, 35)},
        {"": 255_904},
    ),
    "resnet18": Published(
        nets.resnet18,
        (3, 224, 224),
        {"conv1": (64, 112, 112), "maxpool": (64, 56, 56), "layer4": (512, 7, 7), "": (1000,)},
        {"": 11_689_512, "layer1.0": 73_984},
    ),
    "resnet18 of d2l": Published(
        partial(nets.resnet18, num_classes=10, in_channels=1),
        (1, 224, 224),
        {"maxpool": (64, 56, 56), "layer1": (64, 56, 56), "layer2": (128, 28, 28), "layer3": (256, 14, 14), "layer4": (512, 7, 7), "flatten": (512,), "": (10,)},
        {"": 11_175_370},
    ),
    "resnet34": Published(nets.resnet34, (3, 224, 224), {"layer4": (512, 7, 7)}, {"": 21_797_672}),
    "resnet50": Published(
        nets.resnet50,
        (3, 224, 224),
        {"layer1": (256, 56, 56), "layer2.0.conv1": (128, 56, 56), "layer2.0.conv2": (128, 28, 28), "layer2": (512, 28, 28), "layer3": (1024, 14, 14), "layer4": (2048, 7, 7), "": (1000,)},
        {"": 25_557_032},
    ),
    "resnet101": Published(nets.resnet101, (3, 224, 224), {"layer4": (2048, 7, 7)}, {"": 44_549_160}),
    "resnet152": Published(nets.resnet152, (3, 224, 224), {"layer4": (2048, 7, 7)}, {"": 60_192_808}),
    "resnext50_32x4d": Published(nets.resnext50_32x4d, (3, 224, 224), {"layer1.0.conv2": (128, 56, 56)}, {"": 25_028_904}),
    "wide_resnet50_2": Published(nets.wide_resnet50_2, (3, 224, 224), {"layer1.0.conv2": (128, 56, 56)}, {"": 68_883_240}),
    "mobilenet_v2": Published(
        nets.mobilenet_v2,
        (3, 224, 224),
        {"features.0": (32, 112, 112), "features.1": (16, 112, 112), "features.3": (24, 56, 56), "features.4.conv.0": (144, 56, 56), "features.4.conv.1": (144, 28, 28), "features.6": (32, 28, 28), "features.10": (64, 14, 14), "features.13": (96, 14, 14), "features.16": (160, 7, 7), "features.17": (320, 7, 7), "features.18": (1280, 7, 7), "": (1000,)},
        {"": 3_504_872},
    ),
}  # fmt: skip


@pytest.mark.parametrize("network", PUBLISHED.values(), ids=PUBLISHED)
def test_network_has_the_published_shapes_and_parameters(network):
    with torch.device("meta"):
        model = network.build()
    shapes = {}

    def note(name: str, _, __, y: Any) -> None:
        shapes[name] = tuple(y.shape[1:]) if isinstance(y, Tensor) else None

    for name in network.shapes:
        model.get_submodule(name).register_forward_hook(partial(note, name))
    model(torch.empty(2, *network.takes, device="meta"))
    assert shapes == network.shapes
    parameters = {name: count(model.get_submodule(name)) for name in network.parameters}
    assert parameters == network.parameters


# Arguments


@pytest.mark.parametrize("name", BUILDERS)
def test_network_takes_classes_channels_and_dropout(name):
    model = build(name, num_classes=7, in_channels=2).eval()
    size = 32 if name == "nin_cifar" else 224
    assert model(torch.empty(2, 2, size, size, device="meta")).shape == (2, 7)
    if not name.startswith(("res", "wide")):
        dropouts = {
            n: m.p
            for n, m in build(name, dropout=0.125).named_modules()
            if isinstance(m, nn.Dropout) and "aux" not in n
        }
        assert dropouts
        assert set(dropouts.values()) == {0.125}


@pytest.mark.parametrize("name", [*BUILDERS, "LeNet"])
def test_network_has_no_layer_of_torchs_that_we_have(name):
    theirs = {
        kind
        for kind in vars(nn).values()
        if getattr(tritonconv, getattr(kind, "__name__", ""), None)
    }
    assert {nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d} <= theirs
    assert not [n for n, module in build(name).named_modules() if type(module) in theirs]


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_zero_init_residual_makes_every_block_start_as_its_shortcut(block):
    model = ResNet(block, (1, 2, 1, 1), num_classes=3, zero_init_residual=True)
    last = "bn2" if block is BasicBlock else "bn3"
    for name, module in model.named_modules():
        if isinstance(module, tritonconv.BatchNorm2d):
            zero = name.startswith("layer") and name.endswith(last)
            assert torch.equal(module.weight, torch.full_like(module.weight, not zero)), name


def test_basic_block_refuses_groups_and_vgg_an_uneven_divisor():
    with pytest.raises(ValueError, match=r"BasicBlock: groups must be 1 .* got groups=32"):
        ResNet(BasicBlock, (1, 1, 1, 1), groups=32)
    with pytest.raises(ValueError, match="width_divisor must divide 64, got width_divisor=3"):
        nets.vgg11(width_divisor=3)


def test_googlenet_returns_its_heads_logits_in_training_alone():
    model, x = build("googlenet", num_classes=7), torch.empty(2, 3, 224, 224, device="meta")
    heads = {}
    for name in ("aux1", "aux2"):
        model.get_submodule(name).register_forward_hook(
            lambda _, __, y, name=name: heads.update({name: y})
        )
    outputs = model(x)
    assert isinstance(outputs, nets.GoogLeNetOutputs)
    assert [y.shape for y in outputs] == [(2, 7)] * 3
    assert outputs.aux_logits1 is heads["aux1"]
    assert outputs.aux_logits2 is heads["aux2"]
    assert isinstance(model.eval()(x), Tensor)
    assert isinstance(build("googlenet", aux_logits=False)(x), Tensor)
    assert {
        m.p for m in build("googlenet", dropout_aux=0.5).aux1.modules() if isinstance(m, nn.Dropout)
    } == {0.5}


def deviations(model: nn.Module) -> dict[str, tuple[float, Tensor]]:
    """Of the big weights: size of the outputs' side, and the deviation from mean 0."""
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1 and p.numel() > 20_000}
    return {
        n: (p.numel() / p.shape[1], p.square().mean().sqrt().item()) for n, p in weights.items()
    }


def test_networks_start_as_torchvisions():
    for model in (nets.resnet18(num_classes=2), nets.vgg11_bn(num_classes=2, width_divisor=8)):
        for name, (fan_out, deviation) in deviations(model).items():
            linear = name.startswith("classifier")
            expected = 0.01 if linear else (2 / fan_out) ** 0.5
            assert deviation == pytest.approx(expected, rel=0.05), name
    for name, (_, deviation) in deviations(nets.googlenet(num_classes=2)).items():
        assert deviation == pytest.approx(0.01, rel=0.05), name


# torchvision's checkpoints


def torchvision_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the state_dict of torchvision 0.28's model.

    A line of the table is a layer: its path (blocks 1-3 are equal), what it holds, the weight's
    shape, and the models that have it.
    """
    shapes = {}
    with (Path(__file__).parent / "torchvision_state_dicts.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            if name not in line["models"].split():
                continue
            shape = tuple(int(size) for size in line["shape"].split("x"))
            tensors = {"weight": shape}
            if line["holds"] != "weight":
                tensors["bias"] = shape[:1]
            if line["holds"] == "norm":
                tensors |= {"running_mean": shape, "running_var": shape, "num_batches_tracked": ()}
            first, last = re.search(r"(\d+)-(\d+)", line["layer"] + " 0-0").groups()
            for block in range(int(first), int(last) + 1):
                layer = line["layer"].replace(f"{first}-{last}", str(block))
                shapes |= {f"{layer}.{tensor}": of for tensor, of in tensors.items()}
    return shapes


@pytest.mark.parametrize("name", TORCHVISION_HAS)
def test_network_has_torchvisions_names_and_shapes(name):
    ours = {n: tuple(tensor.shape) for n, tensor in build(name).state_dict().items()}
    assert ours == torchvision_shapes(name)


@pytest.mark.parametrize("name", ["googlenet", "mobilenet_v2", "resnet18", "resnext50_32x4d"])
def test_torchvisions_state_dict_loads_strictly_and_comes_back(name):
    given = {
        n: torch.rand(shape) if shape else torch.tensor(3)
        for n, shape in torchvision_shapes(name).items()
    }
    model = build(name).to_empty(device="cpu")
    model.load_state_dict(given, strict=True)
    returned = model.state_dict()
    assert returned.keys() == given.keys()
    for n, tensor in returned.items():
        assert torch.equal(tensor, given[n]), n
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({n: tensor for n, tensor in given.items() if "running" not in n})


def torchvisions(name: str, **options: Any) -> nn.Module:
    models = pytest.importorskip("torchvision.models", reason="compares with torchvision itself")
    if name == "googlenet":
        options["init_weights"] = True
    return getattr(models, name)(**options)


@pytest.mark.parametrize("name", TORCHVISION_HAS)
def test_network_has_the_state_dict_of_torchvision_itself(name):
    with torch.device("meta"):
        theirs = torchvisions(name).state_dict()
    listed = [(n, tuple(tensor.shape)) for n, tensor in theirs.items()]
    assert dict(listed) == torchvision_shapes(name)
    assert listed == [(n, tuple(tensor.shape)) for n, tensor in build(name).state_dict().items()]


@pytest.mark.parametrize(
    "name", ["alexnet", "googlenet", "mobilenet_v2", "resnet18", "resnext50_32x4d", "vgg11_bn"]
)
def test_network_starts_and_computes_as_torchvisions(name):
    torch.manual_seed(0)
    theirs = torchvisions(name, num_classes=5)
    torch.manual_seed(0)
    options = {"as_torchvision": True, "dropout": 0.2} if name == "googlenet" else {}
    ours = as_torch(getattr(nets, name)(**options, num_classes=5))
    for n, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[n]), f"{n} starts otherwise"
    x = torch.rand(2, 3, 96, 96)
    for training in (True, False):
        outputs = []
        for model in (ours, theirs):
            torch.manual_seed(0)  # the same elements drop out
            y = model.train(training)(x)
            outputs.append([*y] if isinstance(y, tuple) else [y])
        torch.testing.assert_close(*outputs)


# The torch.nn twin


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def assert_equals_its_twin(model: nn.Module, x: Tensor) -> None:
    """Outputs, running statistics and every gradient."""
    twin, results = as_torch(model), []
    for of in (model, twin):
        leaf = x.clone().requires_grad_()
        y = of(leaf)
        ys = [*y] if isinstance(y, tuple) else [y]
        # weights that differ, as a constant dy is orthogonal to what batch normalisation passes
        loss = sum((y * torch.linspace(-1, 1, y.numel()).to(y).view_as(y)).sum() for y in ys)
        names = ["input", *[n for n, _ in of.named_parameters()]]
        gradients = torch.autograd.grad(loss, [leaf, *of.parameters()])
        results.append((ys, dict(zip(names, gradients, strict=True)), dict(of.named_buffers())))
    (ys, gradients, buffers), (ys_twin, gradients_twin, buffers_twin) = results
    torch.testing.assert_close(ys, ys_twin, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(buffers, buffers_twin, rtol=1e-9, atol=1e-12)
    largest = {n: gradient.abs().max().item() for n, gradient in gradients_twin.items()}
    for n, most in largest.items():
        # a bias before batch normalisation has gradient 0 up to the rounding of larger ones
        bound = 1e-8 * most + 1e-12 * max(largest.values())
        error = (gradients[n] - gradients_twin[n]).abs().max().item()
        assert error <= bound, f"{n}: {error / bound:.3g} times the bound"


def short_googlenet(**options: Any) -> nn.Module:
    """Without three of the four blocks that keep the shape, for the interpreter's sake."""
    model = nets.GoogLeNet(num_classes=5, **options)
    model.inception4b = model.inception4c = model.inception5a = nn.Identity()
    return model


def short_mobilenet_v2() -> nn.Module:
    return nets.MobileNetV2(num_classes=5, width_mult=0.25, stages=[(1, 8, 1, 1), (2, 8, 2, 2)])


def short_resnet50(groups: int = 1, width_per_group: int = 64) -> nn.Module:
    return ResNet(Bottleneck, (1, 1, 1, 1), 5, groups=groups, width_per_group=width_per_group)


# Inputs of about the least size that leaves batch normalisation several values a channel.
REDUCED = {
    "alexnet_two_tower": (partial(nets.alexnet_two_tower, num_classes=5), (1, 1, 193, 193)),
    "alexnet": (partial(nets.alexnet, num_classes=5), (2, 3, 63, 63)),
    "vgg11": (partial(nets.vgg11, num_classes=5, width_divisor=16), (2, 3, 32, 32)),
    "vgg11_bn": (partial(nets.vgg11_bn, num_classes=5, width_divisor=32), (2, 3, 64, 64)),
    "nin": (partial(nets.nin, num_classes=5), (1, 1, 71, 71)),
    "nin_cifar": (partial(nets.nin_cifar, num_classes=5), (1, 3, 31, 31)),
    "a short googlenet": (partial(short_googlenet, as_torchvision=True), (2, 3, 33, 33)),
    "a short googlenet_plain": (
        partial(short_googlenet, plain=True, aux_logits=False, in_channels=1),
        (1, 1, 33, 33),
    ),
    "a head of the paper's googlenet": (partial(InceptionAux, 8, 5), (2, 8, 14, 14)),
    "InceptionA": (partial(nets.InceptionA, 8, 4), (2, 8, 5, 5)),
    "resnet18": (partial(nets.resnet18, num_classes=5, in_channels=1), (2, 1, 33, 33)),
    "a short resnet50": (short_resnet50, (2, 3, 33, 33)),
    "a short resnext50_32x4d": (partial(short_resnet50, 32, 4), (2, 3, 33, 33)),
    "a short wide_resnet50_2": (partial(short_resnet50, 1, 128), (2, 3, 33, 33)),
    "a short mobilenet_v2": (short_mobilenet_v2, (2, 3, 33, 33)),
}


@pytest.mark.parametrize(("make", "shape"), REDUCED.values(), ids=REDUCED)
def test_network_equals_its_torch_twin(device, make, shape):
    model = without_dropout(make()).to(device, torch.float64)
    assert_equals_its_twin(model, torch.rand(shape, dtype=torch.float64, device=device))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="full size is for a CUDA device")
@pytest.mark.parametrize("name", PUBLISHED)
def test_network_equals_its_torch_twin_at_full_size(name):
    network = PUBLISHED[name]
    model = without_dropout(network.build()).to("cuda", torch.float64)
    assert_equals_its_twin(model, torch.rand(2, *network.takes, dtype=torch.float64, device="cuda"))


CAPTURED = {"LeNet": (nets.LeNet, (2, 1, 28, 28))}
CAPTURED |= {
    name: REDUCED[name] for name in ("a short googlenet", "resnet18", "a short mobilenet_v2")
}


@pytest.mark.parametrize(("make", "shape"), CAPTURED.values(), ids=CAPTURED)
@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # dynamo's own
def test_network_compiles_into_one_graph(device, make, shape):
    torch._dynamo.reset()
    model = without_dropout(make()).to(device, torch.float64)
    twin, x = as_torch(model), torch.rand(shape, dtype=torch.float64, device=device)
    y = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, twin(x), rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_fused_resnet50_calls_each_chain_once(device):
    """In one graph: a Function for its stages, of which the third is two, its stem and its two pools,
    no convolution or batch norm beside them."""
    torch._dynamo.reset()
    model = fuse(nets.resnet50()).to(device, memory_format=torch.channels_last)
    graphs = []

    def nothing_computed(graph: torch.fx.GraphModule, inputs) -> Callable:
        graphs.append(graph.graph)
        (results,) = (node.args[0] for node in graph.graph.nodes if node.op == "output")
        like = [node.meta["example_value"] for node in results]
        return lambda *_: tuple(torch.zeros(t.shape, dtype=t.dtype, device=device) for t in like)

    images = torch.zeros(2, 3, 64, 64, device=device).to(memory_format=torch.channels_last)
    with torch.autocast(device, torch.bfloat16):
        logits = torch.compile(model, fullgraph=True, backend=nothing_computed)(images)
    assert logits.shape == (2, 1000)
    (graph,) = graphs
    called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    functions = [name for name in called if "autograd_function_apply" in name]
    assert len(functions) == 5 + 1 + 2
    assert not [name for name in called if re.search("conv|pool|norm", name)]


@pytest.mark.parametrize(("make", "shape"), CAPTURED.values(), ids=CAPTURED)
def test_network_exports(device, make, shape):
    model = make().to(device, torch.float64).eval()
    x = torch.rand(shape, dtype=torch.float64, device=device)
    program = torch.export.export(model, (x,))
    ops = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any(op.startswith("tritonconv.conv2d") for op in ops)
    assert not [op for op in ops if op.startswith("aten.") and re.search("conv|pool|norm", op)]
    torch.testing.assert_close(program.module()(x), as_torch(model)(x), rtol=1e-9, atol=1e-12)
