import copy
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from tritonconv.nets.__main__ import main
from tritonconv.nets.recipes import RECIPES, Recipe
from tritonconv.nets.training import checkpoint
from tritonconv.nets.training.data import DIGITS, Dataset, Split
from tritonconv.nets.training.metrics import RESULTS, Metrics
from tritonconv.nets.training.run import Run
from tritonconv.nets.training.saved import About, network
from tritonconv.nets.training.signals import noted
from tritonconv.nets.training.transforms import View

EPOCHS, STEPS = 2, 3
ABOUT = About(RECIPES["lenet"], "digits", DIGITS, View())
# kills itself when it moves its n-th file into place, before or after the move
KILLED = """
import os, signal, sys
number, when, moves, replace = int(sys.argv.pop(1)), sys.argv.pop(1), [], os.replace
def moving(source, target):
    if str(target).endswith("checkpoint.pt"):
        moves.append(target)
    if len(moves) == number and str(target).endswith("checkpoint.pt"):
        if when == "after":
            replace(source, target)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = moving
from tritonconv.nets.__main__ import main
main(sys.argv[1:])
"""


def argv(data: Path, out: Path) -> list[str]:
    return ["train", "lenet", "--optimizer", "sgd", "--momentum", "0.9", "--lr", "0.01",
            "--schedule", "cosine", "--augment", "--batch-size", "3", "--epochs", str(EPOCHS),
            "--checkpoint-every", "0", "--data", "fashion-mnist", "--data-dir", str(data),
            "--out", str(out)]  # fmt: skip


def killed(number: int, when: str, arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(number), when, *arguments],
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def unbroken(write_idx_set_to, tmp_path_factory) -> tuple[Path, Path]:
    """A finished run of 2 epochs of 3 steps, and its data."""
    folder = tmp_path_factory.mktemp("unbroken")
    data = write_idx_set_to(folder / "data", train=8, test=2)
    main(argv(data, folder / "run"))
    return folder / "run", data


def rows(folder: Path) -> list[str]:
    """metrics.csv without what depends on the clock."""
    lines = (folder / "metrics.csv").read_text().splitlines()
    return [",".join(line.split(",")[: len(RESULTS)]) for line in lines]


def results(metrics: Metrics) -> tuple:
    """What does not depend on the clock."""
    return metrics[: len(RESULTS)]


def state(folder: Path) -> dict:
    """All that a run ends with but its seconds."""
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)["run"]
    saved["history"] = [
        [metrics[: len(RESULTS)] for metrics in epoch] for epoch in saved["history"]
    ]
    return saved


def assert_same_bits(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for name in a:
            assert_same_bits(a[name], b[name])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for p, q in zip(a, b, strict=True):
            assert_same_bits(p, q)
    else:
        assert a == b


def assert_same_run(a: Path, b: Path):
    assert_same_bits(state(a), state(b))
    assert rows(a) == rows(b)
    ours, theirs = (torch.load(run / "weights.pt", weights_only=True) for run in (a, b))
    assert_same_bits(dict(ours), dict(theirs))
    assert sorted(path.name for path in b.iterdir()) == [
        "checkpoint-1.pt",
        "checkpoint.pt",
        "curves.png",
        "metrics.csv",
        "weights.pt",
    ]


def test_a_killed_run_resumes_to_the_same_bits(unbroken, tmp_path, capsys):
    """Saves: 1 at the start, 2-4 after steps, 5 after the epoch, 6-8 after steps, 9 at the end."""
    whole, data = unbroken
    broken = tmp_path / "broken"
    start = argv(data, broken)
    done = killed(3, "after", start)  # within the first epoch
    assert done.returncode == -signal.SIGKILL
    assert not (broken / "weights.pt").exists()
    # its second save, the first being the resumed state's: killed while it is written
    done = killed(2, "before", [*start, "--resume"])
    assert done.returncode == -signal.SIGKILL
    assert "resumed after 0 epochs and 2 batches" in done.stdout
    assert len(list(broken.iterdir())) == 3  # the old checkpoint twice, and a part of a new one
    done = killed(3, "after", [*start, "--resume"])  # between the epochs
    assert done.returncode == -signal.SIGKILL
    assert len(rows(broken)) == 2
    capsys.readouterr()
    main([*start, "--resume"])
    assert "resumed after 1 epochs and 0 batches" in capsys.readouterr().out
    assert_same_run(whole, broken)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_that_resumes_to_the_same_bits(
    unbroken, tmp_path, capsys, monkeypatch, number, status
):
    whole, data = unbroken
    out = tmp_path / "broken"
    start, moves, replace = argv(data, out), [], os.replace

    def moving(source, target):
        replace(source, target)
        moves.extend([target] * (Path(target).name == "checkpoint.pt"))
        if len(moves) == 7 and target is moves[-1]:  # after the second epoch's second step
            signal.raise_signal(number)

    monkeypatch.setattr(os, "replace", moving)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        main(start)
    assert stopped.value.code == status
    assert signal.getsignal(number) is before
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"interrupted; go on with --resume from {out / 'checkpoint.pt'}"
    )
    monkeypatch.undo()
    assert torch.load(out / "checkpoint.pt", weights_only=True)["run"]["pass"][0] == 3
    main([*start, "--resume"])
    assert_same_run(whole, out)


