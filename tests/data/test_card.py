"""The card of a data set: what it holds, how it was made, seeds, counts, licences, hashes."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published_sets import make_pretrain

from abc_embed.data import open_dataset
from abc_embed.data.card import card_text, write_card
from abc_embed.data.formats.convert import convert
from abc_embed.data.published.dataset import prepare
from abc_embed.data.published.verify import verify
from abc_embed.data.records import Record, read_records, write_records
from abc_embed.errors import DataError
from abc_embed.scenes.dataset import write_dataset


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    folder = tmp_path / "scenes"
    write_dataset(folder, 6, 5, side=48)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_file_whose_name_is_no_unicode(scenes: Path) -> None:
    (scenes / os.fsdecode(b"caf\xe9.txt")).write_text("a dog")
    _, card = write_card(scenes)
    assert "caf?.txt" in card.read_text(encoding="utf-8")


def test_drawn_scenes(scenes: Path) -> None:
    facts, path = write_card(scenes)
    records = list(read_records(scenes))
    (found,) = facts["records"]
    assert found["file"] == "records.jsonl"
    assert (found["rows"], found["images"], found["with_caption"]) == (6, 6, 6)
    assert found["negatives"] == sum(len(record.negatives) for record in records)
    assert found["instructions"] == sum(len(record.instructions) for record in records)
    assert sum(found["kinds_of_instruction"].values()) == found["instructions"]
    assert found["licenses"] == {"MIT": 6}
    assert found["sources"] == {"abc-embed scenes": 6}
    assert found["sides"] == {"least": 48, "most": 48}
    assert facts["seeds"] == {"scenes.json: seed": 5}
    lines = "".join(
        f"{hashlib.sha256((scenes / name).read_bytes()).hexdigest()}  {name}\n"
        for name in sorted(record.image for record in records)
    )
    assert found["images_sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    hashes = {file["name"]: file["sha256"] for file in facts["files"]}
    whole = (scenes / "records.jsonl").read_bytes()
    assert hashes["records.jsonl"] == hashlib.sha256(whole).hexdigest()
    text = path.read_text()
    assert "abc-embed scenes --count 6 --seed 5 --side 48 --out FOLDER" in text
    assert "Seeds: scenes.json: seed = 5." in text
    assert "Licenses: MIT (6)." in text
    assert json.loads((scenes / "card.json").read_text()) == facts


def test_equal_folders_get_equal_cards(scenes: Path) -> None:
    write_card(scenes)
    first = (scenes / "DATASET_CARD.md").read_bytes(), (scenes / "card.json").read_bytes()
    write_card(scenes)
    assert ((scenes / "DATASET_CARD.md").read_bytes(), (scenes / "card.json").read_bytes()) == first
    image = next(scenes.glob("images/*.png"))
    image.write_bytes(image.read_bytes() + b"!")
    write_card(scenes)
    assert (scenes / "card.json").read_bytes() != first[1], "a changed image changes the card"


def test_mined_files_beside_the_records(scenes: Path) -> None:
    records = list(read_records(scenes))
    write_records(scenes / "mined.jsonl", records[:3])
    (scenes / "rejects.jsonl").write_text('{"line": 3, "why": "no caption"}\n')
    table = pa.table({"row": [0, 1], "negatives": [[1, 2], [0]], "scores": [[0.5, 0.25], [0.125]]})
    notes = {"abc_embed": json.dumps({"epsilon": 0.95, "seed": 9}), "ARROW": "not json"}
    pq.write_table(table.replace_schema_metadata(notes), scenes / "mined.parquet")
    pq.write_table(pa.table({"vector": [[1.0]]}), scenes / "vectors.parquet")
    facts, path = write_card(scenes)
    assert [found["file"] for found in facts["records"]] == ["mined.jsonl", "records.jsonl"]
    assert facts["mined"] == [
        {
            "file": "mined.parquet",
            "rows": 2,
            "negatives": 3,
            "notes": {"abc_embed": {"epsilon": 0.95, "seed": 9}},
        }
    ]
    assert facts["seeds"] == {"scenes.json: seed": 5, "mined.parquet: abc_embed: seed": 9}
    text = path.read_text()
    assert "3 negatives for 2 rows." in text
    assert "| abc_embed.epsilon | 0.95 |" in text
    assert "rejects.jsonl" in text


def test_a_published_set(tmp_path: Path) -> None:
    make_pretrain(tmp_path)
    prepare(tmp_path)
    facts, path = write_card(tmp_path)
    found = facts["published"]
    assert (found["name"], found["rows"], found["images"]) == ("abc-pretrain", 20, 20)
    assert "complete" not in found
    assert "not checked" in path.read_text()
    verify(tmp_path)
    facts, path = write_card(tmp_path)
    assert facts["published"]["complete"] is True
    assert "yes, checked row by row" in path.read_text()
    assert len(facts["files"]) == 9


def test_many_licences_are_counted_not_listed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    rows = [
        Record(id=str(i), image="a.png", width=1, height=1, license=f"licence {i}")
        for i in range(25)
    ]
    write_records(tmp_path / "records.jsonl", rows)
    facts, _ = write_card(tmp_path)
    licences = facts["records"][0]["licenses"]
    assert len(licences) == 21
    assert licences["5 others"] == 5
    assert facts["records"][0]["images"] == 1


def test_what_cannot_be_described(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        write_card(tmp_path / "gone")
    with pytest.raises(DataError, match="holds neither records"):
        write_card(tmp_path)
    write_records(tmp_path / "r.jsonl", [Record(id="a", image="a.png", width=1, height=1)])
    with pytest.raises(DataError, match=r"record 'a': the image a\.png cannot be read"):
        write_card(tmp_path)
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(DataError, match=r"r\.jsonl:2: .* see all that is wrong with: abc-embed"):
        write_card(tmp_path)
    assert not (tmp_path / "DATASET_CARD.md").exists()


@pytest.mark.parametrize("form", ["parquet", "webdataset", "folder"])
def test_a_card_of_every_form_that_check_takes(tmp_path: Path, form: Any) -> None:
    write_dataset(tmp_path / "scenes", 4, seed=1)
    convert(open_dataset(tmp_path / "scenes"), tmp_path / "to", form)
    facts, path = write_card(tmp_path / "to")
    (records,) = facts["records"]
    assert (records["rows"], records["images"], records["captions"]) == (4, 4, 4)
    assert f"({form})" in records["file"] and "| rows | 4 |" in path.read_text()
    if form == "parquet":
        (file,) = (tmp_path / "to").glob("*.parquet")
        assert write_card(file)[1] == path


def test_no_value_breaks_the_table() -> None:
    facts = {
        "name": "x",
        "card_of": "abc-embed 0",
        "published": None,
        "records": [],
        "mined": [],
        "notes": {"a.json": {"b": "one | two\n<three>", "c": {"d": 12345}}},
        "seeds": {},
        "files": [],
    }
    text = card_text(facts)
    assert "| b | one \\| two &lt;three> |" in text
    assert "| c.d | 12,345 |" in text
