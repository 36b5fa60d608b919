"""Reading machine code: instructions, loops, copies, and operands overwritten in flight."""

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

import triton

MATRIX = ("HGMMA", "HMMA", "DMMA")
LOADS = ("LDG", "LDGSTS", "UTMALDG")
BYTES = 16  # of an instruction


class Instruction(NamedTuple):
    address: int
    op: str  # HGMMA.64x128x16.F32
    operands: str  # R24, gdesc[UR8], R24

    @property
    def name(self) -> str:
        return self.op.split(".")[0]

    @property
    def target(self) -> int | None:
        """The address to which it branches."""
        return int(self.operands.split()[-1], 16) if self.name == "BRA" else None


Code = list[Instruction]


def disassemble(cubins: list[bytes], capability: int) -> list[Code]:
    """The code of each kernel.  One run of nvdisasm serves them all: starting it takes longest."""
    texts = [_text(cubin) for cubin in cubins]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(texts))
        file.flush()
        architecture = f"SM{capability}{'a' if capability >= 90 else ''}"
        listing = subprocess.run(
            [triton.knobs.nvidia.nvdisasm.path, "--binary", architecture, file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    code = parse(listing)
    ends = accumulate((len(text) // BYTES for text in texts), initial=0)
    return [code[start:end] for start, end in pairwise(ends)]


def _text(cubin: bytes) -> bytes:
    """The section .text.<kernel> of an ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<I20xQQ", cubin, table + i * size) for i in range(count)]
    for name, offset, length in sections:
        if cubin.startswith(b".text.", sections[names][1] + name):
            return cubin[offset : offset + length]
    raise ValueError("the cubin has no section .text")


def parse(listing: str) -> Code:
    """The instructions of nvdisasm's listing."""
    pattern = r"^\s*/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([\w.]+) *(.*?) *;"
    return [
        Instruction(int(address, 16), op, operands)
        for address, op, operands in re.findall(pattern, listing, re.MULTILINE)
    ]


def inner_loop(code: Code) -> Code:
    """Of innermost loops with matrix instructions that with most of them, or else the shortest with
    global loads; without one, all of code.

    Where more matrix instructions are outside of loops than in that, it is not the loop that counts,
    which was unrolled: then what is outside of loops.
    """
    spans = sorted(_loops(code), key=lambda span: span[1] - span[0])
    outside = [i for n, i in enumerate(code) if not any(start <= n <= end for start, end in spans)]
    for names in (MATRIX, LOADS):
        loops = []
        for start, end in spans:
            within = any(start <= other and last <= end for other, last, _ in loops)
            if not within and any(i.name in names for i in code[start : end + 1]):
                loops.append((start, end, code[start : end + 1]))
        if loops:
            return max((*(loop for _, _, loop in loops), outside), key=_matrix_instructions)
    return code


def _matrix_instructions(code: Code) -> int:
    return sum(i.name in MATRIX for i in code)


def _loops(code: Code) -> list[tuple[int, int]]:
    """Where each loop starts, and the branch that ends it."""
    branches = [(i.target, end) for end, i in enumerate(code) if i.target is not None]
    starts = [((target - code[0].address) // BYTES, end) for target, end in branches]
    return [(start, end) for start, end in starts if start < end]


def copies(code: Code) -> Counter[tuple[str, int]]:
    """How many loads from global memory there are, by instruction and width in bytes."""
    return Counter((i.name, _width(i)) for i in code if i.name in LOADS)


def _width(load: Instruction) -> int:
    if load.name == "UTMALDG":
        return 16
    widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((widths[part] for part in load.op.split(".") if part in widths), 4)


def products(instruction: Instruction) -> int:
    """Multiply-adds of a matrix instruction: in a warp group for HGMMA, in a warp for the others."""
    size = instruction.op.split(".")[1]
    if "x" not in size:  # HMMA.16816
        size = {"16816": "16x8x16", "1688": "16x8x8", "1684": "16x8x4", "884": "8x8x4"}[size]
    m, n, k = map(int, size.split("x"))
    return m * n * k


def overwritten(code: Code) -> list[Instruction]:
    """Instructions that write a register from which an HGMMA in flight may still read its operand A."""
    groups: list[list[int]] = [[]]  # registers being read, by commit group; the last group is open
    found = set()
    for instruction in _walk(code):
        if instruction.name == "HGMMA":
            if a := re.match(r"R\w+, R(\d+)", instruction.operands):
                groups[-1] += range(int(a[1]), int(a[1]) + 4)
            if "gsb0" in instruction.operands:
                groups.append([])
        elif instruction.op == "WARPGROUP.DEPBAR.LE":
            in_flight = int(instruction.operands.split(", ")[1], 16)
            groups = groups[-1 - in_flight :]
        elif any(groups):
            read = set().union(*groups)
            if not read.isdisjoint(_written(instruction)):
                found.add(instruction)
    return sorted(found)


def _walk(code: Code) -> Iterator[Instruction]:
    """The code in order, every loop twice."""
    again = {end: start for start, end in _loops(code)}
    i = 0
    while i < len(code):
        yield code[i]
        i = again.pop(i, i + 1)


def _written(instruction: Instruction) -> range:
    """The general registers that an instruction writes."""
    name, parts = instruction.name, instruction.op.split(".")
    destination = re.match(r"(?:U?P\w+, )*R(\d+)", instruction.operands)
    if destination is None or name.endswith("SETP") or name in ("PLOP3", "R2P"):
        return range(0)  # nothing, memory or predicates
    first = int(destination[1])
    if "128" in parts or (name == "LDSM" and parts[-1] == "4"):
        return range(first, first + 4)
    if {"64", "WIDE", "F64"} & set(parts) or name in ("CS2R", "DADD", "DFMA", "DMUL", "HMMA"):
        return range(first, first + 2)
    return range(first, first + 1)
