"""A training run's checkpoint: there whole or not at all, and read without running code."""

import pickle
from pathlib import Path

import torch

from ._files import replacing
from .train import Run

Settings = dict[str, str | int | float | bool | None]


def save(path: Path, run: Run, settings: Settings) -> None:
    """Writes what run needs to go on, and the settings that it was started with."""
    with replacing(path) as temporary:
        torch.save({"settings": settings, "run": run.state_dict()}, temporary)


def load(path: Path, run: Run, settings: Settings) -> None:
    """Brings run, made with the same settings, to where the saved one was.

    Raises OSError for a file that cannot be read, ValueError for one that is no checkpoint or is
    one of a run with other settings.
    """
    for left in path.parent.glob(f".*-{path.name}"):  # by a run killed while it was writing
        left.unlink()
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: expected a checkpoint, got no file; train without --resume"
        ) from None
    except (EOFError, RuntimeError, pickle.UnpicklingError):
        raise _not_a_checkpoint(path) from None
    if not isinstance(saved, dict) or saved.keys() != {"settings", "run"}:
        raise _not_a_checkpoint(path)
    for name in settings | saved["settings"]:
        was, now = saved["settings"].get(name), settings.get(name)
        if was != now:
            raise ValueError(
                f"{path}: expected to resume with {name} {was}, got {now}; "
                "give the options that the run was started with"
            )
    run.load_state_dict(saved["run"])


def _not_a_checkpoint(path: Path) -> ValueError:
    return ValueError(f"{path}: expected a checkpoint, got another kind of file or a damaged one")
