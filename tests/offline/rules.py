"""What the machine code of a kernel must and must not have."""

from typing import NamedTuple

import triton
from cases import CACHED_KERNELS, MATRIX_KERNELS, NARROW, Case
from launches import Launch
from machine import MATRIX, Code, copies, inner_loop, overwritten, products

SHARED = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}  # bytes a block
REGISTERS = 64 * 1024  # a multiprocessor
SHARED_BY_ALL = 228 * 1024  # of a multiprocessor of sm_90, of which each block takes 1 KiB besides
OUTPUTS = 2**14  # of a tile, of whose kind a multiprocessor of sm_90 is to hold two blocks
HELD_TWICE = {
    "conv2d_gemm",
    "conv2d_gemm_sums",
    "conv2d_boxes",
    "conv2d_boxes_sums",
}  # as are kernels whose registers are limited
# A loop may access spilled values once in so many instructions: under triton 3.6 and from 3.8 on, whose
# ptxas gives that, too, for one more block.
VERSION = tuple(int(number) for number in triton.__version__.split(".")[:2])
SPILLS_EVERY = None if VERSION == (3, 7) else 250
MULTIPLY_ADDS = {  # of the matrix unit, a clock and multiprocessor
    "fp16": {80: 1024, 89: 512, 90: 2048},
    "bf16": {80: 1024, 89: 512, 90: 2048},
    "tf32": {80: 512, 89: 256, 90: 1024},
    "fp64": {80: 64, 90: 128},
}
MATRIX_OP = {"fp16": "F32", "bf16": "BF16", "tf32": "TF32"}  # how its name ends
KINDS = {"LDG": "", "LDGSTS": "a", "UTMALDG": "t"}


class Row(NamedTuple):
    """A line of the table."""

    case: str
    dtype: str
    kernel: str
    capability: int
    tile: str
    registers: int
    shared: int
    loop: int
    copies: str
    slots: str
    narrowest: int = 0  # bytes of a copy
    faults: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.case:18} {self.dtype:5} {self.kernel:23} sm_{self.capability} {self.tile:17} "
            f"{self.registers:9} {self.shared:6} {self.loop:5} {self.copies:11} {self.slots}"
        )


HEADER = Row(
    "case", "dtype", "kernel", "", "tile", "registers", "shared", "loop", "copies", "slots/cycles"
)  # fmt: skip


def judge(case: Case, capability: int, launch: Launch, code: Code) -> Row:
    kernel = launch.kernel.removeprefix("_").removesuffix("_kernel")
    loop = inner_loop(code)
    loads = copies(loop)
    exempt = {kernel, f"{kernel} sm_{capability}"} & (NARROW.keys() | case.narrow.keys())
    return Row(
        case.name,
        case.dtype,
        kernel,
        capability,
        launch.tile,
        launch.registers,
        launch.shared,
        len(loop),
        " ".join(f"{n}x{width}{KINDS[name]}" for (name, width), n in sorted(loads.items())),
        _slots(loop, launch.warps, case.dtype, capability),
        min((width for _, width in loads), default=0),
        tuple(
            faults(
                launch,
                code,
                case.dtype,
                capability,
                matrix=kernel in MATRIX_KERNELS,
                narrow=bool(exempt),
                cached=kernel in CACHED_KERNELS,
                most_spilled=case.spilled,
            )
        ),
    )


def _slots(loop: Code, warps: int, dtype: str, capability: int) -> str:
    slots = len(loop) * warps // 4
    multiply_adds = sum(
        products(i) * (warps // 4 if i.name == "HGMMA" else warps) for i in loop if i.name in MATRIX
    )
    if multiply_adds == 0:
        return f"{slots}"
    return f"{slots}/{multiply_adds // MULTIPLY_ADDS[dtype][capability]}"


def resident(launch: Launch) -> int:
    """Blocks that a multiprocessor of sm_90 holds; each warp takes registers in units of 256."""
    registers = 32 * launch.warps * (-(-launch.registers // 8) * 8)
    return min(REGISTERS // registers, SHARED_BY_ALL // (launch.shared + 1024), 64 // launch.warps)


def _held_twice(launch: Launch) -> bool:
    if launch.kernel.removeprefix("_").removesuffix("_kernel") not in HELD_TWICE:
        return False
    m, n, *_ = map(int, launch.tile.split()[0].split("x"))
    return m * n <= OUTPUTS


def faults(
    launch: Launch,
    code: Code,
    dtype: str,
    capability: int,
    matrix: bool,
    narrow: bool,
    cached: bool = False,
    most_spilled: int = 0,
) -> list[str]:
    """What is wrong with a kernel.

    matrix: it multiplies on the matrix unit where dtype can, and copies asynchronously; narrow: it
    may copy less than 16 bytes at a time; cached: it loads through the first cache instead; so many
    bytes may be spilled beside the loop.
    """
    found = []
    loop = inner_loop(code)
    spills = sum(i.name in ("LDL", "STL") for i in loop) if launch.spilled else 0
    allowed = len(loop) // SPILLS_EVERY if SPILLS_EVERY else 0
    if spills > allowed or launch.spilled > most_spilled:
        found.append(f"spills {launch.spilled} bytes, with {spills} accesses in the loop")
    if launch.shared > SHARED[capability]:
        found.append(f"{launch.shared} bytes of shared memory exceed {SHARED[capability]}")
    if launch.registers > 255 or launch.registers * launch.warps * 32 > REGISTERS:
        found.append(f"{launch.registers} registers in {launch.warps} warps are too many")
    if launch.limited or (matrix and _held_twice(launch)):
        blocks = resident(launch)
        if blocks < 2:
            found.append(f"{blocks} block a multiprocessor, not two")
    if launch.serialised:
        found.append("ptxas serialises wgmma")
    if launch.narrow_offsets:
        found.append(f"{launch.narrow_offsets} offsets have 32 bits in a kernel for 64")
    if written := overwritten(code):
        found.append(f"{written[0].op} overwrites an operand of a wgmma in flight")

    ops = {i.op for i in code if i.name in MATRIX}
    if matrix and dtype in MATRIX_OP:
        name = "HGMMA" if capability >= 90 else "HMMA"
        names = (name, "HMMA") if cached else (name,)  # small tiles may be of single warps
        if not ops or not all(op.startswith(names) and op.endswith(MATRIX_OP[dtype]) for op in ops):
            found.append(f"multiplies by {sorted(ops)}, not by {name}...{MATRIX_OP[dtype]}")
    elif not all(dtype == "fp64" and op.startswith("DMMA") for op in ops):
        found.append(f"multiplies by {sorted(ops)}")

    loads = copies(loop)
    if not loads:
        found.append("loads nothing in its loop")
    if not narrow and any(width < 16 for _, width in loads):
        found.append("copies less than 16 bytes at a time")
    if matrix and not cached and any(name == "LDG" and width >= 4 for name, width in loads):
        found.append("does not copy asynchronously")  # which takes 4 bytes at least
    return found
