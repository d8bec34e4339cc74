"""Small copies of the published data sets, in their layouts, and odd archives."""

import gzip
import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE = 24


def picture(number: int) -> bytes:
    """A small JPEG of its own for every number."""
    values = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).save(out, format="JPEG", quality=90)
    return out.getvalue()


def noise(number: int, size: int) -> bytes:
    """Bytes that do not pack."""
    return np.random.default_rng(number).bytes(size)


def tar_bytes(
    files: Iterable[tuple[str, bytes]], extra: Iterable[tarfile.TarInfo] = (), format: int = 1
) -> bytes:
    """A tar of some files; `extra` members have no content. `format` is tarfile's (1: GNU)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info)
    return out.getvalue()


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """A member that is a link, or with `CHRTYPE` a device."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def split(content: bytes, folder: Path, stem: str, parts: int, letters: bool = True) -> list[Path]:
    """`split`, as the published parts were made: NAME.part_aa, NAME.part_ab, …"""
    folder.mkdir(parents=True, exist_ok=True)
    edges = [round(i * len(content) / parts) for i in range(parts + 1)]
    paths = []
    for number in range(parts):
        end = f"a{chr(ord('a') + number)}" if letters else f"{number:02}"
        path = folder / f"{stem}.part_{end}"
        path.write_bytes(content[edges[number] : edges[number + 1]])
        paths.append(path)
    return paths


def pretrain_rows(count: int) -> list[dict[str, Any]]:
    """Rows of abc-pretrain; the negatives of row i are i+1, i+2, i+3, around."""
    return [
        {
            "id": f"{i:09}",
            "url": f"http://example.com/{i}.jpg",
            "caption": f"caption {i}",
            "image": f"train/{i:09}.jpg",
            "negatives": [(i + k) % count for k in (1, 2, 3)],
        }
        for i in range(count)
    ]


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], row_group: int = 5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=row_group)


def make_pretrain(folder: Path, count: int = 20, parts: int = 9) -> list[bytes]:
    """A copy of abc-pretrain: two Parquet files, one gzip stream in parts; its images."""
    rows = pretrain_rows(count)
    write_parquet(folder / "data/train-00000-of-00002.parquet", rows[: count // 2])
    write_parquet(folder / "data/train-00001-of-00002.parquet", rows[count // 2 :])
    images = [picture(i) for i in range(count)]
    tar = tar_bytes([(row["image"], image) for row, image in zip(rows, images, strict=True)])
    split(gzip.compress(tar, mtime=0), folder, "abc-pretrain.tar.gz", parts)
    return images


def vg_rows(count: int) -> list[dict[str, Any]]:
    """Rows of abc-vg-instruct, with four regions each."""
    return [
        {
            str(k): {
                "id": 10 * i + k,
                "image": 100 + i,
                "instruction": f"what is in corner {k}?",
                "phrase": f"thing {k} of {i}",
                "x": 2 * k,
                "y": k,
                "width": 5,
                "height": 6,
            }
            for k in range(4)
        }
        for i in range(count)
    ]


def make_vg(folder: Path, count: int = 6) -> list[bytes]:
    """A copy of abc-vg-instruct: one Parquet file, one tar.gz; its images."""
    write_parquet(folder / "data/train-00000-of-00001.parquet", vg_rows(count))
    images = [picture(i) for i in range(count)]
    files = [(f"ABC-VG-Instruct/{100 + i}.jpg", image) for i, image in enumerate(images)]
    tar = tar_bytes(files)
    (folder / "abc-vg-instruct.tar.gz").write_bytes(gzip.compress(tar, mtime=0))
    return images
