"""Whole networks: inference and training steps, as sides are for operators.

channels_last on every side.  Inference has its weights in half precision.  Training runs under
autocast with float32 weights, as users train, since updates vanish in half precision's rounding; in
bfloat16, which needs no loss scaling.

Images are normal, labels random, and the networks such that a wrong result can be told from a
rounded one: batch norms shift what they normalise by two deviations, since unshifted it is rounding
that decides which ReLUs pass, and a new ResNet-50's gradients in bfloat16 are mostly noise; running
statistics are those of the images; dropout, whose masks would differ, is off.
"""

import copy
import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tritonconv import as_torch, fold, force_family, fuse
from tritonconv.nets.recipes import RECIPES
from tritonconv.nets.registry import NETWORKS
from tritonconv.nets.training.step import AUXILIARY_WEIGHT

from . import device
from .cases import DTYPES, FUSED_SIDES, HALF, read
from .sides import Call

LEARNING_RATE, MOMENTUM = 1e-4, 0.9  # so small that a hundred steps on one batch change little
# max-autotune without CUDA graphs of its own: rows have them on every side alike, or on none
MODE = "max-autotune-no-cudagraphs"
MORE_PRECISE = {"fp16": "fp32", "bf16": "fp32", "fp32": "fp64"}


class Pass(NamedTuple):
    training: bool
    graphed: bool
    dtypes: tuple[str, ...]
    sides: tuple[str, ...]
    callables: bool = False  # the model's forward and backward as graphs, the rest of a step not
    mode: str | None = None  # of torch.compile, on every side
    family: str | None = None  # that ours is forced to
    networks: tuple[str, ...] = ()  # which have it, if not all


PASSES = {
    "training": Pass(True, False, ("bf16",), FUSED_SIDES),
    "training_graph": Pass(True, True, ("bf16",), ("ours", "eager")),
    "training_callables": Pass(True, False, ("bf16",), ("ours", "eager"), callables=True),
    "training_compiled_graph": Pass(
        True, False, ("bf16",), ("ours", "eager"), mode="reduce-overhead"
    ),
    # what taking batch norm's sums in dgrad gains, against training_graph
    "training_separate_graph": Pass(
        True,
        True,
        ("bf16",),
        ("ours", "eager"),
        family="separate",
        networks=("resnet50", "mobilenet_v2"),
    ),
    "inference": Pass(False, False, HALF, ("ours", "eager", "unfused")),
    "inference_graph": Pass(False, True, HALF, FUSED_SIDES),
}


class NetworkRow(NamedTuple):
    """What one figure of each side is about, as a Row."""

    network: str  # or the recipe that has it
    net: str
    batch: int
    direction: str  # of PASSES
    dtype: str

    @property
    def how(self) -> Pass:
        return PASSES[self.direction]

    @property
    def plain(self) -> "NetworkRow":
        """The same as called, neither compiled nor in graphs."""
        return self._replace(direction="training" if self.how.training else "inference")

    @property
    def tag(self) -> str:
        return f"{self.network}_b{self.batch}"

    @property
    def family(self) -> str:
        """What goals are set for."""
        return f"{self.net} batch {self.batch}"

    @property
    def sides(self) -> tuple[str, ...]:
        return self.how.sides

    @property
    def graphed(self) -> bool:
        return self.how.graphed

    @property
    def exact(self) -> bool:
        return False

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        if self.network in RECIPES:
            size, channels = RECIPES[self.network].size, 1
        else:
            _, size, channels = NETWORKS[self.network]
        return self.batch, channels, size, size

    @property
    def classes(self) -> int:
        return 10 if self.network in RECIPES else 1000

    def __str__(self) -> str:
        return f"{self.tag}-{self.direction}-{self.dtype}"

    def make(self) -> nn.Module:
        known = RECIPES.get(self.network) or NETWORKS[self.network]
        return known.make(num_classes=self.classes, in_channels=self.x_shape[1])

    def entry(self, device: str | None) -> dict:
        """As a Row's."""
        return {
            "tag": self.tag,
            "net": self.net,
            "operator": "network",
            "family": self.family,
            "shape": {"x": self.x_shape, "w": None},
            "pass": self.direction,
            "dtype": self.dtype,
            "layout": "channels_last",
            "flop": None,
            "moved": None,
            "floor_us": None,
            "published_ms": None,
            "examples": self.batch,
        }


