"""Which files of a folder are images."""

import os
from pathlib import Path

import pytest

from abc_embed.data.image_files import find_images
from abc_embed.errors import ImageNotFoundError


def test_images_by_name_in_order_hidden_ones_apart(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "x.txt", ".c.png", "sub/d.webp", ".git/e.png", "sub/f"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images(tmp_path)
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["a.jpeg", "b.PNG", "sub/d.webp"]


def test_linked_folders_are_not_entered_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/ring").symlink_to(tmp_path)
    with pytest.raises(ImageNotFoundError, match=r"not entered \(1, the first .*/photos/ring'\)"):
        find_images(tmp_path / "photos", required=True)
    (tmp_path / "photos/a.png").touch()
    (tmp_path / "photos/b.png").symlink_to(tmp_path / "photos/a.png")
    names = [path.name for path in find_images(tmp_path / "photos")]
    assert names == ["a.png", "b.png"]
    assert "2 images; linked folders are not entered (1, " in caplog.text


def test_a_folder_inside_that_may_not_be_read_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/x.png", "locked/y.png", "z.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    scandir = os.scandir

    def refuse(path: str) -> object:  # the superuser may read everything
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    locked = tmp_path / "locked"
    with pytest.raises(ImageNotFoundError, match=r"locked' cannot be read \(Permission denied\)"):
        find_images(tmp_path)
    errors: dict[Path, ImageNotFoundError] = {}
    names = [path.name for path in find_images(tmp_path, on_unreadable=errors.__setitem__)]
    assert (names, list(errors)) == (["z.png", "x.png"], [locked])
    locked = tmp_path  # itself
    with pytest.raises(ImageNotFoundError, match="cannot be read"):
        find_images(tmp_path, on_unreadable=errors.__setitem__)


def test_no_such_folder(tmp_path: Path) -> None:
    assert find_images(tmp_path) == []
    with pytest.raises(ImageNotFoundError, match="there is no image in the folder"):
        find_images(tmp_path, required=True)
    with pytest.raises(ImageNotFoundError, match="there is no folder"):
        find_images(tmp_path / "gone")
