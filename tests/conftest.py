"""The suite runs on the device the kernels run on, from memory that is never accidentally zero."""

import os
import tempfile

# cuBLAS repeats bit for bit only with a workspace of its own, and torch warns where it has none
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# what was tuned on this machine decides nothing here
os.environ["TRITONCONV_CACHE"] = tempfile.mkdtemp()

import pytest
import torch
from tritonconv import _launch
from tritonconv.conv import dispatch


@pytest.fixture(scope="session")
def device() -> str:
    return "cpu" if _launch.INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def nan_filled_memory():
    """torch.empty returns NaN: an element that no kernel wrote is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def ieee_float32():
    """Float32 products in float32; what tests TF32 switches it on."""
    # the older setter, which sets the newer switch too: torch.export still reads the older one
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = True  # torch's default


@pytest.fixture(autouse=True)
def no_remembered_choices():
    """What a test patches, the choice of kernels sees."""
    dispatch.forget()
    yield
    dispatch.forget()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
