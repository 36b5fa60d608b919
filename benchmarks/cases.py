"""What is measured, and against which floors and goals: the CSV files beside this one as data.

A floor is the time in which a device could at best do a pass: each operand moved once (twice where
statistics come before what they normalise), or the arithmetic done at its full rate.  shapes.csv
holds its own; the others follow from their bytes and products.
"""

import csv
import functools
import math
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F

HERE = Path(__file__).parent
BANDWIDTH = {"H100": 3.0e12, "H200": 4.3e12}  # bytes/s of a copy, measured
ARITHMETIC = 790e12  # FLOP/s of dense 16-bit products, measured on both
DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,  # torch's default for convolutions
    "fp32": torch.float32,
    "fp64": torch.float64,
}
HALF = ("fp16", "bf16")  # what goals are set for
SIDES = ("ours", "eager", "compile")
FUSED_SIDES = (*SIDES, "unfused")  # where ours is several operators as one
PER_SECOND = "H100_examples_per_s"  # goals.csv's column of a speed on one H100
# columns of our speed's share of what memory or arithmetic allow, and of our own under a CUDA graph
OF_FLOOR, OF_GRAPH = "of_floor", "of_graph"
LAUNCH_US = 50.0  # a shorter launch is replayed from a CUDA graph


class Case(NamedTuple):
    tag: str
    net: str
    operator: str  # the public function
    x_shape: tuple[int, ...]  # [N, C, H, W]
    w_shape: tuple[int, ...] | None  # [CO, C / groups, KH, KW]
    bias: bool
    options: dict  # the public function's keyword arguments
    layout: torch.memory_format
    dtypes: tuple[str, ...]
    quick: bool
    floors: dict[str, dict[str, float]]  # us, by pass and device
    published: dict[str, float] | None = None  # ms on an H100, by side
    activation: str | None = None
    residual: bool = False  # one is added before the activation

    def __hash__(self) -> int:
        return hash(self.tag)  # dicts have none

    @property
    def normalises(self) -> bool:
        return self.operator in ("batch_norm", "conv_bn_relu")

    @property
    def y_shape(self) -> torch.Size:
        if self.operator == "batch_norm":
            return torch.Size(self.x_shape)
        tensors = [torch.empty(s, device="meta") for s in (self.x_shape, self.w_shape) if s]
        function = F.conv2d if self.w_shape else getattr(F, self.operator)
        return function(*tensors, **self.options).shape

    @property
    def moved(self) -> int:
        """Elements that the forward, with given statistics if any, reads or writes at least."""
        N, C, H, W = self.x_shape
        y = math.prod(self.y_shape)
        if self.w_shape is None:
            return N * C * H * W + y
        (KH, KW), (OH, OW) = self.w_shape[2:], self.y_shape[2:]
        # windows further apart than they are wide leave pixels out
        x = N * C * min(H, KH * OH) * min(W, KW * OW)
        return x + math.prod(self.w_shape) + y * (1 + self.residual)

    @property
    def flop(self) -> int:
        """Of a convolution, in each pass."""
        return 2 * math.prod(self.y_shape) * math.prod(self.w_shape[1:]) if self.w_shape else 0

    @property
    def family(self) -> str:
        """What goals are set for."""
        if self.operator == "conv_bn_relu":
            convolution = self._replace(operator="conv2d").family
            return f"conv+BN{'+ReLU' * (self.activation is not None)} {convolution}"
        if self.w_shape is None:
            return self.operator.removesuffix("2d").replace("_", " ")
        C, groups = self.x_shape[1], self.options["groups"]
        CO, CG, KH, KW = self.w_shape
        if groups == C:
            return f"depthwise {KH}x{KW}"
        if groups > 1:
            return "grouped" if 4 <= CG <= 32 else "wide groups"
        if C <= 4:
            return "stem"
        if C % 8 or CO % 8:
            return "odd channels"
        for name, value in (("strided", "stride"), ("dilated", "dilation")):
            if max(self.options[value]) > 1:
                return name
        return "1x1" if KH == KW == 1 else f"dense {KH}x{KW}"


class Row(NamedTuple):
    """What one figure of each side is about."""

    case: Case
    direction: str  # forward, and dgrad and wgrad or backward
    dtype: str

    def __str__(self) -> str:
        return f"{self.case.tag}-{self.direction}-{self.dtype}"

    @property
    def sides(self) -> tuple[str, ...]:
        return FUSED_SIDES if self.case.operator == "conv_bn_relu" else SIDES

    @property
    def exact(self) -> bool:
        """Whether a value is one sum, whose rounding has a bound."""
        return not self.case.normalises

    @property
    def graphed(self) -> bool:
        """Replayed from CUDA graphs, on every side alike: a launch could be that short."""
        return min(self.case.floors[self.direction].values()) < LAUNCH_US

    def quick(self, side: str) -> bool:
        """In the quick selection: one dtype, ours and cuDNN's, and a side that has a goal."""
        wanted = side in ("ours", "eager") or goal(self.case.family, self.direction, side)
        return self.case.quick and self.dtype == self.case.dtypes[0] and bool(wanted)

    def entry(self, device: str | None) -> dict:
        """What a results file says of the row, measured on `device`."""
        case = self.case
        optional = {"activation": case.activation, "residual": case.residual}
        return {
            "tag": case.tag,
            "net": case.net,
            "operator": case.operator,
            "family": case.family,
            "shape": {"x": case.x_shape, "w": case.w_shape, **case.options}
            | {name: value for name, value in optional.items() if value},
            "pass": self.direction,
            "dtype": self.dtype,
            "layout": str(case.layout).removeprefix("torch.").removesuffix("_format"),
            "flop": case.flop,
            "moved": case.moved,
            "floor_us": case.floors[self.direction][device] if device else None,
            "published_ms": case.published,
        }


