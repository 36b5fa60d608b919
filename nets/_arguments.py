"""What several commands accept: checked numbers, a device, a network's options and data."""

import argparse
import math
import pickle
from pathlib import Path

import torch
from torch import nn

from .data import CLASSES, Dataset, cifar10, digits, download_fashion_mnist, fashion_mnist
from .recipes import ACTIVATIONS, POOLS, RECIPES, Recipe, recipe_of
from .registry import NETWORKS

FOLDERS = {"fashion-mnist": "FashionMNIST/raw", "cifar10": "cifar-10-batches-bin"}

# A ValueError in these becomes "argument --epochs: invalid positive_int value: '0'".


def positive_int(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def positive_float(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
        raise ValueError
    return value


def non_negative_float(text: str) -> float:
    if not 0 <= (value := float(text)) < math.inf:
        raise ValueError
    return value


def seed(text: str) -> int:
    if not 0 <= (value := int(text)) < 2**63:
        raise ValueError
    return value


def device(text: str) -> torch.device:
    try:
        place = torch.device(text)
    except RuntimeError:
        raise ValueError from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text} is not on this machine; use cpu")
    if place.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"expected cpu or cuda, got {text}")
    return place


def add_network(command: argparse.ArgumentParser, optional: bool = False) -> None:
    """NETWORK alone: what is known without data."""
    command.add_argument(
        "network", choices=NETWORKS, metavar="NETWORK", nargs="?" if optional else None,
        help="a name that `list` prints" + " (default: the recipe's)" * optional,
    )  # fmt: skip


def add_recipe(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """NETWORK and --recipe, and in place of the recipe's what decides on the network's input."""
    add_network(command, optional=True)
    command.add_argument(
        "--recipe", choices=RECIPES, metavar="RECIPE",
        help=f"{', '.join(RECIPES)} (default: the network's name, or what trains most)",
    )  # fmt: skip
    group = command.add_argument_group("in place of the recipe's")
    group.add_argument("--activation", choices=ACTIVATIONS, help="of lenet")
    group.add_argument("--pool", choices=POOLS, help="of lenet")
    group.add_argument("--size", type=positive_int, help="images are resized to SIZE x SIZE")
    return group


def add_data(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("data")
    group.add_argument("--data", choices=("digits", *FOLDERS), default="digits")
    group.add_argument(
        "--data-dir", type=Path, metavar="DIR", help=f"holds {' or '.join(FOLDERS.values())}"
    )
    group.add_argument(
        "--download", action="store_true", help="fetch what DIR lacks of Fashion-MNIST (30 MB)"
    )


def add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device",
        type=device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="(default: cuda where there is one, else cpu)",
    )


def recipe(args: argparse.Namespace) -> Recipe:
    """The recipe that args name, with what they put in its place; ValueError if it makes none."""
    if not (args.network or args.recipe):
        raise ValueError("name a network or a --recipe; `list` prints them")
    found = RECIPES[args.recipe] if args.recipe else recipe_of(args.network)
    if args.network and args.network != found.network:
        raise ValueError(
            f"--recipe {args.recipe} is one for {found.network}, got {args.network}; "
            "leave out one of them"
        )
    given = {name: getattr(args, name, None) for name in Recipe._fields if name != "network"}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("optimizer") == "adam":
        given.setdefault("momentum", 0.0)
    if found.activation is None and given.keys() & {"activation", "pool"}:
        raise ValueError(f"--activation and --pool go with lenet, got {found.network}")
    found = found._replace(**given)
    if found.optimizer == "adam" and found.momentum:
        raise ValueError(f"--momentum goes with sgd, got adam and {found.momentum:g}")
    return found


def add_weights(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--weights", type=Path, metavar="FILE", help="(default: runs/NETWORK/weights.pt)"
    )


def trained(args: argparse.Namespace) -> tuple[nn.Module, Recipe]:
    """The network that args name with the weights of a training run, in evaluation mode.

    Raises OSError or ValueError.
    """
    found = recipe(args)
    path = args.weights or Path("runs", found.network, "weights.pt")
    try:
        weights = torch.load(path, map_location=args.device, weights_only=True)
        (channels, *_) = (w.shape[1] for w in weights.values() if w.ndim == 4)
        model = found.make(CLASSES, channels).to(args.device)
        model.load_state_dict(weights)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: expected weights, got no file; train first, or name a file with --weights"
        ) from None
    except (AttributeError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):
        raise ValueError(
            f"{path}: expected weights of {found.network}, got another network's or another file"
        ) from None
    return model.eval(), found


def dataset(args: argparse.Namespace) -> Dataset:
    """The data that args name.  Raises OSError, ValueError or ModuleNotFoundError."""
    if args.download and args.data != "fashion-mnist":
        raise ValueError("--download goes with --data fashion-mnist")
    if args.data == "digits":
        if args.data_dir:
            raise ValueError("--data-dir goes with --data fashion-mnist or cifar10")
        return digits()
    if not args.data_dir:
        folder = FOLDERS[args.data]
        raise ValueError(f"--data {args.data} needs --data-dir, the folder of {folder}")
    if args.data == "cifar10":
        return cifar10(args.data_dir)
    if args.download:
        download_fashion_mnist(args.data_dir)
    return fashion_mnist(args.data_dir)
