"""Which groups share a program, and its block sizes.

A bundle is as many neighbouring groups as `width` channels hold, in and out: enough for wide
copies and a full matrix instruction, and no more, for what lies beside the groups' blocks is
wasted.  Every entry of the tables compiles without spills for sm_80 and newer within 99 KiB of
shared memory.
"""

from typing import Any, NamedTuple

import triton

from ..._launch import INTERPRETED_BLOCK
from ..problem import Problem
from .taps import MOST_TAPS

MOST_CHANNELS = 32  # of a group: with more, a group fills a tile of its own
LEAST_BLOCK = 16  # channels of a matrix instruction
INTERPRETED = 64, 9  # channels and taps


class Bundle(NamedTuple):
    m: int  # pixels
    width: int
    warps: int
    stages: int  # with one, loads go through the first cache, which keeps them for other taps
    taps: int = 1  # of a program of wgrad, in whole rows of the window


# By element size in bytes.
BUNDLES = {
    2: (Bundle(128, 32, 4, 3),),  # of four that were measured on an H200, the fastest of every row
    4: (
        Bundle(64, 16, 4, 1),
        Bundle(128, 16, 8, 1),
        Bundle(128, 32, 8, 1),
    ),
    8: (
        Bundle(64, 16, 4, 1),
        Bundle(32, 32, 8, 1),
    ),
}
WGRAD_BUNDLES = {
    2: (
        Bundle(64, 16, 1, 1, 9),
        Bundle(64, 16, 1, 1, 3),
        Bundle(32, 32, 2, 1, 3),
        Bundle(64, 32, 2, 3, 3),
        Bundle(32, 16, 1, 1, 9),
    ),
    4: (
        Bundle(32, 16, 2, 1, 3),
        Bundle(16, 32, 4, 1, 3),
    ),
    8: (Bundle(16, 32, 8, 1, 3),),
}


# In half precision, where channels are odd: elements copied one by one take a register each.
ODD = Bundle(64, 32, 4, 3), Bundle(32, 32, 2, 1, 3)  # and for wgrad


def declines(p: Problem) -> str | None:
    if p.geometry.groups == 1:
        return "it takes several groups"
    if max(p.channels) > MOST_CHANNELS:
        return f"it takes at most {MOST_CHANNELS} channels a group, in and out"
    if p.w[2] * p.w[3] > MOST_TAPS:
        return f"it takes at most {MOST_TAPS} taps"
    return None


def unit_of(p: Problem) -> int:
    """The power of two, up to 4, in whose multiples pixels and groups have channels; a group may
    have fewer.  Copies are no wider."""
    fits = (n for n in (4, 2) if all(c % n == 0 or n % c == 0 for c in p.channels))
    return next((n for n in fits if p.x[1] % n == 0 and p.y[1] % n == 0), 1)


def serving(p: Problem, pixels: int) -> tuple[Bundle, ...]:
    """pixels: how many there are to walk, or to own."""
    if p.capability is None:
        width, taps = INTERPRETED
        m = min(triton.next_power_of_2(pixels), INTERPRETED_BLOCK // width)
        return (Bundle(m, width, 1, 1, taps),)
    bundles = (WGRAD_BUNDLES if p.work == "wgrad" else BUNDLES)[p.dtype.itemsize]
    if p.dtype.itemsize == 2:
        unit = unit_of(p)
        if unit == 1:
            bundles = (ODD[p.work == "wgrad"],)
        elif unit == 2 and p.work == "wgrad":
            bundles = tuple(b for b in bundles if b.taps <= 3 and b.width == 32)
    return tuple(b for b in bundles if b.width >= max(p.channels))


def groups(p: Problem, bundle: Bundle) -> int:
    """In a bundle; a power of two, which keeps copies aligned."""
    most = min(bundle.width // max(p.channels), triton.next_power_of_2(p.geometry.groups))
    return 2 ** (max(most, 1).bit_length() - 1)


def bundles(p: Problem, bundle: Bundle) -> int:
    return triton.cdiv(p.geometry.groups, groups(p, bundle))


def constants(p: Problem, bundle: Bundle) -> dict[str, Any]:
    """Those of the kernels of all passes."""
    (CG, COG), g, n = p.channels, p.geometry, groups(p, bundle)
    (KH, KW), (SH, SW), (PH, PW), (DH, DW) = p.w[2:], g.stride, g.before, g.dilation
    return {
        **{"KH": KH, "KW": KW, "SH": SH, "SW": SW, "PH": PH, "PW": PW, "DH": DH, "DW": DW},
        **{"GROUPS": g.groups, "CG": CG, "COG": COG, "BUNDLE": n},
        "BLOCK_C": max(triton.next_power_of_2(n * CG), LEAST_BLOCK),
        "BLOCK_O": max(triton.next_power_of_2(n * COG), LEAST_BLOCK),
        **p.numbers,
        **{"STAGES": bundle.stages, "num_warps": bundle.warps},
    }
