"""A network on our layers and on torch.nn's, against torch.nn in float64."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tritonconv import as_torch


class Error(NamedTuple):
    """Of one output or gradient."""

    name: str
    largest: float  # of the float64 values
    ours: float  # the largest difference from them
    torchs: float


def compare(model: nn.Module, x: Tensor) -> list[Error]:
    """The errors of model's outputs for x, and of every gradient of their sum with random weights.

    model is in training mode but without dropout, whose masks would differ between dtypes.
    """
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    twin = as_torch(model)
    reference = _results(copy.deepcopy(twin).double(), x.double())
    ours, torchs = _results(model, x), _results(twin, x)
    return [
        Error(name, _largest(exact), _largest(ours[name] - exact), _largest(torchs[name] - exact))
        for name, exact in reference.items()
    ]


def error_table(errors: list[Error]) -> str:
    """A line for every output and gradient, and one for the largest error relative to a value."""
    width = max(len(error.name) for error in errors)
    lines = [f"{'':{width}}  largest value  tritonconv's error  torch.nn's error"]
    for name, largest, ours, torchs in errors:
        lines.append(f"{name:{width}}  {largest:13.3e}  {ours:18.1e}  {torchs:16.1e}")
    ours, torchs = (max(error[i] / max(error.largest, 1e-30) for error in errors) for i in (2, 3))
    lines.append(f"{'relative, at most':{width}}  {'':13}  {ours:18.1e}  {torchs:16.1e}")
    return "\n".join(lines)


def _results(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    output = model(x)
    outputs = {"output": output} if isinstance(output, Tensor) else output._asdict()
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(y.shape, generator=generator).to(y) for y in outputs.values()]
    torch.autograd.backward(list(outputs.values()), weights)
    gradients = {"input": x, **dict(model.named_parameters())}
    results = outputs | {f"gradient of {name}": p.grad for name, p in gradients.items()}
    return {name: value.detach().double() for name, value in results.items()}


def _largest(value: Tensor) -> float:
    return value.abs().max().item()
