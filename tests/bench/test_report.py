"""Records on disk and as a table: complete, without a host's name, honest about what was missed."""

import json
import socket
from pathlib import Path
from typing import Any

import golden_parts
import pytest

from abc_embed import Embedder
from abc_embed.bench import report
from abc_embed.bench.scenes import run
from abc_embed.errors import DataError, OutputError


@pytest.fixture(scope="module")
def model() -> Embedder:
    return Embedder(*golden_parts.shared())


@pytest.fixture
def record(model: Embedder, fake: Any, small: dict[str, Any]) -> dict[str, Any]:
    """What a model that adds its vectors would have, under the golden model's name."""
    findings = run(fake("LateFusion"), **small, side=56, draws=100)
    return report.make_record(model, findings, "bundled")


def test_a_record_names_all_that_its_numbers_hang_on(
    model: Embedder, record: dict[str, Any]
) -> None:
    by = record["model"]
    assert (by["name"], by["fingerprint"]) == ("bundled", model.fingerprint)
    assert (by["dtype"], by["device"]) == ("float32", "cpu")
    assert by["config"]["prompt_hash"] == model.config["prompt_hash"]
    assert len(record["benchmark_hash"]) == 64
    assert record["settings"]["seed"] == 9000 and record["settings"]["side"] == 56
    assert {"torch", "transformers", "abc-embed", "pillow"} <= set(record["versions"])
    assert record["hardware"]["cpus"] >= 1
    assert record["time"].endswith("+00:00") and record["seconds"] >= 0


def test_no_host_and_no_path_is_in_it(record: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps(record)
    assert socket.gethostname() not in text
    assert str(golden_parts.GOLDEN) not in text


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("bundled", "bundled"),
        ("owner/model", "owner/model"),
        ("/" + "data/runs/mine", "mine"),
        ("./runs/mine/", "mine"),
        ("~/mine", "mine"),
    ],
)
def test_a_name_that_is_a_path_is_cut(model: Embedder, name: str, kept: str) -> None:
    assert report.make_record(model, {}, name)["model"]["name"] == kept


def test_written_and_read(record: dict[str, Any], tmp_path: Path) -> None:
    path = report.write_record(record, tmp_path / "results")
    digits = record["model"]["fingerprint"][:8], record["benchmark_hash"][:8]
    assert path.name == f"scenes-bundled-{digits[0]}-{digits[1]}.json"
    assert report.read_records(tmp_path / "results") == [json.loads(json.dumps(record))]
    later = record | {"time": "2999-01-01T00:00:00+00:00"}
    assert report.write_record(later, tmp_path / "results") == path  # the same, measured again
    record["model"]["name"] = "owner/other"
    report.write_record(record, tmp_path / "results")
    names = [r["model"]["name"] for r in report.read_records(tmp_path / "results")]
    assert names == ["bundled", "owner/other"]


def test_no_folder_is_no_records(tmp_path: Path) -> None:
    assert report.read_records(tmp_path / "none") == []
    assert report.results_block(tmp_path / "none") == report.NOTHING


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"benchmark": "scenes"}'])
def test_what_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json is no record"):
        report.read_records(tmp_path)


def test_what_cannot_be_written(record: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        report.write_record(record, tmp_path / "file")


def test_the_table_shows_the_controls_beside_the_score(record: dict[str, Any]) -> None:
    table = report.markdown_table([record])
    head, rule, line, target = (row for row in table.splitlines() if row.startswith("|"))
    assert len({row.count("|") for row in (head, rule, line, target)}) == 1
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    both = record["scores"]["both"]
    low, high = both["r1_interval"]
    assert cells[:2] == ["bundled", f"{both['r1']:.3f} ({low:.3f}–{high:.3f})"]
    assert f"{record['scores']['image']['r1']:.3f}" in cells[2]
    assert f"{record['mirrored']['value']:.3f}" in cells[6]
    assert target.split("|")[2].strip() == "≥ 0.80" and target.split("|")[3].strip() == "≤ 0.35"
    missed = "image + instruction; both vectors added; mirrored pairs, both right"
    assert f"Targets missed: {missed}." in table
    assert record["model"]["fingerprint"][:8] in table
    assert record["benchmark_hash"][:8] in table


def test_the_summary_says_reached_and_missed(record: dict[str, Any]) -> None:
    lines = {what: (value, verdict) for what, value, verdict in report.summary(record)}
    assert lines["image + instruction"][1] == "≥ 0.80 missed"
    assert lines["image alone"][1] == "≤ 0.35 reached"
    assert lines["random"][1] == lines["composition gap"][1] == ""


def test_without_pairs_there_is_a_dash(record: dict[str, Any]) -> None:
    record["mirrored"] = {"value": None, "interval": None, "of": 0}
    assert "| – |" in report.markdown_table([record])


README = "# a\n<!-- results:begin -->\nold\n<!-- results:end -->\nb\n"


def test_the_block_is_written_between_its_marks(record: dict[str, Any], tmp_path: Path) -> None:
    report.write_record(record, tmp_path / "results")
    path = tmp_path / "README.md"
    path.write_text(README, encoding="utf-8")
    assert report.main([str(path), str(tmp_path / "results")]) == 0
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# a\n<!-- results:begin -->\nR@1 on unseen")
    assert text.endswith("\n<!-- results:end -->\nb\n") and "old" not in text
    assert report.main([str(path), str(tmp_path / "results")]) == 0
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "give a Markdown file and the folder"),
        (["none.md", "results"], 1, "cannot be read"),
        (["marks.md", "results"], 1, "put one line"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("marks.md").write_text("no marks here")
    assert report.main(arguments) == code
    assert words in capsys.readouterr().err
    assert Path("marks.md").read_text() == "no marks here"
