"""`mine`: plan first, records written whole, a report; and every mistake in one sentence."""

import json
from pathlib import Path

import pytest
from cli_parts import Cli, leftovers

from abc_embed.data.records import read_records


@pytest.fixture
def drawn(cli: Cli, here: Path) -> Path:
    """Twelve drawn scenes."""
    assert cli("scenes", "-n", "12", "--out", "drawn", "--side", "56").code == 0
    return Path("drawn")


def test_plan_records_report_page(cli: Cli, tiny: Path, drawn: Path) -> None:
    known = leftovers(drawn, set())
    words = ("mine", drawn, "--out", drawn / "mined.jsonl", "--epsilon", "1", "--model", tiny)
    done = cli(*words)
    assert done.code == 0, done.err
    assert done.err.startswith("plan: 12 of 12 rows × ")
    for text in ("dropped: own caption", "dropped: above the line", "in the pools", "drawn"):
        assert text in done.out
    assert done.out.endswith("in drawn/mined.jsonl; drawn/mined.png shows examples\n")
    assert leftovers(drawn, known) == {"mined.jsonl", "mined.png"}
    again = json.loads(cli(*words, "--json").out)
    assert again["report"]["remembered"] == again["plan"]["captions"] + 12
    assert again["settings"]["epsilon"] == 1
    mined = list(read_records(drawn / "mined.jsonl"))
    assert sum(len(r.negatives) for r in mined) == again["report"]["drawn"] > 0
    assert all(r.caption not in r.negatives for r in mined)


def test_ways_to_draw(cli: Cli, tiny: Path, drawn: Path) -> None:
    for way in (("--how", "bins"), ("--how", "uniform", "--draw", "1"), ("--seed", "5")):
        words = ("--out", drawn / "m.jsonl", "--examples", "0", "--model", tiny, *way)
        done = cli("mine", drawn / "records.jsonl", *words)
        assert done.code == 0, done.err
        assert not (drawn / "m.png").exists()


def test_bad_images_are_named(cli: Cli, tiny: Path, drawn: Path) -> None:
    (drawn / "images/000003.png").write_bytes(b"no picture")
    done = cli("mine", drawn, "--out", drawn / "m.jsonl", "--model", tiny, "--no-cache")
    assert done.code == 0
    assert "1 of 12 rows keep what they had:\n  scene-0-000003: " in done.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("drawn", "--out", "mined.jsonl"), 2, "--out is in another folder"),
        (("drawn", "--out", "drawn/records.jsonl"), 2, "is the records file itself"),
        (("drawn", "--out", "gone/mined.jsonl"), 1, "there is no folder 'gone'"),
        (("photos", "--out", "photos/m.jsonl"), 1, "there is no photos/records.jsonl"),
        (("drawn", "--out", "drawn/m.jsonl", "--epsilon", "1.5"), 2, "epsilon is 1.5"),
        (("drawn", "--out", "drawn/m.jsonl", "--epsilon", "nan"), 2, "epsilon is nan"),
        (("drawn", "--out", "drawn/m.jsonl", "--memory", "much"), 2, "--memory is 'much'"),
        (("drawn", "--out", "drawn/m.jsonl", "--memory", "0.1 MB"), 2, "give at least"),
        (("drawn", "--out", "drawn/m.jsonl", "--pool", "0"), 2, "--pool"),
        (("drawn", "--out", "drawn/m.jsonl", "--how", "best"), 2, "--how"),
        (("drawn", "--out", "drawn/m.jsonl", "--cache", "photo.jpg"), 1, "cache 'photo.jpg"),
        (("drawn",), 2, "--out"),
    ],
)
def test_mistakes(
    cli: Cli, tiny: Path, drawn: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    known = leftovers(drawn, set())
    done = cli("mine", *words, "--model", tiny)
    assert (done.code, done.out) == (code, "")
    assert says in done.err
    assert not leftovers(drawn, known)
