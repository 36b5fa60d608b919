"""One allocation for all that the kernels of a plan alone see."""

import torch

from ._steps import Allocate, Ask, Described, Place, Start, places, used

MOST_SHARED = 2**24  # bytes: what is larger goes as soon as it can
APART = 512  # bytes, from one thing to the next


def sharing_memory(steps: list, home: int, results: tuple, described: bool) -> list:
    """The same steps with one allocation, in this slot, for all that kernels alone see of them.

    Each thing lies where nothing lies that is used while it is: kernels run one after another.
    described: what descriptors are of, too.
    """
    last = {slot: i for i, step in enumerate(steps) for slot in used(step)}
    alone = {place.slot for place in places(results)}
    alone |= {slot for step in steps if isinstance(step, Ask) for slot in used(step)}
    if not described:
        alone |= {
            a.base.slot
            for step in steps
            if isinstance(step, Start)
            for a in step.args
            if isinstance(a, Described)
        }
    homes, taken, size, kept, device = {}, [], 0, [], None
    for i, step in enumerate(steps):
        if isinstance(step, Allocate) and step.slot not in alone:
            elements = 1 + sum((n - 1) * s for n, s in zip(step.size, step.strides, strict=True))
            room = -(-elements * step.dtype.itemsize // APART) * APART
            if 0 not in step.size and room <= MOST_SHARED and device in (None, step.device):
                taken = sorted(t for t in taken if t[2] > i)
                at = 0
                for begin, end, _ in taken:
                    if begin - at >= room:
                        break
                    at = end
                taken.append((at, at + room, last[step.slot]))
                homes[step.slot], size, device = (at, step), max(size, at + room), step.device
                continue
        kept.append(step)

    def moved(place):
        if isinstance(place, Described):
            return place._replace(base=moved(place.base))
        if not isinstance(place, Place) or place.slot not in homes:
            return place
        at, made = homes[place.slot]
        view_size, strides, _ = place.view or (made.size, made.strides, 0)
        offset = at + place.offset
        view = view_size, strides, offset // made.dtype.itemsize, made.dtype
        return Place(home, offset, view)

    if not homes:
        return kept
    starts = (
        step._replace(args=tuple(map(moved, step.args)), outs=tuple(map(moved, step.outs)))
        if isinstance(step, Start)
        else step
        for step in kept
    )
    return [Allocate(home, (size,), (1,), torch.uint8, device), *starts]
