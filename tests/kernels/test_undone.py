"""The sums of batch norm's gradient, taken in the epilogue of the dgrad above it."""

import copy

import pytest
import torch
import tritonconv
from launched import of_numbers, repeats
from reference import DTYPE_OF_SIZE, EVERY_TILE, integers
from torch.nn.grad import conv2d_input
from tritonconv import _launch, _split
from tritonconv._launch import recording
from tritonconv.conv import dispatch, tma
from tritonconv.conv.depthwise.columns import DGRAD
from tritonconv.conv.dgrad import conv2d_dgrad_undone
from tritonconv.conv.dispatch import force_family
from tritonconv.conv.geometry import Geometry
from tritonconv.conv.problem import problem
from tritonconv.explain import explain
from tritonconv.nets.resnet import BasicBlock

SHAPES = {  # c, w, stride
    "1x1": ((3, 40, 9, 11), (24, 40, 1, 1), 1),
    "3x3": ((2, 24, 9, 9), (16, 24, 3, 3), 1),
    "3x3 of stride 2": ((2, 16, 8, 10), (24, 16, 3, 3), 2),
    "1x1 of stride 2, most of whose pixels nothing reaches": ((2, 16, 8, 6), (8, 16, 1, 1), 2),
    "one pixel": ((1, 8, 1, 1), (8, 8, 1, 1), 1),
    "5 channels, odd sizes": ((2, 5, 7, 5), (3, 5, 3, 3), 2),
    "groups": ((2, 8, 5, 4), (4, 4, 3, 3), 1),
    "groups of 2": ((2, 12, 9, 7), (12, 2, 3, 3), 1),
    "depthwise": ((2, 9, 11, 10), (9, 1, 3, 3), 1),
    "depthwise 5x5 of stride 2": ((2, 9, 11, 10), (9, 1, 5, 5), 2),
}
on_hopper = pytest.mark.skipif(
    not _launch.INTERPRETED and torch.cuda.get_device_capability()[0] != 9, reason="needs sm_90"
)


def check(name, dtype, device, family, config=None, activation="relu", scaled=True):
    c_shape, w_shape, stride = SHAPES[name]
    padding = w_shape[2] // 2
    groups = c_shape[1] // w_shape[1]
    how = {"stride": stride, "padding": padding, "groups": groups}
    c, w = integers(*c_shape, most=4).double(), integers(*w_shape).double()
    y_shape = torch.nn.functional.conv2d(c, w, **how).shape
    dy = integers(*y_shape).double()
    mean, scale, shift = (integers(c_shape[1], most=3).double() for _ in range(3))
    var = torch.full_like(mean, 0.25 - 2**-10)
    given = [dy, w, c, mean, var, *((scale, shift) if scaled else (None, None))]
    given = [None if t is None else t.to(device, dtype) for t in given]
    given[3:5] = (t.to(device, torch.float64 if dtype == torch.float64 else torch.float32)
                  for t in (mean, var))  # fmt: skip
    flat = (stride, stride, *[padding] * 4, 1, 1, groups)

    def ours():
        with force_family(family, config):
            return conv2d_dgrad_undone(*given, 2**-10, activation, flat)

    names = []
    with recording(lambda kernel, *_: names.append(kernel.__name__)):
        ours()
    assert any(name.startswith("_conv2d") and "sums" in name for name in names) == (
        family != "separate"
    )
    dz, z, sums = (t.double().cpu() for t in ours())
    normal = (c - mean[:, None, None]) * 2
    y = normal * scale[:, None, None] + shift[:, None, None] if scaled else normal
    closed = {"none": y != y, "relu": y <= 0, "relu6": (y <= 0) | (y >= 6)}[activation]
    g = conv2d_input(c_shape, w, dy, **how).masked_fill(closed, 0)
    torch.testing.assert_close(dz.masked_fill(closed, 0), g, rtol=1e-6, atol=0)
    right = {"none": y, "relu": y.relu(), "relu6": y.clamp(0, 6)}[activation]
    torch.testing.assert_close(z, right, rtol=1e-6, atol=0)
    expected = torch.stack((g.sum((0, 2, 3)), (g * normal).sum((0, 2, 3))))
    torch.testing.assert_close(sums, expected, rtol=1e-6, atol=1e-6)
    assert all(map(repeats, ours(), ours()))
    return dz, z, sums


@of_numbers
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize("name", SHAPES)
def test_undone_equals_torch(name, activation, device):
    """In the epilogue and in passes of its own alike."""
    for family, scaled in (("general", True), ("separate", False)):
        check(name, torch.float64, device, family, None, activation, scaled)


@of_numbers
@pytest.mark.parametrize(("size", "tile"), EVERY_TILE)
def test_undone_is_exact_in_every_tile(size, tile, device):
    for name in ("3x3", "5 channels, odd sizes"):
        check(name, DTYPE_OF_SIZE[size], device, "general", tile)


