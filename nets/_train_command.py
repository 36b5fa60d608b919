"""python -m tritonconv.nets train: what it accepts, prints and writes."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
from tritonconv import as_torch

from .data import Dataset, digits, download_fashion_mnist, fashion_mnist
from .lenet import LeNet
from .recipes import ACTIVATIONS, POOLS, RECIPES, Recipe

NETWORKS = {"lenet": LeNet}


def add_to(commands: argparse._SubParsersAction) -> None:
    about = "train a network; writes its weights, a CSV of its metrics and a PNG of their curves"
    command = commands.add_parser(
        "train",
        help=about,
        description=about,
        epilog="example: python -m tritonconv.nets train lenet --epochs 2 --pool max --compare",
    )
    command.set_defaults(run=run)
    command.add_argument("network", choices=NETWORKS)
    command.add_argument("--recipe", choices=RECIPES, help="(default: the network's name)")
    recipe = command.add_argument_group("in place of the recipe's")
    recipe.add_argument("--activation", choices=ACTIVATIONS)
    recipe.add_argument("--pool", choices=POOLS)
    recipe.add_argument("--lr", type=positive_float, help="learning rate")
    recipe.add_argument("--batch-size", type=positive_int)
    recipe.add_argument("--epochs", type=positive_int)
    data = command.add_argument_group("data")
    data.add_argument("--data", choices=("digits", "fashion-mnist"), default="digits")
    data.add_argument("--data-dir", type=Path, metavar="DIR", help="holds FashionMNIST/raw")
    data.add_argument("--download", action="store_true", help="fetch what DIR lacks of it (30 MB)")
    command.add_argument("--seed", type=seed, default=0, help="of weights and batches (default: 0)")
    command.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    command.add_argument(
        "--device",
        type=device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="(default: cuda where there is one, else cpu)",
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="(default: runs/NETWORK)")
    command.add_argument(
        "--compare",
        action="store_true",
        help="train the torch.nn twin too, from equal weights on the same batches",
    )


# A ValueError in these becomes "argument --epochs: invalid positive_int value: '0'".


def positive_int(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def positive_float(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
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


def run(args: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> None:
    """Trains as args say; calls refuse with what is wrong with them, the data or the machine."""
    recipe, dtype = _recipe(args), getattr(torch, args.dtype)
    out = args.out or Path("runs", args.network)
    weights, metrics, curves = out / "weights.pt", out / "metrics.csv", out / "curves.png"
    try:
        # here, since this command alone needs the packages of tritonconv[demo]
        from .report import write_curves, write_metrics, write_weights
        from .train import initialise, largest_difference, train

        data = _data(args).to(args.device, dtype)
        _make_writable(out)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        refuse(str(error))

    torch.manual_seed(args.seed)
    activation, pool = ACTIVATIONS[recipe.activation], POOLS[recipe.pool]
    model = NETWORKS[args.network](activation=activation, pool=pool)
    initialise(model)
    model.to(args.device, dtype)
    try:
        model(data.train.images[:1])
    except RuntimeError as error:  # the kernels cannot run on this device, or with this triton
        refuse(str(error))

    models = [model, as_torch(model)] if args.compare else [model]
    title = f"{args.network} on {args.data}: {recipe}"
    print(f"{title}; {len(data.train.labels)} training images, {len(data.test.labels)} test images")
    history = []
    for reached, *twin in train(models, data, recipe, args.seed):
        epoch = f"epoch {reached.epoch}/{recipe.epochs}"
        print(f"{epoch}  {reached}", flush=True)
        if twin:
            gap = largest_difference(*models)
            print(f"{'torch.nn':{len(epoch)}}  {twin[0]}  weights within {gap:.1e}", flush=True)
        history.append(reached)
        write_weights(weights, model)  # every epoch, so that an interrupted run keeps the last
        write_metrics(metrics, history)
        write_curves(curves, history, title)
    print(f"weights  {weights}\nmetrics  {metrics}\ncurves   {curves}")


def _recipe(args: argparse.Namespace) -> Recipe:
    given = {name: getattr(args, name, None) for name in Recipe._fields}
    recipe = RECIPES[args.recipe or args.network]
    return recipe._replace(**{name: value for name, value in given.items() if value is not None})


def _data(args: argparse.Namespace) -> Dataset:
    if args.data == "digits":
        if args.data_dir or args.download:
            raise ValueError("--data-dir and --download go with --data fashion-mnist")
        return digits()
    if not args.data_dir:
        raise ValueError("--data fashion-mnist needs --data-dir, the folder of FashionMNIST/raw")
    if args.download:
        download_fashion_mnist(args.data_dir)
    return fashion_mnist(args.data_dir)


def _make_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}: cannot be written to; name another folder with --out")
