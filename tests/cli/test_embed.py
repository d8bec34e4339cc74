"""`abc-embed embed`: the right vectors under the right names, in every format, or nothing."""

import json
import os
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_parts import Cli, leftovers, picture
from PIL import Image

from abc_embed import Embedder, Item
from abc_embed.cli import STOPPED, items, journal

# A vector does not depend on its company, but for the last bit of a sum.
CLOSE = {"rtol": 0, "atol": 1e-5}
PHOTOS = ["photos/a.JPG", "photos/b.png", "photos/more/c.webp"]


def lines(text: str) -> tuple[list[str], np.ndarray]:
    rows = [json.loads(line) for line in text.splitlines()]
    return [row["id"] for row in rows], np.array([row["vector"] for row in rows], np.float32)


@pytest.mark.parametrize("processes", [1, 2])
def test_npy_and_names(
    cli: Cli, tiny: Path, embedder: Embedder, here: Path, processes: int
) -> None:
    several = () if processes == 1 else ("--processes", processes)
    done = cli("embed", "photo.jpg", "photos", "-o", "out.npy", "--model", tiny, *several)
    assert done.code == 0
    assert done.out == "4 vectors of 64 numbers in out.npy, names in out.ids.json\n"
    names = json.loads(Path("out.ids.json").read_text())
    assert names == ["photo.jpg", *PHOTOS]
    vectors = np.load("out.npy")
    assert (vectors.dtype, vectors.shape) == (np.float32, (4, 64))
    expected = embedder.embed([Item(image=name) for name in names])
    np.testing.assert_allclose(vectors, expected, **CLOSE)
    assert leftovers(here, {"photo.jpg", "photos"}) == {"out.npy", "out.ids.json"}


def test_other_files_of_a_folder_are_counted(cli: Cli, tiny: Path, here: Path) -> None:
    done = cli("embed", "photos", "-o", "out.npy", "--model", tiny)
    assert "photos: 3 images; 1 other files left out" in done.err


def test_texts_and_instruction_as_jsonl(
    cli: Cli, tiny: Path, embedder: Embedder, here: Path
) -> None:
    words = ("--text", "a dog", "--text", 'a "cat"', "--instruction", "what is on the left?")
    assert cli("embed", "photo.jpg", *words, "-o", "o.jsonl", "--model", tiny).code == 0
    names, vectors = lines(Path("o.jsonl").read_text())
    assert names == ["photo.jpg", "a dog", 'a "cat"']
    asked = Item(image="photo.jpg", instruction="what is on the left?")
    np.testing.assert_allclose(vectors, embedder.embed([asked, "a dog", 'a "cat"']), **CLOSE)


def test_small_vectors(cli: Cli, tiny: Path, here: Path) -> None:
    texts = ("embed", "--text", "a", "--text", "b", "--model", tiny, "-o", "out.npy")
    assert cli(*texts).code == 0
    full = np.load(here / "out.npy")
    assert cli(*texts, "--dim", 8, "--output", "ubinary").code == 0
    stored = np.load(here / "out.npy")
    assert (stored.dtype, stored.shape) == (np.uint8, (2, 1))
    assert np.array_equal(stored, np.packbits(full[:, :8] > 0, axis=1))
    refused = cli(*texts, "--output", "int8")
    assert (refused.code, "calibrate" in refused.err) == (2, True)


