"""JSON files name what is wrong with them, and are written whole."""

import json
from pathlib import Path

import pytest

from abc_embed.errors import CheckpointError, DataError
from abc_embed.storage.json_files import atomic_write_json, read_json, write_json


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for write in (write_json, atomic_write_json):
        write(path, {"b": [1, None], "a": "é"})
        assert read_json(path) == {"a": "é", "b": [1, None]}
        assert path.read_bytes().endswith(b"}\n")


def test_equal_objects_are_equal_bytes(tmp_path: Path) -> None:
    for name, content in (("a", {"x": 1, "y": 2}), ("b", {"y": 2, "x": 1})):
        write_json(tmp_path / name, content)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write_json(path, [1], indent=None)
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic_write_json(path, [float("nan")])
    assert path.read_bytes() == b"[1]\n"
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_character_is_written_as_a_question_mark(tmp_path: Path) -> None:
    atomic_write_json(tmp_path / "a.json", "\ud800é", ensure_ascii=False)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == "?é"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no file"),
        (b"{", "is damaged"),
        (b"\xff", "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b"[1]", "holds no JSON object"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\.json.*{words}|{words}.*a\.json"):
        read_json(path)
    with pytest.raises(DataError, match="write it again"):
        read_json(path, error=DataError, mend="write it again")


def test_a_file_that_need_not_be_there(tmp_path: Path) -> None:
    assert read_json(tmp_path / "gone", required=False) == {}
