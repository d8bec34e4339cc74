"""The index of tar archives, in one SQLite file: where each member lies, and its CRC-32; for gzip
also the points at which inflating can begin.

The file is made aside and renamed when all archives are whole. What is done is committed now and
then, so a process that is killed goes on from there, and the finished index is the same. A gzip
stream is inflated twice on the way, once to find points and once to read headers and take sums.

`ratarmountcore` (0.11) is not used: it takes a damaged header or a cut stream for the end and an
index that was broken off for a whole one, keeps no sums, and cannot be pickled; `webdataset` reads
forwards only. tests/data/test_tar_index.py and test_tar_images.py hold ours to all of these.
"""

import io
import json
import shutil
import sqlite3
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from abc_embed.data.published.archives import (
    LEAST_SPACING,
    SPACING,
    Archive,
    JoinedFile,
    Point,
    find_points,
    inflate,
)
from abc_embed.data.tar_headers import Fault, read_headers
from abc_embed.errors import DataError, OutputError, UsageError
from abc_embed.storage.files import make_folder
from abc_embed.storage.hashing import sample_hash
from abc_embed.storage.plain import Blocks, BlockStream

COMMIT_EVERY = 256_000_000
"""Plain bytes between two commits; a kill loses no more than these."""
REACH = 64_000_000
"""Plain bytes by which the points are ahead of what is read."""
BOMB = 100
"""An archive that unpacks to more than this times its size is refused; images hardly pack."""
BOMB_FLOOR = 1_000_000_000
PIECE = 1 << 20
_POINT_BYTES = 33_500  # of disk, with what SQLite adds
_MEMBER_BYTES = 0.001  # of disk per byte of content: 150 for an image of 150 kB

_TABLES = """
CREATE TABLE IF NOT EXISTS parts (archive INTEGER, number INTEGER, name TEXT, size INTEGER,
    sample TEXT, PRIMARY KEY (archive, number));
CREATE TABLE IF NOT EXISTS archives (archive INTEGER PRIMARY KEY, gzipped INTEGER, state TEXT);
CREATE TABLE IF NOT EXISTS points (archive INTEGER, plain INTEGER, packed INTEGER, bits INTEGER,
    window BLOB, PRIMARY KEY (archive, plain)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS members (name TEXT PRIMARY KEY, archive INTEGER, offset INTEGER,
    size INTEGER, crc INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS others (name TEXT, why TEXT);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""

PartRow = tuple[int, int, str, int, str]
"""A line of the table `parts`: archive, number, name, bytes, sample of the content."""


def build_index(
    archives: Sequence[Archive],
    path: Path,
    *,
    spacing: int = SPACING,
    on_message: Callable[[str], None] = lambda message: None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Make the index `path`, or go on making it; one that is there is left alone.

    `spacing` is in plain bytes (see `archives.SPACING`); `on_progress` gets packed bytes.

    Raises:
        DataError: an archive is damaged, cut off, or unpacks to far more than its size.
        OutputError: the index cannot be written, or the disk has too little room.
        MissingExtraError: an archive is gzipped and `indexed_gzip` is not installed.
    """
    if spacing < LEAST_SPACING:
        raise UsageError(f"the spacing is {spacing} bytes; give at least {LEAST_SPACING}")
    if path.exists():
        return
    make_folder(path.parent)
    _check_room(archives, path, spacing)
    partial = path.with_name(path.name + ".part")
    before, total = 0, sum(archive.size for archive in archives)
    with (
        sqlite_errors(path),
        closing(_open_partial(partial, archives, spacing, on_message)) as database,
    ):
        for number, archive in enumerate(archives):
            scan = _Scan(database, number, archive, spacing)
            for packed in scan.run():
                on_progress(before + packed, total)
            before += archive.size
        with database:
            database.execute("INSERT OR REPLACE INTO settings VALUES ('whole', 'true')")
    with sqlite_errors(path):
        partial.replace(path)
    on_progress(total, total)


def _check_room(archives: Sequence[Archive], path: Path, spacing: int) -> None:
    """The points and members fit on the disk: known well enough before hours are spent."""
    packed = sum(archive.size for archive in archives if archive.gzipped)
    total = sum(archive.size for archive in archives)
    needed = int(packed / spacing * _POINT_BYTES + total * _MEMBER_BYTES)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OutputError(
            f"the index takes about {needed / 1e6:,.0f} MB and {path.parent} has {free / 1e6:,.0f} "
            "MB free; make room, or give a larger --spacing"
        )


