"""What a user gets: a wheel that works outside the checkout, beside the torch they have."""

import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path

import tritonconv

ROOT = Path(__file__).parent.parent

TWO_STEPS = """
import torch, tritonconv
from tritonconv.nets import LeNet
assert __import__("sys").prefix in tritonconv.__file__, tritonconv.__file__
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
model = LeNet().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
x, labels = torch.randn(8, 1, 28, 28, device=device), torch.arange(8, device=device)
losses = []
for _ in range(3):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(x), labels)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[2] < losses[1] < losses[0], losses
print("trained", tritonconv.__version__)
"""


def test_version_is_the_distributions():
    assert tritonconv.__version__ == importlib.metadata.version("tritonconv")


def test_every_public_name_exists_and_is_documented():
    for name in tritonconv.__all__:
        assert getattr(tritonconv, name).__doc__, name


def test_wheel_trains_two_steps_outside_the_checkout(tmp_path):
    def python(*args: str, executable: str = sys.executable) -> str:
        done = subprocess.run(
            [executable, *args], cwd=tmp_path, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "kernels", "nets"):
        (source / name).symlink_to(ROOT / name)
    python(
        "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "dist", "./source"
    )
    (wheel,) = (tmp_path / "dist").glob("tritonconv-*.whl")

    python("-m", "venv", "empty")
    # a path file brings the existing torch, behind the environment's own packages
    (site,) = (tmp_path / "empty" / "lib").glob("python*/site-packages")
    (site / "existing.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    inside = str(tmp_path / "empty" / "bin" / "python")
    python("-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel), executable=inside)
    assert (site / "tritonconv" / "py.typed").exists()
    output = python("-c", TWO_STEPS, executable=inside)
    assert output == f"trained {tritonconv.__version__}\n"
