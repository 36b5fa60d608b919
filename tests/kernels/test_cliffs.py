"""No number of channels a group falls to kernels that are far slower than its neighbours'.

Times are predicted from what a choice multiplies for a pixel and channel, its padding included, and
from how fast its kind of kernel was measured, or counted, to multiply.
"""

import itertools

import pytest
import torch
from tritonconv.conv import dispatch
from tritonconv.conv.geometry import Geometry
from tritonconv.conv.problem import Problem, problem_on

PIXELS = 64, 28, 28  # images, rows, columns
WORKS = "forward", "dgrad", "wgrad"
# multiply-adds a clock and multiprocessor that a kind of kernel does, of which the depthwise and
# general ones were measured on an H200: lanes without the matrix unit, and its small tiles
VECTOR, MATRIX, ROWS, SMALL = 80, 400, 1000, 170
WORST = 3  # of times
MEMORY = 0.25  # clocks that a pixel of a channel's bytes take, read and written


def problem(work: str, channels: int, multiple: int, groups: int, capability) -> Problem:
    """Of a 3x3 window, `channels` a group in and so many times as many out."""
    N, H, W = PIXELS
    g = Geometry((1, 1), (1, 1), (1, 1), (1, 1), groups)
    x, w = (N, channels * groups, H, W), (channels * multiple * groups, channels, 3, 3)
    numbers = torch.float16, "ieee"
    return problem_on(capability, "", work, x, w, g.y_shape(x, w), g, *numbers)


def clocks(p: Problem) -> float:
    """Of a multiprocessor, for a pixel of one group, in and out."""
    choice = dispatch.choose(p)
    (ins, outs), constants, taps = p.channels, choice.call.constants, p.w[2] * p.w[3]
    memory = MEMORY * (ins + outs) / 2
    if choice.family.name in ("columns", "depthwise"):
        products, speed = ins * outs, VECTOR
    elif choice.family.name == "grouped":
        bundle = constants["BUNDLE"]
        products, speed = constants["BLOCK_C"] * constants["BLOCK_O"] / bundle, MATRIX
    elif choice.family.name == "rows":
        products, speed = constants["WIDTH"] ** 2 / constants["BUNDLE"], ROWS
    else:
        tile = choice.config
        across, down = (outs, ins) if p.work != "dgrad" else (ins, outs)
        if p.work == "wgrad":
            across, down, tile = outs, ins, tile._replace(n=tile.m, k=tile.n)
        products = -(-across // tile.n) * tile.n * -(-down // tile.k) * tile.k
        speed = SMALL
    return max(memory, products * taps / speed)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize("groups", [2, 5, 32])
@pytest.mark.parametrize("work", WORKS)
def test_more_channels_are_not_far_cheaper(work, groups, capability):
    """Whoever pads a group to more channels would gain little: not the 10 to 30 times by which the
    general family's tiles of zeros were slower than what serves their neighbours.  With more than
    32, those gain whose pixels are of whole 16 bytes, which the tensor memory accelerator wants."""
    times = {c: clocks(problem(work, c, 1, groups, capability)) for c in range(1, 57)}
    for c, time in times.items():
        alike = [d for d in times if d >= c and (d <= 32 or d * groups % 8 or not c * groups % 8)]
        best = min(times[d] for d in alike)
        assert time <= WORST * best, f"{c} channels take {time:.2f}, more of them {best:.2f}"


@pytest.mark.parametrize(
    ("multiple", "groups"), [*itertools.product([2, 3, 4, 8, 16], [5, 32, 33])]
)
@pytest.mark.parametrize("work", WORKS)
def test_depth_multipliers_are_served_without_a_matrix_of_zeros(work, multiple, groups):
    p = problem(work, 1, multiple, groups, (9, 0))
    name = dispatch.choose(p).family.name
    assert name in ("columns", "grouped", "rows")
    if multiple <= 2 or (multiple < 8 and groups % 4):
        assert name == "columns"
