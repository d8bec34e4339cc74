"""What Ray's workers run: rows -> prepared items -> vectors -> a part on disk.

Between the steps go blocks of Ray Data. Prepared items travel as pickled chunks, a row each, since
no column type fits them; vectors as their bytes.

Shapes: `B` items of a chunk, `D` width, `S` spans.
"""

import hashlib
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import DataError, InputError
from abc_embed.inputs import Item
from abc_embed.scale.source import Source
from abc_embed.storage.files import atomic_write
from abc_embed.storage.parquet import import_pyarrow
from abc_embed.storage.pickled import pickle_tensors

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder
    from abc_embed.processor import Features, Processor

Columns = dict[str, Any]
"""A batch of Ray Data: an array a column."""

CHUNK_ITEMS, CHUNK_BYTES = 64, 16 << 20
"""A chunk ends with this many items, or bytes of pixels."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a model says of itself and of its vectors."""

    fingerprint: str
    dim: int
    dtype: str
    """Numbers and NumPy format of a stored vector."""
    max_pixels: int | None
    processor: "Processor"


@dataclass(frozen=True, slots=True)
class Work:
    """What every worker needs to know; it is put into Ray's memory once."""

    source: Source
    spans: NDArray[np.int64]
    """`(S, 2)` first row and the one after the last, of rows that have no vector yet."""
    facts: Facts
    instruction: str | None
    folder: Path
    """Where parts are written before the driver gives them their place."""


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """An item on the way from a CPU worker to a model, or why there is none."""

    number: int
    """Of the row."""
    id: str = ""
    content: bytes = b""
    """Hash of its image file."""
    features: "Features | None" = None
    reject: str = ""
    """Why the row cannot be used; empty for one that has features."""


@lru_cache(maxsize=1)
def _work(reference: Any) -> Work:
    import ray

    work: Work = ray.get(reference)
    return work


def probe(load: "Callable[[], tuple[Embedder, int | None]]", dim: int | None, output: str) -> Facts:
    """Load the model where it will run, and ask it; nothing of its weights comes back.

    Raises:
        CheckpointError, DeviceError, UsageError: as loading it, and `vectors.VectorFormat`.
    """
    from abc_embed.vectors import VectorFormat

    embedder, max_pixels = load()
    stored = VectorFormat(embedder.dim, embedder.model.vector_facts, dim, output).stored
    return Facts(embedder.fingerprint, *stored, max_pixels, embedder.processor)


def prepare(batch: Columns, work: Any) -> Iterator[Columns]:
    """Spans of rows, by number -> chunks of items that a model can take at once."""
    known = _work(work)
    chunk: list[PreparedRow] = []
    size = 0
    for span in batch["id"].tolist():
        for number in range(*known.spans[span].tolist()):
            row = _prepare_row(known, number)
            chunk.append(row)
            if row.features is not None and row.features.pixels is not None:
                size += row.features.pixels.numel()
            if len(chunk) == CHUNK_ITEMS or size >= CHUNK_BYTES:
                yield {"chunk": _objects([pickle_tensors(chunk)])}
                chunk, size = [], 0
    if chunk:
        yield {"chunk": _objects([pickle_tensors(chunk)])}


def _prepare_row(work: Work, number: int) -> PreparedRow:
    name, content = "", b""
    try:
        name, image = work.source.read(number)
        content = hashlib.sha256(image).digest()
        item = Item(image=image, instruction=work.instruction)
        features = work.facts.processor.features(item, max_pixels=work.facts.max_pixels)
    except (DataError, InputError) as error:
        return PreparedRow(number, name, content, reject=str(error))
    return PreparedRow(number, name, content, features)


