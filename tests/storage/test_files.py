"""A file has its final name only when it is whole."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from abc_embed.errors import OutputError
from abc_embed.storage.files import (
    atomic_write,
    check_writable,
    is_partial,
    make_folder,
    open_file,
    partial_path,
    read_file,
    rename_file,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.txt") as file:
        file.write(b"half")
        assert "a.txt" not in names(tmp_path)
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == b"half"


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_what_is_broken_off_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, stop: type[BaseException]
) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(stop), atomic_write(tmp_path / "a.txt") as file:
        file.write(b"half")
        raise stop
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_full_disk_is_said_in_one_sentence(tmp_path: Path) -> None:
    words = r"a\.txt' cannot be written \(No space left on device\)"
    with pytest.raises(OutputError, match=words), atomic_write(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"), atomic_write(tmp_path / "b" / "c"):
        pass


def test_folders_are_made_but_not_over_files(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a file of that name"):
        make_folder(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be made"):
        make_folder(tmp_path / "file" / "below")


def test_a_file_is_renamed_over_another(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    rename_file(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path) == ["b"]
    with pytest.raises(OutputError, match=r"b' cannot be written"):
        rename_file(tmp_path / "gone", tmp_path / "b")


def test_what_a_kill_leaves_is_known_by_its_name(tmp_path: Path) -> None:
    assert is_partial(partial_path(tmp_path / "a.json"))
    assert not is_partial(tmp_path / "a.json")


KILLED = """
import os, signal, sys
from abc_embed.storage.files import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write(b"half" * 1000)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_kill_leaves_goes_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert names(tmp_path) == [".a.txt.part"]
    partial_path(path, 1).write_text("left by one that wrote at the same time")
    with atomic_write(path) as file:
        file.write(b"new")
        file.seek(0)
        file.write(b"N")
    assert names(tmp_path) == ["a.txt"]
    assert path.read_bytes() == b"New"


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_write(path) as one:
        one.write(b"one" * 1000)
        with atomic_write(path) as other:
            other.write(b"other")
        assert path.read_bytes() == b"other"
        assert names(tmp_path) == [".a.txt.part", "a.txt"]
    assert path.read_bytes() == b"one" * 1000
    assert names(tmp_path) == ["a.txt"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "file")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "file").read_bytes() == b"content"
    check_writable(tmp_path / "link")
    assert names(tmp_path / "disk") == ["file"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"content")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name in ("pipe", "endless", "socket"):
            with pytest.raises(OSError, match="no ordinary file"):
                read_file(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)
    assert read_file(tmp_path / "link") == b"content"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_file_that_becomes_a_pipe_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    regular = os.stat(__file__)
    monkeypatch.setattr(os, "stat", lambda path: regular)
    with pytest.raises(OSError, match="no ordinary file"):
        open_file(tmp_path / "pipe")
