"""What a sweep measures, what matters most first: networks that have goals, their layers with every
configuration, the other networks and dtypes, and torch.compile where a goal names it."""

import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .cases import Row, goal, goals, rows
from .configurations import configured
from .networks import NetworkRow, network_rows

# how the nets of layers begin, what a sweep that is cut should have of them first
NETS = ("ResNet", "MobileNetV2", "ResNeXt", "ConvNeXt", "VGG", "GoogLeNet", "RepLKNet")
FIRST_DTYPE = "bf16"


class Task(NamedTuple):
    """Sides of a row, one after another; of a convolution, then each of its configurations."""

    row: Row | NetworkRow
    sides: tuple[str, ...]
    configurations: bool = False

    def __str__(self) -> str:
        parts = [*self.sides, *(["configurations"] if self.configurations else [])]
        return f"{self.row}: {', '.join(parts)}"


def tasks(pattern: str = "") -> list[Task]:
    """pattern: a regular expression for the rows' names, all by default."""
    found = itertools.chain(
        _of_networks(filter(_has_goal, network_rows())),
        _of_layers(row for row in rows() if _is_first(row)),
        _of_networks(row for row in network_rows() if not _has_goal(row)),
        _of_layers(row for row in rows() if not _is_first(row)),
        _compiled(),
    )
    return [task for task in found if re.search(pattern, str(task.row))]


def _of_networks(chosen: Iterable[NetworkRow]) -> Iterator[Task]:
    """torch's side first: it needs no kernel of ours, which are compiled meanwhile."""
    for row in sorted(chosen, key=_goals_place):
        yield Task(row, ("eager",))
        yield Task(row, tuple(side for side in row.sides if side in ("ours", "unfused")))


def _of_layers(chosen: Iterable[Row]) -> Iterator[Task]:
    for row in sorted(chosen, key=_nets_place):
        sides = tuple(side for side in ("eager", "ours", "unfused") if side in row.sides)
        yield Task(row, sides, bool(configured(row)) and _is_first(row))


def _compiled() -> Iterator[Task]:
    for row in (*sorted(network_rows(), key=_goals_place), *sorted(rows(), key=_nets_place)):
        family = row.family if isinstance(row, NetworkRow) else row.case.family
        if "compile" in row.sides and goal(family, row.direction, "compile"):
            yield Task(row, ("compile",))


def _has_goal(row: NetworkRow) -> bool:
    return (row.family, row.direction) in _places()


def _goals_place(row: NetworkRow) -> int:
    return _places().get((row.family, row.direction), len(_places()))


@functools.cache
def _places() -> dict[tuple[str, str], int]:
    """Of families and passes in goals.csv."""
    kinds = dict.fromkeys((family, direction) for family, direction, _ in goals())
    return {kind: place for place, kind in enumerate(kinds)}


def _is_first(row: Row) -> bool:
    """In the dtype that every layer is measured in."""
    dtypes = row.case.dtypes
    return row.dtype == (FIRST_DTYPE if FIRST_DTYPE in dtypes else dtypes[0])


def _nets_place(row: Row) -> tuple[int, bool]:
    places = (place for place, net in enumerate(NETS) if row.case.net.startswith(net))
    return next(places, len(NETS)), not row.case.quick
