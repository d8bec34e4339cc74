"""`abc-embed bench ctrlbench|build|diff|report`: what they show, write, and refuse."""

import csv
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cli_parts import Cli
from PIL import Image

from abc_embed.bench.ctrlbench import binding, grid, tiers
from abc_embed.bench.ctrlbench.scene_benchmark import write_scene_benchmark
from abc_embed.cli import bench


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiers G and B, small, as folders of their names."""
    root = tmp_path_factory.mktemp("tiers")
    write_scene_benchmark(grid.generate(3, seed=9002), root / "G", side=56)
    write_scene_benchmark(binding.generate(2, seed=9003), root / "B", side=56)
    return root


@pytest.fixture
def drawn(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiers in the place of the frozen ones, at the usual size of pictures."""
    for tier, spec in (("G", grid.generate(3, seed=9002)), ("B", binding.generate(2, seed=9003))):
        made = write_scene_benchmark(spec, small / "drawn" / tier)
        frozen = replace(
            tiers.TIERS[tier], generate=lambda s=spec: s, content_hash=made.content_hash()
        )
        monkeypatch.setitem(tiers.TIERS, tier, frozen)


def test_the_tiers_that_help_names_are_those_that_are_drawn() -> None:
    assert tuple(tiers.TIERS) == bench.DRAWN


def test_ctrlbench_shows_the_gap_first_and_answers_again_from_the_record(
    cli: Cli, tiny: Path, here: Path, small: Path
) -> None:
    words = ("bench", "ctrlbench", "--model", tiny, "--data", small / "B", "--out", "results")
    done = cli(*words)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert next(i for i, line in enumerate(lines) if "composition gap" in line) == 3
    for what in ("image alone", "generic", "both vectors added", "random", "mirrored pairs"):
        assert what in done.out
    assert "24 queries, 4 images, " in done.out
    (path,) = Path("results").iterdir()
    assert f"the record is {path}" in done.err
    record = json.loads(path.read_text())
    assert (record["benchmark"], record["model"]["name"]) == ("ctrlbench-B", "tiny")
    before = path.stat().st_mtime_ns
    again = cli(*words, "--json")
    assert "answered from the record" in again.err
    assert json.loads(again.out) == record
    assert path.stat().st_mtime_ns == before
    for more in (("--again",), ("--limit", 2)):
        assert "the record is" in cli(*words, *more).err, more
    several = cli(*words, "--max-pixels", "1,4 tokens")
    assert "at most 784 pixels" in several.out and "at most 3,136 pixels" in several.out
    assert len(list(Path("results").iterdir())) == 4  # measured again replaces its own


def test_without_data_both_tiers_are_drawn_and_kept(
    cli: Cli, tiny: Path, here: Path, drawn: None, tmp_path: Path
) -> None:
    done = cli("bench", "ctrlbench", "--model", tiny, "--limit", 2, "--json")
    assert done.code == 0, done.err
    assert [r["benchmark"] for r in json.loads(done.out)] == ["ctrlbench-G", "ctrlbench-B"]
    kept = sorted(path.name for path in (tmp_path / "cache" / "ctrlbench").iterdir())
    assert kept == ["B-1", "G-1"]
    assert len(list((tmp_path / "cache" / "results").iterdir())) == 2


def test_a_missing_picture_is_said(cli: Cli, tiny: Path, here: Path, small: Path) -> None:
    shutil.copytree(small / "G", "partly")
    Path("partly/images/00001.bmp").unlink()
    done = cli("bench", "ctrlbench", "--model", tiny, "--data", "partly", "--out", "results")
    assert done.code == 0
    assert "10 queries, 2 images" in done.out
    assert "5 queries are left out, since 1 images are missing, images/00001.bmp" in done.out


def test_build_says_what_it_made(cli: Cli, here: Path, drawn: None) -> None:
    done = cli("bench", "build", "--tier", "B", "--out", "made", "--json")
    summary = json.loads(done.out)
    assert (summary["images"], summary["queries"], summary["leaks"]) == (4, 24, 0)
    assert summary["content_hash"] == json.loads(Path("made/card.json").read_text())["content_hash"]
    assert "the benchmark is in made" in cli("bench", "build", "--tier", "B", "--out", "made").out


def test_diff_and_report(cli: Cli, tiny: Path, here: Path, small: Path) -> None:
    for model in (tiny, "random", "late:random"):
        words = ("--model", model, "--data", small / "B", "--out", "results")
        assert cli("bench", "ctrlbench", *words).code == 0
    paths = sorted(Path("results").iterdir())
    done = cli("bench", "diff", paths[1], paths[2])
    assert done.code == 0, done.err
    random, trained = (next(p for p in paths if f"-{n}-" in p.name) for n in ("random", "tiny"))
    gain = json.loads(cli("bench", "diff", random, trained, "--json").out)[0]
    assert gain["b"] > gain["a"] and gain["difference"] == pytest.approx(gain["b"] - gain["a"])
    assert "tiny − random (95 %)" in " ".join(cli("bench", "diff", random, trained).out.split())
    assert " − " in done.out and "(95 %)" in done.out and "image + instruction" in done.out
    same = json.loads(cli("bench", "diff", paths[0], paths[0], "--json").out)
    assert {(row["difference"], row["p"]) for row in same} == {(0.0, 1.0)}
    done = cli("bench", "report", "results", "--out", "report", "--data", small / "B")
    assert done.code == 0, done.err
    with open("report/report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"tiny", "random", "late:random"}
    assert "| **composition gap** |" in Path("report/report.md").read_text()
    for name in ("report.png", "answers-00-ctrlbench-B.png", "answers-02-ctrlbench-B.png"):
        with Image.open(Path("report") / name) as picture:
            assert min(picture.size) > 100
    done = cli("bench", "report", "results", "--out", "bare")
    assert "are not at hand; name their folder with --data" in done.err
    assert not list(Path("bare").glob("answers*"))


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("ctrlbench", "--tier", "X"), 2, "there is no tier 'X' to draw; choose G, B, S"),
        (("ctrlbench", "--data", "none"), 1, "there is no none/images.jsonl"),
        (("ctrlbench", "--out", "photo.jpg/results"), 1, "cannot be made"),
        (("build", "--tier", "R", "--out", "x"), 2, "there is no tier 'R' to draw"),
        (("diff", "photo.jpg", "photo.jpg"), 1, "photo.jpg is damaged"),
        (("report", "photos", "--out", "report"), 2, "photos holds no records"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_before_a_model_is_loaded(
    cli: Cli, here: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    model = ("--model", "no-such-model") if words[0] == "ctrlbench" else ()
    done = cli("bench", *words, *model)
    assert done.code == code
    assert sentence in done.error


def test_the_examples_work_one_after_the_other(
    cli: Cli, tiny: Path, here: Path, drawn: None
) -> None:
    lines = [line.split() for line in bench.EXAMPLES.splitlines() if "abc-embed" in line]
    assert len(lines) == 7
    for line in lines:
        words = [str(tiny) if w in ("runs/mine", "bundled") else w for w in line[1:]]
        if words[1] == "diff":
            for record, name in zip(
                sorted(Path("results").iterdir()), ("after", "before"), strict=True
            ):
                record.rename(f"results/{name}.json")
        done = cli(*words)
        assert done.code == 0, (shlex.join(words), done.err)
    assert Path("report/report.md").is_file() and Path("ctrlbench-b/card.json").is_file()
