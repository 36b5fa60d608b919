"""Results are changed in place as torch's are: no operator returns a view, whatever its strides."""

import itertools

import pytest
import torch
import tritonconv
from launched import of_numbers
from reference import Case, assert_close, in_float64
from torch import nn
from torch.nn import functional as F
from tritonconv import _common

WINDOW = {"kernel_size": 2, "padding": 1}
# by operator: shapes of the tensors behind an input of C channels, and options
OPERATORS = {
    "conv1d": lambda C: ([(1, C, 3)], {"padding": 1}),
    "conv1d 1": lambda C: ([(2, C, 1), (2,)], {}),
    "conv2d": lambda C: ([(1, C, 3, 3), (1,)], {"padding": 1}),
    "conv2d 1x1": lambda C: ([(2, C, 1, 1)], {}),
    "conv2d depthwise": lambda C: ([(C, 1, 3, 3)], {"padding": 1, "groups": C}),
    "conv_transpose1d": lambda C: ([(C, 1, 2), (1,)], {"stride": 2}),
    "conv_transpose2d": lambda C: ([(C, 1, 1, 1)], {}),
    "conv_transpose2d 2x2": lambda C: ([(C, 2, 2, 2), (2,)], {"stride": 2}),
    "max_pool1d": lambda C: ([], WINDOW),
    "max_pool2d": lambda C: ([], WINDOW),
    "avg_pool1d": lambda C: ([], WINDOW),
    "avg_pool2d": lambda C: ([], WINDOW),
    "adaptive_avg_pool1d": lambda C: ([], {"output_size": 1}),
    "adaptive_avg_pool2d": lambda C: ([], {"output_size": 1}),
    "adaptive_avg_pool2d 1x2": lambda C: ([], {"output_size": (1, 2)}),
    "adaptive_max_pool1d": lambda C: ([], {"output_size": 1}),
    "adaptive_max_pool2d": lambda C: ([], {"output_size": (2, 1)}),
}
IMAGES = list(itertools.product((1, 2), (1, 3), (1, 4), (1, 4)))  # every shape with sizes of 1


def case(operator: str, shape: tuple[int, ...]) -> Case:
    others, options = OPERATORS[operator](shape[1])
    return Case(operator.split()[0], (shape, *others), options)


def changed(f, tensors, bias):
    """f's result, scaled and shifted in place, its strides before, and all gradients."""
    leaves = [t.detach().requires_grad_() for t in (*tensors, bias)]
    y = f(*leaves[:-1])
    strides = y.stride()
    y *= 2
    y += leaves[-1]
    dy = torch.arange(y.numel(), dtype=torch.float64).view(y.shape).to(y)
    return strides, [y.detach(), *torch.autograd.grad(y, leaves, dy, allow_unused=True)]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("operator", OPERATORS)
def test_result_is_changed_in_place(operator, memory_format, device):
    if "1d" in operator and memory_format == torch.channels_last:
        pytest.skip("signals have no memory formats")
    for shape in IMAGES:
        this = case(operator, shape[:3] if "1d" in operator else shape)
        given = this.tensors(device)
        if given[0].dim() == 4:
            given[0] = given[0].to(memory_format=memory_format)
        bias = torch.randn(1, dtype=torch.float64, device=device)
        strides, actual = changed(this.ours, given, bias)
        _, expected = changed(this.theirs, in_float64(given), bias.cpu())
        assert_close(actual, expected, 100 * this.reduced)
        assert strides == strides_of(actual[0].shape, _common.layout(given[0])), shape


