"""`abc-embed batch` as a process of its own: killed, or its workers, and what it then has done."""

import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from abc_embed import Embedder, Item
from abc_embed.data import open_dataset
from abc_embed.data.records import Record, write_records
from abc_embed.scale import stages
from abc_embed.scale.output import BatchOutput
from abc_embed.scale.source import Source
from abc_embed.storage.vector_folder import VectorFolder

WORKERS = ("ray::MapBatches", "ray::MapWorker", "ray::ReadRange")
"""How Ray calls the processes of our steps."""


def draw_boxes(count: int, folder: Path) -> str:
    """A data set of different pictures, 112 x 112, of a few boxes each: records and JPEGs."""
    dice = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)

    def records() -> Iterator[Record]:
        for number in range(count):
            pixels = np.full((112, 112, 3), dice.integers(0, 256, 3), np.uint8)
            for top, left in dice.integers(0, 80, (4, 2)):
                pixels[top : top + 32, left : left + 32] = dice.integers(0, 256, 3)
            name = f"images/{number:06d}.jpg"
            Image.fromarray(pixels).save(folder / name, quality=90)
            yield Record(id=f"p{number}", image=name, width=112, height=112)

    write_records(folder / "records.jsonl", records())
    return str(folder)


def start_batch(source: str, out: Path, *options: str) -> "subprocess.Popen[str]":
    """A job under way."""
    command = [sys.executable, "-m", "abc_embed", "batch", source, "--out", str(out), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def committed_rows(out: Path) -> int:
    """Rows of all parts that have their place."""
    import pyarrow.parquet

    return sum(pyarrow.parquet.read_metadata(p).num_rows for p in out.glob("vectors-*.parquet"))


def workers_of(job: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes of a job in which its steps run."""
    found = []
    with suppress(psutil.Error):
        for process in psutil.Process(job.pid).children(recursive=True):
            with suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(WORKERS):
                    found.append(process)
    return found


def listening(job: "subprocess.Popen[str]") -> set[str]:
    """Local addresses at which a job's processes take connections."""
    found = set()
    with suppress(psutil.Error):
        for process in psutil.Process(job.pid).children(recursive=True):
            with suppress(psutil.Error):
                kept = process.net_connections(kind="inet")
                found |= {one.laddr.ip for one in kept if one.status == psutil.CONN_LISTEN}
    return found


def private_bytes(job: "subprocess.Popen[Any]") -> int:
    """Memory of a job's processes that they do not share."""
    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(job.pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                kept = one.memory_info()
                total += kept.rss - kept.shared
    return total


@dataclass
class Killer:
    """Kills by a seed, once so many rows are committed."""

    events: list[tuple[int, str]]
    """Rows and "worker" or "driver", ascending."""
    dice: random.Random
    done: dict[str, int] = field(default_factory=lambda: {"worker": 0, "driver": 0})

    addresses: set[str] = field(default_factory=set)
    """Where the job took connections at the time of a kill."""
    memory: list[tuple[int, int]] = field(default_factory=list)
    """Rows done and bytes of all the job's processes, now and then."""

    @classmethod
    def planned(cls, rows: int, workers: int, drivers: int, seed: int = 0) -> "Killer":
        """So many kills of each kind, spread over the first nine tenths of the rows."""
        dice = random.Random(seed)
        kinds = ["worker"] * workers + ["driver"] * drivers
        dice.shuffle(kinds)
        places = sorted(dice.randrange(int(rows * 0.9)) for _ in kinds)
        return cls(list(zip(places, kinds, strict=True)), dice)

    def watch(self, job: "subprocess.Popen[str]", out: Path) -> bool:
        """Until the job ends; whether it was killed."""
        looked = 0.0
        while job.poll() is None:
            time.sleep(0.2)
            if time.monotonic() - looked > 2:
                looked = time.monotonic()
                self.memory.append((committed_rows(out), private_bytes(job)))
            if not self.events or committed_rows(out) < self.events[0][0]:
                continue
            time.sleep(self.dice.random() * 2)
            targets = workers_of(job)
            if not targets:
                continue  # none is up again yet
            _, kind = self.events.pop(0)
            self.done[kind] += 1
            self.addresses |= listening(job)
            if kind == "driver":
                job.kill()
                job.wait()
                return True
            with suppress(psutil.Error):
                self.dice.choice(targets).send_signal(signal.SIGKILL)
        return False


def run_with_kills(
    start: "Callable[[], subprocess.Popen[str]]",
    out: Path,
    killer: Killer,
    on_restart: Callable[[int], None] = lambda rows: None,
) -> "subprocess.Popen[str]":
    """Give the command again until it ends by itself; that last process."""
    while True:
        job = start()
        if not killer.watch(job, out):
            return job
        on_restart(committed_rows(out))


def batch_without_ray(
    source: str,
    out: Path,
    rows: range,
    *,
    output: str = "float32",
    form: str = "parquet",
    complete: bool = True,
) -> None:
    """What a job does, step by step in this process, for some rows as one part."""
    load = partial(_load, None)
    facts = stages.probe(load, None, output)
    spans = np.array([[rows.start, rows.stop]])
    dataset = open_dataset(source)
    with BatchOutput.open(out) as opened, mock.patch.object(stages, "_work", lambda work: work):
        known = {
            "source": source,
            "model": "bundled",
            "fingerprint": facts.fingerprint,
            "max_pixels": None,
            "instruction": None,
            "dim": facts.dim,
            "output": output,
            "format": form,
            "rows": len(dataset),
        }
        opened.begin(known)
        work = stages.Work(Source(dataset), spans, facts, None, opened.run_folder)
        actor = stages.EmbedChunks(load, None, output, None)
        blocks = [actor(chunk) for chunk in stages.prepare({"id": np.array([0])}, work)]
        joined = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        report = pickle.loads(stages.write_part(joined, work)["report"][0])
        opened.commit(report["file"])
        if complete:
            opened.finish(known)


def _load(max_pixels: int | None) -> tuple[Embedder, int | None]:
    return Embedder.from_pretrained("bundled", device="cpu"), max_pixels


def read_vectors(out: Path) -> dict[str, NDArray[np.float32]]:
    """Id -> vector; an id that is there twice is an error."""
    found: dict[str, NDArray[np.float32]] = {}
    for ids, vectors, _ in VectorFolder(out).vectors():
        for name, vector in zip(ids, vectors, strict=True):
            assert name not in found, f"{name} has two vectors"
            found[name] = vector
    return found


def stream_vectors(source: str) -> dict[str, NDArray[np.float32]]:
    """The same by `Embedder.stream`."""
    rows = list(open_dataset(source))
    model = Embedder.from_pretrained("bundled", device="cpu")
    vectors = model.stream(Item(image=row.image) for row in rows)
    return {row.record.id: vector for row, vector in zip(rows, vectors, strict=True)}


def largest_difference(
    one: dict[str, NDArray[np.float32]], other: dict[str, NDArray[np.float32]]
) -> float:
    """Over all numbers of vectors of the same ids."""
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def cpu_seconds(process: psutil.Process, known: dict[int, float]) -> float:
    """Processor time of a process and all that it started, those that ended too.

    `known` remembers what was seen of each; call it now and then.
    """
    with suppress(psutil.Error):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                times = one.cpu_times()
                known[one.pid] = max(known.get(one.pid, 0.0), times.user + times.system)
    return sum(known.values())