@functools.cache
def rows() -> tuple[Row, ...]:
    return tuple(
        Row(case, direction, dtype)
        for case in (*_layers(), *_pools(), *_norms(), *_fused(), *_kernelbench())
        for direction in case.floors
        for dtype in case.dtypes
    )


def goal(family: str, direction: str, side: str) -> float | None:
    """The ratio to reach, time of `side` / our time, where there is a goal."""
    return goals().get((family, direction, side))


def device_key(name: str) -> str | None:
    """The device, as floors name it, of a name like NVIDIA H100 80GB HBM3."""
    return next((key for key in BANDWIDTH if key in name), None)


@functools.cache
def goals() -> dict[tuple[str, str, str], float]:
    """What to reach, by family, pass and column of goals.csv."""
    return {
        (line["family"], line["pass"], column): float(line[column])
        for line in read("goals.csv")
        for column in (*SIDES[1:], PER_SECOND, OF_FLOOR, OF_GRAPH)
        if line[column]
    }


def _layers() -> list[Case]:
    columns = {"forward": "fwd", "dgrad": "dgrad", "wgrad": "wgrad"}
    return [
        _case(line)._replace(
            floors={
                direction: {device: float(line[f"{device}_{column}_us"]) for device in BANDWIDTH}
                for direction, column in columns.items()
            }
        )
        for line in read("shapes.csv")
    ]


def _pools() -> list[Case]:
    return [
        case._replace(
            floors={
                "forward": _floor(2 * case.moved),
                "backward": _floor(2 * case.moved + _winners(case)),
            }
        )
        for case in map(_case, read("pools.csv"))
    ]


def _winners(case: Case) -> int:
    """Bytes that tell where each maximum was, one each."""
    return math.prod(case.y_shape) if case.operator == "max_pool2d" else 0


def _norms() -> list[Case]:
    return [
        case._replace(floors=_norm_floors(case, DTYPES[case.dtypes[0]].itemsize))
        for case in map(_case, read("norms.csv"))
    ]


def _fused() -> list[Case]:
    """Layers of shapes.csv with what follows them."""
    layers = {line["tag"]: line for line in read("shapes.csv")}
    cases = []
    for line in read("fused.csv"):
        residual = line["residual"] == "1"
        case = _case(layers[line["layer"]])._replace(
            tag=f"{line['layer']}_bn{'_add' * residual}",
            operator="conv_bn_relu",
            quick=line["quick"] == "1",
            activation=line["activation"] or None,
            residual=residual,
        )
        cases.append(case._replace(floors=_norm_floors(case, 2)))
    return cases


def _norm_floors(case: Case, size: int) -> dict[str, dict[str, float]]:
    """By pass, for elements of size bytes.

    In training, what is normalised is read again once its statistics are known, and is written
    before that if it is a convolution's result.  The backward moves each operand and its gradient,
    and reads twice what it takes its sums of.
    """
    again = math.prod(case.y_shape) * (2 if case.w_shape else 1)
    return {
        "forward": _floor(size * (case.moved + again), case.flop),
        "backward": _floor(size * (2 * case.moved + again), 2 * case.flop),
        "inference": _floor(size * case.moved, case.flop),
    }


def _kernelbench() -> list[Case]:
    """The forward alone, in float32 and NCHW, as KernelBench has it."""
    return [
        case._replace(
            layout=torch.contiguous_format,
            dtypes=("tf32",) if case.w_shape else ("fp32",),
            floors={"forward": _kernelbench_floor(case)},
            published={side: float(line[f"published_{side}_ms"]) for side in SIDES[1:]},
        )
        for line in read("kernelbench.csv")
        for case in (_case(line),)
    ]


def _kernelbench_floor(case: Case) -> dict[str, float]:
    return _norm_floors(case, 4)["forward"] if case.normalises else _floor(4 * case.moved)


def _floor(moved_bytes: int, flop: int = 0) -> dict[str, float]:
    return {
        device: 1e6 * max(moved_bytes / rate, flop / ARITHMETIC)
        for device, rate in BANDWIDTH.items()
    }


def _case(line: dict[str, str]) -> Case:
    operator = line.get("operator", "conv2d")
    given = line.get("options", "")
    if operator == "conv2d":
        x_shape, w_shape, options = _convolution(line["shape"])
    else:
        x_shape, w_shape = tuple(map(int, line["shape"].split(","))), None
        options = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", given)}
    return Case(
        tag=line["tag"],
        net=line["net"],
        operator=operator,
        x_shape=x_shape,
        w_shape=w_shape,
        bias=given == "bias",
        options=options,
        layout=torch.channels_last,
        dtypes=tuple(line["dtypes"].split()) if "dtypes" in line else HALF,
        quick=line["quick"] == "1",
        floors={},
    )


def _convolution(text: str) -> tuple[tuple[int, ...], tuple[int, ...], dict]:
    """N,C,H,W,CO,KHxKW,sS,pP,dD,gG, where P is a number or (PH, PW)."""
    image, window = text.split(",s")
    N, C, H, W, CO, KH, KW = map(int, re.findall(r"\d+", image))
    S, *P, D, groups = map(int, re.findall(r"\d+", window))
    options = {
        "stride": (S, S),
        "padding": (P[0], P[-1]),
        "dilation": (D, D),
        "groups": groups,
    }
    return (N, C, H, W), (CO, C // groups, KH, KW), options


def read(name: str) -> list[dict[str, str]]:
    with (HERE / name).open(newline="") as file:
        return list(csv.DictReader(file))
