"""`abc-embed plan` and `bench speed`: what they print, write and refuse."""

import json
from pathlib import Path

import pytest
from cli_parts import Cli

from abc_embed.cli.output import duration
from abc_embed.speed import costs, plan


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(costs.PEAK_SIDE, "cpu", 128)
    monkeypatch.setattr(plan, "PROBE_S", 0.05)
    monkeypatch.setattr(plan, "TILES", 16)


def test_a_source_is_planned_and_the_job_says_how_far_off(cli: Cli, tiny: Path, here: Path) -> None:
    done = cli("plan", "embed", "photos", "--model", tiny, "-o", "plan.json")
    assert done.code == 0, done.err
    assert "3 items with" in done.out and "memory at its peak" in done.out
    written = json.loads(Path("plan.json").read_text())
    assert written["units"] == 3 and written["model"] == str(tiny)
    assert written["total_bytes"] == sum(written["memory"].values())
    words = ("embed", "photos", "--model", tiny, "-o", "out.npy")
    job = cli(*words, "--plan", "plan.json")
    assert job.code == 0 and "of processor time, took" in job.err
    assert "planned" not in cli(*words).err
    other = cli("embed", "photos", "-o", "x.npy", "--plan", "plan.json")
    assert other.code == 2 and "make one for this job" in other.err and not Path("x.npy").exists()
    assert cli("embed", "photos", "--plan", "plan.json").code == 2
    assert cli(*words, "--plan", "photo.jpg").code == 1


def test_numbers_and_a_shape_are_planned(cli: Cli, here: Path) -> None:
    words = ("--images", 1000, "--instructions", 4, "--texts", 500, "--size", "64x48")
    done = cli("plan", "embed", *words, "--shape", "tiny", "--gpus", 2, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["units"] == 4500 and found["devices"] == 2 and found["model"] == "tiny"
    assert found["memory"]["weights with the adapter merged in"] > 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "give a source of images"),
        (["photos", "--images", "3"], "give a source of images"),
        (["--images", "3", "--size", "wide"], "give width x height"),
        (["--texts", "3", "--compile"], "leave out --compile"),
        (["--texts", "3", "--shape", "tiny", "--model", "other"], "leave out --model"),
        (["notes.txt"], "there is no image"),
    ],
)
def test_what_cannot_be_planned(cli: Cli, here: Path, words: list[str], sentence: str) -> None:
    done = cli("plan", "embed", *words)
    assert done.code == 2 and sentence in done.err


def test_a_recipe_that_cannot_start_is_said(cli: Cli, here: Path) -> None:
    Path("recipe.toml").write_text('stage = "pretrain"\n')
    done = cli("plan", "train", "--config", "recipe.toml")
    assert done.code == 1 and "adapter is missing" in done.err


def test_bench_speed_prints_keeps_and_draws(cli: Cli, here: Path) -> None:
    words = ("--images", 4, "--rounds", 1, "--size", "64x48", "--instructions", 2)
    done = cli("bench", "speed", "--shape", "tiny", *words, "-o", "speed")
    assert done.code == 0, done.err
    assert "of the peak" in done.out and "GFLOP/s" in done.out and "tokenise" in done.out
    kept = sorted(path.suffix for path in Path("speed").iterdir())
    assert kept == [".json", ".png"]
    refused = cli("bench", "speed", "--shape", "tiny", "--model", "x")
    assert refused.code == 2 and "leave out --model" in refused.err
    assert "width x height" in cli("bench", "speed", "--size", "9").err


def test_times_in_words() -> None:
    assert [duration(s) for s in (3.21, 600, 36_000)] == ["3.2 s", "10 minutes", "10.0 hours"]