def strides_of(shape, memory_format) -> tuple[int, ...]:
    x = torch.empty(shape)
    return torch.empty_like(x, memory_format=memory_format).stride() if x.dim() == 4 else x.stride()


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
@pytest.mark.parametrize("training", [True, False])
@of_numbers
def test_normalised_result_is_changed_in_place(rank, training, device):
    for sizes in itertools.product((1, 3), repeat=rank - 2):
        for N, C in itertools.product((1, 2), (1, 3)):
            x = torch.randn(N, C, *sizes, dtype=torch.float64, device=device)
            if training and x.numel() == C:
                continue  # one value a channel
            running = torch.zeros(C).double(), torch.ones(C).double()
            w, bias = torch.randn(C).double(), torch.randn(1).double()

            def norm(of, x, w, running=running):
                return of.batch_norm(x, *(t.clone().to(x) for t in running), w, training=training)

            for memory_format in (torch.contiguous_format, torch.channels_last)[: 1 + (rank == 4)]:
                given = x.contiguous(memory_format=memory_format)
                strides, actual = changed(
                    lambda x, w: norm(tritonconv, x, w), (given, w.to(device)), bias.to(device)
                )
                _, expected = changed(lambda x, w: norm(F, x, w), (x.cpu(), w), bias)
                torch.testing.assert_close([t.cpu() for t in actual], expected)
                assert strides == strides_of(given.shape, _common.layout(given))


def test_batch_norm_of_one_image_has_the_strides_of_its_format(device):
    x = torch.randn(1, 4, 6, 6, device=device).to(memory_format=torch.channels_last)
    assert tritonconv.batch_norm(x, None, None, training=True).stride() == (144, 1, 24, 4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("given", [True, False])
@of_numbers
def test_fused_result_is_changed_in_place(training, given, device):
    """Where it is kept for the backward, torch notices, as it does of its own ReLU."""
    for shape in ((2, 3, 1, 1), (2, 3, 4, 4)):
        x = torch.randn(shape, device=device, requires_grad=True)
        w = torch.randn(1, 3, 1, 1, device=device, requires_grad=True)
        residual = torch.randn(2, 1, *shape[2:], device=device) if given else None
        running = torch.zeros(1, device=device), torch.ones(1, device=device)
        y = tritonconv.conv_bn_relu(x, w, None, *running, training=training, residual=residual)
        expected = y.detach() + 1
        y += 1
        assert torch.equal(y, expected)
        if given:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()
        else:
            y.sum().backward()


@pytest.mark.parametrize("operator", OPERATORS)
@of_numbers
def test_result_without_gradient_is_changed_where_there_is_one(operator, device):
    """As features of a frozen backbone are: a view made without gradients would refuse."""
    for shape in ((2, 3, 4, 4), (1, 1, 1, 1)):
        this = case(operator, shape[:3] if "1d" in operator else shape)
        given = this.tensors(device)
        for unbatched in (False, True):
            x = given[0][0] if unbatched else given[0]
            with torch.no_grad():
                y = this.ours(x, *given[1:])
            expected, p = y.clone() + 1, torch.ones(1, device=device, dtype=y.dtype)
            y += p.requires_grad_()
            assert torch.equal(y, expected)


class SqueezeAndExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool, self.reduce = nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 1, 1)
        self.act, self.expand = nn.ReLU(inplace=True), nn.Conv2d(1, 4, 1)

    def forward(self, x):
        return x * self.expand(self.act(self.reduce(self.pool(x)))).sigmoid()


MODELS = {
    "a classifier's head": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True)),
        (5, 4),
    ),
    "squeeze and excite": (SqueezeAndExcite, (2, 4, 5, 5)),
    "pooling of ASPP": (
        lambda: nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        ),
        (2, 4, 5, 5),
    ),
    "dropout of pixels": (
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Dropout(0.0, inplace=True)),
        (2, 4, 5, 5),
    ),
    "a map of one channel": (
        lambda: nn.Sequential(nn.Conv2d(4, 1, 3), nn.ReLU(inplace=True), nn.MaxPool2d(3)),
        (2, 4, 5, 5),
    ),
}


@pytest.mark.parametrize("name", MODELS)
@of_numbers
def test_model_with_in_place_layers_trains(name, device):
    make, shape = MODELS[name]
    theirs = make().double()
    ours = tritonconv.convert(theirs).to(device)
    x = torch.randn(shape, dtype=torch.float64)
    results = []
    for model, given in ((ours, x.to(device)), (theirs, x)):
        leaf = given.clone().requires_grad_()
        y = model(leaf)
        gradients = torch.autograd.grad(y.square().sum(), [leaf, *model.parameters()])
        results.append([t.detach().cpu() for t in (y, *gradients)])
    torch.testing.assert_close(*results)
