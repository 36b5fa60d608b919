"""Depthwise convolution forward: strips of rows over the walk down x."""

import triton

from ..._common import unit
from ..family import Call, Family
from ..problem import Problem
from .strips import MOST_TAPS, Strip, declines, heights, serving
from .walk import _conv2d_depthwise_kernel


def _configs(p: Problem) -> tuple[Strip, ...]:
    N, _, OH, OW = p.y
    return serving(p, heights(p), OH, N * OH * OW)


def _prepare(p: Problem, strip: Strip) -> Call:
    (N, C, H, W), (_, _, KH, KW), (_, _, OH, OW), g = p.x, p.w, p.y, p.geometry
    (SH, SW), (PH, PW), (DH, DW) = g.stride, g.before, g.dilation
    taps = min(KH, MOST_TAPS)
    strips = triton.cdiv(OH, strip.rows)
    tiles_p = triton.cdiv(N * strips * OW, strip.p)
    return Call(
        _conv2d_depthwise_kernel,
        tiles_p * triton.cdiv(C, strip.c),
        (N, H, W, C, OH, OW, strips, tiles_p, KH, KW, SW, PW, DW, 1),
        {
            "TRANSPOSED": False,
            **{"TAPS": taps, "SH": SH, "PH": PH, "DH": DH},
            **{"FROM": -PH, "TO": (strip.rows - 1) * SH - PH + (taps - 1) * DH + 1},
            **{"ACC": p.acc, "INDEX": p.index, "UNIT": unit(C)},
            **strip.constants,
        },
        parts=tiles_p,
    )


FORWARD = Family("depthwise", declines, _configs, _prepare)
