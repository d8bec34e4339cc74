"""Archives in the layouts that are read, and their index."""

import gzip
import itertools
import sqlite3
from pathlib import Path

from published_sets import noise, split, tar_bytes

from abc_embed.data.published.archives import LEAST_SPACING, find_archives
from abc_embed.data.published.tar_images import TarImages
from abc_embed.data.published.tar_index import build_index

FILES = [(f"train/{i:03}.jpg", noise(i, 1000 + 37_777 * (i % 7))) for i in range(30)]


def indexed(folder: Path, **options: object) -> TarImages:
    path = folder / "index.sqlite"
    build_index(find_archives(folder), path, spacing=LEAST_SPACING, **options)  # type: ignore[arg-type]
    return TarImages(folder, path)


def dump(path: Path) -> list[str]:
    database = sqlite3.connect(path)
    lines = list(database.iterdump())
    database.close()
    return lines


def one_stream(folder: Path) -> None:
    split(gzip.compress(tar_bytes(FILES), mtime=0), folder, "abc-pretrain.tar.gz", 9)


def nine_archives(folder: Path) -> None:
    for i in range(9):
        content = gzip.compress(tar_bytes(FILES[i::9]), mtime=0)
        (folder / f"abc-pretrain.tar.gz.part_a{chr(ord('a') + i)}").write_bytes(content)


def numbered(folder: Path) -> None:
    split(gzip.compress(tar_bytes(FILES), mtime=0), folder, "x.tgz", 4, letters=False)


def plain(folder: Path) -> None:
    (folder / "a.tar").write_bytes(tar_bytes(FILES[:9]))
    split(tar_bytes(FILES[9:]), folder, "b.tar", 3)


def members_of_gzip(folder: Path) -> None:
    tar = tar_bytes(FILES)
    cuts = [0, 7, 100_000, 700_001, len(tar)]
    pieces = [gzip.compress(tar[a:b]) for a, b in itertools.pairwise(cuts)]
    split(b"".join(pieces), folder, "x.tar.gz", 2)
