"""The page of the paper in miniature: honest words, and the very page that the results give."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sources

from experiments.miniature import report, run
from experiments.miniature.evaluate import SCORES
from experiments.miniature.findings import COMPARISONS, Comparison, change, mean_and_spread, verdict
from experiments.miniature.plan import CONDITIONS, START


def line(condition: str, seed: int, score: float, tau: float = 0.05) -> dict[str, Any]:
    return {
        "key": f"{condition} {seed}",
        "condition": condition,
        "seed": seed,
        "weights": "0123456789abcdef",
        "scores": dict.fromkeys(SCORES, score),
        "tau": tau,
        "curve": [{"step": 1, "loss": 2.0, "accuracy": 0.5, "tau": tau}],
        "seconds": 60.0,
    }


RISING = Comparison(
    title="t", score="instructed", conditions=(("a", "A"), ("b", "B")), paper="1 → 2"
)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ((0.1, 0.2), (0.3, 0.4), "agrees: rises by 0.200, beyond"),
        ((0.1, 0.3), (0.2, 0.5), "**not shown**: rises by 0.150, within"),
        ((0.3, 0.4), (0.1, 0.2), "**does not agree**: falls by 0.200, beyond"),
        ((0.2, 0.5), (0.1, 0.3), "**not seen**: falls by 0.150, within"),
        ((0.1,), (0.3,), "agrees: rises by 0.200, 1 seed, spread unknown"),
        ((0.3,), (0.1,), "**does not agree**: falls by 0.200, 1 seed"),
        ((0.1,), (), "not run"),
    ],
)
def test_verdicts(a: tuple[float, ...], b: tuple[float, ...], words: str) -> None:
    lines = [line("a", i, v) for i, v in enumerate(a)] + [line("b", i, v) for i, v in enumerate(b)]
    assert verdict(RISING, lines).startswith(words)


def test_equal_runs_stay_and_nothing_is_made_up() -> None:
    same = [line(name, i, 0.5) for name in "ab" for i in range(3)]
    assert verdict(replace(RISING, expected="stays"), same).startswith("agrees")
    assert verdict(RISING, same).startswith("**does not agree**: stays")
    assert verdict(replace(RISING, expected=""), same) == "stays; nothing to agree with"
    assert change([0.1, 0.2], [0.2, 0.3]) == ("rises", False)
    assert mean_and_spread([]) == "not run" and mean_and_spread([0.5]) == "0.500"
    assert mean_and_spread([0.4, 0.5, 0.6]) == "0.500 ± 0.100"


def test_the_page_tells_what_is_missing(tmp_path: Path) -> None:
    lines = [line(START.name, 0, 0.1)]
    lines += [line(c.name, 1, 0.3) for c in CONDITIONS if c.name != "batch-x4"]
    page, picture = report.write_report(lines, tmp_path)
    text = page.read_text()
    assert "32 images: not run" in text and "batch-x4 (0)" in text and "mined-6 (1)" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert text.count("\n| ") == 1 + len(COMPARISONS) + 1


def test_the_page_is_the_one_of_the_results() -> None:
    results = sources.ROOT / "results" / run.RESULTS_FILE
    lines = list(run.read_results(results).values())
    assert lines
    assert report.text(lines) == (sources.ROOT / "docs" / report.PAGE).read_text(encoding="utf-8")
