"""python -m tritonconv.nets train: what it accepts, prints and writes."""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn
from tritonconv import as_torch

from . import _arguments
from ._arguments import non_negative_float, positive_float, positive_int
from ._interrupt import uninterrupted
from .data import CLASSES, Split
from .recipes import OPTIMIZERS, SCHEDULES, Recipe

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


def add_to(commands: argparse._SubParsersAction) -> None:
    about = "train a network; writes its weights, a CSV of its metrics and a PNG of their curves"
    command = commands.add_parser(
        "train",
        help=about,
        description=f"{about}, and a checkpoint from which --resume continues to the same bits",
        epilog="example: python -m tritonconv.nets train lenet --epochs 2 --pool max --compare",
    )
    command.set_defaults(run=run)
    group = _arguments.add_recipe(command)
    group.add_argument("--optimizer", choices=OPTIMIZERS)
    group.add_argument("--batch-size", type=positive_int)
    group.add_argument("--lr", type=positive_float, help="learning rate")
    group.add_argument("--momentum", type=non_negative_float, help="of sgd")
    group.add_argument("--weight-decay", type=non_negative_float)
    group.add_argument("--schedule", choices=SCHEDULES, help="of the learning rate, by epochs")
    group.add_argument("--epochs", type=positive_int)
    group.add_argument("--augment", action="store_const", const=True, help="random flips, crops")
    _arguments.add_data(command)
    command.add_argument(
        "--seed", type=_arguments.seed, default=0, help="of weights and batches (default: 0)"
    )
    command.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    command.add_argument("--amp", choices=AMP, help="automatic mixed precision, over float32")
    _arguments.add_device(command)
    command.add_argument("--out", type=Path, metavar="DIR", help="(default: runs/NETWORK)")
    command.add_argument("--resume", action="store_true", help="go on from DIR's checkpoint")
    command.add_argument(
        "--checkpoint-every",
        type=non_negative_float,
        default=60.0,
        metavar="SECONDS",
        help="and after every epoch; 0: after every batch (default: 60)",
    )
    command.add_argument(
        "--tensorboard", action="store_true", help="write the metrics for TensorBoard, too"
    )
    command.add_argument(
        "--compare",
        action="store_true",
        help="train the torch.nn twin too, from equal weights on the same batches",
    )


def run(args: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> None:
    """Trains as args say; calls refuse with what is wrong with them, the data or the machine."""
    dtype = getattr(torch, args.dtype)
    try:
        # here, since this command alone needs the packages of tritonconv[demo]
        from . import checkpoint
        from .report import Scalars, write_curves, write_metrics, write_weights
        from .train import Run, initialise, largest_difference

        recipe = _arguments.recipe(args)
        if args.amp and args.dtype != "float32":
            raise ValueError(f"--amp goes with --dtype float32, got {args.dtype}")
        data = _arguments.dataset(args).to(args.device, dtype).resized(recipe.size)
        out = args.out or Path("runs", recipe.network)
        _make_writable(out)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        refuse(str(error))

    torch.manual_seed(args.seed)
    model = recipe.make(CLASSES, data.train.images.shape[1])
    initialise(model)
    model.to(args.device, dtype)
    if args.device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    try:
        _try(recipe, model, data.train)
    except (RuntimeError, ValueError) as error:  # a wrong size, or the kernels cannot run here
        refuse(str(error))

    models = [model, as_torch(model)] if args.compare else [model]
    training = Run(models, data, recipe, args.seed, AMP.get(args.amp))
    weights, metrics, curves = out / "weights.pt", out / "metrics.csv", out / "curves.png"
    saved_in = out / "checkpoint.pt"
    # what may not change in a resumed run; without a schedule, the number of epochs may
    settings = recipe._asdict() | {
        "epochs": recipe.epochs if recipe.schedule != "none" else None,
        "data": args.data,
        "training images": len(data.train.labels),
        "seed": args.seed,
        "dtype": args.dtype,
        "amp": args.amp,
        "compare": args.compare,
    }
    title = f"{recipe.network} on {args.data}: {recipe}"

    def report() -> None:
        write_weights(weights, model)
        history = [reached for reached, *_ in training.history]
        write_metrics(metrics, history)
        write_curves(curves, history, title)

    try:
        if args.resume:
            checkpoint.load(saved_in, training, settings)
        past = len(training.history)
        scalars = Scalars(out / "tensorboard", past) if args.tensorboard else None
    except (OSError, ValueError, ModuleNotFoundError) as error:
        refuse(str(error))
    print(f"{title}; {len(data.train.labels)} training images, {len(data.test.labels)} test images")
    if args.resume:
        print(f"resumed after {past} epochs and {training.step} batches")
    last_saved = time.monotonic()

    def save() -> None:
        nonlocal last_saved
        checkpoint.save(saved_in, training, settings)
        last_saved = time.monotonic()

    def save_in_time() -> None:
        if time.monotonic() - last_saved >= args.checkpoint_every:
            save()

    try:
        save()
        for reached, *twin in training.epochs(save_in_time):
            epoch = f"epoch {reached.epoch}/{recipe.epochs}"
            print(f"{epoch}  {reached}", flush=True)
            if twin:
                gap = largest_difference(*models)
                print(f"{'torch.nn':{len(epoch)}}  {twin[0]}  weights within {gap:.1e}", flush=True)
            with uninterrupted():
                report()
                if scalars:
                    scalars.write(reached)
                save()  # last: a run that is killed before this repeats what it had not reported
    except KeyboardInterrupt:
        save()
        print(f"interrupted; go on with --resume from {saved_in}")
        raise SystemExit(130) from None
    if len(training.history) == past:  # had been killed while it reported
        report()
    print(f"weights  {weights}\nmetrics  {metrics}\ncurves   {curves}")


def _try(recipe: Recipe, model: nn.Module, train: Split) -> None:
    """Raises RuntimeError or ValueError where the smallest batch or the device would.

    Draws no random numbers and changes no value of model.
    """
    images, number = train.images, len(train.labels)
    smallest = number % recipe.batch_size or recipe.batch_size
    shape = smallest, images.shape[1], recipe.size, recipe.size
    try:
        with torch.device("meta"):
            recipe.make(CLASSES, images.shape[1])(torch.empty(shape))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{recipe.network}: cannot train on a batch of {shape}: {error}; "
            "choose another --size or --batch-size"
        ) from error
    with torch.no_grad():
        model.eval()(train.batch(torch.arange(1))[0])


def _make_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}: cannot be written to; name another folder with --out")
