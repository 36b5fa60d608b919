"""The offline check: compiles every case for sm_80, sm_89 and sm_90, and judges the machine code.

    python tests/offline/check.py            prints the table; exit status 1 where anything is wrong
    python tests/offline/check.py --record   also raises the recorded loop lengths to those measured

Columns: shared = bytes of shared memory; loop = instructions of the inner loop; copies = its loads
from global memory, number x bytes, "a" for asynchronous ones and "t" for TMA; slots/cycles = issue
slots that the loop takes on each scheduler, and cycles that its products take on the matrix unit:
with more slots than cycles, issuing instructions bounds the loop.  A model, not a timing.
"""

import os

os.environ["TRITON_INTERPRET"] = "0"  # before any kernel is decorated

import csv
import itertools
import multiprocessing
import sys
import time
from pathlib import Path
from typing import NamedTuple

import triton
from cases import CASES, MATRIX_KERNELS, NARROW, Case
from launches import CompilationError, Launch, launches
from machine import MATRIX, Code, copies, disassemble, inner_loop, overwritten, products
from tritonconv.conv import tiles

CAPABILITIES = (80, 89, 90)
SHARED = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}  # bytes a block
REGISTERS = 64 * 1024  # a multiprocessor
MULTIPLY_ADDS = {  # of the matrix unit, a clock and multiprocessor
    "fp16": {80: 1024, 89: 512, 90: 2048},
    "bf16": {80: 1024, 89: 512, 90: 2048},
    "tf32": {80: 512, 89: 256, 90: 1024},
    "fp64": {80: 64, 90: 128},
}
MATRIX_OP = {"fp16": "F32", "bf16": "BF16", "tf32": "TF32"}  # how its name ends
KINDS = {"LDG": "", "LDGSTS": "a", "UTMALDG": "t"}
BUDGETS = Path(__file__).with_name("budgets.csv")
SLACK = 1.05  # of a recorded loop length


Budgets = dict[tuple[str, str, str, int], int]  # instructions of the loop, by a row's first four


class Row(NamedTuple):
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


def compile_case(index: int, capability: int) -> tuple[list[Launch], str]:
    """What the case launches on sm_<capability>, or why that does not compile."""
    case = CASES[index]
    try:
        return launches(lambda: case.call(case.dtype), capability), ""
    except CompilationError as error:
        return [], f"{case.name} {case.dtype} sm_{capability}: {error}"


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
        slots(loop, launch.warps, case.dtype, capability),
        min((width for _, width in loads), default=0),
        tuple(faults(launch, code, case.dtype, capability, kernel in MATRIX_KERNELS, bool(exempt))),
    )


