"""MMEB's layout, wording and scoring; zero-shot classification; several resolutions."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image
from table_encoder import TableEncoder, constant

from abc_embed.bench.encoders.base import Parts
from abc_embed.bench.sets import mmeb, sweep, zero_shot
from abc_embed.bench.sets.evaluation import EvaluationSet, measure
from abc_embed.errors import DataError, NotFiniteError, UsageError
from abc_embed.inputs import Item

ASK = "<|image_1|>\nRepresent the given image with the following question: {}\n"


def items(group: Sequence[Parts]) -> list[Item]:
    return [item for parts in group for item in parts]


def shade(image: Any) -> int:
    import io

    with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as picture:
        return int(np.asarray(picture)[0, 0, 0])


def knows(item: Item) -> Any:
    """Image of shade n, and any text that ends in n, have the same vector."""
    found = item.text or item.instruction
    number = shade(item.image) if item.image is not None else int(str(found).strip(".").split()[-1])
    return np.eye(8, dtype=np.float32)[number]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Three sets of two or three rows, in the hub's layout."""
    (tmp_path / "images" / "x").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"images/x/{number}.png")
    questions = [
        row(ASK.format(f"which? {n}"), f"x/{n}.png", [f"a {n}", "b 5", "c 6"]) for n in (1, 2)
    ]
    write(tmp_path / "GQA", questions)
    write(
        tmp_path / "SUN397",
        [
            row("<|image_1|>\nRepresent the given image for classification\n", f"x/{n}.png", labels)
            for n, labels in ((0, ["a 0", "a 1"]), (1, ["a 0", "a 1"]), (3, ["a 3", "a 3", "a 1"]))
        ],
    )
    write(
        tmp_path / "CIRR", [row("words 2", "", ["<|image_1|>\nsay 5", ""], ["x/2.png", "x/1.png"])]
    )
    return tmp_path


def row(
    words: str, image: str, targets: list[str], paths: list[str] | None = None
) -> dict[str, Any]:
    return {
        "qry_text": words,
        "qry_img_path": image,
        "tgt_text": targets,
        "tgt_img_path": paths or [""] * len(targets),
    }


def write(folder: Path, values: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    parquet.write_table(arrow.Table.from_pylist(values), folder / "test-00000-of-00001.parquet")


def accuracy(encoder: TableEncoder, task: EvaluationSet) -> float:
    value = measure(encoder, task)["scores"]["accuracy"]["value"]
    assert isinstance(value, float)
    return value


def test_the_sets_of_the_paper_are_there() -> None:
    means = {
        kind: np.mean([value for its, value in mmeb.PAPER.values() if its == kind])
        for kind in ("classification", "vqa")
    }
    assert len(mmeb.KINDS) == 36 and len(mmeb.PAPER) == 19
    assert means["classification"] == pytest.approx(60.0, abs=0.06)
    assert means["vqa"] == pytest.approx(31.0, abs=0.1)


def test_questions_are_worded_as_the_paper_has_them(copy: Path) -> None:
    assert mmeb.tasks_in(copy) == ["SUN397", "GQA", "CIRR"]
    task = mmeb.load_task(copy, "GQA")
    choices = task.tasks[""]
    assert [item.instruction for item in items(choices.queries)] == ["which? 1", "which? 2"]
    assert {item.text for item in items(choices.candidates)} == {"a 1", "a 2", "b 5", "c 6"}
    kept = mmeb.load_task(copy, "GQA", prefix=True)
    assert items(kept.tasks[""].queries)[0].instruction == f"{mmeb.VQA_PREFIX} which? 1"
    assert accuracy(TableEncoder(knows), task) == 1.0


def test_classes_are_asked_with_the_image_alone(copy: Path) -> None:
    task = mmeb.load_task(copy, "SUN397")
    choices = task.tasks[""]
    assert all(item.instruction is None and item.image for item in items(choices.queries))
    assert {i.text for i in items(choices.candidates)} == {
        f"A photo of a a {n}." for n in (0, 1, 3)
    }
    # The right one is first in the file, whatever is right: row 1 says "a 0" of shade 1.
    assert accuracy(TableEncoder(knows), task) == pytest.approx(2 / 3)
    # Equal candidates are one: they cannot tie with themselves.
    assert choices.among is not None and [len(own) for own in choices.among] == [2, 2, 2]


def test_the_place_of_the_right_one_tells_nothing(copy: Path) -> None:
    write(copy / "GQA", [row(ASK.format("1"), "x/1.png", [f"t {n}" for n in range(8)])] * 200)
    task = mmeb.load_task(copy, "GQA")
    choices = task.tasks[""]
    rows = zip(choices.among or (), choices.golds, strict=True)
    places = np.bincount([own.index(gold) for own, (gold,) in rows], minlength=8)
    assert places.min() > 8
    assert mmeb.load_task(copy, "GQA").tasks[""].among == choices.among
    assert accuracy(TableEncoder(constant), task) == 0.0


def test_what_is_not_finite_is_no_score(copy: Path) -> None:
    def broken(item: Item) -> Any:
        return np.full(8, np.nan, dtype=np.float32)

    with pytest.raises(NotFiniteError):
        measure(TableEncoder(broken), mmeb.load_task(copy, "GQA"))


def test_images_as_candidates_and_words_as_queries(copy: Path) -> None:
    task = mmeb.load_task(copy, "CIRR")
    choices = task.tasks[""]
    assert [(item.text, item.image) for item in items(choices.queries)] == [("words 2", None)]
    assert {item.instruction for item in items(choices.candidates)} == {"say 5", None}
    assert accuracy(TableEncoder(knows), task) == 1.0


def test_images_are_read_out_of_the_archive(copy: Path) -> None:
    plain = measure(TableEncoder(knows), mmeb.load_task(copy, "GQA"))
    with zipfile.ZipFile(copy / "images.zip", "w") as archive:
        for number in range(4):
            archive.write(copy / f"images/x/{number}.png", f"images/x/{number}.png")
    (copy / "images").rename(copy / "elsewhere")
    packed = measure(TableEncoder(knows), mmeb.load_task(copy, "GQA"))
    assert packed == plain


def test_a_missing_image_is_listed(copy: Path) -> None:
    (copy / "images/x/1.png").unlink()
    found = measure(TableEncoder(knows), mmeb.load_task(copy, "GQA"))
    assert (found["missing"], found["sizes"]["queries"]) == (["x/1.png"], 1)
    write(copy / "GQA", [row(ASK.format("1"), "../GQA/x.png", ["a 1", "a 2"])])
    with pytest.raises(DataError, match="none of the set's images is there"):
        measure(TableEncoder(knows), mmeb.load_task(copy, "GQA"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"qry_text": "no prefix"}, "row 0: qry_text does not begin with"),
        ({"tgt_text": []}, "row 0 has 0 texts"),
        ({"tgt_img_path": ["a"]}, "row 0 has 3 texts and 1 images"),
        ({"tgt_text": ["", "a", "b"]}, "neither words nor an image"),
    ],
)
def test_a_row_of_another_kind_is_named(copy: Path, changes: dict[str, Any], said: str) -> None:
    write(copy / "GQA", [row(ASK.format("1"), "x/1.png", ["a 1", "b 2", "c 3"]) | changes])
    with pytest.raises(DataError, match=said):
        mmeb.load_task(copy, "GQA")