class EmbedChunks:
    """An actor of the pool: a model that stays loaded."""

    def __init__(
        self,
        load: "Callable[[], tuple[Embedder, int | None]]",
        dim: int | None,
        output: str,
        batch_size: int | None,
    ) -> None:
        from abc_embed.vectors import VectorFormat

        embedder, max_pixels = load()
        self._fingerprint = embedder.fingerprint
        self._pipeline = embedder.pipeline(max_pixels, batch_size)
        self._stored = VectorFormat(embedder.dim, embedder.model.vector_facts, dim, output)
        self._idle_since: float | None = None

    def __call__(self, batch: Columns) -> Columns:
        """Chunks -> a row for each of their items; a rejected one has an empty vector."""
        began = time.monotonic()
        waited = 0.0 if self._idle_since is None else began - self._idle_since
        rows: list[PreparedRow] = [row for chunk in batch["chunk"] for row in pickle.loads(chunk)]
        good = [at for at, row in enumerate(rows) if row.features is not None]
        features = [row.features for row in rows if row.features is not None]
        vectors = [b""] * len(rows)
        for places in self._pipeline.plan(features):
            stored = self._stored(self._pipeline.compute([features[place] for place in places]))
            for place, vector in zip(places, stored, strict=True):
                vectors[good[place]] = vector.tobytes()
        self._idle_since = time.monotonic()
        seconds = np.zeros((len(rows), 2))
        if len(rows):  # of the whole call, told once
            seconds[0] = waited, self._idle_since - began
        return {
            "number": np.array([row.number for row in rows], dtype=np.int64),
            "id": _objects([row.id for row in rows]),
            "content": _objects([row.content for row in rows]),
            "reject": _objects([row.reject for row in rows]),
            "vector": _objects(vectors),
            "fingerprint": _objects([self._fingerprint] * len(rows)),
            "waited_s": seconds[:, 0],
            "worked_s": seconds[:, 1],
        }


def write_part(batch: Columns, work: Any) -> Columns:
    """Rows of any chunks -> a Parquet file, whole, under a name that its rows decide.

    The driver gives it its place. A task that is done twice writes the same file twice.
    """
    known = _work(work)
    order = np.argsort(batch["number"], kind="stable")
    rows = {name: np.asarray(column)[order] for name, column in batch.items()}
    good = np.flatnonzero(rows["reject"] == "")
    name = ""
    if len(good):
        digest = hashlib.sha256(rows["number"][good].tobytes()).hexdigest()
        name = f"vectors-{digest[:16]}.parquet"
        arrow = import_pyarrow("writing the vectors of batch", "scale")
        with atomic_write(known.folder / name) as file:
            arrow.parquet.write_table(_as_table({k: v[good] for k, v in rows.items()}, known), file)
    rejects = [
        (int(rows["number"][at]), str(rows["reject"][at]))
        for at in np.flatnonzero(rows["reject"] != "")
    ]
    report = {
        "file": name,
        "numbers": rows["number"][good],
        "rejects": rejects,
        "fingerprints": sorted(set(rows["fingerprint"].tolist())),
        "waited_s": float(rows["waited_s"].sum()),
        "worked_s": float(rows["worked_s"].sum()),
    }
    return {"report": _objects([pickle.dumps(report)])}


def _as_table(rows: Mapping[str, Any], work: Work) -> Any:
    """The columns of `storage.vector_folder`."""
    arrow, facts = import_pyarrow("writing the vectors of batch", "scale"), work.facts
    count = len(rows["id"])
    flat = np.frombuffer(b"".join(rows["vector"].tolist()), dtype=facts.dtype)
    vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(flat), facts.dim)
    columns = {
        "id": arrow.array(rows["id"].tolist(), arrow.string()),
        "vector": vectors,
        "content": arrow.array(rows["content"].tolist(), arrow.binary()),
        "fingerprint": arrow.array([facts.fingerprint] * count, arrow.string()),
        "max_pixels": arrow.array([facts.max_pixels] * count, arrow.int64()),
    }
    return arrow.table(columns)


def _objects(values: list[Any]) -> NDArray[np.object_]:
    rows: NDArray[np.object_] = np.empty(len(values), dtype=object)
    rows[:] = values
    return rows
