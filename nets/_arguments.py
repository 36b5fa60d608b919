"""What several commands accept: checked numbers, a device, a network's options and data."""

import argparse
import math
import os
from pathlib import Path

import torch
from torch import nn

from .recipes import ACTIVATIONS, POOLS, RECIPES, Recipe, recipe_of
from .registry import NETWORKS
from .training.data import Dataset, cifar10, digits, download_fashion_mnist, fashion_mnist
from .training.folder import image_folder
from .training.saved import About, network, read_weights
from .training.transforms import View

FOLDERS = {
    "fashion-mnist": "FashionMNIST/raw",
    "cifar10": "cifar-10-batches-bin",
    "imagefolder": "train/CLASS/*.jpg and val/CLASS/*.jpg",
}

# A ValueError in these becomes "argument --epochs: invalid positive_int value: '0'".


def positive_int(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def positive_float(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
        raise ValueError
    return value


def non_negative_int(text: str) -> int:
    if (value := int(text)) < 0:
        raise ValueError
    return value


def share(text: str) -> float:
    if not 0 <= (value := float(text)) < 1:
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
    group.add_argument("--data", choices=("digits", *FOLDERS), help="(default: digits)")
    group.add_argument(
        "--data-dir", type=Path, metavar="DIR", help=f"holds {', or '.join(FOLDERS.values())}"
    )
    group.add_argument(
        "--workers",
        type=non_negative_int,
        default=min(8, len(os.sched_getaffinity(0))),
        metavar="N",
        help="processes that read an imagefolder's files (default: %(default)s)",
    )
    group.add_argument(
        "--skip-bad", action="store_true", help="leave out files that cannot be read as images"
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


def add_trained(command: argparse.ArgumentParser) -> None:
    """What names a trained network: its weights, or a checkpoint that says all about them."""
    command.add_argument(
        "--weights", type=Path, metavar="FILE", help="(default: runs/NETWORK/weights.pt)"
    )
    command.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="in place of NETWORK, its options and weights",
    )


def trained(args: argparse.Namespace) -> tuple[nn.Module, About]:
    """The network that args name with the weights of a training run, in evaluation mode.

    Raises OSError or ValueError.
    """
    if args.checkpoint:
        if args.network or args.recipe or args.weights:
            raise ValueError("--checkpoint goes without NETWORK, --recipe and --weights")
        return network(args.checkpoint, args.device)
    found = recipe(args)
    path = args.weights or Path("runs", found.network, "weights.pt")
    saved = read_weights(path)
    try:
        (channels, *_) = (w.shape[1] for w in saved.values() if w.ndim == 4)
        (*_, classes) = (w.shape[0] for w in saved.values() if w.ndim in (2, 4))
        model = found.make(classes, channels)
        model.load_state_dict(saved)
    except (RuntimeError, ValueError):
        raise ValueError(
            f"{path}: expected weights of {found.network}, got another network's or another file"
        ) from None
    names, zeros = tuple(map(str, range(classes))), (0.0,) * channels
    view = View(found.size, 1.0, zeros, (1.0,) * channels)
    return model.to(args.device).eval(), About(found, args.data or "digits", names, view)


def dataset(args: argparse.Namespace, about: About | None = None) -> Dataset:
    """The data that args name, or about.  Raises OSError, ValueError or ModuleNotFoundError."""
    name = args.data or (about.data if about else "digits")
    if args.download and name != "fashion-mnist":
        raise ValueError("--download goes with --data fashion-mnist")
    if args.skip_bad and name != "imagefolder":
        raise ValueError("--skip-bad goes with --data imagefolder")
    if name == "digits":
        if args.data_dir:
            raise ValueError(f"--data-dir goes with --data {', '.join(FOLDERS)}")
        return digits()
    if not args.data_dir:
        raise ValueError(f"--data {name} needs --data-dir, the folder of {FOLDERS[name]}")
    if name == "imagefolder":
        return image_folder(args.data_dir, args.workers, args.skip_bad, about and about.classes)
    if name == "cifar10":
        return cifar10(args.data_dir)
    if args.download:
        download_fashion_mnist(args.data_dir)
    return fashion_mnist(args.data_dir)
