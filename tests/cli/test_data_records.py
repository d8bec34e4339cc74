"""`abc-embed data check`, `convert` and `show`, as a user types them."""

import json
from pathlib import Path

import pytest
from cli_parts import Cli

from abc_embed.data.image_files import find_images
from abc_embed.scenes.dataset import write_dataset


@pytest.fixture
def drawn(here: Path) -> Path:
    write_dataset("scenes", 4, seed=5, side=56)
    return here


def test_a_good_data_set_is_counted(cli: Cli, drawn: Path) -> None:
    done = cli("data", "check", "scenes")
    assert done.code == 0
    assert "usable" in done.out and "error" not in done.err
    found = json.loads(cli("data", "check", "scenes", "--json").out)
    assert (found["rows"], found["usable"], found["errors"]) == (4, 4, [])
    assert found["texts"]["captions"] == 4


def test_what_is_wrong_is_said_with_file_and_line(cli: Cli, drawn: Path) -> None:
    path = Path("scenes/records.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{", *lines[1:]]))
    Path("scenes/images/000003.png").unlink()
    done = cli("data", "check", "scenes")
    assert done.code == 1
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith("error: scenes/records.jsonl:2: the line is not JSON")
    assert errors[1].startswith("error: scenes/records.jsonl:5: the image 000003.png")
    assert len(errors) == 2


def test_remarks_fail_only_when_asked_to(cli: Cli, drawn: Path) -> None:
    words = ("data", "check", "scenes", "--longest", "10")
    done = cli(*words)
    assert done.code == 0 and "remark: scenes/records.jsonl:1: one of its captions" in done.err
    assert cli(*words, "--strict").code == 1


def test_there_and_back_and_a_sheet(cli: Cli, drawn: Path) -> None:
    assert cli("data", "convert", "scenes", "--to", "parquet", "--out", "p").out == (
        "4 rows written to p\n"
    )
    assert cli("data", "convert", "p", "--to", "webdataset", "--out", "w").code == 0
    done = cli("data", "convert", "w", "--out", "back", "--json")
    assert json.loads(done.out) == {"out": "back", "written": 4, "rejected": 0}
    before, after = (Path(f, "records.jsonl").read_text().splitlines() for f in ("scenes", "back"))
    names = {"image": None}
    assert [json.loads(b) | names for b in before] == [json.loads(a) | names for a in after]
    assert cli("data", "show", "w", "--out", "w.png", "--count", "3").out == (
        "3 of 4 rows are on w.png\n"
    )
    assert Path("w.png").is_file()


def test_rejects_are_said_and_kept(cli: Cli, drawn: Path) -> None:
    Path("scenes/images/000003.png").write_bytes(b"no image")
    done = cli("data", "convert", "scenes", "--out", "out")
    assert done.code == 0
    assert "1 rows cannot be used; out/rejects.jsonl names them" in done.err
    assert "images" not in Path("out/rejects.jsonl").read_text().split('"why"')[0]


def test_columns_of_others(cli: Cli, here: Path) -> None:
    Path("photos/metadata.csv").write_text("file_name,title\na.JPG,a title\n")
    assert cli("data", "convert", "photos", "--column", "caption=title", "--out", "o").code == 0
    captions = [
        json.loads(line)["caption"] for line in Path("o/records.jsonl").read_text().splitlines()
    ]
    assert captions == ["a title", None, None]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("check", "nowhere"), 1, "there is no nowhere"),
        (("check", "photo.jpg"), 1, "is no data set"),
        (("check", "photos", "--column", "words=text"), 2, "is not of the form OURS=THEIRS"),
        (("convert", "photos", "--out", "photos"), 1, "is not empty"),
        (("show", "photos", "--out", "no/x.png"), 1, "there is no folder 'no'"),
    ],
)
def test_mistakes(cli: Cli, here: Path, words: tuple[str, ...], code: int, message: str) -> None:
    done = cli("data", *words)
    assert done.code == code
    assert message in done.error


def test_a_bad_picture_is_left_out_of_the_sheet_and_named(cli: Cli, drawn: Path) -> None:
    path = Path("scenes/images/000002.png")
    path.write_bytes(path.read_bytes()[:200])
    done = cli("data", "show", "scenes", "--out", "page.png")
    assert (done.code, done.out) == (0, "3 of 4 rows are on page.png\n")
    assert "left out: scenes/records.jsonl:3: " in done.err
    done = cli("data", "show", "scenes", "--out", "other.png", "--on-error", "raise")
    assert done.code == 1 and "scenes/records.jsonl:3: " in done.error
    assert not Path("other.png").exists()


def test_the_sheet_of_scenes_is_no_picture_of_the_set(cli: Cli, here: Path) -> None:
    assert cli("scenes", "-n", "2", "--out", "drawn").code == 0
    assert Path("drawn-contact-sheet.png").is_file()
    assert [p.parent.name for p in find_images(Path("drawn"))] == ["images", "images"]


def test_a_card_of_a_folder_of_photos(cli: Cli, here: Path) -> None:
    done = cli("data", "card", "photos", "--json")
    assert done.code == 0, done.err
    (facts,) = json.loads(done.out)["records"]
    assert facts["rows"] >= 3 and Path("photos/DATASET_CARD.md").is_file()


def test_what_is_not_read_is_remarked(cli: Cli, here: Path) -> None:
    Path("photos/metadata.csv").write_text("file_name,title\na.JPG,a title\n")
    Path("photos/captions.txt").write_text("a.JPG\tanother\n")
    done = cli("data", "check", "photos")
    assert "captions.txt: is not read, as metadata.csv is there" in done.err
    assert "files not read" in done.out
    assert cli("data", "check", "photos", "--strict").code == 1
