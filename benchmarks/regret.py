"""How far the dispatcher's choices are from the best that was measured."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tritonconv.conv import dispatch
from tritonconv.conv.family import Config, Family
from tritonconv.conv.problem import Problem

from .configurations import as_tuned, times
from .report import table


class Regret(NamedTuple):
    """How many times as long as the best measured configuration another takes, by problem; None
    where that was not measured."""

    guess: dict[Problem, float | None]
    shipped: dict[Problem, float | None]


def regret(results: dict) -> Regret:
    found = times(results)

    def of(choose: Callable[[Problem], tuple[Family, Config]]) -> dict[Problem, float | None]:
        chosen = {p: as_tuned(choose(p)) for p in found}
        return {
            p: t[chosen[p]] / min(t.values()) if chosen[p] in t else None for p, t in found.items()
        }

    return Regret(of(dispatch.guessed), of(dispatch.shipped))


def mean_and_worst(factors: Iterable[float | None]) -> tuple[float, float]:
    """Geometric, and over those that were measured."""
    known = [factor for factor in factors if factor is not None]
    if not known:
        return math.nan, math.nan
    return math.prod(known) ** (1 / len(known)), max(known)


def report(results: dict) -> str:
    """By family, which is the first guess, and pass."""
    found = regret(results)
    kinds = defaultdict(list)
    for p in found.guess:
        kinds[dispatch.guessed(p)[0].name, p.work].append(p)
    kinds["all", "all"] = [*found.guess]
    lines = []
    for kind, problems in sorted(kinds.items()):
        factors = [f for which in found for f in mean_and_worst(map(which.get, problems))]
        lines.append((*kind, len(problems), *(f"{f:.3f}" for f in factors)))
    heads = ("family", "pass", "layers", "first guess", "worst", "as shipped", "worst")
    unmeasured = [
        f"- {what}, not measured: {p}"
        for what, which in zip(("first guess", "as shipped"), found, strict=True)
        for p, factor in which.items()
        if factor is None
    ]
    return "\n".join([table(heads, lines), *unmeasured])
