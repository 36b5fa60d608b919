"""What training steps and single operators cost the host: on a GPU that does nothing (tests/stub).

python -m benchmarks host runs them there, in an environment with a CUDA build of torch, steps by
callgrind where that is installed: instructions are the same in every run, however busy the machine.
An operator's call has a gradient and launches, and is held against the least that any such call of
a Function costs.
"""

import ctypes
import functools
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .results import Results

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".venv-torch-2.11.0/bin/python"
NETWORKS = ("resnet50", "resnet18", "resnext50_32x4d", "mobilenet_v2", "vgg16_bn")
SIDES = ("ours", "unfused")
COUNTED = ("launches", "torch kernels", "copies", "Python calls")
BATCH = 16
NOTHING, BARE = "nothing", "a bare Function"


def table(networks: Sequence[str], path: Path | None = None) -> str:
    """Markdown: a row for each network, fused and not, and for each pass of each operator; into a
    results file where one is given."""
    if not PYTHON.exists():
        raise SystemExit(f"host: expected {PYTHON}; run make {PYTHON.parent.parent.name}/installed")
    with tempfile.TemporaryDirectory() as folder:
        by_callgrind = []
        if shutil.which("valgrind"):
            by_callgrind = [
                "valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no",
                f"--callgrind-out-file={folder}/step",
            ]  # fmt: skip
        command = [PYTHON, ROOT / "tests/stub/run.py", *by_callgrind, PYTHON, "-m", __name__]
        done = subprocess.run(
            [*command, str(bool(by_callgrind)), *networks],
            cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        machine, *rows = (json.loads(line) for line in done.stdout.splitlines() if line[0] == "{")
        cost = "instructions" if by_callgrind else "CPU us"
        for file in Path(folder).iterdir():
            text = file.read_text(errors="replace")
            if named := re.search(r"^desc: Trigger: Client Request: (\d+)", text, re.MULTILINE):
                total = re.search(r"^totals: (\d+)", text, re.MULTILINE)[1]
                rows[int(named[1])][cost] = int(total)
    steps, passes = _steps(rows, cost), _passes(rows, cost)
    if path is not None:
        results = Results(path)
        results.machine = machine
        results.add_host(
            **{
                f"{name}, {column}": value
                for name, row in (steps | passes).items()
                for column, value in row.items()
            }
        )
    return "\n\n".join(map(_markdown, (steps, passes)))


def _steps(rows: list[dict], cost: str) -> dict[str, dict[str, float]]:
    scaled = {"instructions": "M instructions", "CPU us": "CPU ms"}[cost]
    factor = 1e-6 if cost == "instructions" else 1e-3
    return {
        row["step"]: {column: row[column] for column in COUNTED}
        | {scaled: round(factor * row[cost], 1)}
        for row in rows
        if "step" in row
    }


def _passes(rows: list[dict], cost: str) -> dict[str, dict[str, float]]:
    """Forward and backward of each call; what both cost but the forward is the backward's."""
    columns = *COUNTED, cost
    calls = {(row["call"], row["passes"]): row for row in rows if "call" in row}
    nothing, found = calls.pop((NOTHING, 1)), {}
    for (name, passes), row in calls.items():
        less = nothing if passes == 1 else calls[name, 1]
        of_pass = {column: row[column] - less[column] for column in columns}
        found[f"{name} {'forward' if passes == 1 else 'backward'}"] = of_pass
    for name, row in found.items():
        row["bare Functions"] = round(row[cost] / found[f"{BARE} {name.split()[-1]}"][cost], 2)
    return found


def _markdown(rows: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(rows.values()), {}))
    lines = [["", *columns], ["---"] * (1 + len(columns))]
    lines += [[name, *(f"{row[column]:,}" for column in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def counts(call: Callable[[], object]) -> dict[str, int]:
    """Of a call that ran before; once more here, where its backward runs in no other thread."""
    import torch

    driver, runtime = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libcudart.so.13")
    names = (driver, "stub_launches"), (runtime, "stub_kernels"), (runtime, "stub_copies")

    def stub() -> list[int]:
        return [ctypes.c_ulong.in_dll(library, name).value for library, name in names]

    with torch.autograd.set_multithreading_enabled(False):
        call()
    before = stub()
    calls = python_calls(call)
    found = [now - then for now, then in zip(stub(), before, strict=True)]
    return dict(zip(COUNTED, (*found, calls), strict=True))


def python_calls(call: Callable[[], object]) -> int:
    import torch

    calls = 0

    def seen(frame, event: str, argument) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    with torch.autograd.set_multithreading_enabled(False):
        sys.setprofile(seen)
        try:
            call()
        finally:
            sys.setprofile(None)
    return calls


def cost(call: Callable[[], object], number: int, by_callgrind: bool) -> dict[str, float]:
    """Its instructions in a dump of callgrind's of that number, or else the least CPU time of a
    few rounds, since others' work on the CPU only adds."""
    import torch

    with torch.autograd.set_multithreading_enabled(False):
        if by_callgrind:
            library = ctypes.CDLL(
                str(Path(sysconfig.get_path("purelib"), "tritonconv_stub/callgrind.so"))
            )
            library.start()
            call()
            library.stop(str(number).encode())
            return {}
        times = []
        for _ in range(20):
            start = time.process_time()
            call()
            times.append(1e6 * (time.process_time() - start))
    return {"CPU us": min(times)}


@functools.cache
def calls() -> dict[str, tuple[Callable[[], object], Sequence]]:
    """Single calls, and the tensors whose gradients each is asked for."""
    import torch
    import tritonconv
    from torch import nn
    from tritonconv.nets.resnet import Bottleneck

    class BareFunction(torch.autograd.Function):
        """A Function over an op that allocates."""

        @staticmethod
        def forward(ctx, x, w, b):
            ctx.save_for_backward(x, w)
            return torch.ops.tritonconv_benchmark.bare.default(x, w, b)

        @staticmethod
        def backward(ctx, dy):
            _, w = ctx.saved_tensors
            return dy, w, None

    library = torch.library.Library("tritonconv_benchmark", "DEF")
    library.define("bare(Tensor x, Tensor w, Tensor b) -> Tensor")
    library.impl("bare", lambda x, w, b: torch.empty_like(x), "CompositeExplicitAutograd")
    x, w, image = (
        torch.randn(*shape, device="cuda")
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for shape in ((2, 8, 6, 6), (8, 8, 3, 3), (BATCH, 256, 56, 56))
    )
    b, scale = (torch.randn(8, device="cuda").requires_grad_() for _ in range(2))
    layer = tritonconv.BatchNorm2d(8).cuda()
    block = tritonconv.fuse(nn.Sequential(Bottleneck(256, 64)).cuda())
    block = block.to(memory_format=torch.channels_last)
    image = image.detach().bfloat16().requires_grad_()
    return {
        NOTHING: (lambda: None, ()),
        BARE: (lambda: (library, BareFunction.apply(x, w, b))[1], (x, w)),
        "conv2d": (lambda: tritonconv.conv2d(x, w, b, padding=1), (x, w, b)),
        "max_pool2d": (lambda: tritonconv.max_pool2d(x, 2), (x,)),
        "avg_pool2d": (lambda: tritonconv.avg_pool2d(x, 2), (x,)),
        "batch_norm": (
            lambda: tritonconv.batch_norm(x, None, None, scale, b, training=True),
            (x, scale, b),
        ),
        "BatchNorm2d": (lambda: layer(x), (x, layer.weight, layer.bias)),
        "a fused bottleneck": (lambda: block(image), (image, *block.parameters())),
    }


def main(by_callgrind: bool, networks: Sequence[str]) -> None:
    import torch

    from . import device
    from . import networks as table_of

    print(json.dumps(device.machine()), flush=True)
    number = 0

    def row(name: dict[str, object], call: Callable[[], object]) -> None:
        nonlocal number
        for _ in range(16 if "call" in name else 4):  # compiled, recorded, replayed; quickened
            call()
        print(json.dumps(name | counts(call) | cost(call, number, by_callgrind)), flush=True)
        number += 1

    with torch.autocast("cuda", torch.bfloat16, enabled=False):
        pass  # what its first use imports is nobody's
    for name, (call, leaves) in calls().items():
        with torch.autocast("cuda", torch.bfloat16, enabled="bottleneck" in name):
            row({"call": name, "passes": 1}, call)
            if leaves:
                dy = torch.zeros_like(call())
                row(
                    {"call": name, "passes": 2},
                    lambda call=call, leaves=leaves, dy=dy: torch.autograd.grad(call(), leaves, dy),
                )
    for network in networks:
        for side in SIDES:
            of = table_of.NetworkRow(network, network, BATCH, "training", "bf16")
            step = table_of.MAKE[side](of, table_of.inputs(of, "cuda"))
            row({"step": f"{network} {side}"}, step)


if __name__ == "__main__":
    main(sys.argv[1] == "True", sys.argv[2:])
