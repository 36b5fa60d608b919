"""What torchrun starts in test_distributed.py: several trainings in one group of processes.

    torchrun ranks.py '[ARGUMENTS OF tritonconv.nets, ...]'

resnet34 is a small network there, and resnet50 one with dropout.  'fsdp PATH' is a training by FSDP2 instead, whose weights go to
PATH.  With KILLED=RANK and AT=STEP in the environment that rank kills itself after that step.
"""

import contextlib
import copy
import json
import os
import signal
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, str(Path(__file__).parent.parent))
from small_net import SmallNet, SmallNetDropout
from tritonconv import BatchNorm2d, Conv2d, fuse
from tritonconv.nets import _train_command
from tritonconv.nets.__main__ import main
from tritonconv.nets.registry import NETWORKS, Network
from tritonconv.nets.training.distributed import joined
from tritonconv.nets.training.step import Learner

SHARDED = ("root", "layers", "fused", "fused containers", "fused layers")


class Net(nn.Module):
    """Two groups that fuse, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = Conv2d(3, 4, 3, bias=False), BatchNorm2d(4)
        self.block = nn.Sequential(Conv2d(4, 4, 3, bias=False), BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.block(x).mean((2, 3)))


def train(model: nn.Module) -> None:
    torch.manual_seed(1)
    x, labels = torch.randn(2, 3, 6, 6).double(), torch.tensor([0, 1])
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()


def shard(path: str) -> None:
    """Weights after two steps: plain, and sharded in each of the ways, with what was warned of."""
    torch.manual_seed(0)
    plain = Net().double()
    reached = {}
    for way in SHARDED:
        model = copy.deepcopy(plain)
        if way.startswith("fused"):
            model = fuse(model)
        parts = {
            "layers": lambda m, _: list(m.parameters(False)),
            "containers": lambda m, model: m is model.block,
        }
        wanted = parts.get(way.split()[-1], lambda *_: False)
        for module in [m for m in model.modules() if wanted(m, model)]:
            fully_shard(module, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            train(model)
        weights = {name: p.full_tensor() for name, p in model.named_parameters()}
        reached[way] = weights, [str(w.message) for w in warned if "unfused" in str(w.message)]
    train(plain)
    if not dist.get_rank():
        torch.save((dict(plain.named_parameters()), reached), path)


def killing() -> None:
    learn, steps = Learner.learn, []

    def learning(self, *args):
        learn(self, *args)
        steps.append(args)
        if os.environ["RANK"] == os.environ["KILLED"] and len(steps) == int(os.environ["AT"]):
            os.kill(os.getpid(), signal.SIGKILL)

    Learner.learn = learning


if __name__ == "__main__":
    torch.set_num_threads(1)
    NETWORKS["resnet34"] = Network(SmallNet, 224)
    NETWORKS["resnet50"] = Network(SmallNetDropout, 224)
    if "KILLED" in os.environ:
        killing()
    with joined(torch.device("cpu")) as ranks:
        _train_command.joined = lambda _: contextlib.nullcontext(ranks)
        for argv in json.loads(sys.argv[1]):
            if argv[0] == "fsdp":
                shard(argv[1])
            else:
                main(argv)
