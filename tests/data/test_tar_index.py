"""Making the index: stopped anywhere it comes out the same, and damage is not taken for the end."""

import gzip
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from published_sets import noise, split, tar_bytes
from tar_layouts import FILES, dump, indexed, members_of_gzip, nine_archives, one_stream, plain

from abc_embed.data.published import tar_index
from abc_embed.data.published.archives import LEAST_SPACING, find_archives
from abc_embed.data.published.tar_images import TarImages
from abc_embed.data.published.tar_index import build_index
from abc_embed.errors import DataError, OutputError


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits and looks ahead in small steps, so that a small archive has many of them."""
    monkeypatch.setattr(tar_index, "COMMIT_EVERY", 150_000)
    monkeypatch.setattr(tar_index, "REACH", 200_000)
    monkeypatch.setattr(tar_index, "PIECE", 100_000)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("layout", [one_stream, members_of_gzip, plain, nine_archives])
def test_stopped_anywhere_the_index_is_the_same(
    tmp_path: Path, layout: Callable[[Path], None]
) -> None:
    layout(tmp_path)
    archives = find_archives(tmp_path)
    whole = tmp_path / "whole.sqlite"
    build_index(archives, whole, spacing=LEAST_SPACING)
    broken = tmp_path / "broken.sqlite"
    calls, stops = 0, 0

    def stop(done: int, of: int) -> None:
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise KeyboardInterrupt

    while not broken.exists():
        try:
            build_index(archives, broken, spacing=LEAST_SPACING, on_progress=stop)
        except KeyboardInterrupt:
            stops += 1
            assert stops < 200
    assert stops >= 2
    assert sorted(dump(broken)) == sorted(dump(whole))


KILLED = """
import os, signal, sys
from pathlib import Path
from abc_embed.data.published import tar_index
from abc_embed.data.published.archives import find_archives
tar_index.COMMIT_EVERY, tar_index.REACH = 150_000, 200_000
folder = Path(sys.argv[1])
def on_progress(done, of):
    if done > of // 2:
        os.kill(os.getpid(), signal.SIGKILL)
