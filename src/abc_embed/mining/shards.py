"""Vectors on disk in shards: whole files, named by what decides them, made once, read in parts.

A shard is named by model, resolution and the content of its items, so it is right wherever it is
found: a run that was killed, a second run with other settings, or one after rows were added embeds
only shards that are not there.

    WORK/vectors/MODEL/SHARD.npy     (n, D) float16 or float32; zeros for an item that failed
    WORK/vectors/MODEL/SHARD.json    why items failed, by number; only where some did
    WORK/vectors/MODEL/KIND-ID.json  manifest of a whole list: model, width, count, its shards

Shapes: `N` items, `D` width.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import DataError, UsageError
from abc_embed.inputs import Item, Skipped
from abc_embed.mining.settings import Floats, Ints
from abc_embed.storage.files import atomic_write, make_folder
from abc_embed.storage.hashing import sha256
from abc_embed.storage.json_files import atomic_write_json, read_json
from abc_embed.workers import map_in_processes

if TYPE_CHECKING:
    from abc_embed.devices import Stream
    from abc_embed.embedder import Embedder

Value = TypeVar("Value")

SHARD = 1024
"""Items of a file; a kill loses no more than these, and what the processes have at hand."""


@dataclass(frozen=True, slots=True)
class EmbedderSetup:
    """A model, and how another process gets the same."""

    embedder: "Embedder"
    load: "Callable[[int], Stream] | None" = None
    """Gives what embeds in process number so and so; pickled. None: one process only."""
    max_pixels: int | None = None
    batch_size: int | None = None

    @property
    def stream(self) -> "Stream":
        """Items -> a vector `(D,)` for each, in order; a `Skipped` in the place of a bad one."""
        options: Any = {"max_pixels": self.max_pixels, "batch_size": self.batch_size}
        return partial(self.embedder.stream, on_error="skip", **options)


@dataclass(frozen=True, slots=True)
class ItemSource(Generic[Value]):
    """A list of items, as another process can be sent parts of it."""

    kind: str
    """What they are, for people."""
    values: Sequence[Value]
    """What stands for each."""
    as_item: Callable[[Value], Item]
    """Called where the item is embedded; pickled."""


def _embed(
    width: int, as_item: Callable[[Value], Item], stream: "Stream", values: Sequence[Value]
) -> tuple[Floats, dict[int, str]]:
    """Vectors `(n, D)`, zeros for bad items, and what is wrong with those, by place."""
    vectors, errors = np.zeros((len(values), width), dtype=np.float32), {}
    for place, result in enumerate(stream(map(as_item, values))):
        if isinstance(result, Skipped):
            errors[place] = str(result.error)
        else:
            vectors[place] = result
    return vectors, errors


def _load(
    width: int, as_item: Callable[[Value], Item], load: "Callable[[int], Stream]", number: int
) -> Callable[[Sequence[Value]], tuple[Floats, dict[int, str]]]:
    """What process `number` does with each part of a list."""
    return partial(_embed, width, as_item, load(number))


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSpace:
    """What decides a vector besides its item, and where such vectors lie."""

    folder: Path
    model: str
    """`Embedder.fingerprint`."""
    width: int
    max_pixels: int | None = None
    store: str = "float32"


class Shards:
    """The vectors of a list of items, `(N, D)` float32 when read."""

    def __init__(self, space: VectorSpace, keys: Sequence[str]) -> None:
        """`keys` say what each item is: equal ones mean equal items."""
        self.space = space
        self.shape = (len(keys), space.width)
        pixels = space.max_pixels or 0
        self._folder = make_folder(space.folder / f"{space.model[:16]}-{pixels}-{space.store}")
        shared = f"{space.model}\n{pixels}\n{space.store}\n"
        contents = ("\n".join(keys[start : start + SHARD]) for start in range(0, len(keys), SHARD))
        self.paths = [self._folder / f"{sha256(shared + text)[:32]}.npy" for text in contents]
        content = sha256("\n".join(path.stem for path in self.paths))
        self.id = sha256(f"{space} {content}")[:32]
        """Names model, resolution, number format and all items."""

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there yet."""
        return [number for number, path in enumerate(self.paths) if not path.exists()]

    def missing_items(self) -> list[int]:
        """Numbers of the items in them."""
        items = range(self.shape[0])
        return [item for number in self.missing() for item in items[self.span(number)]]

    def span(self, number: int) -> slice:
        """The items of a shard."""
        return slice(number * SHARD, min((number + 1) * SHARD, self.shape[0]))

    def errors(self) -> dict[int, str]:
        """Items that could not be embedded, and why."""
        mend = "delete it and the shard beside it, and run again"
        return {
            number * SHARD + int(place): why
            for number, path in enumerate(self.paths)
            for place, why in read_json(
                path.with_suffix(".json"), required=False, error=DataError, mend=mend
            ).items()
        }

    def write(self, number: int, vectors: NDArray[Any], errors: dict[int, str]) -> None:
        """A whole shard `(n, D)`; its errors first, so that a shard that is there says all.

        Raises:
            OutputError: it cannot be written.
        """
        path = self.paths[number]
        if errors:
            atomic_write_json(path.with_suffix(".json"), errors, ensure_ascii=False)
        with atomic_write(path) as file:
            np.save(file, vectors.astype(self.space.store), allow_pickle=False)

    def embed_missing(
        self,
        source: ItemSource[Any],
        setup: EmbedderSetup,
        *,
        processes: int = 1,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> int:
        """Make the shards that are not there, and a manifest; returns how many items were.

        A shard that is there is never made again, so whatever ends the work costs no more than
        those at hand.

        Args:
            source: the items.
            setup: the model.
            processes: so many embed, each with a model of its own.
            on_progress: given how many items are done.

        Raises:
            UsageError: `processes` is below 1, or more than 1 for a model that cannot be loaded
                anew.
            OutOfMemoryError: the processes were killed.
            OutputError: a shard cannot be written.
            AbcError: what else embedding raises, but for bad items: those are in `errors`.
        """
        if processes < 1 or (processes > 1 and setup.load is None):
            raise UsageError(
                f"processes is {processes}; give 1 or more, and 1 for a model in memory"
            )
        missing = self.missing()
        known = done = self.shape[0] - len(self.missing_items())
        on_progress(known)
        tasks = (tuple(source.values[self.span(number)]) for number in missing)
        processes = min(processes, len(missing))
        how = self.shape[1], source.as_item
        results: Iterable[tuple[Floats, dict[int, str]]]
        if setup.load is not None and processes > 1:
            results = map_in_processes(partial(_load, *how, setup.load), tasks, processes)
        else:
            results = map(partial(_embed, *how, setup.stream), tasks)
        for number, (vectors, errors) in zip(missing, results, strict=True):
            self.write(number, vectors, errors)
            done += len(vectors)
            on_progress(done)
        self._write_manifest(source.kind)
        return known

    def _write_manifest(self, kind: str) -> None:
        """Say what all shards together are, for people and for other programs."""
        manifest = {
            "kind": kind,
            "model": self.space.model,
            "max_pixels": self.space.max_pixels,
            "dtype": self.space.store,
            "count": self.shape[0],
            "width": self.shape[1],
            "items_in_a_shard": SHARD,
            "shards": [path.name for path in self.paths],
        }
        atomic_write_json(self._folder / f"{kind}-{self.id}.json", manifest)

    def __getitem__(self, numbers: slice | Ints) -> Floats:
        """These rows, in this order. Only their part of the files is read."""
        if isinstance(numbers, slice):
            numbers = np.arange(*numbers.indices(self.shape[0]))
        out = np.empty((len(numbers), self.shape[1]), dtype=np.float32)
        shard_of = numbers // SHARD
        for shard in np.unique(shard_of).tolist():
            here = np.flatnonzero(shard_of == shard)
            out[here] = self._open(shard)[numbers[here] % SHARD]
        return out

    def _open(self, number: int) -> NDArray[np.floating[Any]]:
        """A shard, mapped to memory as long as it is looked at."""
        path, span = self.paths[number], self.span(number)
        try:
            vectors: NDArray[np.floating[Any]] = np.load(path, mmap_mode="r", allow_pickle=False)
            if vectors.shape != (span.stop - span.start, self.shape[1]):
                raise ValueError(f"its shape is {vectors.shape}")
        except (OSError, ValueError) as problem:
            raise DataError(
                f"the vectors in {path} cannot be read ({problem}); delete the file and run again"
            ) from problem
        return vectors


@dataclass(frozen=True, slots=True)
class ShardRows:
    """Some rows of shards: what is left when bad items are out."""

    shards: Shards
    numbers: Ints

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self.numbers), self.shards.shape[1])

    def __getitem__(self, numbers: slice | Ints) -> Floats:
        return self.shards[self.numbers[numbers]]
