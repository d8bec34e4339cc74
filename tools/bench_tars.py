"""How fast images are indexed in, and read out of, tar parts; and how fast tarfile does the like.

    python tools/bench_tars.py FOLDER [--megabytes 400]

Makes an archive of JPEG files in FOLDER (an empty one), as the published parts are: tar, gzip, cut
into nine. Times are of the processor, so that other work on the machine changes them little.
"""

import argparse
import gzip
import io
import random
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from abc_embed.data.published.archives import SPACING, find_archives
from abc_embed.data.published.layouts import LAYOUTS, ArrowTable, copy_parquet
from abc_embed.data.published.tar_images import TarImages
from abc_embed.data.published.tar_index import build_index

PARTS = 9
READS = 300
ROWS = 100_000


def jpegs() -> Iterator[bytes]:
    """Photos of a kind: soft colours, sensor noise, 640 x 480; each with bytes of its own."""
    rng = np.random.default_rng(0)
    pool = []
    for _ in range(40):
        small = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        soft = Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC)
        values = np.asarray(soft).astype(np.int16) + rng.integers(-14, 14, (480, 640, 3))
        out = io.BytesIO()
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
        pool.append(out.getvalue())
    while True:
        for content in pool:
            body = np.frombuffer(content[600:], dtype=np.uint8)
            yield content[:600] + np.roll(body, int(rng.integers(1, 60_000))).tobytes()


def make(folder: Path, megabytes: int) -> None:
    """`plain/images.tar`, and the same as nine parts in `packed/`."""
    for name in ("plain", "packed"):
        (folder / name).mkdir(parents=True)
    plain = folder / "plain/images.tar"
    with tarfile.open(plain, "w") as tar:
        size = 0
        for number, content in enumerate(jpegs()):
            info = tarfile.TarInfo(f"train/{number:09}.jpg")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            size += len(content)
            if size > megabytes * 1e6:
                break
    packed = gzip.compress(plain.read_bytes(), 6)
    edges = [round(i * len(packed) / PARTS) for i in range(PARTS + 1)]
    for number in range(PARTS):
        part = folder / f"packed/images.tar.gz.part_a{chr(ord('a') + number)}"
        part.write_bytes(packed[edges[number] : edges[number + 1]])


def seconds(work: Callable[[], object]) -> float:
    """Of the processor."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(folder: Path, spacing: int) -> None:
    """Index one folder, read from it at random and in order."""
    archives = find_archives(folder)
    index = folder / f"index-{spacing}.sqlite"
    indexing = seconds(lambda: build_index(archives, index, spacing=spacing))
    images = TarImages(folder, index)
    plain = images.counts()["image_bytes"]
    names = [member.name for member in images.members()]
    chosen = random.Random(0).sample(names, READS)
    reads = [seconds(lambda name=name: images.read(name)) * 1e3 for name in chosen]  # type: ignore[misc]
    in_order = seconds(lambda: [None for _ in images.in_order()])
    tenths = statistics.quantiles(reads, n=10)
    print(
        f"{folder.name}, spacing {spacing / 1e6:g} MB: indexed at {plain / 1e6 / indexing:.0f} "
        f"MB/s, index {index.stat().st_size / 1e6:.2f} MB for {plain / 1e6:.0f} MB; one image "
        f"{statistics.mean(reads):.1f} ms on average (9 of 10 within {tenths[-1]:.1f}), in order "
        f"{plain / 1e6 / in_order:.0f} MB/s"
    )


def tarfile_alone(folder: Path) -> None:
    """The same with tarfile: a pass over all, and one image when it is asked for alone."""
    joined = b"".join(p.read_bytes() for p in sorted((folder / "packed").glob("*.part_*")))

    def all_of_it() -> None:
        with tarfile.open(fileobj=io.BytesIO(joined), mode="r|gz") as tar:
            for info in tar:
                if (file := tar.extractfile(info)) is not None:
                    file.read()

    spent = seconds(all_of_it)
    print(f"tarfile, packed: {len(joined) / 1e6 / spent:.0f} MB/s in order")
    print(f"tarfile, packed: {spent / 2:.1f} s for one image in the middle, which grows with size")


def rows(folder: Path) -> None:
    """Rows of the pretraining layout with 100 negatives, at random."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "id": [f"{i:09}" for i in range(ROWS)],
            "url": [f"http://example.com/{i}.jpg" for i in range(ROWS)],
            "caption": [f"a caption of {i % 100} words or so, number {i}" for i in range(ROWS)],
            "image": [f"train/{i:09}.jpg" for i in range(ROWS)],
            "negatives": list(rng.integers(0, ROWS, (ROWS, 100))),
        }
    )
    parquet.write_table(table, folder / "train.parquet")
    copying = seconds(lambda: copy_parquet([folder / "train.parquet"], folder / "rows.arrow"))
    table_copy = ArrowTable(folder / "rows.arrow")
    order = random.Random(0).sample(range(ROWS), 2000)

    def read() -> None:
        for number in order:
            negatives = LAYOUTS["abc-pretrain"].fields(table_copy, number)["negatives"]
            _ = [negatives[k] for k in range(0, 35, 5)]

    spent = seconds(read) / len(order)
    print(f"rows ({LAYOUTS['abc-pretrain'].repository}): copied at {ROWS / copying:,.0f} a second")
    print(f"rows: {spent * 1e6:.0f} microseconds for a row and 7 of its 100 negatives")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, default=400)
    asked = parser.parse_args()
    make(asked.folder, asked.megabytes)
    for spacing in (SPACING // 4, SPACING, SPACING * 4):
        measure(asked.folder / "packed", spacing)
    measure(asked.folder / "plain", SPACING)
    tarfile_alone(asked.folder)
    rows(asked.folder)


if __name__ == "__main__":
    main()
