"""All runs, in worker processes; each finished one is a line that is never computed again.

Does: make what is shared, hand out runs whose model is there, show progress with the time left,
keep the lines. Does not: train (work.py) or judge (report.py).

Killed at any moment and started again, it goes on: finished runs are found by their key, a broken
one resumes from its checkpoint. Workers end when this process does, however it ends.
"""

import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from abc_embed.errors import DataError, TrainingError
from abc_embed.storage.files import atomic_write, make_folder
from experiments.miniature.ground import Ground
from experiments.miniature.plan import Job, Sizes, jobs, key
from experiments.miniature.work import do

LINES = "miniature.jsonl"

Lines = dict[str, dict[str, Any]]
Told = Callable[[int, int, float | None, str], None]
"""Runs done, runs in all, seconds left if they can be known, and what goes on."""


def run(out: Path, sizes: Sizes, workers: int, told: Told) -> list[dict[str, Any]]:
    """Everything that `out` does not hold yet; the lines of all runs, in the order of the plan.

    Raises what a run raised; the others' lines are kept.
    """
    make_folder(out)
    lines = read_lines(out / LINES)
    ground = Ground(out, sizes)
    plan = [(job, key(job, sizes, ground.bundled)) for job in jobs(sizes)]
    missing = [job for job, name in plan if name not in lines]
    _redo_lost_models(missing, out)
    clock = Clock(len(plan), missing, workers, told)
    if missing:
        context = multiprocessing.get_context("spawn")
        arguments = (str(out / "log.txt"), os.getpid())
        with ProcessPoolExecutor(workers, context, _begin, arguments) as pool:
            try:
                clock.tell("what all runs share")
                pool.submit(ground.make).result()
                clock.shared_done()
                hand_out(pool, missing, out, ground, lines, clock)
            except BrokenProcessPool as problem:
                raise TrainingError(
                    f"a worker was killed, most often for want of memory; see {out / 'log.txt'}, "
                    "and start again with --workers 1: finished runs are kept"
                ) from problem
            except BaseException:  # Ctrl-C too; a run that is stopped resumes
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()
                raise
    return [lines[name] for _, name in plan]


def _redo_lost_models(missing: list[Job], out: Path) -> None:
    """Put back runs that are done but whose model another one needs and is gone."""
    for job in tuple(missing):
        needed = job.needs
        if needed and needed not in missing and not (out / needed.name / "model").exists():
            missing.insert(0, needed)


def hand_out(
    pool: Executor,
    missing: Sequence[Job],
    out: Path,
    ground: Ground,
    lines: Lines,
    clock: "Clock",
) -> None:
    """Keep every worker busy with the first run that can begin; a line to `out` for each."""
    waiting, running = list(missing), dict[Future[dict[str, Any]], Job]()
    while waiting or running:
        ready = [job for job in waiting if job.needs not in {*waiting, *running.values()}]
        for job in ready[: clock.workers - len(running)]:
            waiting.remove(job)
            running[pool.submit(do, job, out, ground)] = job
        clock.tell(", ".join(job.name for job in running.values()))
        done = wait(running, timeout=5.0, return_when=FIRST_COMPLETED).done
        for future in sorted(done, key=lambda one: one.exception() is not None):  # errors last
            job, line = running.pop(future), future.result()
            lines[line["key"]] = line
            write_lines(out / LINES, lines.values())
            clock.done(job)


def read_lines(path: Path) -> Lines:
    """Lines by key; none of a file that is not there."""
    if not path.exists():
        return {}
    lines: Lines = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            lines[line["key"]] = line
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}:{number}: this is no result; remove the line, and its run is done again"
            ) from None
    return lines


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """All lines, written aside and renamed."""
    with atomic_write(path) as file:
        file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


class Clock:
    """How far it is, and when it will be done, from the time that finished runs took."""

    def __init__(self, total: int, missing: Sequence[Job], workers: int, told: Told) -> None:
        self.workers = workers
        self._total, self._told = total, told
        self._missing = len(missing)
        self._left = sum(job.condition.cost for job in missing)
        self._did, self._began = 0.0, time.monotonic()

    def shared_done(self) -> None:
        self._began = time.monotonic()

    def done(self, job: Job) -> None:
        self._missing -= 1
        self._did += job.condition.cost
        self._left -= job.condition.cost

    def tell(self, what: str) -> None:
        passed = time.monotonic() - self._began
        left = passed / self._did * self._left if self._did else None
        self._told(self._total - max(self._missing, 0), self._total, left, what)


def _begin(log: str, parent: int) -> None:
    """In a worker: one thread, its progress into a file, and an end with its parent's."""
    import torch

    torch.set_num_threads(1)
    sys.stderr = open(log, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  (for its whole life)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
