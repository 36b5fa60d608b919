"""Processes that call functions for others, and what becomes of those that die."""

import os
import time

import pytest
from tritonconv._workers import CallError, Worker, WorkerDiedError, Workers


@pytest.fixture
def worker():
    made = Worker(GREETING="hello")
    yield made
    made.close()


def test_calls_functions_in_one_process_with_its_environment(worker):
    assert worker.call(os.getenv, "GREETING") == "hello"
    first = worker.call(os.getpid)
    assert first == worker.call(os.getpid) != os.getpid()


def test_what_a_function_prints_is_no_reply(worker):
    assert worker.call(print, "not a reply") is None
    assert worker.call(abs, -3) == 3


def test_what_raises_there_is_told_here(worker):
    pid = worker.call(os.getpid)
    with pytest.raises(CallError, match="ZeroDivisionError"):
        worker.call(divmod, 1, 0)
    assert worker.call(os.getpid) == pid


def test_a_process_that_dies_is_replaced(worker):
    first = worker.call(os.getpid)
    with pytest.raises(WorkerDiedError, match="_exit: its process died"):
        worker.call(os._exit, 3)
    assert worker.call(os.getpid) not in (first, os.getpid())


def test_what_takes_too_long_is_ended(worker):
    worker.call(os.getpid)
    start = time.monotonic()
    with pytest.raises(WorkerDiedError, match="sleep: its process did not finish in 1 s"):
        worker.call(time.sleep, 60, seconds=1)
    assert time.monotonic() - start < 20
    assert worker.call(abs, -3) == 3


def test_a_process_that_is_stopped_is_replaced(worker):
    worker.stop()
    first = worker.call(os.getpid)
    worker.stop()
    assert worker.call(os.getpid) != first


def test_several_work_beside_each_other():
    with Workers(2) as workers:
        futures = [workers.submit(os.getpid) for _ in range(8)]
        futures.append(workers.submit(os._exit, 1))
        pids = {future.result() for future in futures[:-1]}
        assert 1 <= len(pids) <= 2
        with pytest.raises(WorkerDiedError):
            futures[-1].result()
        assert workers.submit(abs, -3).result() == 3


def test_leaving_ends_what_still_runs():
    start = time.monotonic()
    with Workers(1) as workers:
        running, waiting = workers.submit(time.sleep, 60), workers.submit(time.sleep, 60)
        while workers.all[0].process is None:
            time.sleep(0.01)
    assert time.monotonic() - start < 20
    assert waiting.cancelled()
    assert isinstance(running.exception(), WorkerDiedError)
