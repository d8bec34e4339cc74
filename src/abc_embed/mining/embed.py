"""Items -> the shards of vectors that are missing, in this process or in several."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from abc_embed.data import Dataset
from abc_embed.errors import UsageError
from abc_embed.inputs import Item, Skipped
from abc_embed.mining.shards import Shards, write_shard
from abc_embed.workers import map_in_processes


class StreamingEmbedder(Protocol):
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
        batch_size: int | None = None,
        on_error: Literal["skip"],
    ) -> Iterator["NDArray[np.float32] | Skipped"]:
        """A vector `(D,)` for each item, in order; a `Skipped` in the place of a bad one."""


@dataclass(frozen=True, slots=True)
class EmbedderSetup:
    """A model, and how another process gets the same."""

    embedder: StreamingEmbedder
    load: Callable[[int], StreamingEmbedder] | None = None
    """Called in process number so and so; must survive pickling. None: one process only."""
    max_pixels: int | None = None
    batch_size: int | None = None

    def stream(self, items: Iterable[Item]) -> Iterator["NDArray[np.float32] | Skipped"]:
        """As `StreamingEmbedder.stream`."""
        return self.embedder.stream(
            items, max_pixels=self.max_pixels, batch_size=self.batch_size, on_error="skip"
        )


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard: where it goes and what is in it."""

    path: Path
    store: str
    items: tuple[str | int, ...]
    """Texts as they are, images by the number of their row."""


def embed_missing(
    shards: Shards,
    items: Sequence[str | int],
    setup: EmbedderSetup,
    dataset: Dataset,
    *,
    processes: int = 1,
    on_progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Make the shards that are not there; returns how many items those that were there hold.

    An item is a text, or the number of a row of `dataset` whose image is meant. A shard that is
    there is never made again, so whatever ends the work costs no more than those at hand.

    Raises:
        UsageError: `processes` is below 1, or more than 1 for a model that cannot be loaded anew.
        OutputError: a shard cannot be written.
        OutOfMemoryError: the processes were killed.
        AbcError: what else embedding raises, but for bad items: those are in `Shards.errors`.
    """
    if processes < 1 or (processes > 1 and setup.load is None):
        raise UsageError(f"processes is {processes}; give 1 or more, and 1 for a model in memory")
    spans = [(shards.paths[number], shards.span(number)) for number in shards.missing()]
    tasks = [ShardTask(path, shards.space.store, tuple(items[span])) for path, span in spans]
    known = done = len(items) - sum(len(task.items) for task in tasks)
    on_progress(known)
    if setup.load is not None and processes > 1 and len(tasks) > 1:
        load = partial(_load_writer, dataset, setup.load, setup.max_pixels, setup.batch_size)
        counts = map_in_processes(load, tasks, min(processes, len(tasks)))
    else:
        counts = map(partial(_write, dataset, setup), tasks)
    for count in counts:
        done += count
        on_progress(done)
    return known


def _write(dataset: Dataset, setup: EmbedderSetup, task: ShardTask) -> int:
    """Embed and write one shard, if nobody else has; returns how many items it holds."""
    if not task.path.exists():
        shape = (len(task.items), setup.embedder.dim)
        vectors: NDArray[np.float32] = np.zeros(shape, dtype=task.store)
        errors: dict[int, str] = {}
        items = (
            Item(text=item) if isinstance(item, str) else Item(image=dataset.row(item).image)
            for item in task.items
        )
        for place, vector in enumerate(setup.stream(items)):
            if isinstance(vector, np.ndarray):
                vectors[place] = vector
            else:
                errors[place] = str(vector.error)
        write_shard(task.path, vectors, errors)
    return len(task.items)


def _load_writer(
    dataset: Dataset,
    load: Callable[[int], StreamingEmbedder],
    max_pixels: int | None,
    batch_size: int | None,
    number: int,
) -> Callable[[ShardTask], int]:
    """What process `number` does with each task."""
    return partial(_write, dataset, EmbedderSetup(load(number), None, max_pixels, batch_size))