class Inputs(NamedTuple):
    model: nn.Module  # on our layers
    images: Tensor  # [N, C, H, W]
    labels: Tensor  # [N]


@functools.cache
def network_rows() -> tuple[NetworkRow, ...]:
    return tuple(
        NetworkRow(line["network"], line["net"], int(batch), direction, dtype)
        for line in read("networks.csv")
        for direction, how in PASSES.items()
        if line["network"] in (how.networks or (line["network"],))
        for batch in line["training" if how.training else "inference"].split()
        for dtype in how.dtypes
    )


def inputs(row: NetworkRow, where: str, filled: bool = True) -> Inputs:
    """The same in every run.  filled: or images with nothing in them, as for sides."""
    torch.manual_seed(0)
    with torch.device(where):
        model = row.make()
        images = torch.empty(row.x_shape, memory_format=torch.channels_last)
        labels = torch.randint(row.classes, (row.batch,))
    if filled:
        images.normal_()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 2.0)
    if filled and not row.how.training:
        _take_statistics(model, images)
    return Inputs(model, images, labels)


def ours(row: NetworkRow, given: Inputs) -> Call:
    """As fast as we make it."""
    model = fuse(given.model)
    call = _call(row, model if row.how.training else fold(model), given)
    return call if row.how.family is None else _forced(row.how.family, call)


def _forced(family: str, call: Call) -> Call:
    def forced() -> object:
        with force_family(family):
            return call()

    return forced


def unfused(row: NetworkRow, given: Inputs) -> Call:
    return _call(row, copy.deepcopy(given.model), given)


def eager(row: NetworkRow, given: Inputs) -> Call:
    return _call(row, as_torch(given.model), given)


def compiled(row: NetworkRow, given: Inputs) -> Call:
    torch.compiler.reset()
    model = as_torch(given.model)
    model.compile(mode=MODE, dynamic=False)
    return _call(row, model, given)


MAKE = {"ours": ours, "unfused": unfused, "eager": eager, "compile": compiled}


def expected(row: NetworkRow, given: Inputs) -> Tensor | tuple[Tensor, ...]:
    """torch's results with twice the precision, not compiled."""
    return eager(row.plain._replace(dtype=MORE_PRECISE[row.dtype]), given)()


def loss(output: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """The cross entropy, with those of GoogLeNet's auxiliary heads."""
    logits, *heads = (output,) if isinstance(output, Tensor) else output
    auxiliary = sum(F.cross_entropy(head, labels) for head in heads)
    return F.cross_entropy(logits, labels) + AUXILIARY_WEIGHT * auxiliary


def _call(row: NetworkRow, model: nn.Module, given: Inputs) -> Call:
    """What row's pass of model returns: logits, or of a training step its loss and gradients."""
    training, dtype = row.how.training, DTYPES[row.dtype]
    mixed = training and row.dtype in HALF
    weights = torch.float32 if mixed else dtype
    model.to(dtype=weights, memory_format=torch.channels_last).train(training)
    if row.how.mode:
        torch.compiler.reset()
        model.compile(mode=row.how.mode, dynamic=False)
    images, labels = given.images.to(weights), given.labels
    if not training:
        return torch.no_grad()(lambda: model(images))

    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, LEARNING_RATE, MOMENTUM, fused=True)

    # what casts a weight once for all its uses would tie one graph to the other
    cast = functools.partial(
        torch.autocast, images.device.type, dtype, mixed, cache_enabled=not row.how.callables
    )
    if row.how.callables:
        with cast():
            model = device.graphed_callables(model, images)

    def step() -> tuple[Tensor, ...]:
        optimizer.zero_grad(set_to_none=not row.how.callables)
        with cast():
            total = loss(model(images), labels)
        total.backward()
        optimizer.step()
        return total.detach(), *(p.grad for p in parameters)

    return step


@torch.no_grad()
def _take_statistics(model: nn.Module, images: Tensor) -> None:
    """Gives the batch norms' running statistics the values that images have there."""
    twin = as_torch(model)
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    twin(images)
    model.load_state_dict(twin.state_dict())
