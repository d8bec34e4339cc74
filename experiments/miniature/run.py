"""All runs, in worker processes; each finished one is a line that is never computed again.

Killed at any moment and started again, it goes on: finished runs are found by their key, a broken
one resumes from its checkpoint. Workers end when this process does, however it ends.
"""

import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from abc_embed.errors import DataError, TrainingError
from abc_embed.progress import StatusCallback
from abc_embed.storage.files import atomic_write, make_folder
from experiments.miniature.plan import Job, Sizes, jobs, key
from experiments.miniature.shared import SharedInputs
from experiments.miniature.work import run_job

RESULTS_FILE = "miniature.jsonl"

Results = dict[str, dict[str, Any]]
"""Lines of the results by key."""


def run(out: Path, sizes: Sizes, workers: int, on_progress: StatusCallback) -> list[dict[str, Any]]:
    """Everything that `out` does not hold yet; the results of all runs, in the order of the plan.

    Raises:
        AbcError: what a run raised; the others' results are kept.
    """
    make_folder(out)
    results = read_results(out / RESULTS_FILE)
    shared = SharedInputs(out, sizes)
    plan = [(job, key(job, sizes, shared.bundled)) for job in jobs(sizes)]
    missing = [job for job, name in plan if name not in results]
    _add_lost_models(missing, out)
    progress = ProgressReporter(len(plan), missing, workers, on_progress)
    if missing:
        context = multiprocessing.get_context("spawn")
        arguments = (str(out / "log.txt"), os.getpid())
        with ProcessPoolExecutor(workers, context, _init_worker, arguments) as pool:
            try:
                progress.report("what all runs share")
                pool.submit(shared.make).result()
                progress.start()
                run_jobs(pool, missing, out, shared, results, progress)
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
    return [results[name] for _, name in plan]


def _add_lost_models(missing: list[Job], out: Path) -> None:
    """Put back runs that are done but whose model another one needs and is gone."""
    for job in tuple(missing):
        needed = job.needs
        if needed and needed not in missing and not (out / needed.name / "model").exists():
            missing.insert(0, needed)


def run_jobs(
    pool: Executor,
    missing: Sequence[Job],
    out: Path,
    shared: SharedInputs,
    results: Results,
    progress: "ProgressReporter",
) -> None:
    """Keep every worker busy with the first run that can begin; a result to `out` for each."""
    waiting, running = list(missing), dict[Future[dict[str, Any]], Job]()
    while waiting or running:
        ready = [job for job in waiting if job.needs not in {*waiting, *running.values()}]
        for job in ready[: progress.workers - len(running)]:
            waiting.remove(job)
            running[pool.submit(run_job, job, out, shared)] = job
        progress.report(", ".join(job.name for job in running.values()))
        done = wait(running, timeout=5.0, return_when=FIRST_COMPLETED).done
        for future in sorted(
            done, key=lambda future: future.exception() is not None
        ):  # errors last
            job, result = running.pop(future), future.result()
            results[result["key"]] = result
            write_results(out / RESULTS_FILE, results.values())
            progress.done(job)


def read_results(path: Path) -> Results:
    """Results by key; none of a file that is not there."""
    if not path.exists():
        return {}
    results: Results = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            result = json.loads(text)
            results[result["key"]] = result
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}:{number}: this is no result; remove the line, and its run is done again"
            ) from None
    return results


def write_results(path: Path, results: Iterable[dict[str, Any]]) -> None:
    """One line of JSON each."""
    text = "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results)
    with atomic_write(path) as file:
        file.write(text.encode())


class ProgressReporter:
    """How far it is, and when it will be done, from the time that finished runs took."""

    def __init__(
        self, total: int, missing: Sequence[Job], workers: int, on_progress: StatusCallback
    ) -> None:
        self.workers = workers
        self._on_progress = on_progress
        self._total, self._missing = total, len(missing)
        self._cost_left, self._cost_done = sum(job.condition.cost for job in missing), 0.0
        self.start()

    def start(self) -> None:
        """Measure from now on."""
        self._start = time.monotonic()

    def done(self, job: Job) -> None:
        """A run is finished."""
        self._missing -= 1
        self._cost_done += job.condition.cost
        self._cost_left -= job.condition.cost

    def report(self, status: str) -> None:
        """Show what goes on."""
        if self._cost_done:
            left_s = (time.monotonic() - self._start) / self._cost_done * self._cost_left
            status = f"about {left_s / 60:.0f} min left, now {status}"
        self._on_progress(self._total - max(self._missing, 0), self._total, status)


def _init_worker(log: str, parent: int) -> None:
    """In a worker: one thread, its progress into a file, and an end with its parent's."""
    import torch

    torch.set_num_threads(1)
    sys.stderr = open(log, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  (for its whole life)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
