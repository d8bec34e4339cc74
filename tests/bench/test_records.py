"""Records on disk, as tables and pictures, and compared: complete, honest, no host's name."""

import csv
import io
import json
import socket
from pathlib import Path
from typing import Any

import golden_parts
import numpy as np
import pytest
from PIL import Image

from abc_embed import Embedder
from abc_embed.bench import figures, records, tables
from abc_embed.bench.ctrlbench.measure import measure, measure_once
from abc_embed.bench.ctrlbench.schema import Benchmark
from abc_embed.bench.encoders.registry import NativeEncoder
from abc_embed.bench.records import compare_records, pack, unpack
from abc_embed.data.contact_sheet import GREEN, RED
from abc_embed.errors import DataError, OutputError, UsageError
from abc_embed.figures import BLUE

Folders = dict[str, Benchmark]


@pytest.fixture(scope="module")
def encoder() -> NativeEncoder:
    return NativeEncoder(Embedder(*golden_parts.shared()), "bundled")


@pytest.fixture
def record(encoder: NativeEncoder, fake: Any, folders: Folders) -> dict[str, Any]:
    """What a model that adds its vectors would have, under the golden model's name."""
    findings = measure(fake("LateFusion"), folders["S"], "S")
    return records.make_record(encoder, findings)


@pytest.fixture
def oracle(encoder: NativeEncoder, fake: Any, folders: Folders) -> dict[str, Any]:
    findings = measure(fake("Oracle"), folders["S"], "S")
    return records.make_record(NativeEncoder(encoder.embedder, "other"), findings)


def test_a_record_names_all_that_its_numbers_hang_on(
    encoder: NativeEncoder, record: dict[str, Any]
) -> None:
    by = record["model"]
    assert (by["name"], by["fingerprint"]) == ("bundled", encoder.fingerprint)
    assert (by["dtype"], by["device"], by["dim"]) == ("float32", "cpu", encoder.dim)
    assert by["prompt_hash"] == by["config"]["prompt_hash"]
    assert len(record["benchmark_hash"]) == 64
    assert record["settings"]["max_pixels"] is None and record["settings"]["tier"] == "S"
    assert {"torch", "transformers", "abc-embed", "pillow"} <= set(record["versions"])
    assert record["hardware"]["cpus"] >= 1
    assert record["time"].endswith("+00:00") and record["seconds"] >= 0
    assert len(json.dumps(record)) < 30_000


def test_no_host_and_no_path_is_in_it(record: dict[str, Any], folders: Folders) -> None:
    text = json.dumps(record)
    assert socket.gethostname() not in text
    assert str(golden_parts.GOLDEN) not in text
    assert str(folders["S"].folder) not in text


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
def test_a_name_that_is_a_path_is_cut(encoder: NativeEncoder, name: str, kept: str) -> None:
    named = NativeEncoder(encoder.embedder, name)
    assert records.make_record(named, {})["model"]["name"] == kept


def test_written_and_read(record: dict[str, Any], tmp_path: Path) -> None:
    path = records.write_record(record, tmp_path / "results")
    digits = record["model"]["fingerprint"][:8], record["benchmark_hash"][:8]
    assert path.name.startswith(f"ctrlbench_S-bundled-{digits[0]}-{digits[1]}-")
    assert records.read_records(tmp_path / "results") == [json.loads(json.dumps(record))]
    later = record | {"time": "2999-01-01T00:00:00+00:00"}
    assert records.write_record(later, tmp_path / "results") == path  # the same, measured again
    other = record | {"settings": record["settings"] | {"max_pixels": 5000}}
    assert records.write_record(other, tmp_path / "results") != path
    record["model"]["name"] = "owner/other"
    records.write_record(record, tmp_path / "results")
    names = [r["model"]["name"] for r in records.read_records(tmp_path / "results")]
    assert names == ["bundled", "bundled", "owner/other"]
    assert records.read_records(tmp_path / "none") == []


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"benchmark": "scenes"}'])
def test_what_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json .*; .*measure again"):
        records.read_records(tmp_path)


