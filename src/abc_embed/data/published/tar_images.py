"""Images read straight out of tar archives, by the index that tar_index.py made, or unpacked.

Reading one image from a gzip stream inflates from the nearest point before it, half of the spacing
on average; from a plain tar it is one read.
"""

import io
import os
import re
import shutil
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from abc_embed.data.published.archives import JoinedFile, Point, find_archives, inflate
from abc_embed.data.published.tar_index import part_rows, read_blocks, sqlite_errors
from abc_embed.errors import DataError, OutputError
from abc_embed.storage.files import atomic_write, make_folder, read_file
from abc_embed.storage.plain import BlockStream

LIMIT = 1 << 30
"""Bytes of the largest member that is read: no image has as many."""


class Member(NamedTuple):
    """Where a file lies in the archives."""

    name: str
    archive: int
    offset: int
    """Of its content, in the plain stream of its archive."""
    size: int
    crc: int


class TarImages:
    """The files in the tar archives of a folder, by name.

    May be pickled, forked and used by several threads: each opens files of its own.
    """

    def __init__(self, folder: Path, index: Path) -> None:
        """Opens the index, and checks size and sample of every part.

        Raises:
            DataError: there is no finished index, or a part is not the one that was indexed.
        """
        self._index = index
        self._local = threading.local()
        if not index.is_file():
            raise DataError(
                f"{folder} has no finished index; make it with: abc-embed data index {folder}"
            )
        self._archives = find_archives(folder)
        indexed = self._rows("SELECT * FROM parts ORDER BY archive, number")
        there = part_rows(self._archives)
        if [row[:3] for row in indexed] != [row[:3] for row in there]:
            raise _changed(folder, "other parts than")
        for before, now in zip(indexed, there, strict=True):
            if before != now:
                raise _changed(folder, f"another {now[2]} than")

    def __getstate__(self) -> dict[str, object]:
        return {"_index": self._index, "_archives": self._archives}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def __len__(self) -> int:
        count: int = self._rows("SELECT count(*) FROM members")[0][0]
        return count

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def _find(self, name: str) -> Member | None:
        rows = self._rows("SELECT * FROM members WHERE name = ?", (name,))
        return Member(*rows[0]) if rows else None

    def folders(self) -> list[str]:
        """The names of the top folders in the archives."""
        folders: list[str] = []
        query = "SELECT min(name) FROM members WHERE name >= ? AND instr(name, '/') > 0"
        after = ""
        while (name := self._rows(query, (after,))[0][0]) is not None:
            folders.append(name.partition("/")[0])
            after = f"{folders[-1]}0"  # "0" follows "/" in order
        return folders

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            DataError: the archives do not hold it, it is damaged, or larger than `LIMIT`.
        """
        member = self._find(name)
        if member is None:
            raise DataError(f"there is no {name!r} in the tar archives; check the name")
        _check_size(member)
        stream = self._stream(member.archive)
        if not self._archives[member.archive].gzipped:
            return _checked(member, stream.read_at(member.offset, member.size))
        rows = self._rows(
            "SELECT packed, plain, bits, window FROM points WHERE archive = ? AND plain <= ?"
            " ORDER BY plain DESC LIMIT 1",
            (member.archive, member.offset),
        )
        point = Point(*rows[0])
        ahead = member.offset - point.plain
        return _checked(member, inflate(stream, point, ahead + member.size)[ahead:])

    def in_order(self) -> Iterator[tuple[Member, bytes]]:
        """All files, in the order of the archives: each byte is inflated once.

        Raises:
            DataError: a file is damaged, or larger than `LIMIT`.
        """
        for archive, members in groupby(self.members(), key=lambda member: member.archive):
            with self._reader(archive) as reader:
                for member in members:
                    _check_size(member)
                    reader.seek(member.offset)
                    yield member, _checked(member, reader.read(member.size))

    def _reader(self, archive: int) -> io.BufferedReader:
        """The plain bytes of an archive, to be read forwards."""
        if not self._archives[archive].gzipped:
            return io.BufferedReader(JoinedFile(self._archives[archive].parts))
        stream = self._stream(archive)
        blocks_from = partial(read_blocks, self._database(), archive, stream)
        return io.BufferedReader(BlockStream(blocks_from))

    def members(self) -> Iterator[Member]:
        """All files, in the order of the archives, without their content."""
        # Only numbers are sorted by SQLite, a name is looked up when its turn comes.
        query = "SELECT * FROM members ORDER BY archive, offset"
        with sqlite_errors(self._index):
            for row in self._database().execute(query):
                yield Member(*row)

    def counts(self) -> dict[str, int]:
        """How many images, their bytes, points, archives and parts there are."""
        ((images, size),) = self._rows("SELECT count(*), coalesce(sum(size), 0) FROM members")
        tables = ("points", "archives", "parts")
        rows = {table: self._rows(f"SELECT count(*) FROM {table}")[0][0] for table in tables}
        return {"images": images, "image_bytes": size, **rows}

    def left_out(self) -> list[tuple[str, str]]:
        """(name, why) of what is no ordinary file, or comes twice."""
        return self._rows("SELECT name, why FROM others ORDER BY rowid")

    def _stream(self, archive: int) -> JoinedFile:
        streams: dict[int, JoinedFile] = self._opened().streams
        if archive not in streams:
            streams[archive] = JoinedFile(self._archives[archive].parts)
        return streams[archive]

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple]:  # type: ignore[type-arg]
        with sqlite_errors(self._index):
            return self._database().execute(query, values).fetchall()

    def _database(self) -> sqlite3.Connection:
        database: sqlite3.Connection = self._opened().database
        return database

    def _opened(self) -> threading.local:
        """Files that this process and thread opened."""
        if getattr(self._local, "process", None) != os.getpid():
            address = f"{self._index.resolve().as_uri()}?mode=ro&immutable=1"
            with sqlite_errors(self._index):
                self._local.database = sqlite3.connect(address, uri=True)
            self._local.streams = {}
            self._local.process = os.getpid()
        return self._local

    def close(self) -> None:
        """Let go of the files that this thread opened."""
        if getattr(self._local, "process", None) == os.getpid():
            self._local.database.close()
            for stream in self._local.streams.values():
                stream.close()
            self._local.process = None


def _changed(folder: Path, what: str) -> DataError:
    return DataError(
        f"{folder} has {what} when it was indexed; fetch them again, or, if they are right, "
        f"index them anew: abc-embed data index {folder} --again"
    )


def _check_size(member: Member) -> None:
    if member.size > LIMIT:
        raise DataError(f"{member.name!r} has {member.size:,} bytes, as no image has")


def _checked(member: Member, content: bytes) -> bytes:
    if len(content) != member.size or zlib.crc32(content) != member.crc:
        raise DataError(
            f"{member.name!r} is not what it was when the archive was indexed; "
            "fetch the part that holds it again"
        )
    return content


# -- unpacked --------------------------------------------------------------------------------------


class UnpackedImages:
    """Image files in a folder, as an unpacked copy has them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and is_inside(name) and (self._folder / name).is_file()

    def folders(self) -> list[str]:
        """Names of the top folders."""
        inner = (path for path in self._folder.iterdir() if path.is_dir())
        return sorted(path.name for path in inner if not path.name.startswith("."))

    def read(self, name: str) -> bytes:
        """The bytes of a file; `DataError` when there is none."""
        try:
            if is_inside(name):
                return read_file(self._folder / name)
        except OSError:
            pass
        raise DataError(f"there is no {name!r} in {self._folder}; check the name")


