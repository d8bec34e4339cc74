"""A folder under its name is whole at every moment, whoever is killed when."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from abc_embed.errors import OutputError
from abc_embed.storage import folders
from abc_embed.storage.folders import atomic_folder, content_of, recover_folder, replace_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make(folder: Path, word: str) -> Path:
    """A folder whose three files hold the same word."""
    (folder / "below").mkdir(parents=True, exist_ok=True)
    for name in ("a", "b", "below/c"):
        (folder / name).write_text(word)
    return folder


def word_of(folder: Path) -> str:
    (word,) = {(folder / name).read_text() for name in ("a", "b", "below/c")}
    return word


@pytest.fixture(params=["at once", "in two steps"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in two steps":
        monkeypatch.setattr(folders, "_swap_at_once", lambda one, other: False)


@pytest.mark.usefixtures("how")
def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    replace_folder(make(tmp_path / "new", "new"), make(tmp_path / "mine", "old"))
    assert names(tmp_path) == ["mine"]
    assert word_of(tmp_path / "mine") == "new"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems may not know how")
def test_there_is_a_call_that_swaps_at_once(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one", "one"), make(tmp_path / "other", "other")
    if not folders._swap_at_once(one, other):
        pytest.skip("this file system does not know how")
    assert (word_of(one), word_of(other)) == ("other", "one")


def test_what_cannot_be_renamed_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_swap_at_once", lambda one, other: False)
    rename = os.rename

    def fail(old: Path, new: Path) -> None:
        if Path(old).name == "new":
            raise OSError(errno.EACCES, "Permission denied")
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="Permission denied"):
        replace_folder(make(tmp_path / "new", "new"), make(tmp_path / "mine", "old"))
    assert word_of(tmp_path / "mine") == "old"


@pytest.mark.usefixtures("how")
def test_it_appears_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "deep" / "mine") as partial:
        make(partial, "first")
        assert not (tmp_path / "deep" / "mine").exists()
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "deep" / "mine") as partial:
        make(partial, "second")
        raise KeyboardInterrupt
    assert word_of(tmp_path / "deep" / "mine") == "first"
    assert names(tmp_path / "deep") == ["mine"]


@pytest.mark.usefixtures("how")
def test_a_link_stays_one(tmp_path: Path) -> None:
    disk = make(tmp_path / "disk", "old")
    (tmp_path / "link").symlink_to(disk)
    with atomic_folder(tmp_path / "link") as partial:
        make(partial, "new")
    assert (tmp_path / "link").is_symlink()
    assert word_of(disk) == "new"
    assert names(tmp_path) == ["disk", "link"]


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EXDEV])
def test_a_folder_that_no_rename_moves_is_filled_from_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def busy(one: Path, other: Path) -> bool:
        raise OSError(code, os.strerror(code))

    mine = make(tmp_path / "mine", "old")
    (mine / "lost+found").mkdir()
    (mine / "stale").touch()
    monkeypatch.setattr(folders, "_swap_at_once", busy)
    with atomic_folder(mine) as partial:
        make(partial, "new")
    assert word_of(mine) == "new"
    assert names(mine) == ["a", "b", "below", "lost+found"]
    assert names(tmp_path) == ["mine"]


def test_a_mount_point_is_written_inside_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = make(tmp_path / "mine", "old")
    inode = mine.stat().st_ino
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == mine)
    with atomic_folder(mine) as partial:
        make(partial, "new")
        assert partial.parent == mine, "the disk beside may be too small"
        assert [path.name for path in content_of(mine)] != []
    assert word_of(mine) == "new"
    assert mine.stat().st_ino == inode


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "mine") as partial:
        make(partial, "one")
        with pytest.raises(OutputError, match="another process"), atomic_folder(tmp_path / "mine"):
            pass
        assert word_of(partial) == "one"
    assert word_of(tmp_path / "mine") == "one"


KILLED = """
import os, signal, sys
from pathlib import Path
from abc_embed.storage import folders
mine, at, how = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
calls = 0
def audit(event, args):
    global calls
    if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "ctypes.call_function"):
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
if how != "at once":
    folders._swap_at_once = lambda one, other: False
if how == "inside":
    os.path.ismount = lambda path: Path(path) == mine
with folders.atomic_folder(mine) as partial:
    (partial / "below").mkdir()
    for name in ("a", "b", "below/c"):
        (partial / name).write_text("new")
    sys.addaudithook(audit)
print(calls)
"""


@pytest.mark.parametrize("way", ["at once", "in two steps", "inside"])
def test_killed_at_any_of_its_steps_there_is_one_whole_folder(tmp_path: Path, way: str) -> None:
    for at in range(1, 40):
        mine = make(tmp_path / "mine", "old")
        command = [sys.executable, "-c", KILLED, str(mine), str(at), way]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if way == "at once":
            assert word_of(mine) in ("old", "new"), "without any mending"
        recover_folder(mine)
        assert word_of(mine) in ("old", "new")
        with atomic_folder(mine) as partial:
            make(partial, "next")
        assert word_of(mine) == "next"
        assert names(mine) == ["a", "b", "below"]
        assert names(tmp_path) == ["mine"]
        if done.returncode == 0:
            break
        shutil.rmtree(mine)
    assert at > 2
    assert done.returncode == 0, done.stderr
