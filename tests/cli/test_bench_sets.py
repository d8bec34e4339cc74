"""`abc-embed bench coco|flickr30k|mmeb|zero-shot`, as a user types them, on small sets."""

import json
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from cli_parts import Cli, picture
from PIL import Image

from abc_embed.cli.options import parse_areas


@pytest.fixture
def sets(here: Path) -> Path:
    """Small sets of three layouts in the working folder."""
    entries = []
    for number in range(3):
        Path("coco").mkdir(exist_ok=True)
        picture(number).save(f"coco/{number}.png")
        sentences = [{"raw": f"caption {number} {n}", "sentid": 10 * number + n} for n in range(5)]
        entries.append({"filename": f"{number}.png", "split": "test", "sentences": sentences})
    Path("dataset_coco.json").write_text(json.dumps({"images": entries}))
    for name in ("cats", "dogs"):
        Path("classes", name).mkdir(parents=True)
        picture(len(name)).save(f"classes/{name}/a.png")
    Path("MMEB/GQA").mkdir(parents=True)
    Path("MMEB/images").mkdir()
    picture(9).save("MMEB/images/a.png")
    words = "<|image_1|>\nRepresent the given image with the following question: which?"
    rows = [{"qry_text": words, "qry_img_path": "a.png", "tgt_text": ["x", "y"]}]
    parquet.write_table(arrow.Table.from_pylist(rows), "MMEB/GQA/test.parquet")
    return here


COCO = ("bench", "coco", "--data", "dataset_coco.json", "--images", "coco")


def test_a_table_and_a_record(cli: Cli, sets: Path) -> None:
    done = cli(*COCO, "--model", "random", "--out", "results")
    assert done.code == 0 and "rsum" in done.out and "image to text r1" in done.out
    (path,) = Path("results").glob("*.json")
    record = json.loads(path.read_text())
    assert (record["benchmark"], record["model"]["name"]) == ("coco-3", "random")
    assert record["sizes"] == {"images": 3, "captions": 15}
    assert str(sets) not in path.read_text()


def test_missing_images_are_said(cli: Cli, sets: Path) -> None:
    Path("coco/1.png").unlink()
    done = cli(*COCO, "--model", "random", "--json")
    assert "coco-3: 1 images are missing and left out: 1.png" in done.err
    assert json.loads(done.out)["scores"]["image_to_text_r1"]["of"] == 2


def test_several_resolutions_and_their_figure(cli: Cli, sets: Path, tiny: Path) -> None:
    words = ("bench", "zero-shot", "--data", "classes", "--model", tiny)
    done = cli(*words, "--max-pixels", "1,4 tokens", "--figure", "sweep.png", "--json")
    assert done.code == 0
    records = json.loads(done.out)
    assert [r["settings"]["max_pixels"] for r in records] == [784, 3136]
    assert all(r["images_per_s"] > 0 for r in records)
    with Image.open("sweep.png") as drawn:
        assert len(np.unique(np.asarray(drawn.convert("L")))) > 20


def test_sets_of_mmeb_beside_the_papers_column(cli: Cli, sets: Path) -> None:
    done = cli("bench", "mmeb", "--data", "MMEB", "--model", "random")
    assert done.code == 0 and "GQA: 1 questions" in done.err
    assert "60.1" in done.out and "mean of 1 (vqa)" in done.out


def test_records_of_ones_own_by_kind(cli: Cli, here: Path, tiny: Path) -> None:
    assert cli("scenes", "-n", "6", "--out", "scenes", "--side", "56").code == 0
    words = ("bench", "records", "scenes", "--model", tiny, "--limit", "5")
    done = cli(*words, "--out", "results")
    assert done.code == 0, done.err
    for name in ("image to caption r1", "instruction to answer r1, place", "image alone"):
        assert name in done.out
    (path,) = Path("results").glob("*.json")
    record = json.loads(path.read_text())
    assert (record["benchmark"], record["sizes"]["images"]) == ("records-scenes", 5)
    assert sum(kind["of"] for kind in record["by_aspect"].values()) == record["sizes"]["questions"]
    assert record["settings"]["limit"] == 5 and str(here) not in path.read_text()
    report = cli("bench", "report", "results", "--out", "report")
    assert report.code == 0 and "records-scenes" in Path("report/report.md").read_text()


def test_areas() -> None:
    assert parse_areas(None) == [None]
    assert parse_areas("100352") == [100352]
    assert parse_areas("128,256 tokens") == [128 * 784, 256 * 784]
    assert parse_areas("1 token, 784") == [784, 784]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((*COCO, "--positives", "more"), 2, "--positives is 'more'; give cxc or eccv"),
        ((*COCO, "--model", "random", "--positives", "cxc"), 1, "belongs to MSCOCO 5K"),
        ((*COCO, "--figure", "x.png"), 2, "--figure needs several resolutions"),
        ((*COCO, "--max-pixels", "many"), 2, "--max-pixels is 'many'"),
        ((*COCO, "--split", "val"), 1, "no image of the split 'val'; it has test"),
        (("bench", "mmeb", "--data", "classes"), 1, "holds no set of MMEB"),
        (("bench", "mmeb", "--data", "MMEB", "--task", "XYZ"), 2, "is no set of MMEB v1"),
        (("bench", "records", "coco"), 1, "has no image with a caption or an instruction"),
        (("bench", "records", "gone"), 1, "there is no gone"),
        (("bench", "zero-shot", "--data", "coco"), 1, "has 0 subfolders"),
    ],
)
def test_mistakes(cli: Cli, sets: Path, words: tuple[str, ...], code: int, message: str) -> None:
    done = cli(*words)
    assert done.code == code
    assert message in done.error