def test_what_cannot_be_written(record: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        records.write_record(record, tmp_path / "file")


def test_the_same_key_is_answered_from_the_record(
    fake: Any, folders: Folders, tmp_path: Path
) -> None:
    def run(
        name: str, area: int | None = None, **how: Any
    ) -> tuple[dict[str, Any], Path | None, int]:
        model = fake(name).at(area)
        found, path = measure_once(model, folders["B"], "B", tmp_path, **how)
        return found, path, len(model.calls)

    first, path, _ = run("Oracle")
    assert path is not None
    again, nowhere, calls = run("Oracle")
    assert (again, nowhere, calls) == (json.loads(json.dumps(first)), None, 0)
    for name, how in (
        ("Oracle", {"limit": 4}),
        ("Oracle", {"area": 4000}),
        ("Oracle", {"again": True}),
        ("Blind", {}),
        ("Reader", {}),
    ):
        _, path, calls = run(name, **how)
        assert path is not None and calls, (name, how)


# -- tables ----------------------------------------------------------------------------------------


def test_the_table_shows_the_controls_beside_the_score(record: dict[str, Any]) -> None:
    table = tables.brief([record])
    head, rule, line = (row for row in table.splitlines() if row.startswith("|"))
    assert len({row.count("|") for row in (head, rule, line)}) == 1
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    joint = record["scores"]["joint"]
    low, high = joint["r1_interval"]
    assert cells[:2] == ["S, scenes", "bundled"]
    assert cells[2].startswith(f"{record['composition_gap']['value']:.3f} (")
    assert cells[3] == f"{joint['r1']:.3f} ({low:.3f}–{high:.3f})"
    assert f"{record['scores']['image']['r1']:.3f}" in cells[4]
    mirrored = record["joint"]["mirror_accuracy"]["value"]
    assert f"{mirrored:.3f}" in cells[8]
    unseen = record["by_group"]["pair unseen in training"]["value"]
    assert f"{unseen:.3f}" in cells[9] and cells[10] == "–"  # nothing unanswerable was asked
    titles = tables.CONDITIONS | tables.JOINT_FIGURES | tables.GROUPS
    missed = [titles[check["name"]] for check in record["checks"] if not check["reached"]]
    assert missed[:2] == ["image + instruction", "pairs never seen together"]
    assert f"Missed: {'; '.join(missed)}." in table
    assert record["model"]["fingerprint"][:8] in table and record["benchmark_hash"][:8] in table


def test_only_whole_records_of_models_of_ours_are_in_brief(record: dict[str, Any]) -> None:
    assert tables.brief([]) == tables.NOTHING
    assert tables.brief([record | {"missing": ["a.png"]}]) == tables.NOTHING
    limited = record | {"settings": record["settings"] | {"limit": 5}}
    assert tables.brief([limited]) == tables.NOTHING
    assert "S, scenes, first 5 images" in tables.markdown([limited])


def test_the_summary_says_reached_and_missed_and_the_gap_first(record: dict[str, Any]) -> None:
    rows = tables.summary(record)
    assert rows[0][0] == "composition gap"
    verdicts = {what: verdict for what, _, verdict in rows}
    assert verdicts["R@1, image + instruction"] == "≥ 0.95 missed"
    assert verdicts["R@1, image alone"] == "≤ 0.35 reached"
    assert verdicts["R@1, random"] == verdicts["composition gap"] == ""


def test_a_kind_of_question_at_chance_is_said(record: dict[str, Any]) -> None:
    assert "Warning" not in tables.markdown([record])
    luck = {"value": 0.33, "interval": (0.3, 0.36), "of": 600, "chance": 0.34}
    told = record | {
        "by_aspect": {"shape": luck, "colour": luck | {"value": 0.98, "interval": (0.97, 0.99)}}
    }
    (sentence,) = tables.chance_warnings(told["by_aspect"])
    assert sentence.startswith("'shape' is at chance: R@1 0.330 (0.300–0.360) of 600 questions")
    assert f"Warning: {sentence}." in tables.markdown([told])
    rows = {what: (value, verdict) for what, value, verdict in tables.summary(told)}
    assert rows["R@1, asked for shape"] == ("0.330 (0.300–0.360)", "at chance (0.34)")
    assert rows["R@1, asked for colour"] == ("0.980 (0.970–0.990)", "")


def test_what_is_left_out_is_said(record: dict[str, Any]) -> None:
    record["sizes"]["queries_left_out"] = 7
    record["missing"] = ["b.png", "c.png"]
    said = tables.sizes_line(record)
    assert "7 queries are left out, since 2 images are missing, b.png the first" in said


def test_a_model_that_takes_no_instruction_has_dashes(
    encoder: NativeEncoder, fake: Any, folders: Folders
) -> None:
    findings = measure(fake("Reader"), folders["B"], "B")
    reader = records.make_record(NativeEncoder(encoder.embedder, "reader"), findings)
    (line,) = [row for row in tables.brief([reader]).splitlines() if "| reader |" in row]
    assert [cell.strip() for cell in line.split("|")][3:5] == ["–", "–"]
    assert tables.summary(reader)[0][1] == "–"


def test_records_of_others_are_in_the_report_too(record: dict[str, Any]) -> None:
    score = {"value": 0.5, "interval": (0.4, 0.6), "of": 10}
    other = {key: record[key] for key in records.REQUIRED if key != "scores"}
    other |= {"benchmark": "coco", "scores": {"text r@1": score}}
    text = tables.markdown([record, other])
    assert "| coco | bundled | text r@1 | 0.500 (0.400–0.600) | 10 |" in text
    rows = list(csv.DictReader(io.StringIO(tables.as_csv([record, other]))))
    (row,) = [row for row in rows if row["benchmark"] == "coco"]
    assert (row["score"], row["value"], row["low"], row["of"]) == ("text r@1", "0.5", "0.4", "10")
    joint = [r for r in rows if (r["score"], r["metric"]) == ("joint", "r1")]
    assert float(joint[0]["value"]) == record["scores"]["joint"]["r1"]


README = "# a\n<!-- results:begin -->\nold\n<!-- results:end -->\nb\n"


def test_the_block_is_written_between_its_marks() -> None:
    text = records.with_results(README, "new\n")
    assert text == README.replace("old", "new")
    for bad in ("no marks", README + README):
        with pytest.raises(DataError, match="put one line"):
            records.with_results(bad, "new\n")


# -- pictures --------------------------------------------------------------------------------------


def as_pixel(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def colours(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    return {tuple(int(v) for v in colour) for colour in np.unique(pixels, axis=0)}


def test_answers_right_in_green_wrong_in_red(
    record: dict[str, Any], oracle: dict[str, Any], folders: Folders, tmp_path: Path
) -> None:
    for name, of in (("mixed", record), ("right", oracle)):
        figures.draw_examples(of, folders["S"], tmp_path / f"{name}.png")
    green, red = as_pixel(GREEN), as_pixel(RED)
    assert {green, red} <= colours(tmp_path / "mixed.png")
    right = colours(tmp_path / "right.png")
    assert green in right and red not in right


def test_answers_of_other_questions_are_refused(
    record: dict[str, Any], folders: Folders, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="give the folder that was measured"):
        figures.draw_examples(record, folders["B"], tmp_path / "a.png")
    with pytest.raises(DataError, match="has no first choices"):
        figures.draw_examples(record | {"top": None}, folders["S"], tmp_path / "a.png")


def test_bars_are_drawn(record: dict[str, Any], oracle: dict[str, Any], tmp_path: Path) -> None:
    figures.draw_bars([record, oracle], tmp_path / "bars.png")
    assert as_pixel(BLUE) in colours(tmp_path / "bars.png")


# -- packed ranks, and what is compared by them ----------------------------------------------------


@pytest.mark.parametrize("values", [[], [0], [255, 256], [[1, 2], [3, 70_000]]])
def test_packed_and_unpacked(values: list[Any]) -> None:
    packed = json.loads(json.dumps(pack(values)))
    assert unpack(packed).tolist() == values
    with pytest.raises(DataError, match="damaged"):
        unpack(packed | {"shape": [99]})
    with pytest.raises(ValueError, match="from 0"):
        pack([-1])


def test_two_records_query_by_query(record: dict[str, Any], oracle: dict[str, Any]) -> None:
    rows = {row["way"]: row for row in compare_records(oracle, record)}
    joint = rows["joint"]
    mine = record["scores"]["joint"]["r1"]
    assert (joint["a"], joint["b"]) == (1.0, pytest.approx(mine))
    assert joint["difference"] == pytest.approx(mine - 1)
    assert joint["interval"][0] <= joint["difference"] <= joint["interval"][1]
    assert joint["p"] == pytest.approx(1 / 10_001)
    assert "random" not in rows
    back = compare_records(record, oracle)[0]
    assert back["difference"] == pytest.approx(-joint["difference"])


def test_what_cannot_be_compared(record: dict[str, Any], oracle: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="of different questions"):
        compare_records(record, oracle | {"benchmark_hash": "0" * 64})
    with pytest.raises(
        DataError, match=r"the second record has no ranks by query.*ctrlbench keeps them"
    ):
        compare_records(record, {key: value for key, value in oracle.items() if key != "ranks"})
    with pytest.raises(UsageError, match="no way of asking in common"):
        compare_records(record, oracle | {"ranks": {}})