def test_what_is_no_copy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no set of MMEB"):
        mmeb.tasks_in(tmp_path)
    with pytest.raises(UsageError, match="is no set of MMEB v1"):
        mmeb.load_task(tmp_path, "CIFAR")


def test_the_table_has_the_papers_column(copy: Path) -> None:
    found = [measure(TableEncoder(knows), mmeb.load_task(copy, name)) for name in ("GQA", "SUN397")]
    assert mmeb.table_rows(found) == [
        ("SUN397", "3", "66.7", "71.8"),
        ("mean of 1 (classification)", "", "66.7", ""),
        ("GQA", "2", "100.0", "60.1"),
        ("mean of 1 (vqa)", "", "100.0", ""),
    ]
    every = [found[0] | {"benchmark": f"mmeb-{name}"} for name in mmeb.PAPER]
    assert ("mean of 10 (vqa)", "", "100.0", "31.0") in mmeb.table_rows(every)


# -- zero-shot, and several resolutions ------------------------------------------------------------


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for name, shades in {"big_0": [0, 0, 1], "n1": [1]}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number, its in enumerate(shades):
            Image.new("RGB", (9, 9), (its, 0, 0)).save(tmp_path / f"photos/{name}/{number}.png")
    (tmp_path / "labels.json").write_text(json.dumps({"big_0": "cat 0", "n1": "dog 1"}))
    return tmp_path


def test_classes_of_a_folder(classes: Path) -> None:
    folder = zero_shot.load_image_folder(classes / "photos", classes / "labels.json")
    encoder = TableEncoder(knows)
    found = measure(encoder, folder)
    assert [item.text for item in encoder.calls[0] if item.text] == [
        "A photo of a cat 0.",
        "A photo of a dog 1.",
    ]
    assert found["scores"]["accuracy"]["value"] == 0.75
    assert found["scores"]["class_mean"]["value"] == pytest.approx((2 / 3 + 1) / 2)
    plain = zero_shot.load_image_folder(classes / "photos", template="{label}")
    assert [item.text for item in items(plain.tasks[""].candidates)] == ["big 0", "n1"]
    constant_one = measure(TableEncoder(constant), folder)
    assert constant_one["scores"]["accuracy"]["value"] == 0.0
    with pytest.raises(UsageError, match=r"has no \{label\}"):
        zero_shot.load_image_folder(classes / "photos", template="a photo")


def test_a_folder_that_is_not_one_of_classes(classes: Path) -> None:
    (classes / "photos/empty").mkdir()
    with pytest.raises(DataError, match="has no image"):
        zero_shot.load_image_folder(classes / "photos")
    with pytest.raises(DataError, match="no label for 'empty'"):
        zero_shot.load_image_folder(classes / "photos", classes / "labels.json")
    with pytest.raises(DataError, match="has 0 subfolders"):
        zero_shot.load_image_folder(classes / "photos/empty")


def test_a_sweep_measures_each_resolution_and_draws_it(classes: Path) -> None:
    folder = zero_shot.load_image_folder(classes / "photos", classes / "labels.json")
    encoder = TableEncoder(knows)
    found = sweep.sweep(encoder, [784, 3136], folder)
    assert [f["settings"]["max_pixels"] for f in found] == [784, 3136]
    assert encoder.areas == [784, 784, 3136, 3136]  # texts, and images
    assert all(f["images_per_s"] > 0 for f in found)
    sweep.draw(found, "accuracy", classes / "sweep.png")
    with Image.open(classes / "sweep.png") as drawn:
        assert drawn.size == (1080, 432)
        assert len(set(np.asarray(drawn.convert("L")).ravel().tolist())) > 20
    with pytest.raises(DataError, match="there is no score 'r1'"):
        sweep.draw(found, "r1", classes / "sweep.png")