def part_rows(archives: Sequence[Archive]) -> list[PartRow]:
    """What tells the parts of some archives from others."""
    return [
        (number, place, part.name, part.stat().st_size, sample_hash(part))
        for number, archive in enumerate(archives)
        for place, part in enumerate(archive.parts)
    ]


def _open_partial(
    path: Path, archives: Sequence[Archive], spacing: int, on_message: Callable[[str], None]
) -> sqlite3.Connection:
    """The index in the making, if it is of these parts; else a new one."""
    parts = part_rows(archives)
    database = _locked(path)
    known = database.execute("SELECT * FROM parts ORDER BY archive, number").fetchall()
    settings = dict(database.execute("SELECT name, value FROM settings"))
    if known and (known != parts or settings.get("spacing") != str(spacing)):
        on_message(
            "the parts, or the spacing, are not those of the index that was begun; it begins anew"
        )
        database.close()
        path.unlink()
        database = _locked(path)
        known = []
    if not known:
        new = json.dumps(asdict(_State()))
        with database:
            rows = [(number, int(a.gzipped), new) for number, a in enumerate(archives)]
            database.executemany("INSERT INTO parts VALUES (?, ?, ?, ?, ?)", parts)
            database.executemany("INSERT INTO archives VALUES (?, ?, ?)", rows)
            database.execute("INSERT INTO settings VALUES ('spacing', ?)", (str(spacing),))
    return database


def _locked(path: Path) -> sqlite3.Connection:
    """For this process alone: two that write would not know of each other."""
    database = sqlite3.connect(path, timeout=0)
    try:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.executescript(_TABLES)
    except sqlite3.Error:
        database.close()
        raise
    return database


def read_blocks(
    database: sqlite3.Connection, archive: int, stream: JoinedFile, place: int
) -> Blocks:
    """What lies between the points of a gzipped archive, from those around a place to the last."""
    query = (
        "SELECT packed, plain, bits, window FROM points WHERE archive = ?1 AND plain >= (SELECT"
        " max(plain) FROM points WHERE archive = ?1 AND plain <= ?2) ORDER BY plain LIMIT 2"
    )
    while len(points := database.execute(query, (archive, place)).fetchall()) == 2:
        point, following = Point(*points[0]), Point(*points[1])
        yield point.plain, inflate(stream, point, following.plain - point.plain)
        place = following.plain


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """What SQLite and the disk say, as an `OutputError` about the index `path`."""
    try:
        yield
    except (sqlite3.Error, OSError) as problem:
        why = str(problem) if isinstance(problem, sqlite3.Error) else problem.strerror
        mend = (
            "another process makes it; wait for that"
            if "locked" in str(why)
            else "make room, or delete it to begin anew"
        )
        raise OutputError(f"the index {path} cannot be used: {why}; {mend}") from problem


@dataclass(slots=True)
class _State:
    """How far an archive is read; kept as JSON with every commit."""

    scanned: int = 0
    """Where the next header begins."""
    plain_size: int = 0
    """Of the whole archive; 0 until its end was seen."""
    summed: int = 0
    sum: int = 0
    """CRC-32 of the first `summed` plain bytes."""
    done: bool = False


