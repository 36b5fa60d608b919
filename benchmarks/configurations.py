"""The configurations of a convolution's kernels, as results files have them."""

import torch
from tritonconv.conv.family import Config, Family
from tritonconv.conv.geometry import Geometry
from tritonconv.conv.problem import Problem, problem_on
from tritonconv.conv.tuned import Tuned

from .cases import DTYPES, Row, rows


def has_configurations(row: Row) -> bool:
    return row.case.operator == "conv2d" and row.case.layout == torch.channels_last


def problem_of(row: Row, capability: tuple[int, int], gpu: str) -> Problem:
    """What the operators make of row on a GPU of that capability and name."""
    case, options = row.case, row.case.options
    padding = options["padding"]
    g = Geometry(options["stride"], padding, padding, options["dilation"], options["groups"])
    dtype = DTYPES[row.dtype]
    precision = "tf32" if row.dtype == "tf32" else "ieee"
    shapes = case.x_shape, case.w_shape, tuple(case.y_shape)
    return problem_on(capability, gpu, row.direction, *shapes, g, dtype, precision)


def as_text(candidate: Tuned) -> str:
    return " ".join(map(str, (candidate.family, *candidate.config)))


def from_text(text: str) -> Tuned:
    family, *config = text.split()
    return Tuned(family, tuple(map(int, config)))


Times = dict[Tuned, float]  # microseconds


def times(results: dict) -> dict[Problem, Times]:
    """Of each problem, the time of each configuration that was measured."""
    machine, known = results["machine"], {str(row): row for row in rows()}
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
