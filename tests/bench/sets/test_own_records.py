"""One's own records: what is right, what is repeated, and what is left out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from abc_embed.bench.encoders.base import Encoder
from abc_embed.bench.sets.evaluation import measure
from abc_embed.bench.sets.own_records import read_own_records, repeated_message
from abc_embed.data import open_dataset
from abc_embed.errors import DataError, UsageError
from abc_embed.inputs import Item, Kind

NAMES = ["red", "green", "blue", "white"]
ROWS: list[dict[str, Any]] = [
    {"captions": ["a wall", "something red"]},
    {"captions": ["a wall."], "instructions": [("which colour?", "green", "colour")]},
    {"instructions": [("which colour?", "blue", "colour"), ("which shape?", "square", "shape")]},
    {"captions": ["nothing at all"], "instructions": [("which colour?", "white", "colour")]},
]


class Knows(Encoder):
    """Tells the colours, answers every question with the colour, and has a place for each text."""

    dim, name, library, fingerprint = 16, "knows", "fake", "0" * 64
    supported_kinds = frozenset(Kind)

    def _details(self) -> dict[str, Any]:
        return {"dtype": "float32", "device": "cpu", "prompt_hash": None}

    def _embed(self, items: list[Item]) -> np.ndarray:
        return np.eye(16, dtype=np.float32)[[self._place(item) for item in items]]

    def _place(self, item: Item) -> int:
        if item.image is None:
            texts = [*NAMES, "square", "a wall", "something red", "nothing at all"]
            return texts.index(str(item.text).rstrip("."))
        colour = int(np.asarray(Image.open(item.image))[0, 0, 0])  # type: ignore[arg-type]
        return colour if item.instruction else [6, 5, 9, 9][colour]


class TakesImages(Knows):
    supported_kinds = frozenset({Kind.IMAGE})


@pytest.fixture
def records(tmp_path: Path) -> Path:
    lines = []
    for number, row in enumerate(ROWS):
        colour = np.full((28, 28, 3), number, np.uint8)
        Image.fromarray(colour).save(tmp_path / f"{number}.png")
        asked = [
            {"instruction": words, "answer": answer, "kind": kind}
            for words, answer, kind in row.get("instructions", ())
        ]
        line = {"id": str(number), "image": f"{number}.png", "width": 28, "height": 28}
        captions = row.get("captions", [])
        lines.append(json.dumps({**line, "captions": captions, "instructions": asked}))
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_each_task_by_hand(records: Path) -> None:
    found = measure(Knows(), read_own_records(open_dataset(records)))
    scores = {name: (score["value"], score["of"]) for name, score in found["scores"].items()}
    # red has a caption of its own first, green the wall; the last image has no caption's place
    assert scores["image_to_caption_r1"] == (pytest.approx(2 / 3), 3)
    assert scores["instruction_to_answer_r1"] == (0.75, 4)
    assert scores["image_alone_to_answer_r1"] == (0.0, 4)
    kinds = {name: (kind["value"], kind["of"]) for name, kind in found["by_aspect"].items()}
    assert kinds == {"colour": (1.0, 3), "shape": (0.0, 1)}
    assert found["sizes"] == {
        "images": 4,
        "captions": 3,
        "captions_of_several_images": 1,
        "questions": 4,
        "answers": 4,
    }
    assert "1 caption stands at several images, and counts as right for each" in (
        repeated_message(found)
    )


def test_a_repeated_caption_counts_apart_where_that_is_meant(records: Path) -> None:
    read = read_own_records(open_dataset(records), repeated="apart")
    found = measure(Knows(), read)
    assert found["sizes"]["captions"] == 4
    assert found["scores"]["image_to_caption_r1"]["value"] == pytest.approx(1 / 3)  # the wall ties
    assert found["scores"]["image_to_caption_r5"]["value"] > 0.5
    assert "its own alone" in repeated_message(found)
    equal = measure(Knows(), read_own_records(open_dataset(records)))
    assert equal["benchmark_hash"] != found["benchmark_hash"]


def test_what_is_left_out_is_listed(records: Path) -> None:
    (records / "1.png").unlink()
    with (records / "records.jsonl").open("a") as file:
        file.write('{"id": "9"}\n')
    found = measure(Knows(), read_own_records(open_dataset(records)))
    assert found["missing"][0] == "1.png" and "records.jsonl:5" in found["missing"][1]
    assert str(records) not in json.dumps(found["missing"])
    assert found["sizes"]["images"] == 3 and not repeated_message(found)
    first = read_own_records(open_dataset(records), limit=1)
    assert (len(first.images), first.sizes["questions"]) == (1, 0)
    assert "instruction_to_answer_r1" not in measure(Knows(), first)["scores"]


def test_nothing_to_ask_is_one_sentence(records: Path) -> None:
    with pytest.raises(UsageError, match="a text, and knows takes only an image alone"):
        measure(TakesImages(), read_own_records(open_dataset(records)))
    for number in range(4):
        (records / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"no image with a caption or an instruction \(0\.png\)"):
        read_own_records(open_dataset(records))
