"""What a user pays besides the device's time, measured where there is no GPU, too."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F
from tritonconv import _launch, conv2d, fuse
from tritonconv.nets import LeNet, resnet50

from .host import INTERPRETED, kernels, microseconds, stubbed_launches

pytestmark = [pytest.mark.quick, pytest.mark.full]
compiled = pytest.mark.skipif(_launch.INTERPRETED, reason=INTERPRETED)

IMPORTS = """
from time import perf_counter
start = perf_counter()
import torch
between = perf_counter()
import tritonconv
print(between - start, perf_counter() - between)
"""

library = torch.library.Library("tritonconv_benchmark", "DEF")
library.define("bare(Tensor x, Tensor w, Tensor b) -> Tensor")
library.impl("bare", lambda x, w, b: torch.empty_like(x), "CompositeExplicitAutograd")


class BareFunction(torch.autograd.Function):
    """The least that an operator with a gradient costs: a Function over an op that allocates."""

    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x, w)
        return torch.ops.tritonconv_benchmark.bare.default(x, w, b)

    @staticmethod
    def backward(ctx, dy):
        raise NotImplementedError


@compiled
@pytest.mark.benchmark(group="host: a call of conv2d with gradient, the launch left out")
def test_conv2d_call(benchmark, results):
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    w, b = torch.randn(8, 8, 3, 3).contiguous(memory_format=torch.channels_last), torch.randn(8)
    tensors = [t.requires_grad_() for t in (x, w, b)]
    assert kernels(lambda: conv2d(*tensors, padding=1)).total() == 1
    with stubbed_launches(lambda *launch: None):
        ours, bare = microseconds(
            lambda: conv2d(*tensors, padding=1), lambda: BareFunction.apply(*tensors)
        )
        benchmark.pedantic(conv2d, tensors, {"padding": 1}, rounds=100, iterations=20)
    assert 0 < bare < ours
    figures = {"conv2d_call_us": ours, "bare_function_us": bare, "conv2d_call_ratio": ours / bare}
    benchmark.extra_info |= figures
    results.add_host(**figures)


@compiled
@pytest.mark.benchmark(group="host: kernels that a training step compiles")
def test_lenet_step_kernels(benchmark, results):
    model = LeNet()
    images, labels = torch.randn(256, 1, 28, 28), torch.randint(10, (256,))

    def step():
        F.cross_entropy(model(images), labels).backward()

    counts = benchmark.pedantic(kernels, (step,), rounds=5)
    benchmark.extra_info |= counts | {"total": counts.total()}
    results.add_host(lenet_step_kernels=counts.total())


@compiled
@pytest.mark.benchmark(group="host: kernels that a training step compiles")
def test_resnet50_step_kernels(benchmark, results):
    """Fused, with 256 images, in bfloat16; what is allocated is never written."""
    model = fuse(resnet50()).to(memory_format=torch.channels_last)
    images = torch.empty(256, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(256, dtype=torch.long)

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()

    counts = benchmark.pedantic(kernels, (step,), rounds=1)
    benchmark.extra_info |= counts | {"total": counts.total()}
    results.add_host(resnet50_step_kernels=counts.total())


@pytest.mark.benchmark(group="host: a process that imports tritonconv")
def test_import(benchmark, results):
    def imported():
        command = [sys.executable, "-c", IMPORTS]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    of_torch, ours = map(float, benchmark.pedantic(imported, rounds=3).split())
    figures = {"import_torch_s": of_torch, "import_tritonconv_s": ours}
    benchmark.extra_info |= figures
    results.add_host(**figures)
