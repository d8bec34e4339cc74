"""What people ran into at the command line: encodings, narrow terminals, help, early refusals."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_parts import Cli, picture
from PIL import Image

from abc_embed import figures
from abc_embed.cli import plot, run
from abc_embed.cli.output import Printer
from abc_embed.cli.rankings import Ranking


def test_an_output_that_lacks_letters_is_no_end(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a redirected one on Windows: what it has no letter for becomes an escape."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    assert run(["scenes", "--count", "2", "--out", "\u72ac"]) == 0
    shown = out.buffer.getvalue().decode("cp1252")  # type: ignore[attr-defined]
    assert "2 scenes in \\u72ac;" in shown


CLOSED = [  # by the shell, words, exit code, on stderr
    (">&-", ("scenes", "--count", "2", "--out", "drawn"), 1, "Error: the output: stdout is closed"),
    ("<&-", ("scenes", "--count", "2", "--out", "drawn"), 0, ""),
    ("<&- >&-", ("embed", "--bogus"), 2, "Error: No such option"),
    ("<&- >&- 2>&-", ("--help",), 1, ""),
]


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes them")
@pytest.mark.parametrize(("closed", "words", "code", "sentence"), CLOSED)
def test_closed_streams_are_no_traceback(
    here: Path, closed: str, words: tuple[str, ...], code: int, sentence: str
) -> None:
    """The work is done all the same; files do not get the numbers of the streams."""
    command = f'"$0" -m abc_embed "$@" {closed}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, *words], capture_output=True, text=True
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr and sentence in done.stderr
    if words[0] == "scenes":
        assert len(list(Path("drawn/images").iterdir())) == 2
        assert b"closed" not in Path("drawn/records.jsonl").read_bytes()


def test_a_closed_stdin_is_an_empty_one(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert run(["embed", "-", "--model", str(tiny)]) == 1
    assert capsys.readouterr().err == "Error: nothing could be embedded, and nothing is written\n"
    sys.stdin.close()


def test_numbers_are_not_broken_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("abc_embed.cli.output.PIPED_WIDTH", 80)
    columns = ("model", "image alone", "words alone", "their sum", "any of these", "together")
    cell = "0.233 (0.221\N{EN DASH}0.246)"
    Printer().table(columns, [("bundled", *[cell] * 5), ("random", *[cell] * 5)])
    shown = capsys.readouterr().out
    assert shown.count(cell) == 10
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert shown.split()[:3] == ["model", "bundled", "random"]  # rows and columns changed places


@pytest.mark.parametrize("words", [(), ("data",), ("bench",), ("index",), ("train",)])
def test_lists_of_commands_are_whole(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = cli(*words, "-h")
    assert done.code == 0
    assert "..." not in done.out.partition("Commands:")[2].partition("Examples:")[0]
    assert all(len(line) <= 80 for line in done.out.partition("Examples:")[0].splitlines())


def test_values_have_plain_names_and_examples_are_ones_own(cli: Cli) -> None:
    shown = cli("bench", "ctrlbench", "--help").out
    assert "--limit N" in shown and "--out PATH" in shown and "int range" not in shown
    examples = cli("bench", "diff", "--help").out.partition("Examples:")[2].split("\n")
    assert [line.strip() for line in examples if line.strip()] == [
        "abc-embed bench diff results/before.json results/after.json"
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [("abc-embed comp", "compare"), ("abc-embed embed --instr", "--instruction")],
)
def test_a_shell_completes(line: str, expected: str) -> None:
    code = "from abc_embed.cli import main; import sys; sys.argv = ['abc-embed']; main()"
    environment = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    import os

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment, "_ABC_EMBED_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [expected], done.stderr


EARLY = [
    (["compare", "photo.jpg", "a dog", "--model", "no-such"], 1),
    (["compare", "photo.jpg", "a dog", "--dtype", "int3"], 2),
    (["search", "photos", "a dog", "--device", "tpu"], 2),
    (["embed", "photo.jpg", "-o", "out.xyz"], 2),
    (["embed", "photo.jpg", "--model", "no-such"], 1),
    (["embed", "photo.jpg", "--output", "int3", "-o", "out.npy"], 2),
    (["mine", "no-such", "--out", "mined.parquet"], 1),
    (["mine", "photos", "--model", "no-such", "--out", "mined.parquet"], 1),
    (["bench", "ctrlbench", "--tier", "Z"], 2),
    (["bench", "ctrlbench", "--data", "no-such"], 1),
    (["bench", "ctrlbench", "--outputs", "int3"], 2),
    (["bench", "ctrlbench", "--dtype", "int3"], 2),
    (["bench", "audit", "scenes", "--model", "no-such"], 1),
    (["bench", "evidence", "--model", "no-such"], 1),
    (["bench", "robust", "--device", "tpu"], 2),
    (["index", "build", "new.index", "no-such"], 1),
    (["index", "build", "new.index", "photos", "--dtype", "int3"], 2),
    (["bench", "audit", "no-such"], 1),
    (["bench", "records", "no-such"], 1),
    (["mine", "records", "--out", "mined.xyz"], 2),
    (["serve", "--model", "no-such"], 1),
]


def test_cheap_mistakes_are_found_before_torch_is_imported(here: Path) -> None:
    Path("records").mkdir()
    Path("records/records.jsonl").write_text("{}\n")
    code = (
        "import json, sys\nfrom abc_embed.cli import run\n"
        f"codes = [run(words) for words in {[words for words, _ in EARLY]!r}]\n"
        "sys.stdout.write(json.dumps([codes, 'torch' in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[code for _, code in EARLY], False], done.stderr


def test_a_wrong_choice_is_refused_in_plain_words(cli: Cli) -> None:
    done = cli("compare", "photo.jpg", "a dog", "--dtype", "int3")
    assert done.code == 2
    assert "Invalid value for '--dtype': 'int3' is not one of 'auto', 'float32'" in done.error


def test_runs_that_are_not_there_are_named(cli: Cli, here: Path) -> None:
    done = cli("train", "plot", "runs/a", "runs/b", "--out", "x.png")
    assert done.code == 1
    assert "there is no run runs/a" in done.error


# -- pictures --------------------------------------------------------------------------------------


def test_texts_of_a_picture_are_whole_in_any_script() -> None:
    """A long one takes lines, a further script another face, and what is hidden is said."""
    long = "a dog that stands on the left side of a very long picture beside a cat " * 2
    lines = figures.wrap_text(long, 17, 400)
    assert " ".join(lines).split() == long.split()
    assert all(figures.text_width(line, 17) <= 400 for line in lines)
    assert "".join(figures.wrap_text("x" * 200, 17, 300)) == "x" * 200

    def height(count: int) -> int:
        texts = [f"text {number}" for number in range(count)]
        return plot.draw(picture(0), [Ranking(None, texts, [0.5] * count)]).height

    assert (
        height(plot.MOST + 1) - height(plot.MOST)
        == plot.LINE
        == (height(plot.MOST + 20) - height(plot.MOST))
    )


@pytest.mark.parametrize("text", ["собака", "ένας σκύλος", "très à gauche"])
def test_further_letters_are_drawn(text: str) -> None:
    """With matplotlib's faces, where Pillow's own has none: no two letters look alike."""
    pytest.importorskip("matplotlib")
    drawn = set()
    letters = {letter for letter in text if letter.isalpha()}
    for letter in letters:
        page = Image.new("L", (60, 60))
        from PIL import ImageDraw

        figures.draw_text(ImageDraw.Draw(page), (10, 10), letter, "white", 30)  # type: ignore[arg-type]
        assert np.asarray(page).any()
        drawn.add(page.tobytes())
    assert len(drawn) == len(letters)


def test_a_chart_falls_back_to_faces_that_have_its_letters(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And says once, not in a warning of matplotlib's, what no face has."""
    pytest.importorskip("matplotlib")
    chart = figures.new_figure(3, 2)
    title = chart.add_subplot().set_title("собака \U0010fffd")
    for _ in range(2):
        figures.save_figure(chart, Path("chart.png"), dpi=50)
    assert title.get_fontfamily()[0] == "sans-serif" and "DejaVu Sans" in title.get_fontfamily()
    assert [m for m in caplog.messages if m.startswith("no font on this machine has")] == [
        "no font on this machine has \U0010fffd, so they are boxes in the picture; "
        "install one that has them, such as Noto Sans"
    ]
