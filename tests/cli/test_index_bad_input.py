"""`abc-embed index` and a search of one, given what cannot be used, or stopped by Ctrl-C.

One sentence, the right exit code, and an index that is as it was.
"""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from cli_parts import Cli, picture
from golden_parts import BASE, PRETRAIN

from abc_embed import Embedder
from abc_embed.pixels import ImageBudget
from abc_embed.search import Index, cutoff
from abc_embed.search.table import ImageTable
from abc_embed.search.update import _Update

ASK = ("search", "my.index", "a dog", "--ask", "what is on the left?")


@pytest.fixture
def built(cli: Cli, tiny: Path, here: Path) -> Path:
    """An index of the three images in `photos/`."""
    assert cli("index", "build", "my.index", "photos", "--model", tiny).code == 0
    return here / "my.index"


def paths(folder: Path) -> list[str]:
    """What a whole index holds."""
    index = Index.open(folder)
    assert index.check() == []
    return sorted(index.paths())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("index", "build", "my.index", "none"), 1, "no image in the folder"),
        (("index", "add", "my.index", "none"), 1, "no image in the folder"),
        (("index", "add", "my.index", "gone"), 1, "gone"),
        (("index", "build", "my.index", "photos", "--where", "nope > 1"), 2, "named nope"),
        (("index", "add", "my.index", "--where", "width >"), 2, "Expected: an expression"),
        (("index", "add", "my.index", "--where", "width > 'a'"), 2, "refuses the filter"),
        (("index", "add", "my.index", "--where", "vector = 1"), 2, "named vector"),
        (("index", "add", "my.index", "x.npy", "--where", "true"), 2, "is for images"),
        (("index", "remove", "my.index", "gone"), 1, "holds none of them"),
        (("index", "check", "gone"), 1, "is no index"),
        (("index", "compact", "gone"), 1, "is no index"),
        ((*ASK, "--where", "nope > 1"), 2, "named nope"),
        ((*ASK, "--where", "width >"), 2, "Expected: an expression"),
        ((*ASK, "--where", "width > 999"), 1, "no image to look at"),
        ((*ASK, "--budget", "0"), 2, "above 0 and at most 1"),
        ((*ASK, "--budget", "-0.5"), 2, "above 0 and at most 1"),
        ((*ASK, "--budget", "1.01"), 2, "above 0 and at most 1"),
        ((*ASK, "--budget", "nan"), 2, "above 0 and at most 1"),
        (("search", "my.index", "a dog", "--explain"), 2, "--explain is drawn"),
        (("search", "my.index", "a dog", "--keep-tokens"), 2, "give an instruction with --ask"),
    ],
)
def test_bad_input_leaves_the_index_as_it_was(
    cli: Cli, built: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    Path("none").mkdir()
    before, settings = paths(built), (built / "index.json").read_text()
    done = cli(*words)
    assert (done.code, done.out) == (code, "")
    assert message in done.error
    assert "\n" not in done.error
    assert (paths(built), (built / "index.json").read_text()) == (before, settings)


def test_an_empty_index(cli: Cli, tiny: Path, here: Path) -> None:
    Path("none").mkdir()
    assert cli("index", "build", "my.index", "none", "--model", tiny).code == 1
    for words, message in ((ASK, "no image to look at"), (ASK[:3], "is empty; add images")):
        done = cli(*words)
        assert (done.code, done.out) == (1, "")
        assert message in done.error
    assert cli("index", "check", "my.index").out == "0 images, all of them whole\n"
    assert cli("index", "compact", "my.index").code == 0
    assert cli("index", "info", "my.index").code == 0


def test_a_model_that_cannot_be_asked(cli: Cli, here: Path, tmp_path: Path) -> None:
    embedder = Embedder.from_adapters(BASE, PRETRAIN, device="cpu")
    embedder.processor.image = ImageBudget(min_pixels=28 * 28, max_pixels=6 * 28 * 28)
    embedder.save(tmp_path / "plain")
    assert cli("index", "build", "my.index", "photos", "--model", tmp_path / "plain").code == 0
    done = cli(*ASK)
    assert (done.code, done.out) == (1, "")
    assert "no instruction adapter" in done.error


def test_files_that_are_gone_when_looked_at(cli: Cli, built: Path) -> None:
    Path("photos/b.png").unlink()
    Path("photos/a.JPG").write_bytes(b"no picture")
    done = cli(*ASK, "--budget", 1, "--json", "--plot", "hits.png")
    assert [hit["path"] for hit in json.loads(done.out)["hits"]] == ["photos/more/c.webp"]
    assert "2 of them are gone or damaged, and left out" in done.err
    shutil.rmtree("photos")
    done = cli(*ASK, "--budget", 1)
    assert (done.code, done.out) == (1, "")
    assert "none of the 3 images" in done.error
    done = cli("search", "my.index", "a dog", "--all", "--plot", "hits.png")
    assert (done.code, done.err.count("not drawn")) == (0, 3)


@pytest.mark.parametrize(
    ("words", "owner", "name"),
    [
        (("index", "build", "my.index", "photos"), _Update, "take"),
        (("index", "build", "new.index", "photos"), cutoff, "calibrate"),
        (("index", "add", "my.index"), _Update, "save"),
        (("index", "add", "my.index"), ImageTable, "patch"),
        (("index", "add", "my.index"), Index, "save_settings"),
        (("index", "remove", "my.index", "photos/b.png"), ImageTable, "delete"),
        (("index", "info", "my.index"), ImageTable, "fragments"),
        (("index", "check", "my.index"), ImageTable, "decode"),
        (("index", "compact", "my.index"), ImageTable, "optimize"),
        (("search", "my.index", "a dog"), ImageTable, "nearest"),
        (ASK, Index, "promising"),
        ((*ASK, "--budget", "1"), Embedder, "stream"),
    ],
)
def test_ctrl_c_in_each_command(
    cli: Cli,
    built: Path,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    owner: Any,
    name: str,
) -> None:
    picture(7).save("photos/new.png")
    before = set(paths(built))
    work = getattr(owner, name)

    def interrupted(*values: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return work(*values, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        more = ("--model", tiny) if words[1] == "build" else ()
        done = cli(*words, *more)
    assert (done.code, done.out) == (130, "")
    assert done.err.rstrip().endswith("Stopped.")
    after = set(paths(built))
    assert before - after <= {str(Path("photos/b.png").absolute())}
    assert after - before <= {str(Path("photos/new.png").absolute())}
    built = Path("new.index") if "new.index" in words else built
    assert cli("index", "add", built, "--model", tiny).code == 0  # it goes on
    assert len(paths(built)) == 4
