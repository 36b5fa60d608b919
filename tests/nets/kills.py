"""python tests/nets/kills.py [KILLS]: what a training leaves that is killed at random moments.

A small network is trained again and again, a checkpoint after every step.  Each training is killed
(SIGKILL mostly, SIGTERM or Ctrl-C now and then) after a random time, resumed and killed, until it
comes to its end; what it ends with has to be an unbroken training's, bit for bit.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from small_net import SmallNetDropout
from tritonconv.nets.__main__ import main
from tritonconv.nets.registry import NETWORKS, Network
from tritonconv.nets.training import profile, report, run  # noqa: F401  once, before the forks
from tritonconv.nets.training.data import digits
from tritonconv.nets.training.saved import network

ARGV = ["train", "resnet50", "--size", "28", "--augment", "--batch-size", "256", "--epochs", "3",
        "--ema", "0.9", "--checkpoint-every", "0"]  # fmt: skip
# as a process ends that is killed; that notes the signal and saves; that had no handler yet
ENDS = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}, signal.SIGINT: {130}}


def start(out: Path) -> int:
    """The id of a process that trains into out, from where the last one came to."""
    pid = os.fork()
    if pid:
        return pid
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have switched it off
        resume = ["--resume"] if (out / "checkpoint.pt").exists() else []
        main([*ARGV, "--out", str(out), *resume])
        code = 0
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:
        code = 130
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(out: Path) -> tuple[list, dict[str, torch.Tensor]]:
    """What the training has reached and what it has written, but for times."""
    lines = (out / "metrics.csv").read_text().splitlines()
    return [line.split(",")[:5] for line in lines], torch.load(out / "weights.pt")


def assert_same(a: tuple, b: tuple) -> None:
    assert a[0] == b[0], (a[0], b[0])
    assert a[1].keys() == b[1].keys()
    assert all(torch.equal(a[1][name], b[1][name]) for name in a[1])


def trial(kills: int) -> str:
    torch.set_num_threads(1)  # threads do not survive a fork
    digits()  # imports what it needs, once
    NETWORKS["resnet50"] = Network(SmallNetDropout, 224)
    root, generator, sent, ends = Path(tempfile.mkdtemp()), random.Random(0), Counter(), Counter()
    begun = time.monotonic()
    assert ended(start(root / "whole")) == 0
    takes = time.monotonic() - begun
    whole, finished = outcome(root / "whole"), 0
    while sum(sent.values()) < kills or (root / "broken").exists():
        pid = start(root / "broken")
        if sum(sent.values()) < kills:
            time.sleep(generator.uniform(0, takes))
            number = generator.choice([signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT])
            os.kill(pid, number)
            code = ended(pid)
            assert code in ENDS[number] | {0}, (number, code)
            if code:
                sent[number.name] += 1
                ends[code] += 1
                if (root / "broken" / "checkpoint.pt").exists():
                    network(root / "broken" / "checkpoint.pt", torch.device("cpu"))
                continue
        else:
            assert ended(pid) == 0
        assert_same(outcome(root / "broken"), whole)
        finished += 1
        shutil.rmtree(root / "broken")
    shutil.rmtree(root)
    signals = ", ".join(f"{count} {name}" for name, count in sent.most_common())
    statuses = ", ".join(f"{count} with {code}" for code, count in ends.most_common())
    return f"{kills} kills: {signals}; ended {statuses}; {finished} trainings, all as unbroken"


if __name__ == "__main__":
    print(trial(int(sys.argv[1]) if len(sys.argv) > 1 else 100))
