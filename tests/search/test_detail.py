"""Small vectors of an image's parts: what they are, that they are kept, and what they find."""

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_parts import BASE, INSTRUCT, PRETRAIN
from hashed_embedder import draw

from abc_embed import Embedder, Item
from abc_embed.errors import UsageError
from abc_embed.pixels import ImageBudget
from abc_embed.search import Index
from abc_embed.search.ask import ask
from abc_embed.search.cutoff import score
from abc_embed.search.detail import (
    TEMPERATURE,
    best_part,
    by_turns,
    merge_alike,
    pool_cells,
    stream_detailed,
    to_int8,
)
from abc_embed.search.settings import PARTS
from abc_embed.vectors import truncate


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    made = Embedder.from_adapters(BASE, PRETRAIN, INSTRUCT, device="cpu")
    made.processor.image = ImageBudget(min_pixels=28 * 28, max_pixels=12 * 28 * 28)
    return made


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(6):
        draw(tmp_path / "photos" / f"{number}.png", 40 * number, (60 + 30 * number, 80))
    return tmp_path / "photos"


def test_the_vector_is_the_same_and_parts_are_made_beside_it(
    embedder: Embedder, photos: Path
) -> None:
    items = [Item(image=path) for path in sorted(photos.iterdir())]
    (photos / "bad.png").write_bytes(b"no picture")
    results = list(stream_detailed(embedder, [*items, Item(image=photos / "bad.png")]))
    assert not isinstance(results.pop(), tuple)
    for item, result in zip(items, results, strict=True):
        assert isinstance(result, tuple)
        vector, detail = result
        np.testing.assert_allclose(vector, embedder.embed(item), atol=1e-5)
        assert (detail.shape, detail.dtype) == ((PARTS, embedder.dim), np.int8)
        assert (np.abs(detail).max(axis=1) == 127).all()
        assert best_part(detail[None], vector)[0] <= 1.0001
    alone = list(stream_detailed(embedder, items[:1]))
    assert np.abs(alone[0][1].astype(int) - results[0][1]).max() <= 1  # whatever the company


def test_a_thing_stays_a_part_and_the_ground_becomes_few() -> None:
    ground, dog, cat = torch.eye(8)[:3]
    states = ground + 0.01 * torch.randn(25, 8, generator=torch.Generator().manual_seed(0))
    states[7], states[18] = dog, cat
    parts = merge_alike([pool_cells(states, (1, 10, 10), 2)], PARTS)[0]
    assert parts.shape == (PARTS, 8)
    assert all((parts == thing).all(dim=1).any() for thing in (dog, cat))


def test_alike_states_become_the_mean_of_all_that_went_into_them() -> None:
    states = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0], [0.0, 1.0], [6.0, 0.0]])
    assert merge_alike([states], 2).tolist() == [[[3.0, 0.0], [0.0, 2.0]]]
    assert torch.equal(merge_alike([states], 5), states[None])


def test_images_of_any_number_of_states_are_merged_as_each_alone_is() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(count, 8, generator=generator) for count in (30, 4, 16, 5, 1, 29)]
    together = merge_alike(images, 5)
    for image, parts in zip(images, together, strict=True):
        assert torch.allclose(parts, merge_by_hand(image, 5), atol=1e-6)


def merge_by_hand(states: torch.Tensor, count: int) -> torch.Tensor:
    """The same one image and one pair at a time, from the states that went into each part."""
    groups = [[state] for state in states]
    while len(groups) > count:
        means = torch.stack([torch.stack(group).mean(dim=0) for group in groups])
        cosines = torch.nn.functional.cosine_similarity(means[:, None], means[None], dim=2)
        best = cosines.fill_diagonal_(-2).argmax().item()
        first, second = sorted(divmod(int(best), len(groups)))
        groups[first] += groups.pop(second)
    parts = [torch.stack(group).mean(dim=0) for group in groups]
    return torch.stack(parts + parts[-1:] * (count - len(parts)))


@pytest.mark.parametrize(
    "grid", [(1, 2, 2), (1, 8, 8), (1, 60, 40), (3, 8, 8), (5, 8, 8), (16, 8, 8), (80, 8, 8)]
)
def test_any_number_of_tokens_gives_as_many_parts(grid: tuple[int, int, int]) -> None:
    count = grid[0] * grid[1] * grid[2] // 4
    states = torch.randn(count, 8, dtype=torch.float64)
    parts = merge_alike([pool_cells(states, grid, 2)], PARTS)[0]
    assert parts.shape == (PARTS, 8)
    assert len(torch.unique(parts, dim=0)) == min(PARTS, count)


@pytest.mark.parametrize(("grid", "rows"), [((1, 64, 16), 16), ((1, 32, 32), 8), ((1, 16, 64), 4)])
def test_many_tokens_are_cut_as_comes_closest_to_the_images_shape(
    grid: tuple[int, int, int], rows: int
) -> None:
    down, across = grid[1] // 2, grid[2] // 2
    angle = torch.arange(down).repeat_interleave(across) / down  # says the row of each token
    cells = pool_cells(torch.stack([angle.cos(), angle.sin()], dim=1), grid, 2)
    parts = merge_alike([cells], PARTS)[0]
    assert len(torch.unique(parts.mul(1000).round(), dim=0)) == rows


