"""The index of tar archives: where each member lies, made once, in one SQLite file.

Does: go through archives from beginning to end, note name, place, size and CRC-32 of every file,
and for gzip the points at which inflating can begin. Does not: keep contents, or read one back
(tars.py).

The file is made aside and renamed when all archives are whole. What is done is committed now and
then, so a process that is killed goes on from there, and the finished index is the same. A gzip
stream is inflated twice on the way, once to find points and once to read headers and take sums.
"""

import json
import shutil
import sqlite3
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from abc_embed.data.published.gzip_points import LEAST_SPACING, SPACING, Point, grow, inflate
from abc_embed.data.published.tar_parts import Archive, Joined, sample_hash
from abc_embed.data.published.tar_stream import Forward, kind_of, members, printable
from abc_embed.errors import DataError, OutputError, UsageError
from abc_embed.storage.files import make_folder

COMMIT_EVERY = 256_000_000
"""Plain bytes between two commits; a kill loses no more than these."""
REACH = 64_000_000
"""Plain bytes by which the points are ahead of what is read."""
BOMB = 100
"""An archive that unpacks to more than this times its size is refused; images hardly pack."""
_BOMB_FLOOR = 1_000_000_000
_PIECE = 1 << 20
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

Counted = Callable[[int, int], None]


@dataclass(slots=True)
class State:
    """How far an archive is read."""

    scanned: int = 0
    """Where the next header begins."""
    plain_size: int = 0
    """Of the whole archive; 0 until its end was seen."""
    summed: int = 0
    sum: int = 0
    """CRC-32 of the first `summed` plain bytes."""
    done: bool = False


