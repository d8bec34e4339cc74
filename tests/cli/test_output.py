"""What is printed: cells as they are, no control characters."""

from pathlib import Path
from typing import get_args

import pytest

from abc_embed.cli import output
from abc_embed.cli.options import Dtype, NumberFormat, parse_area
from abc_embed.errors import OutputError, UsageError
from abc_embed.runtime import DTYPES
from abc_embed.storage.files import check_writable
from abc_embed.vectors import OUTPUTS


def test_a_table_keeps_what_looks_like_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output.Printer().table(
        ("n", "text"), [(1, "[red]x[/red]"), (10, "\x1b[31mred\x07")], title="[b]t"
    )
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "[b]t"
    assert "[red]x[/red]" in out
    assert "\\x1b[31mred\\x07" in out
    assert "\x1b" not in out


def test_numbers_stand_on_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    output.Printer().table(("", "cosine"), [("a", 0.5), ("b", -0.25)])
    first, second = (line for line in capsys.readouterr().out.splitlines() if "0." in line)
    assert first.endswith(" 0.500")
    assert len(first) == len(second)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("ä τ 犬", "ä τ 犬"), ("a\tb\n", "a\\tb\n"), ("\udcff", "\\udcff"), ("\u202e", "\\u202e")],
)
def test_what_can_be_printed(text: str, shown: str) -> None:
    assert output.printable(text) == shown


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "x.npy")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match="make it first"):
        check_writable(tmp_path / "gone" / "x.npy")


@pytest.mark.parametrize(
    ("text", "area"),
    [("200704", (200704, False)), ("256 tokens", (256, True)), (" 1token ", (1, True))],
)
def test_areas(text: str, area: tuple[int, bool]) -> None:
    assert parse_area(text) == area


@pytest.mark.parametrize("text", ["", "tokens", "-5", "1.5", "256 pixels", "٣"])
def test_what_is_no_area(text: str) -> None:
    with pytest.raises(UsageError, match="--max-pixels is"):
        parse_area(text)


def test_the_formats_that_options_take_are_those_that_there_are() -> None:
    assert get_args(NumberFormat) == OUTPUTS
    assert get_args(get_args(Dtype)[0]) == ("auto", *DTYPES)
