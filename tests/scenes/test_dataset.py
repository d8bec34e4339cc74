"""A folder of scenes: the same bytes from the same seed, resumable, mirrors linked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from abc_embed.data.records import read_records
from abc_embed.errors import OutputError, UsageError
from abc_embed.scenes.dataset import negatives, write_dataset
from abc_embed.scenes.layout import Placed, Scene
from abc_embed.scenes.questions import caption, same_meaning
from abc_embed.scenes.things import THINGS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images."""
    out = tmp_path_factory.mktemp("scenes") / "set"
    write_dataset(out, 10, seed=5)
    return out


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_same_seed_makes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "again", 10, seed=5)
    assert path == tmp_path / "again" / "records.jsonl"
    assert content(tmp_path / "again") == content(folder)
    write_dataset(tmp_path / "other", 10, seed=6)
    assert content(tmp_path / "other") != content(folder)


def test_records_say_what_the_images_show(folder: Path) -> None:
    records = list(read_records(folder))
    assert len(records) == len({r.id for r in records}) == len({r.image for r in records}) == 10
    for record in records:
        with Image.open(folder / record.image) as picture:
            assert (picture.size, picture.mode) == ((record.width, record.height), "RGB")
            assert picture.size == (112, 112)
        assert record.caption and record.license == "MIT" and record.source
        assert len(record.instructions) >= 2 and 2 <= len(record.regions) <= 4
        for ask in record.instructions:
            if ask.region is not None:
                assert record.regions[ask.region].phrase == ask.answer
            assert ask.paraphrases
        for region in record.regions:
            assert region.phrase in record.caption


def test_mirrors_follow_and_name_each_other(folder: Path) -> None:
    records = list(read_records(folder))
    swapping = 0
    for straight, mirror in zip(records[::2], records[1::2], strict=True):
        assert (straight.meta["mirror"], mirror.meta["mirror"]) == (mirror.id, straight.id)
        assert (straight.meta["mirrored"], mirror.meta["mirrored"]) == (False, True)
        assert straight.meta["scene"] == mirror.meta["scene"]
        assert [r.phrase for r in straight.regions] == [r.phrase for r in mirror.regions]
        answers = {ask.instruction: ask.answer for ask in straight.instructions}
        after = {ask.instruction: ask.answer for ask in mirror.instructions}
        if "what is on the left?" in answers:
            assert answers["what is on the left?"] == after["what is on the right?"]
            swapping += answers["what is on the left?"] != after.get("what is on the left?")
    assert swapping >= 3


def test_an_odd_number_leaves_the_last_without_its_mirror(tmp_path: Path) -> None:
    *_, last = read_records(write_dataset(tmp_path / "odd", 3, seed=5))
    assert last.meta["mirror"] is None


def test_no_negative_is_true(folder: Path) -> None:
    mirrors = 0
    records = list(read_records(folder))
    captions = {record.id: record.caption or "" for record in records}
    for record in records:
        assert len(record.negatives) in (7, 8)
        for number, text in enumerate(record.negatives):
            for other in (captions[record.id], *record.negatives[:number]):
                assert not same_meaning(text, other)
        mirrors += captions[record.meta["mirror"]] == record.negatives[0]
    assert mirrors >= 6


def test_things_swapped_within_one_place_are_no_negative() -> None:
    placed = tuple(Placed(t, 0.2, 0.44 + 0.03 * i, 0.2) for i, t in enumerate(THINGS[:4]))
    scene = Scene(placed, "red", (200, 0, 0))
    for seed in range(10):
        for text in negatives(scene, np.random.default_rng(seed)):
            assert not same_meaning(text, caption(scene))


def test_held_out_worlds_have_their_own_ids(folder: Path, tmp_path: Path) -> None:
    held = list(read_records(write_dataset(tmp_path / "h", 4, seed=5, side=56, held_out=True)))
    assert not {r.id for r in held} & {r.id for r in read_records(folder)}
    assert all(r.meta["held_out"] and r.width == 56 for r in held)


def test_broken_off_it_looks_unfinished_and_goes_on(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"

    def stop(done: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(out, 10, seed=5, on_progress=stop)
    assert not (out / "records.jsonl").exists()
    assert not [name for name in content(out) if name.endswith(".part")]
    made = {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    assert len(made) == 6
    seen: list[int] = []
    write_dataset(out, 10, seed=5, on_progress=seen.append)
    assert content(out) == content(folder)
    assert seen == list(range(1, 11))
    assert {path: path.stat().st_mtime_ns for path in made} == made, "drawn again"


@pytest.mark.parametrize("changes", [{"seed": 6}, {"count": 12}, {"side": 84}, {"held_out": True}])
def test_another_set_is_not_mixed_in(folder: Path, changes: dict[str, Any]) -> None:
    before = content(folder)
    with pytest.raises(OutputError, match="holds other scenes; give another folder"):
        write_dataset(folder, **({"count": 10, "seed": 5} | changes))
    assert content(folder) == before


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="holds other files; give a new or an empty folder"):
        write_dataset(tmp_path, 2, seed=5)
    assert content(tmp_path) == {"mine.txt": b"keep"}
    with pytest.raises(OutputError, match="a file of that name"):
        write_dataset(tmp_path / "mine.txt", 2, seed=5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": 0}, "count is 0; give at least 1"),
        ({"seed": -1}, "seed is -1; give at least 0"),
        ({"side": 8}, "side is 8; give at least 32"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        write_dataset(tmp_path / "out", **({"count": 2, "seed": 5} | changes))
    assert not (tmp_path / "out").exists()
