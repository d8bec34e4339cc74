"""Damaged record sets of every form: each row is used or counted, or the set is refused."""

import io
import json
import random
import shutil
import tarfile
from pathlib import Path

from fuzzing import Report, mutate, mutate_json
from PIL import Image

from abc_embed.data import open_dataset
from abc_embed.data.formats.check import check

ROWS = 6


def fuzz_records(count: int, seed: int, scratch: Path) -> Report:
    """Change one file of a set, `count` times; each is checked, image by image."""
    rng, report = random.Random(seed), Report("record sets")
    sources = _sources(scratch / "sources")
    for number in range(count):
        source = sources[number % len(sources)]
        folder = scratch / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        texts = [path for path in files if path.suffix != ".png"]
        changed = rng.choice(texts if rng.random() < 0.8 else files)
        if changed.suffix == ".jsonl" and rng.random() < 0.6:
            lines = changed.read_text().splitlines()
            at = rng.randrange(len(lines))
            lines[at] = mutate_json(lines[at], rng)
            changed.write_text("\n".join(lines) + "\n")
        else:
            changed.write_bytes(mutate(changed.read_bytes(), rng))
        place = next((p for p in files if p.suffix == ".tar" and source.name == "tar"), folder)
        report.run(f"{number} {source.name}/{changed.name}", lambda place=place: _check(place))
    return report


def _check(place: Path) -> None:
    """Every row that is there is used or named."""
    report = check(open_dataset(place))
    if report.usable + len(report.errors) < report.rows:
        raise RuntimeError(
            f"{report.rows} rows, {report.usable} usable, {len(report.errors)} named"
        )


def _sources(folder: Path) -> list[Path]:
    """A good set of each form."""
    rows = [{"image": f"{n}.png", "captions": [f"a thing {n}"], "id": str(n)} for n in range(ROWS)]
    made = []
    for name in ("records", "jsonl", "csv", "captions", "parquet", "tar"):
        place = folder / name
        place.mkdir(parents=True)
        made.append(place)
        if name not in ("parquet", "tar"):
            for n in range(ROWS):
                (place / f"{n}.png").write_bytes(_picture(n))
        if name == "records":
            _lines(place / "records.jsonl", rows)
        elif name == "jsonl":
            _lines(
                place / "metadata.jsonl",
                [{"file_name": row["image"], "text": f"a thing {row['id']}"} for row in rows],
            )
        elif name == "csv":
            lines = [f"{row['image']},a thing {row['id']}" for row in rows]
            (place / "metadata.csv").write_text("\n".join(["file_name,text", *lines]) + "\n")
        elif name == "captions":
            for n in range(ROWS):
                (place / f"{n}.txt").write_text(f"a thing {n}")
        elif name == "parquet":
            _parquet(place / "part.parquet")
        else:
            _tar(place / "part.tar")
    return made


def _picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (12, 10), (number * 30, 0, 0)).save(out, "PNG")
    return out.getvalue()


def _lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": _picture(n), "path": None} for n in range(ROWS)]
    pq.write_table(pa.table({"image": images, "text": [f"a thing {n}" for n in range(ROWS)]}), path)


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for n in range(ROWS):
            for name, data in ((f"{n}.png", _picture(n)), (f"{n}.txt", b"a thing")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
