"""What one modality alone solves: counted by hand on sets made for it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from abc_embed import Item
from abc_embed.bench import audit as audit_table
from abc_embed.bench import metrics
from abc_embed.bench.audit import AuditSet, audit, read_audit_set, solved_questions
from abc_embed.bench.ctrlbench.unseen_scenes import generate, split_mirrors
from abc_embed.bench.encoders.base import Encoder
from abc_embed.bench.encoders.wrapped import RandomEncoder
from abc_embed.data import open_dataset
from abc_embed.data.formats.convert import convert
from abc_embed.data.records import Instruction, Record, write_records
from abc_embed.errors import DataError, NotFiniteError, UsageError
from abc_embed.inputs import Kind

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


class Told(Encoder):
    """Gives what it was told: for each (colour, words) the texts to be near, and how near.

    A picture alone is (colour, None), words alone are (None, words); every text has an axis.
    """

    def __init__(
        self,
        texts: Sequence[str],
        near: Mapping[tuple[str | None, str | None], Mapping[str, float]],
        kinds: frozenset[Kind] = frozenset(Kind),
    ) -> None:
        self.name, self.supported_kinds, self.dim = "told", kinds, len(texts) + 1
        self.library = "told"
        self._axis = {text: n for n, text in enumerate(texts)}
        self._near = near
        self.calls: list[int] = []

    @property
    def fingerprint(self) -> str:
        return "f" * 64

    def _embed(self, items: list[Item], *_: Any) -> np.ndarray:
        self.calls.append(len(items))
        rows = np.stack([self._row(item) for item in items])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def _row(self, item: Item) -> np.ndarray:
        row = np.zeros(self.dim)
        if item.text in self._axis:
            row[self._axis[str(item.text)]] = 1
            return row
        colour = None
        if item.image is not None:
            with Image.open(item.image) as picture:  # type: ignore[arg-type]
                pixel = picture.getpixel((0, 0))
            colour = next(name for name, value in COLOURS.items() if value == pixel)
        words = item.text or item.instruction
        for text, weight in self._near.get((colour, words), {}).items():
            row[self._axis[text]] = weight
        row[-1] = 1e-3 if row.any() else 1.0
        return row

    def _details(self) -> dict[str, Any]:
        return {"dtype": "float32"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in COLOURS.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    return tmp_path


def lines(folder: Path, *rows: Any, name: str = "set.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(colour: str, words: str, answer: Any, *candidates: str) -> dict[str, Any]:
    made = {"image": f"{colour}.png", "instruction": words, "answer": answer}
    return {**made, "candidates": list(candidates)} if candidates else made


# -- counting --------------------------------------------------------------------------------------

NEAR = {
    ("red", None): {"a dog": 1.0, "a cat": 0.6},
    ("blue", None): {"a cow": 1.0, "a hen": 0.6},
    (None, "which bird?"): {"a hen": 1.0},
    ("red", "left?"): {"a dog": 1.0},
    ("red", "right?"): {"a cat": 1.0},
    ("blue", "left?"): {"a hen": 1.0},
    ("blue", "which bird?"): {"a dog": 1.0},
}
TEXTS = ("a dog", "a cat", "a hen", "a cow")


@pytest.fixture
def four(folder: Path) -> AuditSet:
    path = lines(
        folder,
        row("red", "left?", "a dog"),  # the picture alone, the sum, and both
        row("red", "right?", "a cat"),  # both together only
        row("blue", "which bird?", "a hen"),  # the words alone and the sum; both are wrong
        row("blue", "left?", "a cow"),  # the picture alone and the sum; both are wrong
    )
    return read_audit_set(path)


def test_every_way_is_counted(four: AuditSet) -> None:
    found = solved_questions(Told(TEXTS, NEAR), four)
    assert {way: hits.tolist() for way, hits in found.items()} == {
        "image": [True, False, False, True],
        "words": [False, False, True, False],
        "sum": [True, False, True, True],
        "both": [True, True, False, False],
        "any": [True, False, True, True],
        "only together": [False, True, False, False],
    }


def test_what_a_model_does_not_take_is_left_out(four: AuditSet) -> None:
    def ways(*kinds: Kind) -> set[str]:
        return set(solved_questions(Told(TEXTS, NEAR, frozenset(kinds)), four))

    assert ways(Kind.TEXT) == {"words", "any"}
    assert ways(Kind.TEXT, Kind.IMAGE) == {"image", "words", "sum", "any"}
    assert ways(Kind.TEXT, Kind.INSTRUCTED) == {"words", "both", "any", "only together"}
    with pytest.raises(UsageError, match="does not embed texts"):
        ways(Kind.IMAGE, Kind.INSTRUCTED)


def test_a_tie_counts_against_the_model(folder: Path) -> None:
    """A constant encoder solves nothing, whatever the order of the candidates."""
    asked = read_audit_set(lines(folder, row("red", "left?", "a dog", "a dog", "a cat", "a hen")))
    constant = Told(TEXTS, {})
    assert not any(hits.any() for hits in solved_questions(constant, asked).values())
    near = {("red", "left?"): {"a dog": 1.0, "a cat": 1.0}}
    assert not solved_questions(Told(TEXTS, near), asked)["both"].any()


def test_a_question_chooses_among_its_own_candidates(folder: Path) -> None:
    near = {("red", "left?"): {"a dog": 1.0, "a cat": 0.9, "a hen": 0.8}}
    rows = [
        row("red", "left?", "a cat", "a hen", "a cat"),
        row("red", "left?", "a cat", "a hen", "a cat", "a dog"),
        row("red", "left?", ["a cat", "a dog"], "a hen", "a cat", "a dog"),
        row("red", "left?", "a cat"),
    ]
    asked = read_audit_set(lines(folder, *rows))
    assert solved_questions(Told(TEXTS, near), asked)["both"].tolist() == [True, False, True, False]
    assert asked.chance() == pytest.approx((1 / 2 + 1 / 3 + 2 / 3 + 1 / 3) / 4)


def test_scores_in_parts_are_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    texts = [f"text {n}" for n in range(40)]
    rows = [row("red", f"ask {n}?", str(rng.choice(texts))) for n in range(40)]
    asked = read_audit_set(lines(folder, *rows))
    whole = solved_questions(RandomEncoder(8), asked)
    monkeypatch.setattr(metrics, "BLOCK", 7)
    parts = solved_questions(RandomEncoder(8), asked)
    assert all(np.array_equal(whole[way], parts[way]) for way in whole)
    assert whole["any"].any()


def test_a_kind_at_chance_is_said(folder: Path) -> None:
    """Colours are told, shapes are not: half of the questions is right all the same."""
    near = {(colour, "which colour?"): {colour: 1.0} for colour in COLOURS}
    near |= {(colour, "which shape?"): {"a disc": 1.0} for colour in COLOURS}
    shapes = {"red": "a disc", "blue": "a box"}
    rows = [
        row(colour, words, answer) | {"kind": words.split()[1].strip("?")}
        for colour in COLOURS
        for words, answer in (("which colour?", colour), ("which shape?", shapes[colour]))
    ]
    asked = read_audit_set(lines(folder, *rows * 20))
    found = audit([Told(("red", "blue", *shapes.values()), near)], asked)
    assert {kind: figure["value"] for kind, figure in found["models"][0]["kinds"].items()} == {
        "colour": 1.0,
        "shape": 0.5,
    }
    assert [line[3] for line in audit_table.kind_rows(found)] == ["", "0.500"]
    assert [text.partition(":")[2][:24] for text in audit_table.warnings(found)] == [
        " 'shape' is at chance: R"
    ]
    assert "Warning: told: 'shape' is at chance" in audit_table.markdown(found)
    assert not audit_table.kind_rows(
        audit([Told(TEXTS, NEAR)], read_audit_set(lines(folder, row("red", "left?", "a dog"))))
    )


def test_one_call_per_model(four: AuditSet) -> None:
    """So that a model of ours encodes each picture once, and each text."""
    told = Told(TEXTS, NEAR)
    solved_questions(told, four)
    assert told.calls == [4 - 1 + 1 + 3 + 2 + 4]  # texts, words, pictures, both together


def test_a_vector_that_is_no_number_is_no_score(four: AuditSet) -> None:
    class Broken(Told):
        def _embed(self, items: list[Item], *_: Any) -> np.ndarray:
            return super()._embed(items) * np.nan

    with pytest.raises(NotFiniteError):
        solved_questions(Broken(TEXTS, NEAR), four)


# -- the whole audit -------------------------------------------------------------------------------


def test_the_findings_hold_what_they_hang_on(four: AuditSet) -> None:
    other = Told(TEXTS, {(None, "right?"): {"a cat": 1.0}}, frozenset({Kind.TEXT}))
    found = audit([Told(TEXTS, NEAR), other], four)
    first, second = (row["shares"] for row in found["models"])
    assert first["image"]["value"] == 0.5 and first["any"]["value"] == 0.75
    assert first["only together"]["value"] == 0.25
    assert second["words"]["value"] == 0.25 and "both" not in second
    assert found["panel"]["value"] == 1.0  # what the one misses, the other has
    low, high = first["image"]["interval"]
    assert low <= 0.5 <= high
    assert found["sizes"] == {"questions": 4, "images": 2, "texts": 4, "left_out": 0}
    assert found["chance"] == 0.25
    assert found["set_hash"] == four.content_hash() and "torch" in found["versions"]
    json.dumps(found, allow_nan=False)
    with pytest.raises(UsageError, match="at least one model"):
        audit([], four)


def test_intervals_are_by_picture(folder: Path) -> None:
    """Twenty questions about two pictures are two draws, not twenty."""
    rows = [row(c, f"{n}?", "a dog", "a dog", "a cat") for c in ("red", "blue") for n in range(10)]
    told = Told(TEXTS, {("red", None): {"a dog": 1.0}})
    shares = audit([told], read_audit_set(lines(folder, *rows)))["models"][0]["shares"]
    assert shares["image"] == {"value": 0.5, "interval": (0.0, 1.0)}


def test_tables_and_picture(four: AuditSet, tmp_path: Path) -> None:
    other = Told(TEXTS, {}, frozenset({Kind.TEXT}))
    found = audit([Told(TEXTS, NEAR), other], four)
    rows = audit_table.rows(found)
    assert [row[0] for row in rows] == ["told", "told", "any model of the panel"]
    assert rows[0][1].startswith("0.500 (") and rows[1][1] == "–"
    assert all(len(row) == len(audit_table.HEAD) for row in rows)
    assert len(audit_table.rows(audit([other], four))) == 1
    text = audit_table.markdown(found)
    assert "4 questions about 2 pictures, 4 texts; guessing solves 0.250" in text
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 5
    audit_table.draw_bars(found, tmp_path / "audit.png")
    with Image.open(tmp_path / "audit.png") as picture:
        assert picture.size[0] > 900


# -- sets ------------------------------------------------------------------------------------------


def test_missing_pictures_are_named_and_counted(folder: Path) -> None:
    path = lines(
        folder,
        row("gone", "left?", "a dog"),
        row("red", "left?", "a cat"),
        row("gone", "right?", "a hen"),
    )
    asked = read_audit_set(path)
    assert (asked.missing, asked.left_out) == (("gone.png",), 2)
    assert len(asked.questions) == 1 and len(asked.images) == 1
    assert asked.texts == ("a dog", "a cat", "a hen")  # the choice stays as hard as it was
    found = audit([RandomEncoder(8)], asked)
    assert "for want of their pictures: 2; pictures missing: 1, gone.png" in (
        audit_table.summary(found)
    )
    (folder / "red.png").unlink()
    with pytest.raises(DataError, match=r"no picture \(gone.png"):
        read_audit_set(path)


def test_a_limit_keeps_the_candidates(folder: Path) -> None:
    path = lines(folder, *(row("red", f"{n}?", f"text {n}") for n in range(5)))
    asked = read_audit_set(path, limit=2)
    assert [q.instruction for q in asked.questions] == ["0?", "1?"] and len(asked.texts) == 5
    assert asked.content_hash() != read_audit_set(path).content_hash()


def test_content_decides_the_hash(folder: Path) -> None:
    path = lines(folder, row("red", "left?", "a dog"), row("red", "right?", "a cat"))
    before = read_audit_set(path).content_hash()
    copied = folder / "copy"
    copied.mkdir()
    for name in ("red.png", "set.jsonl"):
        (copied / name).write_bytes((folder / name).read_bytes())
    assert read_audit_set(copied / "set.jsonl").content_hash() == before
    Image.new("RGB", (8, 8), "green").save(folder / "red.png")
    assert read_audit_set(path).content_hash() != before


def test_records_are_a_set(folder: Path) -> None:
    def ask(words: str, answer: str) -> Instruction:
        return Instruction(instruction=words, answer=answer, kind="place")

    write_records(
        folder / "records.jsonl",
        [
            Record(
                id=colour,
                image=f"{colour}.png",
                width=8,
                height=8,
                instructions=(ask("left?", f"a {colour} dog"), ask("right?", "a cat")),
            )
            for colour in COLOURS
        ],
    )
    asked = read_audit_set(folder)
    assert asked.texts == ("a red dog", "a cat", "a blue dog")
    assert [q.right for q in asked.questions] == [(0,), (1,), (2,), (1,)]
    assert read_audit_set(folder / "records.jsonl").questions == asked.questions
    (folder / "records.jsonl").rename(folder / "mine.jsonl")
    assert read_audit_set(folder / "mine.jsonl").questions == asked.questions


def test_scenes_are_those_of_the_benchmark() -> None:
    asked = read_audit_set("scenes", limit=30)
    images, queries = split_mirrors(generate(30, 1))
    assert [q.instruction for q in asked.questions] == [q.instruction for q in queries]
    assert [asked.texts[q.right[0]] for q in asked.questions] == [q.answer for q in queries]
    assert len(asked.images) == len(images)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "not JSON"),
        ("[]", "object"),
        ('{"image": "red.png", "instruction": "left?"}', "answer is missing"),
        ('{"image": "red.png", "instruction": "", "answer": "x"}', "instruction"),
        ('{"image": "red.png", "instruction": "a", "answer": 3}', "answer"),
        ('{"image": "red.png", "instruction": "a", "answer": []}', "empty list"),
        ('{"image": "red.png", "instruction": "a", "answer": "x", "candidate": []}', "no field"),
        ('{"image": "red.png", "instruction": "a", "answer": "x", "candidates": "x"}', "no list"),
        (
            '{"image": "red.png", "instruction": "a", "answer": "x", "candidates": ["y", "z"]}',
            "none of the candidates",
        ),
        (
            '{"image": "red.png", "instruction": "a", "answer": "x", "candidates": ["x", "x"]}',
            "only one text",
        ),
    ],
)
def test_a_wrong_line_is_named(folder: Path, line: str, what: str) -> None:
    path = lines(folder, row("red", "left?", "a dog"))
    path.write_text(path.read_text() + "\n" + line + "\n")
    with pytest.raises(DataError, match=what) as error:
        read_audit_set(path)
    assert f"{path}:3: " in str(error.value)


def test_records_in_another_form_ask_the_same(folder: Path) -> None:
    instruction = Instruction(instruction="left?", answer="a dog", kind="place")
    record = Record(id="a", image="red.png", width=8, height=8, instructions=(instruction,) * 2)
    write_records(folder / "records.jsonl", [record])
    convert(open_dataset(folder), folder / "to", "parquet")
    asked, again = (read_audit_set(folder / name) for name in ("records.jsonl", "to"))
    assert (again.questions, again.texts) == (asked.questions, asked.texts)
    assert again.content_hash() == asked.content_hash()
    assert len(read_audit_set(folder / "to", limit=1).questions) == 1


def test_no_set_at_all(folder: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_audit_set(folder / "gone.jsonl")
    with pytest.raises(DataError, match="no question"):
        read_audit_set(lines(folder))