def slots(loop: Code, warps: int, dtype: str, capability: int) -> str:
    issue = len(loop) * warps // 4
    multiply_adds = sum(
        products(i) * (warps // 4 if i.name == "HGMMA" else warps) for i in loop if i.name in MATRIX
    )
    if not multiply_adds:
        return f"{issue}"
    return f"{issue}/{multiply_adds // MULTIPLY_ADDS[dtype][capability]}"


def faults(
    launch: Launch, code: Code, dtype: str, capability: int, matrix: bool, narrow: bool
) -> list[str]:
    """What is wrong with a kernel.

    matrix: it multiplies on the matrix unit where dtype can, and copies asynchronously; narrow: it
    may copy less than 16 bytes at a time.
    """
    found = []
    loop = inner_loop(code)
    if launch.spilled:
        inside = sum(i.name in ("LDL", "STL") for i in loop)
        found.append(f"spills {launch.spilled} bytes, with {inside} accesses in the loop")
    if launch.shared > SHARED[capability]:
        found.append(f"{launch.shared} bytes of shared memory exceed {SHARED[capability]}")
    if launch.registers > 255 or launch.registers * launch.warps * 32 > REGISTERS:
        found.append(f"{launch.registers} registers in {launch.warps} warps are too many")
    if launch.serialised:
        found.append("ptxas serialises wgmma")
    if written := overwritten(code):
        found.append(f"{written[0].op} overwrites an operand of a wgmma in flight")

    ops = {i.op for i in code if i.name in MATRIX}
    if matrix and dtype in MATRIX_OP:
        name = "HGMMA" if capability >= 90 else "HMMA"
        if not ops or not all(op.startswith(name) and op.endswith(MATRIX_OP[dtype]) for op in ops):
            found.append(f"multiplies by {sorted(ops)}, not by {name}...{MATRIX_OP[dtype]}")
    elif not all(op.startswith("DMMA") and dtype == "fp64" for op in ops):
        found.append(f"multiplies by {sorted(ops)}")

    loads = copies(loop)
    if not loads:
        found.append("loads nothing in its loop")
    if not narrow and any(width < 16 for _, width in loads):
        found.append("copies less than 16 bytes at a time")
    if matrix and any(name == "LDG" and width >= 4 for name, width in loads):
        found.append("does not copy asynchronously")  # which takes 4 bytes at least
    return found


def over_budget(rows: list[Row], budgets: Budgets) -> list[str]:
    """Loops longer than recorded, and records that miss or have no row."""
    found = [
        f"{_name(row)}: loop {row.loop} exceeds the recorded {budgets[row[:4]]}"
        for row in rows
        if row.loop > SLACK * budgets.get(row[:4], row.loop)
    ]
    keys = {row[:4] for row in rows}
    found += [f"{_name(key)}: no loop length is recorded" for key in keys - budgets.keys()]
    found += [f"{_name(key)}: recorded, but not launched" for key in budgets.keys() - keys]
    return found


def _name(row: tuple) -> str:
    case, dtype, kernel, capability = row[:4]
    return f"{case} {dtype} {kernel} sm_{capability}"


def read_budgets() -> Budgets:
    if not BUDGETS.exists():
        return {}
    with BUDGETS.open(newline="") as file:
        return {
            (line["case"], line["dtype"], line["kernel"], capability): int(line[f"sm_{capability}"])
            for line in csv.DictReader(file)
            for capability in CAPABILITIES
        }


def record_budgets(rows: list[Row], budgets: Budgets) -> Budgets:
    """The longer of measured and recorded loops, which it writes to the file."""
    longest = {row[:4]: budgets.get(row[:4], 0) for row in rows}
    for row in rows:
        longest[row[:4]] = max(longest[row[:4]], row.loop)
    with BUDGETS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case", "dtype", "kernel", *(f"sm_{c}" for c in CAPABILITIES)])
        for key in dict.fromkeys(row[:3] for row in rows):
            writer.writerow([*key, *(longest[(*key, c)] for c in CAPABILITIES)])
    return longest


def not_covered(rows: list[Row]) -> list[str]:
    """Kernels of the library, and tiles of the tables, that no case launches."""
    kernels = {
        name.removeprefix("_").removesuffix("_kernel")
        for module in list(sys.modules.values())
        if module.__name__.startswith("tritonconv")
        for name, value in vars(module).items()
        if isinstance(value, triton.JITFunction) and name.endswith("_kernel")
    }
    tables = [*tiles.TILES.values(), *tiles.HOPPER.values()]
    shapes = {f"{t.m}x{t.n}x{t.k} w{t.warps} s{t.stages}" for table in tables for t in table}
    missing = (kernels - {row.kernel for row in rows}) | (shapes - {row.tile for row in rows})
    return [f"no case launches {name}" for name in sorted(missing)]


def unneeded(rows: list[Row]) -> list[str]:
    """Exemptions from 16-byte copies that no row needs."""
    needed = {
        (row.case, row.dtype, kernel)
        for row in rows
        if row.narrowest < 16
        for kernel in (row.kernel, f"{row.kernel} sm_{row.capability}")
    }
    given = [(case.name, case.dtype, kernel) for case in CASES for kernel in case.narrow]
    return [f"{' '.join(key)}: copies 16 bytes at a time" for key in given if key not in needed]


def main() -> int:
    started = time.monotonic()
    jobs = list(itertools.product(range(len(CASES)), CAPABILITIES))
    with multiprocessing.Pool() as pool:
        compiled = pool.starmap(compile_case, jobs, chunksize=1)
    failures = [error for _, error in compiled if error]

    rows = []
    for capability in CAPABILITIES:
        found = [
            (CASES[index], launch)
            for (index, target), (launched, _) in zip(jobs, compiled, strict=True)
            if target == capability
            for launch in launched
        ]
        codes = disassemble([launch.cubin for _, launch in found], capability)
        rows += [
            judge(case, capability, launch, code)
            for (case, launch), code in zip(found, codes, strict=True)
        ]
    rows = list(dict.fromkeys(rows))  # a case may launch a binary more than once
    order = {key: i for i, key in enumerate(dict.fromkeys(row[:3] for row in rows))}
    rows.sort(key=lambda row: (order[row[:3]], row.capability))
    print(HEADER, *rows, sep="\n")

    budgets = read_budgets()
    if "--record" in sys.argv:
        budgets = record_budgets(rows, budgets)
    failures += [f"{_name(row)}: {fault}" for row in rows for fault in row.faults]
    failures += over_budget(rows, budgets) + unneeded(rows) + not_covered(rows)
    for failure in failures:
        print("FAIL", failure)
    seconds = time.monotonic() - started
    print(
        f"triton {triton.__version__}: {len(rows)} rows, {len(failures)} failures, {seconds:.0f} s"
    )
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
