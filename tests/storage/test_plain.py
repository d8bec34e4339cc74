"""What is inside gzip, from any place; and an end that is no true end."""

import gzip
import os
import pickle
import random
import zlib
from pathlib import Path

import pytest

from abc_embed.storage import plain
from abc_embed.storage.plain import PlainFile

CONTENT = b"".join(b"%d %s\n" % (n, os.urandom(30).hex().encode()) for n in range(20_000))


@pytest.mark.parametrize("packed", [False, True])
def test_any_place_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    monkeypatch.setattr(plain, "_SPACING", 100_000)
    monkeypatch.setattr(plain, "_STATES", 8)
    path = tmp_path / "x"
    pieces = [CONTENT[:7], CONTENT[7:500_000], CONTENT[500_000:]]
    packed_pieces = b"".join(gzip.compress(piece, 1) for piece in pieces) + bytes(600)
    path.write_bytes(packed_pieces if packed else CONTENT)
    file = PlainFile(path)
    with file.stream() as stream:
        assert b"".join(stream) == CONTENT
    again = pickle.loads(pickle.dumps(file))
    places = random.Random(0)
    for opened in (file, again):
        for _ in range(40):
            start, size = places.randrange(len(CONTENT)), places.randrange(90_000)
            assert opened.read_at(start, size) == CONTENT[start : start + size]
        assert opened.read_at(len(CONTENT) + 5, 10) == b""


@pytest.mark.parametrize("damage", ["half", "no sum", "a wrong sum", "more behind"])
def test_no_other_end_is_taken_for_the_end(tmp_path: Path, damage: str) -> None:
    packed = gzip.compress(CONTENT, 1)
    path = tmp_path / "x.gz"
    path.write_bytes(
        {
            "half": packed[: len(packed) // 2],
            "no sum": packed[:-8],
            "a wrong sum": packed[:-8] + b"wrong" + packed[-3:],
            "more behind": packed + b"words",
        }[damage]
    )
    with (
        pytest.raises((EOFError, zlib.error, gzip.BadGzipFile)),
        PlainFile(path).stream() as stream,
    ):
        list(stream)


def test_what_cannot_be_read_stays_so(tmp_path: Path) -> None:
    """The place of a damage is not the end of the file when it is asked for again."""
    path = tmp_path / "x.gz"
    packed = gzip.compress(CONTENT, 1)
    path.write_bytes(packed[: len(packed) // 2])
    file = PlainFile(path)
    for _ in range(3):
        with pytest.raises(EOFError):
            file.read_at(len(CONTENT) - 100, 100)
        assert file.read_at(50, 100) == CONTENT[50:150]
