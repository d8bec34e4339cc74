"""Records: read as written, and every wrong line is named with file, line, field and mend."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from abc_embed.data.records import Instruction, Record, Region, read_records, write_records
from abc_embed.errors import DataError, OutputError

LEAST: dict[str, Any] = {"id": "a", "image": "images/a.png", "width": 100, "height": 80}
ASK = {"instruction": "what is left?", "answer": "a dog", "kind": "place"}
REGION = {"phrase": "a dog", "box": [0, 0, 10, 10]}

FULL = Record(
    id="ü-1",
    image="images/ü.png",
    width=100,
    height=80,
    caption="a dog … on the left\nof it",
    regions=(Region(phrase="a dog", box=(0, 0, 10, 80)), Region(phrase="x", box=(0.5, 1, 2, 3))),
    instructions=(
        Instruction(instruction="what?", answer="a dog", kind="place", paraphrases=("eh?",)),
        Instruction(instruction="what else?", answer="x", kind="mine", region=1),
    ),
    negatives=("a cat", "a cow"),
    source="here",
    license="MIT",
    meta={"a": [1, None, {"b": "c"}]},
)


def write(folder: Path, *rows: Any) -> Path:
    """A records file of JSON values, or of texts as they stand."""
    path = folder / "records.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    assert write_records(path, [FULL, Record(**LEAST)]) == 2
    assert list(read_records(path)) == list(read_records(tmp_path)) == [FULL, Record(**LEAST)]
    assert len(path.read_bytes().splitlines()) == 2


def test_equal_records_make_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_records(tmp_path / name, [FULL])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_least_that_is_a_record(tmp_path: Path) -> None:
    (record,) = read_records(write(tmp_path, LEAST))
    assert record.caption is None
    assert (record.regions, record.instructions, record.negatives) == ((), (), ())


def test_blank_lines_and_windows_line_ends_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path, "", json.dumps(LEAST) + "\r", "  ", LEAST | {"id": "b"}, "")
    assert [record.id for record in read_records(path)] == ["a", "b"]


WRONG = [
    ("{", "line is not JSON"),
    ("[1, 2]", "where an object"),
    ("null", "where an object"),
    ("[" * 100_000, "line is not JSON"),
    (json.dumps(LEAST)[:-1] + ', "meta": {"a": NaN}}', "line is not JSON"),
    *(
        ({k: v for k, v in LEAST.items() if k != name}, f"{name} is missing")
        for name in ("id", "image", "width", "height")
    ),
    (LEAST | {"captoin": "x"}, "there is no field 'captoin'; the fields are id, image"),
    (LEAST | {"id": ""}, "id is ''; give a text"),
    (LEAST | {"id": 7}, "id is 7; give a text"),
    (LEAST | {"image": "/etc/a.png"}, "give a path inside the folder"),
    (LEAST | {"image": "images/../../a.png"}, "give a path inside the folder"),
    (LEAST | {"image": "..\\a.png"}, "give a path inside the folder"),
    (LEAST | {"image": "https://example.com/a.png"}, "give a path inside the folder"),
    (LEAST | {"image": "C:\\a.png"}, "give a path inside the folder"),
    (LEAST | {"width": 0}, "width is 0; give the image's width in whole pixels"),
    (LEAST | {"height": 1.5}, "height is 1.5"),
    (LEAST | {"width": True}, "width is True"),
    (LEAST | {"width": None}, "width is None"),
    (LEAST | {"caption": "  "}, "caption is '  '; give a text"),
    (LEAST | {"caption": "half \ud800"}, "half a character"),
    (LEAST | {"negatives": "a cat"}, r"negatives is 'a cat'; give a list"),
    (LEAST | {"negatives": ["a cat", ""]}, r"negatives\[1\] is ''"),
    (LEAST | {"source": None}, "source is None; give a text"),
    (LEAST | {"meta": []}, r"meta is \[\]; give an object"),
    (LEAST | {"regions": {}}, r"regions is {}; give a list"),
    (LEAST | {"regions": [REGION, 3]}, r"regions\[1\]: found 3 where an object"),
    (LEAST | {"regions": [{"phrase": "x"}]}, r"regions\[0\]: box is missing"),
    (LEAST | {"regions": [REGION | {"phrase": None}]}, r"regions\[0\]: phrase is None"),
    (LEAST | {"regions": [REGION | {"box": 3}]}, r"regions\[0\]: box is 3; give a list"),
    (LEAST | {"regions": [REGION | {"box": [1, 2, 3]}]}, "give x, y, width and height"),
    (LEAST | {"regions": [REGION | {"box": [1, 2, 3, "4"]}]}, "give x, y, width and height"),
    (LEAST | {"regions": [REGION | {"box": [1, 2, 3, 10**400]}]}, "give x, y, width and height"),
    (LEAST | {"regions": [REGION | {"box": [1, 2, 3, 0]}]}, "must be above 0"),
    (LEAST | {"regions": [REGION, REGION | {"box": [91, 0, 10, 10]}]}, r"regions\[1\]: .*out of"),
    (LEAST | {"regions": [REGION | {"box": [-1, 0, 10, 10]}]}, r"out of the 100 x 80 image"),
    (LEAST | {"instructions": [ASK | {"answer": ""}]}, r"instructions\[0\]: answer is ''"),
    (LEAST | {"instructions": [ASK, {"answer": "x"}]}, r"instructions\[1\]: instruction is miss"),
    (LEAST | {"instructions": [ASK | {"paraphrases": [1]}]}, r"paraphrases\[0\] is 1"),
    (LEAST | {"instructions": [ASK | {"region": 0}]}, "region is 0 but there are 0 regions"),
    (LEAST | {"instructions": [ASK | {"region": -1}]}, r"region is -1; give a region's number"),
    (LEAST | {"instructions": [ASK | {"kinds": 1}]}, "there is no field 'kinds'"),
]


@pytest.mark.parametrize(("row", "words"), WRONG)
def test_a_wrong_line_is_named(tmp_path: Path, row: Any, words: str) -> None:
    path = write(tmp_path, LEAST | {"id": "before"}, "", row, LEAST | {"id": "after"})
    records = read_records(path)
    assert next(records).id == "before"  # what is good comes out before the error
    with pytest.raises(DataError, match=words) as caught:
        next(records)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert len(str(caught.value)) < len(str(path)) + 300  # a sentence, not the whole line
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(DataError, match=r"records\.jsonl:1: the line is not UTF-8"):
        list(read_records(path))


def test_a_cut_off_file(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST, LEAST | {"id": "b"})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r":2: .*the file may be cut off"):
        list(read_records(path))


def test_an_id_that_comes_twice(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST, LEAST | {"id": "b"}, LEAST)
    with pytest.raises(DataError, match=r":3: the id 'a' is that of line 1 too"):
        list(read_records(path))
    with pytest.raises(DataError, match="the id 'a' comes twice"):
        write_records(tmp_path / "out", [Record(**LEAST), Record(**LEAST)])
    assert not (tmp_path / "out").exists()


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*none\.jsonl; give a records file"):
        list(read_records(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"there is no .*records\.jsonl"):
        list(read_records(tmp_path))


def test_records_made_in_python_are_checked_too() -> None:
    with pytest.raises(DataError, match="width is 0"):
        Record(**(LEAST | {"width": 0}))
    with pytest.raises(DataError, match="give x, y, width and height"):
        Region(phrase="x", box=(0, 0, float("nan"), 1))


def test_a_writing_that_breaks_off_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, [FULL])
    before = path.read_bytes()

    def dying() -> Iterator[Record]:
        yield Record(**LEAST)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(path, dying())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["records.jsonl"]


@pytest.mark.parametrize("meta", [{"a": object()}, {"a": float("nan")}, {"a": "\ud800"}])
def test_what_json_cannot_hold(tmp_path: Path, meta: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="record 'a' cannot be written"):
        write_records(tmp_path / "out", [Record(**LEAST, meta=meta)])
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_records(tmp_path / "no" / "folder" / "records.jsonl", [FULL])