def test_by_turns() -> None:
    first, second = np.array([9.0, 8, 1, 2]), np.array([1.0, 2, 9, 3])
    assert by_turns(first, second).tolist() == [0, 2, 1, 3]


def test_an_index_keeps_them_and_asks_by_them(
    embedder: Embedder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("abc_embed.search.cutoff.calibrate", lambda index: {})  # of no matter here
    index = Index.create(tmp_path / "index", embedder, detail=True)
    index.add([photos])
    (photos / "0.png").rename(photos / "moved.png")
    assert index.add().found == 1  # with its detail, and no pass
    kept = {}
    for batch in index.table.scan(["path", "detail"], "NOT vanished"):
        details = index.table.decode_detail(batch["detail"], batch.num_rows)
        kept.update(zip(batch["path"].to_pylist(), details, strict=True))
    assert len(kept) == 6
    items = [Item(image=path) for path in kept]
    for made, detail in zip(stream_detailed(embedder, items), kept.values(), strict=True):
        assert isinstance(made, tuple)
        assert np.abs(made[1].astype(int) - detail).max() <= 1
    text = embedder.embed("a dog")
    images = np.stack([embedder.embed(item) for item in items])
    wholes = score(text, images, index.text_bank(), TEMPERATURE)
    parts = best_part(np.stack(list(kept.values())), text, index.text_bank())
    paths = list(kept)
    best = {paths[int(np.argmax(parts))], paths[int(np.argmax(wholes))]}
    assert best <= set(index.promising(text, 2))
    direct = [hit.path for hit in ask(index, "a dog", "on the left?", budget=1, count=6).hits]
    assert sorted(map(str, direct)) == sorted(kept)
    assert "16 x" in index.info()["detail"]
    index.add_vectors(["elsewhere"], text[None])  # has none, and is found by its vector alone
    assert "elsewhere" in index.promising(text, 2)
    assert Index.open(index.folder, embedder).parts == PARTS


def test_an_index_of_short_rounded_vectors_is_asked_like_any_other(
    embedder: Embedder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("abc_embed.search.index.FEWEST_ORIGINALS", 6)
    index = Index.create(tmp_path / "index", embedder, dim=16, dtype="int8", detail=True)
    index.add([photos])
    index = Index.open(index.folder, embedder)  # opens with what it holds
    info = index.info()
    assert (info["dim"], info["dtype"], info["detail"]) == (16, "int8", "16 x 16 int8 an image")
    assert info["stored_recall"] == {"images": 6, "recall": 1.0}  # all six are among the first ten
    files = sorted(photos.iterdir())
    whole = embedder.embed([Item(image=path) for path in files])
    text = embedder.embed("a dog")
    cosines = truncate(whole, 16) @ truncate(text, 16)
    found = {hit.path.name: hit.score for hit in index.search("a dog", 6)}
    expected = {path.name: float(c) for path, c in zip(files, cosines, strict=True)}
    assert found == pytest.approx(expected, abs=0.02)
    asked = ask(index, "a dog", "on the left?", budget=1, count=1).hits[0]
    again = embedder.embed(Item(image=str(asked.path), instruction="on the left?"))
    assert asked.score == pytest.approx(float(again @ text), abs=1e-4)  # at the model's own width
    assert len(index.promising(text, 3)) == 3
    with pytest.raises(UsageError, match="dim is 9999"):
        Index.create(tmp_path / "other", embedder, dim=9999)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_recall_of_stored_vectors(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(1)
    full, queries = rng.normal(size=(300, 64)), rng.normal(size=(20, 64))
    full, queries = (
        (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        for rows in (full, queries)
    )
    table = Index.create(tmp_path / "index", dim=16, dtype=dtype).table
    found = table.stored_recall(full, queries)
    hits = 0
    for query in queries:
        exact = np.argsort(-(full @ query))[:10]
        short = np.argsort(-(truncate(full, 16) @ truncate(query, 16)))[:10]
        hits += len(set(exact) & set(short))
    assert found == pytest.approx(hits / 200, abs=0.0001 if dtype == "float32" else 0.04)
    assert 0.1 < found < 0.9
    whole = Index.create(tmp_path / "whole", dim=64, dtype=dtype).table
    assert whole.stored_recall(full, queries) >= (1.0 if dtype == "float32" else 0.9)


def test_detail_needs_a_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="detail is made by a model"):
        Index.create(tmp_path / "index", dim=8, detail=True)


def test_zeros_are_no_part() -> None:
    details = np.stack([to_int8(np.eye(PARTS, 20)), np.zeros((PARTS, 20), np.int8)])
    assert best_part(details, np.eye(20)[3].astype(np.float32)).tolist() == [1.0, -np.inf]
