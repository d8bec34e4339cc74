"""Groups from a records file: the right ones, in an order that follows from seed and step alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from abc_embed.errors import ConfigError, DataError
from abc_embed.train.batches import Group, make_batch
from abc_embed.train.config import DataConfig
from abc_embed.train.sources import RecordSource


def record(i: int, folder: Path, **changes: Any) -> dict[str, Any]:
    """A line of a records file, and its image."""
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (56, 56), (20 * i, 0, 0)).save(folder / f"images/{i:06}.png")
    ask = {"kind": "place", "region": None}
    return {
        "id": f"r{i}",
        "image": f"images/{i:06}.png",
        "caption": f"caption {i}",
        "width": 56,
        "height": 56,
        "regions": [],
        "instructions": [
            ask
            | {"instruction": f"ask {j}?", "answer": f"answer {i} {j}", "paraphrases": [f"say {j}"]}
            for j in range(3)
        ],
        "negatives": [f"wrong {i} {j}" for j in range(5)],
        "source": "test",
        "license": "MIT",
        "meta": {},
    } | changes


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(rows: list[dict[str, Any]]) -> Path:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "records.jsonl").write_text(text, encoding="utf-8")
        return tmp_path

    return make


@pytest.fixture
def folder(write: Callable[..., Path], tmp_path: Path) -> Path:
    """Ten records that both stages can use."""
    return write([record(i, tmp_path) for i in range(10)])


def captions(groups: Any) -> list[str]:
    return [group.asks[0][1] for group in groups]


def flat(groups: Any) -> list[tuple[Any, ...]]:
    return [(str(group.image), group.asks, group.negatives) for group in groups]


def test_stage1_gets_captions_with_negatives_drawn_anew(folder: Path) -> None:
    source = RecordSource(folder, "pretrain", DataConfig(negatives=2))
    first, again = source.groups(0, 10, seed=0), source.groups(1, 10, seed=0)
    assert sorted(captions(first)) == sorted(captions(again)) == [f"caption {i}" for i in range(10)]
    assert captions(first) != captions(again)  # another order the second time through
    for group in first:
        number = captions([group])[0].split()[1]
        assert group.asks[0][0] is None and Path(str(group.image)).is_file()
        assert len(set(group.negatives)) == 2
        assert all(text.startswith(f"wrong {number} ") for text in group.negatives)
    by_image = {str(group.image): set(group.negatives) for group in first}
    assert any(by_image[str(group.image)] != set(group.negatives) for group in again)


def test_stage2_gets_several_instructions_of_an_image(folder: Path) -> None:
    source = RecordSource(folder / "records.jsonl", "instruct", DataConfig(instructions=2))
    wordings = set()
    for group in source.groups(0, 10, seed=0):
        assert len(group.asks) == 2 and len({answer for _, answer in group.asks}) == 2
        for instruction, answer in group.asks:
            assert instruction is not None and instruction.strip("?")[-1] == answer[-1]
            wordings.add(instruction.split()[0])
    assert wordings == {"ask", "say"}  # paraphrases take their turn


def test_every_record_comes_once_before_any_comes_twice(folder: Path) -> None:
    source = RecordSource(folder, "pretrain", DataConfig())
    seen = [text for step in range(5) for text in captions(source.groups(step, 4, seed=3))]
    assert sorted(seen[:10]) == sorted(seen[10:]) == [f"caption {i}" for i in range(10)]


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_a_step_follows_from_its_number_and_the_seed(folder: Path, stage: Any) -> None:
    def source() -> RecordSource:
        return RecordSource(folder, stage, DataConfig(negatives=2, instructions=2))

    one, other = source(), source()
    forward = [flat(one.groups(step, 3, seed=5)) for step in range(8)]
    backward = [flat(other.groups(step, 3, seed=5)) for step in reversed(range(8))]
    assert forward == backward[::-1]
    assert forward[0] != flat(one.groups(0, 3, seed=6))


def test_records_that_a_stage_cannot_use_are_left_out(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(
        [
            record(0, tmp_path, caption=None),
            record(1, tmp_path, instructions=[]),
            record(2, tmp_path),
        ]
    )
    assert len(RecordSource(path, "pretrain", DataConfig())) == 2
    assert len(RecordSource(path, "instruct", DataConfig())) == 2
    write([record(0, tmp_path, caption=None)])
    with pytest.raises(DataError, match="has no record with caption"):
        RecordSource(path, "pretrain", DataConfig())


def test_a_batch_larger_than_the_data_is_refused(folder: Path) -> None:
    source = RecordSource(folder, "pretrain", DataConfig())
    with pytest.raises(ConfigError, match=r"train\.batch_size is 11 but only 10 records"):
        source.groups(0, 11, seed=0)


def test_groups_become_a_batch(folder: Path, tiny: Any) -> None:
    _, processor = tiny()
    groups: list[Group] = list(
        RecordSource(folder, "instruct", DataConfig(instructions=3)).groups(0, 2, seed=0)
    )
    batch = make_batch(groups, processor)
    assert len(batch.queries) == 6 and len(batch.texts) == 6