archives, index = find_archives(folder), folder / "index.sqlite"
tar_index.build_index(archives, index, spacing=1 << 17, on_progress=on_progress)
"""


@pytest.mark.usefixtures("often")
def test_killed_it_goes_on(tmp_path: Path) -> None:
    one_stream(tmp_path)
    archives = find_archives(tmp_path)
    build_index(archives, tmp_path / "whole.sqlite", spacing=LEAST_SPACING)
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    index = tmp_path / "index.sqlite"
    assert not index.exists()
    with pytest.raises(DataError, match=r"no finished index; make it with: abc-embed data index"):
        TarImages(tmp_path, index)
    begun = sqlite3.connect(f"{index}.part")
    (members,) = begun.execute("SELECT count(*) FROM members").fetchone()
    begun.close()
    assert 5 < members < len(FILES)
    seen: list[int] = []
    build_index(
        archives,
        index,
        spacing=LEAST_SPACING,
        on_progress=lambda done, of: seen.append(done * 10 // of),
    )
    assert seen[0] >= 3, "it began at the beginning"
    assert sorted(dump(index)) == sorted(dump(tmp_path / "whole.sqlite"))


@pytest.mark.usefixtures("often")
def test_begun_on_other_parts_it_begins_anew(tmp_path: Path) -> None:
    one_stream(tmp_path)
    index = tmp_path / "index.sqlite"

    def stop(done: int, of: int) -> None:
        if done > of // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(find_archives(tmp_path), index, spacing=LEAST_SPACING, on_progress=stop)
    changed = [(name, content[::-1]) for name, content in FILES]
    split(gzip.compress(tar_bytes(changed), mtime=0), tmp_path, "abc-pretrain.tar.gz", 9)
    messages: list[str] = []
    build_index(find_archives(tmp_path), index, spacing=LEAST_SPACING, on_message=messages.append)
    assert "begins anew" in messages[0]
    assert dict(changed) == {m.name: c for m, c in TarImages(tmp_path, index).in_order()}


def test_two_at_once(tmp_path: Path) -> None:
    one_stream(tmp_path)
    archives = find_archives(tmp_path)
    index = tmp_path / "index.sqlite"
    refused: list[str] = []

    def another(done: int, of: int) -> None:
        if not refused:
            with pytest.raises(OutputError, match="another process makes it") as error:
                build_index(archives, index, spacing=LEAST_SPACING)
            refused.append(str(error.value))

    build_index(archives, index, spacing=LEAST_SPACING, on_progress=another)
    assert refused


# -- parts that are not what they were -------------------------------------------------------------


def test_a_changed_part_is_refused(tmp_path: Path) -> None:
    one_stream(tmp_path)
    indexed(tmp_path).close()
    part = tmp_path / "abc-pretrain.tar.gz.part_ac"
    content = part.read_bytes()
    part.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"another abc-pretrain\.tar\.gz\.part_ac than when it was"):
        TarImages(tmp_path, tmp_path / "index.sqlite")
    part.write_bytes(content[:500] + b"x" + content[501:])
    with pytest.raises(DataError, match=r"another abc-pretrain\.tar\.gz\.part_ac than"):
        TarImages(tmp_path, tmp_path / "index.sqlite")
    part.unlink()
    with pytest.raises(DataError, match=r"a part is missing between .*part_ab and .*part_ad"):
        TarImages(tmp_path, tmp_path / "index.sqlite")
    part.write_bytes(content)
    TarImages(tmp_path, tmp_path / "index.sqlite").close()
    (tmp_path / "more.tar").write_bytes(tar_bytes(FILES[:1]))
    with pytest.raises(DataError, match="other parts than"):
        TarImages(tmp_path, tmp_path / "index.sqlite")


@pytest.mark.parametrize("packed", [False, True])
def test_a_change_between_the_samples_is_seen_when_it_is_read(tmp_path: Path, packed: bool) -> None:
    files = [(f"{i}.jpg", noise(i, 300_000)) for i in range(20)]
    tar = tar_bytes(files)
    path = tmp_path / ("x.tar.gz" if packed else "x.tar")
    path.write_bytes(gzip.compress(tar) if packed else tar)
    images = indexed(tmp_path)
    content = bytearray(path.read_bytes())
    at = len(content) * 3 // 30 + 80_000  # between two of the 16 samples
    content[at] ^= 1
    path.write_bytes(content)
    again = TarImages(tmp_path, tmp_path / "index.sqlite")
    wrong = [name for name, _ in files if not _reads(again, name)]
    assert 1 <= len(wrong) <= 2
    with pytest.raises(DataError, match=r"is not what it was|is damaged or cut off"):
        list(again.in_order())
    images.close()


def _reads(images: TarImages, name: str) -> bool:
    try:
        return bool(images.read(name))
    except DataError:
        return False


def cut_end(folder: Path) -> None:
    (folder / "abc-pretrain.tar.gz.part_ai").unlink()


def cut_bytes(folder: Path) -> None:
    part = folder / "abc-pretrain.tar.gz.part_ai"
    part.write_bytes(part.read_bytes()[:-20])


def flipped(folder: Path) -> None:
    part = folder / "abc-pretrain.tar.gz.part_ae"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 4
    part.write_bytes(content)


def no_end_mark(folder: Path) -> None:
    for part in folder.iterdir():
        part.unlink()
    (folder / "x.tar.gz").write_bytes(gzip.compress(tar_bytes(FILES)[:-10240]))


def bad_header(folder: Path) -> None:
    for part in folder.iterdir():
        part.unlink()
    tar = bytearray(tar_bytes([("a", b"1" * 512), ("b", b"2" * 512), ("c", b"3")]))
    tar[1024 + 3] ^= 0xFF
    (folder / "x.tar").write_bytes(tar)


@pytest.mark.parametrize("damage", [cut_end, cut_bytes, flipped, no_end_mark, bad_header])
def test_damage_is_no_end(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """tarfile would take some of these for the end of the archive, without a word."""
    one_stream(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=r"damaged|cut off|breaks off"):
        indexed(tmp_path)
    assert not (tmp_path / "index.sqlite").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_what_follows_a_fault_is_counted(tmp_path: Path, packed: bool) -> None:
    tar = bytearray(tar_bytes([(f"{n}.jpg", b"x" * 512) for n in range(10)]))
    tar[3 * 1024 : 3 * 1024 + 1024] = bytes(1024)  # two blocks of zeros look like the end
    path = tmp_path / ("x.tar.gz" if packed else "x.tar")
    path.write_bytes(gzip.compress(tar) if packed else tar)
    with pytest.raises(DataError, match=r"an end mark .* at byte 3,072 .*after 3 files.*6 more"):
        indexed(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.tar.xz", b"", "pack it as .tar or .tar.gz"),
        ("x.tar.gz", b"no gzip", "does not begin a tar archive"),
        ("x.tar.gz", gzip.compress(b"no tar", mtime=0), "does not begin a tar archive"),
        (
            "x.tar.gz.part_ac",
            gzip.compress(tar_bytes(FILES[:1]), mtime=0),
            "there is no part before",
        ),
    ],
)
def test_what_is_no_archive(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        find_archives(tmp_path)


def test_a_wrong_sum_is_forgotten_when_the_part_is_right_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [(f"{i}.jpg", noise(i, 300_000)) for i in range(20)]
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes(files)))
    right = path.read_bytes()
    wrong = bytearray(right)
    wrong[len(right) * 3 // 30 + 80_000] ^= 1  # between two of the samples: the part looks the same
    path.write_bytes(wrong)
    monkeypatch.setattr(tar_index, "COMMIT_EVERY", 150_000)
    with pytest.raises(DataError, match="has not the sum"):
        indexed(tmp_path)
    path.write_bytes(right)
    assert dict(files) == {m.name: c for m, c in indexed(tmp_path).in_order()}
