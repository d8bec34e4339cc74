"""MSCOCO and Flickr30K: the split as published, both directions, against another's figures."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from table_encoder import TableEncoder, constant

from abc_embed.bench.sets.captions import (
    CaptionSet,
    Positives,
    evaluation_set,
    load_karpathy,
    load_positives,
)
from abc_embed.bench.sets.evaluation import Findings, measure
from abc_embed.errors import DataError, UsageError
from abc_embed.inputs import Kind

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it asks for ujson
    from eccv_caption import Metrics
    from eccv_caption._metrics import compute_eccv_metrics, compute_r_at_k


def found_of(encoder: TableEncoder, captions: CaptionSet, *further: Positives) -> Findings:
    return measure(encoder, evaluation_set(captions, further))


def sentences(first: int, count: int) -> list[dict[str, Any]]:
    return [{"raw": f" caption {n}\n", "sentid": n} for n in range(first, first + count)]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A small MSCOCO: three test images (one with six captions), one of another split."""
    (tmp_path / "val2014").mkdir()
    entries = []
    for number, (split, count) in enumerate([("test", 6), ("train", 5), ("test", 5), ("test", 5)]):
        name = f"{number}.jpg"
        Image.new("RGB", (8, 8), (number * 60, 0, 0)).save(tmp_path / "val2014" / name)
        entries.append(
            {
                "filepath": "val2014",
                "filename": name,
                "split": split,
                "cocoid": 100 + number,
                "sentences": sentences(10 * number, count),
            }
        )
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    return tmp_path


def test_the_split_has_five_captions_of_each_image(coco: Path) -> None:
    found = load_karpathy(coco / "dataset_coco.json", coco)
    assert found.name == "coco-3" and found.missing == ()
    assert found.image_ids == (100, 102, 103)
    assert [path.name for path in found.images] == ["0.jpg", "2.jpg", "3.jpg"]
    assert found.image_of == (0,) * 5 + (1,) * 5 + (2,) * 5
    assert found.captions[:2] == ("caption 0", "caption 1")
    assert found.caption_ids[4:6] == (4, 20)


def test_flickr_has_no_folders_in_its_names(coco: Path) -> None:
    content = json.loads((coco / "dataset_coco.json").read_text())
    for entry in content["images"]:
        del entry["filepath"], entry["cocoid"]
    (coco / "dataset_flickr30k.json").write_text(json.dumps(content))
    found = load_karpathy(coco / "dataset_flickr30k.json", coco / "val2014")
    assert found.name == "flickr30k-3" and found.image_ids == (0, 2, 3)


def test_a_missing_image_is_listed_and_the_score_says_what_it_stands_on(coco: Path) -> None:
    (coco / "val2014/2.jpg").unlink()
    found = found_of(TableEncoder(constant), load_karpathy(coco / "dataset_coco.json", coco))
    assert found["missing"] == ["2.jpg"]
    assert found["sizes"] == {"images": 2, "captions": 10}
    assert found["scores"]["text_to_image_r1"]["of"] == 10
    for name in ("0.jpg", "3.jpg"):
        (coco / "val2014" / name).unlink()
    with pytest.raises(DataError, match=r"none of the set's images is there, 0\.jpg for one"):
        found_of(TableEncoder(constant), load_karpathy(coco / "dataset_coco.json", coco))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "holds no JSON object; give dataset_coco"),
        ('{"images": []}', "no image of the split 'test'; it has none"),
        ('{"images": [{"split": "test"}]}', r"images\[0\] lacks something"),
        ('{"images": [{"split": "test", "filename": "a", "sentences": []}]}', "has no caption"),
        ("{", "is damaged .*; give dataset_coco"),
        ("{}", "no file of Karpathy's splits"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=said):
        load_karpathy(tmp_path / "x.json", tmp_path)


def test_no_name_leads_out_of_the_folder(coco: Path) -> None:
    content = json.loads((coco / "dataset_coco.json").read_text())
    content["images"][0] |= {"filepath": "..", "filename": "val2014/0.jpg"}
    (coco / "in").mkdir()
    (coco / "in.json").write_text(json.dumps(content))
    assert len(load_karpathy(coco / "in.json", coco / "in").missing) == 3


