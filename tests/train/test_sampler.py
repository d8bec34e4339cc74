"""Groups from a records file: the right ones, in an order that follows from seed and step alone."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from published_sets import make_pretrain, make_vg

from abc_embed.data.published.dataset import prepare
from abc_embed.data.published.verify import verify
from abc_embed.errors import ConfigError, DataError
from abc_embed.train.batches import Group, make_batch
from abc_embed.train.config import DataConfig
from abc_embed.train.sampler import RecordSampler


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
    return [group.pairs[0][1] for group in groups]


def flat(groups: Any) -> list[tuple[Any, ...]]:
    return [(str(group.image), group.pairs, group.negatives) for group in groups]


def test_stage1_gets_captions_with_negatives_drawn_anew(folder: Path) -> None:
    sampler = RecordSampler(folder, "pretrain", DataConfig(negatives=2))
    first, again = sampler.groups(0, 10, seed=0), sampler.groups(1, 10, seed=0)
    assert sorted(captions(first)) == sorted(captions(again)) == [f"caption {i}" for i in range(10)]
    assert captions(first) != captions(again)  # another order the second time through
    for group in first:
        number = captions([group])[0].split()[1]
        assert group.pairs[0][0] is None and Path(str(group.image)).is_file()
        assert len(set(group.negatives)) == 2
        assert all(text.startswith(f"wrong {number} ") for text in group.negatives)
    by_image = {str(group.image): set(group.negatives) for group in first}
    assert any(by_image[str(group.image)] != set(group.negatives) for group in again)


def test_stage2_gets_several_instructions_of_an_image(folder: Path) -> None:
    sampler = RecordSampler(folder / "records.jsonl", "instruct", DataConfig(instructions=2))
    wordings = set()
    for group in sampler.groups(0, 10, seed=0):
        assert len(group.pairs) == 2 and len({answer for _, answer in group.pairs}) == 2
        for instruction, answer in group.pairs:
            assert instruction is not None and instruction.strip("?")[-1] == answer[-1]
            wordings.add(instruction.split()[0])
    assert wordings == {"ask", "say"}  # paraphrases take their turn


def test_every_record_comes_once_before_any_comes_twice(folder: Path) -> None:
    sampler = RecordSampler(folder, "pretrain", DataConfig())
    seen = [text for step in range(5) for text in captions(sampler.groups(step, 4, seed=3))]
    assert sorted(seen[:10]) == sorted(seen[10:]) == [f"caption {i}" for i in range(10)]


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_a_step_follows_from_its_number_and_the_seed(folder: Path, stage: Any) -> None:
    def sampler() -> RecordSampler:
        return RecordSampler(folder, stage, DataConfig(negatives=2, instructions=2))

    one, other = sampler(), sampler()
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
    assert len(RecordSampler(path, "pretrain", DataConfig())) == 2
    assert len(RecordSampler(path, "instruct", DataConfig())) == 2
    write([record(0, tmp_path, caption=None)])
    with pytest.raises(DataError, match="has no record with caption"):
        RecordSampler(path, "pretrain", DataConfig())


def test_a_batch_larger_than_the_data_is_refused(folder: Path) -> None:
    sampler = RecordSampler(folder, "pretrain", DataConfig())
    with pytest.raises(ConfigError, match=r"train\.batch_size is 11 but only 10 records"):
        sampler.groups(0, 11, seed=0)


def test_groups_become_a_batch(folder: Path, tiny: Any) -> None:
    _, processor = tiny()
    groups: list[Group] = list(
        RecordSampler(folder, "instruct", DataConfig(instructions=3)).groups(0, 2, seed=0)
    )
    batch = make_batch(groups, processor)
    assert len(batch.queries) == 6 and len(batch.texts) == 6


def test_mined_negatives_take_the_place_of_the_records_own(folder: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    mined = tmp_path / "mined.parquet"
    lists = {"row": [0, 2], "negatives": [[5, 6, 7], [1]]}
    parquet.write_table(pyarrow.table(lists), mined)
    sampler = RecordSampler(folder, "pretrain", DataConfig(negatives=2, negatives_file=str(mined)))
    found = {captions([group])[0]: set(group.negatives) for group in sampler.groups(0, 10, seed=0)}
    assert len(found["caption 0"]) == 2
    assert found["caption 0"] < {"caption 5", "caption 6", "caption 7"}
    assert found["caption 2"] == {"caption 1"} and found["caption 4"] == set()
    again = pickle.loads(pickle.dumps(sampler))
    assert flat(again.groups(0, 10, 0)) == flat(sampler.groups(0, 10, 0))

    parquet.write_table(pyarrow.table({"row": [0], "negatives": [[10]]}), mined)
    with pytest.raises(DataError, match="names row 10 but there are 10 rows"):
        RecordSampler(folder, "pretrain", DataConfig(negatives_file=str(mined)))


def test_a_mined_row_without_a_caption_is_named(write: Callable[..., Path], tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    path = write([record(0, tmp_path), record(1, tmp_path, caption=None)])
    mined = tmp_path / "mined.parquet"
    parquet.write_table(pyarrow.table({"row": [0], "negatives": [[1]]}), mined)
    sampler = RecordSampler(path, "pretrain", DataConfig(negatives_file=str(mined)))
    with pytest.raises(DataError, match=r"names row 1 of \S+, which has no caption"):
        list(sampler.groups(0, 1, seed=0))


def test_records_are_read_when_their_turn_comes(folder: Path) -> None:
    """Nothing of a record stays in memory; a line that was changed since is then a plain error."""
    sampler = RecordSampler(folder, "pretrain", DataConfig(on_error="raise"))
    groups = sampler.groups(0, 10, seed=0)
    text = (folder / "records.jsonl").read_text()
    (folder / "records.jsonl").write_text(text.replace("caption 3", "CAPTION 3"))
    assert "CAPTION 3" in captions(groups)
    (folder / "records.jsonl").write_text("x" * len(text))
    with pytest.raises(DataError, match=r"records\.jsonl:\d+: the line is not JSON"):
        list(groups)


def test_a_folder_of_images_with_captions_is_enough(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (56, 56), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"shade {i}")
    sampler = RecordSampler(tmp_path, "pretrain", DataConfig())
    assert sorted(captions(sampler.groups(0, 3, seed=0))) == ["shade 0", "shade 1", "shade 2"]


def test_a_published_set_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="abc-embed data fetch"):
        RecordSampler(f"abc-pretrain:{tmp_path / 'gone'}", "pretrain", DataConfig())


def test_published_sets_give_groups_like_any_other(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    images = {
        "pretrain": make_pretrain(tmp_path / "abc-pretrain"),
        "instruct": make_vg(tmp_path / "abc-vg-instruct"),
    }
    for name, stage in (("abc-pretrain", "pretrain"), ("abc-vg-instruct", "instruct")):
        folder = tmp_path / name
        prepare(folder)
        verify(folder)
        sampler = RecordSampler(f"{name}:{folder}", stage, DataConfig(negatives=2, instructions=3))
        groups = list(pickle.loads(pickle.dumps(sampler)).groups(0, 6, seed=0))
        assert all(group.image in images[stage] for group in groups)
        for group in groups:
            number = images[stage].index(group.image)
            if stage == "pretrain":
                assert group.pairs == ((None, f"caption {number}"),)
                following = {f"caption {(number + k) % 20}" for k in (1, 2, 3)}
                assert len(set(group.negatives)) == 2 and set(group.negatives) < following
            else:
                assert len({answer for _, answer in group.pairs}) == 3
                assert all(answer.endswith(f" of {number}") for _, answer in group.pairs)


def test_one_of_several_captions_is_drawn_and_the_others_are_no_negatives(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    several = [f"caption 0, said {n}" for n in range(3)]
    path = write([record(0, tmp_path, caption=several[0], captions=several), record(1, tmp_path)])
    sampler = RecordSampler(path, "pretrain", DataConfig(negatives=2))
    drawn = set()
    for step in range(20):
        for group in sampler.groups(step, 2, seed=0):
            own = captions([group])[0]
            if own == "caption 1":
                assert group.also_right == ()
            else:
                drawn.add(own)
                assert {own, *group.also_right} == set(several)
    assert drawn == set(several)
    again = RecordSampler(path, "pretrain", DataConfig(negatives=2))
    assert flat(again.groups(3, 2, seed=0)) == flat(sampler.groups(3, 2, seed=0))
