"""Progress bars: a line now and then without a terminal, whole units, what stays at the end."""

import pytest

from abc_embed import progress


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_EVERY_S", 0.0)
    with progress.progress_bar("drawing") as on_progress:
        on_progress(1)
        on_progress(1500, 2000)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "drawing 1\ndrawing 1,500 of 2,000\n")


def test_a_status_is_shown_and_no_line_twice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_EVERY_S", 0.0)
    with progress.progress_bar("step", 2, first=1, transient=False) as on_progress:
        on_progress(2, status="loss 0.5")
    assert capsys.readouterr().err == "step 2 of 2  loss 0.5\n"


def test_progress_is_silent_when_it_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar("drawing", 3) as on_progress:
        for done in range(3):
            on_progress(done)
    assert capsys.readouterr() == ("", "")


def test_units_and_the_state_that_stays(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar("fetching MB", unit=2**20, transient=False) as on_progress:
        on_progress(3 * 2**20 + 1, 5 * 2**20)
    assert capsys.readouterr() == ("", "fetching MB 3 of 5\n")


def test_tracked_results_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track(iter("abc"), 3, True)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""  # no terminal, and quick: nothing to say
    assert list(progress.track(iter("abc"), 3, False)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
