"""Which files of a folder are images."""

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


def test_no_such_folder(tmp_path: Path) -> None:
    assert find_images(tmp_path) == []
    with pytest.raises(ImageNotFoundError, match="there is no image in the folder"):
        find_images(tmp_path, required=True)
    with pytest.raises(ImageNotFoundError, match="there is no folder"):
        find_images(tmp_path / "gone")
