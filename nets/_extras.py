"""Packages that only the training program needs: pip install "tritonconv[demo]"."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def demo_extra() -> Iterator[None]:
    """Around an import: a missing package's error names the remedy."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{error.name} is not installed; pip install "tritonconv[demo]"', name=error.name
        ) from error
