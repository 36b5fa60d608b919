import copy
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from tritonconv.nets.training import checkpoint
from tritonconv.nets.__main__ import main
from tritonconv.nets.training.data import Dataset, Split
from tritonconv.nets.recipes import Recipe
from tritonconv.nets.training.run import Run

EPOCHS, STEPS = 2, 3
# sends itself a signal when it moves its n-th file into place, before or after the move
SIGNAL = """
import os, signal, sys
number, when, moves, replace = int(sys.argv.pop(1)), sys.argv.pop(1), [], os.replace
def moving(source, target):
    if str(target).endswith("checkpoint.pt"):
        moves.append(target)
    if len(moves) == abs(number) and str(target).endswith("checkpoint.pt"):
        if when == "after":
            replace(source, target)
        os.kill(os.getpid(), signal.SIGINT if number < 0 else signal.SIGKILL)
        if when == "after":
            return
    replace(source, target)
os.replace = moving
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have switched off
from tritonconv.nets.__main__ import main
main(sys.argv[1:])
"""


def argv(data: Path, out: Path) -> list[str]:
    return ["train", "lenet", "--optimizer", "sgd", "--momentum", "0.9", "--lr", "0.01",
            "--schedule", "cosine", "--augment", "--batch-size", "3", "--epochs", str(EPOCHS),
            "--checkpoint-every", "0", "--data", "fashion-mnist", "--data-dir", str(data),
            "--out", str(out)]  # fmt: skip


def signalled(number: int, when: str, arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", SIGNAL, str(number), when, *arguments],
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
    """metrics.csv without its last column, the examples per second."""
    lines = (folder / "metrics.csv").read_text().splitlines()
    return [line.rpartition(",")[0] for line in lines]


def state(folder: Path) -> dict:
    """All that a run ends with but its seconds."""
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)["run"]
    saved["history"] = [[metrics[:-1] for metrics in epoch] for epoch in saved["history"]]
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
    done = signalled(3, "after", start)  # within the first epoch
    assert done.returncode == -signal.SIGKILL
    assert not (broken / "weights.pt").exists()
    # its second save, the first being the resumed state's: killed while it is written
    done = signalled(2, "before", [*start, "--resume"])
    assert done.returncode == -signal.SIGKILL
    assert "resumed after 0 epochs and 2 batches" in done.stdout
    assert len(list(broken.iterdir())) == 2  # the old checkpoint, and a part of a new one
    done = signalled(3, "after", [*start, "--resume"])  # between the epochs
    assert done.returncode == -signal.SIGKILL
    assert len(rows(broken)) == 2
    capsys.readouterr()
    main([*start, "--resume"])
    assert "resumed after 1 epochs and 0 batches" in capsys.readouterr().out
    assert_same_run(whole, broken)


def test_ctrl_c_leaves_a_checkpoint_that_resumes_to_the_same_bits(unbroken, tmp_path):
    whole, data = unbroken
    start = argv(data, tmp_path / "broken")
    done = signalled(-7, "after", start)  # after the second epoch's second step
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == (
        f"interrupted; go on with --resume from {tmp_path / 'broken' / 'checkpoint.pt'}"
    )
    main([*start, "--resume"])
    assert_same_run(whole, tmp_path / "broken")


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
        assert epoch[0][:-1] == epoch[1][:-1]  # equal models stay equal
    assert steps == [1, 2, 3] * 4  # 2 models, 2 epochs
    for number in (1, 3, 4, 8, 12):
        part = probing(device, amp)
        left = iter([False] * (number - 1) + [True])

        def stop(part=part, left=left):
            if next(left):
                checkpoint.save(tmp_path / "run.pt", part, {})
                raise StopError

        with pytest.raises(StopError):
            list(part.epochs(stop))
        resumed = probing(device, amp)
        torch.manual_seed(number)
        checkpoint.load(tmp_path / "run.pt", resumed, {})
        list(resumed.epochs())
        a, b = whole.state_dict(), resumed.state_dict()
        del a["history"], b["history"]  # hold the examples per second
        assert_same_bits(a, b)
        assert [[m[:-1] for m in epoch] for epoch in whole.history] == [
            [m[:-1] for m in epoch] for epoch in resumed.history
        ]
    assert bool(whole.state_dict()["scalers"][0]) == (amp == torch.float16)


def test_a_run_without_schedule_goes_on_to_more_epochs(tmp_path):
    first = probing("cpu", None)
    first.recipe = first.recipe._replace(schedule="none")
    list(first.epochs())
    checkpoint.save(tmp_path / "run.pt", first, {})
    more = probing("cpu", None)
    more.recipe = first.recipe._replace(epochs=3)
    checkpoint.load(tmp_path / "run.pt", more, {})
    assert [epoch[0].epoch for epoch in more.epochs()] == [3]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


def test_ctrl_c_waits_for_the_end_of_an_uninterrupted_block(ctrl_c):
    done = []

    def work():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("block")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_uninterrupted_blocks_run_in_other_threads():
    done = []

    def work():
        with uninterrupted():
            done.append("block")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["block"]
