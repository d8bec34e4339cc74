"""A CtrlBench folder: read strictly, written the same each time, and one hash for its content."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abc_embed.bench.ctrlbench.schema import (
    Benchmark,
    Caption,
    Picture,
    Query,
    normalize_text,
    read_benchmark,
    write_benchmark,
)
from abc_embed.errors import DataError

FILES = ("images.jsonl", "corpus.jsonl", "queries.jsonl", "card.json")


def write(folder: Path) -> Benchmark:
    """Two pictures, each other's mirror, with two questions each."""
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for name, other in (("a", "b"), ("b", "a")):
        (folder / f"{name}.png").write_bytes(name.encode())
        digest = hashlib.sha256(name.encode()).hexdigest()
        images.append(Picture(image_id=name, file=f"{name}.png", sha256=digest, mirror=other))
    queries = [
        Query(
            query_id=f"{image}{cap}",
            image_id=image,
            tier="B",
            aspect="place:left",
            instruction="what is on the left?",
            positives=(cap,),
            same_image=("dog", "cat"),
        )
        for image, cap in (("a", "dog"), ("b", "cat"))
    ]
    corpus = [Caption(cap_id="dog", text="a dog"), Caption(cap_id="cat", text="a cat")]
    return write_benchmark(
        folder, images=images, corpus=corpus, queries=queries, card={"name": "mine"}
    )


def change(path: Path, line: int, **values: Any) -> None:
    """Change fields of a row, counted from 1; None takes the field out."""
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    rows[line - 1].update(values)
    rows[line - 1] = {key: value for key, value in rows[line - 1].items() if value is not None}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_written_and_read_again(tmp_path: Path) -> None:
    made = write(tmp_path / "one")
    assert read_benchmark(tmp_path / "one") == made
    assert (made.name, made.tiers, made.missing) == ("mine", ("B",), ())
    assert made.card["counts"] == {"images": 2, "captions": 2, "queries": 2}
    assert made.card["content_hash"] == made.content_hash()
    again = write(tmp_path / "two")
    assert again.content_hash() == made.content_hash()
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    (row,) = (tmp_path / "one" / "queries.jsonl").read_text().splitlines()[:1]
    fields = "query_id image_id tier aspect instruction positives same_image paraphrases"
    assert set(json.loads(row)) == set(fields.split())


@pytest.mark.parametrize(
    ("file", "line", "values", "words"),
    [
        ("images.jsonl", 1, {"sha256": "0" * 64}, r"images\.jsonl:1: a\.png has other bytes"),
        ("images.jsonl", 1, {"sha256": "abc"}, r"images\.jsonl:1: sha256 is no SHA-256"),
        ("images.jsonl", 2, {"file": "../b.png"}, r"images\.jsonl:2: image is .*inside the folder"),
        ("images.jsonl", 2, {"mirror": "c"}, r"images\.jsonl:1: mirror is 'b', which is no"),
        ("images.jsonl", 2, {"image_id": "a"}, r"images\.jsonl:2: the id 'a' is that of line 1"),
        ("images.jsonl", 1, {"colour": "red"}, r"images\.jsonl:1: there is no field 'colour'"),
        ("images.jsonl", 1, {"group": 3}, r"images\.jsonl:1: group is no text"),
        ("corpus.jsonl", 2, {"text": " A  DOG."}, r"corpus\.jsonl:2: the text ' A  DOG\.' is that"),
        ("corpus.jsonl", 2, {"text": None}, r"corpus\.jsonl:2: text is missing"),
        ("corpus.jsonl", 1, {"text": "  "}, r"corpus\.jsonl:1: text is '  '; give a text"),
        ("queries.jsonl", 1, {"image_id": "z"}, r"queries\.jsonl:1: the image_id 'z' is not in"),
        ("queries.jsonl", 2, {"positives": []}, r"queries\.jsonl:2: positives is empty"),
        ("queries.jsonl", 2, {"positives": ["x"]}, r"queries\.jsonl:2: the positive 'x' is not in"),
        ("queries.jsonl", 2, {"same_image": ["cat", "x"]}, r"queries\.jsonl:2: the caption 'x' is"),
        ("queries.jsonl", 2, {"same_image": ["cat", "cat"]}, r"queries\.jsonl:2: same_image names"),
        (
            "queries.jsonl",
            1,
            {"paraphrases": "what?"},
            r"queries\.jsonl:1: paraphrases is 'what\?'",
        ),
        ("queries.jsonl", 1, {"tier": ""}, r"queries\.jsonl:1: tier is ''"),
    ],
)
def test_a_wrong_row_is_named_with_its_mend(
    tmp_path: Path, file: str, line: int, values: dict[str, Any], words: str
) -> None:
    write(tmp_path)
    change(tmp_path / file, line, **values)
    with pytest.raises(DataError, match=words):
        read_benchmark(tmp_path)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "corpus.jsonl").unlink(), r"there is no .*corpus\.jsonl; give"),
        (lambda folder: (folder / "corpus.jsonl").write_text(""), r"corpus\.jsonl has no rows"),
        (lambda folder: (folder / "corpus.jsonl").write_text("{"), r"corpus\.jsonl:1: the line is"),
        (lambda folder: (folder / "card.json").unlink(), "half written"),
        (lambda folder: (folder / "card.json").write_text("[]"), "holds no JSON object"),
        (lambda folder: (folder / "card.json").write_text("{"), "card.json is damaged"),
        (
            lambda folder: change(folder / "corpus.jsonl", 1, text="a wolf"),
            r"card\.json: the rows are not those",
        ),
    ],
)
def test_a_damaged_folder(tmp_path: Path, harm: Callable[[Path], Any], words: str) -> None:
    write(tmp_path)
    harm(tmp_path)
    with pytest.raises(DataError, match=words):
        read_benchmark(tmp_path)


def test_a_missing_picture_is_listed(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "b.png").unlink()
    assert read_benchmark(tmp_path).missing == ("b.png",)


def test_the_hash_is_that_of_the_content(tmp_path: Path) -> None:
    made = write(tmp_path)
    (tmp_path / "card.json").write_text('{"name": "other"}')
    assert read_benchmark(tmp_path).content_hash() == made.content_hash()
    change(tmp_path / "queries.jsonl", 1, instruction="which is on the left?")
    assert read_benchmark(tmp_path).content_hash() != made.content_hash()


@pytest.mark.parametrize("text", ["A dog", " a  dog", "a dog.", "a\tdog", "ａ dog"])  # noqa: RUF001
def test_what_does_not_make_it_another_text(text: str) -> None:
    assert normalize_text(text) == "a dog"
    assert normalize_text("two dogs") != "a dog"
