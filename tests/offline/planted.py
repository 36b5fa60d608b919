"""Compiles kernels that have one fault each, and prints as JSON what the offline check finds."""

import os

os.environ["TRITON_INTERPRET"] = "0"  # before any kernel is decorated

import json
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from check import over_budget
from launches import CompilationError, launches
from machine import disassemble
from rules import HEADER, faults
from tritonconv._launch import launch


@triton.jit
def _product_kernel(
    a_ptr, b_ptr, c_ptr, K,  # a [BLOCK_M, K], b [BLOCK_N, K], c [BLOCK_M, BLOCK_N]
    RELU: tl.constexpr, INDEX: tl.constexpr,  # which the offsets should have
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        a = tl.load(a_ptr + (m[:, None] * K + start + k[None, :]))
        b = tl.load(b_ptr + (n[None, :] * K + start + k[:, None]))
        if RELU:  # takes a through registers
            a = tl.maximum(a, tl.zeros_like(a))
        acc = tl.dot(a, b, acc, input_precision="ieee")
    tl.store(c_ptr + (m[:, None] * BLOCK_N + n[None, :]), acc)


def product(
    m=128, n=64, k=64, warps=8, stages=3, K=1024, relu=False, index=tl.int32, dtype=torch.float16,
    **options,
) -> Callable[[], None]:  # fmt: skip
    def call() -> None:
        a, b, c = torch.empty(m, K, dtype=dtype), torch.empty(n, K, dtype=dtype), torch.empty(m, n)
        launch(
            _product_kernel, 1,
            a, b, c, K, relu, index, m, n, k, stages, out=c, num_warps=warps, **options,
        )  # fmt: skip

    return call


PLANTS = {
    "sound on sm_80": (80, product(k=32)),
    "sound on sm_90": (90, product()),
    "two blocks": (90, product(maxnreg=128)),
    "one block": (90, product(stages=5, maxnreg=128)),
    "spill": (90, product(m=256, n=256)),
    "shared memory": (89, product(stages=6)),
    "narrow copies": (90, product(K=1001)),
    "synchronous copies": (80, product(stages=1)),
    "no matrix unit": (90, product(m=64, k=32, dtype=torch.float32)),
    "serialised": (90, product(n=128, relu=True)),
    "overwritten operand": (90, product(relu=True)),
    "narrow offsets": (90, product(index=tl.int64)),
    "does not compile": (90, product(k=48)),
}


def found(capability: int, call: Callable[[], None]) -> list[str]:
    try:
        (product,) = launches(call, capability, "general")
    except CompilationError as error:
        return [str(error)]
    (code,) = disassemble([product.cubin], capability)
    return faults(product, code, "fp16", capability, matrix=True, narrow=False)


if __name__ == "__main__":
    result = {name: found(*plant) for name, plant in PLANTS.items()}
    row = HEADER._replace(loop=120)
    result["longer loop"] = over_budget([row], {row[:4]: 100})
    result["loop within budget"] = over_budget([row], {row[:4]: 120})
    result["loop without budget"] = over_budget([row], {})
    result["budget without loop"] = over_budget([], {row[:4]: 120})
    print(json.dumps(result, indent=1))
