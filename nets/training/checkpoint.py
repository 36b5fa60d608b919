"""A training run's checkpoint: there whole or not at all, and read without running code.

Beside what the run needs to go on it has what saved.About says.
"""

from pathlib import Path

from .._files import replacing
from .run import Run
from .saved import About, not_a_checkpoint, packed, parts

Settings = dict[str, str | int | float | bool | None]


def save(path: Path, run: Run, settings: Settings, about: About, keep: int = 1) -> None:
    """Writes what run needs to go on, and the settings that it was started with; rank 0 does.

    The last `keep` stay.  Raises OSError where it cannot be written, and leaves the one before.
    """
    state = run.state_dict()
    if run.ranks.rank:
        return
    content = packed({"settings": settings, "about": about.state_dict(), "run": state})
    with replacing(path, keep) as temporary:
        temporary.write_bytes(content)


def load(path: Path, run: Run, settings: Settings) -> None:
    """Brings run, made with the same settings, to where the saved one was.

    Raises OSError for a file that cannot be read, ValueError for one that is no checkpoint or is
    one of a run with other settings.
    """
    if run.ranks.rank == 0:
        for left in path.parent.glob(f".*-{path.stem}*{path.suffix}"):  # by a run that was killed
            left.unlink()
    try:
        saved = parts(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: expected a checkpoint, got no file; train without --resume"
        ) from None
    for name in settings | saved["settings"]:
        was, now = saved["settings"].get(name), settings.get(name)
        if was != now:
            raise ValueError(
                f"{path}: expected to resume with {name} {was}, got {now}; "
                "give the options that the run was started with"
            )
    try:
        run.load_state_dict(saved["run"])
    except Exception as error:  # what may be wrong with a stranger's file has no end
        raise not_a_checkpoint(path) from error
