"""The experiment on shapes: its pictures, and one small run of all that it does."""

import json
from pathlib import Path

import numpy as np
import pytest

from abc_embed.data.records import read_records
from experiments.shapes import run
from experiments.shapes.world import ANSWERS, SHAPES, draw, write_shapes


def test_shapes_differ_and_come_again(tmp_path: Path) -> None:
    one, two = (write_shapes(tmp_path / name, 6, seed=3) for name in ("one", "two"))
    for record in read_records(one):
        assert (one / record.image).read_bytes() == (two / record.image).read_bytes()
        shape, colour = (ask.answer for ask in record.instructions)
        assert record.caption == f"a {colour} {shape.removeprefix('a ')}"
        assert shape in ANSWERS["shape"] and colour in ANSWERS["colour"]
    shares = {}
    for shape in SHAPES:  # of the square around each, all drawn from the same numbers
        picture = np.asarray(draw(shape, (0, 0, 0), np.random.default_rng(5)).convert("L"))
        dark = picture < 100
        rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
        shares[shape] = dark.sum() / (len(rows) * len(columns))
    assert shares["circle"] == pytest.approx(np.pi / 4, abs=0.02)
    assert shares["triangle"] < 0.6 and shares["square"] < 1.01


def test_every_arm_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SETS", {"train": (8, 1), "test": (4, 2), "validation": (4, 3)})
    monkeypatch.setattr(run, "PROBED", (8, 4))
    short = ("train.steps=1", "train.batch_size=2")
    arms = (
        run.Arm(name="nothing"),
        run.Arm(name="both", stages=((run.STAGE1, *short), (run.STAGE2, *short))),
    )
    monkeypatch.setattr(run, "ARMS", arms)
    monkeypatch.chdir(Path(run.__file__).parents[2])
    found = run.run(tmp_path / "work", tmp_path / "shapes.json")
    assert [arm["name"] for arm in found] == ["nothing", "both"]
    assert all(set(arm["kinds"]) == set(arm["probe"]) == set(ANSWERS) for arm in found)
    assert all(arm["kinds"]["shape"]["of"] == 4 for arm in found)
    assert len(run.table(found).splitlines()) == 4
    run.draw(found, tmp_path / "shapes.png")
    assert (tmp_path / "shapes.png").stat().st_size > 1000
    asked = (tmp_path / "work/arm-1/stage-2/validation.jsonl").read_text()
    assert set(json.loads(asked.splitlines()[-1])["kinds"]) == set(ANSWERS)
    monkeypatch.setattr(run, "run_arm", None)  # nothing is computed twice
    again = run.run(tmp_path / "work", tmp_path / "shapes.json")
    assert run.table(again) == run.table(found)


def test_the_probe_reads_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that say the colour and nothing of the shape."""
    for name, seed in (("train", 1), ("test", 2)):
        write_shapes(tmp_path / name, 60, seed)
    monkeypatch.setattr(run, "PROBED", (60, 60))

    def tokens(model: object, rows: list):  # type: ignore[no-untyped-def, type-arg]
        for row in rows:
            colour = ANSWERS["colour"].index(row.record.instructions[1].answer)
            yield np.eye(len(ANSWERS["colour"]), dtype=np.float32)[[colour]]

    monkeypatch.setattr(run, "_mean_tokens", tokens)
    found = run.probe(None, tmp_path)  # type: ignore[arg-type]
    assert found["colour"] == 1.0 and found["shape"] < 0.6