def forgotten(folder: Path) -> None:
    (folder / "checkpoint.pt").unlink()


def emptied(folder: Path) -> None:
    (folder / "checkpoint.pt").write_bytes(b"")


def cut(folder: Path) -> None:
    path = folder / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:2000])


def replaced_by_weights(folder: Path) -> None:
    shutil.copy(folder / "weights.pt", folder / "checkpoint.pt")


def replaced_by_code(folder: Path) -> None:
    torch.save({"settings": {}, "run": Probe}, folder / "checkpoint.pt")


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (None, ["--lr", "0.02"], "expected to resume with lr 0.01, got 0.02"),
        (None, ["--epochs", "3"], "expected to resume with epochs 2, got 3"),  # has a schedule
        (None, ["--seed", "1"], "expected to resume with seed 0, got 1"),
        (None, ["--compare"], "expected to resume with compare False, got True"),
        (forgotten, [], "expected a checkpoint, got no file; train without --resume"),
        (emptied, [], "expected a checkpoint, got another kind of file or a damaged one"),
        (cut, [], "expected a checkpoint"),
        (replaced_by_weights, [], "expected a checkpoint"),
        (replaced_by_code, [], "expected a checkpoint"),
    ],
)
def test_resume_refuses_in_one_line(unbroken, tmp_path, capsys, damage, options, message):
    run, data = unbroken
    shutil.copytree(run, tmp_path / "run")
    if damage:
        damage(tmp_path / "run")
    with pytest.raises(SystemExit) as stopped:
        main([*argv(data, tmp_path / "run"), "--resume", *options])
    out, err = capsys.readouterr()
    assert (stopped.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"tritonconv.nets: error: {tmp_path / 'run' / 'checkpoint.pt'}: ")
    assert message in err


def test_what_was_saved_before_is_named_where_the_last_is_damaged(unbroken, tmp_path, capsys):
    run, data = unbroken
    shutil.copytree(run, tmp_path / "run")
    emptied(tmp_path / "run")
    with pytest.raises(SystemExit):
        main([*argv(data, tmp_path / "run"), "--resume"])
    assert "checkpoint-1.pt is the one before, move it there" in capsys.readouterr().err
    os.replace(tmp_path / "run" / "checkpoint-1.pt", tmp_path / "run" / "checkpoint.pt")
    main([*argv(data, tmp_path / "run"), "--resume"])
    assert_same_run(run, tmp_path / "run")


def refusal(path: Path) -> str:
    """What is said of a file that is no checkpoint, or nothing."""
    try:
        network(path, torch.device("cpu"))
    except ValueError as error:
        return str(error)
    return ""


def test_any_damage_is_refused_in_one_line_or_does_no_harm(unbroken, tmp_path):
    """Cut anywhere, bytes flipped anywhere, and a stranger's tensors under our names."""
    whole = (unbroken[0] / "checkpoint.pt").read_bytes()
    random, path, said = np.random.default_rng(0), tmp_path / "checkpoint.pt", []
    saved = torch.load(unbroken[0] / "checkpoint.pt", weights_only=True)
    for trial in range(60):
        content = bytearray(whole)
        if trial % 2:
            content = content[: random.integers(len(whole))]
        else:
            for place in random.integers(len(whole), size=40):
                content[place] ^= 1 << random.integers(8)
        path.write_bytes(content)
        said.append(refusal(path))
    assert {line for line in said if line} == {
        f"{path}: expected a checkpoint, got another kind of file or a damaged one"
    }
    assert sum(map(bool, said)) >= 55  # some bits are of no consequence
    for part, value in [("about", {}), ("about", {**saved["about"], "classes": 7}), ("run", [])]:
        torch.save({**saved, part: value}, path)
        with pytest.raises(ValueError, match="expected a checkpoint"):
            network(path, torch.device("cpu"))
    for name, value in [("learners", []), ("pass", [1]), ("totals", [[1, 2]])]:
        torch.save({"settings": {}, "about": {}, "run": {**saved["run"], name: value}}, path)
        with pytest.raises(ValueError, match="expected a checkpoint"):
            checkpoint.load(path, probing("cpu", None), {})


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, capfd):
    """A limit on a file's size stands for the disk's end: writing fails as it would there."""
    resource = pytest.importorskip("resource")
    run, path = probing("cpu", None), tmp_path / "checkpoint.pt"
    checkpoint.save(path, run, {}, ABOUT, keep=2)
    first = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 100, len(first) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                checkpoint.save(path, run, {}, ABOUT, keep=2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == first
        assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_full_disk_ends_the_training_in_one_line(unbroken, tmp_path, capsys, monkeypatch):
    whole, data = unbroken
    start, writes, replace = argv(data, tmp_path / "broken"), [], os.replace

    def full(source, target):
        writes.append(target)
        if len(writes) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SystemExit) as stopped:
        main(start)
    assert stopped.value.code == 2
    assert re.fullmatch(
        r"tritonconv\.nets: error: .*No space left on device: '.*checkpoint.*'; the last checkpoint "
        r"is whole, go on with --resume\n",
        capsys.readouterr().err,
    )
    monkeypatch.undo()
    main([*start, "--resume"])
    assert_same_run(whole, tmp_path / "broken")


