"""Which arithmetic a float32 product takes, by torch's own switch."""

import torch


def input_precision(x: torch.Tensor) -> str:
    """tf32 where torch would use it for a convolution of x, otherwise ieee.

    Only the new switch is read: the older allow_tf32 propagates to it, and reading the older one
    after the new one was set raises.
    """
    # torch.backends.cudnn.conv.fp32_precision, in a seventh of its time
    if x.dtype == torch.float32 and torch._C._get_fp32_precision_getter("cuda", "conv") == "tf32":
        return "tf32"
    return "ieee"
