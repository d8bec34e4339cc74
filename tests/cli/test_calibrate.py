"""`calibrate`: ranges for int8 in the model's folder, and nothing else changed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_parts import Cli

from abc_embed import Embedder, Item
from abc_embed.vectors import quantize, ranges_at


@pytest.fixture
def model(tiny: Path, here: Path) -> Path:
    """A copy that may be written to, under the name `mine`."""
    return Path(shutil.copytree(tiny, here / "mine"))


def test_int8_comes_after_calibrate(cli: Cli, model: Path, embedder: Embedder) -> None:
    small = ("embed", "photos", "--model", "mine", "-o", "out.npy", "--output", "int8")
    refused = cli(*small)
    assert refused.code == 2 and "abc-embed calibrate MODEL ITEMS" in refused.err
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    done = cli("calibrate", "mine", "photos", "--text", "a dog", "--dims", "16", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert (facts["items"], facts["widths"]) == (4, [embedder.dim, 16])
    assert facts["file"] == "mine/vectors.json" and "give some hundreds" in done.err
    after = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    assert {path.name for path in after if after[path] != before.get(path)} == {"vectors.json"}
    assert cli(*small).code == 0
    pictures = json.loads(Path("out.ids.json").read_text())
    vectors = embedder.embed([Item(image=path) for path in pictures])
    everything = np.vstack([vectors, embedder.embed("a dog")[None]])
    ranges = ranges_at(everything, [embedder.dim])[embedder.dim]
    stored = np.load("out.npy").astype(int)
    assert np.abs(stored - quantize(vectors, "int8", ranges).astype(int)).max() <= 1
    assert cli(*small, "--dim", "16").code == 0 and np.load("out.npy").shape[1] == 16


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("mine",), 2, "nothing to embed"),
        (("mine", "photo.jpg"), 2, "ranges need many vectors"),
        (("mine", "photos", "--dims", "wide"), 2, "--dims is 'wide'"),
        (("mine", "photos", "--dims", "9999"), 2, "dim is 9999"),
        (("bundled", "photos"), 1, "abc-embed export"),
        (("mine", "gone.jpg", "photos"), 1, "there is no file 'gone.jpg'"),
    ],
)
def test_what_cannot_be_calibrated_is_said(
    cli: Cli, model: Path, words: tuple[str, ...], code: int, why: str
) -> None:
    refused = cli("calibrate", *words)
    assert (refused.code, why in refused.err) == (code, True), refused.err
    assert not (model / "vectors.json").exists()
