"""Curves of runs: what is drawn, and what a user hears when it cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from abc_embed.errors import DataError, OutputError, UsageError
from abc_embed.train.plot import _figure, _names, _rows, _validation, draw_runs, smoothed


def run(folder: Path, steps: int = 30, slope: float = 1.0) -> Path:
    """A folder as a run leaves it."""
    folder.mkdir(parents=True)
    rows = [
        {
            "step": step,
            "loss": 3 / (1 + slope * step / steps),
            "accuracy": step / steps,
            "tau": 0.07 - 0.03 * step / steps,
            "grad_norm": 2.0 / step,
        }
        for step in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_two_runs_in_one_picture(tmp_path: Path) -> None:
    out = draw_runs([run(tmp_path / "one"), run(tmp_path / "two", slope=3)], tmp_path / "runs.png")
    with Image.open(out) as picture:
        assert picture.format == "PNG" and min(picture.size) > 600
        assert len(picture.convert("RGB").resize((200, 100)).getcolors(20_000) or []) > 10


def test_every_panel_holds_every_run(tmp_path: Path) -> None:
    curves = {name: _rows(run(tmp_path / name) / "metrics.jsonl") for name in ("a", "b")}
    figure = _figure(curves, {})
    assert [axes.get_title(loc="left").split()[0] for axes in figure.axes] == [
        "loss",
        "accuracy",
        "temperature",
        "gradient",
    ]
    for axes, key in zip(figure.axes, ("loss", "accuracy", "tau", "grad_norm"), strict=True):
        drawn = [line.get_ydata() for line in axes.get_lines()]
        assert len(drawn) == 4  # of each run the lines and their mean
        assert np.array_equal(drawn[0], curves["a"][key])
    assert figure.axes[3].get_yscale() == "log"


def test_no_half_steps(tmp_path: Path) -> None:
    figure = _figure({"a": _rows(run(tmp_path / "a", steps=4) / "metrics.jsonl")}, {})
    assert all(tick == round(tick) for axes in figure.axes for tick in axes.get_xticks())


def test_no_axis_has_room_for_what_cannot_be(tmp_path: Path) -> None:
    steps = np.array([1.0, 2.0])
    checks = {"a": {"loss": (steps, np.array([0.0, 3.0])), "r1": (steps, np.array([0.0, 1.0]))}}
    figure = _figure({"a": _rows(run(tmp_path / "a") / "metrics.jsonl")}, checks)
    assert len(figure.axes) == 6
    assert all(axes.get_ylim()[0] >= 0 for axes in figure.axes)
    assert all(figure.axes[place].get_ylim()[1] <= 1 for place in (1, 5))


def test_each_kind_of_question_has_its_curve_and_chance_is_said(tmp_path: Path) -> None:
    folder = run(tmp_path / "a")
    told = {"value": 0.9, "interval": [0.8, 0.95], "of": 60, "chance": 0.3}
    guessed = {"value": 0.3, "interval": [0.2, 0.4], "of": 60, "chance": 0.3}
    lines = [
        {"step": step, "loss": 1.0, "r1": 0.6, "kinds": {"colour": told, "shape": guessed}}
        for step in (0, 10)
    ]
    (folder / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    checks = {"a": _validation(folder / "validation.jsonl")}
    figure = _figure({"a": _rows(folder / "metrics.jsonl")}, checks)
    assert len(figure.axes) == 7
    drawn = {line.get_label(): list(line.get_ydata()) for line in figure.axes[6].get_lines()}
    assert drawn == {"colour": [0.9, 0.9], "shape (at chance)": [0.3, 0.3]}
    figure.draw_without_rendering()
    lowest = min(axes.get_tightbbox().y0 for axes in figure.axes[:6])
    assert figure.axes[6].get_tightbbox().y1 <= lowest  # no panel lies on another
    assert draw_runs([folder], tmp_path / "a.png").exists()


def test_runs_are_called_by_what_differs(tmp_path: Path) -> None:
    files = [tmp_path / "x/seed" / "metrics.jsonl", tmp_path / "y/seed" / "metrics.jsonl"]
    assert list(_names(files)) == ["x/seed", "y/seed"]
    assert list(_names([files[0], tmp_path / "z" / "metrics.jsonl"])) == ["seed", "z"]
    with pytest.raises(UsageError, match="named twice"):
        _names([files[0], files[0]])


def test_the_mean_keeps_a_straight_line_and_its_length() -> None:
    line = np.linspace(0, 1, 201)
    assert smoothed(line)[20:-20] == pytest.approx(line[20:-20])
    noise = np.random.default_rng(0).normal(size=500)
    assert smoothed(noise).std() < 0.5 * noise.std() and len(smoothed(noise)) == 500
    assert smoothed(noise[:3]).tolist() == noise[:3].tolist()


def test_what_cannot_be_drawn_is_one_sentence(tmp_path: Path) -> None:
    good = run(tmp_path / "good")
    with pytest.raises(DataError, match=r"there is no run .*gone"):
        draw_runs([tmp_path / "gone"], tmp_path / "x.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="has no lines yet"):
        draw_runs([tmp_path / "empty"], tmp_path / "x.png")
    (tmp_path / "empty/metrics.jsonl").write_text('{"step": 1, "loss": 2}\n')
    with pytest.raises(DataError, match="no log of a training run"):
        draw_runs([tmp_path / "empty"], tmp_path / "x.png")
    with pytest.raises(UsageError, match=r"ends in \.png"):
        draw_runs([good], tmp_path / "x.gif")
    with pytest.raises(OutputError, match="cannot be written"):
        draw_runs([good], tmp_path / "no" / "x.png")
    assert not (tmp_path / "x.png").exists()
