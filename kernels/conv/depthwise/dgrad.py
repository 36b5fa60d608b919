"""Gradient of a depthwise convolution with respect to its input: strips of rows over the walk down
dy, a residue class of columns a program."""

import triton

from ..._common import unit
from ..classes import steps
from ..family import Call, Family
from ..problem import Problem
from .strips import MOST_TAPS, Strip, declines, heights, serving
from .walk import _conv2d_depthwise_kernel


def _configs(p: Problem) -> tuple[Strip, ...]:
    (N, _, H, W), (SH, SW) = p.x, p.geometry.stride
    # a strip starts at the same residue class as its image
    whole = heights(p) if SH == 1 else (2 * SH, SH)
    return serving(p, whole, H, N * H * triton.cdiv(W, SW))


def _prepare(p: Problem, strip: Strip) -> Call:
    (N, C, H, W), (_, _, KH, KW), (_, _, OH, OW), g = p.x, p.w, p.y, p.geometry
    (SH, SW), (PH, PW), (DH, DW) = g.stride, g.before, g.dilation
    taps = min(KH, MOST_TAPS)
    strips = triton.cdiv(H, strip.rows)
    tiles_p = triton.cdiv(N * strips * triton.cdiv(W, SW), strip.p)
    return Call(
        _conv2d_depthwise_kernel,
        tiles_p * SW * triton.cdiv(C, strip.c),
        (N, OH, OW, C, H, W, strips, tiles_p, KH, KW, SW, PW, DW, steps(p)[1]),
        {
            "TRANSPOSED": True,
            **{"TAPS": taps, "SH": SH, "PH": PH, "DH": DH},
            **{"FROM": -(((taps - 1) * DH - PH) // SH), "TO": (strip.rows - 1 + PH) // SH + 1},
            **{"ACC": p.acc, "INDEX": p.index, "UNIT": unit(C)},
            **strip.constants,
        },
        parts=tiles_p * SW,
    )


DGRAD = Family("depthwise", declines, _configs, _prepare)
