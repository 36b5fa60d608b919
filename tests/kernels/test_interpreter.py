"""The interpreter's switch, in fresh processes: it must not matter who imports triton first."""

import os
import subprocess
import sys
import textwrap
import threading

import numpy
import pytest
import torch
import triton
import triton.language as tl
import tritonconv
from tritonconv import _interpreter, _launch

needs_interpreter = pytest.mark.skipif(
    not _launch.INTERPRETED, reason="the kernels run on a GPU in this process"
)

works = pytest.mark.skipif(
    _interpreter._version(triton) < (3, 7) and _interpreter._version(numpy) >= (2, 4),
    reason="this triton's interpreter does not run with this numpy",
)

CHECK = """
import torch, tritonconv
x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
conv = tritonconv.Conv2d(3, 4, 3).double()
y = tritonconv.max_pool2d(tritonconv.avg_pool2d(conv(x), 2, 1), 3)
y.sum().backward()
theirs = tritonconv.as_torch(conv)
z = torch.nn.functional.max_pool2d(torch.nn.functional.avg_pool2d(theirs(x), 2, 1), 3)
(dx,) = torch.autograd.grad(z.sum(), x)
torch.testing.assert_close(y, z)
torch.testing.assert_close(x.grad, dx)
torch.testing.assert_close(conv.bias.grad, torch.full((4,), 2.0).double())
print("right")
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess:
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**inherited, "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@works
@pytest.mark.parametrize(
    "before",
    [
        "",
        "import torch; torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)",
        """
import triton, triton.language as tl
@triton.jit
def theirs(x_ptr, BLOCK: tl.constexpr):
    tl.store(x_ptr, tl.sum(tl.load(x_ptr + tl.arange(0, BLOCK)), axis=0))
""",
        "import os; os.environ['TRITON_INTERPRET'] = '1'",
    ],
    ids=["nothing", "an optimizer", "early triton", "explicit 1"],
)
def test_import_order_does_not_matter(before, tmp_path):
    program = tmp_path / "program.py"  # triton.jit reads its function's source file
    program.write_text(before + CHECK)
    done = run(f"import runpy; runpy.run_path({str(program)!r})")
    assert done.stdout == "right\n", done.stderr
    assert done.stderr.count("Triton's interpreter") == 1


def test_explicit_0_refuses_cpu_tensors_with_the_remedy():
    done = run(CHECK, TRITON_INTERPRET="0")
    assert done.returncode == 1
    assert "RuntimeError: tritonconv: expected CUDA tensors, got a tensor on cpu" in done.stderr
    assert "set TRITON_INTERPRET=1 before importing tritonconv" in done.stderr


def test_import_is_silent_and_switches_the_interpreter_on():
    done = run("import tritonconv, os; print(os.environ['TRITON_INTERPRET'])")
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_old_triton_with_new_numpy_is_refused_with_the_remedy():
    done = run(
        """
        import tritonconv, torch, triton, numpy
        triton.__version__, numpy.__version__ = "3.6.0", "2.4.1"
        tritonconv.corr2d(torch.ones(2, 2), torch.ones(1, 1))
        """
    )
    assert "install triton >= 3.7 or numpy < 2.4" in done.stderr


def test_three_threads_at_once(device):
    model = tritonconv.Conv2d(3, 4, 3).to(device)
    xs = [torch.randn(2, 3, 8, 8, device=device) for _ in range(3)]
    expected = [model(x) for x in xs]
    got: dict[int, list] = {}

    def work(i):
        got[i] = [model(xs[i]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(y, expected[i]) for i in range(3) for y in got[i])


@triton.jit
def _copy_kernel(x_ptr, y_ptr, first, BLOCK: tl.constexpr):
    offs = first + tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs))


@needs_interpreter
@pytest.mark.parametrize("first", [-1, 1])
def test_interpreted_memory_access_is_checked(first):
    x = torch.zeros(24)
    with pytest.raises(Exception, match=r"of a tensor of 8 elements|lies in none"):
        _launch.launch(_copy_kernel, 1, x[8:16], x[8:16], first, 8, out=x)


@needs_interpreter
def test_interpreter_is_left_as_it_was_found():
    module = _interpreter.interpreter
    before = module._interpreter, module.interpreter_builder.options
    tritonconv.corr2d(torch.ones(2, 2), torch.ones(1, 1))
    assert (module._interpreter, module.interpreter_builder.options) == before


@needs_interpreter
def test_bfloat16_is_rounded_to_nearest_even():
    x = torch.randn(1, 1, 1, 4096).to(torch.bfloat16)
    y = tritonconv.avg_pool2d(x, 1, divisor_override=3)
    assert torch.equal(y, (x.float() / 3).to(torch.bfloat16))
