"""A file has its final name only when it is whole."""

import errno
from pathlib import Path

import pytest

from abc_embed.errors import OutputError
from abc_embed.storage.files import atomic_write, make_folder


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
