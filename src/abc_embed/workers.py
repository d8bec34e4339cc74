"""Tasks done by threads, or by processes with a model of their own, in the order of the tasks."""

import logging
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from abc_embed.errors import OutOfMemoryError, UsageError

Task = TypeVar("Task")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

_AHEAD = 4  # tasks of each process that may be done before an earlier one is


def map_ahead(
    pool: Executor, function: Callable[[Task], Result], tasks: Iterable[Task], ahead: int
) -> Iterator[Result]:
    """The result of each task, in order; `ahead` tasks at most are taken before their turn."""
    waiting: deque[Future[Result]] = deque()
    for task in tasks:
        waiting.append(pool.submit(function, task))
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def map_in_processes(
    setup: Callable[[int], Callable[[Task], Result]], tasks: Iterable[Task], processes: int
) -> Iterator[Result]:
    """The result of each task, in order, however long the tasks go on.

    A process that dies is named in the log, and another does its task again; a task that two
    processes died of ends the work.

    Args:
        setup: called once in process number so and so, counted from 0; what it returns is called
            with each task. It, the tasks and the results are pickled.
        tasks: read no further ahead than the processes need.
        processes: 1 or more.

    Raises:
        UsageError: `processes` is below 1.
        OutOfMemoryError: all processes died, or two of one task.
        Exception: whatever a task or `setup` raises.
    """
    if processes < 1:
        raise UsageError(f"processes is {processes}; give 1 or more")
    context = multiprocessing.get_context("spawn")  # a forked torch or CUDA does not work
    workers = [_Worker(context, setup, number) for number in range(processes)]
    try:
        yield from _Queue(workers, tasks).results()
    finally:
        for worker in workers:
            worker.process.terminate()
            worker.process.join()


class _Queue(Generic[Task, Result]):
    """Hands out tasks, and puts results in order."""

    def __init__(self, workers: "list[_Worker]", tasks: Iterable[Task]) -> None:
        self._workers, self._tasks = workers, enumerate(tasks)
        self._ahead = _AHEAD * len(workers)
        self._again: deque[tuple[int, Task]] = deque()
        self._lost: set[int] = set()
        self._done: dict[int, Result] = {}

    def results(self) -> Iterator[Result]:
        coming = 0
        while True:
            for worker in self._workers:
                if worker.task is None and (task := self._next(coming)) is not None:
                    worker.send(task)
            busy = {worker.connection: worker for worker in self._workers if worker.task}
            if not busy:
                return
            for connection in wait(list(busy)):
                self._receive(busy[connection])  # type: ignore[index]
            while coming in self._done:
                yield self._done.pop(coming)
                coming += 1

    def _next(self, coming: int) -> tuple[int, Task] | None:
        if self._again:
            return self._again.popleft()
        out = [worker.task[0] for worker in self._workers if worker.task]
        newest = max([coming - 1, *out, *self._done])
        return next(self._tasks, None) if newest - coming < self._ahead else None

    def _receive(self, worker: "_Worker") -> None:
        number, task = worker.take_back()
        try:
            good, value = worker.connection.recv()
        except (EOFError, OSError):
            self._workers.remove(worker)
            worker.process.join()
            death = f"process {worker.number} ended by itself (exit code {worker.process.exitcode})"
            if number in self._lost or not self._workers:
                raise OutOfMemoryError(
                    f"{death}, most often for want of memory; give fewer --processes or devices"
                ) from None
            logger.warning("%s; another does its items again", death)
            self._lost.add(number)
            self._again.append((number, task))
            return
        if not good:
            raise value
        self._done[number] = value


class _Worker:
    """One process, as its parent sees it."""

    def __init__(self, context: Any, setup: Callable[[int], Callable[..., Any]], number: int):
        self.number = number
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.task: tuple[int, Any] | None = None
        """Its number, and what it is, of the one at hand."""
        self.process = context.Process(target=_serve, args=(theirs, setup, number), daemon=True)
        self.process.start()
        theirs.close()  # or its end would not be seen

    def take_back(self) -> tuple[int, Any]:
        """The task at hand, which is none from now on."""
        task, self.task = self.task, None
        return task or (-1, None)

    def send(self, task: tuple[int, Any]) -> None:
        self.task = task
        with suppress(OSError):  # it is gone: receiving says so
            self.connection.send(task[1])


def _serve(
    connection: Connection, setup: Callable[[int], Callable[[Any], Any]], number: int
) -> None:
    """What each process does, until its parent has no more or is gone."""
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):  # the parent says the last itself
        try:
            work = setup(number)
            while True:
                connection.send((True, work(connection.recv())))
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001 - the parent raises it
            connection.send((False, error))
