"""`mine`: plan first, results written whole, a report; and every mistake in one sentence."""

import json
from pathlib import Path

import pytest
from cli_parts import Cli, leftovers

from abc_embed.cli.mine import size
from abc_embed.data.records import read_records
from abc_embed.mining.output import read_mined


@pytest.fixture
def drawn(cli: Cli, here: Path) -> Path:
    """Twelve drawn scenes."""
    assert cli("scenes", "-n", "12", "--out", "drawn", "--side", "56").code == 0
    return Path("drawn")


@pytest.fixture(autouse=True)
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abc_embed.mining.plan.PROBE_S", 0.0)


def test_plan_records_report_page(cli: Cli, tiny: Path, drawn: Path) -> None:
    known = leftovers(drawn, set())
    words = ("mine", drawn, "--out", drawn / "mined.jsonl", "--epsilon", "1", "--model", tiny)
    done = cli(*words)
    assert done.code == 0, done.err
    assert done.err.startswith("plan: 12 images × ")
    for text in (" to embed what is missing and ", " of memory for the search", "free in drawn"):
        assert text in done.err
    for text in ("dropped: own caption", "dropped: above the line", "in the pools", "drawn"):
        assert text in done.out
    beside = ("mined.png", "mined.report.png", "mined.report.json")
    see = ", ".join(f"drawn/{name}" for name in beside)
    assert done.out.endswith(f"the negatives are in drawn/mined.jsonl; see {see}\n")
    assert leftovers(drawn, known) == {"mined.jsonl", *beside, "mining-work"}
    again = json.loads(cli(*words, "--json").out)
    assert again["report"]["remembered"] == again["plan"]["captions"] + 12
    assert again["report"]["searched_before"] == 12
    assert again["settings"]["epsilon"] == 1
    assert json.loads((drawn / "mined.report.json").read_text())["report"] == again["report"]
    mined = list(read_records(drawn / "mined.jsonl"))
    assert sum(len(r.negatives) for r in mined) == again["report"]["drawn"] > 0
    assert all(r.caption not in r.negatives for r in mined)


def test_parquet_that_training_reads(cli: Cli, tiny: Path, drawn: Path) -> None:
    words = ("--epsilon", "1", "--model", tiny, "--examples", "0")
    for search in ("flat", "plain"):
        own = ("--out", f"{search}.parquet", "--search", search, "--work", f"{search}-work")
        done = cli("mine", drawn, *own, *words)
        assert done.code == 0, done.err
    assert Path("flat.parquet").read_bytes() == Path("plain.parquet").read_bytes()
    captions = [record.caption for record in read_records(drawn)]
    found = read_mined(Path("flat.parquet"), rows=12)
    assert any(len(found.of(row)) for row in range(12))
    assert all(captions[row] not in [captions[n] for n in found.of(row)] for row in range(12))
    assert not (drawn / "mining-work").exists()


def test_only_the_plan(cli: Cli, tiny: Path, drawn: Path) -> None:
    known = leftovers(drawn, set())
    words = ("mine", drawn, "--out", "m.parquet", "--plan", "--model", tiny, "--work", "work")
    done = cli(*words, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"] == 12
    assert not Path("m.parquet").exists()
    assert not leftovers(drawn, known)


def test_ways_to_draw_and_to_search(cli: Cli, tiny: Path, drawn: Path) -> None:
    ways = (("--how", "bins"), ("--draw", "1"), ("--search", "ivf", "--probes", "2"))
    for way in ways:
        words = ("--out", drawn / "m.jsonl", "--examples", "0", "--model", tiny, *way)
        done = cli("mine", drawn / "records.jsonl", *words)
        assert done.code == 0, done.err
        assert not (drawn / "m.png").exists()
    assert "recall of the pools against exact ones, on a sample: 1.0000" in done.out


def test_bad_rows_are_named_and_kept(cli: Cli, tiny: Path, drawn: Path) -> None:
    (drawn / "images/000003.png").write_bytes(b"no picture")
    done = cli("mine", drawn, "--out", drawn / "m.jsonl", "--model", tiny)
    assert done.code == 0
    kept = "drawn/m.rejects.jsonl"
    assert f"1 of 12 rows were left out; all are in {kept}:\n  drawn/records.jsonl:4: " in done.err
    assert json.loads(Path(kept).read_text())["row"] == 3


def test_sizes() -> None:
    assert [size(n) for n in (1_500_000, 32 * 10**9)] == ["1.5 MB", "32.0 GB"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("drawn", "--out", "mined.jsonl"), 2, "--out is in another folder"),
        (("drawn", "--out", "drawn/records.jsonl"), 2, "is the records file itself"),
        (("drawn", "--out", "gone/mined.jsonl"), 1, "there is no folder 'gone'"),
        (("nowhere", "--out", "photos/m.jsonl"), 1, "there is no nowhere"),
        (("abc-pretrain:drawn", "--out", "m.parquet"), 1, "holds no .parquet file"),
        (("drawn", "--out", "drawn/m.jsonl", "--epsilon", "1.5"), 2, "epsilon is 1.5"),
        (("drawn", "--out", "drawn/m.jsonl", "--epsilon", "nan"), 2, "epsilon is nan"),
        (("drawn", "--out", "drawn/m.jsonl", "--memory", "much"), 2, "--memory is 'much'"),
        (("drawn", "--out", "drawn/m.jsonl", "--memory", "0.1 MB"), 2, "give at least"),
        (("drawn", "--out", "drawn/m.jsonl", "--pool", "0"), 2, "--pool"),
        (("drawn", "--out", "drawn/m.jsonl", "--how", "best"), 2, "--how"),
        (("drawn", "--out", "drawn/m.jsonl", "--search", "best"), 2, "--search"),
        (("drawn", "--out", "drawn/m.jsonl", "--store", "int8"), 2, "the store is 'int8'"),
        (("drawn", "--out", "drawn/m.jsonl", "--processes", "0"), 2, "--processes"),
        (("drawn", "--out", "drawn/m.jsonl", "--work", "photo.jpg"), 1, "cannot be made"),
        (("drawn",), 2, "--out"),
    ],
)
def test_mistakes(
    cli: Cli, tiny: Path, drawn: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    known = leftovers(drawn, set())
    done = cli("mine", *words, "--model", tiny)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert not leftovers(drawn, known)


def test_images_in_another_folder(cli: Cli, tiny: Path, drawn: Path) -> None:
    texts = Path("texts")
    texts.mkdir()
    (drawn / "records.jsonl").rename(texts / "records.jsonl")
    out = ("--out", texts / "mined.jsonl")
    assert "there is no file" in cli("mine", texts, *out, "--model", tiny).err
    for words in (
        ("mine", texts, *out, "--model", tiny),
        ("bench", "records", texts, "--model", "random"),
        ("bench", "audit", texts, "--model", "random"),
    ):
        done = cli(*words, "--image-folder", drawn)
        assert done.code == 0, done.err
    assert len(list(read_records(texts / "mined.jsonl"))) == 12