@of_numbers
@on_hopper
@pytest.mark.parametrize(
    ("size", "tile"), [(size, tile) for size in (2, 4) for tile in (None, *tma.TILES[size])]
)
def test_undone_is_exact_in_every_tile_of_the_accelerator(
    size, tile, device, monkeypatch, ieee_float32
):
    """By a program that walks over several, with some beyond the last pixel."""
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    monkeypatch.setattr(tma, "PROGRAMS", 1)
    dispatch.forget()
    check("1x1", DTYPE_OF_SIZE[size], device, "gemm", tile)
    for name in ("3x3", "3x3 of stride 2"):
        check(name, DTYPE_OF_SIZE[size], device, "boxes", tile)
    dispatch.forget()


@of_numbers
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["depthwise", "depthwise 5x5 of stride 2", "groups of 2"])
def test_undone_by_columns_is_exact_in_every_configuration(name, dtype, device, monkeypatch):
    """In one strip and in two."""
    c_shape, w_shape, stride = SHAPES[name]
    padding = (w_shape[2] // 2,) * 2
    geometry = Geometry((stride,) * 2, padding, padding, (1, 1), c_shape[1] // w_shape[1])
    shapes = c_shape, w_shape, tuple(geometry.y_shape(c_shape, w_shape))
    p = problem(torch.device(device), "dgrad", *shapes, geometry, dtype, "ieee", True)
    for strips, config in enumerate(DGRAD.configs(p), 1):
        monkeypatch.setattr(_split, "splits", lambda *_, strips=strips: strips)
        dispatch.forget()
        check(name, dtype, device, "columns", config)
    dispatch.forget()


def bottleneck(device, activation=torch.nn.ReLU):
    torch.manual_seed(0)
    units = []
    for c, co, k in ((8, 16, 1), (16, 16, 3), (16, 8, 1)):
        conv = tritonconv.Conv2d(c, co, k, padding=k // 2, bias=False)
        units += [conv, tritonconv.BatchNorm2d(co)]
        units.append(activation())
    net = tritonconv.fuse(torch.nn.Sequential(*units)).to(device).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return net


def kernels(device, activation, family):
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64, device=device, requires_grad=True)
    with force_family(family):
        return [launch.kernel for launch in explain(bottleneck(device, activation), x)]


def test_a_chain_leaves_the_sums_to_dgrad(device):
    separate, fused = (kernels(device, torch.nn.ReLU, f) for f in ("separate", "general"))
    assert sum("batch_norm_sums" in k for k in separate) == 3
    assert sum("batch_norm_sums" in k for k in fused) == 1
    assert sum("dgrad_sums" in k for k in fused) == 2
    # what passes back another time what it has passed back may do it in dgrad alone
    assert not any("dgrad_sums" in k for k in kernels(device, torch.nn.SiLU, "general"))


TRAINED = {
    "all": lambda name, p: True,
    "weights": lambda name, p: p.dim() == 4,
    "norms": lambda name, p: p.dim() == 1,
    "the last weights": lambda name, p: name.startswith(("6.", "conv2.")),
    "the first weights": lambda name, p: name.startswith(("0.", "conv1.")),
    "the shortcut": lambda name, p: name.startswith("downsample"),
}


def gradients(net, x, trained):
    """The output and what is trained has, of x, too, if all is."""
    x = x.clone().requires_grad_(trained == "all")
    given = list(net.named_parameters())
    for name, p in given:
        p.requires_grad_(TRAINED[trained](name, p))
    wanted = [p for _, p in given if p.requires_grad] + [x] * (trained == "all")
    y = net(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y)
    return [y.detach(), *torch.autograd.grad(y, wanted, dy)]


@of_numbers
@pytest.mark.parametrize("trained", [name for name in TRAINED if name != "the shortcut"])
def test_a_chain_gives_the_same_either_way(trained, device):
    """To 1e-10 in float64, whatever is trained of it."""
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64, device=device)
    found = []
    for family in ("separate", "general"):
        with force_family(family):
            found.append(gradients(bottleneck(device), x, trained))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@of_numbers
@pytest.mark.parametrize("trained", TRAINED)
def test_a_normalised_shortcut_gives_what_its_layers_give(trained, device):
    """Undone with its block where both are needed: dy and y are read once for the two."""
    torch.manual_seed(0)
    net = BasicBlock(4, 8, 2).to(device).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.5)
    fused = tritonconv.fuse(copy.deepcopy(net))
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64, device=device)
    for a, b in zip(gradients(fused, x, trained), gradients(net, x, trained), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    given = dict(fused.named_parameters())
    if trained == "all":
        fused(x).sum().backward()
        memory = [p.grad.data_ptr() for p in given.values()]
        assert len(set(memory)) == len(memory)


def test_a_normalised_shortcut_is_undone_with_its_block(device):
    net = tritonconv.fuse(BasicBlock(4, 8, 2)).to(device)
    x = torch.randn(3, 4, 6, 5, device=device, requires_grad=True)
    names = [launch.kernel for launch in explain(net, x)]
    assert names.count("_batch_norm_pair_sums_kernel") == 1
    assert names.count("_batch_norm_pair_bwd_kernel") == 1
    assert "_batch_norm_sums_kernel" not in names