def test_a_run_stopped_between_test_images_resumes_to_the_same_bits(tmp_path):
    whole, part, resumed = (probing("cpu", None) for _ in range(3))
    list(whole.epochs())

    def stop():
        checkpoint.save(tmp_path / "run.pt", part, {}, ABOUT)
        raise StopError

    with pytest.raises(StopError):
        list(part.epochs(after_test=stop))
    checkpoint.load(tmp_path / "run.pt", resumed, {})
    assert resumed.step == 3  # all of the first epoch
    list(resumed.epochs())
    a, b = whole.state_dict(), resumed.state_dict()
    assert_same_bits(a["learners"], b["learners"])
    assert [list(map(results, epoch)) for epoch in whole.history] == [
        list(map(results, epoch)) for epoch in resumed.history
    ]


def test_the_last_k_checkpoints_are_kept(tmp_path):
    run, path = probing("cpu", None), tmp_path / "checkpoint.pt"
    for number in range(5):
        checkpoint.save(path, run, {"number": number}, ABOUT, keep=3)
    numbers = {
        file.name: torch.load(file, weights_only=True)["settings"]["number"]
        for file in tmp_path.iterdir()
    }
    assert numbers == {"checkpoint.pt": 4, "checkpoint-1.pt": 3, "checkpoint-2.pt": 2}


class Probe(nn.Module):
    """Has running statistics and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout, self.fc = nn.BatchNorm2d(1), nn.Dropout(), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.norm(x)).flatten(1))


def probing(device: str, amp: torch.dtype | None) -> Run:
    torch.manual_seed(0)
    splits = [Split(torch.rand(n, 1, 8, 8), torch.arange(n) % 10) for n in (12, 3)]
    model = Probe().to(device)
    recipe = Recipe("lenet", "adam", 0.1, 5, 2, augment=True, schedule="step", size=8)
    data = Dataset(*splits).to(device, torch.float32)
    return Run([model, copy.deepcopy(model)], data, recipe, seed=3, amp=amp)


class StopError(Exception):
    pass


@pytest.mark.parametrize("amp", [None, torch.float16])
def test_a_run_stopped_after_any_step_resumes_to_the_same_bits(device, amp, tmp_path):
    whole = probing(device, amp)
    steps = []
    for epoch in whole.epochs(lambda: steps.append(whole.step)):
        assert results(epoch[0]) == results(epoch[1])  # equal models stay equal
    assert steps == [1, 2, 3] * 4  # 2 models, 2 epochs
    for number in (1, 3, 4, 8, 12):
        part = probing(device, amp)
        left = iter([False] * (number - 1) + [True])

        def stop(part=part, left=left):
            if next(left):
                checkpoint.save(tmp_path / "run.pt", part, {}, ABOUT)
                raise StopError

        with pytest.raises(StopError):
            list(part.epochs(stop))
        resumed = probing(device, amp)
        torch.manual_seed(number)
        checkpoint.load(tmp_path / "run.pt", resumed, {})
        list(resumed.epochs())
        a, b = whole.state_dict(), resumed.state_dict()
        del a["history"], b["history"]  # hold times
        assert_same_bits(a, b)
        assert [list(map(results, epoch)) for epoch in whole.history] == [
            list(map(results, epoch)) for epoch in resumed.history
        ]
    assert bool(whole.state_dict()["learners"][0]["scaler"]) == (amp == torch.float16)


def test_a_run_without_schedule_goes_on_to_more_epochs(tmp_path):
    first = probing("cpu", None)
    first.recipe = first.recipe._replace(schedule="none")
    list(first.epochs())
    checkpoint.save(tmp_path / "run.pt", first, {}, ABOUT)
    more = probing("cpu", None)
    more.recipe = first.recipe._replace(epochs=3)
    checkpoint.load(tmp_path / "run.pt", more, {})
    assert [epoch[0].epoch for epoch in more.epochs()] == [3]


def test_a_second_ctrl_c_takes_effect_at_once():
    before = signal.getsignal(signal.SIGINT)
    with noted() as signals:
        for number in (signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        assert signals.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_kills_at_random_moments_lose_nothing():
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("kills.py"), "4"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"4 kills: .* all as unbroken\n$", done.stdout)
