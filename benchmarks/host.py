"""What needs no GPU: the kernels that a call would compile."""

from collections import Counter
from collections.abc import Callable

from tritonconv import _ahead

INTERPRETED = "tritonconv is interpreted here; host costs are those of a GPU's user"
CAPABILITY = (9, 0)


def kernels(call: Callable[[], object]) -> Counter[str]:
    """How many kernels Triton would compile for call, by name."""
    return Counter(kernel.name for kernel in _ahead.kernels(call, CAPABILITY))
