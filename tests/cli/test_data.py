"""`data fetch | index | complete | unpack | card`: what they show, and every mistake a sentence."""

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from cli_parts import Cli
from published_sets import make_pretrain, make_vg
from small_hub import COMMIT, SmallHub, serving

from abc_embed.cli import data
from abc_embed.data.published import fetch


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    make_vg(tmp_path / "hub")
    constants = huggingface_hub.constants
    template = "/{repo_id}/resolve/{revision}/{filename}"
    with serving(tmp_path / "hub") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(fetch, "PAUSE_S", 0)
        yield hub


def test_the_examples_of_the_help(cli: Cli, here: Path, hub: SmallHub) -> None:
    """In the order in which they are shown, as a user would give them."""
    lines = [line.split() for line in data.EXAMPLES.splitlines() if line.startswith("  abc-embed")]
    assert [line[2] for line in lines] == ["fetch", "index", "complete", "unpack", "card"]
    done = [cli(*line[1:]) for line in lines]
    assert [d.code for d in done] == [0] * 5, [d.err for d in done]
    assert f"TIGER-Lab/ABC-VG-Instruct at {COMMIT[:12]}: 2 files" in done[0].err
    assert done[0].out == "abc-vg-instruct is in vg; next: abc-embed data index vg\n"
    assert "images" in done[1].out
    assert "rows with their image" in done[2].out
    assert done[2].err.endswith("complete\n")
    assert done[3].out == "6 images written to vg-images, 0 were there, 0 left out\n"
    assert len(list(Path("vg-images/ABC-VG-Instruct").glob("*.jpg"))) == 6
    assert done[4].out == "the card is vg/DATASET_CARD.md\n"


def test_for_programs(cli: Cli, here: Path, hub: SmallHub) -> None:
    done = cli("data", "fetch", "abc-vg-instruct", "--out", "vg", "--dry-run", "--json")
    planned = json.loads(done.out)
    assert planned["commit"] == COMMIT
    assert planned["missing_bytes"] == planned["bytes"] > 0
    assert not planned["fetched"]
    assert not Path("vg").exists()
    assert json.loads(cli("data", "fetch", "abc-vg-instruct", "--out", "vg", "--json").out)[
        "fetched"
    ]
    made = json.loads(cli("data", "index", "vg", "--spacing", "1 MB", "--json").out)
    assert (made["rows"], made["images"], made["parts"]) == (6, 6, 1)
    found = json.loads(cli("data", "complete", "vg", "--json").out)
    assert found["complete"]
    assert found["rows"] == 6
    unpacked = json.loads(cli("data", "unpack", "vg", "--out", "out", "--json").out)
    assert unpacked == {"written": 6, "kept": 0, "left_out": []}
    card = json.loads(cli("data", "card", "vg", "--json").out)
    assert card["published"]["commit"] == COMMIT
    assert all(file["compared"] for file in card["published"]["files"])


def test_what_is_missing_is_named(cli: Cli, here: Path) -> None:
    folder = Path("p")
    make_pretrain(folder)
    assert cli("data", "index", folder).code == 0
    images = {path: path.read_bytes() for path in folder.glob("*.part_*")}
    for path in images:
        path.unlink()
    assert cli("data", "complete", folder).code == 1
    make_pretrain(folder, count=16)
    for path in (folder / "data").iterdir():
        path.unlink()
    make_rows = Path("q")
    make_pretrain(make_rows, count=30)
    (make_rows / "data").rename(folder / "data2")
    assert cli("data", "index", folder, "--again").code == 0
    done = cli("data", "complete", folder)
    assert done.code == 1
    assert "row 16: the image 'train/000000016.jpg' is missing" in done.err
    assert "and 4 more; --json names them all" in done.err
    assert "not complete: 14 problems" in done.err
    assert len(json.loads(cli("data", "complete", folder, "--json").out)["missing"]) == 14


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("fetch", "coco", "--out", "x"), 2, "the sources are abc-pretrain, abc-vg-instruct"),
        (("fetch", "abc-pretrain"), 2, "--out"),
        (("fetch", "abc-pretrain", "--out", "x"), 1, "cannot be reached"),
        (("index", "gone"), 1, "there is no folder gone"),
        (("index", "photos"), 1, "neither .parquet nor .tar"),
        (("index", "photos", "--spacing", "much"), 2, "--spacing is 'much'"),
        (("complete", "photos"), 1, "holds no .parquet"),
        (("unpack", "photos", "--out", "x"), 1, "has no finished index"),
        (("unpack", "photos", "--out", "x", "--limit", "all"), 2, "--limit is 'all'"),
    ],
)
def test_mistakes(cli: Cli, here: Path, words: tuple[str, ...], code: int, message: str) -> None:
    done = cli("data", *words)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert not Path("x").exists()


@pytest.mark.parametrize("word", ["fetch", "index", "complete", "unpack", "card"])
def test_help(cli: Cli, word: str) -> None:
    done = cli("data", word, "--help")
    assert done.code == 0
    assert f"abc-embed data {word} " in done.out.partition("Examples:")[2]


def test_the_list_of_commands_names_it(cli: Cli) -> None:
    assert "Fetch, index, check" in cli("--help").out
    done = cli("data", "--help").out
    assert all(word in done for word in ("fetch", "index", "complete", "unpack", "card"))