def random_set(
    random: np.random.Generator, images: int, folder: Path
) -> tuple[Any, Any, CaptionSet]:
    """Vectors of some images and five captions each, near enough that figures are not 0 or 1."""
    for number in range(images):
        (folder / f"{number}.jpg").write_bytes(b"")
    seen = random.standard_normal((images, 12)).astype(np.float32)
    said = np.repeat(seen, 5, axis=0) + random.standard_normal((5 * images, 12)) * 1.3
    captions = CaptionSet(
        name="random",
        images=tuple(folder / f"{n}.jpg" for n in range(images)),
        image_ids=tuple(1000 + n for n in range(images)),
        captions=tuple(f"caption {n}" for n in range(5 * images)),
        caption_ids=tuple(9000 + n for n in range(5 * images)),
        image_of=tuple(n // 5 for n in range(5 * images)),
        missing=(),
    )
    return seen, said.astype(np.float32), captions


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_eccv_caption(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    seen, said, captions = random_set(random, 40, tmp_path)
    ours = found_of(TableEncoder(looked_up(captions, seen, said)), captions)["scores"]
    to_text = {i: list(np.argsort(-(seen[i] @ said.T))) for i in range(40)}
    to_image = {c: list(np.argsort(-(said[c] @ seen.T))) for c in range(200)}
    own = {i: list(range(5 * i, 5 * i + 5)) for i in range(40)}
    for k in (1, 5, 10):
        theirs = compute_r_at_k(to_text, own, K=k)
        assert ours[f"image_to_text_r{k}"]["value"] == pytest.approx(theirs)
        theirs = compute_r_at_k(to_image, {c: [c // 5] for c in range(200)}, K=k)
        assert ours[f"text_to_image_r{k}"]["value"] == pytest.approx(theirs)
    assert 0.2 < ours["image_to_text_r1"]["value"] < 0.95
    assert ours["rsum"]["value"] == pytest.approx(
        100 * sum(figure["value"] for name, figure in ours.items() if name != "rsum")
    )


def test_map_at_r_is_that_of_eccv_caption(coco: Path) -> None:
    random = np.random.default_rng(7)
    seen, said, _ = random_set(random, 3, coco)
    rights = {0: (0, 3, 7), 2: (1, 2, 4, 9, 12)}
    positives = Positives("eccv", rights, {5: (0, 1), 6: (2,)}, 0)
    captions = load_karpathy(coco / "dataset_coco.json", coco)
    ours = found_of(TableEncoder(looked_up(captions, seen, said)), captions, positives)["scores"]
    to_text = {i: list(np.argsort(-(seen[i] @ said.T))) for i in rights}
    theirs = compute_eccv_metrics(to_text, rights)
    assert ours["eccv_image_to_text_map_at_r"]["value"] == pytest.approx(theirs["eccv_map_at_r"])
    assert ours["eccv_image_to_text_r1"]["value"] == pytest.approx(theirs["eccv_r1"])
    assert ours["eccv_text_to_image_map_at_r"]["of"] == 2


def looked_up(captions: CaptionSet, seen: Any, said: Any) -> Any:
    """The vector of an image, or of a caption, by its place in the set."""
    by_image = dict(zip(captions.images, seen, strict=True))
    by_text = dict(zip(captions.captions, said, strict=True))
    return lambda item: by_text[item.text] if item.text else by_image[item.image]


@pytest.mark.parametrize("name", ["cxc", "eccv"])
def test_further_positives_are_found_by_coco_numbers(name: str, coco: Path) -> None:
    library = Metrics()
    pairs = getattr(library, f"{name}_gts")["i2t"]
    image, rights = next(iter(pairs.items()))
    captions = CaptionSet(
        name="coco-part",
        images=(Path("a.jpg"), Path("b.jpg")),
        image_ids=(1, int(image)),
        captions=tuple(map(str, rights)),
        caption_ids=tuple(int(r) for r in rights),
        image_of=(1,) * len(rights),
        missing=(),
    )
    found = load_positives(name, captions)
    assert found.to_text == {1: tuple(range(len(rights)))}
    assert found.to_image and all(images == (1,) for images in found.to_image.values())
    assert found.absent > 1000
    with pytest.raises(DataError, match="belongs to MSCOCO 5K"):
        load_positives(name, load_karpathy(coco / "dataset_coco.json", coco))


def test_a_constant_encoder_finds_nothing(coco: Path) -> None:
    scores = found_of(TableEncoder(constant), load_karpathy(coco / "dataset_coco.json", coco))[
        "scores"
    ]
    assert scores["image_to_text_r5"]["value"] == 0  # ten wrong captions tie
    assert scores["text_to_image_r1"]["value"] == 0


def test_each_image_and_caption_is_embedded_once(coco: Path) -> None:
    encoder = TableEncoder(constant)
    found = found_of(encoder.at(5000), load_karpathy(coco / "dataset_coco.json", coco))
    assert [len(call) for call in encoder.calls] == [3 + 15]
    assert encoder.areas == [5000] and found["settings"]["max_pixels"] == 5000
    with pytest.raises(UsageError, match="an image alone, and table takes only a text"):
        found_of(
            TableEncoder(constant, frozenset({Kind.TEXT})),
            load_karpathy(coco / "dataset_coco.json", coco),
        )