def test_parquet(cli: Cli, tiny: Path, embedder: Embedder, here: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert cli("embed", "photos", "-o", "o.parquet", "--model", tiny).code == 0
    table = parquet.read_table("o.parquet")
    assert table.column("id").to_pylist() == PHOTOS
    assert str(table.schema.field("vector").type) == "fixed_size_list<element: float>[64]"
    vectors = np.array(table.column("vector").to_pylist(), np.float32)
    np.testing.assert_allclose(vectors, embedder.embed([Item(image=p) for p in PHOTOS]), **CLOSE)


def test_without_a_file_jsonl_goes_to_stdout(
    cli: Cli, tiny: Path, embedder: Embedder, here: Path
) -> None:
    done = cli("embed", "--text", "a dog", "--model", tiny)
    names, vectors = lines(done.out)
    assert names == ["a dog"]
    np.testing.assert_allclose(vectors[0], embedder.embed("a dog"), **CLOSE)


def test_jsonl_gives_back_every_bit(cli: Cli, tiny: Path, here: Path) -> None:
    for out in ("o.npy", "o.jsonl"):
        cli("embed", "photo.jpg", "-o", out, "--model", tiny)
    assert np.array_equal(lines(Path("o.jsonl").read_text())[1], np.load("o.npy"))


LINES = b"""{"id": "first", "image": "photo.jpg"}
"a dog"

{"id": 7, "image": "photo.jpg", "instruction": "what is on the left?"}
{"text": "\xc3\xa4 cat"}
"""


def test_jsonl_on_stdin(cli: Cli, tiny: Path, embedder: Embedder, here: Path) -> None:
    assert cli("embed", "-", "-o", "o.npy", "--model", tiny, stdin=LINES).code == 0
    assert json.loads(Path("o.ids.json").read_text()) == ["first", "2", "7", "5"]
    asked = Item(image="photo.jpg", instruction="what is on the left?")
    expected = embedder.embed([Item(image="photo.jpg"), "a dog", asked, "ä cat"])
    np.testing.assert_allclose(np.load("o.npy"), expected, **CLOSE)


def test_a_window_is_answered_before_more_is_read(
    cli: Cli, tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def coming(_: object) -> Iterator[items.NamedItem]:
        for number in range(5):
            seen.append((number, sys.stdout.getvalue().count("\n")))  # type: ignore[attr-defined]
            yield items.NamedItem(str(number), Item(str(number)))

    with monkeypatch.context() as patched:
        patched.setattr(items, "from_lines", coming)
        assert len(lines(cli("embed", "-", "--window", "2", "--model", tiny).out)[0]) == 5
    assert seen == [(0, 0), (1, 0), (2, 2), (3, 2), (4, 4)]
    whole = cli("embed", "-", "--model", tiny, stdin=LINES).out
    names, vectors = lines(cli("embed", "-", "--window", "1", "--model", tiny, stdin=LINES).out)
    assert names == lines(whole)[0]
    np.testing.assert_allclose(vectors, lines(whole)[1], **CLOSE)


def test_a_picture_above_pillows_own_limit_shows_no_raw_warning(
    cli: Cli, tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [Image.new("P", (60, 50), colour) for colour in (1, 2)]
    frames[0].save("film.gif", save_all=True, append_images=frames[1:])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with warnings.catch_warnings(record=True) as shown:
        done = cli("embed", "film.gif", "--model", tiny)
    assert (done.code, shown) == (0, [])


def test_a_summary_for_programs(cli: Cli, tiny: Path, here: Path) -> None:
    Path("photos/bad.png").write_bytes(b"no picture")
    words = ("-o", "o.npy", "--on-error", "skip", "--json")
    summary = json.loads(cli("embed", "photos", *words, "--model", tiny).out)
    (skipped,) = summary.pop("skipped")
    assert summary == {
        "out": "o.npy",
        "ids": "o.ids.json",
        "count": 3,
        "dim": 64,
        "model": str(tiny),
    }
    assert skipped["id"] == "photos/bad.png"
    assert "not an image" in skipped["reason"]


def test_the_resolution_dial_in_tokens_and_in_pixels(
    cli: Cli, tiny: Path, embedder: Embedder, here: Path
) -> None:
    for out, area in (("a.npy", "2 tokens"), ("b.npy", str(2 * 28 * 28))):
        cli("embed", "photo.jpg", "-o", out, "--max-pixels", area, "--model", tiny)
    expected = embedder.embed(Item(image="photo.jpg"), max_pixels=2 * 28 * 28)
    np.testing.assert_allclose(np.load("a.npy")[0], expected, **CLOSE)
    assert np.array_equal(np.load("a.npy"), np.load("b.npy"))
    assert not np.allclose(np.load("a.npy")[0], embedder.embed(Item(image="photo.jpg")), **CLOSE)


BAD_LINES = b"""{"image": "photo.jpg"}
{"imge": "photo.jpg"}
{"image": "gone.jpg", "id": "x"}
{"text": "  "}
[1]
\xff
{"text": 3}
{"text": "a", "image": "photo.jpg"}
"a dog"
"""


def test_skipping_goes_on_and_ends_with_the_list(cli: Cli, tiny: Path, here: Path) -> None:
    words = ("-o", "o.npy", "--on-error", "skip", "--model", tiny)
    done = cli("embed", "-", *words, stdin=BAD_LINES)
    assert done.code == 0
    assert json.loads(Path("o.ids.json").read_text()) == ["1", "9"]
    assert np.load("o.npy").shape == (2, 64)
    lines_printed = done.err.splitlines()
    assert lines_printed[0] == "skipped 7 of 9:"
    reasons = dict(line.strip().split(": ", 1) for line in lines_printed[1:])
    expected = {
        "line 2": "'imge' is not known; the fields are id, text, image, instruction",
        "line 3": "there is no file 'gone.jpg'; check the path",
        "line 4": "the text is empty; give at least one word",
        "line 5": 'this is neither a text nor an object; give "a dog", or {"image": "photo.jpg"}',
        "line 6": "this is not UTF-8 (byte 0); give one JSON value per line",
        "line 7": "'text' is no text; give it in quotes",
    }
    assert {key: reasons[key] for key in expected} == expected
    assert reasons["line 8"].startswith("an item is a text or an image, not both")


def test_a_folder_that_may_not_be_read_is_skipped_like_a_picture(
    cli: Cli, tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = Path("photos/locked")
    locked.mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:  # the superuser may read everything
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    words = ("embed", "photos", "-o", "o.npy", "--model", tiny)
    assert "the folder 'photos/locked' cannot be read" in cli(*words).err
    assert not Path("o.npy").exists()
    done = cli(*words, "--on-error", "skip")
    assert (done.code, len(np.load("o.npy"))) == (0, 3)
    assert "skipped 1 of 4:" in done.err and "photos/locked" in done.err


def test_raising_names_the_line_and_writes_nothing(cli: Cli, tiny: Path, here: Path) -> None:
    before = {path.name for path in here.iterdir()}
    done = cli("embed", "-", "-o", "o.npy", "--model", tiny, stdin=BAD_LINES)
    assert done.code == 1
    assert done.error.startswith("line 2: 'imge' is not known")
    assert not leftovers(here, before)


def test_nothing_good_means_nothing_written(cli: Cli, tiny: Path, here: Path) -> None:
    words = ("-o", "o.npy", "--on-error", "skip", "--model", tiny)
    done = cli("embed", "gone.jpg", "lost.jpg", *words)
    assert done.code == 1
    assert done.error == "nothing could be embedded, and nothing is written"
    assert "skipped 2 of 2:" in done.err
    assert leftovers(here, {"photo.jpg", "photos"}) == set()


def test_a_failure_leaves_the_old_file_as_it_was(cli: Cli, tiny: Path, here: Path) -> None:
    cli("embed", "photo.jpg", "-o", "o.npy", "--model", tiny)
    before = {path: Path(path).read_bytes() for path in ("o.npy", "o.ids.json")}
    Path("photos/z.png").write_bytes(b"no picture")
    assert cli("embed", "photos", "-o", "o.npy", "--model", tiny).code == 1
    assert {path: Path(path).read_bytes() for path in before} == before
    assert cli("embed", "--text", "a dog", "-o", "o.npy", "--model", tiny).code == 0
    assert json.loads(Path("o.ids.json").read_text()) == ["a dog"]


def test_ctrl_c_in_the_middle_leaves_nothing(
    cli: Cli, tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some_then_ctrl_c(_: object) -> Iterator[items.NamedItem]:
        """Twenty texts: at a batch size of 1, two windows of them are embedded by then."""
        yield from from_lines(b'"text %d"' % number for number in range(20))
        signal.raise_signal(signal.SIGINT)

    from_lines = items.from_lines
    monkeypatch.setattr(items, "from_lines", some_then_ctrl_c)
    done = cli("embed", "-", "-o", "o.npy", "--batch-size", "1", "--model", tiny)
    assert (done.code, done.out, done.err) == (STOPPED, "", "Stopped.\n")
    assert leftovers(here, {"photo.jpg", "photos"}) == set()


def test_words_that_are_too_long_are_refused_or_cut(
    cli: Cli, tiny: Path, embedder: Embedder, here: Path
) -> None:
    words = ("embed", "--text", "dog! " * 2000, "--model", tiny, "-o", "o.npy")
    assert "at most 4,096" in cli(*words).error
    done = cli(*words, "--truncate", "end")
    assert (done.code, "1 items so far cut to the 4096 tokens" in done.err) == (0, True)
    few = embedder.embed("dog! " * 900)
    assert float(np.load("o.npy")[0] @ few) > 0.9


class Broken(BaseException):
    """Stands for a kill."""


def break_off(monkeypatch: pytest.MonkeyPatch, after: int) -> list[object]:
    """The model's stream ends the process after so many vectors; the items that it was given."""
    given: list[object] = []
    stream = Embedder.stream

    def some(self: Embedder, values: Iterable[object], **options: Any) -> Iterator[object]:
        def noted() -> Iterator[object]:
            for value in values:
                given.append(value)
                yield value

        for number, vector in enumerate(stream(self, noted(), **options)):
            if number == after:
                raise Broken
            yield vector

    monkeypatch.setattr(Embedder, "stream", some)
    return given


@pytest.mark.parametrize("out", ["o.npy", "o.jsonl", "o.parquet"])
def test_a_run_that_was_broken_off_goes_on(
    cli: Cli, tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """What is there is not embedded again, unless it changed; the file is that of a whole run."""
    for number in range(6):
        picture(number).save(here / "photos" / f"n{number}.png")
    words = ("embed", "photos", "--model", tiny, "--batch-size", 1, "-o")
    assert cli(*words, f"before_{out}").code == 0
    known = {path.name for path in here.iterdir()}
    monkeypatch.setattr(journal, "KEPT_AFTER_S", 0.0)
    with monkeypatch.context() as patched, pytest.raises(Broken):
        break_off(patched, 5)
        cli(*words, out)
    assert leftovers(here, known) == {f".{out}.journal"}
    broken = Path(f".{out}.journal").read_bytes()
    Path(f".{out}.journal").write_bytes(broken[:-7])  # a kill in the middle of a line
    picture(9).save(here / "photos" / "n0.png")  # the third, after a and b
    with monkeypatch.context() as patched:
        given = break_off(patched, 99)
        done = cli(*words, out)
    assert done.code == 0
    names = [str(item.image) for item in given if isinstance(item, Item)]
    assert len(names) == 6 and names[0] == "photos/n0.png"  # three of nine are as they were
    assert "4 vectors are there of a run that was broken off; going on at item 3" in done.err
    assert cli(*words, f"after_{out}").code == 0
    files = {name: sorted(here.glob(f"{name}o.*")) for name in ("", "before_", "after_")}
    content = {name: [path.read_bytes() for path in paths] for name, paths in files.items()}
    assert content[""] == content["after_"] != content["before_"]
    assert not list(here.glob(".*journal"))


def test_another_job_does_not_go_on(
    cli: Cli, tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "KEPT_AFTER_S", 0.0)
    words = ("embed", "photos", "--model", tiny, "-o", "o.npy")
    with monkeypatch.context() as patched, pytest.raises(Broken):
        break_off(patched, 2)
        cli(*words)
    with monkeypatch.context() as patched:
        given = break_off(patched, 99)
        done = cli(*words, "--dim", 8)
    assert (done.code, len(given), "broken off" in done.err) == (0, 3, False)
    assert np.load("o.npy").shape == (3, 8)


def test_a_bad_item_ends_the_run_and_what_is_there_is_kept(
    cli: Cli, tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "KEPT_AFTER_S", 0.0)
    Path("photos/z.png").write_bytes(b"no picture")
    words = ("embed", "photos", "--model", tiny, "-o", "o.jsonl")
    done = cli(*words)
    assert done.code == 1 and "the same command goes on" in done.err
    done = cli(*words, "--on-error", "skip")
    assert (done.code, "2 vectors are there" in done.err) == (0, True)
    assert lines(Path("o.jsonl").read_text())[0] == PHOTOS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "there is nothing to embed"),
        (("--text", "a dog", "--instruction", "left?"), "an instruction goes with images"),
        (("-", "photo.jpg"), "with - all items come from stdin"),
        (("photo.jpg", "--json"), "--json describes the file that is written"),
        (("photo.jpg", "--window", "1"), "--window is for lines on stdin"),
        (("photo.jpg", "-o", "out.txt"), "'out.txt' does not end in .npy, .jsonl, .parquet"),
        (("photo.jpg", "--max-pixels", "a lot"), "--max-pixels is 'a lot'"),
        (("photo.jpg", "--max-pixels", "10"), "max_pixels is 10, less than one visual token"),
    ],
)
def test_wrong_usage(
    cli: Cli, tiny: Path, here: Path, words: tuple[str, ...], message: str
) -> None:
    done = cli("embed", *words, "--model", tiny)
    assert (done.code, done.out) == (2, "")
    assert message in done.error


def test_parquet_without_its_package_names_the_pip_line(
    cli: Cli, tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = cli("embed", "photo.jpg", "-o", "o.parquet", "--model", tiny)
    assert done.code == 1
    assert "pip install 'abc-embed[mine]'" in done.error


def test_a_bad_argument_is_found_before_the_model_is_loaded(cli: Cli, here: Path) -> None:
    done = cli("embed", "photo.jpg", "a dog", "-o", "o.npy", "--model", "no-such-model")
    assert done.error.startswith("there is no file 'a dog'; check the path (a text is given with")


@pytest.mark.parametrize("lines", [(None, 1), (2, None)])
def test_a_number_as_id_and_a_line_of_that_number(lines: tuple[int | None, ...]) -> None:
    text = [json.dumps({"text": f"t{n}", "id": name}).encode() for n, name in enumerate(lines)]
    first, second = items.from_lines(text)
    assert first.error is None and "that of another line too" in str(second.error)
    apart = [b'\xef\xbb\xbf{"text": "a", "id": 7}', b'"b"', b'{"text": "c", "id": 9}']
    assert [item.name for item in items.from_lines(apart)] == ["7", "2", "9"]
    assert all(item.error is None for item in items.from_lines(apart))
