"""Parquet out and back: what mining wrote, and what the published data set holds."""

import pickle
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from mining_parts import make, run, sampled

from abc_embed.data import open_dataset
from abc_embed.errors import DataError, UsageError
from abc_embed.mining.output import check_out, read_mined, write_mined


def write(path: Path, **columns: Any) -> Path:
    parquet.write_table(arrow.table(columns), path, row_group_size=2)
    return path


def test_columns_and_back(tmp_path: Path) -> None:
    folder = make(tmp_path, r1={"caption": None}, r4={"caption": "caption 0"})
    mined = run(folder, epsilon=1.0)
    write_mined(mined, folder / "mined.parquet")
    table = parquet.read_table(folder / "mined.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "row": "int64",
        "negatives": "list<element: int64>",
        "scores": "list<element: float>",
        "ranks": "list<element: int32>",
    }
    captions = [None if n < 0 else mined.corpus.captions[n] for n in mined.corpus.caption_of]
    found = sampled(mined)
    for line in table.to_pylist():
        texts = [captions[row] for row in line["negatives"]]
        assert texts == [mined.corpus.captions[c] for c in found[line["row"]]]
        assert line["scores"] == sorted(line["scores"], reverse=True)
        assert line["ranks"] == sorted(set(line["ranks"]))
        assert captions[line["row"]] not in texts
    back = read_mined(folder / "mined.parquet", rows=20)
    assert len(back) == 20
    assert back.of(1).tolist() == [] == back.of(20).tolist()
    assert {line["row"]: line["negatives"] for line in table.to_pylist()} == {
        row: back.of(row).tolist() for row in range(20) if row != 1
    }
    assert pickle.loads(pickle.dumps(back)).of(3).tolist() == back.of(3).tolist()


def test_the_published_column(tmp_path: Path) -> None:
    """No column `row`: lines are rows; several files; other columns; int32; nothing in one."""
    folder = tmp_path / "data"
    folder.mkdir()
    lists = arrow.array([[3, 1], [], None], arrow.list_(arrow.int32()))
    write(folder / "train-0.parquet", caption=["a", "b", "c"], negatives=lists)
    write(folder / "train-1.parquet", caption=["d"], negatives=arrow.array([[0, 2, 1]], lists.type))
    for rows in (None, 4):
        found = read_mined(folder, rows)
        assert [found.of(row).tolist() for row in range(4)] == [[3, 1], [], [], [0, 2, 1]]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"row": [0], "others": [[1]]}, "no column 'negatives'"),
        ({"row": [0], "negatives": [[7]]}, "names row 7 but there are 3 rows"),
        ({"row": [0], "negatives": [[-1]]}, "names row -1"),
        ({"row": [3], "negatives": [[1]]}, "names row 3 but"),
        ({"row": [1, 0], "negatives": [[1], [2]]}, "rows do not ascend"),
        ({"row": [1, 1], "negatives": [[0], [2]]}, "rows do not ascend"),
        ({"row": [0], "negatives": [["a text"]]}, "must be lists of row numbers"),
        ({"row": [0], "negatives": [1]}, "must be lists of row numbers"),
    ],
)
def test_refused(tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    path = write(tmp_path / "m.parquet", **columns)
    with pytest.raises(DataError, match=says):
        read_mined(path, rows=3)


def test_what_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").write_bytes(b"no table")
    for path in (tmp_path / "m.parquet", tmp_path / "gone.parquet"):
        with pytest.raises(DataError, match="is no whole Parquet file"):
            read_mined(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.parquet file"):
        read_mined(tmp_path / "empty")


def test_nothing_mined_at_all(tmp_path: Path) -> None:
    lists = arrow.array([], arrow.list_(arrow.int64()))
    path = write(tmp_path / "m.parquet", row=arrow.array([], arrow.int64()), negatives=lists)
    assert len(read_mined(path)) == 0
    assert [read_mined(path, 2).of(row).tolist() for row in (0, 1)] == [[], []]


def test_it_never_becomes_a_part_of_the_data_set(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    image = [{"bytes": b"", "path": "a.png"}]
    write(tmp_path / "part.parquet", caption=["a"], image=image)
    dataset = open_dataset(tmp_path)
    with pytest.raises(UsageError, match="would be a part of the data set"):
        check_out(dataset, tmp_path / "mined.parquet")
    check_out(dataset, tmp_path / "other" / "mined.parquet")
