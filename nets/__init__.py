"""The classic networks on tritonconv's layers; `python -m tritonconv.nets --help` trains them."""

from .lenet import LeNet

__all__ = ["LeNet"]
