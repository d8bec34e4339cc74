"""Items -> shards of vectors, in this process or in several.

Does: embed the shards that are missing, each written whole, and survive what happens to the
processes: a shard that is there is never made again. Does not: know what the vectors are for.
Each process loads the model itself; with several GPUs each takes its own.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from abc_embed.data import Dataset
from abc_embed.errors import AbcError, OutOfMemoryError, UsageError
from abc_embed.inputs import Item
from abc_embed.mining.shards import Shards, write_shard

if TYPE_CHECKING:
    from abc_embed.pipeline import Skipped  # torch comes with it

POLL_S = 0.2


class Embedding(Protocol):
    """What mining needs of a model: `Embedder` has it."""

    @property
    def dim(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def stream(
        self,
        items: Iterable[str | Item],
        *,
        max_pixels: int | None = None,
        batch_size: int = 32,
        on_error: Literal["skip"],
    ) -> Iterator["NDArray[np.float32] | Skipped"]:
        """A vector `(D,)` for each item, in order; a `Skipped` in the place of a bad one."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model, and how another process gets the same."""

    embedder: Embedding
    load: Callable[[int], Embedding] | None = None
    """Called in process number so and so; must survive pickling. None: one process only."""
    max_pixels: int | None = None
    batch_size: int = 32


@dataclass(frozen=True, slots=True)
class Task:
    """One shard: where it goes and what is in it."""

    path: Path
    store: str
    items: tuple[str | int, ...]
    """Texts as they are, images by the number of their row."""


def embed_missing(
    shards: Shards,
    items: Sequence[str | int],
    model: Model,
    dataset: Dataset,
    *,
    processes: int = 1,
    counted: Callable[[int], None] = lambda done: None,
) -> int:
    """Make the shards that are not there; returns how many items those that were there hold.

    An item is a text, or the number of a row of `dataset` whose image is meant. `counted` is told
    how many items are in shards by now.

    Raises:
        UsageError: `processes` is below 1, or more than 1 for a model that cannot be loaded anew.
        OutputError: a shard cannot be written.
        OutOfMemoryError: a process was killed.
        AbcError: what else embedding raises, but for bad items: those are in `Shards.errors`.
    """
    if processes < 1 or (processes > 1 and model.load is None):
        raise UsageError(f"processes is {processes}; give 1 or more, and 1 for a model in memory")
    missing = shards.missing()
    spans = {number: shards.span(number) for number in missing}
    known = len(items) - sum(len(range(span.start, span.stop)) for span in spans.values())
    counted(known)
    tasks = [Task(shards.paths[n], shards.space.store, tuple(items[spans[n]])) for n in missing]
    if processes == 1 or len(tasks) < 2:
        done = known
        for task in tasks:
            embed_shard(task, dataset, model.embedder, model.max_pixels, model.batch_size)
            done += len(task.items)
            counted(done)
    else:
        count = min(processes, len(tasks))
        _together(tasks, dataset, model, count, lambda more: counted(known + more))
    return known


def embed_shard(
    task: Task, dataset: Dataset, embedder: Embedding, max_pixels: int | None, batch_size: int
) -> None:
    """Embed and write one shard, if no other process has."""
    if task.path.exists():
        return
    items = (
        Item(text=item) if isinstance(item, str) else Item(image=dataset.row(item).image)
        for item in task.items
    )
    vectors: NDArray[np.float32] = np.zeros((len(task.items), embedder.dim), dtype=task.store)
    bad: dict[int, str] = {}
    made = embedder.stream(items, max_pixels=max_pixels, batch_size=batch_size, on_error="skip")
    for place, vector in enumerate(made):
        if isinstance(vector, np.ndarray):
            vectors[place] = vector
        else:
            bad[place] = str(vector.error)
    write_shard(task.path, vectors, bad)


def _together(
    tasks: list[Task],
    dataset: Dataset,
    model: Model,
    processes: int,
    counted: Callable[[int], None],
) -> None:
    """Process `n` takes task `n`, `n + processes` and so on; the shards on disk say how far all
    are."""
    context = multiprocessing.get_context("spawn")  # a forked torch or CUDA does not work
    failures: Any = context.Queue()
    told = (dataset, model.load, model.max_pixels, model.batch_size, failures)
    workers = [
        context.Process(target=_work, args=(n, tasks[n::processes], *told), daemon=True)
        for n in range(processes)
    ]
    try:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            time.sleep(POLL_S)
            counted(sum(len(task.items) for task in tasks if task.path.exists()))
            _check(workers, failures)
        _check(workers, failures)
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
                worker.join()
    counted(sum(len(task.items) for task in tasks))


def _check(workers: Sequence[Any], failures: Any) -> None:
    """Raises what a process reported, or that it is gone without a word."""
    if not failures.empty():
        raise failures.get()
    for worker in workers:
        if worker.exitcode:
            worker.join()
            if not failures.empty():
                raise failures.get()
            raise OutOfMemoryError(
                f"a process that embeds ended by itself (exit code {worker.exitcode}), most often "
                "for want of memory; give fewer --processes, the same command goes on from here"
            )


def _work(
    number: int,
    tasks: list[Task],
    dataset: Dataset,
    load: Callable[[int], Embedding],
    max_pixels: int | None,
    batch_size: int,
    failures: Any,
) -> None:
    """What each process does."""
    parent = multiprocessing.parent_process()
    try:
        embedder = load(number)
        for task in tasks:
            if parent is None or not parent.is_alive():  # it was killed: nobody waits for this
                return
            embed_shard(task, dataset, embedder, max_pixels, batch_size)
    except AbcError as error:
        failures.put(error)
    except KeyboardInterrupt:  # the parent has it as well, and says so
        return
