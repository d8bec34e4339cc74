"""What bad input gets: one sentence, the right exit code, no traceback, nothing half-written."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from cli_parts import Cli, leftovers, picture
from PIL import Image

from abc_embed import hub
from abc_embed.errors import OfflineError

KNOWN = {"photo.jpg", "photos"}


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


BAD_FILES = {
    "text.png": b"this is no picture",
    "empty.png": b"",
    "cut.png": png(picture(5, (200, 200)))[:900],
    "bomb.png": png(Image.new("L", (3000, 2000))),
    "strip.png": png(Image.new("L", (1, 5000), 90)),
}
SAYS = {
    "gone.png": "there is no file 'gone.png'",
    "text.png": "'text.png' is not an image of a known format",
    "empty.png": "'empty.png' is empty",
    "cut.png": "'cut.png' is damaged or cut short",
    "bomb.png": "'bomb.png' would unpack to 3000 x 2000 = 6,000,000 pixels, more than the limit",
    "strip.png": "'strip.png': a picture of 1 x 5000 pixels is longer and thinner than 200 to 1",
    "https://example.com/x.png": "is an address, and nothing is fetched for an item",
}
COMMANDS = {
    "embed": ("embed", "{}", "-o", "out.npy"),
    "compare": ("compare", "{}", "a dog", "--plot", "out.png"),
    "search": ("search", "photos", "--image", "{}"),
}


@pytest.fixture
def bad(here: Path) -> Path:
    for name, content in BAD_FILES.items():
        (here / name).write_bytes(content)
    return here


@pytest.mark.parametrize("name", SAYS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_image(cli: Cli, tiny: Path, bad: Path, command: str, name: str) -> None:
    words = [word.format(name) for word in COMMANDS[command]]
    limit = ("--decode-limit", "5000000")
    done = cli(*words, *limit, "--model", tiny)
    assert (done.code, done.out) == (1, "")
    assert SAYS[name] in done.error
    assert "\n" not in done.error
    assert leftovers(bad, KNOWN | set(BAD_FILES)) == set()


def test_the_limit_against_bombs_is_adjustable(cli: Cli, tiny: Path, bad: Path) -> None:
    words = ("embed", "bomb.png", "--model", tiny)
    assert cli(*words, "--decode-limit", "5999999").code == 1
    assert cli(*words, "--decode-limit", "6000000").code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("compare", "photos", "a dog"), "'photos' is a folder; give the path of an image file"),
        (("search", "photos", "--image", "photos"), "'photos' is a folder"),
        (("search", "photo.jpg", "a dog"), "'photo.jpg' is a file; give the folder"),
        (("search", "gone", "a dog"), "there is no folder 'gone'"),
        (("search", "void", "a dog"), "there is no image in the folder 'void'"),
        (("embed", "void"), "there is no image in the folder 'void'"),
    ],
)
def test_a_folder_and_a_file_in_each_others_place(
    cli: Cli, tiny: Path, here: Path, words: tuple[str, ...], message: str
) -> None:
    (here / "void").mkdir()
    done = cli(*words, "--model", tiny)
    assert (done.code, done.out) == (1, "")
    assert message in done.error


LONG = "a " * 5_000  # the model reads 4,096 tokens
TEXTS = {
    "": "the text is empty; give at least one word",
    " \n": "the text is empty; give at least one word",
    LONG: "and the model reads at most 4,096; shorten it",
    "<|image_pad|>": "the words hold <|image_pad|>, which stands for a picture; take it out",
    "\udcff": "which is no valid Unicode",
}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text[:20]))
@pytest.mark.parametrize(
    "words",
    [("embed", "-o", "out.npy", "--text"), ("compare", "photo.jpg"), ("search", "photos")],
    ids=lambda words: words[0],
)
def test_a_bad_text(cli: Cli, tiny: Path, here: Path, words: tuple[str, ...], text: str) -> None:
    done = cli(*words, text, "--model", tiny)
    assert (done.code, done.out) == (1, "")
    assert TEXTS[text] in done.error
    assert leftovers(here, KNOWN) == set()


def test_an_empty_instruction(cli: Cli, tiny: Path, here: Path) -> None:
    done = cli("compare", "photo.jpg", "a dog", "--instruction", "", "--model", tiny)
    assert done.code == 1
    assert done.error == "the instruction is empty; leave it out to embed the image alone"


@pytest.mark.parametrize(
    "words",
    [
        ("embed", "photo.jpg"),
        ("compare", "photo.jpg", "a dog"),
        ("search", "photos", "a dog"),
        ("quickstart",),
    ],
    ids=lambda words: words[0],
)
def test_an_unknown_model(cli: Cli, here: Path, words: tuple[str, ...]) -> None:
    done = cli(*words, "--model", "no-such-model")
    assert (done.code, done.out) == (1, "")
    assert "'no-such-model' is neither a folder nor a known name" in done.error
    assert "TIGER-Lab/ABC-Qwen2VL-Instruct" in done.error


def test_a_name_that_a_hub_may_have_is_asked_for_there(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not refused as unknown: the command line takes what `from_pretrained` takes."""
    asked: list[str] = []

    def fetch(name: str) -> None:
        asked.append(name)
        raise OfflineError("no hub here")

    monkeypatch.setattr(hub, "fetch_model", fetch)
    done = cli("embed", "photo.jpg", "-o", "out.npy", "--model", "owner/name@3f2c1d0")
    assert (done.code, done.error) == (1, "no hub here")
    assert asked == ["owner/name@3f2c1d0"] and leftovers(here, KNOWN) == set()


