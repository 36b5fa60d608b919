"""Processes that call functions for this one: a fault ends one of them, not the program."""

import contextlib
import math
import os
import pickle
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

COMMAND = sys.executable, "-c", "from tritonconv._workers import serve; serve()"


class CallError(Exception):
    """What a function raised in a worker; its text is the traceback."""


class WorkerDiedError(Exception):
    """A worker ended, or was ended, before its function did."""


class Worker:
    """A process; where one has died, the next call starts another."""

    def __init__(self, log: IO | None = None, **environment: str) -> None:
        """log: gets what it prints (default: nobody does); environment: its, beside this one's."""
        self.log, self.environment = log or subprocess.DEVNULL, environment
        self.process: subprocess.Popen | None = None
        self.ended, self.lock = False, threading.Lock()  # of who starts or ends the process

    def call(self, function: Callable, *args: Any, seconds: float = math.inf) -> Any:
        """function(*args) there: a function of a module, and arguments that can be pickled.

        Raises CallError where it raises, and WorkerDiedError where the process dies, or has not
        finished in so many seconds.
        """
        process, late = self._running(), threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        if seconds < math.inf:
            timer.start()
        try:
            pickle.dump((function, args), process.stdin)
            process.stdin.flush()
            succeeded, outcome = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            process.kill()
            process.wait()
            status = f"did not finish in {seconds:.0f} s" if late.is_set() else "died"
            raise WorkerDiedError(f"{function.__name__}: its process {status}") from error
        finally:
            timer.cancel()
        if not succeeded:
            raise CallError(outcome)
        return outcome

    def _running(self) -> subprocess.Popen:
        with self.lock:
            if self.ended:
                raise WorkerDiedError("it has ended")
            if self.process is None or self.process.poll() is not None:
                self._release()
                self.process = subprocess.Popen(
                    COMMAND,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self.log,
                    env=os.environ | self.environment,
                )
            return self.process

    def stop(self) -> None:
        """Ends the process, when no call waits for it: the next starts another."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def kill(self) -> None:
        """For good, and at once; a call that waits for it raises."""
        with self.lock:
            self.ended = True
            if self.process is not None:
                self.process.kill()

    def close(self) -> None:
        """When no call waits for it."""
        self.kill()
        self._release()

    def _release(self) -> None:
        if self.process is not None:
            with contextlib.suppress(OSError):  # nobody took the rest of it
                self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait()


class Workers:
    """Several, each with one call at a time.  A context manager: they end with it."""

    def __init__(self, count: int, log: IO | None = None, **environment: str) -> None:
        self.all = [Worker(log, **environment) for _ in range(count)]
        self.idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self.all:
            self.idle.put(worker)
        self.threads = ThreadPoolExecutor(count)

    def submit(self, function: Callable, *args: Any, seconds: float = math.inf) -> Future:
        """As Worker.call, in the first that is idle."""
        return self.threads.submit(self._call, function, *args, seconds=seconds)

    def _call(self, function: Callable, *args: Any, seconds: float) -> Any:
        worker = self.idle.get()
        try:
            return worker.call(function, *args, seconds=seconds)
        finally:
            self.idle.put(worker)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        for worker in self.all:
            worker.kill()
        self.threads.shutdown()
        for worker in self.all:
            worker.close()


def serve() -> None:
    """A worker's life: calls what comes in on standard input, until that ends."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a function prints is no reply
    while True:
        try:
            function, args = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        except Exception:
            outcome = False, traceback.format_exc()
        else:
            try:
                outcome = True, function(*args)
            except Exception:
                outcome = False, traceback.format_exc()
        pickle.dump(outcome, replies)
        replies.flush()
