"""Residue classes: which taps of a strided convolution a pixel of its input sees.

Pixel h has tap k where h + P - k*D is a multiple of S, so they depend on h mod S alone, and lie
STEP apart.
"""

import math

import triton
import triton.language as tl

from .problem import Problem


def steps(p: Problem) -> list[int]:
    """How far apart the taps of one class lie, by axis."""
    g = p.geometry
    return [s // math.gcd(s, d) for s, d in zip(g.stride, g.dilation, strict=True)]


@triton.jit
def class_taps(residue, K, S, P, D, STEP):
    """First tap and number of taps that hit pixels = residue (mod S); taps repeat every STEP."""
    first = K
    for k in range(STEP):
        # -k*D = k*D*(S - 1) (mod S) keeps the dividend non-negative
        hits = (residue + P + k * D * (S - 1)) % S == 0
        first = tl.where(hits & (k < first), k, first)
    return first, tl.cdiv(K - first, STEP)
