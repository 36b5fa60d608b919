"""What a training starts from: weights of an earlier one, with another head, in part frozen."""

from pathlib import Path

from torch import nn

from .saved import read_weights


def load_weights(model: nn.Module, path: Path, new_head: bool) -> list[str]:
    """Puts the weights of a file into model; returns the names of those that stay as they are.

    With new_head these are the ones that differ by the number of classes.  Raises OSError or
    ValueError.
    """
    found, wanted = read_weights(path), model.state_dict()
    if found.keys() != wanted.keys():
        odd = sorted(found.keys() ^ wanted.keys())
        raise ValueError(
            f"{path}: expected weights of this network, got another's: "
            f"{odd[0]} and {len(odd) - 1} others are in one of the two alone"
        )
    head = [name for name, value in wanted.items() if found[name].shape != value.shape]
    for name in head:
        was, now = list(found[name].shape), list(wanted[name].shape)
        if was[1:] != now[1:]:
            raise ValueError(f"{path}: expected {name} to have the shape {now}, got {was}")
        if not new_head:
            raise ValueError(
                f"{path}: expected weights for {now[0]} classes, got {was[0]} in {name}; "
                f"--num-classes {now[0]} replaces the head"
            )
    model.load_state_dict({**found, **{name: wanted[name] for name in head}})
    return head


def freeze(model: nn.Module, until: str) -> int:
    """Keeps all before the part of that name as it is; returns how many parameters that are.

    Raises ValueError for a name that no part has, or the first one.
    """
    names = [name for name, _ in model.named_parameters()]
    first = next((i for i, n in enumerate(names) if n == until or n.startswith(f"{until}.")), 0)
    if not first:
        parts = dict.fromkeys(name.partition(".")[0] for name in names[1:])
        raise ValueError(
            f"--freeze {until}: expected the first part that learns, one of {', '.join(parts)}"
        )
    for _, parameter in list(model.named_parameters())[:first]:
        parameter.requires_grad_(False)
    return sum(parameter.numel() for _, parameter in list(model.named_parameters())[:first])
