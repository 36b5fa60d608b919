"""Launches that happened before are started as compiled then: with the same parameters as Triton's."""

import threading
from types import SimpleNamespace

import pytest
import torch
import triton
import triton.language as tl
import tritonconv
from launched import by_triton, launched, on_gpu, on_stub, repeats, stub, triton_runs
from reference import forward_backward
from samples import OPERATORS, inputs
from tritonconv import _launch, max_pool2d


@triton.jit
def _scale_kernel(x_ptr, y_ptr, factor, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs) * factor)


@triton.jit
def _described_kernel(x_ptr, y_ptr, factor, BLOCK: tl.constexpr):
    """With a descriptor made in the kernel, which takes memory that Triton allocates."""
    x = tl.make_tensor_descriptor(x_ptr, [BLOCK, 16], [16, 1], [BLOCK, 16]).load([0, 0])
    tl.store(y_ptr + tl.arange(0, BLOCK), tl.sum(x, axis=1) * factor)


def scale(x, factor=3, **options):
    y = torch.empty_like(x)
    _launch.launch(_scale_kernel, 1, x, y, factor, 32, out=y, **options)
    return y


@pytest.fixture
def x(device):
    return torch.arange(32.0, device=device)


@on_stub
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_prepared_launch_passes_what_triton_passes(operator, dtype, device, monkeypatch):
    f, shapes = OPERATORS[operator]
    given = [t.to(dtype) for t in inputs(shapes, device)]
    dy = torch.zeros_like(f(*given))

    def call():
        forward_backward(f, *given, dy=dy)

    call(), call()
    runs = triton_runs(monkeypatch)
    prepared = launched(call)
    assert not runs
    by_triton(monkeypatch)
    assert prepared == launched(call)
    assert len(prepared) == len(runs) > 0
    assert all(launch.parameters for launch in prepared)


@on_stub
def test_prepared_product_passes_its_descriptors(device, monkeypatch):
    """Of 64 channels, which the tensor memory accelerator copies."""
    x = torch.randn(2, 64, 8, 8, device=device).to(torch.bfloat16).requires_grad_()
    w = torch.randn(64, 64, 1, 1, device=device).to(torch.bfloat16).requires_grad_()
    dy = torch.zeros(2, 64, 8, 8, device=device, dtype=torch.bfloat16)

    def call():
        torch.autograd.grad(tritonconv.conv2d(x, w), (x, w), dy)

    call(), call()
    prepared = launched(call)
    by_triton(monkeypatch)
    assert prepared == launched(call)
    assert any(len(launch.parameters) > 2 * 128 for launch in prepared)


@on_gpu
def test_what_kernels_are_compiled_for_is_told_apart(x, monkeypatch):
    """Dtypes, alignment, integers, numbers of another type, options."""
    runs = triton_runs(monkeypatch)
    for call in (
        lambda: scale(x),
        lambda: scale(x.double()),
        lambda: scale(torch.cat((x, x))[1:33]),
        lambda: scale(x, 1),
        lambda: scale(x, 16),
        lambda: scale(x, 1.0),
        lambda: scale(x, 2**40),
        lambda: scale(x, num_warps=2),
    ):
        runs.clear()
        first = call()
        assert len(runs) == 1
        assert repeats(first, call())
        assert len(runs) == 1


@on_gpu
@pytest.mark.parametrize("hook", ["added", "in the chain's place"])
def test_launch_hooks_see_every_launch(x, hook, monkeypatch):
    scale(x), scale(x)
    seen = []

    def see(metadata):
        seen.append(metadata.get()["name"])

    runtime = triton.knobs.runtime
    with monkeypatch.context() as patch:
        if hook == "added":
            patch.setattr(runtime.launch_exit_hook, "calls", [see])
        else:
            patch.setattr(runtime, "launch_enter_hook", see)
        scale(x)
        assert seen == ["_scale_kernel"]
    scale(x)
    assert len(seen) == 1


