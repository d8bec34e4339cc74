"""Visual tokens kept on disk: the same vectors without the vision encoder, within a bound."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_parts import BASE, INSTRUCT, PRETRAIN
from hashed_embedder import draw

from abc_embed import Embedder
from abc_embed.errors import OutputError
from abc_embed.pixels import ImageBudget
from abc_embed.search import Index
from abc_embed.search.ask import ask
from abc_embed.search.settings import TOKENS
from abc_embed.search.tokens import TokenStore


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    made = Embedder.from_adapters(BASE, PRETRAIN, INSTRUCT, device="cpu")
    made.processor.image = ImageBudget(min_pixels=28 * 28, max_pixels=6 * 28 * 28)
    return made


@pytest.fixture
def index(tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setattr("abc_embed.search.cutoff.calibrate", lambda index: {})  # of no matter here
    for number in range(5):
        draw(tmp_path / "photos" / f"{number}.png", 30 * number, (60 + 30 * number, 60))
    made = Index.create(tmp_path / "index", embedder)
    made.add([tmp_path / "photos"])
    return made


@pytest.fixture
def encoded(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many pictures each call of the vision encoder had."""
    calls: list[int] = []
    encode = embedder.model.backbone.encode_images

    def counted(pixels: Any, grids: Any) -> Any:
        calls.append(len(grids))
        return encode(pixels, grids)

    monkeypatch.setattr(embedder.model.backbone, "encode_images", counted)
    yield calls


def scores(index: Index, words: str, **options: Any) -> dict[str, float]:
    asked = ask(index, "a dog", words, budget=1, count=9, **options)
    return {hit.path.name: hit.score for hit in asked.hits}


def test_the_vision_encoder_runs_once_an_image(index: Index, encoded: list[int]) -> None:
    left, right = scores(index, "on the left?"), scores(index, "on the right?")
    assert sum(encoded) == 10
    assert index.info()["kept_tokens"]["images"] == 0
    encoded.clear()
    for words, plain in (("on the left?", left), ("on the right?", right)):
        kept = scores(index, words, keep_tokens=True)
        assert kept == pytest.approx(plain, abs=1e-5)
        assert sum(encoded) == 5
    assert index.info()["kept_tokens"]["images"] == 5
    draw(Path(index.paths()[0]), 7, (90, 60))  # other content under the same name
    scores(index, "on top?", keep_tokens=True)
    assert sum(encoded) == 6
    index.compact(drop_tokens=True)
    assert index.info()["kept_tokens"]["images"] == 0


def test_the_bound_holds_and_the_ones_unused_longest_go(tmp_path: Path) -> None:
    one = torch.arange(64, dtype=torch.float32).reshape(4, 16)  # 256 bytes
    with TokenStore(tmp_path, 800) as store:
        for name in "abc":
            store.put({name: one})
        assert store.get("a", torch.float32) is not None
        store.put({"d": one})
        assert store.size() == (3, 768)
        assert store.get("b", torch.float32) is None
    with TokenStore(tmp_path, 800) as store:  # counted again when it is opened
        store.put({"e": one.to(torch.bfloat16)})
        assert store.size()[1] <= 800
        found = store.get("e", torch.bfloat16)
        assert found is not None
        np.testing.assert_array_equal(found.float(), one)


def test_a_damaged_file_is_a_sentence(index: Index) -> None:
    (index.folder / TOKENS).write_bytes(b"no database" * 100)
    with pytest.raises(OutputError, match=r"the kept tokens .* cannot be used"):
        scores(index, "on the left?", keep_tokens=True)
