"""A stand-in for an embedder, and small data sets, for tests of mining."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from abc_embed import Item
from abc_embed.data.records import Record, write_records
from abc_embed.errors import InputError
from abc_embed.inputs import Skipped, open_image
from abc_embed.mining.corpus import read_corpus
from abc_embed.mining.settings import MiningSettings
from abc_embed.mining.shards import EmbedderSetup

if TYPE_CHECKING:
    from abc_embed.devices import Stream
    from abc_embed.mining.mine import Mined


class Hashing:
    """Positive unit vectors that follow from the content alone."""

    dim = 8
    fingerprint = "f" * 64

    def __init__(self, stop_after: int | None = None) -> None:
        self.embedded = 0
        self._stop_after = stop_after

    def stream(self, items: Iterable[str | Item], **_: Any) -> Iterator[Any]:
        for index, item in enumerate(items):
            assert isinstance(item, Item)
            if self.embedded == self._stop_after:
                raise KeyboardInterrupt
            try:
                vector = self.one(item)
                self.embedded += 1
                yield vector
            except InputError as error:
                yield Skipped(index, item, error)

    def one(self, item: Item) -> np.ndarray:
        if (item.text or "").endswith("too long"):
            raise InputError("the text is too long")
        data = item.text.encode() if item.text else open_image(item.image).tobytes()
        seed = int.from_bytes(hashlib.sha256(data).digest()[:4], "big")
        vector = np.random.default_rng(seed).random(self.dim)
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def load(number: int) -> "Stream":
    """In another process."""
    return Hashing().stream


def load_and_die(number: int) -> "Stream":
    """As a process that the system kills."""
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
    return load(number)


def load_nothing(number: int) -> "Stream":
    raise InputError("the model is gone")


def make(folder: Path, count: int = 20, **changes: dict[str, Any]) -> Path:
    """`count` records with images; `changes` by id."""
    (folder / "images").mkdir()
    records = []
    for i in range(count):
        name = f"images/{i}.png"
        Image.new("RGB", (8, 8), (10 * i % 256, 0, i)).save(folder / name)
        values: dict[str, Any] = {"caption": f"caption {i}", "negatives": ("old",)}
        values |= {"id": f"r{i}", "image": name, "width": 8, "height": 8}
        records.append(Record(**{**values, **changes.get(f"r{i}", {})}))
    write_records(folder / "records.jsonl", records)
    return folder


def run(
    folder: Path,
    model: Hashing | None = None,
    processes: int = 1,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    **settings: Any,
) -> "Mined":
    """Mine a folder, with `folder/work` to remember."""
    from abc_embed.mining.mine import MiningRun  # torch comes with it, which `load` does not use

    setup = EmbedderSetup(model or Hashing(), load)
    run = MiningRun(read_corpus(folder), setup, MiningSettings(**settings), folder / "work")
    return run.mine(processes=processes, on_progress=on_progress)


def sampled(mined: "Mined") -> dict[int, list[int]]:
    """Row -> captions sampled."""
    return {negatives.row: negatives.captions for negatives in mined.negatives()}
