"""The configurations of a convolution's kernels, as results files have them."""

from typing import NamedTuple

import torch
from tritonconv.conv.family import Config, Family
from tritonconv.conv.geometry import Geometry
from tritonconv.conv.problem import Problem, problem_on
from tritonconv.conv.tuned import Tuned

from .cases import DTYPES, Row, rows

STATISTICS = " with statistics"  # ends the name of a row whose configurations take those, too


class Named(NamedTuple):
    """A row whose configurations are measured: alone, or with statistics, as in training."""

    row: Row
    statistics: bool = False

    def __str__(self) -> str:
        return f"{self.row}{STATISTICS * self.statistics}"


def configured(row: Row) -> tuple[Named, ...]:
    """Its names; none where it has no configurations."""
    if row.case.operator != "conv2d" or row.case.layout != torch.channels_last:
        return ()
    forward = row.direction == "forward"
    return (Named(row), Named(row, statistics=True)) if forward else (Named(row),)


def problem_of(named: Named, capability: tuple[int, int], gpu: str) -> Problem:
    """What the operators make of a row on a GPU of that capability and name."""
    (case, direction, dtype), options = named.row, named.row.case.options
    padding = options["padding"]
    g = Geometry(options["stride"], padding, padding, options["dilation"], options["groups"])
    numbers = DTYPES[dtype], "tf32" if dtype == "tf32" else "ieee", named.statistics
    shapes = case.x_shape, case.w_shape, tuple(case.y_shape)
    return problem_on(capability, gpu, direction, *shapes, g, *numbers)


def as_text(candidate: Tuned) -> str:
    return " ".join(map(str, (candidate.family, *candidate.config)))


def from_text(text: str) -> Tuned:
    family, *config = text.split()
    return Tuned(family, tuple(map(int, config)))


Times = dict[Tuned, float]  # microseconds


def times(results: dict) -> dict[Problem, Times]:
    """Of each problem, the time of each configuration that was measured."""
    machine = results["machine"]
    known = {str(named): named for row in rows() for named in configured(row)}
    return {
        problem_of(known[name], capability(machine), machine["device"]): {
            from_text(text): us for text, us in found.items()
        }
        for name, found in results.get("configurations", {}).items()
        if name in known
    }


def capability(machine: dict[str, str]) -> tuple[int, int]:
    major, minor = machine["capability"].split(".")
    return int(major), int(minor)


def as_tuned(choice: tuple[Family, Config]) -> Tuned:
    family, config = choice
    return Tuned(family.name, tuple(config))