def build_index(
    archives: Sequence[Archive],
    path: Path,
    *,
    spacing: int = SPACING,
    said: Callable[[str], None] = lambda message: None,
    counted: Counted = lambda done, of: None,
) -> None:
    """Make the index `path`, or go on making it; one that is there is left alone.

    `spacing` is in plain bytes (see `gzip_points.SPACING`); `counted` is told packed bytes.

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
    aside = path.with_name(path.name + ".part")
    parts = _parts(archives)
    with reported(path), closing(_begun(aside, parts, archives, spacing, said)) as database:
        before = 0
        total = sum(archive.size for archive in archives)
        for number, archive in enumerate(archives):
            done = before
            _Scan(
                database,
                number,
                archive,
                spacing,
                lambda packed, done=done: counted(done + packed, total),  # type: ignore[misc]
            ).run()
            before += archive.size
        with database:
            database.execute("INSERT OR REPLACE INTO settings VALUES ('whole', 'true')")
    with reported(path):
        aside.replace(path)
    counted(total, total)


def _check_room(archives: Sequence[Archive], path: Path, spacing: int) -> None:
    """The points and members fit on the disk: known well enough before hours are spent."""
    packed = sum(archive.size for archive in archives if archive.gzipped)
    whole = sum(archive.size for archive in archives)
    needed = int(packed / spacing * _POINT_BYTES + whole * _MEMBER_BYTES)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OutputError(
            f"the index takes about {needed / 1e6:,.0f} MB and {path.parent} has {free / 1e6:,.0f} "
            "MB free; make room, or give a larger --spacing"
        )


def _parts(archives: Sequence[Archive]) -> list[tuple[int, int, str, int, str]]:
    return [
        (number, place, part.name, part.stat().st_size, sample_hash(part))
        for number, archive in enumerate(archives)
        for place, part in enumerate(archive.parts)
    ]


def _begun(
    aside: Path,
    parts: list[tuple[int, int, str, int, str]],
    archives: Sequence[Archive],
    spacing: int,
    said: Callable[[str], None],
) -> sqlite3.Connection:
    """The index in the making, if it is of these parts; else a new one."""
    database = _locked(aside)
    known = database.execute("SELECT * FROM parts ORDER BY archive, number").fetchall()
    kept = dict(database.execute("SELECT name, value FROM settings"))
    if known and (known != parts or kept.get("spacing") != str(spacing)):
        said("the parts, or the spacing, are not those of the index that was begun; it begins anew")
        database.close()
        aside.unlink()
        database = _locked(aside)
        known = []
    if not known:
        with database:
            rows = [(n, int(a.gzipped), state_text(State())) for n, a in enumerate(archives)]
            database.executemany("INSERT INTO parts VALUES (?, ?, ?, ?, ?)", parts)
            database.executemany("INSERT INTO archives VALUES (?, ?, ?)", rows)
            database.execute("INSERT INTO settings VALUES ('spacing', ?)", (str(spacing),))
    return database


def _locked(aside: Path) -> sqlite3.Connection:
    """For this process alone: two that write would not know of each other."""
    database = sqlite3.connect(aside, timeout=0)
    try:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.executescript(_TABLES)
    except sqlite3.Error:
        database.close()
        raise
    return database


@contextmanager
def reported(path: Path) -> Iterator[None]:
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


def state_text(state: State) -> str:
    return json.dumps({name: getattr(state, name) for name in State.__slots__})


@dataclass(slots=True)
class _Pending:
    """What was found since the last commit."""

    members: list[tuple[str, int, int, int, int]] = field(default_factory=list)
    others: list[tuple[str, str]] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    since: int = 0


class _Scan:
    """One archive from where it was left to its end."""

    def __init__(
        self,
        database: sqlite3.Connection,
        number: int,
        archive: Archive,
        spacing: int,
        counted: Callable[[int], None],
    ) -> None:
        self._database = database
        self._number = number
        self._archive = archive
        self._spacing = spacing
        self._counted = counted
        (text,) = database.execute(
            "SELECT state FROM archives WHERE archive = ?", (number,)
        ).fetchone()
        self._state = State(**json.loads(text))
        self._found = _Pending()

    def run(self) -> None:
        """To the end of the archive, committing on the way."""
        if self._state.done:
            return
        with closing(Joined(self._archive.parts)) as stream:
            start = self._state.scanned
            blocks = self._inflated(stream) if self._archive.gzipped else self._plain(stream)
            forward = Forward(blocks, start, self._name())
            self._found.since = start
            for info, following in members(forward):
                self._note(info, forward)
                self._state.scanned = following
                if self._state.scanned - self._found.since >= COMMIT_EVERY:
                    self._commit()
            for _ in blocks:  # what follows the end mark: to its end, for the sum
                pass
            if self._archive.gzipped:
                self._check_sum(stream)
        self._state.done = True
        self._commit()

    def _name(self) -> str:
        return str(self._archive.parts[0])

    def _note(self, info: tarfile.TarInfo, forward: "Forward") -> None:
        name = info.name.removeprefix("./")
        if info.isdir():
            return
        if not info.isreg() or info.issparse():
            self._found.others.append((printable(name), kind_of(info)))
            return
        offset = forward.tell()
        crc, left = 0, info.size
        while left:
            piece = forward.read(min(left, _PIECE))
            if not piece:
                raise DataError(f"{self._name()} breaks off in {name!r}; fetch its parts again")
            crc = zlib.crc32(piece, crc)
            left -= len(piece)
        if not name.isprintable() or printable(name) != name:
            self._found.others.append((printable(name), "the name cannot be written"))
        else:
            self._found.members.append((name, self._number, offset, info.size, crc))

    def _commit(self) -> None:
        found, number = self._found, self._number
        with self._database as database:
            for member in found.members:
                known = "SELECT 1 FROM members WHERE name = ?"
                if database.execute(known, member[:1]).fetchone():
                    found.others.append((member[0], "the name comes again; the last one counts"))
                database.execute("INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?)", member)
            database.executemany("INSERT INTO others VALUES (?, ?)", found.others)
            database.executemany(
                "INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?)",
                [(number, p.plain, p.packed, p.bits, p.window) for p in found.points],
            )
            database.execute(
                "UPDATE archives SET state = ? WHERE archive = ?", (state_text(self._state), number)
            )
        self._found = _Pending(since=self._state.scanned)

    def _plain(self, stream: Joined) -> Iterator[tuple[int, bytes]]:
        position = self._state.scanned
        while block := stream.read_at(position, _PIECE):
            yield position, block
            position += len(block)
            self._counted(position)

    def _inflated(self, stream: Joined) -> Iterator[tuple[int, bytes]]:
        """The plain bytes from the point before `scanned` on; finds more points when needed."""
        state = self._state
        rows = self._database.execute(
            "SELECT packed, plain, bits, window FROM points WHERE archive = ?1 AND (plain = 0 OR"
            " plain >= (SELECT max(plain) FROM points WHERE archive = ?1 AND plain < max(?2, 1)))"
            " ORDER BY plain",
            (self._number, state.scanned),
        )
        points = [Point(*row) for row in rows]
        place = 1 if len(points) > 1 and points[1].plain < state.scanned else 0
        while True:
            if place + 1 >= len(points):
                if state.plain_size:
                    return
                new, state.plain_size = grow(stream, points, REACH, self._spacing)
                self._check_bomb(stream, new)
                self._found.points += new
                points = [*points[:1], *points[max(place, 1) :], *new]
                place = min(place, 1)
                continue
            point, following = points[place], points[place + 1]
            block = inflate(stream, point, following.plain - point.plain)
            if point.plain == state.summed:
                state.sum = zlib.crc32(block, state.sum)
                state.summed += len(block)
            if block:
                yield point.plain, block
            self._counted(following.packed)
            place += 1

    def _check_bomb(self, stream: Joined, new: list[Point]) -> None:
        if new and new[-1].plain > max(_BOMB_FLOOR, BOMB * max(new[-1].packed, 1)):
            raise DataError(
                f"{self._name()} unpacks to more than {BOMB} times its size, as no images do; "
                "it is not read on"
            )
        if not new and not self._state.plain_size:
            raise DataError(f"{self._name()} is damaged or cut off; fetch its parts again")

    def _check_sum(self, stream: Joined) -> None:
        """A stream of one gzip member ends with the sum and size of all that was inflated."""
        starts = self._database.execute(
            "SELECT count(*) FROM points WHERE archive = ? AND window IS NULL", (self._number,)
        ).fetchone()[0] + sum(point.window is None for point in self._found.points)
        end = stream.read_at(stream.size - 8, 8)
        if starts > 1 or not any(end):  # several members; or zeros after the last
            return
        if struct.unpack("<II", end) != (self._state.sum, self._state.summed % 2**32):
            raise DataError(
                f"{self._name()} is damaged or cut off: its content has not the sum that its end "
                "names; fetch its parts again"
            )