class _Scan:
    """One archive from where it was left to its end; what is found waits in SQLite's transaction
    for the next commit."""

    def __init__(
        self, database: sqlite3.Connection, number: int, archive: Archive, spacing: int
    ) -> None:
        self._database = database
        self._number = number
        self._archive = archive
        self._spacing = spacing
        self._name = str(archive.parts[0])
        query = "SELECT state FROM archives WHERE archive = ?"
        (text,) = database.execute(query, (number,)).fetchone()
        self._state = _State(**json.loads(text))
        self._committed = self._state.scanned

    def run(self) -> Iterator[int]:
        """To the end of the archive, committing on the way; yields how many bytes are read."""
        if self._state.done:
            return
        with closing(JoinedFile(self._archive.parts)) as stream:
            packed = BlockStream(lambda start: self._inflated(stream, start))
            reader = io.BufferedReader(packed if self._archive.gzipped else stream, PIECE)
            for info, following in self._members(reader):
                self._note(info, reader)
                self._state.scanned = following
                if following - self._committed >= COMMIT_EVERY:
                    self._commit()
                yield stream.tell()
            if self._archive.gzipped:
                while reader.read(PIECE):  # what follows the end mark: to its end, for the sum
                    yield stream.tell()
                self._check_sum(stream)
        self._state.done = True
        self._commit()

    def _members(self, reader: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, int]]:
        """Each header with the place of the one after it.

        Raises:
            DataError: the archive is damaged, or ends without its end mark; says where, and how
                many files follow. Those are not given: better to fetch the part again than lose
                some.
        """
        fault: Fault | None = None
        before = after = 0
        for found in read_headers(reader, self._state.scanned):
            if isinstance(found, Fault):
                fault = fault or (None if found.harmless else found)
            elif fault is None:
                before += 1
                yield found
            else:
                after += 1
        if fault is not None:
            raise DataError(
                f"{self._name} is damaged or cut off: {fault} of its content, after {before:,} "
                f"files that were read now; {after:,} more follow it; fetch its parts again"
            )

    def _note(self, info: tarfile.TarInfo, reader: BinaryIO) -> None:
        """Keep a member's place and sum, or why it is left out."""
        name = info.name.removeprefix("./")
        if info.isdir():
            return
        if not info.isreg() or info.issparse():
            self._leave_out(name, _kind_of(info))
            return
        offset = reader.tell()
        crc, left = 0, info.size
        while left:
            piece = reader.read(min(left, PIECE))
            if not piece:
                raise DataError(f"{self._name} breaks off in {name!r}; fetch its parts again")
            crc = zlib.crc32(piece, crc)
            left -= len(piece)
        if not name.isprintable() or _printable(name) != name:
            self._leave_out(name, "the name cannot be written")
            return
        known = self._database.execute("SELECT 1 FROM members WHERE name = ?", (name,))
        if known.fetchone():
            self._leave_out(name, "the name comes again; the last one counts")
        self._database.execute(
            "INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?)",
            (name, self._number, offset, info.size, crc),
        )

    def _leave_out(self, name: str, why: str) -> None:
        self._database.execute("INSERT INTO others VALUES (?, ?)", (_printable(name), why))

    def _commit(self) -> None:
        self._database.execute(
            "UPDATE archives SET state = ? WHERE archive = ?",
            (json.dumps(asdict(self._state)), self._number),
        )
        self._database.commit()
        self._committed = self._state.scanned

    def _inflated(self, stream: JoinedFile, start: int) -> Blocks:
        """The blocks from the one that holds `start` on; points are found when they are needed."""
        state = self._state
        while True:
            for place, block in read_blocks(self._database, self._number, stream, start):
                if place == state.summed:
                    state.sum = zlib.crc32(block, state.sum)
                    state.summed += len(block)
                yield place, block
                start = place + len(block)
            if state.plain_size:
                return
            self._find_points(stream)

    def _find_points(self, stream: JoinedFile) -> None:
        """Find more points, beyond the last one that is known."""
        rows = self._database.execute(
            "SELECT packed, plain, bits, window FROM points WHERE archive = ?1 AND (plain = 0 OR"
            " plain = (SELECT max(plain) FROM points WHERE archive = ?1)) ORDER BY plain",
            (self._number,),
        )
        known = [Point(*row) for row in rows]
        new, self._state.plain_size = find_points(stream, known, REACH, self._spacing)
        self._check_growth(new)
        self._database.executemany(
            "INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?)",
            [(self._number, p.plain, p.packed, p.bits, p.window) for p in new],
        )

    def _check_growth(self, new: list[Point]) -> None:
        if new and new[-1].plain > max(BOMB_FLOOR, BOMB * max(new[-1].packed, 1)):
            raise DataError(
                f"{self._name} unpacks to more than {BOMB} times its size, as no images do; "
                "it is not read on"
            )
        if not new and not self._state.plain_size:
            raise DataError(f"{self._name} is damaged or cut off; fetch its parts again")

    def _check_sum(self, stream: JoinedFile) -> None:
        """A stream of one gzip member ends with the sum and size of all that was inflated."""
        query = "SELECT count(*) FROM points WHERE archive = ? AND window IS NULL"
        ((members,),) = self._database.execute(query, (self._number,))
        end = stream.read_at(stream.size - 8, 8)
        if members > 1 or not any(end):  # several members; or zeros after the last
            return
        if struct.unpack("<II", end) != (self._state.sum, self._state.summed % 2**32):
            self._database.rollback()
            with self._database:  # it begins anew: which of its bytes are wrong is not known
                self._database.execute("DELETE FROM settings")
            raise DataError(
                f"{self._name} is damaged or cut off: its content has not the sum that its end "
                "names; fetch its parts again"
            )


def _kind_of(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f"a link to {_printable(info.linkname)}"
    return "a sparse file" if info.issparse() else "a device, a pipe or something else"


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
