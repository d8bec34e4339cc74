"""Images read straight out of tar archives, by the index that tar_index.py made.

Does: check that the parts are those of the index, find a member by name, read it and compare it
with its CRC-32; go through all of them in the order of the archive. Does not: make the index, or
hold more than one point of it in memory.

Reading one image from a gzip stream inflates from the nearest point before it, half of the spacing
on average; from a plain tar it is one read. `TarImages` may be pickled, forked and used by several
threads: each opens files of its own.
"""

import os
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from abc_embed.data.published.gzip_points import Point, inflate
from abc_embed.data.published.tar_index import reported
from abc_embed.data.published.tar_parts import Joined, find_archives, sample_hash
from abc_embed.errors import DataError

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


@dataclass(frozen=True, slots=True)
class Summary:
    """What an index knows, without its members."""

    members: int
    plain_bytes: int
    """Of all members together."""
    points: int
    archives: int
    parts: int
    packed_bytes: int
    others: tuple[tuple[str, str], ...]
    """(name, why) of what is no ordinary file, or comes twice."""


class TarImages:
    """The files in the tar archives of a folder, by name."""

    def __init__(self, folder: str | os.PathLike[str], index: str | os.PathLike[str]) -> None:
        """Opens the index, and checks size and sample of every part.

        Raises:
            DataError: there is no finished index, or a part is not the one that was indexed.
        """
        self._index = Path(index)
        self._local = threading.local()
        if not self._index.is_file():
            raise DataError(
                f"{folder} has no finished index; make it with: abc-embed data index {folder}"
            )
        self._parts = self._checked_parts(Path(folder))

    def _checked_parts(self, folder: Path) -> list[list[Path]]:
        rows = self._rows("SELECT archive, name, size, sample FROM parts ORDER BY archive, number")
        there = [[*archive.parts] for archive in find_archives(folder)]
        known: list[list[tuple[str, int, str]]] = []
        for archive, name, size, sample in rows:
            if archive == len(known):
                known.append([])
            known[archive].append((name, size, sample))
        names = [[name for name, *_ in parts] for parts in known]
        if names != [[part.name for part in parts] for parts in there]:
            raise self._changed(folder, "other parts than")
        for parts, paths in zip(known, there, strict=True):
            for (name, size, sample), path in zip(parts, paths, strict=True):
                if path.stat().st_size != size or sample_hash(path) != sample:
                    raise self._changed(folder, f"another {name} than")
        return there

    def _changed(self, folder: Path, what: str) -> DataError:
        return DataError(
            f"{folder} has {what} when it was indexed; fetch them again, or, if they are right, "
            f"index them anew: abc-embed data index {folder} --again"
        )

    def __getstate__(self) -> dict[str, object]:
        return {"_index": self._index, "_parts": self._parts}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def __len__(self) -> int:
        count: int = self._rows("SELECT count(*) FROM members")[0][0]
        return count

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) is not None

    def find(self, name: str) -> Member | None:
        """Where a file lies; None when the archives do not hold it."""
        rows = self._rows("SELECT * FROM members WHERE name = ?", (name,))
        return Member(*rows[0]) if rows else None

    def folders(self) -> list[str]:
        """The names of the top folders in the archives."""
        found = []
        name = self._rows("SELECT min(name) FROM members WHERE instr(name, '/') > 0")[0][0]
        while name is not None:
            top = name.partition("/")[0]
            found.append(top)
            after = top + "0"  # "0" follows "/" in order
            query = "SELECT min(name) FROM members WHERE name >= ? AND instr(name, '/') > 0"
            name = self._rows(query, (after,))[0][0]
        return found

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            DataError: the archives do not hold it, it is damaged, or larger than `LIMIT`.
        """
        member = self.find(name)
        if member is None:
            raise DataError(f"there is no {name!r} in the tar archives; check the name")
        point = self._point(member, member.offset)
        stream = self._stream(member.archive)
        if point is None:
            return _checked(member, stream.read_at(member.offset, member.size))
        ahead = member.offset - point.plain
        return _checked(member, inflate(stream, point, ahead + member.size)[ahead:])

    def in_order(self) -> Iterator[tuple[Member, bytes]]:
        """All files, in the order of the archives: each byte is inflated once.

        Raises:
            DataError: a file is damaged, or larger than `LIMIT`.
        """
        block, start, current = b"", 0, -1  # plain bytes of the archive `current`, from `start` on
        for member in self.listed():
            if member.archive != current:
                current, block, start = member.archive, b"", 0
            end = member.offset + member.size
            if end > start + len(block):
                kept = block[member.offset - start :] if member.offset >= start else b""
                more, begins = self._up_to_next_point(member, member.offset + len(kept))
                block, start = (kept + more, member.offset) if kept else (more, begins)
            yield member, _checked(member, block[member.offset - start : end - start])

    def listed(self) -> Iterator[Member]:
        """All files, in the order of the archives, without their content."""
        # Only numbers are sorted by SQLite, a name is looked up when its turn comes.
        query = "SELECT * FROM members ORDER BY archive, offset"
        with reported(self._index):
            for row in self._database().execute(query):
                yield Member(*row)

    def _up_to_next_point(self, member: Member, begin: int) -> tuple[bytes, int]:
        """Plain bytes from `begin`, or from the point before it, to the first point after the
        member; and where they begin."""
        stream = self._stream(member.archive)
        point = self._point(member, begin)
        if point is None:
            return stream.read_at(begin, member.offset + member.size - begin), begin
        end = self._rows(
            "SELECT min(plain) FROM points WHERE archive = ? AND plain >= ?",
            (member.archive, member.offset + member.size),
        )[0][0]
        return inflate(stream, point, end - point.plain), point.plain

    def _point(self, member: Member, begin: int) -> Point | None:
        """The last point before `begin`; None in an archive that is not gzipped."""
        if member.size > LIMIT:
            raise DataError(f"{member.name!r} has {member.size:,} bytes, as no image has")
        rows = self._rows(
            "SELECT packed, plain, bits, window FROM points WHERE archive = ? AND plain <= ?"
            " ORDER BY plain DESC LIMIT 1",
            (member.archive, begin),
        )
        return Point(*rows[0]) if rows else None

    def summary(self) -> Summary:
        """What the index knows as a whole."""
        parts, packed = self._rows("SELECT count(*), sum(size) FROM parts")[0]
        return Summary(
            members=len(self),
            plain_bytes=self._rows("SELECT coalesce(sum(size), 0) FROM members")[0][0],
            points=self._rows("SELECT count(*) FROM points")[0][0],
            archives=self._rows("SELECT count(*) FROM archives")[0][0],
            parts=parts,
            packed_bytes=packed or 0,
            others=tuple(self._rows("SELECT name, why FROM others ORDER BY rowid")),
        )

    def _stream(self, archive: int) -> Joined:
        streams: dict[int, Joined] = self._own().streams
        if archive not in streams:
            streams[archive] = Joined(self._parts[archive])
        return streams[archive]

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple]:  # type: ignore[type-arg]
        with reported(self._index):
            return self._database().execute(query, values).fetchall()

    def _database(self) -> sqlite3.Connection:
        database: sqlite3.Connection = self._own().database
        return database

    def _own(self) -> threading.local:
        """Files that this process and thread opened."""
        if getattr(self._local, "process", None) != os.getpid():
            address = f"{self._index.resolve().as_uri()}?mode=ro&immutable=1"
            with reported(self._index):
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


def _checked(member: Member, content: bytes) -> bytes:
    if len(content) != member.size or zlib.crc32(content) != member.crc:
        raise DataError(
            f"{member.name!r} is not what it was when the archive was indexed; "
            "fetch the part that holds it again"
        )
    return content
