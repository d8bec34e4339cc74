"""Large JSON comes back in pieces, is never whole in memory, and damage is named."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abc_embed.errors import DataError
from abc_embed.storage.json_stream import stream_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(values, max_size=6),
    st.dictionaries(st.text(), values, max_size=4),
    st.integers(1, 5),
)
def test_any_json_comes_back_in_pieces(
    tmp_path_factory: pytest.TempPathFactory,
    listed: list[Any],
    named: dict[str, Any],
    chunk_chars: int,
) -> None:
    """Read a few characters at a time, so that every value is broken somewhere."""
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(listed, indent=1))
    pieces = stream_json(path, chunk_chars=chunk_chars)
    assert [value for _, _, value in pieces] == listed
    expected = []
    for name, value in named.items():
        rows = enumerate(value) if isinstance(value, list) else [(0, value)]
        expected += [(name, number, row) for number, row in rows]
    path.write_text(json.dumps(named))
    assert list(stream_json(path, chunk_chars=chunk_chars)) == expected


def test_a_file_is_never_whole_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    path.write_text(json.dumps([{"number": i, "text": "x" * 90} for i in range(20_000)]))
    next(stream_json(path))  # what Python sets up once
    tracemalloc.start()
    numbers = sum(row["number"] for _, _, row in stream_json(path, chunk_chars=10_000))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert numbers == sum(range(20_000))
    assert most < path.stat().st_size / 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1}, {"b": ', "damaged at element 1 of the list"),
        ('[{"a": 1} {"b": 2}]', "damaged at element 0"),
        ('[{"a": 1}, {"b": nope, "c": "a long rest of the file"}]', "damaged at element 1"),
        ('{"images": [1, 2', "damaged at element 1 of images"),
        ('{"images": [1, 2]', "damaged"),
        ('{"images" [1]}', "damaged"),
        ('"text"', "no JSON list or object"),
        ("", "no JSON list or object"),
        ("[", "damaged at element 0"),
    ],
)
def test_damage_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "damaged.json"
    path.write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        list(stream_json(path))
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'["\xff"]')
    with pytest.raises(DataError, match="not UTF-8"):
        list(stream_json(tmp_path / "x.json"))
