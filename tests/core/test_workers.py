"""Several processes as one: order kept, and those that die replaced by others, by name."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from abc_embed.errors import DataError, OutOfMemoryError, UsageError
from abc_embed.workers import map_in_processes


def load(number: int) -> Callable[[int], tuple[int, int]]:
    def square(task: int) -> tuple[int, int]:
        time.sleep(0.03 * (task % 3 == 0))  # later tasks are done earlier
        return task * task, number

    return square


def load_and_die_at_5(number: int) -> Callable[[tuple[int, str]], int]:
    def work(task: tuple[int, str]) -> int:
        value, mark = task
        if value == 5 and not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    return work


def load_and_refuse(number: int) -> Callable[[int], int]:
    def work(task: int) -> int:
        raise DataError(f"task {task} is bad")

    return work


def load_and_die(number: int) -> Callable[[int], int]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_results_come_in_order_from_both() -> None:
    results = list(map_in_processes(load, range(40), 2))
    assert [value for value, _ in results] == [n * n for n in range(40)]
    assert {number for _, number in results} == {0, 1}


def test_no_more_tasks_are_read_than_needed() -> None:
    read = 0

    def endless() -> Iterator[int]:
        nonlocal read
        while True:
            yield read
            read += 1

    results = map_in_processes(load, endless(), 2)
    assert [next(results)[0] for _ in range(20)] == [n * n for n in range(20)]
    results.close()  # type: ignore[attr-defined]
    assert read < 20 + 16


def test_a_process_that_dies_is_named_and_its_task_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [(n, str(tmp_path / "mark")) for n in range(12)]
    with caplog.at_level(logging.WARNING):
        assert list(map_in_processes(load_and_die_at_5, tasks, 2)) == list(range(12))
    assert len(caplog.messages) == 1
    assert "ended by itself (exit code -9); another does its items again" in caplog.messages[0]


def test_failures() -> None:
    with pytest.raises(DataError, match="task 0 is bad"):
        list(map_in_processes(load_and_refuse, range(1), 1))
    with pytest.raises(OutOfMemoryError, match=r"exit code -9\), most often for want of memory"):
        list(map_in_processes(load_and_die, range(3), 2))
    with pytest.raises(UsageError, match="processes is 0"):
        next(map_in_processes(load, [1], 0))
    assert list(map_in_processes(load, [], 1)) == []
