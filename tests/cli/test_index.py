"""`abc-embed index`, and `abc-embed search` of an index."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_parts import Cli, picture
from PIL import Image

from abc_embed import Embedder, Item
from abc_embed.cli import index as command


@pytest.fixture
def built(cli: Cli, tiny: Path, here: Path) -> Path:
    """An index of the three images in `photos/`."""
    done = cli("index", "build", "my.index", "photos", "--model", tiny)
    assert (done.code, done.out) == (
        0,
        "3 images, 3 added, 0 changed, 0 found, 0 vanished, 0 unchanged\n",
    )
    return here / "my.index"


def search(cli: Cli, *words: object) -> list[dict[str, Any]]:
    done = cli("search", "my.index", *words, "--json")
    assert done.code == 0, done.err
    hits: list[dict[str, Any]] = json.loads(done.out)["hits"]
    return hits


def test_the_examples_work_one_after_the_other(cli: Cli, tiny: Path, here: Path) -> None:
    lines = [line.strip() for line in command.EXAMPLES.splitlines() if "abc-embed" in line]
    assert len(lines) == 7
    for line in lines:
        words = shlex.split(line)[1:]
        words += ["--model", str(tiny)] if words[1] == "build" else []
        done = cli(*words)
        assert done.code == 0, done.err
        assert done.out


def test_an_update_embeds_only_what_is_new(cli: Cli, built: Path) -> None:
    assert "3 unchanged" in cli("index", "add", built).out or cli("index", "add", built).out
    picture(9).save("photos/new.png")
    Path("photos/b.png").unlink()
    Path("photos/bad.png").write_bytes(b"no picture")
    done = cli("index", "add", built, "--json")
    facts = json.loads(done.out)
    assert (facts["images"], facts["added"], facts["vanished"]) == (3, 1, 1)
    assert facts["bad"][0]["path"].endswith("bad.png")
    assert json.loads(cli("index", "info", built, "--json").out)["vanished"] == 1
    assert cli("index", "compact", built).out == "dropped 1 vanished image\n"
    done = cli("index", "add", built, "--on-error", "raise")
    assert (done.code, done.out) == (1, "")
    assert "bad.png' is not an image" in done.error


def test_an_image_finds_itself(cli: Cli, built: Path) -> None:
    for file in ("photos/b.png", "photos/a.JPG"):
        (hit,) = search(cli, "--image", file, "-k", 1, "--all")
        assert hit["path"] == file
        assert hit["score"] == pytest.approx(1, abs=1e-3)


def test_filters(cli: Cli, built: Path) -> None:
    Path("captions.jsonl").write_text('{"image": "b.png", "stars": 5}\n')
    assert cli("index", "add", built, "--caption-file", "captions.jsonl").code == 0
    assert len(search(cli, "a dog", "--all", "--where", "width = 70")) == 3
    (hit,) = search(cli, "a dog", "--all", "--where", "stars > 4")
    assert hit["path"] == "photos/b.png"


def test_a_filter_of_what_goes_in(cli: Cli, tiny: Path, here: Path) -> None:
    picture(8, (140, 60)).save("photos/wide.png")
    words = ("index", "build", "my.index", "photos", "--where", "width > 100", "--model", tiny)
    done = cli(*words)
    assert done.out == "1 images, 1 added, 0 changed, 0 found, 0 vanished, 0 unchanged\n"
    assert "the filter left out 3 images" in done.err
    assert json.loads(cli("index", "info", "my.index", "--json").out)["filters"] == {
        str(here / "photos"): "width > 100"
    }
    done = cli("index", "add", "my.index", "--json")  # it is remembered
    assert (json.loads(done.out)["images"], json.loads(done.out)["left_out"]) == (1, 3)
    done = cli("index", "add", "my.index", "photos", "--where", "true", "--json")
    assert (json.loads(done.out)["images"], json.loads(done.out)["left_out"]) == (4, 0)


def test_the_evidence_of_hits(
    cli: Cli, built: Path, tiny: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    explained: list[tuple[str, str | None]] = []
    explain = Embedder.explain

    def noted(self: Embedder, item: Any, text: Any, **options: Any) -> Any:
        explained.append((Path(item.image).name, item.instruction))
        np.testing.assert_allclose(text, embedder.embed("a dog"), atol=1e-5)
        return explain(self, item, text, **options)

    monkeypatch.setattr(Embedder, "explain", noted)
    words: tuple[object, ...] = ("a dog", "-k", 1, "--all", "--plot", "hits.png")
    assert cli("search", "my.index", *words).code == 0
    plain = Image.open("hits.png").convert("RGB")
    assert explained == []
    done = cli("search", "my.index", *words, "--explain", "--json")
    name = Path(json.loads(done.out)["hits"][0]["path"]).name
    assert explained == [(name, None)]
    with Image.open("hits.png") as drawn:
        assert (drawn.size, drawn.convert("RGB").tobytes() == plain.tobytes()) == (
            plain.size,
            False,
        )
    ask = ("--ask", "what is on the left?", "--budget", 1)
    assert cli("search", "my.index", *words, *ask, "--explain").code == 0
    assert explained[1:] == [(explained[1][0], None), (explained[1][0], "what is on the left?")]
    with Image.open("hits.png") as both:
        assert both.width > 1.9 * plain.width  # a panel each
    assert cli("search", "photos", *words, "--explain", "--model", tiny).code == 0


def test_several_queries_a_page_and_the_line(
    cli: Cli, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opener = Path("bin/xdg-open")
    opener.parent.mkdir()
    opener.write_text('#!/bin/sh\necho "$1" > opened\n')
    opener.chmod(0o755)
    monkeypatch.setenv("PATH", f"{opener.parent.absolute()}:{os.environ['PATH']}")
    words = ("search", "my.index", "a dog", '"a dog" + 0.5*"a cat"', "-k", 2, "--all")
    done = cli(*words, "--json")
    queries = json.loads(done.out)["queries"]
    assert [query["query"] for query in queries] == ["a dog", '"a dog" + 0.5*"a cat"']
    assert all({"rank", "path", "score", "is_answer"} == set(queries[0]["hits"][0]) for _ in "x")
    done = cli(*words, "--plot", "hits.png", "--open")
    assert done.out.startswith("a dog\n")
    with Image.open("hits.png") as page:
        assert page.width > 1000
    assert Path("opened").read_text() == "hits.png\n"
    opener.write_text("#!/bin/sh\necho no display >&2\nexit 3\n")
    done = cli(*words, "--open")
    assert done.code == 1 and done.out.startswith("a dog\n")
    assert done.error.endswith("cannot be opened here; that takes a desktop")
    assert "\n" not in done.error


def test_what_lies_below_the_line_is_not_shown(cli: Cli, built: Path) -> None:
    settings = json.loads((built / "index.json").read_text())
    settings["cutoffs"]["image"] = 0.9999
    (built / "index.json").write_text(json.dumps(settings))
    words = ("search", "my.index", "--image", "photo.jpg")
    done = cli(*words)
    assert done.code == 0
    assert "-   nothing matches" in done.out
    assert "photos" not in done.out
    below = [line for line in cli(*words, "--all").out.splitlines() if "photos/" in line]
    assert len(below) == 3
    assert all(line.startswith("-") for line in below)
    done = cli("search", "my.index", "--image", "photos/b.png")
    assert "1   photos/b.png" in done.out
    assert "-   nothing more matches" in done.out


def test_a_folder_takes_sums_and_several_queries(cli: Cli, tiny: Path, here: Path) -> None:
    done = cli("search", "photos", '"a dog" - "a cat"', "a dog", "--json", "--model", tiny)
    assert [len(query["hits"]) for query in json.loads(done.out)["queries"]] == [3, 3]


def test_a_new_instruction_over_an_old_index(cli: Cli, built: Path, embedder: Embedder) -> None:
    words = ("search", "my.index", "a dog", "--ask", "what is on the left?", "--json")
    done = cli(*words, "--budget", 1)
    assert "looked at 3 of 3 images again: about 100% of the direct answer" in done.err
    hits = json.loads(done.out)["hits"]
    items = [Item(image=hit["path"], instruction="what is on the left?") for hit in hits]
    direct = embedder.similarity(embedder.embed("a dog"), embedder.embed(items))
    assert [hit["score"] for hit in hits] == pytest.approx(direct.tolist(), abs=1e-4)
    assert len(json.loads(cli(*words, "--budget", 0.5).out)["hits"]) == 2


def test_without_the_extra(
    cli: Cli, built: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("abc_embed.search.index", "abc_embed.search.table"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lancedb", None)
    assert cli("search", "photos", "a dog", "--model", tiny).code == 0
    done = cli("index", "info", built)
    assert done.code == 1
    assert "pip install 'abc-embed[index]'" in done.error


def test_vectors_of_embed(cli: Cli, tiny: Path, here: Path) -> None:
    assert cli("embed", "photos", "-o", "out.npy", "--model", tiny).code == 0
    for _ in range(2):
        done = cli("index", "build", "my.index", "out.npy", "--model", tiny)
        assert done.out == "3 images\n"
    (hit,) = search(cli, "--image", "photos/b.png", "-k", 1, "--all")
    assert hit["path"] == "photos/b.png"


def test_a_removed_folder_and_a_check(cli: Cli, built: Path) -> None:
    assert cli("index", "check", built).out == "3 images, all of them whole\n"
    assert cli("index", "remove", built, "photos/more").out == "removed 1 image\n"
    done = cli("index", "remove", built, "photos/more")
    assert (done.code, "holds none of them" in done.error) == (1, True)
    Path("photos/b.png").unlink()
    assert "1 file changed or vanished" in cli("index", "check", built).out
    for file in (built / "images.lance").rglob("*.lance"):
        file.write_bytes(file.read_bytes()[:20])
    assert cli("index", "check", built).code == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("index", "build", "my.index", "gone"), 1, "there is no folder 'gone'"),
        (("index", "build", "photos", "photos"), 1, "is there and no index"),
        (("index", "build", "new", "photos", "--vectors", "int4"), 2, None),
        (("index", "add", "photos"), 1, "is no index"),
        (("index", "info", "gone"), 1, "is no index"),
        (("search", "my.index", "a dog", "--where", "nope > 1"), 2, "No field named nope"),
        (("search", "my.index", "a dog", "--where", "width >"), 2, "Expected: an expression"),
        (("search", "photos", "a dog", "--where", "width > 1"), 2, "--where needs an index"),
        (("search", "photos", "a dog", "--ask", "left?"), 2, "--ask needs an index"),
        (("search", "my.index", "a dog", "--ask", "left?", "--budget", "2"), 2, "above 0 and at"),
        (("search", "my.index", "--image", "photo.jpg", "--ask", "left?"), 2, "give texts"),
        (("search", "my.index", "a dog", "--plot", "hits.txt"), 2, "does not end in .png"),
        (("search", "my.index", '"a dog" 2 "b"'), 2, "is no sum"),
        (("search", "my.index", "a dog", "--max-pixels", "1 token"), 1, "leave out the resolution"),
        (
            ("search", "my.index", "a dog", "--model", "bundled"),
            1,
            "use that one, or build another",
        ),
        (("search", "my.index", "--image", "gone.jpg"), 1, "gone.jpg"),
    ],
)
def test_bad_input_is_one_sentence(
    cli: Cli, built: Path, words: tuple[str, ...], code: int, message: str | None
) -> None:
    done = cli(*words)
    assert (done.code, done.out) == (code, "")
    if message is not None:
        assert message in done.error
        assert "\n" not in done.error


def test_an_empty_index_and_a_folder_without_images(cli: Cli, tiny: Path, here: Path) -> None:
    Path("empty").mkdir()
    done = cli("index", "build", "my.index", "empty", "--model", tiny)
    assert (done.code, done.out) == (1, "")
    assert "there is no image in the folder" in done.error
    done = cli("search", "my.index", "a dog")
    assert done.code == 1
    assert "is empty; add images with: index add" in done.error
    shutil.rmtree("my.index")
    Path("empty/bad.png").write_bytes(b"no picture")
    done = cli("index", "build", "my.index", "empty", "--model", tiny)
    assert "none of the images can be used" in done.error
    done = cli("index", "add", "my.index", "--json")
    assert (done.code, json.loads(done.out)["images"]) == (1, 0)