@on_gpu
@pytest.mark.parametrize(
    ("knobs", "name", "value"),
    [
        (triton.knobs.runtime, "debug", True),
        (triton.knobs.compilation, "instrumentation_mode", "consan"),
        (triton.knobs.runtime, "add_stages_inspection_hook", lambda *args: ("", "")),
    ],
    ids=["debug", "instrumentation", "inspection"],
)
def test_no_launch_is_prepared_while_triton_compiles_otherwise(knobs, name, value, monkeypatch):
    index = torch.cuda.current_device()
    assert _launch.stream_of(index) is not None
    monkeypatch.setattr(knobs, name, value)
    assert _launch.stream_of(index) is None


@on_gpu
def test_hook_of_a_kernel_is_called(x, monkeypatch):
    scale(x, 5), scale(x, 5)
    seen = []
    monkeypatch.setattr(_scale_kernel, "pre_run_hooks", [lambda *args, **meta: seen.append(args)])
    for _ in range(3):
        scale(x, 5)
    assert len(seen) == 3


@on_gpu
@pytest.mark.parametrize("option", ["launch_cooperative_grid", "launch_pdl"])
def test_other_grids_are_left_to_triton(x, option, monkeypatch):
    runs = triton_runs(monkeypatch)
    for _ in range(3):
        scale(x, 7, **{option: True})
    assert len(runs) == 3


@on_gpu
def test_kernels_with_memory_of_their_own_are_left_to_triton(x, device, monkeypatch):
    asked = []

    def allocate(size, alignment, stream):
        asked.append(size)
        return torch.empty(size, device=device, dtype=torch.int8)

    triton.set_allocator(allocate)
    x, y = torch.ones(32, 16, device=device), torch.empty(32, device=device)
    for i in range(3):
        _launch.launch(_described_kernel, 1, x, y, 3, 32, out=y)
        assert len(asked) == i + 1


@on_gpu
def test_launch_runs_on_its_tensors_device(x, monkeypatch):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    expected = scale(x)
    other = scale(x.to("cuda:1"))
    runs = triton_runs(monkeypatch)
    with torch.cuda.device(1):
        assert repeats(scale(x), expected)  # on the other
        assert len(runs) == 1
        assert repeats(scale(x.to("cuda:1")), other)
    assert repeats(scale(x), expected)


@on_gpu
@pytest.mark.skipif(stub() is not None, reason="the stub takes every pointer for its own")
def test_tensor_of_the_host_is_refused_as_triton_does(x):
    scale(x), scale(x)
    y = torch.empty_like(x)
    with pytest.raises(ValueError, match="cannot be accessed from Triton"):
        _launch.launch(_scale_kernel, 1, x.cpu(), y, 3, 32, out=y)


@on_stub
def test_prepared_launch_goes_to_the_current_stream(x):
    scale(x), scale(x)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        (inside,) = launched(lambda: scale(x))
    (outside,) = launched(lambda: scale(x))
    assert (inside.stream, outside.stream) == (stream.cuda_stream, 0)


@on_gpu
def test_prepared_launches_are_recorded(x):
    pool = torch.nn.MaxPool2d(2)
    images = x.view(1, 2, 4, 4)
    assert max_pool2d(images, 2).shape == pool(images).shape
    max_pool2d(images, 2)
    seen = tritonconv.explain(max_pool2d, images, 2)
    assert [launch.programs for launch in seen] == [1]


@on_gpu
def test_number_of_prepared_launches_is_bounded(x, monkeypatch):
    monkeypatch.setattr(_launch, "MOST_PREPARED", 3)
    _launch._prepared.clear()
    for factor in range(2, 12):
        scale(x, factor)
        assert 0 < len(_launch._prepared) <= 3


@on_gpu
def test_threads_prepare_launches_beside_each_other(x, monkeypatch):
    monkeypatch.setattr(_launch, "MOST_PREPARED", 8)
    expected, errors = {f: scale(x, f) for f in range(2, 14)}, []

    def work():
        try:
            for _ in range(50):
                for factor, y in expected.items():
                    assert repeats(scale(x, factor), y)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_what_needs_more_than_a_launch_is_not_prepared():
    """Each of them alone, whatever this Triton's kernels have."""
    for name in _launch.SPECIAL:
        compiled = SimpleNamespace(metadata=SimpleNamespace(**{name: 1}))
        assert _launch.Prepared.of(compiled, _scale_kernel, (), {}).run is None