def is_inside(name: str) -> bool:
    """Whether a name in an archive or a table stays inside the folder that it is put into."""
    if {"", ".", ".."} & set(name.split("/")):
        return False
    return not re.match(r"[A-Za-z]:", name) and "\\" not in name and "\0" not in name


@dataclass(slots=True)
class UnpackReport:
    """What was written."""

    written: int = 0
    kept: int = 0
    """Files that were there already, with the right content."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """(name, why)."""


def unpack(
    images: TarImages,
    out: Path,
    *,
    limit: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> UnpackReport:
    """Write every indexed file below `out`; `limit` is in bytes (None: as much as the disk has).

    Stopped and called again, it keeps what is there. `on_progress` gets bytes.

    Raises:
        OutputError: all together are more than the limit or the free disk, or a file cannot be
            written.
        DataError: an archive is damaged.
    """
    total = images.counts()["image_bytes"]
    make_folder(out)
    free = shutil.disk_usage(out).free
    if limit is not None and total > limit:
        raise OutputError(
            f"the images have {total / 1e6:,.0f} MB, more than the limit of "
            f"{limit / 1e6:,.0f} MB; raise --limit if you trust them"
        )
    members = (member for member in images.members() if is_inside(member.name))
    there = sum(member.size for member in members if _size(out / member.name) == member.size)
    if total - there > free:
        raise OutputError(
            f"the images have {total / 1e6:,.0f} MB and {out} has "
            f"{free / 1e6:,.0f} MB free; make room, or read them without unpacking"
        )
    report = UnpackReport(left_out=images.left_out())
    root, done = out.resolve(), 0
    for member, content in images.in_order():
        path = root / member.name
        if not is_inside(member.name):
            report.left_out.append((member.name, "its name leads out of the folder"))
        # A link that is there already could lead anywhere, whatever the name says.
        elif not path.parent.resolve().is_relative_to(root):
            report.left_out.append((member.name, "a link in the folder leads out of it"))
        elif _is_there(path, member):
            report.kept += 1
        else:
            make_folder(path.parent)
            if path.is_symlink():  # or what it points to would be written
                path.unlink()
            with atomic_write(path) as file:
                file.write(content)
            report.written += 1
        done += member.size
        on_progress(done, total)
    return report


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return -1


def _is_there(path: Path, member: Member) -> bool:
    if path.is_symlink() or _size(path) != member.size:
        return False
    return zlib.crc32(path.read_bytes()) == member.crc