def test_a_damaged_model(cli: Cli, here: Path, broken_model: Path) -> None:
    done = cli("embed", "photo.jpg", "-o", "out.npy", "--model", broken_model)
    assert (done.code, done.out) == (1, "")
    assert "model.safetensors" in done.error
    assert leftovers(here, KNOWN) == set()


def test_a_folder_that_is_no_model(cli: Cli, here: Path) -> None:
    done = cli("compare", "photo.jpg", "a dog", "--model", "photos")
    assert done.code == 1
    assert "holds no model of ours" in done.error


@pytest.mark.expects_no_network
def test_a_published_model_without_a_network(cli: Cli, here: Path) -> None:
    name = "TIGER-Lab/ABC-Qwen2VL-Instruct"
    done = cli("compare", "photo.jpg", "a dog", "--model", name)
    assert (done.code, done.out) == (1, "")
    assert "cannot be reached to fetch it whole; connect this machine" in done.error


UNWRITABLE = {
    "gone/out{}": "there is no folder 'gone' to write to; make it first",
    "photos/taken{}": "is a folder; give the name of a file to write",
    "photo.jpg/out{}": "there is no folder 'photo.jpg' to write to",
}


@pytest.mark.parametrize("out", UNWRITABLE)
@pytest.mark.parametrize("command", ["embed", "compare", "quickstart"])
def test_an_output_that_cannot_be_written_is_found_first(
    cli: Cli, here: Path, command: str, out: str
) -> None:
    """First: before the model is loaded, which would fail here in another way."""
    words, suffix = {
        "embed": (("embed", "photo.jpg", "-o"), ".npy"),
        "compare": (("compare", "photo.jpg", "a dog", "--plot"), ".png"),
        "quickstart": (("quickstart", "--plot"), ".png"),
    }[command]
    (here / "photos" / f"taken{suffix}").mkdir()
    done = cli(*words, out.format(suffix), "--model", "no-such-model")
    assert (done.code, done.out) == (1, "")
    assert UNWRITABLE[out] in done.error


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere"
)
def test_a_folder_that_may_not_be_written(cli: Cli, here: Path) -> None:
    (here / "locked").mkdir(mode=0o500)
    done = cli("embed", "photo.jpg", "-o", "locked/out.npy", "--model", "no-such-model")
    assert done.code == 1
    assert "cannot be written (Permission denied)" in done.error


def test_in_bulk_the_good_ones_are_embedded_and_the_bad_ones_listed(
    cli: Cli, tiny: Path, bad: Path
) -> None:
    bad_names = [name for name in SAYS if "://" not in name]
    words = ("--on-error", "skip", "--decode-limit", "5000000", "--text", "", "--text", "a dog")
    done = cli("embed", "photo.jpg", *bad_names, *words, "-o", "out.npy", "--model", tiny)
    assert done.code == 0
    assert json.loads(Path("out.ids.json").read_text()) == ["photo.jpg", "a dog"]
    assert np.load("out.npy").shape == (2, 64)
    lines = done.err.splitlines()
    assert f"skipped {len(bad_names) + 1} of {len(bad_names) + 3}:" in lines
    for name in bad_names:
        assert any(line.startswith(f"  {name}: ") and SAYS[name] in line for line in lines)


def test_control_characters_in_a_name_do_not_reach_the_terminal(
    cli: Cli, tiny: Path, here: Path
) -> None:
    name = "photos/\x1b[31mred.png"
    Path(name).write_bytes(b"no picture")
    done = cli("embed", "photos", "-o", "o.npy", "--on-error", "skip", "--model", tiny)
    assert "\x1b" not in done.out + done.err
    assert "\\x1b[31mred.png" in done.err
